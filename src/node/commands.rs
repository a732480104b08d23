//! What users ask for.

use std::time::Duration;

use super::limits::MAX_PINGS;
use super::peer::{Asking, RecordSource};
use super::report;
use super::resolve::{Among, is_self};
use super::{Event, Node, Output, TimerKind};
use crate::api::{self, Error, ErrorCode};
use crate::identity::{AgentId, Ticket};
use crate::path::Route;
use crate::policy::PortSpec;
use crate::time::{Now, Time};
use crate::trust::{Grant, Ours};
use crate::wire::control::{ControlMessage, GoodbyeReason};
use crate::wire::introduction::{MAX_PORTS_LEN, MAX_REASON_CHARS, is_valid_reason};

/// A request of a user. PEER texts are resolved here.
#[derive(Debug)]
pub enum Command {
    /// Ask for trust, and give it.
    TrustRequest(api::TrustRequestBody),
    /// Say yes to a request.
    TrustApprove(String),
    /// Say no to a request.
    TrustReject(String),
    /// Take a yes back.
    TrustRevoke(String),
    /// Measure a round trip; answered by [`Event::Ping`].
    Ping {
        /// Chosen by the caller, unique among those unanswered.
        token: u64,
        /// PEER.
        peer: String,
        /// When to give up.
        timeout: Duration,
    },
    /// Find out how this host looks from outside; answered by [`Event::Netcheck`] within five seconds.
    Netcheck {
        /// Chosen by the caller, unique among those unanswered.
        token: u64,
    },
}

/// The answer to a [`Command`].
#[derive(Debug)]
pub enum Reply {
    /// The relation after the change.
    Trust(Box<api::TrustEntry>),
    /// The answer will be an event.
    Later,
}

/// An echo that waits for its answer.
#[derive(Debug)]
pub(super) struct PendingPing {
    peer: AgentId,
    /// What the peer repeats; unlike the caller's number it cannot be guessed.
    nonce: u64,
    sent: Option<Time>,
}

impl Node {
    /// Carries out a user's request. Drain the outputs afterwards.
    ///
    /// # Errors
    /// For people and programs; nothing has changed then.
    pub fn command(&mut self, now: Now, command: Command) -> Result<Reply, Error> {
        match command {
            Command::TrustRequest(body) => self.trust_request(now, body),
            Command::TrustApprove(peer) => self.trust_approve(now, &peer),
            Command::TrustReject(peer) => self.trust_reject(now, &peer),
            Command::TrustRevoke(peer) => self.trust_revoke(now, &peer),
            Command::Ping { token, peer, timeout } => self.ping(now, token, &peer, timeout),
            Command::Netcheck { token } => self.netcheck(now, token),
        }
    }

    fn trust_request(&mut self, now: Now, body: api::TrustRequestBody) -> Result<Reply, Error> {
        let grant = check_request(&body)?;
        let id = match Self::parse_ticket(body.peer.trim()) {
            Some(ticket) => self.learn_ticket(now, &ticket?)?,
            None => self.resolve(&body.peer, Among::All)?,
        };
        let Some(peer) = self.peers.get_mut(&id) else { return Err(internal()) };
        if peer.record.is_expired(now.unix_s()) && !peer.trusted {
            return Err(expired());
        }
        peer.relation.request(now.unix_s(), grant);
        let was_trusted = peer.trusted;
        self.counters.trust_requested.increment();
        peer.asking = Asking { reason: body.reason.unwrap_or_default(), ..Asking::default() };
        self.trust_changed(now, id);
        // The other side had said yes before: it learns of this one's at once.
        if !was_trusted && self.peers.get(&id).is_some_and(|peer| peer.trusted) {
            self.start_handshake(now, id);
        }
        self.trust_reply(now, id)
    }

