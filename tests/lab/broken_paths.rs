//! A direct path that breaks without a word while the rest of the internet works: the relay takes over, `why` says so,
//! and data goes directly again when the path heals.

use std::net::Ipv4Addr;
use std::time::Duration;

use serde_json::Value;

use crate::harness::{
    Agent, Echoes, Internet, Nat, PATIENT, Place, Server, Shape, observe, setting, trust, unix_seconds, wait_until,
};

/// A quarter of a round trip of 40 ms.
const ACCESS: Option<Shape> = Some(Shape { delay: Duration::from_millis(10), ..Shape::CLEAR });
/// What a gap may be on two noisy cores. The aim, a second, is read from what is printed.
const LONGEST_GAP: f64 = 5.0;
/// Between two events.
const SETTLE: Duration = Duration::from_secs(3);
/// A path that died is looked for less and less often while the relay carries data; the first tries come soon.
const HEALED_WITHIN: Duration = Duration::from_secs(120);
/// Going over to a path that answers loses nothing but what was on its way.
const LONGEST_SWITCH: f64 = 1.0;

#[test]
fn a_path_that_dies_silently_gives_way_to_the_relay() {
    breaks_and_heals("both ways", |a, b| vec![(a, b), (b, a)]);
}

#[test]
#[ignore = "in one direction only: scripts/matrix events"]
fn a_path_that_loses_what_is_sent_gives_way_to_the_relay() {
    breaks_and_heals("one way, from the one that asks", |a, b| vec![(a, b)]);
}

#[test]
#[ignore = "in one direction only: scripts/matrix events"]
fn a_path_that_loses_what_comes_back_gives_way_to_the_relay() {
    breaks_and_heals("one way, towards the one that asks", |a, b| vec![(b, a)]);
}

/// Loses UDP on the ways that `broken` makes of the external addresses of both sides, several times.
fn breaks_and_heals(what: &str, broken: impl Fn(Ipv4Addr, Ipv4Addr) -> Vec<(Ipv4Addr, Ipv4Addr)>) {
    let internet = Internet::new();
    let core = internet.public_host(ACCESS);
    let places: [Place; 2] = [0, 1].map(|_| internet.host_behind(Nat::PortRestricted, ACCESS));
    let server = Server::started(&core.host);
    let [a, b] = places.each_ref().map(|place| Agent::registered(&place.host, &[&server]));
    trust(&a, &b);
    let echoes = Echoes::start(a.host(), b.ipv6());
    wait_until_both_are(&a, &b, "direct", PATIENT);
    let [a_address, b_address] = places.each_ref().map(|place| place.router().external_ipv4());
    for _ in 0..setting("AGENTNET_LAB_RUNS", 1) {
        observe(SETTLE);
        let start = unix_seconds();
        internet.lose_udp(&broken(a_address, b_address));
        echoes.first_after(start + 1.0);
        wait_until_both_are(&a, &b, "relayed", PATIENT);
        observe(SETTLE);
        let gap = echoes.longest_gap(start);
        eprintln!("path broken {what}: nothing came back for {gap:.2} s (aim: below 1)");
        assert!(gap < LONGEST_GAP, "nothing came back for {gap:.1} s");
        assert_dead_path_is_named(&a, &b, b_address);
        let start = unix_seconds();
        internet.lose_udp(&[]);
        wait_until_both_are(&a, &b, "direct", HEALED_WITHIN);
        let healed = unix_seconds() - start;
        observe(SETTLE);
        let gap = echoes.longest_gap(start);
        eprintln!("path healed: direct again after {healed:.1} s, longest gap meanwhile {gap:.2} s");
        assert!(gap < LONGEST_SWITCH, "going back to the direct path took {gap:.1} s");
        let why = a.json(&["why", &b.id()]);
        assert_eq!(why["verdict"], "direct", "{why}");
    }
}

/// `why` has a step that says which path stopped answering, and that another took over.
fn assert_dead_path_is_named(agent: &Agent<'_>, peer: &Agent<'_>, address: Ipv4Addr) {
    let why = agent.json(&["why", &peer.id()]);
    let text = |step: &Value| step["detail"].as_str().unwrap_or_default().to_owned();
    let is_it = |step: &&Value| {
        let detail = text(step);
        let names = detail.starts_with(&format!("{address}:")) && detail.contains("stopped answering");
        step["step"] == "path" && names
    };
    assert_eq!(why["verdict"], "relayed", "{why}");
    let step = why["steps"].as_array().unwrap().iter().find(is_it);
    let step = step.unwrap_or_else(|| panic!("the dead path to {address} is not named: {why:#}"));
    assert!(step["ok"] == true && text(step).contains("another path took over"), "{step}");
    assert_eq!(why["reason_code"], "direct_path_died", "{why:#}");
    eprintln!("why: {}", text(step));
}

fn wait_until_both_are(one: &Agent<'_>, other: &Agent<'_>, kind: &str, bound: Duration) {
    let what = format!("both call the path {kind}");
    wait_until(&what, bound, || one.path_kind(other) == kind && other.path_kind(one) == kind);
}
