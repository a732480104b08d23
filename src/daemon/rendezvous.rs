//! The rendezvous server's I/O.
//!
//! 1. [`Rendezvous::start`] takes the state directory, loads or makes the identity, binds both ports and finds out where
//!    clients reach them. It needs no rights and no device.
//! 2. Every right it does not need any more is given up (`rights`).
//! 3. One thread runs the server to completion (`relay_thread`): a round of datagrams in, what it makes of them out.
//! 4. The main thread waits for signals, writes to disk what the server wants kept, at most every second, and says now and
//!    then how much the log has left out. SIGHUP changes nothing: there is no file to be read again, all is in its flags.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use agentnet_platform::network::Network;
use agentnet_platform::udp::{DatagramSocket, UdpError, UdpOptions, UdpSockets};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio::time::interval;

use super::host::transport_addresses;
use super::metrics_listener::{MetricsSocket, Source};
use super::relay_thread::{RelayThread, Sockets};
use super::rights::confine_server;
use super::service_manager::ServiceManager;
use super::signals::{Asked, Signals};
use super::start::system_rng;
use super::state_dir::{StateDir, unusable};
use super::store::{Changes, Loaded, Store};
use super::{LEFT_OUT_INTERVAL, Log, now, tell_left_out, wall_clock};
use crate::api::{Error, ErrorCode, RendezvousReady};
use crate::identity::{IdentityKey, TunnelSecret};
use crate::metrics::ServerCounters;
use crate::rendezvous::{Limits, Restored, Server, ServerConfig, reference};

/// The port that clients expect a server at.
const DEFAULT_PORT: u16 = 41641;
/// Socket buffers, bytes: what arrives at 10 Gb/s in 6 ms. The kernel's limit may allow less.
const SOCKET_BUFFER: usize = 8 * 1024 * 1024;
/// What the disk did not take is tried again this often.
const STORE_RETRY: Duration = Duration::from_secs(5);
/// Batches of changes that may wait for the disk. A thread that finds them waiting keeps its changes and adds to them.
const STORE_QUEUE: usize = 1;

/// How the server is to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RendezvousOptions {
    /// Where to listen, at most one address per family and all on one port; empty for all addresses.
    pub listen: Vec<SocketAddr>,
    /// Where clients reach it, at most one address per family; empty to find out.
    pub public: Vec<SocketAddr>,
    /// Whether to relay.
    pub relay: bool,
    /// What one client may send through the relay, bytes per second; `None` without a limit.
    pub relay_rate: Option<u32>,
    /// Where Prometheus reads metrics; nowhere when absent.
    pub metrics_listen: Option<SocketAddr>,
    /// The state directory.
    pub state_dir: PathBuf,
    /// Whether the server is limited in the files and system calls it may use.
    pub confine: bool,
}

/// A server that is ready to run.
pub struct Rendezvous {
    server: Server,
    sockets: Sockets,
    store: Store,
    runtime: Runtime,
    ready: RendezvousReady,
    counters: Arc<ServerCounters>,
    path: PathBuf,
    /// Where metrics are read.
    metrics: Option<MetricsSocket>,
    confine: bool,
    signals: Signals,
    log: Log,
    /// Held for as long as the server runs.
    _state_dir: StateDir,
}

