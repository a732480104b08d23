//! Servers, relays and agents that are gone: what goes on without them, and what comes back.

use std::time::Duration;

use agentnet::api::PathKind;
use agentnet_sim::net::{NatKind, Replay, Segment, SimRng, Site};
use agentnet_sim::pair::{Pair, add_agent, jittery_home};
use agentnet_sim::stats::report;

const SECOND: Duration = Duration::from_secs(1);
const RUNS: usize = 20;
/// How long is waited for the first packet after a restart.
const PATIENCE: Duration = Duration::from_secs(60);

fn measure(what: &str, run: impl Fn(SimRng) -> Option<Duration>) -> Duration {
    let replay = Replay::seed_or(1);
    let mut rng = replay.rng();
    let measured: Vec<_> = (0..RUNS).map(|_| run(rng.fork())).collect();
    report(what, &measured)
}

#[test]
fn an_established_direct_pair_loses_nothing_when_all_servers_die() {
    let replay = Replay::seed_or(1);
    let mut rng = replay.rng();
    for _ in 0..5 {
        let mut pair = Pair::talking(rng.fork(), [NatKind::PortRestricted; 2].map(jittery_home), 2);
        let died = pair.world.elapsed();
        kill_servers(&mut pair);
        // Long enough for new handshakes of the session, which has no other way.
        pair.talk(SECOND * 300);
        pair.listen(SECOND);
        assert_eq!(pair.lost_and_repeated(), (0, 0));
        assert!(pair.longest_gap(died) <= SECOND + SECOND / 10, "{:?}", pair.longest_gap(died));
        assert!(pair.is_direct());
    }
}

#[test]
fn another_relay_takes_over_within_two_seconds() {
    let p95 = measure("relay killed", |mut rng| {
        let mut pair = Pair::new(rng.fork(), [NatKind::SymmetricRandom; 2].map(jittery_home), 2);
        pair.talk(SECOND * 5 + rng.duration(SECOND * 2));
        let relay = pair.statuses()[0].path.via.expect("nothing else connects them");
        let server = pair.world.servers.iter().position(|server| server.server.id() == relay).unwrap();
        let died = pair.world.elapsed();
        pair.world.kill_server(server);
        pair.talk(SECOND * 15);
        let [a, b] = pair.statuses();
        assert_eq!((a.path.kind, b.path.kind), (PathKind::Relayed, PathKind::Relayed));
        assert!(a.path.via.is_some_and(|via| via != relay), "{:?}", pair.why());
        Some(pair.longest_gap(died))
    });
    assert!(p95 < SECOND * 2, "{p95:?}");
}

#[test]
fn agents_restarted_without_servers_meet_where_one_is_public() {
    for public in [0, 1] {
        let mut kinds = [NatKind::PortRestricted; 2];
        kinds[public] = NatKind::None;
        let p95 = measure("restart without servers, one public", |rng| {
            let mut pair = Pair::talking(rng, kinds.map(jittery_home), 2);
            kill_everything(&mut pair);
            restart_agents(&mut pair);
            first_packets(&mut pair)
        });
        assert!(p95 < SECOND * 2, "{p95:?}");
    }
}

#[test]
fn agents_restarted_without_servers_and_elsewhere_meet_through_a_third_that_both_trust() {
    for kinds in [[NatKind::FullCone, NatKind::PortRestricted], [NatKind::PortRestricted; 2]] {
        let p95 = measure("restart without servers, a third agent public", |rng| {
            let mut pair = Pair::talking(rng, kinds.map(jittery_home), 2);
            let public = pair.world.open_site(false);
            let third = add_agent(&mut pair.world, &public);
            pair.world.advance(SECOND);
            for agent in pair.agents {
                pair.world.trust(agent, third);
            }
            pair.talk(SECOND);
            kill_everything(&mut pair);
            // Neither knows where the other is now.
            for site in pair.sites.clone() {
                reboot_elsewhere(&mut pair, &site);
            }
            restart_agents(&mut pair);
            first_packets(&mut pair)
        });
        assert!(p95 < SECOND * 2, "{p95:?}");
    }
}

fn kill_servers(pair: &mut Pair) {
    for server in 0..pair.world.servers.len() {
        pair.world.kill_server(server);
    }
}

/// For so long that NATs have forgotten them.
fn kill_everything(pair: &mut Pair) {
    kill_servers(pair);
    for agent in pair.agents {
        pair.world.kill(agent);
    }
    pair.world.advance(SECOND * 300);
}

fn reboot_elsewhere(pair: &mut Pair, site: &Site) {
    let fresh = pair.world.net.fresh_external(Segment::Core);
    pair.world.net.reboot(site.boxes[0], Some(fresh));
}

fn restart_agents(pair: &mut Pair) {
    for agent in pair.agents {
        pair.world.restart(agent);
    }
}

/// How long the first packet each way takes.
fn first_packets(pair: &mut Pair) -> Option<Duration> {
    let [a, b] = pair.agents;
    let start = pair.world.elapsed();
    pair.world.carry(a, b, PATIENCE)?;
    pair.world.carry(b, a, PATIENCE)?;
    Some(pair.world.elapsed() - start)
}
