//! Paths to peers: what the path machine of each one wants is carried out here.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::limits::{DOUBT_RATE, PEER_PROBE_RATE, PROBE_RATE};
use super::peer::Link;
use super::{Node, TimerKind};
use crate::forwarding::PeerPath;
use crate::identity::AgentId;
use crate::path::{Candidate, CandidateKind, Output as PathOutput, Route};
use crate::time::{Now, Time};
use crate::wire::control::{ControlMessage, MIN_PROBE_LEN, PathMessage};

/// How often traffic is looked at while there is any: what is sent and not answered must be seen well within a second.
const TRAFFIC_TICK: Duration = Duration::from_millis(100);
/// After so long without any it is looked at no more: packet threads tell of the next packet. Longer than it takes to doubt
/// a path whose round trip is half a second.
const TRAFFIC_OVER: Duration = Duration::from_secs(2);
/// Nothing passed for this long: this agent may have moved meanwhile, and the servers of the peer may have been let go.
const PAUSE: Duration = Duration::from_secs(30);

impl Node {
    /// An authenticated packet came another way than the primary path.
    pub(super) fn heard_elsewhere(&mut self, now: Now, id: AgentId, path: &PeerPath, data: bool) {
        let Some(route) = self.authenticated_on(now, id, path) else { return };
        let Some(link) = self.link_mut(id) else { return };
        match data {
            true => link.paths.peer_moved(now.time, route),
            false => link.paths.packet_received(now.time, route),
        }
        self.carry_out_paths(now, id);
    }

    /// A handshake message of the peer arrived: the path works.
    pub(super) fn handshake_heard(&mut self, now: Now, id: AgentId, path: &PeerPath) {
        let Some(route) = self.authenticated_on(now, id, path) else { return };
        let Some(link) = self.link_mut(id) else { return };
        link.paths.handshake_heard(now.time, route);
        self.carry_out_paths(now, id);
    }

    /// Everything that may work is tried: a session was established, or the network changed.
    pub(super) fn try_all_paths(&mut self, now: Now, id: AgentId) {
        let relays = self.relay_routes(id);
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let Some(link) = &mut peer.link else { return };
        let relayed = |route: Route| Candidate { kind: CandidateKind::Relayed, route };
        let host = |address: &SocketAddr| Candidate { kind: CandidateKind::Host, route: Route::Direct(*address) };
        link.paths.network_changed(now.time);
        link.paths.add_candidates(now.time, relays.into_iter().map(relayed));
        link.paths.add_candidates(now.time, peer.addresses.iter().map(host));
        self.carry_out_paths(now, id);
    }

    /// This host's addresses or routes changed.
    pub(super) fn host_moved(&mut self, now: Now, id: AgentId) {
        if let Some(link) = self.link_mut(id) {
            link.paths.host_moved(now.time);
            self.carry_out_paths(now, id);
        }
    }

    pub(super) fn path_timer(&mut self, now: Now, id: AgentId) {
        let Some(link) = self.link_mut(id) else { return };
        if link.look_at_traffic(now) {
            self.woken(now, id);
        }
        let Some(link) = self.peers.get_mut(&id).and_then(|peer| peer.link.as_mut()) else { return };
        link.paths.handle_timeout(now.time, &mut *self.rng);
        self.carry_out_paths(now, id);
    }

    /// There is traffic again after a pause, in which this agent may have moved.
    fn woken(&mut self, now: Now, id: AgentId) {
        self.borrow_servers_of(now, id);
        self.tell_candidates(now, id);
    }

    /// An answer to a probe, which came to the peer from the address `observed`.
    pub(super) fn probe_answered(
        &mut self,
        now: Now,
        id: AgentId,
        (token, length): (u64, u16),
        observed: SocketAddr,
        path: &PeerPath,
    ) {
        let Some(route) = self.authenticated_on(now, id, path) else { return };
        let is_own = self.local_addresses.contains(&observed.ip()) && observed.port() == self.port;
        let is_local = is_own && path.relay.is_none() && is_private(path.endpoint.ip());
        let counters = Arc::clone(&self.counters);
        let Some(link) = self.link_mut(id) else { return };
        if let Some(round_trip) = link.paths.probe_answered(now.time, token, route, is_local) {
            counters.round_trips.observe(route.is_relayed(), round_trip);
        }
        link.mtus.probe_answered(now.time, token, length);
        self.carry_out_paths(now, id);
    }

    pub(super) fn carry_out_paths(&mut self, now: Now, id: AgentId) {
        loop {
            let link = self.peers.get_mut(&id).and_then(|peer| peer.link.as_mut());
            match link.and_then(|link| link.paths.poll_output()) {
                None => break,
                Some(PathOutput::Probe { route, token, is_vital }) => self.send_probe(now, id, route, token, is_vital),
                Some(PathOutput::Primary(route)) => self.path_chosen(now, id, route),
                Some(PathOutput::Rest(route)) => self.rest_on(now, id, route),
                Some(PathOutput::Doubted) => {
                    if self.doubts.take(now.time, DOUBT_RATE) {
                        self.refresh_servers(now);
                    }
                    self.renew_channels(now, id);
                }
                Some(PathOutput::Lost) => {
                    tracing::debug!(peer = %id.short(), conn = self.conn(id), "no path answers");
                }
            }
        }
        self.carry_out_mtu(now, id);
        self.arm_path_timer(now, id);
        self.consider_search(now, id);
    }

