//! Every kind of NAT against every other: payload gets through, over the relay at first, directly where the NATs let it.
//!
//! ```text
//!   agent a ─ NAT ─ 10 ms ─┐                  ┌─ 10 ms ─ NAT ─ agent b       40 ms from a to b and back
//!                          ├── the internet ──┤
//!                          └────── 10 ms ─────┘
//!                               rendezvous
//! ```
//!
//! A run begins with hosts that never met. Agent a asks, and the clock starts when b's user approves: b then knows where
//! a's servers are, and what a's introduction said.

use std::fmt;
use std::time::Duration;

use serde_json::Value;

use crate::harness::{
    Agent, Internet, Nat, PATIENT, Place, Server, Shape, answers, median, setting, unix_seconds, wait_for,
    wait_until_asked,
};

/// A quarter of a round trip of 40 ms: each way crosses the accesses of both sides.
const ACCESS: Shape = Shape { delay: Duration::from_millis(10), ..Shape::CLEAR };
/// How long a direct path may take where one is expected, on two noisy cores.
const DIRECT_WITHIN: Duration = Duration::from_secs(15);
/// How long one that is not expected is waited for.
const LOOK_FOR: Duration = Duration::from_secs(5);

/// What stands before an agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Single(Nat),
    /// A port-restricted home behind an address-restricted carrier.
    Double,
}

const KINDS: [Kind; 7] = [
    Kind::Single(Nat::None),
    Kind::Single(Nat::FullCone),
    Kind::Single(Nat::AddressRestricted),
    Kind::Single(Nat::PortRestricted),
    Kind::Single(Nat::SymmetricRandom),
    Kind::Single(Nat::SymmetricSequential),
    Kind::Double,
];

/// One run of one cell.
#[derive(Debug)]
struct Run {
    /// From the approval to the first echo, seconds. The command that approves takes some of it.
    first_byte: f64,
    /// What the agent says it took, seconds; `None`: still relayed at the end.
    direct: Option<f64>,
    /// Why it is relayed, in the word of `why`.
    reason: String,
}

#[test]
fn cones_meet_directly() {
    let direct = [
        (Kind::Single(Nat::PortRestricted), Kind::Single(Nat::PortRestricted)),
        (Kind::Single(Nat::SymmetricRandom), Kind::Single(Nat::AddressRestricted)),
        (Kind::Double, Kind::Single(Nat::FullCone)),
    ];
    for (a, b) in direct {
        let run = cell_run(a, b);
        eprintln!("{a} x {b}: {run}");
        assert!(run.direct.is_some(), "{a} x {b}: {run:?}");
    }
}

#[test]
fn a_hard_nat_and_a_strict_one_meet_directly() {
    let strict = Kind::Single(Nat::PortRestricted);
    for hard in [Nat::SymmetricRandom, Nat::SymmetricSequential] {
        let hard = Kind::Single(hard);
        // One search in sixty finds nothing.
        let run = (0..2).map(|_| cell_run(hard, strict)).find(|run| {
            eprintln!("{hard} x {strict}: {run}");
            run.direct.is_some()
        });
        assert!(run.is_some(), "{hard} x {strict}");
    }
}

#[test]
fn a_nat_that_counts_is_met_at_once_where_two_servers_saw_it_count() {
    let (counting, strict) = (Kind::Single(Nat::SymmetricSequential), Kind::Single(Nat::PortRestricted));
    let run = run_with_servers(2, counting, strict);
    eprintln!("{counting} x {strict}: {run}");
    assert!(run.direct.is_some_and(|at| at < 1.2), "{run:?}");
}

#[test]
fn what_cannot_meet_stays_relayed_and_says_so() {
    let symmetric = Kind::Single(Nat::SymmetricRandom);
    let run = cell_run(symmetric, symmetric);
    eprintln!("{symmetric} x {symmetric}: {run}");
    assert!(run.direct.is_none() && run.reason != "ok", "{run:?}");
}

