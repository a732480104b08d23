//! Channels to peers through relays, and what a path machine's routes mean on the wire.
//!
//! A channel is opened by sending: the datagram that has no channel yet rides in the request for one, so that a relay
//! costs no round trip of its own. The other end learns the channel from the first datagram that authenticates on it.

use std::sync::Arc;
use std::time::Duration;

use super::limits::MAX_RELAYS;
use super::peer::Peer;
use super::{Node, Output};
use crate::forwarding::PeerPath;
use crate::identity::AgentId;
use crate::path::{Candidate, CandidateKind, Route};
use crate::time::{Now, Time};
use crate::wire::control::{MAX_FIRST_LEN, RelayRefusal, RendezvousMessage};
use crate::wire::relay::RelayChannel;

/// A channel unused for this long is opened anew. Relays keep one for an hour.
const CHANNEL_LIFE: Duration = Duration::from_secs(30 * 60);
/// A channel on which nobody answers is renewed this often: as often as a new initiation is made.
const RENEW_INTERVAL: Duration = Duration::from_secs(5);

/// One end of a channel.
#[derive(Debug)]
pub(super) struct RelayLeg {
    channel: RelayChannel,
    /// The relay confirmed it, or a datagram of the peer came by it.
    open: bool,
    used: Time,
    /// When it was last renewed because nobody answered.
    renewed: Option<Time>,
    pub(super) refused: Option<RelayRefusal>,
}

impl Node {
    /// What a path machine calls the way a datagram came. `None` when it came through a relay this agent has no session
    /// with any more.
    pub(super) fn route_of(&self, path: &PeerPath) -> Option<Route> {
        if path.relay.is_none() {
            return Some(Route::direct(path.socket, path.endpoint));
        }
        self.servers.iter().find(|(_, server)| server.is_at(path.endpoint)).map(|(id, _)| Route::Relayed(*id))
    }

    /// The peer proved, on this path, that it is at the other end.
    pub(super) fn authenticated_on(&mut self, now: Now, id: AgentId, path: &PeerPath) -> Option<Route> {
        let route = self.route_of(path)?;
        if !path.socket.is_main() && !self.heard_on(now, id, path.socket) {
            return None;
        }
        if let (Route::Relayed(server), Some(channel)) = (route, path.relay) {
            let link = self.peers.get_mut(&id)?.link.as_mut()?;
            if !link.relays.contains_key(&server) && link.relays.len() >= MAX_RELAYS {
                return None;
            }
            let renewed = link.relays.get(&server).and_then(|leg| leg.renewed);
            let leg = RelayLeg { channel, open: true, used: now.time, renewed, refused: None };
            let before = link.relays.insert(server, leg);
            // The one before may be closed by now.
            if before.is_some_and(|before| before.channel != channel) {
                self.reroute(now, id, server);
            }
        }
        Some(route)
    }

    /// How a route is taken now; `None` for a relay without an open channel.
    pub(super) fn path_of(&self, now: Now, id: AgentId, route: Route) -> Option<PeerPath> {
        match route {
            Route::Direct(endpoint) => Some(PeerPath::direct(endpoint)),
            Route::Extra(socket, endpoint) => Some(PeerPath { socket, ..PeerPath::direct(endpoint) }),
            Route::Relayed(server) => {
                let leg = self.peers.get(&id)?.link.as_ref()?.relays.get(&server)?;
                let usable = leg.open && now.time.since(leg.used) < CHANNEL_LIFE;
                let endpoint = self.servers.get(&server)?.endpoint().filter(|_| usable)?;
                Some(PeerPath { relay: Some(leg.channel), ..PeerPath::direct(endpoint) })
            }
        }
    }

