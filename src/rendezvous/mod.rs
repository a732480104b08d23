//! The rendezvous server: STUN, a directory of signed records, introductions, and a relay. One state machine without
//! I/O.
//!
//! # Driving it
//!
//! [`Server`] is single threaded. A receive round begins with [`Server::begin_round`]; if it came back full, every relay
//! frame of it goes through [`Server::weigh`], and [`Server::limit_round`] ends that. Then relay frames that arrived on
//! the primary port go to [`Server::relay`], which says where each goes on to, unchanged, without a copy; everything else
//! goes to [`Server::handle_datagram`]. After that, [`Server::poll_output`] is drained; [`Server::handle_timeout`] is called
//! when [`Server::poll_timeout`] has passed, and its outputs are drained too.
//!
//! It never blocks, never reads a clock (the session library does, see [`crate::tunnel`]), never begins a conversation
//! but to ask a client that moved whether it is there, and answers nobody with more than was asked. Every table has a limit,
//! in [`Limits`] or beside it.
//!
//! # What it can do to its clients
//!
//! It can delay, and it can forget. It cannot read what it passes on: introductions are sealed to their recipient, and
//! the relay (`channels`) sees numbers, addresses and lengths.
//!
//! # Where things are
//!
//! Who has a session is in `clients`, how one begins in `handshake`, what is asked inside in `requests`, and how a client
//! shows where it is in `routability`. What is kept is in `directory`, `introductions` and `channels`; who gets how much of a crowded relay, in `fairness`, and who gives way
//! in a full table, in `crowds`. What is answered to anybody, from no table, is in `stateless`.

mod channels;
mod clients;
mod crowds;
mod directory;
mod fairness;
mod handshake;
mod introductions;
mod pace;
mod requests;
mod routability;
mod stateless;
mod table_sizes;

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rand_core::CryptoRng;

use crate::identity::ticket::is_usable_address;
use crate::identity::{AgentId, AgentRecord, IdentityKey, RecordError, RendezvousRef, SignedRecord, TunnelSecret};
use crate::identity::{is_overlay, overlay_ipv6};
use crate::limits::{RateLimiter, Rates};
use crate::metrics::ServerCounters;
use crate::time::{Now, Time};
use crate::tunnel::HandshakeFilter;
use crate::wire::{DatagramKind, MAX_DATAGRAM, PROTOCOL_VERSIONS, RelayFrame, ServerAddresses, classify};

pub use clients::REGISTRATION_S;
pub use introductions::{INTRODUCTION_LIFETIME, RowError, StoredIntroduction};
pub use table_sizes::ServerTableSizes;

use channels::{Channels, NoPassage};
use clients::Clients;
use directory::Directory;
use fairness::FairShares;
use introductions::Introductions;
use routability::Proofs;

/// How long the server's record is valid.
const RECORD_LIFETIME: Duration = Duration::from_secs(90 * 24 * 3600);
/// The record is renewed this often while the server runs.
const RECORD_RENEWAL: Duration = Duration::from_secs(7 * 24 * 3600);
/// Records and introductions that became too old are looked for this often.
const SWEEP_INTERVAL: Duration = Duration::from_secs(3600);
/// Handshake initiations from where no client is. Each costs five Diffie-Hellman operations, about 300 us.
const INITIATION_RATES: Rates = Rates { per_network: 20, total: 500 };
/// Initiations from where a client is, which pass whatever strangers send. 65,536 clients make 550 a second, those of one
/// network rarely more than 20; no few networks use up the total. A client alone has its own pace besides.
const KNOWN_INITIATION_RATES: Rates = Rates { per_network: 100, total: 1500 };
/// Clients that one receive round can carry frames of: 32 trains of 64 datagrams.
const ROUND_CLIENTS: usize = 32 * 64;

/// How much the server keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Sessions. Each costs about 12 KiB.
    pub clients: usize,
    /// Records, of clients and past clients; more than `clients`. Each costs about 1 KiB.
    pub records: usize,
    /// Introductions that wait for their recipient. Each costs about 1 KiB.
    pub introductions: usize,
    /// Relay channels. Each costs about 400 bytes.
    pub channels: usize,
    /// Relay channels opened by one client.
    pub channels_per_client: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { clients: 65_536, records: 2 * 65_536, introductions: 4096, channels: 131_072, channels_per_client: 256 }
    }
}

/// What the server knew in an earlier life.
#[derive(Debug, Default)]
pub struct Restored {
    /// Sequence number of the last record published, 0 for none.
    pub sequence: u64,
    /// Records of past clients.
    pub records: Vec<SignedRecord>,
    /// Introductions that wait, oldest first.
    pub introductions: Vec<StoredIntroduction>,
}

