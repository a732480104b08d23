//! Who is not trusted gets nothing through and no answer.

use std::net::IpAddr;
use std::time::Duration;

use crate::harness::{Agent, Capture, Lab, PATIENT, Pair, SOON, observe, trust, unix_seconds, wait_until};
use crate::harness::{answers, wait_until_asked, wait_until_trust};

/// How long a stranger keeps trying while nothing may happen.
const TRIES: Duration = Duration::from_secs(6);
/// A revocation has taken effect by then.
const CUT_WITHIN: f64 = 1.0;
/// Forged packets sent.
const FORGED: u64 = 50;

#[test]
fn a_stranger_gets_no_answer_and_no_packet_through() {
    let lab = Lab::hosts(3);
    let pair = Pair::trusted(&lab);
    let stranger = Agent::started(lab.c());
    let watch = Watch::over(&pair.b);
    stranger.json(&["trust", "request", &pair.b.ticket(), "--reason", "let me in"]);
    wait_until_asked(&pair.b, &stranger);
    knock_for_a_while(&stranger, &pair.b);
    let knocks = lab.c().call("knock.py", &format!("{} {}", lab.b().ipv4, pair.b.port())).ok();
    assert_eq!(knocks.trim(), "0", "answers to a stranger without an agent");
    let knocks = lab.c().call("knock.py", &format!("{} {}", lab.b().ipv6, pair.b.port())).ok();
    assert_eq!(knocks.trim(), "0", "answers to a stranger without an agent");
    watch.assert_silent_since(0.0, &stranger, &pair);
    assert_eq!(pair.b.trust_state(&stranger.id()), "pending");
}

#[test]
fn a_rejected_agent_gets_no_answer_and_no_packet_through() {
    let lab = Lab::hosts(3);
    let pair = Pair::trusted(&lab);
    let rejected = Agent::started(lab.c());
    let watch = Watch::over(&pair.b);
    rejected.json(&["trust", "request", &pair.b.ticket()]);
    wait_until_asked(&pair.b, &rejected);
    pair.b.json(&["trust", "reject", &rejected.id()]);
    rejected.json(&["trust", "request", &pair.b.ticket()]);
    knock_for_a_while(&rejected, &pair.b);
    watch.assert_silent_since(0.0, &rejected, &pair);
    assert_eq!(pair.b.trust_state(&rejected.id()), "rejected");
}

#[test]
fn a_revoked_agent_is_cut_off_within_a_second() {
    let lab = Lab::hosts(3);
    let pair = Pair::trusted(&lab);
    let revoked = Agent::started(lab.c());
    trust(&revoked, &pair.b);
    lab.c().wait_until_reaches(pair.b.ipv6().into());
    let watch = Watch::over(&pair.b);
    let echoes = lab.c().spawn(&format!("ping -n -D -i 0.02 {}", pair.b.ipv6()));
    wait_until("echoes before the revocation", SOON, || answers(&echoes).len() > 10);
    pair.b.json(&["trust", "revoke", &revoked.id()]);
    let cut = unix_seconds();
    wait_until_trust(&pair.b, &revoked, "revoked");
    knock_for_a_while(&revoked, &pair.b);
    let late = answers(&echoes).into_iter().fold(0.0, f64::max) - cut;
    eprintln!("last echo {:.0} ms after the revocation", late * 1000.0);
    assert!(late < CUT_WITHIN, "an echo came {late:.3} s after the revocation");
    echoes.interrupt();
    watch.assert_silent_since(cut + CUT_WITHIN, &revoked, &pair);
}

#[test]
fn the_one_that_revoked_sends_nothing_either() {
    let lab = Lab::two_hosts();
    let pair = Pair::trusted(&lab);
    lab.b().wait_until_reaches(pair.a.ipv6().into());
    pair.b.json(&["trust", "revoke", &pair.a.id()]);
    let capture = Capture::start(lab.a(), &pair.a.interface());
    assert_eq!(lab.b().ping(pair.a.ipv6().into(), 20), 0, "echoes to a peer that was revoked");
    capture.stop().assert_none(&format!("src host {}", pair.b.ipv6()));
}

