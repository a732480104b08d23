//! The machine that chooses among the paths to one peer.

use std::collections::VecDeque;
use std::time::Duration;

use rand_core::CryptoRng;

use self::follow::Disagreement;
use self::probed::Path;
use super::candidate::{Candidate, CandidateKind, Route};
use super::loss::PathLoss;
use super::score::Quality;
use super::take_sparingly;
use crate::time::Time;

/// Paths kept for one peer: 16 candidates of its own, and as many addresses its packets came from.
pub(super) const MAX_PATHS: usize = 32;
/// Without traffic for this long there are no probes. Longer than the pauses of an interactive session.
const WANTED_FOR: Duration = Duration::from_secs(30);
/// How long what was sent may go without anything coming back before the primary path is doubted: this, or three
/// round trips. One-way traffic draws a WireGuard keepalive only after 10 s, so doubt is settled by a probe.
const DOUBT_AFTER: Duration = Duration::from_millis(300);
/// How long a doubted path has to answer before it is given up: this, or three round trips of the slowest path.
const PROOF_WITHIN: Duration = Duration::from_millis(200);
/// How long it has when another path has answered meanwhile: this, or three round trips of its own.
const PROOF_AGAINST_RIVAL: Duration = Duration::from_millis(100);
/// With a doubt, paths that do not work are tried again too, this often at most.
const RESCUE_INTERVAL: Duration = Duration::from_secs(5);
/// A doubted path is probed this often in that time: one lost probe is no proof.
const DOUBT_INTERVAL: Duration = Duration::from_millis(100);

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// Send a probe with this token on this route.
    Probe {
        /// Where.
        route: Route,
        /// To be repeated in the answer.
        token: u64,
        /// The path is known to work, or carries the data: its answer decides something.
        is_vital: bool,
    },
    /// Data goes this way from now on.
    Primary(Route),
    /// Nothing passes for now; the next packet is to take this way, until [`Output::Primary`] comes again.
    Rest(Route),
    /// The primary path does not prove itself: this agent's own connection may have changed unseen.
    Doubted,
    /// No path works; data keeps going where it went until one does.
    Lost,
}

/// What is known of one path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathState {
    /// Never answered.
    Unproven,
    /// Answered lately.
    Working,
    /// Answered once, and does no more.
    Failed,
}

/// One path, for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PathReport {
    /// The way and how it was learned.
    pub candidate: Candidate,
    /// What is known of it.
    pub state: PathState,
    /// Smoothed round trip, where measured.
    pub rtt: Option<Duration>,
    /// Probes sent since it was learned.
    pub probes: u32,
}

/// The paths to one peer. See the [module](super) for how to drive it.
#[derive(Debug)]
pub struct PathSet {
    paths: Vec<Path>,
    primary: Option<Route>,
    /// When there was traffic last.
    wanted: Option<Time>,
    /// Since when what was sent has drawn nothing.
    unanswered: Option<Time>,
    /// When the primary path was asked to prove itself.
    doubted: Option<Time>,
    /// Where the peer's data came from, while the primary path is doubted for it.
    follows: Option<Route>,
    /// The peer's data comes by another route than the primary one.
    disagreement: Option<Disagreement>,
    /// This side gives in last.
    leads: bool,
    /// The first sign that made it doubted.
    silent_since: Time,
    /// The doubt was said.
    doubt_said: bool,
    /// Packets take a relay until the primary path has proved itself again.
    resting: bool,
    /// No path answered; said once, until one does.
    lost: bool,
    /// The last time the primary path died.
    loss: Option<PathLoss>,
    /// When a doubt last had every path probed.
    rescued: Option<Time>,
    outputs: VecDeque<Output>,
}

impl PathSet {
    /// No path known.
    #[must_use]
    pub fn new() -> Self {
        Self {
            paths: Vec::new(),
            primary: None,
            wanted: None,
            unanswered: None,
            doubted: None,
            follows: None,
            disagreement: None,
            leads: false,
            silent_since: Time::ZERO,
            rescued: None,
            loss: None,
            doubt_said: false,
            resting: false,
            lost: false,
            outputs: VecDeque::new(),
        }
    }

    /// The path data takes.
    #[must_use]
    pub fn primary(&self) -> Option<Route> {
        self.primary
    }

    /// Smoothed round trip of the primary path, once measured.
    #[must_use]
    pub fn primary_rtt(&self) -> Option<Duration> {
        self.paths.iter().find(|path| Some(path.candidate.route) == self.primary)?.rtt
    }

