//! The way through a NAT that gives every destination another port (*hard*: address- or endpoint-dependent mapping, RFC
//! 4787, section 4.1), where plain probing fails: what a server saw of such a NAT is not what the peer would have to send
//! to.
//!
//! | this side's NAT | the other's | what is tried |
//! |---|---|---|
//! | hard | easy | opens 256 more sockets and sends from each: 256 mappings that let the other side in |
//! | easy | hard, at random | sends to 1,024 of its ports: with 98.3 % one of them is among the 256 |
//! | easy | hard, counting | first to the ports that come next, then the same |
//! | hard, counting | hard, counting | each sends its i-th probe to where the other's i-th comes from |
//! | hard | hard | nothing, if one of them draws at random |
//!
//! Both sides decide by the same table and begin when they have heard of each other's NATs, so that no message is needed.
//! The probes are those of [`PathSet`](super::PathSet), sealed in the session. What arrives is a candidate like any
//! other; this machine only keeps the socket it arrived at.
//!
//! # Driving it
//!
//! Ask [`HardNat::poll_begin`] when an attempt is due, and [`HardNat::begin`] it. Then tell it what happens, drain
//! [`HardNat::poll_output`], and come back at [`HardNat::poll_timeout`]. Time and randomness are arguments; it does no
//! I/O. An attempt sends at most 1,152 probes from the easy side and 514 from the hard one, at most 200 a second, and is
//! over after nine and a half seconds.

use std::collections::{HashSet, VecDeque};
use std::net::SocketAddrV4;
use std::time::Duration;

use rand_core::CryptoRng;

use super::candidate::SocketId;
use crate::time::Time;
use crate::wire::control::Mapping;

/// Sockets the hard side opens: as many as a home router carries without harm.
pub const HARD_SOCKETS: u16 = 256;
/// An attempt is given up after this. Together with [`SETTLE`] ten seconds.
const ATTEMPT_LIFE: Duration = Duration::from_millis(9500);
/// Random ports the easy side sends to: 1 - (1 - 256 / 64,512)^1,024 = 98.3 %.
const RANDOM_PROBES: usize = 1024;
/// Ports after the last known one that are sent to when the NAT counts: other connections take some of them.
const AHEAD: u16 = 64;
/// Probes of each side when both NATs count.
const PAIRED_PROBES: u16 = 128;
/// So many of them for each guess of how many mappings both sides made since their servers looked.
const PAIRED_PER_GUESS: u16 = 4;
/// Plain probing has this long before: two bursts over a slow relay.
const SETTLE: Duration = Duration::from_millis(500);
/// Probes leave in groups of [`PER_TICK`], this far apart: 200 a second.
const TICK: Duration = Duration::from_millis(20);
/// See [`TICK`].
const PER_TICK: usize = 4;
/// Ports that come next are sent to once more after this: the other side may have begun later.
const AHEAD_AGAIN: Duration = Duration::from_secs(1);
/// The easy side sends to random ports from then on: the hard side needs this long to open its 256.
const RANDOM_FROM: Duration = Duration::from_millis(1400);
/// Where its NAT counts, the hard side opens its sockets only if the ports that come next were none.
const COUNTING_OPENS_AT: Duration = Duration::from_millis(1200);
/// The hard side sends from all sockets once more when the easy side has sent everything: what reaches it then answers
/// for a probe that was lost.
const HARD_AGAIN: Duration = Duration::from_millis(6600);
/// After an attempt that failed comes the next, while there is traffic over a relay: this long after the last began,
/// doubling up to [`RETRY_LONGEST`].
const RETRY_FIRST: Duration = Duration::from_secs(60);
/// See [`RETRY_FIRST`].
const RETRY_LONGEST: Duration = Duration::from_secs(30 * 60);
/// Attempts the peer asks for, by saying where it is, are at least this far apart: it says what it likes.
const ASKED_INTERVAL: Duration = Duration::from_secs(30);
/// Ports that NATs give out, and that are sent to. Those below are hardly ever given out (RFC 4787, section 4.2.2).
const FIRST_PORT: i32 = 1024;
/// How many there are.
const PORTS: i32 = 65_536 - FIRST_PORT;

/// What this side does for a pair of NATs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plan {
    /// It is not known how one of them maps.
    Unknown,
    /// Plain probing connects the pair, if anything does.
    Plain,
    /// One draws ports at random and the other has a port for each: there is nothing to aim at.
    Hopeless,
    /// This side's NAT is the hard one: many sockets. Its step, 0 for random.
    Hard {
        /// See [`Mapping`].
        step: i16,
    },
    /// The other side's is: many destinations.
    Easy {
        /// The step of the other side's NAT, 0 for random.
        step: i16,
    },
    /// Both are, and both count.
    Paired {
        /// The step of the other side's NAT.
        step: i16,
    },
}

