//! One host that runs a rendezvous server.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use agentnet::identity::{AgentId, HostPort, IdentityKey, RendezvousRef, SignedRecord, TunnelSecret};
use agentnet::metrics::ServerCounters;
use agentnet::rendezvous::{Change, Limits, Local, Output, Port, Restored, Server, ServerConfig, StoredIntroduction};
use agentnet::time::{Now, Time};

use crate::PORT;
use crate::net::{Delivery, HostId, Internet, SimRng};

/// The port for the tests of RFC 5780.
const ALTERNATE_PORT: u16 = PORT + 1;

/// How a server differs from the default.
#[derive(Clone)]
pub struct ServerOptions {
    /// Whether it relays.
    pub relay: bool,
    /// What one client may send through the relay, bytes per second; no limit if none.
    pub relay_rate: Option<u32>,
    /// How much it keeps.
    pub limits: Limits,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self { relay: true, relay_rate: None, limits: Limits::default() }
    }
}

/// One host with its server.
pub struct ServerHost {
    /// The server. After something was done to it directly, [`crate::World::settle`] carries out what it wants.
    pub server: Server,
    /// What it counts, over all lives.
    pub counters: Arc<ServerCounters>,
    profile: Profile,
    at: HostId,
    is_alive: bool,
    disk: Disk,
}

/// What is the same in every life of a server.
struct Profile {
    number: usize,
    /// Of the identity and of the tunnel key.
    keys: [[u8; 32]; 2],
    /// In order of preference.
    public: Vec<SocketAddr>,
    options: ServerOptions,
    rng: SimRng,
}

/// What survives a server's process.
#[derive(Default)]
struct Disk {
    sequence: u64,
    records: BTreeMap<AgentId, SignedRecord>,
    introductions: BTreeMap<u64, StoredIntroduction>,
}

impl ServerHost {
    pub(crate) fn new(
        now: Now,
        net: &Internet,
        at: HostId,
        number: usize,
        options: ServerOptions,
        mut rng: SimRng,
    ) -> Self {
        let public = net.addresses(at).into_iter().map(|ip| SocketAddr::new(ip, PORT)).collect();
        let keys = [rng.bytes(), rng.bytes()];
        let mut profile = Profile { number, keys, public, options, rng };
        let counters = Arc::new(ServerCounters::default());
        let server = profile.start(now, Restored::default(), &counters);
        Self { server, counters, profile, at, is_alive: true, disk: Disk::default() }
    }

    /// What agents are configured with: its address or, if it has several, a name that stands for all of them.
    pub fn reference(&self) -> RendezvousRef {
        let address = match self.profile.public.as_slice() {
            [only] => only.to_string().parse().expect("an address and a port"),
            _ => self.name(),
        };
        RendezvousRef { id: self.server.id(), address }
    }

    /// Which host of the internet it is.
    pub fn at(&self) -> HostId {
        self.at
    }

    /// Whether it runs.
    pub fn is_alive(&self) -> bool {
        self.is_alive
    }

    /// What a resolver knows of it.
    pub(crate) fn resolve(&self, name: &HostPort) -> Option<&[SocketAddr]> {
        (*name == self.name()).then_some(&self.profile.public)
    }

    pub(crate) fn kill(&mut self) {
        self.is_alive = false;
    }

    pub(crate) fn restart(&mut self, now: Now) {
        self.server = self.profile.start(now, self.disk.restored(), &self.counters);
        self.is_alive = true;
    }

    pub(crate) fn next_timer(&self) -> Option<Time> {
        self.is_alive.then(|| self.server.poll_timeout())
    }

    pub(crate) fn datagram_arrived(&mut self, now: Now, delivery: &Delivery) {
        let port = match delivery.destination.port() {
            PORT => Port::Primary,
            ALTERNATE_PORT => Port::Alternate,
            _ => return,
        };
        if self.is_alive {
            let local = Local { port, ip: Some(delivery.destination.ip()) };
            self.server.handle_datagram(now, delivery.source, local, &delivery.bytes);
        }
    }

    /// Does all there is to do at this instant.
    pub(crate) fn run(&mut self, now: Now, net: &mut Internet) {
        if self.next_timer().is_some_and(|at| at <= now.time) {
            self.server.handle_timeout(now);
        }
        while let Some(output) = self.server.poll_output().filter(|_| self.is_alive) {
            match output {
                Output::Transmit { destination, from, datagram } => {
                    let port = if from.port == Port::Primary { PORT } else { ALTERNATE_PORT };
                    // What the host's own kernel refuses is lost.
                    let _ = net.send(now.time.since_origin(), self.at, port, from.ip, destination, datagram);
                }
                Output::Store(change) => self.disk.store(change),
            }
        }
    }

    fn name(&self) -> HostPort {
        format!("server{}.example:{PORT}", self.profile.number).parse().expect("a plain name")
    }
}

impl Profile {
    fn start(&mut self, now: Now, restored: Restored, counters: &Arc<ServerCounters>) -> Server {
        let config = ServerConfig {
            identity: IdentityKey::from_seed(self.keys[0]),
            tunnel_secret: TunnelSecret::from_bytes(self.keys[1]),
            public: self.public.clone(),
            alternate_port: true,
            relay: self.options.relay,
            relay_rate: self.options.relay_rate,
            limits: self.options.limits,
            restored,
            counters: Arc::clone(counters),
            rng: Box::new(self.rng.fork()),
        };
        Server::new(now, config).expect("a record of plain contents")
    }
}

impl Disk {
    fn store(&mut self, change: Change) {
        match change {
            Change::Sequence(sequence) => self.sequence = sequence,
            Change::Record(id, Some(record)) => {
                self.records.insert(id, record);
            }
            Change::Record(id, None) => {
                self.records.remove(&id);
            }
            Change::Introduction(number, Some(stored)) => {
                self.introductions.insert(number, *stored);
            }
            Change::Introduction(number, None) => {
                self.introductions.remove(&number);
            }
        }
    }

    fn restored(&self) -> Restored {
        Restored {
            sequence: self.sequence,
            records: self.records.values().cloned().collect(),
            introductions: self.introductions.values().cloned().collect(),
        }
    }
}
