//! From a configuration to a running agent, and back: everything taken from the host is given back in reverse order.

use std::io::{self, Write};
use std::num::NonZeroU16;
use std::sync::Arc;

use agentnet_platform::network::{Configured, HostLayout, InterfaceConfig, Network, NetworkError};
use agentnet_platform::tun::{Tun, TunError, TunOptions};
use agentnet_platform::udp::{DatagramSocket, UdpError, UdpOptions, UdpSockets};
use arc_swap::ArcSwap;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use rand_core::{CryptoRng, UnwrapErr};
use tokio::sync::{mpsc, watch};

use super::control_socket::{ControlSocket, REQUEST_QUEUE};
use super::event_loop::{EventLoop, Own, Queues};
use super::host::{
    OverlayRoutes, default_gateway, free_ipv4_range, interface_mtu, overlay_routes, transport_addresses,
};
use super::host_health::small_buffers;
use super::metrics_listener::AgentMetrics;
use super::packet_threads::{NOTICE_QUEUE, PacketThreads, STRANGER_QUEUE, Shared};
use super::port_mapping::{PortMapper, switched_off};
use super::resolver::Resolver;
use super::rights::{Rights, confine_agent};
use super::service_manager::ServiceManager;
use super::signals::Signals;
use super::state_dir::{StateDir, unusable};
use super::store::{Changes, Loaded, Store};
use super::{Surroundings, now, preflight};
use crate::api::{Error, ErrorCode, HealthEntry, PortMappingCheck, StartReport, Started};
use crate::config::{Config, Origin};
use crate::forwarding::{Fib, Offloads};
use crate::identity::{AgentId, AliasTable, IdentityKey, OVERLAY_PREFIX, TunnelSecret, overlay_ipv6};
use crate::metrics::Counters;
use crate::node::{Node, NodeConfig};

/// Open files: sockets, device, state, and a control connection per waiting local program.
const OPEN_FILES: u64 = 4096;
/// Socket buffers, bytes: what arrives at 10 Gb/s in 1.6 ms. The kernel's limit may allow less.
const SOCKET_BUFFER: usize = 2 * 1024 * 1024;
/// Queues without being asked: programs and the kernel need processors too.
const MOST_USUAL_QUEUES: usize = 4;
/// Routing tables of agents that are not the first on their host: this plus the UDP port.
const TABLE_BASE: u32 = 0x6161_0000;

/// Starts the agent, reports, runs it until it is told to stop, and leaves the host as it was.
pub(super) async fn run(config: Config, surroundings: Surroundings, background: bool) -> Result<(), Error> {
    let mut signals = Signals::new()?;
    preflight(&config)?;
    let _ = agentnet_platform::process::raise_open_files_limit(OPEN_FILES);
    let mut start = Start::new(&config, surroundings)?;
    let host = Host::take(&config, &mut start).await?;
    let result = match start.rights.reduce(&mut start.health) {
        Ok(()) => run_on(&host, start, &mut signals, config, background).await,
        Err(error) => Err(error),
    };
    host.give_back().await;
    tracing::info!("agent stopped");
    result
}

/// What is known before the host is touched.
struct Start {
    /// Held for as long as the agent runs.
    _state_dir: StateDir,
    identity: IdentityKey,
    store: Store,
    loaded: Loaded,
    /// To be stored before anybody is promised anything.
    changes: Changes,
    health: Vec<HealthEntry>,
    surroundings: Surroundings,
    rights: Rights,
}

impl Start {
    fn new(config: &Config, surroundings: Surroundings) -> Result<Self, Error> {
        let mut health = Vec::new();
        let rights = Rights::choose(config, &mut health)?;
        let state_dir = StateDir::take(&config.state_dir.value, rights.user())?;
        let _acting = rights.act()?;
        let (identity, exposed) = state_dir.identity()?;
        let store = Store::open(state_dir.state_file())?;
        let loaded = store.load()?;
        health.extend(exposed.into_iter().chain(unreadable_peers(&loaded)));
        let changes = Changes::default();
        Ok(Self { _state_dir: state_dir, identity, store, loaded, changes, health, surroundings, rights })
    }
}