/// Who the server is, as loaded by the shell.
pub struct ServerConfig {
    /// Identity.
    pub identity: IdentityKey,
    /// Tunnel key.
    pub tunnel_secret: TunnelSecret,
    /// Where clients reach it, at most one per family, the preferred one first.
    pub public: Vec<SocketAddr>,
    /// Whether there is an alternate port, one above that of each public address, for the tests of RFC 5780.
    pub alternate_port: bool,
    /// Whether it relays.
    pub relay: bool,
    /// What one client may send through the relay, bytes per second; `None` without a limit.
    pub relay_rate: Option<u32>,
    /// How much it keeps.
    pub limits: Limits,
    /// What is known from earlier lives.
    pub restored: Restored,
    /// Counters.
    pub counters: Arc<ServerCounters>,
    /// Randomness.
    pub rng: Box<dyn CryptoRng + Send>,
}

/// One of the server's two ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Port {
    /// The one for everything.
    Primary,
    /// One above, for STUN only.
    Alternate,
}

/// Where on this host a datagram arrives or leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Local {
    /// The port.
    pub port: Port,
    /// The address, if known.
    pub ip: Option<IpAddr>,
}

/// Where a client is: its address, and the one of this host that it knows the server by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Route {
    /// The client's address.
    pub destination: SocketAddr,
    /// This host's address, if known.
    pub local_ip: Option<IpAddr>,
}

/// Names a client in this process' life; never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct ClientKey(u64);

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Send a datagram.
    Transmit {
        /// To where.
        destination: SocketAddr,
        /// From where.
        from: Local,
        /// The datagram.
        datagram: Vec<u8>,
    },
    /// Store a change; a delay of a second is no harm.
    Store(Change),
}

/// What is to be stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// The sequence number of the server's record.
    Sequence(u64),
    /// A record (`Some`), or that there is none any more.
    Record(AgentId, Option<SignedRecord>),
    /// An introduction of this number (`Some`), or that there is none any more.
    Introduction(u64, Option<Box<StoredIntroduction>>),
}

/// A rendezvous server. See the [module](self) for how to drive it.
pub struct Server {
    identity: IdentityKey,
    id: AgentId,
    ipv6: Ipv6Addr,
    tunnel_secret: TunnelSecret,
    record: SignedRecord,
    filter: HandshakeFilter,
    stun: Vec<ServerAddresses>,
    relay: bool,
    relay_rate: Option<u32>,
    clients: Clients,
    directory: Directory,
    introductions: Introductions,
    channels: Channels,
    proofs: Proofs,
    shares: FairShares<ClientKey>,
    stun_requests: RateLimiter,
    known_stun_requests: RateLimiter,
    records: RateLimiter,
    initiations: RateLimiter,
    known_initiations: RateLimiter,
    record_renewal: Time,
    sweep: Time,
    counters: Arc<ServerCounters>,
    rng: Box<dyn CryptoRng + Send>,
    outputs: VecDeque<Output>,
    /// What a packet is opened into.
    opened: Vec<u8>,
}

impl Server {
    /// A server that has just started. Drain its outputs.
    ///
    /// # Errors
    /// When the record cannot be made: there are more public addresses than a record holds.
    pub fn new(now: Now, config: ServerConfig) -> Result<Self, RecordError> {
        let id = config.identity.id();
        let references = config.public.iter().map(|address| reference(id, *address));
        let record = AgentRecord {
            id,
            sequence: next_sequence(now, config.restored.sequence),
            expires: now.unix_s() + RECORD_LIFETIME.as_secs(),
            tunnel_key: config.tunnel_secret.public(),
            rendezvous: references.collect::<Option<_>>().ok_or(RecordError::Malformed)?,
            name: None,
            capabilities: Vec::new(),
            versions: PROTOCOL_VERSIONS,
        };
        let record = SignedRecord::sign(&config.identity, record)?;
        let alternate = |address: &SocketAddr| address.port().checked_add(1).filter(|_| config.alternate_port);
        let stun = config.public.iter().filter_map(|address| ServerAddresses::new(*address, None, alternate(address)));
        let limits = config.limits;
        let mut server = Self {
            id,
            ipv6: overlay_ipv6(&id),
            filter: HandshakeFilter::new(&config.tunnel_secret.public()),
            stun: stun.collect(),
            identity: config.identity,
            tunnel_secret: config.tunnel_secret,
            record,
            relay: config.relay,
            relay_rate: config.relay_rate,
            clients: Clients::new(limits.clients),
            directory: Directory::new(limits.records.max(limits.clients.saturating_add(1))),
            introductions: Introductions::new(limits.introductions),
            channels: Channels::new(limits.channels, limits.channels_per_client),
            proofs: Proofs::default(),
            shares: FairShares::new(ROUND_CLIENTS),
            stun_requests: RateLimiter::new(stateless::STUN_RATES),
            known_stun_requests: RateLimiter::new(stateless::KNOWN_STUN_RATES),
            records: RateLimiter::new(stateless::RECORD_RATES),
            initiations: RateLimiter::new(INITIATION_RATES),
            known_initiations: RateLimiter::new(KNOWN_INITIATION_RATES),
            record_renewal: now.time + RECORD_RENEWAL,
            sweep: now.time + SWEEP_INTERVAL,
            counters: config.counters,
            rng: config.rng,
            outputs: VecDeque::new(),
            opened: vec![0; MAX_DATAGRAM],
        };
        server.store(Change::Sequence(server.record.record().sequence));
        server.restore(now, config.restored);
        Ok(server)
    }

