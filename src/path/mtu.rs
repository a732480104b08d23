//! How long a packet may be on each path (PLPMTUD, RFC 8899 in spirit).
//!
//! No ICMP is needed and none is believed: probes padded to a size are answered or not. They are control messages
//! inside the session, so an answer is authenticated, and losing one costs nobody data.
//!
//! ```text
//!   new path ──> search: as long as the interface allows, until shown otherwise
//!   search ──(the longest was answered)──> settled
//!   search ──(a size was not answered three times, and meanwhile a smaller one was)──> lowered, bisection ──> settled
//!   search ──(nothing was answered)──> as before; searches again, later and later
//!   settled ──(long packets are sent)──> the size is confirmed every 10 s
//!   settled ──(long packets are sent, nothing comes back)──> search
//!   settled ──(not confirmed, or for 10 min less than the interface allows)──> search
//! ```
//!
//! # Driving it
//!
//! Tell [`PathMtus`] what happens, then drain [`PathMtus::poll_output`], then come back at [`PathMtus::poll_timeout`].
//! Time and randomness are arguments; it does no I/O. Lengths are those of the IP packet in the session, in bytes.

use std::collections::VecDeque;
use std::time::Duration;

use rand_core::CryptoRng;

use super::candidate::Route;
use super::take_sparingly;
use crate::time::Time;
use crate::wire::control::MAX_PROBE_LEN;
use crate::wire::{LEAST_PATH_MTU, RELAY_PREFIX_LEN, WIREGUARD_OVERHEAD};

/// MTUs of links that occur: jumbo frames; Ethernet; PPPoE (RFC 2516); tunnels in tunnels, among them those of mobile
/// networks and clouds; what IPv6 asks of every link (RFC 8200, section 5).
const PLATEAUS: [u16; 7] = [1280, 1340, 1400, 1450, 1492, 1500, 9000];
/// IPv4 and UDP header, bytes.
const IPV4_UDP: u16 = 20 + 8;
/// IPv6 and UDP header, bytes.
const IPV6_UDP: u16 = 40 + 8;
/// What WireGuard adds, bytes.
const SESSION: u16 = WIREGUARD_OVERHEAD as u16;
/// What a relay frame adds, bytes.
const RELAY: u16 = RELAY_PREFIX_LEN as u16;
/// The least path MTU through a relay. A direct one is longer by the frame of a relay.
const LEAST: u16 = LEAST_PATH_MTU as u16;

/// A size is taken not to pass when it was sent so often, and a smaller one was answered meanwhile. One loss in a
/// hundred, at random, lowers a path in vain once in a million searches.
const TRIES: u8 = 3;
/// Probes of one search before a pause of [`FIRST_RETRY`]: a first flight of six, four for the size that fails, five for
/// each of two sizes of bisection; and some for what is lost.
const MAX_PROBES: u8 = 24;
/// Bisection ends when it is this near, bytes: 1 % of a packet.
const NEAR: u16 = 16;
/// Between two probes of one size: at least this, and half a round trip more than a round trip. Three make the time in
/// which a search lowers.
const LEAST_SPACING: Duration = Duration::from_millis(70);
/// The same where no round trip is known.
const USUAL_SPACING: Duration = Duration::from_millis(150);
/// A search that came to nothing is repeated after this, doubling up to [`LONGEST_RETRY`].
const FIRST_RETRY: Duration = Duration::from_secs(1);
/// See [`FIRST_RETRY`].
const LONGEST_RETRY: Duration = Duration::from_secs(60);
/// While long packets are sent, the MTU is confirmed this often.
const CONFIRM_INTERVAL: Duration = Duration::from_secs(10);
/// A path that takes less than the interface allows is searched again after this (RFC 8899, section 5.1.1).
const RAISE_INTERVAL: Duration = Duration::from_secs(600);
/// Long packets that nothing follows for this long may have vanished: longer than an acknowledgement is delayed.
const VANISHED_AFTER: Duration = Duration::from_millis(300);
/// Paths whose MTU is remembered: the primary one, the relay it rests on, and two it changes with.
const MAX_REMEMBERED: usize = 4;
/// Probes whose answer may still come.
const MAX_TOKENS: usize = 32;