    /// Sends a datagram for a peer on a route, opening a channel if that is what it takes.
    pub(super) fn transmit_on_route(&mut self, now: Now, id: AgentId, route: Route, datagram: Vec<u8>) {
        if let Some(path) = self.path_of(now, id, route) {
            if let (Route::Relayed(server), Some(link)) = (route, self.link_mut(id))
                && let Some(leg) = link.relays.get_mut(&server)
            {
                leg.used = now.time;
            }
            return self.transmit_on(&path, datagram);
        }
        if let Route::Relayed(server) = route {
            self.open_channel(now, id, server, datagram);
        }
    }

    /// Nobody answers. A relay that forgot a channel, with one of its ends perhaps, does not say so.
    pub(super) fn renew_channels(&mut self, now: Now, id: AgentId) {
        let Some(link) = self.link_mut(id) else { return };
        let due = |leg: &RelayLeg| leg.renewed.is_none_or(|at| now.time.since(at) >= RENEW_INTERVAL);
        let mut open = Vec::new();
        for (server, leg) in link.relays.iter_mut().filter(|(_, leg)| leg.open && due(leg)) {
            leg.renewed = Some(now.time);
            open.push((*server, leg.channel));
        }
        for (server, channel) in open {
            let renewal = RendezvousMessage::RelayOpen { peer: id, channel, first: Vec::new() };
            self.send_to_server(now, server, renewal, false);
        }
    }

    fn open_channel(&mut self, now: Now, id: AgentId, server: AgentId, first: Vec<u8>) {
        let ready = self.servers.get(&server).is_some_and(super::servers::Server::relays);
        if !ready || first.len() > MAX_FIRST_LEN {
            return;
        }
        let fresh = RelayChannel::new(self.rng.next_u64());
        let Some(link) = self.peers.get_mut(&id).and_then(|peer| peer.link.as_mut()) else { return };
        if !link.relays.contains_key(&server) && link.relays.len() >= MAX_RELAYS {
            return;
        }
        let unopened = RelayLeg { channel: fresh, open: false, used: now.time, renewed: None, refused: None };
        let leg = link.relays.entry(server).or_insert(unopened);
        if leg.open && now.time.since(leg.used) >= CHANNEL_LIFE {
            *leg = RelayLeg { channel: fresh, open: false, used: now.time, renewed: None, refused: None };
        }
        leg.used = now.time;
        let open = RendezvousMessage::RelayOpen { peer: id, channel: leg.channel, first };
        self.send_to_server(now, server, open, false);
    }

    /// A relay's answer.
    pub(super) fn relay_opened(
        &mut self,
        now: Now,
        server: AgentId,
        id: AgentId,
        channel: RelayChannel,
        outcome: Result<(), RelayRefusal>,
    ) {
        let Some(link) = self.peers.get_mut(&id).and_then(|peer| peer.link.as_mut()) else { return };
        let conn = link.conn;
        let Some(leg) = link.relays.get_mut(&server).filter(|leg| leg.channel == channel) else { return };
        match outcome {
            Ok(()) => (leg.open, leg.refused) = (true, None),
            Err(refusal) => {
                tracing::debug!(peer = %id.short(), conn, server = %server.short(), ?refusal, "no relay channel");
                // The next try is with another number: this one may be somebody else's.
                leg.channel = RelayChannel::new(self.rng.next_u64());
                (leg.open, leg.refused) = (false, Some(refusal));
            }
        }
        self.reroute(now, id, server);
    }

    /// A server is reached, at another address or for the first time (`anew`): what goes through it goes there.
    pub(super) fn relay_reached(&mut self, now: Now, server: AgentId, anew: bool) {
        self.fib_changed = true;
        for id in self.peers.keys().copied().collect::<Vec<_>>() {
            let Some(peer) = self.peers.get_mut(&id) else { continue };
            let lists = peer.lists_server(server);
            if peer.asking.first.is_some() && lists && anew {
                self.timers.set(super::TimerKind::Introduction(id), Some(now.time));
            }
            let Some(link) = &mut peer.link else { continue };
            let used = link.relays.contains_key(&server);
            if let Some(leg) = link.relays.get_mut(&server).filter(|_| anew) {
                leg.open = false;
            }
            if used && anew {
                // It may have forgotten the channel.
                self.open_channel(now, id, server, Vec::new());
            }
            if used {
                self.reroute(now, id, server);
            }
            if lists && anew {
                self.relay_usable(now, id, server);
            }
        }
    }