    /// Who the server is.
    #[must_use]
    pub fn id(&self) -> AgentId {
        self.id
    }

    /// Its record.
    #[must_use]
    pub fn record(&self) -> &SignedRecord {
        &self.record
    }

    /// A receive round begins. It is not limited until [`limit_round`](Self::limit_round).
    pub fn begin_round(&mut self) {
        self.shares.begin();
    }

    /// A relay frame of a round that came back full.
    pub fn weigh(&mut self, source: SocketAddr, frame: &[u8]) {
        let Ok(parsed) = RelayFrame::parse(frame) else { return };
        if let Some(client) = self.channels.sender(parsed.channel, source) {
            self.shares.weigh(client, frame.len());
        }
    }

    /// Every frame of the round was weighed: from now on each client has its fair share of it.
    pub fn limit_round(&mut self) {
        self.shares.limit();
    }

    /// Where a relay frame that arrived on the primary port goes on to, unchanged; `None` when it is dropped.
    pub fn relay(&mut self, now: Time, source: SocketAddr, frame: &[u8]) -> Option<Route> {
        let parsed = RelayFrame::parse(frame).ok().filter(|parsed| is_wireguard(parsed.payload));
        let Some(parsed) = parsed else {
            self.counters.drop_relay_invalid.increment();
            return None;
        };
        let (sender, route) = match self.channels.pass(now, parsed.channel, source) {
            Ok(passage) => passage,
            Err(NoPassage::Channel) => {
                self.counters.drop_relay_channel.increment();
                return None;
            }
            Err(NoPassage::Source) => {
                self.counters.drop_relay_source.increment();
                return None;
            }
            Err(NoPassage::Loop) => {
                self.counters.drop_relay_loop.increment();
                return None;
            }
            Err(NoPassage::Nowhere) => {
                self.counters.drop_relay_unproved.increment();
                return None;
            }
        };
        if !self.within_rate(now, sender, frame.len()) {
            self.counters.drop_relay_rate.increment();
            return None;
        }
        if !self.shares.admit(sender, frame.len()) {
            self.counters.drop_relay_unfair.increment();
            return None;
        }
        self.counters.relay_frames.increment();
        self.counters.relay_bytes.add(frame.len() as u64);
        Some(route)
    }

    /// A datagram. Relay frames may come here too, at the cost of a copy. Drain the outputs afterwards.
    pub fn handle_datagram(&mut self, now: Now, source: SocketAddr, local: Local, datagram: &[u8]) {
        let overlay = matches!(source.ip(), IpAddr::V6(ip) if is_overlay(ip));
        // What came from an own address would be answered, or even relayed, to this server.
        if overlay || !is_usable_address(&source) || self.is_own(source, local) {
            return self.counters.drop_source.increment();
        }
        let kind = classify(datagram);
        if kind == DatagramKind::Stun {
            return self.handle_stun(now, source, local, datagram);
        }
        if local.port == Port::Alternate {
            return self.counters.drop_alternate_port.increment();
        }
        let route = Route { destination: source, local_ip: local.ip };
        match kind {
            DatagramKind::Relay => {
                if let Some(onward) = self.relay(now.time, source, datagram) {
                    self.transmit(onward, datagram.to_vec());
                }
            }
            DatagramKind::RecordRequest => self.handle_record_request(now, route, datagram),
            DatagramKind::WireguardInitiation => self.handle_initiation(now.time, route, datagram),
            DatagramKind::WireguardData { receiver_index } => self.handle_data(now, route, receiver_index, datagram),
            _ => self.counters.drop_unknown_kind.increment(),
        }
    }

