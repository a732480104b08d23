//! Sessions with rendezvous servers.
//!
//! ```text
//!   wanted ──(its name resolved)──> asked for its record ──(it answered)──> handshaking, at every address
//!   handshaking ──(answered)──> in session: registers, again every 20 s, at once when the network may have changed
//!   in session ──(four registrations unanswered)──> handshaking: it may have been started anew
//!   handshaking ──(given up)──> asked for its record: it may have a new key
//! ```
//!
//! The agent's own servers are kept connected. Servers of peers are borrowed: connected while a peer that lists them is
//! wanted, and let go [`BORROWED_FOR`] after.

mod status;

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use super::limits::{MAX_SERVER_ADDRESSES, MAX_SERVERS, MESSAGE_RATE, RECORD_REQUEST_RATE, backoff};
use super::told_clock::ToldClock;
use super::{Node, Output, TimerKind};
use crate::forwarding::{FibPeer, PeerPath, SharedPeer, StrangerDatagram};
use crate::identity::{AgentId, RendezvousRef, SignedRecord, TunnelPublic, overlay_ipv6};
use crate::limits::Bucket;
use crate::path::StunServer;
use crate::time::{Now, Time};
use crate::tunnel::{CONTROL_OUTPUT_LEN, Tunnel, TunnelIndex, sealed_len};
use crate::wire::control::{ControlMessage, ControlPacket, RendezvousMessage};
use crate::wire::rendezvous::{RECORD_TRANSACTION_LEN, RecordAnswer, RecordRequest};

/// A registration is renewed this often: below the 30 s after which many NATs forget a UDP mapping (RFC 4787 asks for
/// two minutes, section 4.3; measurements find half a minute).
pub(super) const REGISTER_INTERVAL: Duration = Duration::from_secs(20);
/// The first unanswered registration goes out again after this, then after twice that, and so on.
const REGISTER_RETRY: Duration = Duration::from_millis(250);
/// So many registrations in a row without an answer, and the session is taken to be gone.
const MAX_REGISTER_TRIES: u32 = 4;
/// A request for a record, unanswered, goes out again after this, doubling up to [`LONGEST_RETRY`].
const RECORD_RETRY: Duration = Duration::from_millis(250);
/// See [`RECORD_RETRY`].
const LONGEST_RETRY: Duration = Duration::from_secs(30);
/// A name that did not resolve is asked for again after this, doubling up to [`LONGEST_RETRY`].
const RESOLVE_RETRY: Duration = Duration::from_secs(1);
/// Introductions one server may pass on, a second: what it kept comes four at a time.
const SERVER_INTRODUCTION_RATE: u32 = 8;
/// While a handshake with a peer draws no answer, servers are asked whether they still see this agent where it was, this
/// often at most: a lost registration shows within a round trip, and many peers that are away cost no more than one.
const CHECK_INTERVAL: Duration = Duration::from_secs(2);
/// How long a server of a peer is kept after it was last wanted: as long as an idle session lives.
const BORROWED_FOR: Duration = Duration::from_secs(180);

/// One server and what there is with it.
#[derive(Debug)]
pub(super) struct Server {
    id: AgentId,
    ipv6: Ipv6Addr,
    reference: RendezvousRef,
    /// It is this agent's own; otherwise a peer's, wanted at this time last.
    borrowed: Option<Time>,
    addresses: Vec<SocketAddr>,
    /// Of the record that is asked for.
    transaction: [u8; RECORD_TRANSACTION_LEN],
    record: Option<SignedRecord>,
    /// The end of its record by which it answered last, seconds since 1970, if that has passed by this host's clock.
    expired_answer: Option<u64>,
    /// Since when it is not there.
    lost: Option<Time>,
    /// Unanswered tries of the step under way.
    tries: u32,
    link: Option<ServerLink>,
}

/// A tunnel to a server.
#[derive(Debug)]
struct ServerLink {
    index: TunnelIndex,
    shared: Arc<SharedPeer>,
    /// When the last registration was answered.
    registered: Option<Time>,
    /// When the registration that is not answered yet was first sent, and last.
    asked: Option<(Time, Time)>,
    asks: u32,
    observed: Option<SocketAddr>,
    relays: bool,
    rtt: Option<Duration>,
    clock: Option<ToldClock>,
    messages: Bucket,
    introductions: Bucket,
}