    /// The last time the primary path died.
    #[must_use]
    pub fn last_loss(&self) -> Option<PathLoss> {
        self.loss
    }

    /// Every path, for people.
    pub fn report(&self) -> impl Iterator<Item = PathReport> {
        self.paths.iter().map(|path| PathReport {
            candidate: path.candidate,
            state: path.state,
            rtt: path.rtt,
            probes: path.probes,
        })
    }

    /// Ways to try. New ones are probed at once while the peer is wanted; known ones stay as they are.
    pub fn add_candidates(&mut self, now: Time, candidates: impl IntoIterator<Item = Candidate>) {
        for candidate in candidates {
            if self.paths.iter().any(|path| path.candidate.route == candidate.route) || !self.make_room(candidate.kind)
            {
                continue;
            }
            let next = self.is_wanted(now).then_some(now);
            // Most peers have one or two, and there is one of these for every peer.
            self.paths.reserve_exact(1);
            self.paths.push(Path::new(candidate, next));
        }
    }

    /// The peer says where it may be reached: this replaces what it said before, as far as that does not work, and all
    /// of it is worth a try now.
    pub fn candidates_received(&mut self, now: Time, candidates: impl IntoIterator<Item = Candidate>) {
        let candidates: Vec<Candidate> = candidates.into_iter().collect();
        let primary = self.primary;
        self.paths.retain(|path| {
            let route = path.candidate.route;
            let said = !matches!(path.candidate.kind, CandidateKind::PeerReflexive | CandidateKind::Relayed);
            let kept = path.state == PathState::Working || Some(route) == primary;
            !said || kept || candidates.iter().any(|candidate| candidate.route == route)
        });
        self.wanted = Some(now);
        for path in self.paths.iter_mut().filter(|path| path.state != PathState::Working) {
            if candidates.iter().any(|candidate| candidate.route == path.candidate.route) {
                path.attempts = 0;
                path.next = Some(now);
            }
        }
        self.add_candidates(now, candidates);
    }

    /// A route can be taken from now on, or again.
    pub fn route_usable(&mut self, now: Time, candidate: Candidate) {
        match self.paths.iter_mut().find(|path| path.candidate.route == candidate.route) {
            Some(path) => path.attempts = 0,
            None => self.add_candidates(now, [candidate]),
        }
        if self.is_wanted(now) {
            let known = self.paths.iter_mut().filter(|path| path.candidate.route == candidate.route);
            known.for_each(|path| path.next = Some(now));
        }
    }

    /// What a route needs beside the peer is gone: a relay. Returns whether it is known here.
    pub fn route_failed(&mut self, now: Time, route: Route) -> bool {
        let Some(path) = self.paths.iter_mut().find(|path| path.candidate.route == route) else { return false };
        path.state = PathState::Failed;
        if self.primary == Some(route) && self.is_wanted(now) && self.doubted.is_none() {
            self.begin_doubt(now);
        }
        true
    }

    /// An authenticated packet came by this route: it works at least in this direction.
    pub fn packet_received(&mut self, now: Time, route: Route) {
        if self.primary == Some(route) {
            self.unanswered = None;
        }
        self.add_candidates(now, [Candidate { kind: CandidateKind::PeerReflexive, route }]);
        if self.primary.is_none() {
            // Better than nothing, until a probe has proved something.
            self.choose(now, route);
        }
    }

    /// The peer answered a handshake, or began one, by this route: it works. It carries data unless a better one does.
    pub fn handshake_heard(&mut self, now: Time, route: Route) {
        self.packet_received(now, route);
        if self.primary.is_none_or(|primary| self.quality(now, primary).is_none()) {
            self.choose(now, route);
        }
    }

    /// This host's own addresses or routes changed: no path is proved any more, and the first that answers carries data.
    pub fn host_moved(&mut self, now: Time) {
        for path in &mut self.paths {
            path.answered = None;
        }
        if self.is_wanted(now) && self.primary.is_some() {
            self.begin_doubt(now);
        }
        self.network_changed(now);
    }

    /// Traffic inside the session since the last call. Call it at every tick while there is any.
    pub fn traffic(&mut self, now: Time, sent: bool, received: bool) {
        let was_wanted = self.is_wanted(now);
        if sent || received {
            self.wanted = Some(now);
        }
        if received {
            self.unanswered = None;
        } else if sent {
            self.unanswered.get_or_insert(now);
        }
        if !was_wanted && self.is_wanted(now) {
            self.probe_everything(now);
        }
    }

    /// Something changed on this host's network, or a session was just established: everything is worth a try now.
    pub fn network_changed(&mut self, now: Time) {
        self.wanted = Some(now);
        self.probe_everything(now);
    }

