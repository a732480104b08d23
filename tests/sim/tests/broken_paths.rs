//! Paths that break without a word while another one works: packets every 10 ms both ways, and how long there are none.

use std::net::IpAddr;
use std::time::Duration;

use agentnet::api::PathKind;
use agentnet_sim::net::{NatKind, Replay};
use agentnet_sim::packet;
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

#[test]
fn a_path_that_comes_to_drop_large_packets_costs_little_and_is_named() {
    const PASSES: usize = 1_350;
    let gaps = runs().map(|mut pair| {
        // Whatever the search at the beginning asked is answered.
        pair.talk(SECOND * 5);
        let [a, b] = external(&pair);
        for (from, to) in [(a, b), (b, a)] {
            pair.world.net.path_mut(from, to).config.drop_above = Some(PASSES);
        }
        let gap = large_packets_pass_after(&mut pair, 1_400);
        let status = &pair.statuses()[0];
        assert!(status.path.kind == PathKind::Direct && (1_250..PASSES as u32 - 60).contains(&status.path.mtu));
        let why = pair.why();
        let named = format!("packets of up to {} bytes", status.path.mtu);
        assert!(why.steps.iter().any(|step| step.detail.contains(&named)), "{why:?}");
        gap
    });
    let p95 = report("large packets dropped", &gaps.collect::<Vec<_>>());
    assert!(p95 < SECOND * 2, "{p95:?}");
}

/// A program of the first sends packets of this length every 10 ms, and shorter ones when it is told to; the other
/// answers with small ones. How long it takes until a long one arrives.
fn large_packets_pass_after(pair: &mut Pair, mut length: usize) -> Option<Duration> {
    const HEADERS: usize = 48;
    let [a, b] = pair.agents;
    let ips = [a, b].map(|agent| IpAddr::V6(pair.world.hosts[agent].node.ipv6()));
    let start = pair.world.elapsed();
    while pair.world.elapsed() < start + SECOND * 10 {
        let long = packet::udp(ips[0], ips[1], 1002, 2002, &vec![0; length - HEADERS]);
        pair.world.send(a, &long);
        let small = packet::udp(ips[1], ips[0], 2002, 1002, b"small");
        pair.world.send(b, &small);
        pair.world.advance(SECOND / 100);
        if pair.world.hosts[b].take_delivered().contains(&long) {
            return Some(pair.world.elapsed() - start);
        }
        let told = pair.world.hosts[a].take_delivered().into_iter().filter_map(|packet| packet_too_big(&packet));
        length = told.min().unwrap_or(length).min(length);
    }
    None
}

/// The MTU in an ICMPv6 "packet too big" (RFC 4443, section 3.2).
fn packet_too_big(packet: &[u8]) -> Option<usize> {
    let (next_header, kind) = (packet.get(6)?, packet.get(40)?);
    let mtu = u32::from_be_bytes(packet.get(44..48)?.try_into().ok()?);
    (*next_header == 58 && *kind == 2).then_some(mtu as usize)
}
