//! The control plane: one state machine for one agent, without I/O.
//!
//! # Driving it
//!
//! [`Node`] is single threaded. Hand it what happened with [`Node::handle_input`] or [`Node::command`], then drain
//! [`Node::poll_output`] until it is empty, then sleep until [`Node::poll_timeout`] or the next input. Every mutation is
//! followed by a drain. Outputs are to be carried out in order; of one drain, every [`Output::Store`] before the first
//! [`Output::Transmit`], so that what was promised to a peer survives a crash.
//!
//! It never blocks, never reads a clock (the session library does, see [`crate::tunnel`]) and keeps every table within a
//! limit written in [`limits`].
//!
//! # Where things are
//!
//! The life of one peer is `peer`. Handshakes with it are in `handshake`, first contact in `introduction`, messages
//! inside the session in `control`, its paths in `paths`, `mtu`, `relays`, `candidates` and `hard_nat`. Sessions with
//! rendezvous servers are in `servers`, how this host looks from outside in `netcheck`. What users ask for is in `commands`,
//! what they are told in `report` and `health`. What follows when the host's clock is set is in `clock`.

mod addresses;
mod candidates;
mod clock;
mod commands;
mod control;
mod handshake;
mod hard_nat;
mod health;
mod introduction;
pub mod limits;
mod mtu;
mod netcheck;
mod paths;
mod peer;
mod reconfigure;
mod relays;
mod report;
mod resolve;
mod servers;
mod stored;
mod table_sizes;
mod timers;
mod told_clock;

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rand_core::CryptoRng;

use crate::forwarding::{Fib, Notice, StrangerDatagram};
use crate::identity::{
    AgentId, AgentRecord, AliasTable, HostPort, IdentityKey, Name, RendezvousRef, SignedRecord, TunnelPublic,
    TunnelSecret, VersionRange, overlay_ipv6,
};
use crate::metrics::Counters;
use crate::path::{Gather, SocketId};
use crate::time::{Now, Time};
use crate::tunnel::IndexTable;

pub use commands::{Command, Reply};
pub use peer::{RecordSource, TheirAliases};
pub use stored::{StoredError, StoredPeer};
pub use table_sizes::NodeTableSizes;
pub use timers::TimerKind;

use crate::limits::{Bucket, RateLimiter};
use addresses::KnownSources;
use limits::{
    DOUBT_RATE, INITIATION_RATES, INTRODUCTION_RATES, KNOWN_INITIATION_RATES, PROBE_RATE, RECORD_REQUEST_RATE,
};
use peer::Peer;
use servers::Server;
use timers::Timers;

/// How long an agent record is valid. A ticket works as long as the record in it; three months outlive a holiday.
pub const RECORD_LIFETIME: Duration = Duration::from_secs(90 * 24 * 3600);
/// A record is renewed this often while the agent runs.
const RECORD_RENEWAL: Duration = Duration::from_secs(7 * 24 * 3600);
/// Room for outputs that is kept. A start with a thousand peers takes a megabyte, once.
const USUAL_OUTPUTS: usize = 256;
/// Protocol versions this agent speaks.
pub const VERSIONS: VersionRange = VersionRange { min: 1, max: 1 };

/// Who the agent is, as loaded by the shell.
pub struct NodeConfig {
    /// Identity.
    pub identity: IdentityKey,
    /// Tunnel key.
    pub tunnel_secret: TunnelSecret,
    /// Sequence number of the last record published, 0 for none.
    pub record_sequence: u64,
    /// Name in the record.
    pub name: Option<Name>,
    /// IPv4 aliases; `None` without IPv4 on the interface.
    pub ipv4_range: Option<ipnet::Ipv4Net>,
    /// UDP port.
    pub port: u16,
    /// MTU of the interface, bytes.
    pub mtu: u32,
    /// Local unicast addresses, without those of overlays.
    pub local_addresses: Vec<IpAddr>,
    /// Rendezvous servers, named in the record: others reach this agent by them.
    pub rendezvous: Vec<RendezvousRef>,
    /// What is known from earlier lives.
    pub peers: Vec<StoredPeer>,
    /// Counters, shared with packet threads.
    pub counters: Arc<Counters>,
    /// Randomness.
    pub rng: Box<dyn CryptoRng + Send>,
}