    fn send_probe(&mut self, now: Now, id: AgentId, route: Route, token: u64, is_vital: bool) {
        let Some(link) = self.peers.get_mut(&id).and_then(|peer| peer.link.as_mut()) else { return };
        // Where a peer is known to answer, others must not be able to keep this agent from asking.
        let allowed =
            is_vital || link.probes.take(now.time, PEER_PROBE_RATE) && self.probe_budget.take(now.time, PROBE_RATE);
        if !allowed {
            return self.counters.drop_out_probe.increment();
        }
        let probe = PathMessage::Probe { token, length: MIN_PROBE_LEN };
        self.counters.probes.increment();
        self.send_control_on(now, id, &ControlMessage::Path(probe), route);
    }

    /// Seals a control message and sends it on this route, if there is a session.
    pub(super) fn send_control_on(&mut self, now: Now, id: AgentId, message: &ControlMessage, route: Route) {
        let Some(peer) = self.peers.get(&id) else { return };
        let packet = message.emit(self.ipv6, peer.ipv6);
        if let Some(datagram) = self.seal_for(now, id, &packet) {
            self.transmit_on_route(now, id, route, datagram);
        }
    }

    fn path_chosen(&mut self, now: Now, id: AgentId, route: Route) {
        let Some(path) = self.path_of(now, id, route) else { return };
        let news = !route.is_relayed() && self.note_address(id, path.endpoint);
        let Some(link) = self.link_mut(id) else { return };
        let conn = link.conn;
        tracing::debug!(peer = %id.short(), conn, endpoint = %path.endpoint, relayed = route.is_relayed(), "path chosen");
        link.shared.path.store(Some(Arc::new(path)));
        link.mtus.primary_chosen(now.time, route);
        link.path_since = Some(now.time);
        if !route.is_relayed()
            && let Some(since) = link.connecting_since.take()
        {
            link.time_to_direct_ms = Some(now.time.since(since).as_secs_f64() * 1000.0);
        }
        if news {
            self.store_hint(now, id);
        }
    }

    /// Nothing passes for now. The next packet takes the relay, which is there whatever a NAT forgets meanwhile.
    fn rest_on(&mut self, now: Now, id: AgentId, route: Route) {
        let Some(path) = self.path_of(now, id, route) else { return };
        if let Some(link) = self.link_mut(id) {
            link.shared.path.store(Some(Arc::new(path)));
        }
    }

    fn arm_path_timer(&mut self, now: Now, id: AgentId) {
        let link = self.peers.get(&id).and_then(|peer| peer.link.as_ref());
        let at = link.and_then(|link| {
            let tick = link.is_watched(now.time).then(|| now.time + TRAFFIC_TICK);
            [link.paths.poll_timeout(), link.mtu_due(now.time), tick].into_iter().flatten().min()
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

/// An address inside a site, behind whatever separates that from the world.
fn is_private(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => v4.is_private() || v4.is_link_local() || v4.is_loopback(),
        IpAddr::V6(v6) => v6.is_unique_local() || v6.is_unicast_link_local() || v6.is_loopback(),
    }
}

impl Link {
    /// There is a wish to talk. Without a session it is that of a new connection, which takes the next number of
    /// `connections`: every line of the log that is about it has that.
    pub(super) fn begin_wanting(&mut self, now: Time, connections: &mut u64) {
        if self.wanted_since.is_none() {
            self.wanted_since = Some(now);
            self.begin_connection(now, connections);
        }
        if self.paths.primary().is_none_or(Route::is_relayed) {
            self.connecting_since.get_or_insert(now);
        }
    }

    /// Packet threads tell that there is traffic: it is looked at from now on.
    pub(super) fn begin_watching(&mut self, now: Time) {
        self.watched_since = Some(now);
    }

    /// Whether traffic is looked at.
    fn is_watched(&self, now: Time) -> bool {
        let watched = self.watched_since.is_some() || self.looks_again;
        watched && self.shared.tunnel.lock().is_active(now) && self.shared.path.load().is_some()
    }

    /// The connection that is about to be is a new one, unless there is a session: that goes on with other keys.
    pub(super) fn begin_connection(&mut self, now: Time, connections: &mut u64) {
        if !self.shared.tunnel.lock().has_session(now) {
            *connections += 1;
            self.conn = *connections;
        }
    }

    /// Where it is, as seen from here.
    pub(super) fn direct_endpoint(&self) -> Option<SocketAddr> {
        self.paths.primary()?.address()
    }

    /// Tells the path machine what moved since the last look. Returns whether that is the first after a pause.
    fn look_at_traffic(&mut self, now: Now) -> bool {
        let counters = &self.shared.counters;
        let moved = (counters.tx_bytes.load(Ordering::Relaxed), counters.rx_bytes.load(Ordering::Relaxed));
        let (sent, received) = (moved.0 != self.moved.0, moved.1 != self.moved.1);
        self.moved = moved;
        if sent || received {
            self.watched_since = Some(now.time);
        } else if self.watched_since.is_some_and(|at| now.time.since(at) >= TRAFFIC_OVER) {
            // From here on the next packet is told of. One more look is for what passed a moment ago.
            self.shared.clear_active();
            self.watched_since = None;
            self.looks_again = true;
        } else {
            self.looks_again = false;
        }
        self.paths.traffic(now.time, sent, received);
        self.mtus.traffic(now.time, self.shared.take_long_sent(), received);
        if !sent && !received {
            return false;
        }
        let before = self.last_traffic.replace(now.time);
        before.is_none_or(|at| now.time.since(at) >= PAUSE)
    }
}
