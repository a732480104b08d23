//! Servers that are gone, and agents that were: who knew each other talk on, or find each other again.
//!
//! ```text
//!   agent a ─ NAT ─ 10 ms ─┐                  ┌─ 10 ms ─ NAT ─ agent b       40 ms from a to b and back
//!                          ├── the internet ──┤
//!      server ───── 10 ms ─┘                  └─ 10 ms ─ agent c
//! ```

use std::path::PathBuf;
use std::time::Duration;

use crate::harness::{
    Agent, Echoes, Internet, Nat, PATIENT, Place, Program, SOON, Server, Shape, observe, trust, unix_seconds, wait_for,
    wait_until,
};
use crate::traffic::{same_content, serve, write_random};

/// A quarter of a round trip of 40 ms.
const ACCESS: Option<Shape> = Some(Shape { delay: Duration::from_millis(10), ..Shape::CLEAR });
/// What a gap may be on two noisy cores. The aim, two seconds, is read from what is printed.
const LONGEST_GAP: f64 = 5.0;
/// Long enough for paths to be measured and mappings to be confirmed.
const SETTLE: Duration = Duration::from_secs(3);
/// One transfer: it takes twenty seconds, and outlasts the outage.
const LENGTH: u64 = 10_000_000;
const RATE: &str = "500K";

#[test]
fn a_direct_path_does_not_need_its_server() {
    let internet = Internet::new();
    let (core, [home, mobile]) = (internet.public_host(ACCESS), two_places(&internet, Nat::PortRestricted));
    let mut server = Server::started(&core.host);
    let [a, b] = [&mobile, &home].map(|place| Agent::registered(&place.host, &[&server]));
    trust(&a, &b);
    wait_until_both_are(&a, &b, "direct");
    let transfer = Transfer::start(&internet, &a, &b);
    let echoes = Echoes::start(a.host(), b.ipv6());
    observe(SETTLE);
    server.kill9();
    let killed = unix_seconds();
    for agent in [&a, &b] {
        wait_until("the agent misses its server", PATIENT, || !is_connected(agent, &server));
    }
    let noticed = unix_seconds() - killed;
    assert!(a.path_kind(&b) == "direct" && b.path_kind(&a) == "direct");
    transfer.wait_for_progress();
    server.start();
    let back = unix_seconds();
    for agent in [&a, &b] {
        wait_until("the agent is registered again", PATIENT, || is_connected(agent, &server));
    }
    eprintln!("server gone: missed after {noticed:.1} s, registered {:.1} s after its return", unix_seconds() - back);
    transfer.finish();
    let (sent, lost) = echoes.sent_and_lost();
    eprintln!("{lost} of {sent} echoes lost, longest gap {:.3} s", echoes.longest_gap(killed));
    assert!(sent > 1000, "{sent} echoes");
    assert_eq!(lost, 0, "echoes lost of {sent}");
}

#[test]
fn known_agents_restart_without_any_server() {
    let internet = Internet::new();
    let (core, public) = (internet.public_host(ACCESS), internet.public_host(ACCESS));
    let home = internet.host_behind(Nat::PortRestricted, ACCESS);
    let mut server = Server::started(&core.host);
    let [mut a, mut b] = [&public, &home].map(|place| Agent::registered(&place.host, &[&server]));
    trust(&a, &b);
    wait_until_both_are(&a, &b, "direct");
    observe(SETTLE);
    server.kill9();
    for reboots in [false, true] {
        for public_first in [true, false] {
            a.kill9();
            b.kill9();
            if reboots {
                home.router().reboot();
            }
            let (first, second) = if public_first { (&mut a, &mut b) } else { (&mut b, &mut a) };
            first.up();
            let echoes = Echoes::start(first.host(), second.ipv6());
            let start = unix_seconds();
            second.up();
            let took = echoes.first_after(start) - start;
            let what = if public_first { "the one behind a NAT" } else { "the public one" };
            let nat = if reboots { ", its NAT rebooted" } else { "" };
            eprintln!("no server{nat}: first echo {took:.2} s after {what} was started again as the last");
            assert!(took < LONGEST_GAP, "{took:.1} s");
        }
    }
}

#[test]
fn a_second_server_takes_over() {
    let internet = Internet::new();
    let cores = [internet.public_host(ACCESS), internet.public_host(ACCESS)];
    let [home, mobile] = two_places(&internet, Nat::SymmetricRandom);
    let mut servers = cores.each_ref().map(|core| Server::started(&core.host));
    let [a, b] = [&mobile, &home].map(|place| Agent::registered(&place.host, &servers.each_ref()));
    trust(&a, &b);
    wait_until_both_are(&a, &b, "relayed");
    let transfer = Transfer::start(&internet, &a, &b);
    let echoes = Echoes::start(a.host(), b.ipv6());
    observe(SETTLE);
    let via = via(&a, &b);
    let used = servers.iter_mut().find(|server| server.id() == via).expect("the relay is one of the two");
    used.kill9();
    let killed = unix_seconds();
    echoes.first_after(killed + LONGEST_GAP);
    let gap = echoes.longest_gap(killed);
    eprintln!("the relay in use killed: nothing came back for {gap:.2} s (aim: below 2)");
    assert!(gap < LONGEST_GAP, "nothing came back for {gap:.1} s");
    assert!(self::via(&a, &b) != via && a.path_kind(&b) == "relayed", "{:?}", a.peer(&b.id()));
    transfer.finish();
}

