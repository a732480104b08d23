//! How long packets to a peer may be: what the search for path MTUs wants is carried out here.

use std::net::SocketAddr;

use super::Node;
use super::limits::PROBE_RATE;
use super::peer::Link;
use crate::forwarding::PeerPath;
use crate::identity::AgentId;
use crate::time::{Now, Time};
use crate::wire::WIREGUARD_OVERHEAD;
use crate::wire::control::{ControlMessage, PathMessage};

impl Node {
    /// MTU of the interface, as lengths of packets are counted.
    pub(super) fn interface_mtu(&self) -> u16 {
        u16::try_from(self.mtu).unwrap_or(u16::MAX)
    }

    /// Does what is due for the path MTU to a peer, and lets packet threads know what came of it.
    pub(super) fn carry_out_mtu(&mut self, now: Now, id: AgentId) {
        let Some(link) = self.peers.get_mut(&id).and_then(|peer| peer.link.as_mut()) else { return };
        if link.paths.is_wanted(now.time) {
            link.mtus.handle_timeout(now.time, link.paths.primary_rtt(), &mut *self.rng);
        }
        while let Some(probe) = self.link_mut(id).and_then(|link| link.mtus.poll_output()) {
            if !self.probe_budget.take(now.time, PROBE_RATE) {
                self.counters.drop_out_probe.increment();
                if let Some(link) = self.link_mut(id) {
                    link.mtus.probe_not_sent(now.time, probe.token);
                }
                continue;
            }
            let message = PathMessage::Probe { token: probe.token, length: probe.length };
            self.send_control_on(now, id, &ControlMessage::Path(message), probe.route);
        }
        self.apply_mtu(id);
    }

    /// This host refused datagrams of this length.
    pub(super) fn too_big_here(&mut self, now: Now, endpoint: SocketAddr, len: usize) {
        for id in self.peers.keys().copied().collect::<Vec<_>>() {
            let Some(path) = self.peers.get(&id).and_then(|peer| peer.link.as_ref()).and_then(Link::path_in_use) else {
                continue;
            };
            let packet = len.saturating_sub(path.prefix_len() + WIREGUARD_OVERHEAD);
            let (Some(route), Ok(length)) = (self.route_of(&path), u16::try_from(packet)) else { continue };
            if path.endpoint == endpoint
                && let Some(link) = self.link_mut(id)
            {
                link.mtus.refused_here(now.time, route, length);
                self.carry_out_paths(now, id);
            }
        }
    }

    fn apply_mtu(&self, id: AgentId) {
        let Some(link) = self.peers.get(&id).and_then(|peer| peer.link.as_ref()) else { return };
        if let Some(route) = link.path_in_use().and_then(|path| self.route_of(&path)) {
            link.shared.set_path_mtu(link.mtus.of(route));
        }
    }
}

impl Link {
    /// When something is due for the path MTU; `None` while nothing passes.
    pub(super) fn mtu_due(&self, now: Time) -> Option<Time> {
        self.mtus.poll_timeout().filter(|_| self.paths.is_wanted(now))
    }

    fn path_in_use(&self) -> Option<PeerPath> {
        self.shared.path.load().as_ref().map(|path| **path)
    }
}

/// What `status` says of the path.
pub(super) fn mtu_in_use(link: &Link, interface: u32) -> u32 {
    u32::from(link.shared.path_mtu()).min(interface)
}