    /// The answer to a probe came by this route, which is within one site or not. Returns the round trip, if the probe
    /// was one of these and not answered before.
    pub fn probe_answered(&mut self, now: Time, token: u64, route: Route, is_local: bool) -> Option<Duration> {
        self.unanswered = None;
        let mut probed = self.paths.iter_mut().filter_map(|path| Some((path.take_outstanding(token)?, path)));
        let (sent, path) = probed.next()?;
        let round_trip = now.since(sent);
        path.prove(now, round_trip);
        path.is_local = is_local;
        self.lost = false;
        let proved = path.candidate.route;
        if proved != route {
            // The way back is another one. It is a candidate of its own, and is probed as one.
            self.add_candidates(now, [Candidate { kind: CandidateKind::PeerReflexive, route }]);
        }
        if self.primary == Some(proved) {
            (self.doubted, self.follows) = (None, None);
            if std::mem::take(&mut self.resting) {
                self.outputs.push_back(Output::Primary(proved));
            }
        }
        if self.follows == Some(proved) && self.doubted.is_some() {
            self.follow(now, proved);
        } else {
            self.consider(now);
        }
        Some(round_trip)
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Time, rng: &mut dyn CryptoRng) {
        let (wanted, primary) = (self.is_wanted(now), self.primary);
        if wanted {
            self.doubt(now);
        } else {
            // Nobody waits for an answer any more, and after a sleep nobody could have come.
            (self.unanswered, self.doubted, self.follows) = (None, None, None);
            self.rest();
        }
        for path in &mut self.paths {
            path.forget_probes(now);
            if path.next.is_some_and(|at| at <= now) {
                if !wanted {
                    path.next = None;
                    continue;
                }
                let interval = match self.doubted {
                    Some(_) if path.state == PathState::Working => DOUBT_INTERVAL,
                    _ => path.interval(now, primary == Some(path.candidate.route)),
                };
                let route = path.candidate.route;
                let is_vital = path.state == PathState::Working || primary == Some(route);
                let token = path.probe(now, rng.next_u64(), interval);
                self.outputs.push_back(Output::Probe { route, token, is_vital });
            }
        }
    }

