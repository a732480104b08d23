//! How much the control plane holds, for metrics and for tests that nothing grows without end.

use super::Node;

/// How many entries there are in each table of a [`Node`]. All but `paths` have a limit in [`super::limits`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NodeTableSizes {
    /// Agents there is a relation with.
    pub peers: usize,
    /// Peers with a tunnel.
    pub links: usize,
    /// Rendezvous servers in use, this agent's own and borrowed ones.
    pub servers: usize,
    /// Tunnel indices given out, to peers and servers.
    pub indices: usize,
    /// Timers set.
    pub timers: usize,
    /// Transport addresses kept, of all peers.
    pub addresses: usize,
    /// Paths kept, to all peers; at most 32 to one.
    pub paths: usize,
    /// Paths to the peer that has the most.
    pub most_paths: usize,
    /// Channels through relays, to all peers.
    pub relays: usize,
    /// Packets that wait for a session.
    pub waiting_packets: usize,
    /// Echo requests and checks of the network that wait for their answers.
    pub callers: usize,
    /// Source networks counted for rate limits.
    pub networks: usize,
}

impl Node {
    /// How many entries there are in each table. Takes time in proportion to the number of peers.
    #[must_use]
    pub fn table_sizes(&self) -> NodeTableSizes {
        let limiters = [&self.initiations, &self.known_initiations, &self.introductions];
        let mut sizes = NodeTableSizes {
            peers: self.peers.len(),
            servers: self.servers.len(),
            indices: self.indices.in_use(),
            timers: self.timers.len(),
            callers: self.pings.len() + self.netchecks.len(),
            networks: limiters.iter().map(|limiter| limiter.networks()).sum(),
            ..NodeTableSizes::default()
        };
        for peer in self.peers.values() {
            sizes.addresses += peer.addresses.len();
            let Some(link) = &peer.link else { continue };
            let paths = link.paths.report().count();
            sizes.links += 1;
            sizes.paths += paths;
            sizes.most_paths = sizes.most_paths.max(paths);
            sizes.relays += link.relays.len();
            sizes.waiting_packets += link.queue.len();
        }
        sizes
    }
}