/// What the agent takes from the host.
struct Host {
    network: Network,
    layout: HostLayout,
    sockets: Arc<UdpSockets>,
    /// Those of the further queues.
    twins: Vec<Arc<UdpSockets>>,
    tun: Tun,
    interface: Interface,
    /// IPv4 aliases in force.
    range: Option<Ipv4Net>,
    mtu: u32,
}

impl Host {
    async fn take(config: &Config, start: &mut Start) -> Result<Self, Error> {
        let network = Network::new().map_err(|error| interface_failed(&error.to_string()))?;
        if let Err(error) = network.remove_stale_rules().await {
            tracing::warn!(%error, "rules of a killed agent may be left");
        }
        let layout = network.layout().await.map_err(|error| network_error(&error))?;
        let sockets = Arc::new(bind(config, &start.loaded, &mut start.health)?);
        start.health.extend(small_buffers(sockets.buffers(), SOCKET_BUFFER));
        start.changes.port(sockets.port());
        let range = choose_range(config, &start.loaded, &layout, &mut start.health)?;
        if let Some(range) = range {
            start.changes.ipv4_range(range);
        }
        let mtu = config.mtu.value.map_or_else(|| interface_mtu(&layout), u32::from);
        let tun = open_tun(config, mtu)?;
        let twins = (1..tun.queue_count())
            .map(|_| sockets.twin().map(Arc::new))
            .collect::<io::Result<_>>()
            .map_err(|error| udp_error(&UdpError::Other(error)))?;
        let interface = Interface::new(&layout, start.identity.id(), range, mtu, sockets.port());
        let mut host = Self { network, layout, sockets, twins, tun, interface, range, mtu };
        match host.interface.configure(&host.network, &host.tun, range, &mut start.health).await {
            Ok(range) => {
                host.range = range;
                Ok(host)
            }
            Err(error) => {
                host.give_back().await;
                Err(error)
            }
        }
    }

    async fn give_back(self) {
        self.interface.deconfigure(&self.network, &self.tun).await;
    }
}

async fn run_on(
    host: &Host,
    mut start: Start,
    signals: &mut Signals,
    config: Config,
    background: bool,
) -> Result<(), Error> {
    let counters = Arc::new(Counters::default());
    let node = make_node(host, &mut start, &config, Arc::clone(&counters))?;
    let state_dir = &config.state_dir.value;
    start.store.commit(std::mem::take(&mut start.changes)).map_err(|error| unusable(state_dir, &error))?;

    let (notices, notice_queue) = mpsc::channel(NOTICE_QUEUE);
    let (strangers, stranger_queue) = mpsc::channel(STRANGER_QUEUE);
    let (requests, request_queue) = mpsc::channel(REQUEST_QUEUE);
    let (ended, ended_queue) = mpsc::channel(2);
    let _control_socket = ControlSocket::serve(&config.socket.value, requests.clone()).await?;
    let metrics = AgentMetrics::listen(requests, config.metrics_listen.value);
    let mut service_manager = service_manager(background);
    // Nothing of the network was read yet, no thread started.
    confine_agent(&config, start.surroundings.file.as_deref(), &mut start.health);
    let (resolver, resolved) = Resolver::new();
    let (port_mapper, port_mapping) = map_port(host, &config);
    let queues = Queues {
        notices: notice_queue,
        strangers: stranger_queue,
        requests: request_queue,
        ended: ended_queue,
        resolved,
        network_events: host.network.events().map_err(|error| interface_failed(&error.to_string()))?,
        port_mapping,
    };
    if signals.told_to_stop().await {
        tracing::info!("told to stop before the agent was ready");
        return Ok(());
    }
    let shared = Shared {
        fib: Arc::new(ArcSwap::from_pointee(Fib::new(node.ipv6(), None, None, []))),
        socket: Arc::clone(&host.sockets),
        own_key: node.tunnel_key(),
        offloads: Offloads { tcp: host.tun.tcp_offload(), udp: host.tun.udp_offload() },
        counters,
        notices,
        strangers,
        turns: (!host.twins.is_empty()).then(Arc::default),
        ended,
    };
    let threads = PacketThreads::start(&shared, &host.twins, |number| host.tun.queue(number))
        .map_err(|error| interface_failed(&format!("the packet threads cannot be started: {error}")))?;
    let started = started(host, &node, &start.health);
    tracing::info!(id = %node.id(), interface = host.tun.name(), port = started.port, "agent started");
    service_manager.ready(now().time, &format!("interface {}, UDP port {}", started.interface, started.port));
    let own = Own {
        config,
        started: started.clone(),
        mtu: host.mtu,
        tun: host.tun.index(),
        health: start.health,
        metrics,
        surroundings: start.surroundings,
        service_manager,
    };
    let mut event_loop = EventLoop::new(node, start.store, shared, resolver, port_mapper, own);
    if background {
        report_ready(started);
    }
    let result = event_loop.run(queues, signals, &host.network).await;
    threads.stop();
    result
}