    /// When [`handle_timeout`](Self::handle_timeout) is due; `None` while the peer is not wanted.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Time> {
        let probes = self.paths.iter().filter_map(|path| path.next);
        let doubt = self.unanswered.filter(|_| self.primary.is_some() && self.doubted.is_none() && !self.lost);
        let verdict = self.doubted.map(|at| at + self.time_to_prove(at));
        let rest = self.wanted.filter(|_| self.place_to_rest().is_some()).map(|at| at + WANTED_FOR);
        probes.chain(doubt.map(|at| at + self.doubt_after())).chain(verdict).chain(rest).min()
    }

    /// The next thing to be done.
    pub fn poll_output(&mut self) -> Option<Output> {
        take_sparingly(&mut self.outputs, 0)
    }

    /// Whether there was traffic, or a reason to expect some, lately.
    #[must_use]
    pub fn is_wanted(&self, now: Time) -> bool {
        self.wanted.is_some_and(|at| now.since(at) < WANTED_FOR)
    }

    /// The relay to rest on: the one in use stays, a path within a site needs none.
    fn place_to_rest(&self) -> Option<Route> {
        let primary = self.paths.iter().find(|path| Some(path.candidate.route) == self.primary)?;
        if self.resting || primary.is_local || primary.candidate.route.is_relayed() {
            return None;
        }
        let relays = self.paths.iter().filter(|path| path.candidate.route.is_relayed());
        relays
            .filter(|path| path.state == PathState::Working)
            .min_by_key(|path| path.rtt)
            .map(|path| path.candidate.route)
    }

    /// NATs forget a mapping nothing passes through, some within half a minute. A first packet after a pause must not
    /// depend on one.
    fn rest(&mut self) {
        if let Some(route) = self.place_to_rest() {
            self.resting = true;
            self.outputs.push_back(Output::Rest(route));
        }
    }

    fn probe_everything(&mut self, now: Time) {
        for path in &mut self.paths {
            path.attempts = 0;
            path.next = Some(now);
        }
    }

    /// Settles whether the primary path still works: a probe on every path that did, then the best that answered.
    fn doubt(&mut self, now: Time) {
        if let Some(since) = self.doubted {
            if now.since(since) >= self.time_to_prove(since) {
                self.give_up_primary(now, since);
            } else if now.since(since) >= DOUBT_INTERVAL && !std::mem::replace(&mut self.doubt_said, true) {
                self.outputs.push_back(Output::Doubted);
            }
        } else if let Some(since) = self.unanswered
            && self.primary.is_some()
            && !self.lost
            && now.since(since) >= self.doubt_after()
        {
            self.begin_doubt(now);
        }
    }

    fn begin_doubt(&mut self, now: Time) {
        self.doubted = Some(now);
        self.silent_since = self.unanswered.unwrap_or(now);
        self.doubt_said = false;
        // Mostly paths that worked: traffic in one direction draws nothing either, and must not cost a probe of every
        // candidate twice a second.
        let rescue = self.rescued.is_none_or(|at| now.since(at) >= RESCUE_INTERVAL);
        if rescue {
            self.rescued = Some(now);
        }
        for path in self.paths.iter_mut().filter(|path| rescue || path.state == PathState::Working) {
            path.next = Some(now);
        }
    }

    fn give_up_primary(&mut self, now: Time, asked: Time) {
        (self.doubted, self.follows) = (None, None);
        self.note_loss();
        self.unanswered = None;
        for path in &mut self.paths {
            let answered = path.answered.is_some_and(|at| at >= asked);
            if !answered && path.state == PathState::Working {
                path.state = PathState::Failed;
                path.attempts = 0;
            }
        }
        match self.best(now) {
            Some(route) => self.choose(now, route),
            None => {
                self.lost = true;
                self.outputs.push_back(Output::Lost);
                self.probe_everything(now);
            }
        }
    }

    fn note_loss(&mut self) {
        self.loss = self.primary.map(|route| PathLoss::new(route, self.silent_since)).or(self.loss);
    }

    /// A path proved itself: is it to be the primary one?
    fn consider(&mut self, now: Time) {
        let current = self.primary.and_then(|route| self.quality(now, route));
        let Some(best) = self.best(now).and_then(|route| self.quality(now, route)) else { return };
        if current.is_none_or(|current| best.replaces(current)) {
            self.choose(now, best.route);
        }
    }

    fn choose(&mut self, now: Time, route: Route) {
        if let Some(loss) = &mut self.loss {
            loss.end(now);
        }
        if self.primary != Some(route) || self.resting {
            self.disagreement = None;
            self.primary = Some(route);
            self.resting = false;
            self.outputs.push_back(Output::Primary(route));
        }
    }

    fn best(&self, now: Time) -> Option<Route> {
        let working = self.paths.iter().filter_map(|path| self.quality(now, path.candidate.route));
        working.min_by(|a, b| a.cmp(*b)).map(|quality| quality.route)
    }

    /// The quality of a path that works.
    fn quality(&self, now: Time, route: Route) -> Option<Quality> {
        let path = self.paths.iter().find(|path| path.candidate.route == route)?;
        let works = path.is_fresh(now) && path.state == PathState::Working;
        path.rtt.filter(|_| works).map(|rtt| Quality { route, rtt })
    }

    fn doubt_after(&self) -> Duration {
        DOUBT_AFTER.max(self.primary_rtt().unwrap_or_default() * 3)
    }

    /// How long after it was asked the primary path is given up.
    fn time_to_prove(&self, asked: Time) -> Duration {
        if self.paths.iter().any(|path| path.answered.is_some_and(|at| at >= asked)) {
            return PROOF_AGAINST_RIVAL.max(self.primary_rtt().unwrap_or_default() * 3);
        }
        // Whichever path is to take over must have had the time to answer.
        let working = self.paths.iter().filter(|path| path.state == PathState::Working);
        PROOF_WITHIN.max(working.filter_map(|path| path.rtt).max().unwrap_or_default() * 3)
    }

    /// A place for one more path: one that never answered, of the least promising kind, gives way.
    fn make_room(&mut self, kind: CandidateKind) -> bool {
        if self.paths.len() < MAX_PATHS {
            return true;
        }
        // The last resort stays.
        let kept = |route: Route| route.is_relayed() || Some(route) == self.primary;
        let replaceable = |path: &Path| path.state != PathState::Working && !kept(path.candidate.route);
        let worst = self.paths.iter().enumerate().filter(|(_, path)| replaceable(path));
        let Some((position, worst)) = worst.max_by_key(|(_, path)| path.candidate.kind) else { return false };
        if worst.candidate.kind < kind {
            return false;
        }
        self.paths.remove(position);
        true
    }
}

impl Default for PathSet {
    fn default() -> Self {
        Self::new()
    }
}

mod direct;
mod follow;
mod probed;
#[cfg(test)]
mod tests;
