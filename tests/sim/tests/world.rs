//! What scenarios rely on: agents are where they are put, packets take the time of their links, and a run can be replayed.

use std::time::{Duration, SystemTime};

use agentnet::api::PathKind;
use agentnet_sim::net::{DropReason, LinkConfig, Loss, NatKind, SimRng, SiteOptions};
use agentnet_sim::{HostOptions, World};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

/// A public host (0) and one behind a NAT of this kind (1), 20 ms apart, that trust each other.
fn home_and_public(kind: NatKind) -> (World, agentnet_sim::net::Site) {
    let mut world = World::new(0);
    let public = world.net.add_site(&SiteOptions::new(NatKind::None, access()));
    let home = world.net.add_site(&SiteOptions::new(kind, access()));
    for site in [&public, &home] {
        world.add_host_at(site, HostOptions::default());
    }
    world.trust(1, 0);
    world.advance(SECOND * 5);
    (world, home)
}

fn access() -> LinkConfig {
    LinkConfig::with_delay(MS * 10)
}

/// How long it takes until one of many packets, 10 ms apart, arrives.
fn comes_through(world: &mut World, from: usize, to: usize) -> Option<Duration> {
    let (packet, start) = (world.packet_between(from, to), world.elapsed());
    (0..1_000).find_map(|_| {
        world.send(from, &packet);
        world.advance_until(MS * 10, |world| world.hosts[to].take_delivered().contains(&packet))?;
        Some(world.elapsed() - start)
    })
}

#[test]
fn packets_take_the_time_of_their_links() {
    let (mut world, _) = home_and_public(NatKind::PortRestricted);
    assert_eq!(world.carry(0, 1, SECOND * 3), Some(MS * 20));
    assert_eq!(world.carry(1, 0, SECOND * 3), Some(MS * 20));
    // The first packet after a long pause waits for a handshake: a round trip more.
    world.advance(SECOND * 600);
    assert_eq!(world.carry(1, 0, SECOND * 3), Some(MS * 60));
}

#[test]
fn the_same_seed_is_the_same_run() {
    let run = |seed| {
        let mut world = World::with_rng(SimRng::from_seed(seed));
        let faulty = LinkConfig { jitter: MS * 5, loss: Loss::Independent(0.05), reorder: 0.01, ..access() };
        let site = world.net.add_site(&SiteOptions { has_v6: true, ..SiteOptions::new(NatKind::None, faulty) });
        for _ in 0..6 {
            world.add_host_at(&site, HostOptions::default());
        }
        for peer in 1..6 {
            world.trust(0, peer);
        }
        for round in 0..300 {
            let packet = world.packet_between(0, 1 + round % 5);
            world.send(0, &packet);
            world.advance(SECOND);
            if round % 100 == 50 {
                world.restart(round / 100);
            }
        }
        (world.fingerprint(), world.elapsed(), world.net.drops().clone())
    };
    let first = run(7);
    assert_eq!(first, run(7));
    assert_ne!(first.0, run(8).0);
}

#[test]
fn a_host_that_moves_is_followed() {
    for kind in [NatKind::None, NatKind::PortRestricted, NatKind::SymmetricRandom] {
        let (mut world, _) = home_and_public(NatKind::FullCone);
        let elsewhere = world.net.add_site(&SiteOptions::new(kind, access()));
        let before = world.hosts[0].node.peer_statuses(world.now())[0].path.endpoint;
        world.move_host(1, &elsewhere);
        let (there, back) = (comes_through(&mut world, 1, 0), comes_through(&mut world, 0, 1));
        assert!(there.is_some_and(|took| took <= MS * 500), "{kind:?}: {there:?}");
        assert!(back.is_some_and(|took| took <= MS * 500), "{kind:?}: {back:?}");
        assert_ne!(world.hosts[0].node.peer_statuses(world.now())[0].path.endpoint, before);
    }
}

#[test]
fn a_nat_that_reboots_is_passed_again() {
    let (mut world, home) = home_and_public(NatKind::PortRestricted);
    assert!(world.carry(0, 1, SECOND * 3).is_some());
    world.net.reboot(home.boxes[0], None);
    assert_eq!(world.carry(0, 1, SECOND * 3), None, "the old mapping is gone");
    assert!(comes_through(&mut world, 1, 0).is_some());
    assert!(comes_through(&mut world, 0, 1).is_some());
}

#[test]
fn a_host_without_links_is_alone_until_they_are_back() {
    let (mut world, _) = home_and_public(NatKind::None);
    let own = world.address(1);
    world.disconnect(1);
    assert!(world.net.addresses(world.hosts[1].at()).is_empty());
    assert_eq!((world.carry(0, 1, SECOND * 3), world.carry(1, 0, SECOND * 3)), (None, None));
    assert!(world.net.drops().of(DropReason::NoRoute) > 0);
    world.reconnect(1);
    assert_eq!(world.address(1), own);
    assert!(comes_through(&mut world, 1, 0).is_some() && comes_through(&mut world, 0, 1).is_some());
}

#[test]
fn a_killed_agent_says_and_hears_nothing_until_it_is_started() {
    let (mut world, _) = home_and_public(NatKind::None);
    world.kill(1);
    world.hosts[1].sent.clear();
    assert_eq!((world.carry(0, 1, SECOND * 3), world.carry(1, 0, SECOND * 3)), (None, None));
    world.advance(SECOND * 600);
    assert!(!world.hosts[1].is_alive() && world.hosts[1].sent.is_empty());
    world.restart(1);
    world.advance(MS * 100);
    assert_eq!(world.hosts[0].node.peer_statuses(world.now())[0].path.kind, PathKind::Direct);
    assert_eq!((world.carry(0, 1, SECOND * 3), world.carry(1, 0, SECOND * 3)), (Some(MS * 20), Some(MS * 20)));
}

/// The session library puts the wall clock into its handshakes, and a peer takes none that is older than the last.
#[test]
#[cfg_attr(not(target_os = "linux"), ignore = "the wall clock is virtual on Linux only")]
fn a_restarted_agent_begins_handshakes_itself() {
    let (mut world, _) = home_and_public(NatKind::SymmetricRandom);
    world.advance(SECOND * 3_600);
    assert!(world.carry(1, 0, SECOND * 3).is_some());
    world.advance(SECOND * 600);
    world.restart(1);
    assert_eq!(world.carry(1, 0, SECOND * 3), Some(MS * 60));
    assert_eq!(world.hosts[0].counters.drop_handshake_replay.get(), 0);
}

#[test]
#[cfg_attr(not(target_os = "linux"), ignore = "the wall clock is virtual on Linux only")]
#[allow(clippy::disallowed_methods, reason = "it is what libraries do")]
fn libraries_see_the_world_s_wall_clock_and_only_on_its_thread() {
    let wall_clock = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let real = wall_clock();
    let mut world = World::new(1);
    world.advance(MS * 1_234_567);
    assert_eq!(wall_clock().as_millis(), u128::from(world.now().unix_ms));
    let elsewhere = std::thread::spawn(wall_clock).join().unwrap();
    assert!(elsewhere >= real && elsewhere < real + SECOND * 600, "{real:?} {elsewhere:?}");
}