/// One attempt.
#[derive(Debug, Clone, Copy)]
pub struct Attempt {
    /// What this side does.
    pub plan: Plan,
    /// Where a server saw the peer last; see [`last_seen`].
    pub target: SocketAddrV4,
    /// Of two sides with the same plan, this one goes first.
    pub is_first: bool,
    /// Sockets that may be opened, at most [`HARD_SOCKETS`].
    pub sockets: u16,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Open so many extra sockets, and say which with [`HardNat::sockets_opened`].
    OpenSockets(u16),
    /// Close these.
    CloseSockets(Vec<SocketId>),
    /// Send a probe.
    Probe {
        /// From this socket.
        socket: SocketId,
        /// To there.
        destination: SocketAddrV4,
    },
}

/// How it went so far, for people.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HardNatReport {
    /// Attempts begun.
    pub attempts: u32,
    /// Probes sent in all of them.
    pub probes: u32,
    /// One is under way.
    pub is_running: bool,
    /// The last one that ended found a way.
    pub found: bool,
}

/// The attempts to reach one peer. The head of the module says how to drive it.
#[derive(Debug, Default)]
pub struct HardNat {
    running: Option<Running>,
    /// Sockets that paths use, or may come to use: the last winner and the one before.
    kept: Vec<SocketId>,
    /// Since when an attempt would help.
    needed_since: Option<Time>,
    last_began: Option<Time>,
    /// The next attempt does not begin before.
    not_before: Option<Time>,
    /// Attempts in a row that found nothing.
    failures: u32,
    report: HardNatReport,
    outputs: VecDeque<Output>,
}

#[derive(Debug)]
struct Running {
    began: Time,
    attempt: Attempt,
    /// What is left to send, in this order, none before its time.
    queue: VecDeque<Planned>,
    /// The last group left then.
    last_tick: Option<Time>,
    /// When sockets are to be asked for.
    open_at: Option<Time>,
    sockets: Vec<SocketId>,
}

#[derive(Debug, Clone, Copy)]
struct Planned {
    at: Time,
    socket: SocketId,
    port: u16,
}

impl Plan {
    /// By the same rule on both sides.
    #[must_use]
    pub fn new(own: Mapping, theirs: Mapping) -> Self {
        use Mapping::{EndpointDependent, EndpointIndependent, Unknown};
        match (own, theirs) {
            (Unknown, _) | (_, Unknown) => Self::Unknown,
            (EndpointIndependent, EndpointIndependent) => Self::Plain,
            (EndpointDependent { step }, EndpointIndependent) => Self::Hard { step },
            (EndpointIndependent, EndpointDependent { step }) => Self::Easy { step },
            (EndpointDependent { step: 0 }, _) | (_, EndpointDependent { step: 0 }) => Self::Hopeless,
            (EndpointDependent { .. }, EndpointDependent { step }) => Self::Paired { step },
        }
    }

    /// Whether there is something to try.
    #[must_use]
    pub fn is_something(self) -> bool {
        matches!(self, Self::Hard { .. } | Self::Easy { .. } | Self::Paired { .. })
    }

    /// The step of the other side's NAT.
    fn their_step(self) -> i16 {
        match self {
            Self::Easy { step } | Self::Paired { step } => step,
            _ => 0,
        }
    }
}

/// The address to aim at, of those at which servers saw the peer: where its NAT counts, the one given out last.
#[must_use]
pub fn last_seen(plan: Plan, seen: &[SocketAddrV4]) -> Option<SocketAddrV4> {
    let first = *seen.first()?;
    let step = plan.their_step();
    let ports = seen.iter().filter(|address| address.ip() == first.ip()).map(SocketAddrV4::port);
    // Ports go round: of two, the later is less than half a turn ahead in the direction of the step.
    let is_later = |port: u16, than: u16| {
        let ahead = i16::from_ne_bytes(port.wrapping_sub(than).to_ne_bytes());
        ahead.signum() == step.signum() && step != 0
    };
    let last = ports.fold(first.port(), |last, port| if is_later(port, last) { port } else { last });
    Some(SocketAddrV4::new(*first.ip(), last))
}

impl HardNat {
    /// Nothing tried.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// How it went so far.
    #[must_use]
    pub fn report(&self) -> HardNatReport {
        HardNatReport { is_running: self.running.is_some(), ..self.report }
    }

    /// Whether an attempt is under way.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// Every extra socket it has.
    pub fn sockets(&self) -> impl Iterator<Item = SocketId> {
        let opened = self.running.iter().flat_map(|running| &running.sockets);
        self.kept.iter().chain(opened).copied()
    }