/// A probe to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MtuProbe {
    /// Where.
    pub route: Route,
    /// To be repeated in the answer.
    pub token: u64,
    /// Of the whole IPv6 packet in the session.
    pub length: u16,
}

/// The path MTUs towards one peer. The head of the module says how to drive it.
#[derive(Debug)]
pub struct PathMtus {
    /// MTU of the interface: no packet is longer.
    interface: u16,
    /// The primary path first, then those that were before it, the latest first.
    searches: VecDeque<MtuSearch>,
    /// Since when long packets have drawn nothing.
    unanswered: Option<Time>,
    outputs: VecDeque<MtuProbe>,
}

/// What is known of one path, and the search for more.
#[derive(Debug)]
struct MtuSearch {
    route: Route,
    /// What is used now.
    mtu: u16,
    least: u16,
    most: u16,
    state: State,
    /// When the state asks for something.
    due: Option<Time>,
    /// When to search again, if nothing happens.
    again: Option<Time>,
    /// Round trip of probes, the slower ones in view.
    rtt: Option<Duration>,
    /// The MTU was confirmed.
    confirmed: Time,
    /// Between searches that come to nothing.
    retry: Duration,
    /// No search for vanished packets before this.
    patience: Time,
    /// Answers that may still come.
    tokens: VecDeque<Sent>,
}

#[derive(Debug, Clone, Copy)]
struct Sent {
    token: u64,
    length: u16,
    at: Time,
}

#[derive(Debug)]
enum State {
    /// Nothing is asked.
    Settled,
    /// Is the MTU still right? Asked so often.
    Confirming(u8),
    Searching(Bounds),
}

/// How far a search is.
#[derive(Debug)]
struct Bounds {
    /// Sizes that are asked about, in order, and how often each was.
    asked: Vec<(u16, u8)>,
    /// The longest that was answered; 0: none.
    answered: u16,
    /// The shortest that is taken not to pass, or one more than is wanted.
    refused: u16,
    /// When the latest probe that was answered was sent: then the path worked.
    worked: Option<Time>,
    /// When the size in question was asked about for the second time.
    asked_again: Option<Time>,
    probes_left: u8,
}

impl PathMtus {
    /// No path yet, behind an interface with this MTU.
    #[must_use]
    pub fn new(interface: u16) -> Self {
        Self {
            interface: interface.min(MAX_PROBE_LEN),
            searches: VecDeque::new(),
            unanswered: None,
            outputs: VecDeque::new(),
        }
    }

    /// Data takes this path from now on.
    pub fn primary_chosen(&mut self, now: Time, route: Route) {
        self.unanswered = None;
        let known = self.searches.iter().position(|search| search.route == route);
        match known.and_then(|position| self.searches.remove(position)) {
            Some(known) => self.searches.push_front(known),
            None => {
                self.searches.reserve_exact(1);
                self.searches.push_front(MtuSearch::new(now, route, self.interface));
            }
        }
        self.searches.truncate(MAX_REMEMBERED);
    }

    /// The largest packet to send on a path.
    #[must_use]
    pub fn of(&self, route: Route) -> u16 {
        self.searches.iter().find(|search| search.route == route).map_or(self.interface, |search| search.mtu)
    }

    /// Links changed: what was found holds until the search that begins now finds something else.
    pub fn network_changed(&mut self, now: Time) {
        for search in &mut self.searches {
            search.begin(now);
        }
    }