/// What happened.
#[derive(Debug)]
pub enum Input {
    /// A packet thread reports.
    Notice(Notice),
    /// A datagram no session authenticated.
    Stranger(StrangerDatagram),
    /// Local unicast addresses changed; without those of overlays.
    AddressesChanged(Vec<IpAddr>),
    /// The gateway lets others in at this address, or (`None`) no longer.
    PortMapped(Option<SocketAddr>),
    /// Something else about the network changed, a default route perhaps; or the host was asleep.
    NetworkChanged,
    /// The name of a rendezvous server was looked up.
    Resolved {
        /// The server.
        server: AgentId,
        /// What it stands for; nothing if that could not be found out.
        addresses: Vec<SocketAddr>,
    },
    /// Extra sockets are open.
    SocketsOpened {
        /// The peer they are for.
        peer: AgentId,
        /// As many of those wanted as there could be.
        sockets: Vec<SocketId>,
    },
    /// [`Node::poll_timeout`] has passed.
    Timeout,
}

/// What is to be done.
#[derive(Debug)]
pub enum Output {
    /// Send a datagram.
    Transmit {
        /// To where.
        destination: SocketAddr,
        /// From this local address, if the peer knows this agent by it.
        local_ip: Option<IpAddr>,
        /// From this local socket.
        socket: SocketId,
        /// The datagram.
        datagram: Vec<u8>,
    },
    /// Open so many extra sockets; answered by [`Input::SocketsOpened`].
    OpenSockets {
        /// The peer they are for.
        peer: AgentId,
        /// At most 256.
        count: u16,
    },
    /// Close extra sockets.
    CloseSockets(Vec<SocketId>),
    /// Look up the name of a rendezvous server; answered by [`Input::Resolved`].
    Resolve {
        /// The server.
        server: AgentId,
        /// Its name.
        host: HostPort,
    },
    /// Swap the forwarding snapshot.
    Fib(Arc<Fib>),
    /// Store (`Some`) or forget a peer.
    Store(AgentId, Option<Box<StoredPeer>>),
    /// Store the sequence number of this agent's record.
    StoreSequence(u64),
    /// Tell whoever waits for it.
    Event(Event),
}

/// What somebody may wait for.
#[derive(Debug)]
pub enum Event {
    /// An echo was answered or given up.
    Ping {
        /// The number given with [`Command::Ping`].
        token: u64,
        /// The answer.
        result: Result<crate::api::PingReply, crate::api::Error>,
    },
    /// The network was checked.
    Netcheck {
        /// The number given with [`Command::Netcheck`].
        token: u64,
        /// What was found out.
        document: Box<crate::api::Netcheck>,
    },
}