impl Rendezvous {
    /// Takes what the server needs from the host. From then on datagrams wait for it. `log` is that of this process.
    ///
    /// # Errors
    /// What the host did not give, or what is wrong with the options.
    pub fn start(options: RendezvousOptions, log: Log) -> Result<Self, Error> {
        wall_clock()?;
        let listen = listen_addresses(&options.listen)?;
        check_one_per_family("--public", &options.public)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| {
            Error::new(ErrorCode::Internal, format!("the event loop cannot be set up: {error}"), "check `ulimit -n`")
        })?;
        let signals = runtime.block_on(async { Signals::new() })?;
        let state_dir = StateDir::take(&options.state_dir, None)?;
        let (identity, exposed) = state_dir.identity()?;
        if let Some(exposed) = exposed {
            tracing::warn!(hint = exposed.hint, "{}", exposed.message);
        }
        let mut store = Store::open(state_dir.state_file())?;
        let mut loaded = store.load()?;
        let sockets = bind(&listen, &loaded)?;
        let public = match options.public.is_empty() {
            false => options.public,
            true => public_addresses(&listen, &sockets.primary, &runtime)?,
        };
        check_reachable(&public, &sockets.primary)?;
        let mut changes = Changes::default();
        changes.port(sockets.primary.port());
        let counters = Arc::new(ServerCounters::default());
        let config = ServerConfig {
            tunnel_secret: tunnel_secret(&mut loaded, &mut changes),
            public: public.clone(),
            alternate_port: sockets.alternate.is_some(),
            relay: options.relay,
            relay_rate: options.relay_rate,
            limits: Limits::default(),
            restored: Restored {
                sequence: loaded.record_sequence,
                records: loaded.records,
                introductions: loaded.introductions,
            },
            counters: Arc::clone(&counters),
            rng: Box::new(system_rng()),
            identity,
        };
        let metrics = options.metrics_listen.map(MetricsSocket::bind).transpose()?;
        let ready = ready(&config.identity, public)?;
        let server = Server::new(now(), config)
            .map_err(|error| Error::new(ErrorCode::ConfigInvalid, error.to_string(), "check --public"))?;
        // Keys are on disk before anybody learns of them.
        store.commit(changes).map_err(|error| unusable(&options.state_dir, &error))?;
        tracing::info!(id = %ready.id, port = sockets.primary.port(), relay = options.relay, "rendezvous server started");
        let (path, confine) = (options.state_dir, options.confine);
        Ok(Self {
            server,
            sockets,
            store,
            runtime,
            ready,
            counters,
            path,
            metrics,
            confine,
            signals,
            log,
            _state_dir: state_dir,
        })
    }

    /// What others need to know of it.
    #[must_use]
    pub fn ready(&self) -> &RendezvousReady {
        &self.ready
    }

    /// Runs until SIGTERM or SIGINT.
    ///
    /// # Errors
    /// Why it had to stop.
    pub fn run(mut self) -> Result<(), Error> {
        let (changes, mut queue) = mpsc::channel(STORE_QUEUE);
        let result = self.runtime.block_on(async {
            let counters = Arc::clone(&self.counters);
            let service_manager = ServiceManager::from_environment();
            // Nothing of the network has been read yet, and there are no threads but this one.
            confine_server(&self.path, self.confine);
            let source = Source::Server(Arc::clone(&self.counters), now().time);
            let _metrics = self.metrics.map(|socket| socket.serve(source)).transpose()?;
            let thread = RelayThread::start(self.server, self.sockets, counters, changes, service_manager)
                .map_err(|error| stopped(&error))?;
            // The queue ends when the thread does, of itself or because it was told to.
            let mut left_out = interval(LEFT_OUT_INTERVAL);
            loop {
                tokio::select! {
                    asked = self.signals.received() => match asked {
                        Asked::Stop => thread.stop(),
                        Asked::Reload => tracing::warn!(
                            hint = "restart it: clients come back by themselves",
                            "nothing was read again: a rendezvous server has its flags and environment from the start"
                        ),
                    },
                    _ = left_out.tick() => {
                        tell_left_out(&self.log, &self.counters.drop_log_lines);
                    }
                    changes = queue.recv() => match changes {
                        Some(changes) => store(&mut self.store, changes),
                        None => break,
                    },
                    () = tokio::time::sleep(STORE_RETRY), if self.store.is_behind() => {
                        store(&mut self.store, Changes::default());
                    }
                }
            }
            thread.join().map_err(|error| stopped(&error))
        });
        tell_left_out(&self.log, &self.counters.drop_log_lines);
        let (last, ended) = result?;
        let kept = self.store.commit(last);
        let counted = self.counters.iter().filter(|(_, _, value)| *value > 0);
        let counted: Vec<String> = counted.map(|(name, _, value)| format!("{name} {value}")).collect();
        tracing::info!(counters = counted.join(", "), "rendezvous server stopped");
        ended.map_err(|error| stopped(&error))?;
        kept.map_err(|error| unusable(&self.path, &error))
    }
}