    /// Takes in a ticket's record and addresses.
    fn learn_ticket(&mut self, now: Now, ticket: &Ticket) -> Result<AgentId, Error> {
        let id = ticket.record().id();
        if id == self.id {
            return Err(is_self());
        }
        let known = self.peers.get(&id).map_or(ticket.record(), |peer| &peer.record);
        if ticket.record().is_expired(now.unix_s()) && known.is_expired(now.unix_s()) {
            return Err(expired());
        }
        if !self.learn_record(now, ticket.record().clone(), RecordSource::Ticket) {
            return Err(Error::new(
                ErrorCode::LimitReached,
                format!("this agent knows {} agents, and no more fit", super::limits::MAX_PEERS),
                "revoke or reject agents that are no longer needed",
            ));
        }
        self.note_candidates(id, ticket.addresses().iter().copied());
        Ok(id)
    }

    fn trust_approve(&mut self, now: Now, text: &str) -> Result<Reply, Error> {
        let id = self.resolve(text, Among::All)?;
        let Some(peer) = self.peers.get_mut(&id) else { return Err(internal()) };
        if !peer.relation.theirs.is_yes() {
            return Err(no_request(id));
        }
        if peer.relation.ours != Ours::Granted || !peer.trusted {
            peer.relation.approve(now.unix_s());
            self.counters.trust_approved.increment();
            tracing::info!(peer = %id.short(), "trust approved");
            self.trust_changed(now, id);
            self.start_handshake(now, id);
        }
        self.trust_reply(now, id)
    }

    fn trust_reject(&mut self, now: Now, text: &str) -> Result<Reply, Error> {
        let id = self.resolve(text, Among::All)?;
        let Some(peer) = self.peers.get_mut(&id) else { return Err(internal()) };
        match peer.relation.ours {
            Ours::Undecided if peer.relation.theirs.is_yes() => {}
            Ours::Rejected => return self.trust_reply(now, id),
            Ours::Granted => {
                return Err(Error::new(
                    ErrorCode::NoRequest,
                    "this agent already agreed to that one",
                    format!("to take it back: `agentnet trust revoke {}`", id.short()),
                ));
            }
            _ => return Err(no_request(id)),
        }
        peer.relation.reject(now.unix_s());
        self.counters.trust_rejected.increment();
        tracing::info!(peer = %id.short(), "trust rejected");
        self.trust_changed(now, id);
        self.bound_refused();
        self.trust_reply(now, id)
    }