/// The control plane of one agent. See the [module](self) for how to drive it.
pub struct Node {
    identity: IdentityKey,
    id: AgentId,
    ipv6: Ipv6Addr,
    tunnel_secret: TunnelSecret,
    name: Option<Name>,
    record: SignedRecord,
    port: u16,
    mtu: u32,
    local_addresses: Vec<IpAddr>,
    aliases: Option<AliasTable>,
    /// Boxed: nodes of the tree have room for twice as many as are in them.
    peers: BTreeMap<AgentId, Box<Peer>>,
    servers: BTreeMap<AgentId, Server>,
    /// Of the list of transport addresses peers were told last.
    candidates_sequence: u64,
    /// Connections begun: the last one's number.
    connections: u64,
    by_tunnel_key: HashMap<TunnelPublic, AgentId>,
    /// Whose each tunnel key was shown to be.
    proved_keys: HashMap<TunnelPublic, AgentId>,
    known_sources: KnownSources,
    indices: IndexTable<AgentId>,
    timers: Timers,
    pings: HashMap<u64, commands::PendingPing>,
    /// Where the gateway lets others in.
    port_mapped: Option<SocketAddr>,
    gather: Gather,
    /// Where its answers come from, as packet threads know it.
    stun_sources: Vec<SocketAddr>,
    /// Who waits for a check of the network.
    netchecks: Vec<u64>,
    initiations: RateLimiter,
    known_initiations: RateLimiter,
    introductions: RateLimiter,
    /// Extra sockets, and the peers they are for.
    extra_sockets: HashMap<SocketId, AgentId>,
    /// Nobody was in session who could introduce this agent, when that was looked at last.
    no_helpers: bool,
    /// For which peer a way through hard NATs was searched last.
    searching: Option<AgentId>,
    /// For probes of all paths to all peers.
    probe_budget: Bucket,
    /// For requests to where peers say that their servers are.
    record_requests: Bucket,
    /// For doubts that have servers look where this agent is.
    doubts: Bucket,
    counters: Arc<Counters>,
    rng: Box<dyn CryptoRng + Send>,
    outputs: VecDeque<Output>,
    session_erased: bool,
    /// What packet threads know, or soon will.
    fib: Arc<Fib>,
    fib_changed: bool,
    started: Time,
    /// By how much the wall clock was ahead of the other one when that was looked at last, milliseconds.
    clock_offset_ms: i64,
}

impl Node {
    /// An agent that has just started. Trusted peers are contacted at once: drain the outputs.
    ///
    /// # Errors
    /// When the record cannot be made, that is, when the clock is not plausible or the name too long.
    pub fn new(now: Now, config: NodeConfig) -> Result<Self, crate::identity::RecordError> {
        let id = config.identity.id();
        let record = make_record(now, &config, id, config.record_sequence)?;
        let mut gather = Gather::new(config.port);
        gather.set_local_addresses(&config.local_addresses);
        let ipv6 = overlay_ipv6(&id);
        let aliases = config.ipv4_range.map(|range| AliasTable::new(id, range));
        let (own_ipv4, range) = (aliases.as_ref().map(AliasTable::own), aliases.as_ref().map(AliasTable::range));
        let mut node = Self {
            id,
            ipv6,
            identity: config.identity,
            tunnel_secret: config.tunnel_secret,
            name: config.name,
            record,
            port: config.port,
            mtu: config.mtu,
            local_addresses: config.local_addresses,
            aliases,
            peers: BTreeMap::new(),
            servers: BTreeMap::new(),
            candidates_sequence: now.unix_ms.max(1),
            connections: 0,
            by_tunnel_key: HashMap::new(),
            proved_keys: HashMap::new(),
            known_sources: KnownSources::default(),
            indices: IndexTable::new(),
            timers: Timers::default(),
            pings: HashMap::new(),
            port_mapped: None,
            gather,
            stun_sources: Vec::new(),
            netchecks: Vec::new(),
            initiations: RateLimiter::new(INITIATION_RATES),
            known_initiations: RateLimiter::new(KNOWN_INITIATION_RATES),
            introductions: RateLimiter::new(INTRODUCTION_RATES),
            extra_sockets: HashMap::new(),
            no_helpers: false,
            searching: None,
            probe_budget: Bucket::full(now.time, PROBE_RATE),
            doubts: Bucket::full(now.time, DOUBT_RATE),
            record_requests: Bucket::full(now.time, RECORD_REQUEST_RATE),
            counters: config.counters,
            rng: config.rng,
            outputs: VecDeque::new(),
            session_erased: false,
            fib: Arc::new(Fib::new(ipv6, own_ipv4, range, [])),
            fib_changed: true,
            started: now.time,
            clock_offset_ms: clock::offset_ms(now),
        };
        node.outputs.push_back(Output::StoreSequence(node.record.record().sequence));
        node.timers.set(TimerKind::RecordRenewal, Some(now.time + RECORD_RENEWAL));
        node.restore(now, config.peers);
        node.add_servers(now, config.rendezvous);
        node.connect_to_trusted(now);
        Ok(node)
    }