#[test]
fn an_agent_sends_no_forged_source_address() {
    let lab = Lab::hosts(3);
    let pair = Pair::trusted(&lab);
    let other = Agent::started(lab.c());
    trust(&other, &pair.b);
    lab.a().wait_until_reaches(pair.b.ipv6().into());
    let capture = Capture::start(lab.b(), &pair.b.interface());
    let before = pair.a.drops("source");
    let aliases = [pair.b.alias_of(&other), pair.a.alias_of(&pair.b)];
    lab.a().call("forge.py", &format!("{} {} {FORGED}", other.ipv6(), pair.b.ipv6())).ok();
    lab.a().call("forge.py", &format!("{} {} {FORGED}", aliases[0], aliases[1])).ok();
    wait_until("forged packets are counted", SOON, || pair.a.drops("source") >= before + 2 * FORGED);
    // A packet that may pass, sent after the forged ones, shows that those had their turn.
    lab.a().wait_until_reaches(pair.b.ipv6().into());
    capture.wait_for(&format!("src host {}", pair.a.ipv6()));
    capture.stop().assert_none("udp port 4000");
}

/// An honest agent never forges (above), so a dishonest one is made: the state of a, which holds the tunnel key that b
/// trusts, under another identity. What it sends has the other's address and comes out of the session of a.
#[test]
fn a_forged_source_address_is_dropped_and_counted() {
    let lab = Lab::two_hosts();
    let Pair { a, b } = Pair::trusted(&lab);
    lab.a().wait_until_reaches(b.ipv6().into());
    a.down();
    let fresh = Agent::started(lab.a());
    fresh.down();
    let is_identity = |path: &std::path::Path| contains(path, b"agentnet-identity");
    std::fs::copy(file_where(fresh.directory(), is_identity), file_where(a.directory(), is_identity)).unwrap();
    let honest = a.ipv6();
    let mut forger = a;
    forger.up();
    assert_eq!(forger.ipv6(), fresh.ipv6(), "the forger has not taken the other address");
    let before = b.drops("in_source");
    let capture = Capture::start(lab.b(), &b.interface());
    let echoes = lab.a().spawn(&format!("ping -n -i 0.02 -I {} {}", forger.ipv6(), b.ipv6()));
    wait_until("forged packets are counted at the receiver", PATIENT, || b.drops("in_source") >= before + FORGED);
    assert!(answers(&echoes).is_empty(), "a forged packet was answered");
    echoes.interrupt();
    let recording = capture.stop();
    recording.assert_none(&format!("src host {}", forger.ipv6()));
    recording.assert_none(&format!("src host {honest}"));
}

fn contains(path: &std::path::Path, part: &[u8]) -> bool {
    std::fs::read(path).unwrap().windows(part.len()).any(|window| window == part)
}

fn file_where(folder: &std::path::Path, is_it: impl Fn(&std::path::Path) -> bool) -> std::path::PathBuf {
    let paths = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    paths.filter(|path| path.is_file()).find(|path| is_it(path)).unwrap()
}

/// Sends IP packets towards `target` for a while; the daemon below answers each with handshakes and introductions.
fn knock_for_a_while(stranger: &Agent<'_>, target: &Agent<'_>) {
    let echoes = stranger.host().spawn(&format!("ping -n -D -i 0.05 {}", target.ipv6()));
    observe(TRIES);
    echoes.interrupt();
}

/// Captures on the link and on the TUN device of one agent.
struct Watch {
    link: Capture,
    device: Capture,
}

impl Watch {
    fn over(agent: &Agent<'_>) -> Self {
        let host = agent.host();
        Self { link: Capture::start(host, "eth0"), device: Capture::start(host, &agent.interface()) }
    }

    /// Fails the test when b answered `stranger`, or had a packet of its at the TUN device, later than `time`.
    fn assert_silent_since(self, time: f64, stranger: &Agent<'_>, pair: &Pair<'_>) {
        let (a, b) = (pair.a.host(), pair.b.host());
        // What is allowed is seen: the captures work.
        a.wait_until_reaches(pair.b.ipv6().into());
        self.device.wait_for(&format!("src host {}", pair.a.ipv6()));
        let (link, device) = (self.link.stop(), self.device.stop());
        let transport = |host: &crate::harness::Host| [IpAddr::from(host.ipv4), IpAddr::from(host.ipv6)];
        let port = pair.b.port();
        let mut knocks = 0;
        for address in transport(stranger.host()) {
            knocks += link.count(&format!("udp dst port {port} and src host {address}"));
            let answers = format!("udp src port {port} and dst host {address}");
            let late: Vec<f64> = link.times(&answers).into_iter().filter(|at| *at > time).collect();
            assert!(late.is_empty(), "{} answers from host {} to {address}, {late:?}", late.len(), b.name);
        }
        assert!(knocks > 0, "the stranger sent nothing, so silence proves nothing");
        let through = device.times(&format!("src host {}", stranger.ipv6()));
        let late = through.into_iter().filter(|at| *at > time).count();
        assert_eq!(late, 0, "packets of the stranger at the TUN device");
    }
}
