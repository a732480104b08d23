//! One question to one address, repeated until it is answered or given up.

use std::net::SocketAddr;
use std::time::Duration;

use rand_core::CryptoRng;

use crate::identity::AgentId;
use crate::time::Time;
use crate::wire::stun::{BindingRequest, BindingResponse, Change, TRANSACTION_LEN, Transaction};

/// How long each transmission waits for its answer (RFC 8489, section 6.2.1, with seven transmissions as there). It
/// starts with 250 ms instead of 500 ms, longer than most round trips, and stops doubling at 2 s: who has been asked
/// five times in vain is more likely to answer later than to be overloaded.
const WAITS: [Duration; 7] = [
    Duration::from_millis(250),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(2),
    Duration::from_secs(2),
    Duration::from_secs(2),
];
/// A server that did not answer is asked again so many times in a row.
const RETRY_TRANSMISSIONS: usize = 3;
/// Silence is an answer too where a NAT's filter is tested, so these are repeated fast: this often, and so many times
/// that with 30 % loss each way one silence in four hundred is wrong.
const TEST_INTERVAL: Duration = Duration::from_millis(200);
/// See [`TEST_INTERVAL`].
const TEST_TRANSMISSIONS: usize = 9;
/// How long the answer to the last of them may take: the longest round trip on earth, a satellite's included.
const TEST_LAST_WAIT: Duration = Duration::from_secs(1);
/// A server that does not answer is asked again after this, doubling up to [`RETRY_LONGEST`].
const RETRY_FIRST: Duration = Duration::from_secs(1);
/// See [`RETRY_FIRST`].
const RETRY_LONGEST: Duration = Duration::from_secs(60);
/// Transmissions whose answer is still taken: all of one round.
const MAX_OUTSTANDING: usize = if WAITS.len() > TEST_TRANSMISSIONS { WAITS.len() } else { TEST_TRANSMISSIONS };

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// How a server sees this host.
    Server,
    /// How another address of a server sees this host.
    Alternate,
    /// Whether an answer from another IP address gets in.
    FilterAddress,
    /// Whether an answer from another port of the same IP address gets in.
    FilterPort,
    /// Whether this host's own request comes back.
    Hairpin,
}

/// How far a request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// Under way, or due.
    Asking,
    /// There is an answer.
    Answered,
    /// All transmissions of a round went unanswered.
    Silent,
    /// The server does not do this.
    Refused,
}

/// What an answer said.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seen {
    pub(super) mapped: SocketAddr,
    /// The server's other address (RFC 5780, section 7.4).
    pub(super) other: Option<SocketAddr>,
    pub(super) at: Time,
    /// The shortest round trip.
    pub(super) rtt: Duration,
}

#[derive(Debug)]
pub(super) struct Request {
    pub(super) server: AgentId,
    pub(super) purpose: Purpose,
    pub(super) to: SocketAddr,
    /// Where the answer has to come from.
    pub(super) answer_from: SocketAddr,
    pub(super) state: State,
    pub(super) seen: Option<Seen>,
    /// When its first transmission left, in the order of all: the order in which a NAT made its mappings.
    pub(super) order: u64,
    /// When something is due.
    pub(super) next: Option<Time>,
    change: Change,
    /// Every transmission has a transaction of its own, so that its round trip is not mistaken for another's.
    outstanding: Vec<(Transaction, Time)>,
    /// Transmissions of this round.
    sent: usize,
    /// Rounds that went unanswered.
    silences: u32,
}

impl Request {
    pub(super) fn new(now: Time, server: AgentId, purpose: Purpose, to: SocketAddr) -> Self {
        Self {
            server,
            purpose,
            to,
            answer_from: to,
            state: State::Asking,
            seen: None,
            order: 0,
            next: Some(now),
            change: Change::default(),
            outstanding: Vec::new(),
            sent: 0,
            silences: 0,
        }
    }

    /// A request to `to` whose answer shall come from another address of the server.
    pub(super) fn answered_from(mut self, other: SocketAddr) -> Self {
        self.change = Change { ip: other.ip() != self.to.ip(), port: other.port() != self.to.port() };
        self.answer_from = other;
        self
    }

    /// Asks again what was answered some time ago.
    pub(super) fn ask_again(&mut self, now: Time) {
        (self.state, self.sent, self.silences, self.next) = (State::Asking, 0, 0, Some(now));
    }