    /// Who this agent is.
    #[must_use]
    pub fn id(&self) -> AgentId {
        self.id
    }

    /// Its tunnel key.
    #[must_use]
    pub fn tunnel_key(&self) -> TunnelPublic {
        self.record.record().tunnel_key
    }

    /// Its overlay address.
    #[must_use]
    pub fn ipv6(&self) -> Ipv6Addr {
        self.ipv6
    }

    /// This host's alias for it.
    #[must_use]
    pub fn ipv4(&self) -> Option<Ipv4Addr> {
        self.aliases.as_ref().map(AliasTable::own)
    }

    /// The range of this host's aliases.
    #[must_use]
    pub fn ipv4_range(&self) -> Option<ipnet::Ipv4Net> {
        self.aliases.as_ref().map(AliasTable::range)
    }

    /// Takes what happened. Drain the outputs afterwards.
    pub fn handle_input(&mut self, now: Now, input: Input) {
        self.check_clock(now);
        match input {
            Input::Notice(notice) => self.handle_notice(now, notice),
            Input::Stranger(datagram) => self.handle_stranger(now, &datagram),
            Input::AddressesChanged(addresses) => self.handle_addresses(now, addresses),
            Input::PortMapped(address) => self.port_mapped(now, address),
            Input::NetworkChanged => self.handle_network_change(now),
            Input::Resolved { server, addresses } => self.server_resolved(now, server, addresses),
            Input::SocketsOpened { peer, sockets } => self.sockets_opened(now, peer, sockets),
            Input::Timeout => {
                while let Some(kind) = self.timers.pop_due(now.time) {
                    self.handle_timer(now, kind);
                }
            }
        }
    }

    /// The next thing to be done.
    pub fn poll_output(&mut self) -> Option<Output> {
        if let Some(output) = self.outputs.pop_front() {
            return Some(output);
        }
        if self.outputs.capacity() > USUAL_OUTPUTS {
            self.outputs = VecDeque::new();
        }
        std::mem::take(&mut self.fib_changed).then(|| Output::Fib(self.finish_fib()))
    }

