//! Paths to peers: what the path machine of each one wants is carried out here.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::peer::Link;
use super::{Node, TimerKind};
use crate::forwarding::PeerPath;
use crate::identity::AgentId;
use crate::path::{Candidate, CandidateKind, Output as PathOutput, Route};
use crate::time::Now;
use crate::wire::control::ControlMessage;

/// How often traffic is looked at while there is any: what is sent and not answered must be seen well within a second.
const TRAFFIC_TICK: Duration = Duration::from_millis(250);

impl Node {
    /// An authenticated packet came from another address than the primary path's.
    pub(super) fn heard_elsewhere(&mut self, now: Now, id: AgentId, source: SocketAddr, data: bool) {
        let Some(link) = self.peers.get_mut(&id).and_then(|peer| peer.link.as_mut()) else { return };
        match data {
            true => link.paths.peer_moved(now.time, Route::Direct(source)),
            false => link.paths.packet_received(now.time, Route::Direct(source)),
        }
        self.carry_out_paths(now, id);
    }

    /// A handshake message of the peer arrived: the path works.
    pub(super) fn handshake_heard(&mut self, now: Now, id: AgentId, source: SocketAddr) {
        let Some(link) = self.peers.get_mut(&id).and_then(|peer| peer.link.as_mut()) else { return };
        link.paths.handshake_heard(now.time, Route::Direct(source));
        self.carry_out_paths(now, id);
    }

    /// Everything that may work is tried: a session was established, or the network changed.
    pub(super) fn try_all_paths(&mut self, now: Now, id: AgentId) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let Some(link) = &mut peer.link else { return };
        let host = |address: &SocketAddr| Candidate { kind: CandidateKind::Host, route: Route::Direct(*address) };
        link.paths.network_changed(now.time);
        link.paths.add_candidates(now.time, peer.addresses.iter().map(host));
        self.carry_out_paths(now, id);
    }

    pub(super) fn path_timer(&mut self, now: Now, id: AgentId) {
        let Some(link) = self.peers.get_mut(&id).and_then(|peer| peer.link.as_mut()) else { return };
        link.look_at_traffic(now);
        link.paths.handle_timeout(now.time, &mut *self.rng);
        self.carry_out_paths(now, id);
    }

    /// An answer to a probe, if it is one.
    pub(super) fn probe_answered(&mut self, now: Now, id: AgentId, token: u64, source: SocketAddr) {
        let Some(link) = self.peers.get_mut(&id).and_then(|peer| peer.link.as_mut()) else { return };
        link.paths.probe_answered(now.time, token, Route::Direct(source));
        self.carry_out_paths(now, id);
    }

    fn carry_out_paths(&mut self, now: Now, id: AgentId) {
        loop {
            let link = self.peers.get_mut(&id).and_then(|peer| peer.link.as_mut());
            match link.and_then(|link| link.paths.poll_output()) {
                None => break,
                Some(PathOutput::Probe { route: Route::Direct(endpoint), token }) => {
                    self.send_control_to(
                        now,
                        id,
                        &ControlMessage::Ping { token },
                        &PeerPath { endpoint, local_ip: None },
                    );
                }
                Some(PathOutput::Primary(Route::Direct(endpoint))) => self.path_chosen(now, id, endpoint),
                Some(PathOutput::Lost) => tracing::debug!(peer = %id.short(), "no path answers"),
                // There are no relays to choose yet.
                Some(PathOutput::Probe { .. } | PathOutput::Primary(_)) => {}
            }
        }
        self.arm_path_timer(now, id);
    }

    fn path_chosen(&mut self, now: Now, id: AgentId, endpoint: SocketAddr) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let news = peer.note_address(endpoint);
        let Some(link) = &mut peer.link else { return };
        tracing::debug!(peer = %id.short(), %endpoint, "path chosen");
        link.shared.path.store(Some(Arc::new(PeerPath { endpoint, local_ip: None })));
        link.path_since = Some(now.time);
        if news {
            self.store(id);
        }
    }

    fn arm_path_timer(&mut self, now: Now, id: AgentId) {
        let link = self.peers.get(&id).and_then(|peer| peer.link.as_ref());
        let at = link.and_then(|link| {
            let active = link.shared.tunnel.lock().is_active(now.time) && link.shared.path.load().is_some();
            let tick = active.then(|| now.time + TRAFFIC_TICK);
            [link.paths.poll_timeout(), tick].into_iter().flatten().min()
        });
        self.timers.set(TimerKind::Path(id), at);
    }

    /// Seals a control message and sends it on this path; false when there is no session.
    pub(super) fn send_control_to(&mut self, now: Now, id: AgentId, message: &ControlMessage, path: &PeerPath) -> bool {
        let Some(peer) = self.peers.get(&id) else { return false };
        let packet = message.emit(self.ipv6, peer.ipv6);
        self.send_sealed_on(now, id, &packet, path)
    }
}

impl Link {
    /// Tells the path machine what moved since the last look.
    fn look_at_traffic(&mut self, now: Now) {
        let counters = &self.shared.counters;
        let moved = (counters.tx_bytes.load(Ordering::Relaxed), counters.rx_bytes.load(Ordering::Relaxed));
        self.paths.traffic(now.time, moved.0 != self.moved.0, moved.1 != self.moved.1);
        self.moved = moved;
    }
}