impl Server {
    fn new(reference: RendezvousRef, borrowed: Option<Time>) -> Self {
        let mut server = Self {
            id: reference.id,
            ipv6: overlay_ipv6(&reference.id),
            reference,
            borrowed,
            addresses: Vec::new(),
            transaction: [0; RECORD_TRANSACTION_LEN],
            record: None,
            expired_answer: None,
            lost: None,
            tries: 0,
            link: None,
        };
        server.addresses = server.literal_address();
        server
    }

    /// An address needs nobody to resolve it.
    fn literal_address(&self) -> Vec<SocketAddr> {
        let address = &self.reference.address;
        let literal = address.host().trim_matches(['[', ']']).parse::<IpAddr>();
        let address = literal.ok().map(|ip| SocketAddr::new(ip, address.port()));
        address.into_iter().filter(|address| self.may_be_at(*address)).collect()
    }

    /// What a peer says of its servers must not make this agent talk to the services of this host.
    fn may_be_at(&self, address: SocketAddr) -> bool {
        super::addresses::is_usable(address) && (self.borrowed.is_none() || !address.ip().is_loopback())
    }

    /// It is a peer's.
    pub(super) fn is_borrowed(&self) -> bool {
        self.borrowed.is_some()
    }

    /// When it is let go, if it is a borrowed one that nobody wants any more.
    fn returned_at(&self) -> Option<Time> {
        self.borrowed.map(|wanted| wanted + BORROWED_FOR)
    }

    /// Its place in the forwarding snapshot: control messages only.
    pub(super) fn fib_entry(&self) -> Option<(TunnelIndex, Arc<FibPeer>)> {
        let link = self.link.as_ref()?;
        let shared = Arc::clone(&link.shared);
        let entry = FibPeer { id: self.id, ipv6: self.ipv6, ipv4: None, trusted: false, flows: None, shared };
        Some((link.index, Arc::new(entry)))
    }

    /// Where its relay frames come from.
    pub(super) fn relay_addresses(&self) -> impl Iterator<Item = SocketAddr> {
        let addresses = if self.link.is_some() { self.addresses.as_slice() } else { &[] };
        addresses.iter().copied().chain(self.endpoint())
    }

    /// Whether frames from this address are its own.
    pub(super) fn is_at(&self, address: SocketAddr) -> bool {
        self.relay_addresses().any(|known| known == address)
    }

    /// Where its answers come from now, once registered.
    pub(super) fn endpoint(&self) -> Option<SocketAddr> {
        let link = self.link.as_ref().filter(|link| link.registered.is_some())?;
        link.shared.path.load().as_ref().map(|path| path.endpoint)
    }

    /// Where to ask it by STUN; of a peer's server only `if_borrowed`, and only once it has shown that it is one.
    pub(super) fn stun(&self, if_borrowed: bool) -> Option<StunServer> {
        let is_known = !if_borrowed || self.endpoint().is_some();
        let may = self.is_borrowed() == if_borrowed && is_known && !self.addresses.is_empty();
        may.then(|| StunServer { id: self.id, addresses: self.addresses.clone() })
    }
}

impl Node {
    /// Begins with this agent's own servers.
    pub(super) fn add_servers(&mut self, now: Now, references: Vec<RendezvousRef>) {
        for reference in references {
            self.add_server(now, reference, None);
        }
    }

    /// A peer's server is wanted: connects to it unless that is done or under way.
    pub(super) fn borrow_server(&mut self, now: Now, reference: &RendezvousRef) {
        match self.servers.get_mut(&reference.id) {
            Some(server) => {
                let Some(wanted) = &mut server.borrowed else { return };
                *wanted = now.time;
                // It has moved, or who named it first was wrong.
                if server.link.is_none() && server.tries > 0 && server.reference.address != reference.address {
                    server.reference = reference.clone();
                    server.addresses = server.literal_address();
                    server.tries = 0;
                    self.server_timer(now, reference.id);
                }
            }
            None => self.add_server(now, reference.clone(), Some(now.time)),
        }
    }

    /// A peer's servers are no longer what they were: those that no peer lists are let go.
    pub(super) fn return_servers(&mut self, now: Now) {
        let is_listed = |id: AgentId| self.peers.values().any(|peer| peer.lists_server(id));
        let borrowed = self.servers.values().filter(|server| server.is_borrowed()).map(|server| server.id);
        for id in borrowed.filter(|id| !is_listed(*id)).collect::<Vec<_>>() {
            self.drop_server(now, id);
        }
    }