    fn trust_revoke(&mut self, now: Now, text: &str) -> Result<Reply, Error> {
        let id = self.resolve(text, Among::Related)?;
        let Some(peer) = self.peers.get(&id) else { return Err(internal()) };
        match peer.relation.ours {
            Ours::Granted => {}
            Ours::Revoked => return self.trust_reply(now, id),
            Ours::Undecided | Ours::Rejected => {
                return Err(Error::new(
                    ErrorCode::NoRequest,
                    "this agent never agreed to that one, so there is nothing to revoke",
                    format!("to refuse its request: `agentnet trust reject {}`", id.short()),
                ));
            }
        }
        // The last thing it hears. Nothing of it passes from here on.
        self.send_goodbye(now, id, GoodbyeReason::ConsentWithdrawn);
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.relation.revoke(now.unix_s());
        }
        self.counters.trust_revoked.increment();
        tracing::info!(peer = %id.short(), "trust revoked");
        self.trust_changed(now, id);
        self.bound_refused();
        self.trust_reply(now, id)
    }

    fn trust_reply(&self, now: Now, id: AgentId) -> Result<Reply, Error> {
        let peer = self.peers.get(&id).ok_or_else(internal)?;
        Ok(Reply::Trust(Box::new(report::trust_entry(now, peer))))
    }

    fn ping(&mut self, now: Now, token: u64, text: &str, timeout: Duration) -> Result<Reply, Error> {
        let id = self.resolve(text, Among::Related)?;
        let Some(peer) = self.peers.get(&id) else { return Err(internal()) };
        if !peer.trusted {
            return Err(Error::new(
                ErrorCode::NotTrusted,
                format!("trust with {} stands at \"{}\"", id.short(), peer.relation.state(now.unix_s()).as_str()),
                format!("`agentnet why {}` says what is missing", id.short()),
            ));
        }
        if self.pings.len() >= MAX_PINGS {
            return Err(Error::new(
                ErrorCode::LimitReached,
                "too many pings wait for their answers",
                "try again later",
            ));
        }
        let nonce = self.rng.next_u64();
        self.pings.insert(token, PendingPing { peer: id, nonce, sent: None });
        self.timers.set(TimerKind::Ping(token), Some(now.time + timeout));
        self.send_pings(now, id);
        Ok(Reply::Later)
    }

    /// Sends the echoes that wait for a session, or begins one for them.
    pub(super) fn send_pings(&mut self, now: Now, id: AgentId) {
        let waiting: Vec<_> = self
            .pings
            .iter()
            .filter(|(_, ping)| ping.peer == id && ping.sent.is_none())
            .map(|(token, ping)| (*token, ping.nonce))
            .collect();
        for (token, nonce) in waiting {
            if !self.send_control(now, id, &ControlMessage::Ping { token: nonce }) {
                self.start_handshake(now, id);
                return;
            }
            if let Some(ping) = self.pings.get_mut(&token) {
                ping.sent = Some(now.time);
            }
        }
    }

    /// The answer to an echo came on this route.
    pub(super) fn pong_received(&mut self, now: Now, id: AgentId, nonce: u64, route: Option<Route>) {
        let found = self.pings.iter().find(|(_, ping)| ping.peer == id && ping.nonce == nonce);
        let Some((token, sent)) = found.map(|(token, ping)| (*token, ping.sent)) else { return };
        self.pings.remove(&token);
        self.timers.set(TimerKind::Ping(token), None);
        let rtt_ms = sent.map_or(0.0, |sent| now.time.since(sent).as_secs_f64() * 1000.0);
        let mtu = self.mtu;
        let Some(peer) = self.peers.get_mut(&id) else { return };
        if let Some(link) = &mut peer.link {
            link.rtt_ms = Some(rtt_ms);
        }
        let mut path = report::path_status(now, peer, mtu);
        if let Some(route) = route {
            path.set_route(route);
        }
        let result = Ok(api::PingReply { id, name: peer.name(), rtt_ms, path });
        self.outputs.push_back(Output::Event(Event::Ping { token, result }));
    }

    pub(super) fn ping_expired(&mut self, token: u64) {
        let Some(ping) = self.pings.remove(&token) else { return };
        let error = Error::new(
            ErrorCode::TimedOut,
            format!("no answer from {}", ping.peer.short()),
            format!("`agentnet why {}` says where it stops", ping.peer.short()),
        );
        self.outputs.push_back(Output::Event(Event::Ping { token, result: Err(error) }));
    }
}

fn check_request(body: &api::TrustRequestBody) -> Result<Grant, Error> {
    let usage = |message: String, hint: &str| Error::new(ErrorCode::Usage, message, hint);
    let reason = body.reason.as_deref().unwrap_or_default();
    if !is_valid_reason(reason) {
        return Err(usage(format!("a reason has at most {MAX_REASON_CHARS} characters on one line"), "shorten it"));
    }
    let ports = match &body.ports {
        None => None,
        Some(text) => {
            let spec =
                text.parse::<PortSpec>().map_err(|error| usage(error.to_string(), "for example: tcp/22,udp/53"))?;
            Some(spec.to_string())
        }
    };
    if ports.as_ref().is_some_and(|ports| ports.len() > MAX_PORTS_LEN) {
        return Err(usage("too many ports for one request".into(), "use ranges: tcp/8000-8100"));
    }
    if body.ttl_s == Some(0) {
        return Err(usage("trust for no time is none".into(), "for example: --ttl 12h"));
    }
    Ok(Grant { ports, ttl_s: body.ttl_s })
}

fn no_request(id: AgentId) -> Error {
    Error::new(
        ErrorCode::NoRequest,
        format!("{} has not asked for trust", id.short()),
        "`agentnet trust pending` lists requests; to ask it: `agentnet trust request TICKET`",
    )
}

fn expired() -> Error {
    Error::new(
        ErrorCode::RecordExpired,
        "what is known of that agent has expired",
        "get a new ticket from it: `agentnet ticket` on its host; and check the clocks of both",
    )
}

fn internal() -> Error {
    Error::new(ErrorCode::Internal, "a peer vanished while it was being changed", "please report this")
}
