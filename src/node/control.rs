//! Messages inside the session: hello, echo, goodbye.

use std::time::Duration;

use super::limits::{HELLO_RATE, MESSAGE_RATE, backoff};
use super::peer::{RecordSource, TheirAliases};
use super::told_clock::ToldClock;
use super::{Node, TimerKind, VERSIONS};
use crate::forwarding::PeerPath;
use crate::identity::{AgentId, TunnelPublic};
use crate::time::Now;
use crate::wire::control::{
    ControlError, ControlMessage, ControlPacket, GoodbyeReason, Hello, PathMessage, RendezvousMessage,
};

/// The first hello that is not acknowledged goes out again after this.
const FIRST_RESEND: Duration = Duration::from_millis(300);
/// The intervals double up to this.
const LONGEST_RESEND: Duration = Duration::from_secs(10);
/// So many hellos in a row without an answer: a stock WireGuard peer, or a session that no longer works and whose own
/// timers deal with it.
const MAX_HELLOS: u32 = 8;

impl Node {
    /// A control message that the session proves to come from this peer.
    pub(super) fn handle_control(&mut self, now: Now, id: AgentId, packet: &[u8], newest: bool, path: &PeerPath) {
        if self.servers.contains_key(&id) {
            return self.handle_server_message(now, id, packet, path);
        }
        let Some(link) = self.peers.get_mut(&id).and_then(|peer| peer.link.as_mut()) else { return };
        if !link.messages.take(now.time, MESSAGE_RATE) {
            return self.counters.drop_control_rate.increment();
        }
        let message = match ControlPacket::parse(packet) {
            Ok(packet) => packet.message,
            // A newer peer may say more than this version understands.
            Err(ControlError::UnknownType(_)) => return,
            Err(error) => {
                tracing::debug!(peer = %id.short(), conn = self.conn(id), %error, "control message not understood");
                return self.counters.drop_control_invalid.increment();
            }
        };
        match message {
            ControlMessage::Hello(hello) => self.handle_hello(now, id, hello),
            ControlMessage::HelloAck { consent, .. } => {
                let link = self.peers.get_mut(&id).and_then(|peer| peer.link.as_mut());
                if !link.is_some_and(|link| link.hellos_received.take(now.time, HELLO_RATE)) {
                    return self.counters.drop_control_rate.increment();
                }
                if let Some(link) = self.peers.get_mut(&id).and_then(|peer| peer.link.as_mut()) {
                    link.hello_acknowledged = true;
                    link.hellos = 0;
                    self.timers.set(TimerKind::Hello(id), None);
                }
                self.handle_consent(now, id, consent);
            }
            ControlMessage::Ping { token } => {
                // Back the way it came: that is the path it asks about.
                self.send_control_to(now, id, &ControlMessage::Pong { token }, path);
            }
            ControlMessage::Pong { token } => {
                let route = self.route_of(path);
                self.pong_received(now, id, token, route);
            }
            ControlMessage::Path(PathMessage::Probe { token, length }) => {
                let reply = PathMessage::ProbeReply { token, observed: path.endpoint, received: length };
                self.send_control_to(now, id, &ControlMessage::Path(reply), path);
            }
            ControlMessage::Path(PathMessage::ProbeReply { token, observed, received }) => {
                self.probe_answered(now, id, (token, received), observed, path);
            }
            ControlMessage::Path(PathMessage::Candidates { sequence, candidates, mapping }) => {
                self.candidates_received(now, id, sequence, &candidates, mapping);
            }
            ControlMessage::Clock { unix_ms } => {
                if let Some(link) = self.link_mut(id) {
                    link.clock = Some(ToldClock::new(now, unix_ms));
                }
            }
            // One that was overtaken by a new session ends nothing.
            ControlMessage::Goodbye { reason } if newest => self.handle_goodbye(now, id, reason),
            ControlMessage::Goodbye { .. } => {}
            ControlMessage::Rendezvous(RendezvousMessage::Introduce { recipient, sealed }) => {
                self.pass_on_introduction(now, id, recipient, sealed);
            }
            ControlMessage::Rendezvous(RendezvousMessage::Introduction { sealed, observed }) => {
                let allowed = self.link_mut(id).is_some_and(|link| link.hellos_received.take(now.time, HELLO_RATE));
                self.introduction_passed(now, allowed, observed, path.endpoint, &sealed);
            }
            ControlMessage::Rendezvous(_) => self.counters.drop_control_invalid.increment(),
        }
    }

