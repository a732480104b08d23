//! An agent that is started and stopped again and again is the same agent every time, and leaves nothing behind.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Instant;

use crate::harness::{Agent, Host, Lab, Pair, SOON, Snapshot, names_in, setting, wait_until};

/// Starts and stops that every run of the tests makes.
const FEW: u64 = 6;
/// A packet is exchanged each so many of them.
const PACKET_EVERY: u64 = 3;
/// Of a state directory without the logs, which have a limit of their own: of one with a single peer 70 KiB measured,
/// however often it starts.
const MOST_BYTES: u64 = 256 << 10;
/// See `MAX_LOG_BYTES`: what is written, what was put aside, and some lines.
const MOST_LOG_BYTES: u64 = 2 * agentnet::daemon::MAX_LOG_BYTES + (1 << 20);

/// How an agent is stopped, in turn.
#[derive(Debug, Clone, Copy)]
enum Stop {
    Down,
    Terminate,
    Kill,
}

#[test]
fn a_few_starts_and_stops() {
    starts_and_stops(FEW);
}

#[test]
#[ignore = "takes ten minutes: scripts/matrix endure"]
fn five_hundred_starts_and_stops() {
    starts_and_stops(setting("AGENTNET_LAB_CYCLES", 500));
}

fn starts_and_stops(count: u64) {
    let lab = Lab::two_hosts();
    let before = Snapshot::of(lab.a());
    let temporary = lab.directory().join("tmp");
    std::fs::create_dir(&temporary).unwrap();
    let Pair { mut a, b } = Pair::trusted(&lab);
    a.wrapper = vec!["env".into(), format!("TMPDIR={}", temporary.display()).into()];
    let known = Known::of(&a, &b);
    let began = Instant::now();
    let mut first = None;
    a.down();
    for cycle in 0..count {
        a.up();
        assert_eq!(Known::of(&a, &b), known, "start {cycle}");
        assert_eq!(a.trust_state(&b.id()), "trusted", "start {cycle}");
        if cycle % PACKET_EVERY == 0 {
            lab.a().wait_until_reaches(b.ipv6().into());
        }
        // Twice each: what one stop leaves, and what the next start makes of it.
        let stop =
            [Stop::Down, Stop::Terminate, Stop::Kill, Stop::Kill, Stop::Down, Stop::Terminate][cycle as usize % 6];
        match stop {
            Stop::Down => a.down(),
            Stop::Terminate => a.terminate(),
            Stop::Kill => a.kill9(),
        }
        let when = format!("after stop {cycle}, {stop:?}");
        assert_eq!(names_in(&temporary), [""; 0], "{when}");
        if matches!(stop, Stop::Kill) {
            // The kernel takes back what it lent; the rest is the next start's to clear away.
            wait_until("the interface is gone", SOON, || !lab.a().ok("ip link show").contains("agentnet"));
            continue;
        }
        assert_nothing_left(lab.a(), &a, &when);
        before.assert_same(&Snapshot::of(lab.a()), &when);
        let bytes = state_bytes(&a, &when);
        first.get_or_insert(bytes);
        if cycle % 50 == 0 || cycle + 1 == count {
            eprintln!("{cycle}: {bytes} bytes of state, {:.0} s", began.elapsed().as_secs_f64());
        }
    }
    eprintln!("{count} starts and stops in {:.0} s, state {first:?} bytes at first", began.elapsed().as_secs_f64());
    a.up();
    lab.a().wait_until_reaches(b.ipv6().into());
    lab.b().wait_until_reaches(a.ipv6().into());
}

/// What must never change.
#[derive(Debug, PartialEq, Eq)]
struct Known {
    id: String,
    port: u16,
    own: (Ipv4Addr, Ipv6Addr),
    peer: [IpAddr; 2],
    interface: String,
}

impl Known {
    fn of(agent: &Agent<'_>, peer: &Agent<'_>) -> Self {
        Self {
            id: agent.id(),
            port: agent.port(),
            own: (agent.ipv4(), agent.ipv6()),
            peer: agent.addresses_of(peer),
            interface: agent.interface(),
        }
    }
}

/// No process, no socket: what a snapshot of the network does not show.
fn assert_nothing_left(host: &Host, agent: &Agent<'_>, when: &str) {
    host.assert_no_processes(when);
    let sockets = host.shell("cd /proc/net && tail -q -n +2 udp udp6 tcp tcp6 raw raw6").ok();
    // A connection of the agent that is over may be remembered for a minute: state 06, TIME_WAIT.
    let open = sockets.lines().filter(|line| line.split_whitespace().nth(3) != Some("06"));
    assert_eq!(open.collect::<Vec<_>>(), [""; 0], "sockets {when}");
    assert!(!agent.socket().exists(), "{} {when}", agent.socket().display());
}

/// How much there is, and nothing that does not belong there.
fn state_bytes(agent: &Agent<'_>, when: &str) -> u64 {
    agent.assert_only_state_left(&["agentnet.log.old"], when);
    let names = names_in(agent.directory());
    let bytes = |name: &String| agent.directory().join(name).metadata().unwrap().len();
    let (logs, state): (Vec<_>, Vec<_>) = names.iter().partition(|name| name.starts_with("agentnet.log"));
    let (logs, state): (u64, u64) = (logs.into_iter().map(bytes).sum(), state.into_iter().map(bytes).sum());
    assert!(state <= MOST_BYTES && logs <= MOST_LOG_BYTES, "{state} bytes of state, {logs} of logs {when}");
    state
}
