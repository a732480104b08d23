//! Paths that break without a word while another one works: packets every 10 ms both ways, and how long there are none.

use std::net::IpAddr;
use std::time::Duration;

use agentnet::api::PathKind;
use agentnet_sim::net::{NatKind, Replay};
use agentnet_sim::pair::{Pair, jittery_home};
use agentnet_sim::stats::report;

const SECOND: Duration = Duration::from_secs(1);
const RUNS: usize = 20;

/// Two agents behind NATs that filter by port, with a direct path.
fn runs() -> impl Iterator<Item = Pair> {
    let replay = Replay::seed_or(1);
    let mut rng = replay.rng();
    (0..RUNS).map(move |_| {
        let _ = &replay;
        Pair::talking(rng.fork(), [NatKind::PortRestricted; 2].map(jittery_home), 2)
    })
}

/// Where the world sees the two.
fn external(pair: &Pair) -> [IpAddr; 2] {
    pair.sites.each_ref().map(|site| pair.world.net.external(site.boxes[0]).unwrap().into())
}

/// Nothing passes from one to the other (by side) on the direct path any more.
fn break_path(pair: &mut Pair, from: usize) {
    let external = external(pair);
    pair.world.net.path_mut(external[from], external[1 - from]).config.blackhole = true;
}

fn heal_path(pair: &mut Pair) {
    let [a, b] = external(pair);
    for (from, to) in [(a, b), (b, a)] {
        pair.world.net.path_mut(from, to).config.blackhole = false;
    }
}

/// Breaks the path in these directions, lets it heal, and returns how long nothing arrived at one of the two.
fn gap_of(mut pair: Pair, directions: &[usize]) -> Option<Duration> {
    let died = pair.world.elapsed();
    for from in directions {
        break_path(&mut pair, *from);
    }
    pair.talk(SECOND * 10);
    let gap = pair.longest_gap(died);
    assert_eq!(pair.kinds(), [PathKind::Relayed; 2], "{:?}", pair.why());
    let why = pair.why();
    let named = why.steps.iter().find(|step| step.detail.contains("stopped answering")).expect("the loss is named");
    let seen = external(&pair)[1].to_string();
    assert!(named.ok && named.detail.contains(&seen) && named.detail.contains("another path took over"), "{why:?}");
    assert_eq!(why.reason_code, "direct_path_died");
    heal_path(&mut pair);
    pair.talk(SECOND * 60);
    assert_eq!(pair.kinds(), [PathKind::Direct; 2], "{:?}", pair.why());
    Some(gap)
}

#[test]
fn silent_death_costs_less_than_a_second() {
    let gaps: Vec<_> = runs().map(|pair| gap_of(pair, &[0, 1])).collect();
    let p95 = report("silent death", &gaps);
    assert!(p95 < SECOND, "{p95:?}");
}

#[test]
fn a_path_that_works_one_way_only_costs_less_than_a_second() {
    for from in [0, 1] {
        let gaps: Vec<_> = runs().map(|pair| gap_of(pair, &[from])).collect();
        let p95 = report("one way", &gaps);
        assert!(p95 < SECOND, "{p95:?}");
    }
}
