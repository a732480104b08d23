//! WireGuard handshakes: whom to answer, where to send, when a session stands.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::{Node, Output, TimerKind};
use crate::forwarding::{PeerPath, StrangerDatagram};
use crate::identity::AgentId;
use crate::time::Now;
use crate::tunnel::{CONTROL_OUTPUT_LEN, Initiation, OpenError, TunnelIndex, claimed_key, message_receiver};
use crate::wire::classify::{DatagramKind, classify};

/// How often what looks like a replay may make this side begin a handshake with the true peer.
const STALE_ANSWER_INTERVAL: Duration = Duration::from_secs(300);

impl Node {
    /// A datagram that no session authenticated. Whatever is wrong with it, nobody gets an answer.
    pub(super) fn handle_stranger(&mut self, now: Now, datagram: &StrangerDatagram) {
        match classify(&datagram.data) {
            DatagramKind::WireguardInitiation => self.handle_initiation(now, datagram),
            DatagramKind::WireguardResponse => self.handle_response(now, datagram),
            DatagramKind::WireguardCookie => self.handle_cookie(&datagram.data),
            DatagramKind::Introduction => self.handle_introduction(now, datagram),
            _ => self.counters.drop_in_unknown_kind.increment(),
        }
    }

    fn handle_initiation(&mut self, now: Now, datagram: &StrangerDatagram) {
        let Ok(initiation) = Initiation::try_from(datagram.data.as_slice()) else { return };
        let limiter = match self.is_known_source(datagram.source.ip()) {
            true => &mut self.known_initiations,
            false => &mut self.initiations,
        };
        if !limiter.allow(now.time, datagram.source) {
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
                }
                self.outputs.push_back(Output::Transmit {
                    destination: datagram.source,
                    local_ip: datagram.local_ip,
                    datagram: response,
                });
            }
            Err(OpenError::Stale) => {
                self.counters.drop_handshake_replay.increment();
                self.stale_initiation(now, id);
            }
            Err(_) => self.counters.drop_handshake_invalid.increment(),
        }
    }

    /// A fresh initiation verified: only the peer can have made it, though it may have been held back on the way.
    fn initiation_accepted(&mut self, now: Now, id: AgentId, initiation: Initiation, datagram: &StrangerDatagram) {
        tracing::debug!(peer = %id.short(), source = %datagram.source, "handshake answered");
        let Some(peer) = self.peers.get_mut(&id) else { return };
        peer.last_initiation = Some(initiation);
        if let Some(link) = &mut peer.link {
            link.stopped = false;
        }
        self.store(id);
        self.handshake_heard(now, id, datagram.source);
        self.arm_tunnel_timer(id);
    }

    /// A peer whose clock went back cannot begin a handshake: every initiation of it looks like a replay. If nothing
    /// works between us, this side begins one, to the addresses it knows; a real replay gains nothing by that.
    fn stale_initiation(&mut self, now: Now, id: AgentId) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let Some(link) = &peer.link else { return };
        let works = link.shared.tunnel.lock().has_session(now.time) && !link.stopped;
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
        let Some(link) = self.peers.get_mut(&id).and_then(|peer| peer.link.as_mut()) else { return };
        let mut keepalive = vec![0; CONTROL_OUTPUT_LEN];
        let completed = link.shared.tunnel.lock().complete(now.time, &datagram.data, &mut keepalive);
        let Ok(len) = completed else { return self.counters.drop_handshake_invalid.increment() };
        keepalive.truncate(len);
        let path = PeerPath { endpoint: datagram.source, local_ip: datagram.local_ip };
        self.transmit_on(&path, keepalive);
        self.handshake_heard(now, id, datagram.source);
        self.session_established(now, id);
    }

    fn handle_cookie(&mut self, datagram: &[u8]) {
        let Some(id) = self.message_owner(datagram) else {
            return self.counters.drop_in_unknown_index.increment();
        };
        let Some(link) = self.peers.get(&id).and_then(|peer| peer.link.as_ref()) else { return };
        if link.shared.tunnel.lock().take_cookie(datagram).is_err() {
            self.counters.drop_handshake_invalid.increment();
        }
    }

    fn message_owner(&self, datagram: &[u8]) -> Option<AgentId> {
        self.indices.owner(TunnelIndex::of_receiver(message_receiver(datagram)?))
    }

    /// Both sides can use the session now.
    pub(super) fn session_established(&mut self, now: Now, id: AgentId) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let Some(link) = &mut peer.link else { return };
        self.counters.handshakes.increment();
        let first = link.established.is_none() || link.stopped;
        link.established = Some(now.time);
        link.gave_up = None;
        link.stopped = false;
        if link.time_to_direct_ms.is_none()
            && let Some(wanted) = link.wanted_since
        {
            link.time_to_direct_ms = Some(now.time.since(wanted).as_secs_f64() * 1000.0);
        }
        link.wanted_since = None;
        if first {
            let endpoint = link.shared.path.load().as_ref().map(|path| path.endpoint.to_string());
            tracing::info!(peer = %id.short(), name = peer.name(), "connected");
            tracing::debug!(peer = %id.short(), endpoint, "connected at");
        }
        self.send_hello(now, id);
        self.flush_queue(now, id);
        self.try_all_paths(now, id);
        self.send_pings(now, id);
        self.arm_tunnel_timer(id);
    }

    /// Begins a handshake on every address that may work, unless one is under way.
    pub(super) fn start_handshake(&mut self, now: Now, id: AgentId) {
        let Some(link) = self.peers.get_mut(&id).and_then(|peer| peer.link.as_mut()) else { return };
        link.wanted_since.get_or_insert(now.time);
        let initiation = link.shared.tunnel.lock().initiate(now.time);
        if let Some(initiation) = initiation {
            tracing::debug!(peer = %id.short(), "handshake begins");
            self.transmit_everywhere(id, &initiation);
        }
        self.arm_tunnel_timer(id);
    }

    /// The session's timers began a handshake on a packet thread, which sent it on the primary path.
    pub(super) fn handshake_begun(&mut self, now: Now, id: AgentId) {
        let Some(link) = self.peers.get_mut(&id).and_then(|peer| peer.link.as_mut()) else { return };
        link.wanted_since.get_or_insert(now.time);
        let initiation = link.shared.tunnel.lock().pending_initiation().copied();
        if let Some(initiation) = initiation {
            self.transmit_everywhere(id, &initiation);
        }
        self.arm_tunnel_timer(id);
    }

    pub(super) fn traffic_seen(&mut self, now: Now, id: AgentId) {
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
        if refreshed.gave_up {
            self.handshake_given_up(now, id);
        } else if let Ok(initiation) = Initiation::try_from(datagram.as_slice())
            && refreshed.initiation
        {
            self.transmit_everywhere(id, &initiation);
        } else if !datagram.is_empty()
            && let Some(path) = link.shared.path.load_full()
        {
            self.transmit_on(&path, datagram);
        }
        self.arm_tunnel_timer(id);
    }

    fn handshake_given_up(&mut self, now: Now, id: AgentId) {
        let Some(link) = self.peers.get_mut(&id).and_then(|peer| peer.link.as_mut()) else { return };
        tracing::info!(peer = %id.short(), "no answer; waiting for traffic or for the peer");
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

    /// The same initiation to every address: the peer answers the first copy, and each further one the same way.
    fn transmit_everywhere(&mut self, id: AgentId, initiation: &Initiation) {
        let Some(peer) = self.peers.get(&id) else { return };
        let path = peer.link.as_ref().and_then(|link| link.shared.path.load_full());
        let primary = path.as_ref().map(|path| path.endpoint);
        let others = peer.addresses.iter().copied().filter(|address| Some(*address) != primary);
        let destinations: Vec<SocketAddr> = primary.into_iter().chain(others).collect();
        for destination in destinations {
            // A fresh choice of source address: the one the path had may be why it does not answer.
            self.outputs.push_back(Output::Transmit { destination, local_ip: None, datagram: initiation.to_vec() });
        }
    }

    fn is_known_source(&self, source: IpAddr) -> bool {
        self.peers.values().any(|peer| peer.link.is_some() && peer.addresses.iter().any(|known| known.ip() == source))
    }
}