    fn handle_hello(&mut self, now: Now, id: AgentId, hello: Hello) {
        if hello.record.id() != id {
            return self.counters.drop_control_invalid.increment();
        }
        let link = self.peers.get_mut(&id).and_then(|peer| peer.link.as_mut());
        if !link.is_some_and(|link| link.hellos_received.take(now.time, HELLO_RATE)) {
            return self.counters.drop_control_rate.increment();
        }
        let record_sequence = hello.record.record().sequence;
        self.prove_key(id, hello.record.record().tunnel_key);
        self.learn_record(now, hello.record, RecordSource::Session);
        if let (Some(own), Some(peer)) = (hello.alias_self, hello.alias_peer) {
            self.learn_aliases(now, id, TheirAliases { own, peer });
        }
        self.handle_consent(now, id, hello.consent);
        let consent = self.consents(now, id);
        self.send_control(now, id, &ControlMessage::HelloAck { record_sequence, consent });
    }

    /// It said hello under its key, from its own address: the key is its own.
    pub(super) fn prove_key(&mut self, id: AgentId, key: TunnelPublic) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let used = peer.link.as_ref().is_some_and(|link| link.key == key);
        if used && peer.proved_key != Some(key) {
            let before = peer.proved_key.replace(key);
            self.key_proved(id, before, key);
            self.store(id);
        }
    }

    fn learn_aliases(&mut self, now: Now, id: AgentId, theirs: TheirAliases) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        if peer.their_aliases != Some(theirs) {
            peer.their_aliases = Some(theirs);
            self.trust_changed(now, id);
        }
    }

    fn handle_consent(&mut self, now: Now, id: AgentId, consent: bool) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        if peer.relation.consent_received(now.unix_s(), consent) {
            tracing::info!(peer = %id.short(), consent, "the peer's consent changed");
            if !consent {
                self.counters.trust_withdrawn.increment();
            }
            self.trust_changed(now, id);
        }
    }

    fn handle_goodbye(&mut self, now: Now, id: AgentId, reason: GoodbyeReason) {
        tracing::info!(peer = %id.short(), conn = self.conn(id), ?reason, "goodbye");
        if reason == GoodbyeReason::ConsentWithdrawn {
            self.handle_consent(now, id, false);
        }
        // Its sessions are worth nothing any more. A fresh tunnel takes the peer's next handshake.
        let their_keys_hold = self.peers.get(&id).and_then(|peer| peer.link.as_ref()).is_some();
        if their_keys_hold {
            self.relink(now, id);
        }
    }

    /// Replaces the tunnel by one without a session, keeping what was measured and where the peer was.
    fn relink(&mut self, now: Now, id: AgentId) {
        self.unlink(id);
        self.trust_changed(now, id);
        if let Some(link) = self.peers.get_mut(&id).and_then(|peer| peer.link.as_mut()) {
            link.stopped = true;
        }
    }

    /// Whether this side agrees to exchange packets with the peer now.
    fn consents(&self, now: Now, id: AgentId) -> bool {
        self.peers.get(&id).is_some_and(|peer| peer.relation.admits_session(now.unix_s()))
    }

    /// Tells the peer who this agent is and what it agreed to.
    pub(super) fn send_hello(&mut self, now: Now, id: AgentId) {
        if let Some(link) = self.peers.get_mut(&id).and_then(|peer| peer.link.as_mut()) {
            link.hellos = 0;
            link.hello_acknowledged = false;
            self.hello_timer(now, id);
        }
    }

    pub(super) fn hello_timer(&mut self, now: Now, id: AgentId) {
        self.check_record(now);
        let consent = self.consents(now, id);
        let own = self.ipv4();
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let alias = peer.alias;
        let Some(link) = &mut peer.link else { return };
        if link.hello_acknowledged || link.hellos >= MAX_HELLOS {
            return;
        }
        let again = now.time + backoff(link.hellos, FIRST_RESEND, LONGEST_RESEND);
        link.hellos += 1;
        let hello = Hello {
            record: self.record.clone(),
            consent,
            alias_self: own.filter(|_| alias.is_some()),
            alias_peer: alias,
            versions: VERSIONS,
        };
        if self.send_control(now, id, &ControlMessage::Hello(hello)) {
            self.send_control(now, id, &ControlMessage::Clock { unix_ms: now.unix_ms });
            self.timers.set(TimerKind::Hello(id), Some(again));
        }
    }

    /// Ends the session with a peer, politely.
    pub(super) fn send_goodbye(&mut self, now: Now, id: AgentId, reason: GoodbyeReason) {
        self.send_control(now, id, &ControlMessage::Goodbye { reason });
    }

    /// Sends a control message inside the session; false when there is none.
    pub(super) fn send_control(&mut self, now: Now, id: AgentId, message: &ControlMessage) -> bool {
        let Some(peer) = self.peers.get(&id) else { return false };
        let packet = message.emit(self.ipv6, peer.ipv6);
        self.send_sealed(now, id, &packet)
    }
}