    fn add_server(&mut self, now: Now, reference: RendezvousRef, borrowed: Option<Time>) {
        let id = reference.id;
        // An agent one talks to is not also one's server: what is said in a session must mean one thing.
        if id == self.id || self.peers.contains_key(&id) {
            return;
        }
        if self.servers.len() >= MAX_SERVERS {
            tracing::debug!(server = %id.short(), "too many rendezvous servers");
            return self.counters.drop_servers_full.increment();
        }
        let server = Server { lost: Some(now.time), ..Server::new(reference, borrowed) };
        self.servers.insert(id, server);
        self.server_timer(now, id);
        self.stun_servers_changed(now);
    }

    pub(super) fn drop_server(&mut self, now: Now, id: AgentId) {
        self.unlink_server(now, id);
        self.servers.remove(&id);
        self.timers.set(TimerKind::Server(id), None);
        self.stun_servers_changed(now);
    }

    /// The shell resolved a server's name.
    pub(super) fn server_resolved(&mut self, now: Now, id: AgentId, mut addresses: Vec<SocketAddr>) {
        let Some(server) = self.servers.get_mut(&id) else { return };
        addresses.retain(|address| server.may_be_at(*address));
        addresses.truncate(MAX_SERVER_ADDRESSES);
        if addresses.is_empty() || server.addresses == addresses {
            return;
        }
        server.addresses = addresses;
        server.tries = 0;
        self.fib_changed = true;
        self.server_timer(now, id);
        self.stun_servers_changed(now);
    }

    /// The network may have changed: every server is to see it at once, by whichever address works now.
    pub(super) fn refresh_servers(&mut self, now: Now) {
        for id in self.servers.keys().copied().collect::<Vec<_>>() {
            let Some(server) = self.servers.get_mut(&id) else { continue };
            // Nobody knows whether there is one where a peer says.
            if server.link.is_none() && server.is_borrowed() && server.tries > 0 {
                continue;
            }
            server.tries = 0;
            // One that is being asked anyway is not asked faster.
            let asked = server.link.as_ref().and_then(|link| link.asked);
            if asked.is_some_and(|(_, last)| now.time.since(last) < REGISTER_RETRY) {
                continue;
            }
            let in_session = server.link.as_ref().is_some_and(|link| link.shared.tunnel.lock().has_session(now.time));
            if in_session {
                self.register(now, id, true);
            }
            self.server_timer(now, id);
        }
    }

    /// A handshake draws no answer. A NAT of this agent's may have forgotten it, and then relays take nothing from it.
    pub(super) fn check_servers(&mut self, now: Now) {
        let is_old = |link: &ServerLink| {
            link.asked.is_none() && link.registered.is_some_and(|at| now.time.since(at) >= CHECK_INTERVAL)
        };
        let old = self.servers.values().filter(|server| server.link.as_ref().is_some_and(is_old));
        for id in old.map(|server| server.id).collect::<Vec<_>>() {
            self.register(now, id, true);
            self.server_timer(now, id);
        }
    }

    /// Does what is due with one server.
    pub(super) fn server_timer(&mut self, now: Now, id: AgentId) {
        if self.servers.get(&id).and_then(Server::returned_at).is_some_and(|end| end <= now.time) {
            self.want_longer(id);
        }
        let Some(server) = self.servers.get_mut(&id) else { return };
        if server.returned_at().is_some_and(|end| end <= now.time) {
            return self.drop_server(now, id);
        }
        let next = if server.addresses.is_empty() {
            self.resolve_server(now, id)
        } else if server.link.is_none() {
            self.ask_record(now, id)
        } else {
            self.keep_session(now, id)
        };
        if let Some(server) = self.servers.get(&id) {
            self.timers.set(TimerKind::Server(id), [next, server.returned_at()].into_iter().flatten().min());
        }
    }

    /// A borrowed server is kept while there is traffic with a peer that lists it.
    fn want_longer(&mut self, id: AgentId) {
        let listing = self.peers.values().filter(|peer| peer.lists_server(id));
        let last = listing.filter_map(|peer| peer.link.as_ref()?.last_traffic).max();
        if let Some(wanted) = self.servers.get_mut(&id).and_then(|server| server.borrowed.as_mut()) {
            *wanted = last.map_or(*wanted, |last| last.max(*wanted));
        }
    }

