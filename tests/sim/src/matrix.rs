//! Every kind of NAT against every other: how soon a first packet arrives, and how soon the path is direct.
//!
//! ```text
//!   a ── NATs of a kind ── 10 ms ── core ── 10 ms ── NATs of a kind ── b
//!                                    └──── 10 ms ── one server, or two
//! ```
//!
//! A run begins with two agents that trust each other from before, have been silent for so long that there is no
//! session, and are registered. A program of the first sends one packet.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use agentnet::api::PathKind;

use crate::net::{NatKind, SimRng};
use crate::pair::{Pair, ROUND_TRIP, home};
use crate::stats::percentile;

/// A first packet takes at most this long.
const FIRST_BYTE_WITHIN: Duration = Duration::from_millis(50).saturating_add(ROUND_TRIP.saturating_mul(2));
/// Half of the runs are direct after this, where nothing stands in the way.
const HALF_DIRECT_WITHIN: Duration = ROUND_TRIP.saturating_mul(4);
/// All but one in a hundred.
const DIRECT_WITHIN: Duration = Duration::from_secs(1);
/// Nine in ten, where a way has to be searched.
const FOUND_WITHIN: Duration = Duration::from_secs(10);
/// How long is waited for a direct path.
const PATIENCE: Duration = Duration::from_secs(12);
/// How long is waited for the first packet.
const FIRST_BYTE_LIMIT: Duration = Duration::from_secs(5);
/// Probes of both sides in one run.
const MOST_PROBES: u64 = 2_048;

/// One first packet, and what came of it.
#[derive(Clone, Debug)]
pub struct Run {
    /// When the packet came out at the other side.
    pub first_byte: Option<Duration>,
    /// What the sender's primary path was then.
    pub first_path: PathKind,
    /// When both sides had a direct path.
    pub direct: Option<Duration>,
    /// Probes sent by both.
    pub probes: u64,
    /// The verdict at the end, as `why` words it.
    pub reason: String,
}

/// All runs of one pair of kinds.
#[derive(Clone, Debug)]
pub struct Cell {
    /// Of the sender and of the receiver.
    pub kinds: [NatKind; 2],
    /// As many as wanted.
    pub runs: Vec<Run>,
}

/// What is to be expected of a pair of kinds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Aim {
    /// Direct at once.
    Prompt,
    /// Direct after a search, mostly.
    Found,
    /// Relayed, and known to be hopeless.
    Relayed,
}

/// So many runs of every pair of kinds, by as many threads.
pub fn run_all(mut rng: SimRng, runs: usize, threads: usize) -> Vec<Cell> {
    let pairs = NatKind::ALL.into_iter().flat_map(|a| NatKind::ALL.map(|b| [a, b]));
    let jobs: Vec<_> = pairs.map(|kinds| (kinds, rng.fork())).collect();
    let (next, done) = (AtomicUsize::new(0), Mutex::new(BTreeMap::new()));
    let work = || {
        while let Some((kinds, rng)) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
            let cell = run_cell(*kinds, rng.clone(), runs);
            done.lock().expect("no thread panicked").insert(*kinds, cell);
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(work);
        }
    });
    done.into_inner().expect("no thread panicked").into_values().collect()
}

fn run_cell(kinds: [NatKind; 2], mut rng: SimRng, runs: usize) -> Cell {
    // A second server shows at once how a NAT maps; with one, the agents must find out by themselves.
    let runs = (0..runs).map(|number| run(kinds, rng.fork(), 1 + number % 2)).collect();
    Cell { kinds, runs }
}

/// One run, with so many servers.
pub fn run(kinds: [NatKind; 2], rng: SimRng, servers: usize) -> Run {
    let mut pair = Pair::new(rng, kinds.map(home), servers);
    pair.fall_silent();
    let (start, probes) = (pair.world.elapsed(), pair.probes());
    let [a, b] = pair.agents;
    let first_byte = pair.world.carry(a, b, FIRST_BYTE_LIMIT);
    let [first_path, _] = pair.kinds();
    let mut direct = None;
    while pair.world.elapsed() < start + PATIENCE && direct.is_none() {
        direct = pair.is_direct().then(|| pair.world.elapsed() - start);
        pair.world.advance_to_next(start + PATIENCE);
    }
    Run { first_byte, first_path, direct, probes: pair.probes() - probes, reason: pair.why().reason_code }
}