    /// [`poll_timeout`](Self::poll_timeout) has passed. Drain the outputs afterwards.
    pub fn handle_timeout(&mut self, now: Now) {
        while let Some(client) = self.clients.pop_silent(now.time) {
            self.counters.drop_clients_silent.increment();
            self.forget(client);
        }
        self.proofs_due(now.time);
        let closed = self.channels.expire(now.time);
        self.counters.drop_channels_closed.add(closed as u64);
        if now.time >= self.sweep {
            self.sweep = now.time + SWEEP_INTERVAL;
            self.sweep(now);
        }
        if now.time >= self.record_renewal {
            self.renew_record(now);
        }
    }

    /// When [`handle_timeout`](Self::handle_timeout) is due.
    #[must_use]
    pub fn poll_timeout(&self) -> Time {
        let tables = [self.clients.next_timeout(), self.channels.next_timeout(), self.proofs.next_timeout()];
        tables.into_iter().flatten().fold(self.sweep.min(self.record_renewal), Time::min)
    }

    /// The next thing to be done.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    fn restore(&mut self, now: Now, restored: Restored) {
        for record in restored.records {
            let id = record.id();
            if record.is_expired(now.unix_s()) || !self.directory.restore(record) {
                self.store(Change::Record(id, None));
            }
        }
        for stored in restored.introductions {
            let number = stored.number;
            if !self.introductions.restore(stored) {
                self.store(Change::Introduction(number, None));
            }
        }
        self.sweep(now);
    }

    /// Forgets what is too old.
    fn sweep(&mut self, now: Now) {
        for id in self.directory.expire(now.unix_s()) {
            self.store(Change::Record(id, None));
        }
        for number in self.introductions.expire(now.unix_ms) {
            self.counters.drop_introductions_kept.increment();
            self.store(Change::Introduction(number, None));
        }
        // Its end is not plausible when it was made with a clock that has been set since.
        let left = self.record.record().expires.saturating_sub(now.unix_s());
        if left == 0 || left > RECORD_LIFETIME.as_secs() {
            self.renew_record(now);
        }
    }

    fn renew_record(&mut self, now: Now) {
        self.record_renewal = now.time + RECORD_RENEWAL;
        let mut record = self.record.record().clone();
        record.sequence = next_sequence(now, record.sequence);
        record.expires = now.unix_s() + RECORD_LIFETIME.as_secs();
        // What was signed once with these contents can be signed again.
        if let Ok(signed) = SignedRecord::sign(&self.identity, record) {
            self.store(Change::Sequence(signed.record().sequence));
            self.record = signed;
        }
    }

    /// Whether one of this server's ports is there.
    fn is_own(&self, address: SocketAddr, local: Local) -> bool {
        let mut own = self.stun.iter().flat_map(ServerAddresses::iter);
        own.any(|own| own == address || own.port() == address.port() && local.ip == Some(address.ip()))
    }

    fn within_rate(&mut self, now: Time, client: ClientKey, bytes: usize) -> bool {
        let Some(rate) = self.relay_rate else { return true };
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        self.clients.get_mut(client).is_some_and(|client| client.relayed.take_many(now, bytes, rate))
    }

    /// Forgets a client and closes its channels. Its record is remembered.
    fn forget(&mut self, client: ClientKey) {
        let Some(removed) = self.clients.remove(client) else { return };
        self.proofs.cancel(client);
        let closed = self.channels.close_all(client);
        self.counters.drop_channels_closed.add(closed as u64);
        if let Some(registration) = removed.registration
            && self.clients.with_id(&registration.id).is_none()
        {
            tracing::debug!(client = %registration.id.short(), channels = closed, "client forgotten");
            self.directory.left(registration.id);
        }
    }

    fn transmit(&mut self, route: Route, datagram: Vec<u8>) {
        let from = Local { port: Port::Primary, ip: route.local_ip };
        self.outputs.push_back(Output::Transmit { destination: route.destination, from, datagram });
    }

    fn store(&mut self, change: Change) {
        self.outputs.push_back(Output::Store(change));
    }
}

/// `AGENTID@HOST:PORT` of a server at this address. `None` for one that nobody can send to.
#[must_use]
pub fn reference(id: AgentId, address: SocketAddr) -> Option<RendezvousRef> {
    is_usable_address(&address)
        .then(|| Some(RendezvousRef { id, address: address.to_string().parse().ok()? }))
        .flatten()
}

/// Whether it is a WireGuard message by its first bytes: nothing else is relayed, so that the relay is of no use to
/// reach other services.
fn is_wireguard(payload: &[u8]) -> bool {
    matches!(
        classify(payload),
        DatagramKind::WireguardInitiation
            | DatagramKind::WireguardResponse
            | DatagramKind::WireguardCookie
            | DatagramKind::WireguardData { .. }
    )
}

/// At least the time, so that a server that lost its state still supersedes its earlier records.
fn next_sequence(now: Now, last: u64) -> u64 {
    now.unix_s().max(last.saturating_add(1))
}

#[cfg(test)]
mod tests;