    /// Whether an attempt would help, as [`poll_begin`](Self::poll_begin) was told last.
    #[must_use]
    pub fn is_needed(&self) -> bool {
        self.needed_since.is_some()
    }

    /// When the next attempt is due, given whether it would help now.
    pub fn poll_begin(&mut self, now: Time, is_needed: bool) -> Option<Time> {
        if !is_needed || self.running.is_some() {
            self.needed_since = None;
            return None;
        }
        let settled = *self.needed_since.get_or_insert(now) + SETTLE;
        Some(self.not_before.map_or(settled, |at| at.max(settled)))
    }

    /// The peer says where it is: somewhere else than before (`moved`), or just again. Then it may be about to begin an
    /// attempt, and this side had better begin one too.
    pub fn may_have_changed(&mut self, now: Time, moved: bool) {
        if moved {
            self.end(now, false);
            self.failures = 0;
        }
        let earliest = self.last_began.map_or(now, |at| now.max(at + ASKED_INTERVAL)) + SETTLE;
        let lately = earliest > now + SETTLE;
        if self.running.is_none() && (moved || !lately) {
            self.not_before = Some(self.not_before.map_or(earliest, |at| at.min(earliest)));
        }
    }

    /// This host is somewhere else: what failed before may work now. An attempt under way is given up.
    pub fn network_changed(&mut self, now: Time) {
        self.end(now, false);
        (self.failures, self.not_before, self.needed_since) = (0, None, None);
    }

    /// Begins an attempt. Sockets of earlier ones are closed, but for the one in use.
    pub fn begin(&mut self, now: Time, attempt: Attempt, in_use: SocketId, rng: &mut dyn CryptoRng) {
        self.end(now, false);
        self.keep_only(in_use);
        self.last_began = Some(now);
        self.report.attempts = self.report.attempts.saturating_add(1);
        let open_at = match attempt.plan {
            Plan::Hard { step: 0 } => Some(now),
            Plan::Hard { .. } => Some(now + COUNTING_OPENS_AT),
            _ => None,
        };
        let ports = match attempt.plan {
            Plan::Easy { step } => easy_ports(attempt.target.port(), step, rng),
            Plan::Paired { step } => paired_ports(attempt.target.port(), step, attempt.is_first),
            // The main socket's mapping is as good as any other.
            Plan::Hard { .. } => [(Duration::ZERO, attempt.target.port())].into(),
            Plan::Unknown | Plan::Plain | Plan::Hopeless => return,
        };
        let planned = |(after, port)| Planned { at: now + after, socket: SocketId::MAIN, port };
        let queue = ports.into_iter().map(planned).collect();
        self.running = Some(Running { began: now, attempt, queue, last_tick: None, open_at, sockets: Vec::new() });
    }

    /// The sockets asked for, as many as there could be.
    pub fn sockets_opened(&mut self, now: Time, sockets: Vec<SocketId>) {
        let Some(running) = self.running.as_mut().filter(|running| running.sockets.is_empty()) else {
            return self.close(sockets);
        };
        let port = running.attempt.target.port();
        let again = running.began + HARD_AGAIN;
        for at in [now, again] {
            let all = sockets.iter().copied().chain((at == again).then_some(SocketId::MAIN));
            running.queue.extend(all.map(|socket| Planned { at, socket, port }));
        }
        running.sockets = sockets;
    }

    /// An authenticated packet of the peer came to an extra socket. The first is the winner: the others are closed. Returns
    /// whether it is one to keep to.
    pub fn heard(&mut self, now: Time, socket: SocketId) -> bool {
        let Some(running) = &mut self.running else { return self.kept.contains(&socket) };
        let Some(position) = running.sockets.iter().position(|open| *open == socket) else {
            return self.kept.contains(&socket);
        };
        running.sockets.swap_remove(position);
        self.kept.push(socket);
        self.end(now, true);
        true
    }

    /// There is a direct path. What is open beside the socket it uses is closed.
    pub fn connected(&mut self, now: Time, socket: SocketId) {
        self.end(now, true);
        self.keep_only(socket);
    }

    /// Everything is closed: there is no session any more.
    pub fn stop(&mut self, now: Time) {
        self.end(now, false);
        self.keep_only(SocketId::MAIN);
    }

