//! WireGuard handshakes: whom to answer, where to send, when a session stands.

use std::time::Duration;

use super::{Node, TimerKind};
use crate::forwarding::{PeerPath, StrangerDatagram};
use crate::identity::AgentId;
use crate::path::Route;
use crate::time::Now;
use crate::tunnel::{CONTROL_OUTPUT_LEN, Initiation, OpenError, TunnelIndex, claimed_key, message_receiver};
use crate::wire::classify::{DatagramKind, classify};

/// How often what looks like a replay may make this side begin a handshake with the true peer, where that does not answer.
const STALE_ANSWER_INTERVAL: Duration = Duration::from_secs(300);
/// A session that is younger works: what looks like a replay is a copy that was late, or one in fact. Of an older one the
/// peer may know nothing any more. This bounds what somebody brings about who sends a recorded initiation again and again.
const SURELY_WORKS: Duration = Duration::from_secs(10);

impl Node {
    /// A datagram that no session authenticated. Whatever is wrong with it, nobody gets an answer.
    pub(super) fn handle_stranger(&mut self, now: Now, datagram: &StrangerDatagram) {
        match classify(&datagram.data) {
            DatagramKind::WireguardInitiation => self.handle_initiation(now, datagram),
            DatagramKind::WireguardResponse => self.handle_response(now, datagram),
            DatagramKind::WireguardCookie => self.handle_cookie(&datagram.data),
            DatagramKind::Introduction => self.handle_introduction(now, datagram),
            DatagramKind::RecordAnswer => self.handle_record_answer(now, datagram),
            DatagramKind::Stun => self.stun_received(now, datagram),
            _ => self.counters.drop_in_unknown_kind.increment(),
        }
    }

    fn handle_initiation(&mut self, now: Now, datagram: &StrangerDatagram) {
        let Ok(initiation) = Initiation::try_from(datagram.data.as_slice()) else { return };
        let limiter = match self.known_sources.contains(datagram.path.endpoint.ip()) {
            true => &mut self.known_initiations,
            false => &mut self.initiations,
        };
        if !limiter.allow(now.time, datagram.path.endpoint) {
            return self.counters.drop_handshake_rate.increment();
        }
        let Some(claimed) = claimed_key(&self.tunnel_secret, &initiation) else {
            return self.counters.drop_handshake_invalid.increment();
        };
        let Some(id) = self.by_tunnel_key.get(&claimed).copied() else {
            return self.counters.drop_handshake_stranger.increment();
        };
        let Some(link) = self.peers.get(&id).and_then(|peer| peer.link.as_ref()) else { return };
        let mut response = vec![0; CONTROL_OUTPUT_LEN];
        let mut tunnel = link.shared.tunnel.lock();
        let responded = tunnel.respond(now.time, &initiation, &mut response);
        drop(tunnel);
        match responded {
            Ok(responded) => {
                response.truncate(responded.len);
                if responded.fresh {
                    self.initiation_accepted(now, id, initiation, datagram);
                    self.answer_elsewhere(id, &datagram.path, &response);
                }
                self.transmit_on(&datagram.path, response);
            }
            Err(OpenError::Stale) => {
                self.counters.drop_handshake_replay.increment();
                self.stale_initiation(now, id);
                self.arm_tunnel_timer(id);
            }
            Err(_) => {
                self.counters.drop_handshake_invalid.increment();
                self.arm_tunnel_timer(id);
            }
        }
    }