    /// A peer can be tried through a relay that was not there before.
    fn relay_usable(&mut self, now: Now, id: AgentId, server: AgentId) {
        let Some(link) = self.link_mut(id) else { return };
        let candidate = Candidate { kind: CandidateKind::Relayed, route: Route::Relayed(server) };
        link.paths.route_usable(now.time, candidate);
        let pending = link.shared.tunnel.lock().pending_initiation().copied();
        if let Some(initiation) = pending {
            self.transmit_on_route(now, id, Route::Relayed(server), initiation.to_vec());
        }
        self.carry_out_paths(now, id);
    }

    /// There is no session with a server any more.
    pub(super) fn relay_gone(&mut self, now: Now, server: AgentId) {
        for id in self.peers.keys().copied().collect::<Vec<_>>() {
            let Some(link) = self.link_mut(id) else { continue };
            if link.paths.route_failed(now.time, Route::Relayed(server)) {
                self.carry_out_paths(now, id);
            }
        }
    }

    /// If the peer's data goes through this relay, or rests there, it goes by the channel and to the address that hold now.
    fn reroute(&mut self, now: Now, id: AgentId, server: AgentId) {
        let route = Route::Relayed(server);
        let Some(path) = self.path_of(now, id, route) else { return };
        let Some(link) = self.peers.get(&id).and_then(|peer| peer.link.as_ref()) else { return };
        let taken = link.shared.path.load().as_ref().and_then(|path| self.route_of(path));
        if link.paths.primary() == Some(route) || taken == Some(route) {
            link.shared.path.store(Some(Arc::new(path)));
        }
    }

    /// The relays by which a peer says it can be reached.
    pub(super) fn relay_routes(&self, id: AgentId) -> Vec<Route> {
        let Some(peer) = self.peers.get(&id) else { return Vec::new() };
        let listed = peer.record.record().rendezvous.iter().map(|reference| reference.id);
        listed.filter(|server| self.servers.contains_key(server)).map(Route::Relayed).collect()
    }

    /// The relays to a peer that can be taken now.
    pub(super) fn open_relays(&self, now: Now, id: AgentId) -> Vec<Route> {
        let Some(link) = self.peers.get(&id).and_then(|peer| peer.link.as_ref()) else { return Vec::new() };
        let routes = link.relays.keys().map(|server| Route::Relayed(*server));
        routes.filter(|route| self.path_of(now, id, *route).is_some()).collect()
    }

    /// Connects to the servers by which a peer says it can be reached.
    pub(super) fn borrow_servers_of(&mut self, now: Now, id: AgentId) {
        let Some(peer) = self.peers.get(&id) else { return };
        for reference in peer.record.record().rendezvous.clone() {
            self.borrow_server(now, &reference);
        }
    }

    /// Puts a datagram on its way, in the frame its path asks for.
    pub(super) fn transmit_on(&mut self, path: &PeerPath, datagram: Vec<u8>) {
        let datagram = match path.relay {
            None => datagram,
            Some(_) => {
                let mut framed = vec![0; path.prefix_len() + datagram.len()];
                path.frame(&mut framed, |out| {
                    out.copy_from_slice(&datagram);
                    datagram.len()
                });
                framed
            }
        };
        let PeerPath { endpoint: destination, local_ip, socket, .. } = *path;
        self.outputs.push_back(Output::Transmit { destination, local_ip, socket, datagram });
    }
}

impl Peer {
    pub(super) fn lists_server(&self, server: AgentId) -> bool {
        self.record.record().rendezvous.iter().any(|reference| reference.id == server)
    }
}