    /// Does what is due; sends at most `allowed` probes.
    pub fn handle_timeout(&mut self, now: Time, allowed: usize) {
        let Some(running) = &mut self.running else { return };
        if now.since(running.began) >= ATTEMPT_LIFE {
            return self.end(now, false);
        }
        if running.open_at.is_some_and(|at| at <= now) {
            running.open_at = None;
            self.outputs.push_back(Output::OpenSockets(running.attempt.sockets.min(HARD_SOCKETS)));
        }
        if running.next_tick().is_none_or(|at| at > now) {
            return;
        }
        running.last_tick = Some(now);
        for _ in 0..allowed.min(PER_TICK) {
            let Some(&Planned { socket, port, .. }) = running.queue.front().filter(|planned| planned.at <= now) else {
                break;
            };
            running.queue.pop_front();
            self.report.probes = self.report.probes.saturating_add(1);
            let destination = SocketAddrV4::new(*running.attempt.target.ip(), port);
            self.outputs.push_back(Output::Probe { socket, destination });
        }
    }

    /// When [`handle_timeout`](Self::handle_timeout) is due; `None` while no attempt is under way.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Time> {
        let running = self.running.as_ref()?;
        [Some(running.began + ATTEMPT_LIFE), running.open_at, running.next_tick()].into_iter().flatten().min()
    }

    /// Probes that the next [`handle_timeout`](Self::handle_timeout) would send.
    #[must_use]
    pub fn due(&self, now: Time) -> usize {
        let Some(running) = self.running.as_ref().filter(|running| running.next_tick().is_some_and(|at| at <= now))
        else {
            return 0;
        };
        running.queue.iter().take(PER_TICK).take_while(|planned| planned.at <= now).count()
    }

    /// The next thing to be done.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    fn end(&mut self, now: Time, found: bool) {
        let Some(running) = self.running.take() else { return };
        self.close(running.sockets);
        self.report.found = found;
        self.failures = if found { 0 } else { self.failures.saturating_add(1) };
        let doublings = self.failures.saturating_sub(1).min(16);
        self.not_before = Some(running.began + RETRY_FIRST.saturating_mul(1 << doublings).min(RETRY_LONGEST));
        tracing::debug!(found, after = ?now.since(running.began), "attempt through a hard NAT ended");
    }

    fn keep_only(&mut self, socket: SocketId) {
        let (kept, unused) = self.kept.iter().partition(|open| **open == socket);
        self.kept = kept;
        self.close(unused);
    }

    fn close(&mut self, sockets: Vec<SocketId>) {
        if !sockets.is_empty() {
            self.outputs.push_back(Output::CloseSockets(sockets));
        }
    }
}

impl Running {
    fn next_tick(&self) -> Option<Time> {
        let first = self.queue.front()?.at;
        Some(self.last_tick.map_or(first, |last| first.max(last + TICK)))
    }
}

/// The ports the easy side sends to, and when after the beginning: those that come next, twice, then random ones.
fn easy_ports(last: u16, step: i16, rng: &mut dyn CryptoRng) -> Vec<(Duration, u16)> {
    let mut ports = Vec::with_capacity(RANDOM_PROBES + 2 * usize::from(AHEAD));
    // The last one known is a candidate, and is probed as such.
    let mut seen = HashSet::from([last]);
    if step != 0 {
        for after in [Duration::ZERO, AHEAD_AGAIN] {
            ports.extend((1..=AHEAD).map(|count| (after, port_ahead(last, step, count))));
        }
        seen.extend(ports.iter().map(|(_, port)| *port));
    }
    let wanted = seen.len() + RANDOM_PROBES;
    // Hardly a draw in fifty is not new. The bound is for a source of randomness that is none.
    for _ in 0..RANDOM_PROBES * 8 {
        if seen.len() == wanted {
            break;
        }
        let port = port_ahead(1024, 1, (rng.next_u64() % PORTS as u64) as u16);
        if seen.insert(port) {
            ports.push((RANDOM_FROM, port));
        }
    }
    ports
}

/// The ports to send to when both NATs count. The i-th probe of each side makes its i-th mapping, so it goes to where the
/// other's i-th mapping should be. Both made some since their servers looked, `a` and `b`: probes meet where the ports
/// both sides add to the other's count make `a + b` together. That sum is guessed, upwards from nothing, by both at once.
fn paired_ports(last: u16, step: i16, is_first: bool) -> Vec<(Duration, u16)> {
    let port = |count: u16| {
        let guess = count / PAIRED_PER_GUESS;
        let share = if is_first { guess.div_ceil(2) } else { guess / 2 };
        (Duration::ZERO, port_ahead(last, step, count + 1 + share))
    };
    (0..PAIRED_PROBES).map(port).collect()
}

/// The port `count` steps after `last`, going round among those that NATs give out.
fn port_ahead(last: u16, step: i16, count: u16) -> u16 {
    let ahead = i32::from(last) - FIRST_PORT + i32::from(step) * i32::from(count);
    u16::try_from(ahead.rem_euclid(PORTS) + FIRST_PORT).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests;