    fn resolve_server(&mut self, now: Now, id: AgentId) -> Option<Time> {
        let server = self.servers.get_mut(&id)?;
        let again = now.time + backoff(server.tries, RESOLVE_RETRY, LONGEST_RETRY);
        server.tries = server.tries.saturating_add(1);
        self.outputs.push_back(Output::Resolve { server: id, host: server.reference.address.clone() });
        Some(again)
    }

    fn ask_record(&mut self, now: Now, id: AgentId) -> Option<Time> {
        let server = self.servers.get_mut(&id)?;
        if server.tries == 0 {
            self.rng.fill_bytes(&mut server.transaction);
        }
        let again = now.time + backoff(server.tries, RECORD_RETRY, LONGEST_RETRY);
        server.tries = server.tries.saturating_add(1);
        // The name may lead elsewhere by now.
        if server.tries.is_multiple_of(8) {
            self.outputs.push_back(Output::Resolve { server: id, host: server.reference.address.clone() });
        }
        let datagram = RecordRequest { transaction: server.transaction }.emit();
        let (addresses, is_borrowed) = (server.addresses.clone(), server.is_borrowed());
        for address in addresses {
            if is_borrowed && !self.record_requests.take(now.time, RECORD_REQUEST_RATE) {
                self.counters.drop_out_record_request.increment();
                break;
            }
            self.transmit_on(&PeerPath::direct(address), datagram.clone());
        }
        Some(again)
    }

    /// A server, perhaps, says who it is.
    pub(super) fn handle_record_answer(&mut self, now: Now, datagram: &StrangerDatagram) {
        let Ok(answer) = RecordAnswer::parse(&datagram.data) else {
            return self.counters.drop_control_invalid.increment();
        };
        let asked = self
            .servers
            .values()
            .find(|server| server.link.is_none() && server.tries > 0 && server.transaction == answer.transaction);
        let Some(id) = asked.map(|server| server.id) else {
            return self.counters.drop_control_invalid.increment();
        };
        match answer.record() {
            Ok(record) if record.id() == id && !record.is_expired(now.unix_s()) => {
                if let Some(server) = self.servers.get_mut(&id) {
                    server.tries = 0;
                    server.expired_answer = None;
                    server.record = Some(record);
                }
                self.link_server(now, id);
                self.server_timer(now, id);
            }
            answer => {
                let ends = answer.ok().filter(|record| record.id() == id).map(|record| record.record().expires);
                if let Some(server) = self.servers.get_mut(&id) {
                    server.expired_answer = ends.or(server.expired_answer);
                }
                self.counters.drop_control_invalid.increment();
            }
        }
    }

    fn link_server(&mut self, now: Now, id: AgentId) {
        let Some(key) = self.server_key(id) else { return };
        // A session needs the wall clock, and the library panics on one before 1970.
        if now.unix_ms == 0 || key == self.tunnel_key() {
            return;
        }
        let index = self.indices.allocate(id, &mut *self.rng);
        let Some(server) = self.servers.get_mut(&id) else { return };
        let tunnel = Tunnel::new(&self.tunnel_secret, &key, index, now.time, None);
        server.link = Some(ServerLink {
            index,
            shared: Arc::new(SharedPeer::new(tunnel)),
            registered: None,
            asked: None,
            asks: 0,
            observed: None,
            relays: false,
            rtt: None,
            clock: None,
            messages: Bucket::full(now.time, MESSAGE_RATE),
            introductions: Bucket::full(now.time, SERVER_INTRODUCTION_RATE),
        });
        if let Some((index, entry)) = self.servers.get(&id).and_then(Server::fib_entry) {
            self.fib_mut().insert(index, entry);
        }
    }

    fn server_key(&self, id: AgentId) -> Option<TunnelPublic> {
        Some(self.servers.get(&id)?.record.as_ref()?.record().tunnel_key)
    }

    fn unlink_server(&mut self, now: Now, id: AgentId) {
        let Some(link) = self.servers.get_mut(&id).and_then(|server| server.link.take()) else { return };
        self.indices.release(link.index);
        self.fib_mut().remove(link.index);
        self.relay_gone(now, id);
    }

