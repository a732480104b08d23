//! How much a server holds, for metrics and for tests that nothing grows without end.

use super::Server;

/// How many entries there are in each table of a [`Server`]. Their limits are in [`super::Limits`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ServerTableSizes {
    /// Sessions, registered or not.
    pub clients: usize,
    /// Records, of clients and past clients.
    pub records: usize,
    /// Introductions that wait for their recipient.
    pub introductions: usize,
    /// Relay channels.
    pub channels: usize,
    /// Source networks counted for rate limits.
    pub networks: usize,
}

impl Server {
    /// How many entries there are in each table.
    #[must_use]
    pub fn table_sizes(&self) -> ServerTableSizes {
        let limiters =
            [&self.stun_requests, &self.known_stun_requests, &self.records, &self.initiations, &self.known_initiations];
        ServerTableSizes {
            clients: self.clients.len(),
            records: self.directory.len(),
            introductions: self.introductions.len(),
            channels: self.channels.len(),
            networks: limiters.iter().map(|limiter| limiter.networks()).sum(),
        }
    }
}
