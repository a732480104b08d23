//! Two hosts with IPv4 and IPv6 between them: data finds a way as long as there is one.

use std::net::SocketAddr;
use std::time::Duration;

use agentnet_sim::{HostOptions, World};

const TICK: Duration = Duration::from_millis(10);

fn world() -> World {
    let mut world = World::new(0);
    let site = world.open_site(true);
    for _ in 0..2 {
        world.add_host_at(&site, HostOptions::default());
    }
    world.trust(0, 1);
    world.advance(Duration::from_secs(5));
    world
}

fn endpoint(world: &World, host: usize) -> SocketAddr {
    world.hosts[host].node.peer_statuses(world.now())[0].path.endpoint.unwrap()
}

/// Packets both ways every 10 ms; returns the longest time without one, each way.
fn longest_gap(world: &mut World, duration: Duration) -> Duration {
    let (mut gaps, mut longest) = ([Duration::ZERO; 2], Duration::ZERO);
    for _ in 0..duration.as_millis() / TICK.as_millis() {
        for (way, (from, to)) in [(0, 1), (1, 0)].into_iter().enumerate() {
            gaps[way] = if world.carries_ipv6(from, to) { Duration::ZERO } else { gaps[way] + TICK };
            longest = longest.max(gaps[way]);
        }
        world.advance(TICK);
    }
    longest
}

#[test]
fn a_family_that_dies_costs_less_than_a_second() {
    for (ipv6_dies, one_way) in [(true, false), (false, false), (true, true), (false, true)] {
        let mut world = world();
        assert_eq!(longest_gap(&mut world, Duration::from_secs(1)), Duration::ZERO);
        let sources = [world.address(0), world.address_v6(0)];
        world.net.set_drop_rule(move |from, to, _| {
            let dead = to.is_ipv6() == ipv6_dies;
            dead && (!one_way || sources.contains(&from))
        });
        let gap = longest_gap(&mut world, Duration::from_secs(5));
        assert!(gap < Duration::from_secs(1), "{gap:?} (IPv6: {ipv6_dies}, one way: {one_way})");
        assert_eq!(endpoint(&world, 0).is_ipv6(), !ipv6_dies);
        // And nothing is lost when the other one dies instead.
        world.net.set_drop_rule(move |_, to, _| to.is_ipv6() != ipv6_dies);
        let gap = longest_gap(&mut world, Duration::from_secs(5));
        assert!(gap < Duration::from_secs(1), "{gap:?} on the way back");
    }
}

#[test]
fn a_path_that_works_is_not_left() {
    let mut world = world();
    let before = endpoint(&world, 0);
    longest_gap(&mut world, Duration::from_secs(60));
    assert_eq!(endpoint(&world, 0), before);
}

#[test]
fn why_lists_what_was_tried() {
    let mut world = world();
    world.net.set_drop_rule(|_, to, _| to.is_ipv6());
    longest_gap(&mut world, Duration::from_secs(3));
    let why = world.hosts[0].node.why(world.now(), "host1").unwrap();
    let probe = why.steps.iter().find(|step| step.step == "probe").unwrap();
    assert!(probe.ok && probe.detail.contains(&format!("silent: {}", world.address_v6(1))), "{}", probe.detail);
}
