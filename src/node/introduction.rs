//! First contact: introductions sent to who was asked for trust, and received from who asks.

use std::net::SocketAddr;
use std::time::Duration;

use super::limits::{HELLO_RATE, MAX_PEERS, MAX_REFUSED, backoff};
use super::peer::RecordSource;
use super::{Node, TimerKind};
use crate::api::TrustState;
use crate::forwarding::{PeerPath, StrangerDatagram};
use crate::identity::AgentId;
use crate::policy::PortSpec;
use crate::time::Now;
use crate::trust::{Admission, Grant, Ours, Request, admit};
use crate::wire::control::{ControlMessage, IntroducedStatus, RendezvousMessage};
use crate::wire::introduction::{Introduction, TrustRequest};

/// The first unanswered introduction goes out again after this; UDP may have lost it.
const FIRST_RESEND: Duration = Duration::from_millis(500);
/// The intervals double up to this. The other side is a person who decides in minutes or days, and an agent that may
/// be off; nothing is gained by asking more often.
const LONGEST_RESEND: Duration = Duration::from_secs(60);

/// Trusted peers that are asked to pass an introduction on.
const MAX_HELPERS: usize = 4;
/// They are asked this often at most: as often as a new initiation is made.
const INTRODUCE_INTERVAL: Duration = Duration::from_secs(4);
/// Introductions whose time is further from this host's clock are refused, milliseconds: a week covers a clock without
/// a battery that was set by hand.
const LONGEST_DELAY_MS: u64 = 7 * 24 * 3600 * 1000;