/// Where to listen: as asked, or on everything.
fn listen_addresses(asked: &[SocketAddr]) -> Result<Vec<SocketAddr>, Error> {
    check_one_per_family("--listen", asked)?;
    let ports: Vec<u16> = asked.iter().map(SocketAddr::port).collect();
    if ports.windows(2).any(|pair| pair.first() != pair.last()) {
        return Err(Error::new(
            ErrorCode::ConfigInvalid,
            "--listen: IPv4 and IPv6 are on different ports",
            "name one port for both: clients that change between IPv4 and IPv6 keep it",
        ));
    }
    if asked.is_empty() {
        let unspecified: [IpAddr; 2] = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
        return Ok(unspecified.map(|ip| SocketAddr::new(ip, DEFAULT_PORT)).to_vec());
    }
    Ok(asked.to_vec())
}

fn check_one_per_family(flag: &str, addresses: &[SocketAddr]) -> Result<(), Error> {
    for family in [SocketAddr::is_ipv4, SocketAddr::is_ipv6] {
        if addresses.iter().filter(|address| family(address)).count() > 1 {
            return Err(Error::new(
                ErrorCode::ConfigInvalid,
                format!("{flag} names two addresses of one family"),
                "name one IPv4 and one IPv6 address at most",
            ));
        }
    }
    Ok(())
}

/// Both ports. The alternate one is for tests of NATs only, so that the server also runs without it.
fn bind(listen: &[SocketAddr], loaded: &Loaded) -> Result<Sockets, Error> {
    let asked = listen.first().map_or(DEFAULT_PORT, SocketAddr::port);
    let primary = match loaded.port.filter(|_| asked == 0) {
        // Any port will do, but clients know the one used before.
        Some(before) => bind_port(listen, before).or_else(|_| bind_port(listen, 0)),
        None => bind_port(listen, asked),
    };
    let primary = primary.map_err(|error| bind_error(listen, &error))?;
    // Without a flag, a host with one family only is fine.
    let explicit = listen.iter().filter(|address| !address.ip().is_unspecified());
    for address in explicit {
        if !(if address.is_ipv4() { primary.has_v4() } else { primary.has_v6() }) {
            return Err(unavailable(format!("this host does not have the address {}", address.ip())));
        }
    }
    let alternate = primary.port().checked_add(1).ok_or(UdpError::NoFamily).and_then(|port| bind_port(listen, port));
    if let Err(error) = &alternate {
        tracing::warn!(%error, "no alternate port: clients cannot find out how their NAT filters");
    }
    Ok(Sockets { primary, alternate: alternate.ok() })
}

fn bind_port(listen: &[SocketAddr], port: u16) -> Result<UdpSockets, UdpError> {
    let ips: Vec<IpAddr> = listen.iter().map(SocketAddr::ip).collect();
    let options = UdpOptions { port, v4: true, v6: true, recv_buffer: SOCKET_BUFFER, send_buffer: SOCKET_BUFFER };
    UdpSockets::bind_on(&ips, &options)
}

/// Where clients reach a server that was not told: where it listens, or at the host's addresses.
fn public_addresses(listen: &[SocketAddr], sockets: &UdpSockets, runtime: &Runtime) -> Result<Vec<SocketAddr>, Error> {
    let named: Vec<IpAddr> = listen.iter().map(SocketAddr::ip).filter(|ip| !ip.is_unspecified()).collect();
    let any: Vec<IpAddr> = listen.iter().map(SocketAddr::ip).filter(IpAddr::is_unspecified).collect();
    let host = match any.is_empty() {
        true => Vec::new(),
        false => runtime
            .block_on(host_addresses())
            .map_err(|error| unavailable(format!("the host's addresses cannot be found out: {error}")))?,
    };
    let of_family = |v4: bool| {
        let wanted = any.iter().any(|ip| ip.is_ipv4() == v4) && if v4 { sockets.has_v4() } else { sockets.has_v6() };
        let mut candidates: Vec<&IpAddr> = host.iter().filter(|ip| wanted && ip.is_ipv4() == v4).collect();
        candidates.sort_by_key(|ip| is_private(ip));
        let named = named.iter().find(|ip| ip.is_ipv4() == v4);
        named.or_else(|| candidates.first().copied()).copied()
    };
    // More clients have IPv4 than IPv6, and the first one stands in the server's reference.
    let ips: Vec<IpAddr> = [of_family(true), of_family(false)].into_iter().flatten().collect();
    if ips.is_empty() {
        return Err(unavailable("this host has no address that clients could reach".to_owned()));
    }
    Ok(ips.into_iter().map(|ip| SocketAddr::new(ip, sockets.port())).collect())
}