/// Mappings are new after the reboots: where a and b are now, only c can tell them. Without c nothing passes.
#[test]
#[ignore = "long: scripts/matrix left_out"]
fn a_common_peer_brings_two_together() {
    let internet = Internet::new();
    let (core, public) = (internet.public_host(ACCESS), internet.public_host(ACCESS));
    let places = two_places(&internet, Nat::PortRestricted);
    let mut server = Server::started(&core.host);
    let [mut a, mut b] = places.each_ref().map(|place| Agent::registered(&place.host, &[&server]));
    let mut c = Agent::registered(&public.host, &[&server]);
    for (one, other) in [(&a, &b), (&a, &c), (&b, &c)] {
        trust(one, other);
    }
    wait_until_both_are(&a, &b, "direct");
    observe(SETTLE);
    server.kill9();
    for is_there in [true, false] {
        a.kill9();
        b.kill9();
        if !is_there {
            c.kill9();
        }
        places.iter().for_each(|place| place.router().reboot());
        a.up();
        let echoes = Echoes::start(a.host(), b.ipv6());
        let mut start = unix_seconds();
        b.up();
        let what = if is_there {
            "after the second was started again"
        } else {
            observe(SETTLE);
            assert!(echoes.answers().is_empty(), "an echo came though nobody could tell where b is");
            start = unix_seconds();
            c.up();
            "after the common peer was"
        };
        let took = echoes.first_after(start) - start;
        eprintln!("no server but a common peer: first echo {took:.2} s {what} (aim: 2)");
        // Without the common peer both have tried for a while, and by then try every few seconds only.
        assert!(took < LONGEST_GAP || !is_there, "{took:.1} s");
        wait_until_both_are(&a, &b, "direct");
    }
}

/// A download that is under way.
struct Transfer {
    program: Program,
    /// Kept alive for as long as it serves.
    _server: Program,
    file: PathBuf,
    received: PathBuf,
}

impl Transfer {
    /// `client` fetches from `server`, at a limited rate.
    fn start(internet: &Internet, client: &Agent<'_>, server: &Agent<'_>) -> Self {
        let (file, received) = (internet.directory().join("file"), internet.directory().join("received"));
        write_random(&file, LENGTH);
        let (url, serving) = serve(server, server.ipv6().into(), internet.directory());
        let mut curl = client.host().command("curl");
        curl.args(["-sSf", "--max-time", "100", "--limit-rate", RATE, "-w", "%{num_connects}", "-o"]);
        let program = Program::spawn(curl.arg(&received).arg(url));
        let transfer = Self { program, _server: serving, file, received };
        transfer.wait_for_progress();
        transfer
    }

    fn arrived(&self) -> u64 {
        std::fs::metadata(&self.received).map_or(0, |metadata| metadata.len())
    }

    /// More arrives, or all of it is there.
    fn wait_for_progress(&self) {
        let before = self.arrived();
        wait_until("the transfer goes on", SOON, || before == LENGTH || self.arrived() > before);
    }

    /// All of it arrives, by the one connection it began with.
    fn finish(self) {
        assert_eq!(self.program.finish(PATIENT * 2).ok(), "1", "connections the transfer took");
        assert!(same_content(&self.file, &self.received), "the transfer was damaged");
    }
}

fn two_places(internet: &Internet, nat: Nat) -> [Place; 2] {
    [0, 1].map(|_| internet.host_behind(nat, ACCESS))
}

fn wait_until_both_are(one: &Agent<'_>, other: &Agent<'_>, kind: &str) {
    // A first packet, so that there is a reason to look for paths.
    one.host().wait_until_reaches(other.ipv6().into());
    let what = format!("both call the path {kind}");
    wait_until(&what, PATIENT, || one.path_kind(other) == kind && other.path_kind(one) == kind);
}

fn is_connected(agent: &Agent<'_>, server: &Server<'_>) -> bool {
    let status = agent.json(&["status"]);
    let servers = status["rendezvous"].as_array().unwrap();
    servers.iter().any(|it| it["id"] == server.id() && it["state"] == "connected")
}

/// The relay that data to `other` takes.
fn via(agent: &Agent<'_>, other: &Agent<'_>) -> String {
    let look = || agent.peer(&other.id())?["path"]["via"].as_str().map(str::to_owned);
    wait_for("the path takes a relay", SOON, look)
}