    /// A fresh initiation verified: only the peer can have made it, though it may have been held back on the way.
    fn initiation_accepted(&mut self, now: Now, id: AgentId, initiation: Initiation, datagram: &StrangerDatagram) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        peer.last_initiation = Some(initiation);
        if let Some(link) = &mut peer.link {
            if link.wanted_since.is_none() {
                link.begin_connection(now.time, &mut self.connections);
            }
            link.stopped = false;
        }
        let conn = self.conn(id);
        tracing::debug!(peer = %id.short(), conn, source = %datagram.path.endpoint, "handshake answered");
        self.store_hint(now, id);
        self.handshake_heard(now, id, &datagram.path);
        self.arm_tunnel_timer(id);
    }

    /// A peer whose clock went back cannot begin a handshake: every initiation of it looks like a replay. Unless something
    /// works between us, this side begins one, to the addresses it knows; a real replay gains nothing by that.
    fn stale_initiation(&mut self, now: Now, id: AgentId) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let Some(link) = &peer.link else { return };
        let is_young = link.established.is_some_and(|at| now.time.since(at) < SURELY_WORKS);
        let works = is_young && link.shared.tunnel.lock().has_session(now.time) && !link.stopped;
        let lately = peer.stale_answered.is_some_and(|at| now.time.since(at) < STALE_ANSWER_INTERVAL);
        if !works && !lately {
            peer.stale_answered = Some(now.time);
            self.start_handshake(now, id);
        }
    }

    fn handle_response(&mut self, now: Now, datagram: &StrangerDatagram) {
        let Some(id) = self.message_owner(&datagram.data) else {
            return self.counters.drop_in_unknown_index.increment();
        };
        if self.servers.contains_key(&id) {
            return self.server_answered(now, id, datagram);
        }
        let Some(link) = self.peers.get_mut(&id).and_then(|peer| peer.link.as_mut()) else { return };
        let mut keepalive = vec![0; CONTROL_OUTPUT_LEN];
        let completed = link.shared.tunnel.lock().complete(now.time, &datagram.data, &mut keepalive);
        let Ok(len) = completed else { return self.counters.drop_handshake_invalid.increment() };
        keepalive.truncate(len);
        self.transmit_on(&datagram.path, keepalive);
        self.handshake_heard(now, id, &datagram.path);
        self.session_established(now, id);
    }

    fn handle_cookie(&mut self, datagram: &[u8]) {
        let Some(id) = self.message_owner(datagram) else {
            return self.counters.drop_in_unknown_index.increment();
        };
        let link = self.peers.get(&id).and_then(|peer| peer.link.as_ref()).map(|link| &link.shared);
        let Some(shared) = link.or_else(|| self.server_tunnel(id)) else { return };
        if shared.tunnel.lock().take_cookie(datagram).is_err() {
            self.counters.drop_handshake_invalid.increment();
        }
    }

    fn message_owner(&self, datagram: &[u8]) -> Option<AgentId> {
        self.indices.owner(TunnelIndex::of_receiver(message_receiver(datagram)?))
    }

    /// Both sides can use the session now.
    pub(super) fn session_established(&mut self, now: Now, id: AgentId) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        // It answers: a clock of it that is still behind keeps it from us no longer than this session lasts.
        peer.stale_answered = None;
        let Some(link) = &mut peer.link else { return };
        self.counters.handshakes.increment();
        self.no_helpers = false;
        let first = link.established.is_none() || link.stopped;
        link.established = Some(now.time);
        link.gave_up = None;
        link.stopped = false;
        link.wanted_since = None;
        link.begin_watching(now.time);
        if first {
            let endpoint = link.shared.path.load().as_ref().map(|path| path.endpoint.to_string());
            let conn = link.conn;
            tracing::info!(peer = %id.short(), conn, name = peer.name(), "connected");
            tracing::debug!(peer = %id.short(), conn, endpoint, "connected at");
        }
        self.flush_queue(now, id);
        self.session_is_new(id);
        self.tell_candidates(now, id);
        self.send_hello(now, id);
        self.try_all_paths(now, id);
        self.send_pings(now, id);
        self.arm_tunnel_timer(id);
    }

    /// Begins a handshake on every address that may work, unless one is under way.
    pub(super) fn start_handshake(&mut self, now: Now, id: AgentId) {
        let Some(link) = self.peers.get_mut(&id).and_then(|peer| peer.link.as_mut()) else { return };
        link.begin_wanting(now.time, &mut self.connections);
        let initiation = link.shared.tunnel.lock().initiate(now.time);
        if let Some(initiation) = initiation {
            tracing::debug!(peer = %id.short(), conn = link.conn, "handshake begins");
            self.borrow_servers_of(now, id);
            self.transmit_everywhere(now, id, &initiation);
        }
        self.arm_tunnel_timer(id);
    }

    /// The session's timers began a handshake on a packet thread, which sent it on the primary path.
    pub(super) fn handshake_begun(&mut self, now: Now, id: AgentId) {
        let Some(link) = self.peers.get_mut(&id).and_then(|peer| peer.link.as_mut()) else { return };
        link.begin_wanting(now.time, &mut self.connections);
        let initiation = link.shared.tunnel.lock().pending_initiation().copied();
        if let Some(initiation) = initiation {
            self.transmit_everywhere(now, id, &initiation);
        }
        self.arm_tunnel_timer(id);
    }

    pub(super) fn traffic_seen(&mut self, now: Now, id: AgentId) {
        if let Some(link) = self.link_mut(id) {
            link.begin_watching(now.time);
        }
        self.path_timer(now, id);
        self.arm_tunnel_timer(id);
    }

    /// Runs the timers of one peer's sessions.
    pub(super) fn tunnel_timer(&mut self, now: Now, id: AgentId) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let Some(link) = &mut peer.link else { return };
        let mut datagram = vec![0; CONTROL_OUTPUT_LEN];
        let mut tunnel = link.shared.tunnel.lock();
        let refreshed = tunnel.refresh(now.time, &mut datagram).unwrap_or_default();
        let idle = !tunnel.is_active(now.time);
        drop(tunnel);
        if idle {
            link.shared.clear_active();
        }
        datagram.truncate(refreshed.len);
        self.session_erased |= refreshed.erased;
        if refreshed.gave_up {
            self.handshake_given_up(now, id);
        } else if let Ok(initiation) = Initiation::try_from(datagram.as_slice())
            && refreshed.initiation
        {
            self.check_servers(now);
            self.renew_channels(now, id);
            self.transmit_everywhere(now, id, &initiation);
            self.introduce_through_peers(now, id);
        } else if !datagram.is_empty()
            && let Some(path) = link.shared.path.load_full()
        {
            self.transmit_on(&path, datagram);
        }
        self.arm_tunnel_timer(id);
    }

    fn handshake_given_up(&mut self, now: Now, id: AgentId) {
        let Some(link) = self.peers.get_mut(&id).and_then(|peer| peer.link.as_mut()) else { return };
        tracing::info!(peer = %id.short(), conn = link.conn, "no answer; waiting for traffic or for the peer");
        let dropped = link.queue.len();
        link.queue.clear();
        link.shared.leave_queue(dropped);
        link.gave_up = Some(now.time);
        link.wanted_since = None;
        self.counters.drop_out_no_session.add(dropped as u64);
        self.counters.handshakes_unanswered.increment();
    }

    pub(super) fn arm_tunnel_timer(&mut self, id: AgentId) {
        let link = self.peers.get(&id).and_then(|peer| peer.link.as_ref());
        let at = link.and_then(|link| link.shared.tunnel.lock().next_timeout());
        self.timers.set(TimerKind::Tunnel(id), at);
    }

    /// The same initiation to every address and through every relay: the peer answers the first copy, and each further
    /// one the same way.
    fn transmit_everywhere(&mut self, now: Now, id: AgentId, initiation: &Initiation) {
        let Some(peer) = self.peers.get(&id) else { return };
        let primary = peer.link.as_ref().and_then(|link| link.paths.primary());
        let mut routes: Vec<Route> = primary.into_iter().collect();
        routes.extend(peer.addresses.iter().map(|address| Route::Direct(*address)));
        routes.extend(self.relay_routes(id));
        for (position, route) in routes.iter().enumerate() {
            // The choice of source address is the host's: the one the path had may be why it does not answer.
            if !routes[..position].contains(route) {
                self.transmit_on_route(now, id, *route, initiation.to_vec());
            }
        }
    }

    /// The answer to an initiation also goes wherever else the peer may be: it opens this side's NAT for the peer, and
    /// where the peer's is open already it is the fastest way there.
    fn answer_elsewhere(&mut self, id: AgentId, path: &PeerPath, response: &[u8]) {
        let Some(peer) = self.peers.get(&id) else { return };
        let others = peer.addresses.iter().map(|address| PeerPath::direct(*address));
        let others: Vec<PeerPath> = others.filter(|other| !other.is_same_way(path)).collect();
        for other in others {
            self.transmit_on(&other, response.to_vec());
        }
    }
}