fn started(host: &Host, node: &Node, health: &[HealthEntry]) -> Started {
    Started {
        identity: node.identity_document(),
        interface: host.tun.name().to_owned(),
        port: host.sockets.port(),
        pid: std::process::id(),
        already_running: false,
        health: health.to_vec(),
    }
}

fn map_port(host: &Host, config: &Config) -> (Option<PortMapper>, watch::Receiver<PortMappingCheck>) {
    match NonZeroU16::new(host.sockets.port()) {
        Some(port) if config.port_mapping.value => {
            let (mapper, found) = PortMapper::start(port, default_gateway(&host.layout));
            (Some(mapper), found)
        }
        _ => (None, switched_off()),
    }
}

/// A process in the background was started by `up`, which is told at the end of the start.
fn service_manager(background: bool) -> ServiceManager {
    if background { ServiceManager::default() } else { ServiceManager::from_environment() }
}

fn make_node(host: &Host, start: &mut Start, config: &Config, counters: Arc<Counters>) -> Result<Node, Error> {
    let stored = start.loaded.tunnel_secret.take();
    let tunnel_secret = stored.unwrap_or_else(|| TunnelSecret::generate(&mut system_rng()));
    start.changes.tunnel_secret(&tunnel_secret);
    let config = NodeConfig {
        identity: IdentityKey::from_seed(*start.identity.seed()),
        tunnel_secret,
        record_sequence: start.loaded.record_sequence,
        name: config.name.value.clone(),
        ipv4_range: host.range,
        port: host.sockets.port(),
        mtu: host.mtu,
        local_addresses: transport_addresses(&host.layout),
        rendezvous: config.rendezvous.value.clone(),
        peers: std::mem::take(&mut start.loaded.peers),
        counters,
        rng: Box::new(system_rng()),
    };
    Node::new(now(), config)
        .map_err(|error| Error::new(ErrorCode::ClockInvalid, error.to_string(), "check the system clock and --name"))
}

/// The operating system's randomness. Without it nothing here can be done safely, so its failure ends the process.
pub(super) fn system_rng() -> impl CryptoRng + Send + use<> {
    UnwrapErr(getrandom::SysRng)
}

/// What is set on the interface, per family: the first agent of a host routes the overlay in the main table, further
/// ones in tables of their own.
struct Interface {
    ipv6: InterfaceConfig,
    ipv4: Option<InterfaceConfig>,
}

impl Interface {
    fn new(layout: &HostLayout, id: AgentId, range: Option<Ipv4Net>, mtu: u32, port: u16) -> Self {
        let table = match overlay_routes(layout) {
            OverlayRoutes::Free => None,
            OverlayRoutes::OtherAgent | OverlayRoutes::Foreign => Some(TABLE_BASE + u32::from(port)),
        };
        let ipv6 = InterfaceConfig {
            mtu,
            addresses: vec![IpNet::V6(Ipv6Net::from(overlay_ipv6(&id)))],
            routes: vec![IpNet::V6(OVERLAY_PREFIX)],
            table,
        };
        let ipv4 = range.map(|range| InterfaceConfig {
            mtu,
            addresses: vec![IpNet::V4(Ipv4Net::from(AliasTable::new(id, range).own()))],
            routes: vec![IpNet::V4(range)],
            table: None,
        });
        Self { ipv6, ipv4 }
    }

