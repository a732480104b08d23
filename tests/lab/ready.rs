//! How long it takes from `agentnet up` to the first packet that a known peer on the same network answers.

use std::time::Duration;

use crate::harness::{Lab, PATIENT, Pair, median, setting, unix_seconds};

/// Bound for the slowest machine that runs this. The aim, 0.3 s, is read from what an optimised build prints:
/// `scripts/matrix ready`.
const MOST: Duration = Duration::from_secs(3);

/// A program is asking the peer already when the agent is started, as after a reboot.
#[test]
fn a_peer_answers_soon_after_up() {
    let lab = Lab::two_hosts();
    let mut pair = Pair::trusted(&lab);
    let addresses = pair.a.addresses_of(&pair.b);
    pair.a.host().wait_until_reaches(addresses[0]);
    // Elsewhere hosts of the lab do not look whether somebody else has their address.
    lab.a().shell("echo 1 >/proc/sys/net/ipv6/conf/default/accept_dad").ok();
    let echoes = [pair.b.ipv6().into(), pair.b.ipv4().into()].map(|own: std::net::IpAddr| {
        let port = lab.b().fresh_port();
        (port, lab.b().serve("udp_echo.py", &format!("{own} {port}")))
    });
    let mut until_answered = Vec::new();
    let mut until_up = Vec::new();
    for number in 0..usize::try_from(setting("AGENTNET_LAB_RUNS", 3)).unwrap() {
        let (address, (port, _)) = (addresses[number % 2], &echoes[number % 2]);
        // Every other time as after a crash.
        match number / 2 % 2 {
            0 => pair.a.down(),
            _ => pair.a.kill9(),
        }
        let asking = lab.a().serve("first_answer.py", &format!("{address} {port}"));
        let start = unix_seconds();
        pair.a.up();
        let is_up = unix_seconds();
        let said = asking.finish(PATIENT).ok();
        let answered: f64 = said.trim_start_matches("ready\n").trim().parse().unwrap();
        until_answered.push(answered - start);
        until_up.push(is_up - start);
        eprintln!(
            "run {number}, {address}: up after {:.0} ms, answered after {:.0} ms",
            (is_up - start) * 1e3,
            (answered - start) * 1e3
        );
    }
    let most = until_answered.iter().copied().fold(0.0, f64::max);
    eprintln!(
        "from `up` to the first answer: median {:.0} ms, most {:.0} ms (aim, optimised: 300); `up` returned after {:.0} ms",
        median(&until_answered) * 1e3,
        most * 1e3,
        median(&until_up) * 1e3
    );
    assert!(median(&until_answered) < MOST.as_secs_f64(), "the first answer took {until_answered:.2?} s");
}