    /// Runs the session's timers, and registers when it is time to.
    fn keep_session(&mut self, now: Now, id: AgentId) -> Option<Time> {
        let server = self.servers.get_mut(&id)?;
        let link = server.link.as_mut()?;
        let mut tunnel = link.shared.tunnel.lock();
        let mut datagram = vec![0; CONTROL_OUTPUT_LEN];
        let refreshed = tunnel.refresh(now.time, &mut datagram).unwrap_or_default();
        datagram.truncate(refreshed.len);
        let has_session = tunnel.has_session(now.time);
        let begun = if has_session || tunnel.is_handshaking() { None } else { tunnel.initiate(now.time) };
        drop(tunnel);
        if refreshed.gave_up {
            server.tries = server.tries.saturating_add(1);
            self.unlink_server(now, id);
            return self.ask_record(now, id);
        }
        if let Some(initiation) = begun {
            self.transmit_to_server(id, &initiation, true);
        } else if !datagram.is_empty() {
            self.transmit_to_server(id, &datagram, refreshed.initiation);
        }
        let register = if has_session { self.keep_registered(now, id) } else { None };
        let link = self.servers.get(&id)?.link.as_ref()?;
        let timers = link.shared.tunnel.lock().next_timeout();
        [timers, register].into_iter().flatten().min()
    }

    /// Registers if it is time to; returns when it will be.
    fn keep_registered(&mut self, now: Now, id: AgentId) -> Option<Time> {
        let link = self.servers.get_mut(&id)?.link.as_mut()?;
        let due = match (link.asked, link.registered) {
            (Some((_, last)), _) => last + backoff(link.asks.saturating_sub(1), REGISTER_RETRY, LONGEST_RETRY),
            (None, Some(at)) => at + REGISTER_INTERVAL,
            (None, None) => now.time,
        };
        if due > now.time {
            return Some(due);
        }
        if link.asks >= MAX_REGISTER_TRIES {
            tracing::debug!(server = %id.short(), "the rendezvous server does not answer");
            if let Some(server) = self.servers.get_mut(&id) {
                server.tries = server.tries.saturating_add(1);
                server.lost.get_or_insert(now.time);
            }
            self.unlink_server(now, id);
            self.link_server(now, id);
            return Some(now.time);
        }
        let everywhere = link.asks > 0;
        self.register(now, id, everywhere);
        let link = self.servers.get(&id)?.link.as_ref()?;
        Some(now.time + backoff(link.asks.saturating_sub(1), REGISTER_RETRY, LONGEST_RETRY))
    }

    fn register(&mut self, now: Now, id: AgentId, everywhere: bool) {
        self.check_record(now);
        let Some(link) = self.servers.get_mut(&id).and_then(|server| server.link.as_mut()) else { return };
        let first = link.asked.map_or(now.time, |(first, _)| first);
        link.asked = Some((first, now.time));
        link.asks += 1;
        let register = RendezvousMessage::Register { record: self.record.clone() };
        self.send_to_server(now, id, register, everywhere);
    }

    /// Seals a message for a server; false when there is no session with it.
    pub(super) fn send_to_server(
        &mut self,
        now: Now,
        id: AgentId,
        message: RendezvousMessage,
        everywhere: bool,
    ) -> bool {
        let sealed = self.seal_for_server(now, id, &ControlMessage::Rendezvous(message));
        if let Some(datagram) = &sealed {
            self.transmit_to_server(id, datagram, everywhere);
        }
        sealed.is_some()
    }

    fn seal_for_server(&self, now: Now, id: AgentId, message: &ControlMessage) -> Option<Vec<u8>> {
        let server = self.servers.get(&id)?;
        let packet = message.emit(self.ipv6, server.ipv6);
        let mut datagram = vec![0; sealed_len(packet.len())];
        let len = server.link.as_ref()?.shared.tunnel.lock().seal(now.time, &packet, &mut datagram).ok()?;
        datagram.truncate(len);
        Some(datagram)
    }

    /// To where the server answered last; `everywhere`, or before it did, to all its addresses.
    fn transmit_to_server(&mut self, id: AgentId, datagram: &[u8], everywhere: bool) {
        let Some(server) = self.servers.get(&id) else { return };
        let path = server.link.as_ref().and_then(|link| link.shared.path.load_full()).map(|path| *path);
        let paths: Vec<PeerPath> = match path {
            Some(path) if !everywhere => vec![path],
            _ => server.addresses.iter().map(|address| PeerPath::direct(*address)).collect(),
        };
        for path in paths {
            self.transmit_on(&path, datagram.to_vec());
        }
    }