    /// Sets it. Returns the IPv4 range that is in force.
    async fn configure(
        &self,
        network: &Network,
        tun: &Tun,
        range: Option<Ipv4Net>,
        health: &mut Vec<HealthEntry>,
    ) -> Result<Option<Ipv4Net>, Error> {
        let ipv6 = network.configure(tun.index(), &self.ipv6).await.map_err(|error| network_error(&error))?;
        let mut range = range;
        if let Some(config) = &self.ipv4 {
            let ipv4 = network.configure(tun.index(), config).await.map_err(|error| network_error(&error))?;
            if !ipv4.is_complete() {
                health.push(incomplete("ipv4_not_configured", &ipv4));
                range = None;
            }
        }
        if !ipv6.is_complete() {
            if range.is_none() {
                return Err(interface_failed(&failures(&ipv6)));
            }
            health.push(if ipv6.ipv6_disabled {
                entry(
                    "ipv6_disabled",
                    "IPv6 is switched off on this host: other agents are reached by their IPv4 aliases only".to_owned(),
                    "switch it on: `sysctl net.ipv6.conf.all.disable_ipv6=0`, then restart the agent",
                )
            } else {
                incomplete("ipv6_not_configured", &ipv6)
            });
        }
        Ok(range)
    }

    async fn deconfigure(&self, network: &Network, tun: &Tun) {
        for config in [Some(&self.ipv6), self.ipv4.as_ref()].into_iter().flatten() {
            // Routes and addresses go with the interface anyway; rules would stay.
            if let Err(error) = network.deconfigure(tun.index(), config).await {
                tracing::debug!(%error, "the interface was gone before");
            }
        }
    }
}

fn bind(config: &Config, loaded: &Loaded, health: &mut Vec<HealthEntry>) -> Result<UdpSockets, Error> {
    let options =
        |port| UdpOptions { port, v4: true, v6: true, recv_buffer: SOCKET_BUFFER, send_buffer: SOCKET_BUFFER };
    let wanted = config.port.value.or(loaded.port).unwrap_or(0);
    match UdpSockets::bind(&options(wanted)) {
        Ok(sockets) => Ok(sockets),
        Err(UdpError::PortInUse(port)) if config.port.value.is_none() => {
            let sockets = UdpSockets::bind(&options(0)).map_err(|error| udp_error(&error))?;
            health.push(entry(
                "port_changed",
                format!("UDP port {port}, used before, is taken; the agent now uses {}", sockets.port()),
                "tickets handed out earlier name the old port: hand out new ones, or free the port and restart",
            ));
            Ok(sockets)
        }
        Err(error) => Err(udp_error(&error)),
    }
}

fn choose_range(
    config: &Config,
    loaded: &Loaded,
    layout: &HostLayout,
    health: &mut Vec<HealthEntry>,
) -> Result<Option<Ipv4Net>, Error> {
    let asked = config.ipv4_range.value;
    let explicit = config.ipv4_range.origin != Origin::Default;
    let wanted = if explicit { asked } else { loaded.ipv4_range.unwrap_or(asked) };
    let free = free_ipv4_range(layout, wanted);
    if explicit && free != Some(asked) {
        return Err(Error::new(
            ErrorCode::Ipv4RangeConflict,
            format!("{asked} touches a route or an address of this host"),
            "name another range with --ipv4-range, or none to let the agent choose",
        ));
    }
    match free {
        None => health.push(entry(
            "no_ipv4_range",
            "every IPv4 range the agent knows is in use on this host: there are no IPv4 aliases".to_owned(),
            "name a free one with --ipv4-range",
        )),
        Some(range) if range != asked => health.push(entry(
            "ipv4_range_moved",
            format!("{asked} is or was in use on this host; IPv4 aliases are in {range}"),
            "nothing needs to be done; --ipv4-range sets another one",
        )),
        Some(_) => {}
    }
    Ok(free)
}