    /// When [`Input::Timeout`] is due, and what for.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<(Time, TimerKind)> {
        self.timers.next()
    }

    /// Whether a peer's sessions were erased since the last call: that leaves memory free.
    pub fn take_session_erased(&mut self) -> bool {
        std::mem::take(&mut self.session_erased)
    }

    /// Says goodbye to every peer and server with a session. The last call; drain the outputs afterwards.
    pub fn shut_down(&mut self, now: Now) {
        for id in self.peers.keys().copied().collect::<Vec<_>>() {
            self.send_goodbye(now, id, crate::wire::control::GoodbyeReason::Shutdown);
        }
        for id in self.servers.keys().copied().collect::<Vec<_>>() {
            self.leave_server(now, id);
        }
    }

    fn handle_notice(&mut self, now: Now, notice: Notice) {
        match notice {
            Notice::NeedSession { peer, packet } => self.session_needed(now, peer, packet),
            Notice::Active { peer } => self.traffic_seen(now, peer),
            Notice::HandshakeBegun { peer } => self.handshake_begun(now, peer),
            Notice::SessionConfirmed { peer } => self.session_established(now, peer),
            Notice::HeardElsewhere { peer, path, data } => self.heard_elsewhere(now, peer, &path, data),
            Notice::Control { peer, packet, newest, path } => self.handle_control(now, peer, &packet, newest, &path),
            Notice::TooBig { endpoint, len } => self.too_big_here(now, endpoint, len),
            Notice::HandshakeAnswer(datagram) => self.handle_stranger(now, &datagram),
        }
    }

    fn handle_timer(&mut self, now: Now, kind: TimerKind) {
        match kind {
            TimerKind::Tunnel(peer) => self.tunnel_timer(now, peer),
            TimerKind::Path(peer) => self.path_timer(now, peer),
            TimerKind::Server(server) => self.server_timer(now, server),
            TimerKind::Candidates(peer) => self.candidates_timer(now, peer),
            TimerKind::Search(peer) => self.search_timer(now, peer),
            TimerKind::Hello(peer) => self.hello_timer(now, peer),
            TimerKind::Introduction(peer) => self.introduction_timer(now, peer),
            TimerKind::Trust(peer) => self.trust_changed(now, peer),
            TimerKind::Ping(token) => self.ping_expired(token),
            TimerKind::Gather => self.gather_timer(now),
            TimerKind::Netcheck => self.finish_netchecks(),
            TimerKind::RecordRenewal => self.renew_record(now),
        }
    }

    fn handle_addresses(&mut self, now: Now, addresses: Vec<IpAddr>) {
        if self.local_addresses == addresses {
            return;
        }
        tracing::info!(count = addresses.len(), "local addresses changed");
        self.local_addresses = addresses;
        self.moved(now);
        self.handle_network_change(now);
    }

    fn handle_network_change(&mut self, now: Now) {
        // First the servers: what goes through a relay passes only when it knows where this agent is.
        self.refresh_servers(now);
        self.measure_again(now);
        self.own_candidates_changed(now);
        for id in self.peers.keys().copied().collect::<Vec<_>>() {
            self.network_changed_for(now, id);
        }
    }

    fn renew_record(&mut self, now: Now) {
        self.timers.set(TimerKind::RecordRenewal, Some(now.time + RECORD_RENEWAL));
        let mut record = self.record.record().clone();
        record.sequence = next_sequence(now, record.sequence);
        record.expires = now.unix_s() + RECORD_LIFETIME.as_secs();
        // What was signed once with these contents can be signed again.
        if let Ok(signed) = SignedRecord::sign(&self.identity, record) {
            self.outputs.push_back(Output::StoreSequence(signed.record().sequence));
            self.record = signed;
        }
    }

    /// The snapshot, for a change. What packet threads have stays as it is.
    fn fib_mut(&mut self) -> &mut Fib {
        self.fib_changed = true;
        Arc::make_mut(&mut self.fib)
    }

    /// The snapshot with what is known of servers. Those are few.
    fn finish_fib(&mut self) -> Arc<Fib> {
        let relays: HashSet<_> = self.servers.values().flat_map(Server::relay_addresses).collect();
        let stun_sources = self.stun_sources.iter().copied().collect();
        Arc::make_mut(&mut self.fib).set_servers(relays, stun_sources);
        Arc::clone(&self.fib)
    }
}

fn make_record(
    now: Now,
    config: &NodeConfig,
    id: AgentId,
    last_sequence: u64,
) -> Result<SignedRecord, crate::identity::RecordError> {
    let record = AgentRecord {
        id,
        sequence: next_sequence(now, last_sequence),
        expires: now.unix_s() + RECORD_LIFETIME.as_secs(),
        tunnel_key: config.tunnel_secret.public(),
        rendezvous: config.rendezvous.clone(),
        name: config.name.clone(),
        capabilities: Vec::new(),
        versions: VERSIONS,
    };
    SignedRecord::sign(&config.identity, record)
}

/// At least the time, so that an agent that lost its state still supersedes its earlier records.
fn next_sequence(now: Now, last: u64) -> u64 {
    now.unix_s().max(last.saturating_add(1))
}

#[cfg(test)]
pub(crate) use tests::stored_for_tests;

#[cfg(test)]
mod tests;