    pub(super) fn is_due(&self, now: Time) -> bool {
        self.next.is_some_and(|at| at <= now)
    }

    pub(super) fn is_v4(&self) -> bool {
        self.to.is_ipv4()
    }

    /// In its first round, with time left.
    pub(super) fn is_pending(&self) -> bool {
        self.state == State::Asking && self.silences == 0
    }

    /// Whether the answer to the first transmission may still come in time.
    pub(super) fn is_first_wait(&self) -> bool {
        self.is_pending() && self.sent <= 1
    }

    pub(super) fn awaits_answer(&self) -> bool {
        self.state == State::Asking && !self.outstanding.is_empty()
    }

    /// The next transmission, or none when the round is over.
    pub(super) fn transmit(&mut self, now: Time, rng: &mut dyn CryptoRng) -> Option<Vec<u8>> {
        let Some(wait) = self.wait() else {
            self.state = State::Silent;
            self.next = None;
            return None;
        };
        let mut transaction = [0; TRANSACTION_LEN];
        rng.fill_bytes(&mut transaction);
        if self.outstanding.len() == MAX_OUTSTANDING {
            self.outstanding.remove(0);
        }
        self.outstanding.push((transaction, now));
        self.sent += 1;
        self.next = Some(now + wait);
        Some(self.datagram(transaction))
    }

    /// Another, shorter round after a while.
    pub(super) fn retry_later(&mut self, now: Time) {
        let backoff = RETRY_FIRST.saturating_mul(1 << self.silences.min(16)).min(RETRY_LONGEST);
        self.silences = self.silences.saturating_add(1);
        (self.state, self.sent, self.next) = (State::Asking, 0, Some(now + backoff));
    }

    /// Takes a datagram if it is the answer to this request.
    pub(super) fn datagram_received(&mut self, now: Time, source: SocketAddr, bytes: &[u8]) -> bool {
        if self.purpose == Purpose::Hairpin {
            return self.own_request_received(now, source, bytes);
        }
        if source != self.answer_from {
            return false;
        }
        let answered = self.outstanding.iter().find_map(|(transaction, sent)| {
            BindingResponse::parse(bytes, transaction).ok().map(|response| (response, *sent))
        });
        let Some((response, sent)) = answered else { return false };
        match response {
            BindingResponse::Success { mapped, other, .. } => {
                let mapped = SocketAddr::new(mapped.ip().to_canonical(), mapped.port());
                self.answered(now, sent, mapped, other);
            }
            BindingResponse::Error { .. } => {
                (self.state, self.next) = (State::Refused, None);
                self.outstanding.clear();
            }
        }
        true
    }

    fn own_request_received(&mut self, now: Time, source: SocketAddr, bytes: &[u8]) -> bool {
        let sent = self.outstanding.iter().find(|(transaction, _)| self.datagram(*transaction) == bytes);
        let Some((_, sent)) = sent.copied() else { return false };
        self.answered(now, sent, source, None);
        true
    }

    fn answered(&mut self, now: Time, sent: Time, mapped: SocketAddr, other: Option<SocketAddr>) {
        let rtt = now.since(sent);
        let rtt = self.seen.map_or(rtt, |earlier| earlier.rtt.min(rtt));
        self.seen = Some(Seen { mapped, other, at: now, rtt });
        (self.state, self.next) = (State::Answered, None);
        self.outstanding.clear();
    }

    fn datagram(&self, transaction: Transaction) -> Vec<u8> {
        BindingRequest { transaction, change: self.change, fingerprint: false }.emit()
    }

    /// How long the next transmission waits for its answer; none when there are no more.
    fn wait(&self) -> Option<Duration> {
        match self.purpose {
            Purpose::Server | Purpose::Alternate if self.silences == 0 => WAITS.get(self.sent).copied(),
            Purpose::Server | Purpose::Alternate => {
                WAITS.get(self.sent).filter(|_| self.sent < RETRY_TRANSMISSIONS).copied()
            }
            Purpose::FilterAddress | Purpose::FilterPort | Purpose::Hairpin => match self.sent + 1 {
                TEST_TRANSMISSIONS => Some(TEST_LAST_WAIT),
                sent => (sent < TEST_TRANSMISSIONS).then_some(TEST_INTERVAL),
            },
        }
    }
}
