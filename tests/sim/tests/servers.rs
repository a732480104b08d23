//! Agents that cannot reach each other do so with the help of servers.

use std::time::Duration;

use agentnet::api::PathKind;
use agentnet_sim::net::{LinkConfig, Loss, NatKind, SimRng, SiteOptions};
use agentnet_sim::{HostOptions, ServerOptions, World};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

fn access() -> LinkConfig {
    LinkConfig::with_delay(MS * 10)
}

/// So many servers, at one public site.
fn world_with_servers(servers: usize, has_v6: bool) -> World {
    let mut world = World::new(0);
    let public = world.net.add_site(&SiteOptions { has_v6, ..SiteOptions::new(NatKind::None, access()) });
    for _ in 0..servers {
        world.add_server(&public, ServerOptions::default());
    }
    world
}

/// A host with all the world's servers at a site of its own.
fn add_client(world: &mut World, kind: NatKind) -> usize {
    let site = world.net.add_site(&SiteOptions::new(kind, access()));
    let rendezvous = world.servers.iter().map(|server| server.reference()).collect();
    world.add_host_at(&site, HostOptions { rendezvous, ..HostOptions::default() })
}

fn are_connected(world: &World, host: usize) -> bool {
    let statuses = world.hosts[host].node.rendezvous_statuses();
    statuses.len() == world.servers.len() && statuses.iter().all(|status| status.state == "connected")
}

/// Connects to every server, within this time.
fn connects(world: &mut World, host: usize, limit: Duration) -> Option<Duration> {
    world.advance_until(limit, |world| are_connected(world, host))
}

fn path(world: &World, host: usize) -> PathKind {
    world.hosts[host].node.peer_statuses(world.now())[0].path.kind
}

#[test]
fn a_client_is_registered_after_three_round_trips_behind_any_nat() {
    for has_v6 in [false, true] {
        for kind in NatKind::ALL {
            let mut world = world_with_servers(2, has_v6);
            let host = add_client(&mut world, kind);
            // The server's record, the handshake, the registration.
            assert_eq!(connects(&mut world, host, SECOND), Some(MS * 120), "{kind:?}");
            world.advance(SECOND * 3_600);
            assert!(are_connected(&world, host), "{kind:?}");
        }
    }
}

#[test]
fn clients_find_a_restarted_server_again() {
    let mut world = world_with_servers(1, false);
    let host = add_client(&mut world, NatKind::PortRestricted);
    connects(&mut world, host, SECOND).unwrap();
    world.restart_server(0);
    world.advance(SECOND * 60);
    assert!(are_connected(&world, host));
    world.kill_server(0);
    world.advance(SECOND * 600);
    assert!(!are_connected(&world, host));
    world.restart_server(0);
    world.advance(SECOND * 60);
    assert!(are_connected(&world, host));
}

#[test]
fn hosts_behind_the_hardest_nats_meet_over_the_relay() {
    let mut world = world_with_servers(1, false);
    let [a, b] = [(); 2].map(|()| add_client(&mut world, NatKind::SymmetricRandom));
    world.advance(SECOND);
    world.trust(a, b);
    world.advance(SECOND * 10);
    assert_eq!(world.carry(a, b, SECOND * 3), Some(MS * 40));
    assert_eq!(world.carry(b, a, SECOND * 3), Some(MS * 40));
    assert_eq!((path(&world, a), path(&world, b)), (PathKind::Relayed, PathKind::Relayed));
    assert!(world.servers[0].counters.relay_frames.get() > 0);
}

#[test]
fn the_same_seed_is_the_same_run() {
    let run = |seed| {
        let mut world = World::with_rng(SimRng::from_seed(seed));
        let faulty = LinkConfig { jitter: MS * 5, loss: Loss::Independent(0.05), ..access() };
        let public = world.net.add_site(&SiteOptions { has_v6: true, ..SiteOptions::new(NatKind::None, faulty) });
        for _ in 0..2 {
            world.add_server(&public, ServerOptions::default());
        }
        let hosts = NatKind::ALL.map(|kind| add_client(&mut world, kind));
        world.advance(SECOND * 5);
        for peer in &hosts[1..] {
            world.trust(hosts[0], *peer);
        }
        for round in 0..120 {
            let packet = world.packet_between(hosts[0], hosts[1 + round % 6]);
            world.send(hosts[0], &packet);
            world.advance(SECOND);
            match round {
                20 => world.restart_server(0),
                50 => world.restart(hosts[5]),
                _ => {}
            }
        }
        (world.fingerprint(), world.elapsed(), world.net.drops().clone())
    };
    let first = run(7);
    assert_eq!(first, run(7));
    assert_ne!(first.0, run(8).0);
}