    /// The answer to a handshake with a server.
    pub(super) fn server_answered(&mut self, now: Now, id: AgentId, datagram: &StrangerDatagram) {
        let Some(link) = self.servers.get_mut(&id).and_then(|server| server.link.as_mut()) else { return };
        let mut keepalive = vec![0; CONTROL_OUTPUT_LEN];
        // The keepalive confirms the session; the registration that follows does so as well.
        if link.shared.tunnel.lock().complete(now.time, &datagram.data, &mut keepalive).is_err() {
            return self.counters.drop_handshake_invalid.increment();
        }
        self.counters.handshakes.increment();
        let before = link.shared.path.swap(Some(Arc::new(datagram.path)));
        let registered = link.registered.is_some();
        let moved = registered && !before.is_some_and(|before| before.is_same_way(&datagram.path));
        if moved || !registered {
            self.register(now, id, false);
        }
        if moved {
            // It sees this agent elsewhere from now on, and takes no frames from where it was.
            self.relay_reached(now, id, false);
        }
        self.server_timer(now, id);
    }

    /// A handshake message of a server that is no answer: a cookie.
    pub(super) fn server_tunnel(&self, id: AgentId) -> Option<&Arc<SharedPeer>> {
        Some(&self.servers.get(&id)?.link.as_ref()?.shared)
    }

    /// A message that the session proves to come from this server.
    pub(super) fn handle_server_message(&mut self, now: Now, id: AgentId, packet: &[u8], path: &PeerPath) {
        let Some(server) = self.servers.get_mut(&id) else { return };
        let is_borrowed = server.is_borrowed();
        let Some(link) = &mut server.link else { return };
        if !link.messages.take(now.time, MESSAGE_RATE) {
            return self.counters.drop_control_rate.increment();
        }
        let Ok(packet) = ControlPacket::parse(packet) else {
            return self.counters.drop_control_invalid.increment();
        };
        let message = match packet.message {
            ControlMessage::Rendezvous(message) => message,
            // Whether this agent receives where it seems to be: answered from there.
            ControlMessage::Ping { token } => {
                let pong = self.seal_for_server(now, id, &ControlMessage::Pong { token });
                return pong.into_iter().for_each(|pong| self.transmit_on(path, pong));
            }
            ControlMessage::Clock { unix_ms } => return link.clock = Some(ToldClock::new(now, unix_ms)),
            _ => return,
        };
        match message {
            RendezvousMessage::Registered { observed, relay, .. } => self.registered(now, id, observed, relay, path),
            RendezvousMessage::Introduction { sealed, observed } => {
                let allowed = link.introductions.take(now.time, SERVER_INTRODUCTION_RATE);
                let share_of = if is_borrowed { path.endpoint } else { observed };
                self.introduction_passed(now, allowed, observed, share_of, &sealed);
            }
            RendezvousMessage::Introduced { recipient, status } => self.introduction_passed_on(recipient, status),
            RendezvousMessage::RelayOpened { peer, channel, outcome } => {
                self.relay_opened(now, id, peer, channel, outcome);
            }
            RendezvousMessage::LookupResult { .. }
            | RendezvousMessage::Register { .. }
            | RendezvousMessage::Lookup { .. }
            | RendezvousMessage::Introduce { .. }
            | RendezvousMessage::RelayOpen { .. } => self.counters.drop_control_invalid.increment(),
        }
    }

    fn registered(&mut self, now: Now, id: AgentId, observed: SocketAddr, relay: bool, path: &PeerPath) {
        let Some(server) = self.servers.get_mut(&id) else { return };
        let Some(link) = &mut server.link else { return };
        let Some((_, last)) = link.asked.take() else { return };
        (server.tries, server.lost) = (0, None);
        // Of several copies the last is the one that may have been answered; the shortest estimate errs least.
        let rtt = now.time.since(last);
        link.rtt = Some(link.rtt.map_or(rtt, |known| (known * 7 + rtt) / 8));
        link.asks = 0;
        let first = link.registered.replace(now.time).is_none();
        let observed = Some(observed).filter(|observed| super::addresses::is_usable(*observed));
        let moved = std::mem::replace(&mut link.observed, observed) != observed;
        link.relays = relay;
        let before = link.shared.path.swap(Some(Arc::new(*path)));
        if first {
            tracing::info!(server = %id.short(), "registered with the rendezvous server");
            self.stun_servers_changed(now);
        }
        if first || !before.is_some_and(|before| before.is_same_way(path)) {
            self.relay_reached(now, id, first);
        }
        if moved {
            tracing::debug!(server = %id.short(), ?observed, "seen by the rendezvous server");
            self.own_candidates_changed(now);
        }
        self.server_timer(now, id);
    }
}