impl Cell {
    /// What is not as it should be.
    pub fn misses(&self) -> Vec<String> {
        let mut misses = Vec::new();
        let mut aim = |is_met: bool, text: String| {
            if !is_met {
                misses.push(format!("{}: {text}", self.name()));
            }
        };
        let first = self.first_byte(100);
        aim(first.is_some_and(|at| at <= FIRST_BYTE_WITHIN), format!("first byte after up to {}", ms(first)));
        let most = self.most_probes();
        aim(most <= MOST_PROBES, format!("{most} probes"));
        let reasons: Vec<_> = self.runs.iter().map(|run| run.reason.as_str()).collect();
        match Aim::of(self.kinds) {
            Aim::Prompt => {
                let [half, all] = [50, 99].map(|share| self.direct(share));
                aim(half.is_some_and(|at| at <= HALF_DIRECT_WITHIN), format!("half are direct after {}", ms(half)));
                aim(all.is_some_and(|at| at < DIRECT_WITHIN), format!("99 of 100 are direct after {}", ms(all)));
            }
            Aim::Found => {
                let found = self.runs.iter().filter(|run| run.direct.is_some_and(|at| at <= FOUND_WITHIN)).count();
                // A tenth may fail, and of few runs one.
                let needed = self.runs.len() - (self.runs.len() / 10).max(1);
                aim(found >= needed, format!("{found} of {} found a way: {reasons:?}", self.runs.len()));
            }
            Aim::Relayed => {
                let is_said = reasons.iter().all(|reason| *reason == "both_nats_hard");
                aim(
                    is_said && self.share_direct() == 0.0,
                    format!("not relayed, or not for the right reason: {reasons:?}"),
                );
            }
        }
        misses
    }

    fn name(&self) -> String {
        format!("{} x {}", self.kinds[0].name(), self.kinds[1].name())
    }

    /// How long so many in a hundred took at most to the first byte.
    pub fn first_byte(&self, percent: usize) -> Option<Duration> {
        percentile(self.runs.iter().map(|run| run.first_byte), percent)
    }

    /// How long so many in a hundred took at most to a direct path.
    pub fn direct(&self, percent: usize) -> Option<Duration> {
        percentile(self.runs.iter().map(|run| run.direct), percent)
    }

    /// 0 to 1.
    pub fn share_direct(&self) -> f64 {
        self.runs.iter().filter(|run| run.direct.is_some()).count() as f64 / self.runs.len() as f64
    }

    /// Probes of both sides, in the run with the most.
    pub fn most_probes(&self) -> u64 {
        self.runs.iter().map(|run| run.probes).max().unwrap_or_default()
    }
}

impl Aim {
    fn of(kinds: [NatKind; 2]) -> Self {
        use NatKind::{Double, PortRestricted, SymmetricRandom, SymmetricSequential};
        let is_hard = |kind: NatKind| matches!(kind, SymmetricRandom | SymmetricSequential);
        let filters_by_port = |kind: NatKind| is_hard(kind) || matches!(kind, PortRestricted | Double);
        let [a, b] = kinds;
        if is_hard(a) && is_hard(b) && kinds.contains(&SymmetricRandom) {
            Self::Relayed
        } else if is_hard(a) && filters_by_port(b) || is_hard(b) && filters_by_port(a) {
            Self::Found
        } else {
            Self::Prompt
        }
    }
}

/// A line for each cell.
pub fn table(cells: &[Cell]) -> String {
    let mut text = format!(
        "{:<21} {:<21} {:>7} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8} {:>7}  {}\n",
        "a", "b", "first", "p50 ms", "p99 ms", "direct", "p50 ms", "p99 ms", "max ms", "probes", "why"
    );
    for cell in cells {
        let relayed = cell.runs.iter().filter(|run| run.first_path == PathKind::Relayed).count();
        let first = if relayed * 2 > cell.runs.len() { "relay" } else { "direct" };
        // One that tells something, if there is any.
        let reason =
            cell.runs.iter().map(|run| run.reason.as_str()).max_by_key(|reason| *reason != "ok").unwrap_or("-");
        let _ = writeln!(
            text,
            "{:<21} {:<21} {first:>7} {:>8} {:>8} {:>7.0}% {:>8} {:>8} {:>8} {:>7}  {reason}",
            cell.kinds[0].name(),
            cell.kinds[1].name(),
            ms(cell.first_byte(50)),
            ms(cell.first_byte(99)),
            cell.share_direct() * 100.0,
            ms(cell.direct(50)),
            ms(cell.direct(99)),
            ms(cell.runs.iter().filter_map(|run| run.direct).max()),
            cell.most_probes(),
        );
    }
    text
}

fn ms(duration: Option<Duration>) -> String {
    duration.map_or_else(|| "-".to_owned(), |duration| format!("{}", duration.as_millis()))
}