#[test]
#[ignore = "takes twenty minutes: scripts/matrix lab"]
fn the_whole_matrix() {
    println!(
        "{:<22} {:<22} {:>6} {:>12} {:>12} {:>12}",
        "a", "b", "direct", "first p50 ms", "direct p50", "direct max"
    );
    for (number, a) in KINDS.into_iter().enumerate() {
        for b in KINDS.into_iter().skip(number) {
            let runs: Vec<Run> = (0..setting("AGENTNET_LAB_RUNS", 3)).map(|_| cell_run(a, b)).collect();
            let first: Vec<f64> = runs.iter().map(|run| run.first_byte * 1000.0).collect();
            let direct: Vec<f64> = runs.iter().filter_map(|run| run.direct).map(|at| at * 1000.0).collect();
            let most = direct.iter().copied().fold(f64::NAN, f64::max);
            let middle = if direct.is_empty() { f64::NAN } else { median(&direct) };
            println!(
                "{a:<22} {b:<22} {:>6} {:>12.0} {middle:>12.0} {most:>12.0}  {}",
                format!("{}/{}", direct.len(), runs.len()),
                median(&first),
                runs.last().map_or("", |run| run.reason.as_str()),
            );
        }
    }
}

fn cell_run(a: Kind, b: Kind) -> Run {
    run_with_servers(1, a, b)
}

fn run_with_servers(servers: usize, a: Kind, b: Kind) -> Run {
    let internet = Internet::new();
    let cores: Vec<Place> = (0..servers).map(|_| internet.public_host(Some(ACCESS))).collect();
    let places = [a, b].map(|kind| kind.place(&internet));
    let servers: Vec<Server<'_>> = cores.iter().map(|core| Server::started(&core.host)).collect();
    let servers: Vec<&Server<'_>> = servers.iter().collect();
    let [a_agent, b_agent] = [0, 1].map(|number| Agent::registered(&places[number].host, &servers));
    a_agent.json(&["trust", "request", &b_agent.ticket(), "--reason", "matrix"]);
    wait_until_asked(&b_agent, &a_agent);
    let echoes = b_agent.host().spawn(&format!("ping -n -D -i 0.01 {}", a_agent.ipv6()));
    let start = unix_seconds();
    b_agent.json(&["trust", "approve", &a_agent.id()]);
    let first_byte = wait_for("an echo", PATIENT, || answers(&echoes).first().copied()) - start;
    let hopeless = a.is_hard() && b.is_hard() && [a, b].contains(&Kind::Single(Nat::SymmetricRandom));
    let patience = if hopeless { LOOK_FOR } else { DIRECT_WITHIN };
    let direct = time_to_direct(&b_agent, &a_agent, patience);
    let why = b_agent.json(&["why", &a_agent.id()]);
    echoes.interrupt();
    Run { first_byte, direct, reason: why["reason_code"].as_str().unwrap_or_default().to_owned() }
}

fn time_to_direct(one: &Agent<'_>, other: &Agent<'_>, patience: Duration) -> Option<f64> {
    let end = unix_seconds() + patience.as_secs_f64();
    loop {
        let peer = one.peer(&other.id()).unwrap_or(Value::Null);
        if peer["path"]["kind"] == "direct" {
            return peer["time_to_direct_ms"].as_f64().map(|ms| ms / 1000.0);
        }
        if unix_seconds() > end {
            return None;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

impl Kind {
    fn place(self, internet: &Internet) -> Place {
        match self {
            Self::Single(nat) => internet.host_behind(nat, Some(ACCESS)),
            Self::Double => internet.double_nat_host(Nat::PortRestricted, Nat::AddressRestricted, Some(ACCESS)),
        }
    }

    fn is_hard(self) -> bool {
        matches!(self, Self::Single(Nat::SymmetricRandom | Nat::SymmetricSequential))
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Single(Nat::None) => "none",
            Self::Single(Nat::FullCone) => "full cone",
            Self::Single(Nat::AddressRestricted) => "address-restricted",
            Self::Single(Nat::PortRestricted) => "port-restricted",
            Self::Single(Nat::SymmetricRandom) => "symmetric random",
            Self::Single(Nat::SymmetricSequential) => "symmetric sequential",
            Self::Single(Nat::Ipv6Firewall) => "IPv6 firewall",
            Self::Double => "double",
        })
    }
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "first byte {:.0} ms, ", self.first_byte * 1000.0)?;
        match self.direct {
            Some(direct) => write!(f, "direct after {:.0} ms", direct * 1000.0),
            None => write!(f, "relayed: {}", self.reason),
        }
    }
}