async fn host_addresses() -> Result<Vec<IpAddr>, Box<dyn std::error::Error>> {
    let layout = Network::new()?.layout().await?;
    Ok(transport_addresses(&layout))
}

fn is_private(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => v4.is_private(),
        IpAddr::V6(v6) => v6.is_unique_local(),
    }
}

fn check_reachable(public: &[SocketAddr], sockets: &UdpSockets) -> Result<(), Error> {
    for address in public {
        let listened = if address.is_ipv4() { sockets.has_v4() } else { sockets.has_v6() };
        if !listened {
            return Err(Error::new(
                ErrorCode::ConfigInvalid,
                format!("{address} is public, but nothing listens on that family"),
                "give --listen an address of that family too, or leave this --public out",
            ));
        }
    }
    Ok(())
}

fn ready(identity: &IdentityKey, addresses: Vec<SocketAddr>) -> Result<RendezvousReady, Error> {
    let id = identity.id();
    // Each stands in the record, so each must be one that packets can be sent to.
    let mut references = addresses.iter().map(|address| {
        reference(id, *address).ok_or_else(|| {
            Error::new(
                ErrorCode::ConfigInvalid,
                format!("nothing can be sent to {address}"),
                "name an address and port that clients reach the server at with --public",
            )
        })
    });
    let first = references.next().unwrap_or_else(|| Err(unavailable("there is no public address".to_owned())))?;
    references.try_for_each(|reference| reference.map(drop))?;
    Ok(RendezvousReady { reference: first.to_string(), id, addresses })
}

fn tunnel_secret(loaded: &mut Loaded, changes: &mut Changes) -> TunnelSecret {
    let secret = loaded.tunnel_secret.take().unwrap_or_else(|| TunnelSecret::generate(&mut system_rng()));
    changes.tunnel_secret(&secret);
    secret
}

/// The server goes on without a disk; what it could not write is tried again.
fn store(store: &mut Store, changes: Changes) {
    if let Err(error) = store.commit(changes) {
        tracing::error!(%error, "the state cannot be written");
    }
}

fn bind_error(listen: &[SocketAddr], error: &UdpError) -> Error {
    let message = error.to_string();
    match error {
        UdpError::PortInUse(_) => {
            Error::new(ErrorCode::PortInUse, message, "stop what uses it, or name another port with --listen")
        }
        UdpError::Permission(_) => {
            Error::new(ErrorCode::NotRoot, message, "name a port above 1023 with --listen, or run it as root")
        }
        UdpError::NoFamily if listen.iter().any(|address| !address.ip().is_unspecified()) => {
            let asked: Vec<String> = listen.iter().map(|address| address.ip().to_string()).collect();
            unavailable(format!("this host does not have the address {}", asked.join(" or ")))
        }
        _ => Error::new(ErrorCode::NoUdp, message, "the host needs IPv4 or IPv6"),
    }
}

fn unavailable(message: String) -> Error {
    Error::new(
        ErrorCode::AddressUnavailable,
        message,
        "look at `ip addr`; name the address clients reach with --public, and one of this host with --listen",
    )
}

fn stopped(error: &io::Error) -> Error {
    Error::new(ErrorCode::NoUdp, format!("the server had to stop: {error}"), "look at the log, then start it again")
}
