//! One of two agents comes to be somewhere else while they talk: packets every 10 ms both ways, and how long there are
//! none. Both are behind NATs that filter by port.

use std::time::Duration;

use agentnet::api::PathKind;
use agentnet_sim::net::{NatKind, Replay, SiteOptions};
use agentnet_sim::pair::{Pair, jittery_home};
use agentnet_sim::stats::report;

const SECOND: Duration = Duration::from_secs(1);
const RUNS: usize = 20;
/// How long is looked for the end of the gap, and that nothing else follows.
const WATCH: Duration = Duration::from_secs(15);

fn home() -> SiteOptions {
    jittery_home(NatKind::PortRestricted)
}

/// The longest time without a packet after `happens`. The path has to be direct again at the end.
fn gaps(what: &str, sites: [SiteOptions; 2], happens: impl Fn(&mut Pair)) -> Duration {
    let replay = Replay::seed_or(1);
    let mut rng = replay.rng();
    let gaps = (0..RUNS).map(|_| {
        let mut pair = Pair::talking(rng.fork(), sites.clone(), 2);
        let before = pair.world.elapsed();
        happens(&mut pair);
        pair.talk(WATCH);
        assert_eq!(pair.kinds(), [PathKind::Direct; 2], "{what}: {:?}", pair.why());
        Some(pair.longest_gap(before))
    });
    report(what, &gaps.collect::<Vec<_>>())
}

#[test]
fn moving_behind_another_nat_costs_less_than_a_second() {
    let p95 = gaps("another NAT", [home(), home()], |pair| {
        let elsewhere = pair.world.net.add_site(&home());
        pair.world.move_host(pair.agents[0], &elsewhere);
    });
    assert!(p95 < SECOND, "{p95:?}");
}

#[test]
fn moving_where_ports_differ_for_every_destination_costs_less_than_a_second() {
    let p95 = gaps("a NAT with a port for every destination", [home(), home()], |pair| {
        let elsewhere = pair.world.net.add_site(&jittery_home(NatKind::SymmetricSequential));
        pair.world.move_host(pair.agents[0], &elsewhere);
    });
    assert!(p95 < SECOND, "{p95:?}");
}

#[test]
fn moving_from_ipv4_to_ipv6_costs_less_than_a_second() {
    let dual = || SiteOptions { has_v6: true, ..home() };
    let p95 = gaps("IPv4 to IPv6", [home(), dual()], |pair| {
        let elsewhere = pair.world.net.add_site(&dual());
        pair.world.move_host_to_v6(pair.agents[0], &elsewhere);
    });
    assert!(p95 < SECOND, "{p95:?}");
}

#[test]
fn a_nat_that_forgets_everything_costs_less_than_a_second() {
    let p95 = gaps("NAT reboot, new ports", [home(), home()], |pair| {
        pair.world.net.reboot(pair.sites[0].boxes[0], None);
    });
    assert!(p95 < SECOND, "{p95:?}");
    let p95 = gaps("NAT reboot, new address", [home(), home()], |pair| {
        let fresh = pair.world.net.fresh_external(agentnet_sim::net::Segment::Core);
        pair.world.net.reboot(pair.sites[0].boxes[0], Some(fresh));
    });
    assert!(p95 < SECOND, "{p95:?}");
}