    /// What moved since the last call: packets longer than every path takes, and anything from the peer. Call it every
    /// fraction of a second while there is traffic.
    pub fn traffic(&mut self, now: Time, long_sent: bool, received: bool) {
        let Some(search) = self.searches.front_mut() else { return };
        if long_sent {
            search.confirm_if_due(now);
        }
        if received {
            self.unanswered = None;
        } else if long_sent {
            self.unanswered.get_or_insert(now);
        }
        if self.unanswered.is_some_and(|since| now.since(since) >= VANISHED_AFTER) && search.suspect(now) {
            self.unanswered = None;
        }
    }

    /// This host did not take a datagram of a packet this long for the path: a link or route of its own is narrower.
    pub fn refused_here(&mut self, now: Time, route: Route, length: u16) {
        if let Some(search) = self.searches.iter_mut().find(|search| search.route == route) {
            search.refused_here(now, length);
        }
    }

    /// The answer to a probe of this length.
    pub fn probe_answered(&mut self, now: Time, token: u64, length: u16) {
        for search in &mut self.searches {
            search.answered(now, token, length);
        }
    }

    /// A probe was not sent after all: that it stays without an answer means nothing.
    pub fn probe_not_sent(&mut self, now: Time, token: u64) {
        for search in &mut self.searches {
            search.not_sent(now, token);
        }
    }

    /// Does what is due on the primary path, whose round trip is `rtt`.
    pub fn handle_timeout(&mut self, now: Time, rtt: Option<Duration>, rng: &mut dyn CryptoRng) {
        let outputs = &mut self.outputs;
        if let Some(search) = self.searches.front_mut() {
            search.handle_timeout(now, rtt, &mut |search, length| {
                let token = rng.next_u64();
                search.remember(Sent { token, length, at: now });
                outputs.push_back(MtuProbe { route: search.route, token, length });
            });
        }
    }

    /// When [`handle_timeout`](Self::handle_timeout) is due, as long as the path is in use.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Time> {
        self.searches.front()?.due
    }

    /// The next probe to send.
    pub fn poll_output(&mut self) -> Option<MtuProbe> {
        take_sparingly(&mut self.outputs, 0)
    }
}

impl MtuSearch {
    fn new(now: Time, route: Route, interface: u16) -> Self {
        let least = if route.is_relayed() { LEAST } else { LEAST + RELAY }.min(interface);
        let mut search = Self {
            route,
            mtu: interface,
            least,
            most: interface,
            state: State::Settled,
            due: None,
            again: None,
            rtt: None,
            confirmed: now,
            retry: FIRST_RETRY,
            patience: now,
            tokens: VecDeque::new(),
        };
        search.begin(now);
        search
    }

    /// Begins a search. It keeps the MTU until it knows better.
    fn begin(&mut self, now: Time) {
        let mut asked: Vec<u16> = PLATEAUS.iter().map(|link| link.saturating_sub(overhead(self.route))).collect();
        asked.extend([self.least, self.mtu, self.most]);
        asked.retain(|length| (self.least..=self.most).contains(length));
        asked.sort_unstable();
        asked.dedup();
        self.state = State::Searching(Bounds {
            asked: asked.into_iter().map(|length| (length, 0)).collect(),
            answered: 0,
            refused: self.most.saturating_add(1),
            worked: None,
            asked_again: None,
            probes_left: MAX_PROBES,
        });
        (self.due, self.again) = (Some(now), None);
    }

    fn confirm_if_due(&mut self, now: Time) {
        if matches!(self.state, State::Settled) && now.since(self.confirmed) >= CONFIRM_INTERVAL {
            self.state = State::Confirming(0);
            self.due = Some(now);
        }
    }

    /// Long packets may have vanished. Traffic in one direction looks the same, and must not cost a search twice a
    /// second.
    fn suspect(&mut self, now: Time) -> bool {
        if matches!(self.state, State::Searching(_)) || now < self.patience {
            return false;
        }
        self.patience = now + self.retry;
        self.retry = (self.retry * 2).min(LONGEST_RETRY);
        self.begin(now);
        true
    }