fn open_tun(config: &Config, mtu: u32) -> Result<Tun, Error> {
    let open = |queues| {
        let mtu = u16::try_from(mtu).unwrap_or(u16::MAX);
        Tun::open(&TunOptions { name: config.tun.value.clone(), mtu, queues })
    };
    let tun = match config.queues.value {
        Some(queues) => open(queues.into()),
        // One is enough where there cannot be more.
        None => match usual_queues() {
            1 => open(1),
            more => open(more).or_else(|_| open(1)),
        },
    };
    tun.map_err(|error| {
        let message = error.to_string();
        match error {
            TunError::NameTaken(_) => Error::new(
                ErrorCode::InterfaceTaken,
                message,
                "name another one with --tun, or none for the first free one",
            ),
            TunError::InvalidName(_) => Error::new(ErrorCode::ConfigInvalid, message, "name another one with --tun"),
            TunError::NoDevice => Error::new(ErrorCode::NoTunDevice, message, "load the module: `sudo modprobe tun`"),
            TunError::Permission => {
                Error::new(ErrorCode::TunDenied, message, "run it with sudo; in a container, add NET_ADMIN")
            }
            TunError::SharedQueues => Error::new(
                ErrorCode::InterfaceFailed,
                message,
                "set `queues = 1` where programs that are not trusted may open /dev/net/tun",
            ),
            TunError::Other(_) => interface_failed(&message),
        }
    })
}

/// One queue keeps two processors busy: one with what is sent, one with what comes in.
fn usual_queues() -> usize {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    (processors / 2).clamp(1, MOST_USUAL_QUEUES)
}

fn unreadable_peers(loaded: &Loaded) -> Option<HealthEntry> {
    (loaded.unreadable > 0).then(|| {
        entry(
            "state_unreadable",
            format!("{} stored peers cannot be read and are left out", loaded.unreadable),
            "restore state.redb from a backup, or ask those peers for trust again",
        )
    })
}

fn report_ready(started: Started) {
    if let Ok(mut line) = serde_json::to_vec(&StartReport::Ready(started)) {
        line.push(b'\n');
        let mut out = io::stdout();
        // Whoever started us may have gone; that is no reason to stop.
        let _ = out.write_all(&line).and_then(|()| out.flush());
    }
}

fn entry(code: &str, message: String, hint: &str) -> HealthEntry {
    HealthEntry { code: code.to_owned(), message, hint: hint.to_owned() }
}

fn incomplete(code: &str, configured: &Configured) -> HealthEntry {
    entry(code, format!("the host refused part of the interface: {}", failures(configured)), "see the log")
}

fn failures(configured: &Configured) -> String {
    let all = configured.addresses_failed.iter().chain(&configured.routes_failed).chain(&configured.rules_failed);
    all.map(|(net, error)| format!("{net}: {error}")).collect::<Vec<_>>().join("; ")
}

fn udp_error(error: &UdpError) -> Error {
    let message = error.to_string();
    match error {
        UdpError::PortInUse(_) => {
            Error::new(ErrorCode::PortInUse, message, "name another port with --port, or none for any")
        }
        UdpError::Permission(_) => Error::new(
            ErrorCode::NotRoot,
            message,
            "name a port above 1023, run it with sudo, or give the service CAP_NET_BIND_SERVICE (docs/privileges.md)",
        ),
        _ => Error::new(ErrorCode::NoUdp, message, "the host needs IPv4 or IPv6"),
    }
}

fn network_error(error: &NetworkError) -> Error {
    match error {
        NetworkError::Permission => Error::new(ErrorCode::NotRoot, error.to_string(), "run it with sudo"),
        _ => interface_failed(&error.to_string()),
    }
}

fn interface_failed(why: &str) -> Error {
    Error::new(ErrorCode::InterfaceFailed, why, "look at `ip addr` and `ip route`, and at the log")
}
