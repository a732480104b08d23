//! Names of rendezvous servers, looked up beside the main loop.

use std::net::SocketAddr;

use tokio::sync::mpsc;

use crate::identity::{AgentId, HostPort};

/// Lookups under way at once; the control plane asks again for what does not fit.
const MAX_LOOKUPS: usize = 16;

/// What a name stands for.
#[derive(Debug)]
pub(super) struct Resolved {
    pub(super) server: AgentId,
    /// Nothing, if it could not be found out.
    pub(super) addresses: Vec<SocketAddr>,
}

/// Looks names up and sends what it finds to the main loop.
pub(super) struct Resolver {
    found: mpsc::Sender<Resolved>,
}

impl Resolver {
    pub(super) fn new() -> (Self, mpsc::Receiver<Resolved>) {
        let (found, receiver) = mpsc::channel(MAX_LOOKUPS);
        (Self { found }, receiver)
    }

    /// Looks up one name, by whatever the host uses.
    pub(super) fn resolve(&self, server: AgentId, host: HostPort) {
        // The place in the queue is the place for the lookup.
        let Ok(place) = self.found.clone().try_reserve_owned() else { return };
        tokio::spawn(async move {
            let addresses = match tokio::net::lookup_host(host.as_str()).await {
                Ok(addresses) => addresses.collect(),
                Err(error) => {
                    tracing::debug!(server = %server.short(), %error, "a rendezvous server's name was not found");
                    Vec::new()
                }
            };
            place.send(Resolved { server, addresses });
        });
    }
}