    fn refused_here(&mut self, now: Time, length: u16) {
        if length > self.mtu || length <= self.least {
            return;
        }
        let plateaus = PLATEAUS.iter().map(|link| link.saturating_sub(overhead(self.route)));
        self.mtu = plateaus.filter(|fits| *fits < length).max().unwrap_or(self.least).max(self.least);
        self.begin(now);
        if let State::Searching(bounds) = &mut self.state {
            bounds.refuse(length);
        }
    }

    fn answered(&mut self, now: Time, token: u64, length: u16) {
        let Some(position) = self.tokens.iter().position(|sent| sent.token == token) else { return };
        // Some other length arrived than was sent: no proof of anything.
        let Some(sent) = take_sparingly(&mut self.tokens, position).filter(|sent| sent.length == length) else {
            return;
        };
        let rtt = now.since(sent.at);
        self.rtt = Some(self.rtt.map_or(rtt, |known| rtt.max((known * 7 + rtt) / 8)));
        if length == self.mtu {
            self.confirmed = now;
        }
        match &mut self.state {
            State::Settled => {}
            State::Confirming(_) => {
                if length == self.mtu {
                    self.settle();
                }
            }
            State::Searching(bounds) => {
                bounds.answer(sent);
                // Nothing is left to wait for.
                if bounds.open().is_none() {
                    self.due = Some(now);
                }
                if length > self.mtu {
                    self.mtu = length;
                    self.confirmed = now;
                }
            }
        }
    }

    fn not_sent(&mut self, now: Time, token: u64) {
        let Some(position) = self.tokens.iter().position(|sent| sent.token == token) else { return };
        let Some(sent) = take_sparingly(&mut self.tokens, position) else { return };
        let tries = match &mut self.state {
            State::Settled => None,
            State::Confirming(tries) => Some(tries),
            State::Searching(bounds) => {
                bounds.asked.iter_mut().find(|(length, _)| *length == sent.length).map(|(_, tries)| tries)
            }
        };
        if let Some(tries) = tries {
            *tries = tries.saturating_sub(1);
            self.due = Some(self.due.map_or(now + USUAL_SPACING, |due| due.max(now + USUAL_SPACING)));
        }
    }

    fn handle_timeout(&mut self, now: Time, rtt: Option<Duration>, send: &mut dyn FnMut(&mut Self, u16)) {
        if self.due.is_none_or(|due| due > now) {
            return;
        }
        match &mut self.state {
            // More may fit than when it was last looked at.
            State::Settled => {
                self.begin(now);
                self.search(now, rtt, send);
            }
            State::Confirming(TRIES) => {
                self.begin(now);
                self.search(now, rtt, send);
            }
            State::Confirming(tries) => {
                *tries += 1;
                self.due = Some(now + spacing(self.rtt.max(rtt)));
                send(self, self.mtu);
            }
            State::Searching(_) => self.search(now, rtt, send),
        }
    }

    /// Asks the next question of a search, or ends it.
    fn search(&mut self, now: Time, rtt: Option<Duration>, send: &mut dyn FnMut(&mut Self, u16)) {
        let State::Searching(bounds) = &mut self.state else { return };
        let next = bounds.next(now);
        let wait = spacing(self.rtt.max(rtt));
        let lowered = bounds.answered.max(self.least);
        if bounds.answered > 0 && bounds.refused <= self.mtu && lowered < self.mtu {
            tracing::debug!(from = self.mtu, to = lowered, "path MTU lowered");
            self.mtu = lowered;
            (self.confirmed, self.retry) = (now, FIRST_RETRY);
        }
        match next {
            Next::Ask(lengths) => {
                self.due = Some(now + wait);
                for length in lengths {
                    send(self, length);
                }
            }
            Next::Pause => self.due = Some(now + FIRST_RETRY),
            Next::Found => {
                self.again = (self.mtu < self.most).then(|| now + RAISE_INTERVAL);
                self.settle();
            }
            Next::Nothing => {
                self.again = Some(now + self.retry);
                self.retry = (self.retry * 2).min(LONGEST_RETRY);
                self.settle();
            }
        }
    }

