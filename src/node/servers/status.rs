//! What is told of servers.

use super::Server;
use crate::api::RendezvousStatus;
use crate::node::Node;

impl Node {
    /// The servers in use, for `status`.
    #[must_use]
    pub fn rendezvous_statuses(&self) -> Vec<RendezvousStatus> {
        self.servers.values().map(Server::status).collect()
    }
}

impl Server {
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
