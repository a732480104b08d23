//! What is told of servers.

use std::net::SocketAddr;
use std::time::Duration;

use super::Server;
use crate::api::RendezvousStatus;
use crate::identity::{AgentId, AgentRecord, RendezvousRef, SignedRecord};
use crate::node::Node;
use crate::time::Now;
use crate::wire::control::{ControlMessage, GoodbyeReason};

impl Node {
    /// There is a new record to register, if there is a session.
    pub(in crate::node) fn register_anew(&mut self, now: Now, id: AgentId) {
        if self.servers.get(&id).is_some_and(|server| server.endpoint().is_some()) {
            self.register(now, id, false);
            self.server_timer(now, id);
        }
    }

    /// This agent stops, and the server need not wait for it.
    pub(in crate::node) fn leave_server(&mut self, now: Now, id: AgentId) {
        let goodbye = ControlMessage::Goodbye { reason: GoodbyeReason::Shutdown };
        if let Some(datagram) = self.seal_for_server(now, id, &goodbye) {
            self.transmit_to_server(id, &datagram, false);
        }
    }

    /// The servers in use, for `status`.
    #[must_use]
    pub fn rendezvous_statuses(&self) -> Vec<RendezvousStatus> {
        self.servers.values().map(Server::status).collect()
    }

    /// Those of this agent's own servers that have not been there for so long.
    pub(in crate::node) fn lost_servers(&self, now: Now, patience: Duration) -> Vec<String> {
        let is_lost = |server: &&Server| server.lost.is_some_and(|since| now.time.since(since) >= patience);
        let own = self.servers.values().filter(|server| !server.is_borrowed());
        own.filter(is_lost).map(|server| server.reference.address.to_string()).collect()
    }

    /// What this agent's own servers said of themselves.
    pub(in crate::node) fn server_records(&self) -> impl Iterator<Item = &AgentRecord> {
        let own = self.servers.values().filter(|server| !server.is_borrowed());
        own.filter_map(|server| server.record.as_ref()).map(SignedRecord::record)
    }

    /// By how many seconds the clocks of this agent's own servers are ahead of its own.
    pub(in crate::node) fn server_clocks(&self, now: Now) -> impl Iterator<Item = i64> {
        let own = self.servers.values().filter(|server| !server.is_borrowed());
        own.filter_map(move |server| server.link.as_ref()?.clock?.ahead_s(now))
    }

    /// For how many seconds the records have been over by which this agent's own servers answered.
    pub(in crate::node) fn expired_answers(&self, now: Now) -> impl Iterator<Item = u64> {
        let own = self.servers.values().filter(|server| !server.is_borrowed());
        own.filter_map(move |server| Some(now.unix_s().saturating_sub(server.expired_answer?)))
    }
}

impl Server {
    /// How it was named.
    pub(in crate::node) fn reference(&self) -> &RendezvousRef {
        &self.reference
    }

    /// Where it sees this agent.
    pub(in crate::node) fn observed(&self) -> Option<SocketAddr> {
        self.link.as_ref()?.observed
    }

    /// Whether it passes frames on.
    pub(in crate::node) fn relays(&self) -> bool {
        self.link.as_ref().is_some_and(|link| link.registered.is_some() && link.relays)
    }

    fn status(&self) -> RendezvousStatus {
        let link = self.link.as_ref();
        let state = match link {
            Some(link) if link.registered.is_some() && link.asks < 2 => "connected",
            _ if self.tries >= 4 => "failed",
            _ => "connecting",
        };
        RendezvousStatus {
            id: self.id,
            address: self.reference.address.to_string(),
            state: state.to_owned(),
            rtt_ms: link.and_then(|link| link.rtt).map(|rtt| rtt.as_secs_f64() * 1000.0),
        }
    }
}
