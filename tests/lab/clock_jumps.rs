//! The wall clock of one host is set ten years ahead, and back: what runs goes on, what starts works, and it is told.
//!
//! `tests/sim/tests/clocks.rs` has more of it, in virtual time.

use std::fs;
use std::time::Duration;

use crate::harness::{Agent, Clock, Echoes, Lab, PATIENT, SOON, Server, observe, trust, unix_seconds, wait_until};

const TEN_YEARS: i64 = 10 * 365 * 24 * 3600;
/// Longer than a session goes without new keys (WireGuard paper, section 6.1: Rekey-After-Time, 120 s).
const RENEWED: Duration = Duration::from_secs(150);
/// No answer for so long at most while the clock is set: nothing at all is measured on an idle machine.
const LONGEST_GAP: f64 = 1.0;

fn tells_of_its_clock(agent: &Agent<'_>) -> bool {
    let health = agent.health();
    let told = health.iter().find(|entry| entry["code"] == "clock_skew");
    told.is_some_and(|entry| entry["hint"].as_str().is_some_and(|hint| hint.contains("NTP")))
}

/// The year the agent takes it for, by the first column of its newest line of log.
fn year(agent: &Agent<'_>) -> i64 {
    let log = fs::read_to_string(agent.directory().join("agentnet.log")).unwrap();
    log.lines().rev().find_map(|line| line.get(..4)?.parse().ok()).expect("lines begin with a year")
}

/// How the clock moves: its first place, then the second.
const WAYS: [[i64; 2]; 2] = [[TEN_YEARS, 0], [-TEN_YEARS, 0]];

#[test]
#[cfg_attr(not(target_env = "gnu"), ignore = "the C library is not the one that calls are taken from")]
fn a_clock_that_jumps_ends_no_session_and_keeps_none_from_beginning() {
    jumps(Duration::from_secs(1), &WAYS[..1], 1);
}

#[test]
#[ignore = "takes ten minutes, as sessions are renewed every two: scripts/matrix endure"]
fn sessions_are_renewed_by_a_clock_that_jumps() {
    jumps(RENEWED, &WAYS, 3);
}

fn jumps(pause: Duration, ways: &[[i64; 2]], restarts: u32) {
    let lab = Lab::hosts(4);
    let server = Server::started(lab.c());
    let clock = Clock::new(lab.directory());
    let b = Agent::registered(lab.b(), &[&server]);
    let mut a = clock.agent(lab.a(), &[&server]);
    a.up();
    a.wait_until_registered(1);
    trust(&a, &b);
    lab.a().wait_until_reaches(b.ipv6().into());
    let today = year(&a);
    for (places, round) in ways.iter().zip(0..) {
        for ahead in places {
            let began = unix_seconds();
            let echoes = Echoes::start(lab.a(), b.ipv6());
            echoes.first_after(began);
            clock.set(*ahead);
            observe(pause);
            let gap = echoes.longest_gap(began);
            drop(echoes);
            eprintln!("{ahead} s ahead: the longest gap was {gap:.3} s");
            assert!(gap < LONGEST_GAP, "{gap} s without an answer when the clock was set {ahead} s ahead");
            let is_wrong = *ahead != 0;
            wait_until("it is told, or told no more", SOON, || tells_of_its_clock(&a) == is_wrong);
            // The first that the new life says is that it wants to talk, with the new time of day.
            for restart in 0..restarts {
                let pid = a.pid();
                a.kill9();
                a.up();
                assert_ne!(a.pid(), pid);
                let start = unix_seconds();
                lab.a().wait_until_reaches(b.ipv6().into());
                let back = unix_seconds() - start;
                eprintln!("{ahead} s ahead, restart {restart}: back after {back:.3} s");
                assert!(back < 45.0, "{back} s until the peer was reached again");
                assert_eq!((year(&a) - today).unsigned_abs() / 9, u64::from(is_wrong), "the clock did not jump");
            }
            wait_until("it is told, or told no more", PATIENT, || tells_of_its_clock(&a) == is_wrong);
        }
        // The clock is right again, and so is everything else: the server has it, strangers take its ticket.
        a.wait_until_registered(1);
        let newcomer = Agent::registered(lab.d(), &[&server]);
        let (asking, asked) = if round % 2 == 0 { (&newcomer, &a) } else { (&a, &newcomer) };
        trust(asking, asked);
        lab.d().wait_until_reaches(a.ipv6().into());
        lab.a().wait_until_reaches(newcomer.ipv6().into());
        assert!(!tells_of_its_clock(&b) && !tells_of_its_clock(&newcomer));
    }
}