    fn settle(&mut self) {
        self.state = State::Settled;
        self.due = self.again;
    }

    fn remember(&mut self, sent: Sent) {
        if self.tokens.len() == MAX_TOKENS {
            self.tokens.pop_front();
        }
        self.tokens.push_back(sent);
    }
}

/// What a search does next.
enum Next {
    Ask(Vec<u16>),
    Found,
    /// Goes on after a pause.
    Pause,
    /// Nothing was answered lately.
    Nothing,
}

impl Bounds {
    fn answer(&mut self, sent: Sent) {
        self.answered = self.answered.max(sent.length);
        self.worked = self.worked.max(Some(sent.at));
        // It passes after all. What is longer was not refused on its own.
        if sent.length >= self.refused {
            self.refused = sent.length.saturating_add(1);
        }
    }

    fn refuse(&mut self, length: u16) {
        self.refused = self.refused.min(length);
        self.asked.retain(|(asked, _)| *asked < length);
    }

    /// The shortest size that is not answered, and longer than all that are.
    fn open(&mut self) -> Option<&mut (u16, u8)> {
        let answered = self.answered;
        self.asked.iter_mut().find(|(length, _)| *length > answered)
    }

    fn next(&mut self, now: Time) -> Next {
        if self.asked.iter().all(|(_, tries)| *tries == 0) {
            return self.first_flight();
        }
        if let Some(&mut (length, TRIES..)) = self.open() {
            // While nothing passes at all, that this one does not says nothing about its length.
            if self.worked < self.asked_again {
                return Next::Nothing;
            }
            self.refuse(length);
        }
        if self.open().is_none() {
            if self.refused.saturating_sub(self.answered) <= NEAR {
                return Next::Found;
            }
            self.asked.push((self.answered + (self.refused - self.answered) / 2, 0));
        }
        self.ask_open(now)
    }

    /// Asks about the size in question. From the second time on in the company of one that passed.
    fn ask_open(&mut self, now: Time) -> Next {
        if self.probes_left < 2 {
            self.probes_left = MAX_PROBES;
            return Next::Pause;
        }
        let answered = self.answered;
        let Some((length, tries)) = self.open() else { return Next::Found };
        let (length, tried) = (*length, *tries);
        *tries += 1;
        let company = Some(answered).filter(|answered| tried > 0 && *answered > 0);
        let lengths: Vec<u16> = company.into_iter().chain([length]).collect();
        self.probes_left = self.probes_left.saturating_sub(u8::try_from(lengths.len()).unwrap_or(u8::MAX));
        if tried == 1 {
            self.asked_again = Some(now);
        }
        Next::Ask(lengths)
    }

    /// Every size once, the longest last: it is the one most likely to pass, and should not delay the others.
    fn first_flight(&mut self) -> Next {
        self.probes_left = self.probes_left.saturating_sub(u8::try_from(self.asked.len()).unwrap_or(u8::MAX));
        for (_, tries) in &mut self.asked {
            *tries = 1;
        }
        Next::Ask(self.asked.iter().map(|(length, _)| *length).collect())
    }
}

/// What a path adds to a packet, bytes. Of a relay's two legs the family is not known: IPv6 adds more.
fn overhead(route: Route) -> u16 {
    match route {
        Route::Relayed(_) => IPV6_UDP + SESSION + RELAY,
        Route::Direct(_) | Route::Extra(..) if route.is_ipv6() => IPV6_UDP + SESSION,
        Route::Direct(_) | Route::Extra(..) => IPV4_UDP + SESSION,
    }
}

fn spacing(rtt: Option<Duration>) -> Duration {
    rtt.map_or(USUAL_SPACING, |rtt| LEAST_SPACING.max(rtt + rtt / 2))
}

#[cfg(test)]
mod tests;