impl Node {
    /// Asks (again) for trust.
    pub(super) fn introduction_timer(&mut self, now: Now, id: AgentId) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let attempt = peer.asking.attempts;
        peer.asking.attempts = attempt.saturating_add(1);
        peer.asking.first.get_or_insert(now.time);
        peer.asking.last = Some(now.time);
        let addresses = peer.addresses.clone();
        let servers: Vec<_> = peer.record.record().rendezvous.clone();
        let again = now.time + backoff(attempt, FIRST_RESEND, LONGEST_RESEND);
        self.timers.set(TimerKind::Introduction(id), Some(again));
        let Some(datagram) = self.seal_introduction(now, id) else { return };
        tracing::debug!(peer = %id.short(), conn = self.conn(id), attempt, "introduction sent");
        for destination in addresses {
            self.transmit_on(&PeerPath::direct(destination), datagram.clone());
        }
        for server in servers {
            self.borrow_server(now, &server);
            self.introduce_through(now, server.id, id, &datagram);
        }
    }

    /// What tells a peer who this agent is and where, whoever passes it on.
    fn seal_introduction(&mut self, now: Now, id: AgentId) -> Option<Vec<u8>> {
        self.check_record(now);
        let candidates = self.own_transport_addresses();
        let mut nonce = [0; 16];
        self.rng.fill_bytes(&mut nonce);
        let peer = self.peers.get(&id)?;
        let introduction = Introduction {
            recipient: id,
            record: self.record.clone(),
            candidates,
            nonce,
            time_ms: now.unix_ms,
            reason: peer.asking.reason.clone(),
            request: TrustRequest { ports: peer.relation.grant.ports.clone(), ttl_s: peer.relation.grant.ttl_s },
            initiation: None,
        };
        let tunnel_key = peer.record.record().tunnel_key;
        match introduction.seal(&self.identity, &tunnel_key, &mut *self.rng) {
            Ok(datagram) => {
                self.counters.introductions_sent.increment();
                Some(datagram)
            }
            // Lengths are checked when the request is made; a record that grew since then is the one way here.
            Err(error) => {
                tracing::warn!(peer = %id.short(), conn = self.conn(id), %error, "introduction not sent");
                None
            }
        }
    }

    /// A trusted peer does not answer where it was. Other peers may know where it is: they pass on where this agent is,
    /// and it answers, if it wants to.
    pub(super) fn introduce_through_peers(&mut self, now: Now, id: AgentId) {
        let in_session = |link: &super::peer::Link| link.shared.tunnel.lock().has_session(now.time) && !link.stopped;
        let Some(peer) = self.peers.get(&id).filter(|peer| peer.trusted) else { return };
        let Some(link) = &peer.link else { return };
        let lately = link.introduced.is_some_and(|at| now.time.since(at) < INTRODUCE_INTERVAL);
        // Where nobody answers, each of a thousand peers comes here every second.
        if lately || self.no_helpers || link.shared.tunnel.lock().has_session(now.time) {
            return;
        }
        let others = self.peers.values().filter(|peer| peer.id != id && peer.trusted);
        let helpers = others.filter(|peer| peer.link.as_ref().is_some_and(in_session)).map(|peer| peer.id);
        let helpers: Vec<AgentId> = helpers.take(MAX_HELPERS).collect();
        self.no_helpers = helpers.is_empty();
        let Some(link) = self.link_mut(id).filter(|_| !helpers.is_empty()) else { return };
        link.introduced = Some(now.time);
        let Some(sealed) = self.seal_introduction(now, id) else { return };
        let message = RendezvousMessage::Introduce { recipient: id, sealed };
        if message.check().is_ok() {
            for helper in helpers {
                self.send_control(now, helper, &ControlMessage::Rendezvous(message.clone()));
            }
        }
    }

    /// A trusted peer asks to pass an introduction on. Only to a trusted peer in session, to which this agent does not
    /// say more than that somebody it can verify itself wants to talk.
    pub(super) fn pass_on_introduction(&mut self, now: Now, from: AgentId, to: AgentId, sealed: Vec<u8>) {
        let observed =
            self.peers.get(&from).and_then(|peer| peer.link.as_ref()).and_then(super::peer::Link::direct_endpoint);
        let both = [from, to].iter().all(|id| self.peers.get(id).is_some_and(|peer| peer.trusted));
        let allowed = self.link_mut(from).is_some_and(|link| link.hellos_received.take(now.time, HELLO_RATE));
        if !both || !allowed {
            return self.counters.drop_control_rate.increment();
        }
        let Some(observed) = observed else { return };
        let message = RendezvousMessage::Introduction { sealed, observed };
        if self.send_control(now, to, &ControlMessage::Rendezvous(message)) {
            self.counters.introductions_passed_on.increment();
        }
    }

    fn introduce_through(&mut self, now: Now, server: AgentId, recipient: AgentId, sealed: &[u8]) {
        let message = RendezvousMessage::Introduce { recipient, sealed: sealed.to_vec() };
        if message.check().is_ok() {
            self.send_to_server(now, server, message, false);
        }
    }

    /// A server says what became of an introduction.
    pub(super) fn introduction_passed_on(&mut self, recipient: AgentId, status: IntroducedStatus) {
        if let Some(peer) = self.peers.get_mut(&recipient) {
            peer.asking.passed_on = Some(status);
        }
    }

    pub(super) fn handle_introduction(&mut self, now: Now, datagram: &StrangerDatagram) {
        let source = datagram.path.endpoint;
        if !self.introductions.allow(now.time, source) {
            return self.counters.drop_introduction_rate.increment();
        }
        self.open_introduction(now, source, source, &datagram.data);
    }

    /// An introduction that a server or a peer passed on, from an agent it says it saw at `observed`. Who passes on has a
    /// rate of its own: it must not use up what strangers may send. Nor may it choose whose share of the waiting requests
    /// it uses, unless it is a server that this agent's owner chose: it is at `share_of`.
    pub(super) fn introduction_passed(
        &mut self,
        now: Now,
        allowed: bool,
        observed: SocketAddr,
        share_of: SocketAddr,
        sealed: &[u8],
    ) {
        if !allowed {
            return self.counters.drop_introduction_rate.increment();
        }
        self.open_introduction(now, observed, share_of, sealed);
    }

    fn open_introduction(&mut self, now: Now, source: SocketAddr, share_of: SocketAddr, sealed: &[u8]) {
        let introduction = match Introduction::open(sealed, &self.tunnel_secret, &self.id) {
            Ok(introduction) => introduction,
            Err(error) => {
                tracing::debug!(%source, %error, "introduction not accepted");
                return self.counters.drop_introduction_invalid.increment();
            }
        };
        let id = introduction.record.id();
        // Whom nothing is remembered of could otherwise be spoken for with an old recording.
        let age_ms = now.unix_ms.abs_diff(introduction.time_ms);
        let stale = age_ms > LONGEST_DELAY_MS || introduction.record.is_expired(now.unix_s());
        let readable = introduction.request.ports.as_ref().is_none_or(|ports| ports.parse::<PortSpec>().is_ok());
        if id == self.id || stale || !readable {
            return self.counters.drop_introduction_invalid.increment();
        }
        let refused =
            self.peers.get(&id).is_some_and(|peer| matches!(peer.relation.ours, Ours::Rejected | Ours::Revoked));
        if refused {
            return self.counters.drop_introduction_refused.increment();
        }
        if !self.peers.contains_key(&id) && !self.make_room(share_of) {
            return self.counters.drop_introduction_full.increment();
        }
        self.introduction_verified(now, id, introduction, source, share_of);
    }

    fn introduction_verified(
        &mut self,
        now: Now,
        id: AgentId,
        introduction: Introduction,
        source: SocketAddr,
        share_of: SocketAddr,
    ) {
        let time_ms = introduction.time_ms;
        let request = Request { reason: introduction.reason, received: now.unix_s(), from: Some(share_of) };
        let grant = Grant { ports: introduction.request.ports, ttl_s: introduction.request.ttl_s };
        let replay = self.peers.get(&id).is_some_and(|peer| peer.last_introduction_ms >= time_ms);
        if replay {
            return self.counters.drop_introduction_replay.increment();
        }
        if !self.learn_record(now, introduction.record, RecordSource::Introduction) {
            return self.counters.drop_introduction_full.increment();
        }
        self.note_candidates(id, std::iter::once(source).chain(introduction.candidates));
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let before = peer.relation.state(now.unix_s());
        peer.last_introduction_ms = time_ms;
        peer.relation.introduction_received(now.unix_s(), request, grant);
        let after = peer.relation.state(now.unix_s());
        self.counters.introductions.increment();
        if (before, after) == (TrustState::None, TrustState::Pending) {
            self.counters.trust_asked.increment();
        }
        if (before, after) != (TrustState::Pending, TrustState::Pending) {
            tracing::info!(peer = %id.short(), state = after.as_str(), "introduction received");
        }
        self.trust_changed(now, id);
        if after == TrustState::Trusted {
            self.start_handshake(now, id);
        }
    }

    /// Room for one more agent this one knows nothing about.
    fn make_room(&mut self, source: SocketAddr) -> bool {
        let waiting: Vec<_> = self
            .peers
            .values()
            .filter(|peer| peer.relation.ours == Ours::Undecided)
            .filter_map(|peer| {
                peer.relation.request_received().map(|request| (peer.id, request.from, request.received))
            })
            .collect();
        match admit(&waiting, Some(source)) {
            Admission::Admit => {}
            Admission::Replace(oldest) => self.forget(oldest),
            Admission::Refuse => return false,
        }
        self.peers.len() < MAX_PEERS
    }

    /// Forgets the oldest no beyond [`MAX_REFUSED`].
    pub(super) fn bound_refused(&mut self) {
        let refused = |ours: &Ours| matches!(ours, Ours::Rejected | Ours::Revoked);
        let mut all: Vec<_> = self.peers.values().filter(|peer| refused(&peer.relation.ours)).collect();
        if all.len() <= MAX_REFUSED {
            return;
        }
        all.sort_by_key(|peer| peer.relation.since);
        if let Some(oldest) = all.first().map(|peer| peer.id) {
            self.forget(oldest);
        }
    }
}
