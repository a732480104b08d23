//! The main thread: what happens goes into the control plane, what it answers is carried out, state first.

mod reload;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use agentnet_platform::network::{Network, NetworkEvent};
use agentnet_platform::process::{release_code, return_free_memory};
use agentnet_platform::udp::{DatagramSocket, LocalEnd, SocketId};
use ipnet::IpNet;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot, watch};

use super::control_socket::{Ask, Request};
use super::host::{default_gateway, transport_addresses};
use super::host_health::{range_conflict, taken_from_range};
use super::metrics_listener::AgentMetrics;
use super::packet_threads::Shared;
use super::port_mapping::PortMapper;
use super::reading::{agent_reading, process_reading};
use super::resolver::{Resolved, Resolver};
use super::service_manager::ServiceManager;
use super::signals::{Asked, Signals};
use super::sleep_detector::SleepDetector;
use super::state_dir::unusable;
use super::store::{Changes, Store};
use super::{LEFT_OUT_INTERVAL, Surroundings, now, tell_left_out};
use crate::api::{
    Error, ErrorCode, HealthEntry, InterfaceStatus, PingRequest, PortMappingCheck, SelfStatus, Started, Status,
    TicketDocument,
};
use crate::config::{Config, Key};
use crate::forwarding::{Notice, StrangerDatagram};
use crate::metrics::AgentReading;
use crate::node::{Command, Event, Input, Node, Output, Reply};
use crate::time::{Now, Time};

/// What the disk did not take is tried again this often.
const STORE_RETRY: Duration = Duration::from_secs(5);
/// Inputs taken in before outputs are carried out: one transaction on disk serves them all.
const INPUTS_PER_DRAIN: usize = 64;
/// So long after the start, a request, or the end of a session, memory that is not needed any more goes back to the
/// operating system, which takes a millisecond: what began together ends together.
const RETURN_MEMORY_AFTER: Duration = Duration::from_secs(5);
/// The longest a ping may wait for its answer.
const MAX_PING_TIMEOUT: Duration = Duration::from_secs(60);

/// The queues into the loop.
pub(super) struct Queues {
    pub(super) notices: mpsc::Receiver<Notice>,
    pub(super) strangers: mpsc::Receiver<StrangerDatagram>,
    pub(super) requests: mpsc::Receiver<Request>,
    pub(super) ended: mpsc::Receiver<String>,
    pub(super) resolved: mpsc::Receiver<Resolved>,
    pub(super) network_events: mpsc::Receiver<NetworkEvent>,
    pub(super) port_mapping: watch::Receiver<PortMappingCheck>,
}

type Answer = oneshot::Sender<Result<Value, Error>>;

/// What the agent was started with.
pub(super) struct Own {
    pub(super) config: Config,
    pub(super) started: Started,
    pub(super) mtu: u32,
    /// Index of the agent's own interface.
    pub(super) tun: u32,
    /// What was wrong from the start.
    pub(super) health: Vec<HealthEntry>,
    /// Where they are read over TCP.
    pub(super) metrics: AgentMetrics,
    /// What is needed of who started the agent.
    pub(super) surroundings: Surroundings,
    /// Has been told that the agent is ready.
    pub(super) service_manager: ServiceManager,
}

/// Owns the agent.
pub(super) struct EventLoop {
    node: Node,
    store: Store,
    shared: Shared,
    resolver: Resolver,
    port_mapper: Option<PortMapper>,
    /// What it says.
    port_mapping: PortMappingCheck,
    own: Own,
    started_at: Time,
    /// When it was last said that log lines were left out.
    left_out_told: Time,
    /// What took addresses of the range of IPv4 aliases since the start.
    range_conflict: Option<IpNet>,
    /// Why the disk did not take the last change.
    store_error: Option<Error>,
    store_retry: Option<Time>,
    /// Callers whose answer comes as an event, by token.
    waiting: HashMap<u64, Answer>,
    next_token: u64,
    /// When memory is given back.
    return_memory: Option<Time>,
}

/// Why the loop ends.
enum Stop {
    Asked,
    Failed(String),
}

impl EventLoop {
    pub(super) fn new(
        node: Node,
        store: Store,
        shared: Shared,
        resolver: Resolver,
        port_mapper: Option<PortMapper>,
        own: Own,
    ) -> Self {
        Self {
            node,
            store,
            shared,
            resolver,
            port_mapper,
            port_mapping: PortMappingCheck::default(),
            own,
            started_at: now().time,
            left_out_told: Time::ZERO,
            range_conflict: None,
            store_error: None,
            store_retry: None,
            waiting: HashMap::new(),
            next_token: 0,
            return_memory: Some(now().time + RETURN_MEMORY_AFTER),
        }
    }

    /// Runs until asked to stop.
    pub(super) async fn run(
        &mut self,
        mut queues: Queues,
        signals: &mut Signals,
        network: &Network,
    ) -> Result<(), Error> {
        self.port_mapping = queues.port_mapping.borrow().clone();
        let stop = loop {
            self.drain();
            if let Some(stop) = self.step(&mut queues, signals, network).await {
                break stop;
            }
            self.own.service_manager.alive(now().time);
            self.tell_left_out(now().time);
        };
        self.own.service_manager.stopping();
        self.node.shut_down(now());
        self.drain();
        if let Some(port_mapper) = self.port_mapper.take() {
            port_mapper.stop().await;
        }
        match stop {
            Stop::Asked => Ok(()),
            Stop::Failed(why) => Err(Error::new(
                ErrorCode::InterfaceFailed,
                format!("the agent had to stop: {why}"),
                "if somebody removed the interface, start the agent again: `sudo agentnet up`",
            )),
        }
    }

    /// Waits for one thing to happen and takes it in, with what else waits of its kind.
    async fn step(&mut self, queues: &mut Queues, signals: &mut Signals, network: &Network) -> Option<Stop> {
        let wait = self.time_to_wait();
        let asleep = SleepDetector::new();
        // Fair: whatever one peer or caller keeps busy, the others are served.
        tokio::select! {
            Some(why) = queues.ended.recv() => return Some(Stop::Failed(why)),
            asked = signals.received() => match asked {
                Asked::Stop => return Some(Stop::Asked),
                // What is wrong is in the log.
                Asked::Reload => drop(self.reload()),
            },
            Some(notice) = queues.notices.recv() => {
                self.node.handle_input(now(), Input::Notice(notice));
                for _ in 1..INPUTS_PER_DRAIN {
                    let Ok(notice) = queues.notices.try_recv() else { break };
                    self.node.handle_input(now(), Input::Notice(notice));
                }
            }
            () = sleep(wait) => self.timeout(),
            Some(Resolved { server, addresses }) = queues.resolved.recv() => {
                self.node.handle_input(now(), Input::Resolved { server, addresses });
            }
            Some(request) = queues.requests.recv() => {
                self.return_memory_later(now().time);
                if matches!(request.ask, Ask::Down) {
                    let _ = request.answer.send(Ok(json!({ "stopping": true })));
                    return Some(Stop::Asked);
                }
                match request.ask {
                    Ask::Reload | Ask::Diagnostics => self.answer_with_time(request, network).await,
                    _ => self.answer(request),
                }
            }
            Some(event) = queues.network_events.recv() => {
                let mut matters = self.matters(event);
                while let Ok(event) = queues.network_events.try_recv() {
                    matters |= self.matters(event);
                }
                self.network_changed(matters, network).await;
            }
            Ok(()) = queues.port_mapping.changed() => {
                self.port_mapping = queues.port_mapping.borrow_and_update().clone();
                self.node.handle_input(now(), Input::PortMapped(self.port_mapping.address));
            }
            Some(datagram) = queues.strangers.recv() => {
                self.node.handle_input(now(), Input::Stranger(datagram));
                for _ in 1..INPUTS_PER_DRAIN {
                    let Ok(datagram) = queues.strangers.try_recv() else { break };
                    self.node.handle_input(now(), Input::Stranger(datagram));
                }
            }
        }
        if asleep.was_asleep() {
            tracing::info!("the host was asleep");
            self.node.handle_input(now(), Input::NetworkChanged);
            if let Some(port_mapper) = &self.port_mapper {
                port_mapper.woke_up();
            }
        }
        None
    }

    fn tell_left_out(&mut self, now: Time) {
        let due = now.since(self.left_out_told) >= LEFT_OUT_INTERVAL;
        if due && tell_left_out(&self.own.surroundings.log, &self.shared.counters.drop_log_lines) {
            self.left_out_told = now;
        }
    }

    fn return_memory_later(&mut self, now: Time) {
        self.return_memory.get_or_insert(now + RETURN_MEMORY_AFTER);
    }

    fn time_to_wait(&self) -> Option<Duration> {
        let timer = self.node.poll_timeout().map(|(at, _)| at);
        let own = [self.store_retry, self.return_memory, self.own.service_manager.due()];
        let next = own.into_iter().chain([timer]).flatten().min()?;
        Some(next.since(now().time))
    }

    fn timeout(&mut self) {
        let now = now();
        self.node.handle_input(now, Input::Timeout);
        if self.node.take_session_erased() {
            self.return_memory_later(now.time);
        }
        if self.return_memory.take_if(|at| *at <= now.time).is_some() {
            return_free_memory();
            release_code();
        }
        if self.store_retry.is_some_and(|at| at <= now.time) {
            self.commit(Changes::default());
        }
    }

    /// Whether an event may mean that paths changed although no address did.
    fn matters(&self, event: NetworkEvent) -> bool {
        tracing::debug!(?event, "the network changed");
        match event {
            NetworkEvent::LinkChanged { index, .. } => index != self.own.tun,
            NetworkEvent::DefaultRouteChanged | NetworkEvent::Lagged => true,
            NetworkEvent::AddressAdded(_) | NetworkEvent::AddressRemoved(_) => false,
        }
    }

    async fn network_changed(&mut self, matters: bool, network: &Network) {
        if matters {
            self.node.handle_input(now(), Input::NetworkChanged);
        }
        match network.layout().await {
            Ok(layout) => {
                let range = self.node.ipv4_range();
                self.range_conflict = range.and_then(|range| taken_from_range(&layout, range, self.own.tun));
                let addresses = transport_addresses(&layout);
                self.node.handle_input(now(), Input::AddressesChanged(addresses));
                if let Some(port_mapper) = &self.port_mapper {
                    port_mapper.network_changed(default_gateway(&layout), matters);
                }
            }
            Err(error) => tracing::warn!(%error, "the network cannot be looked at"),
        }
    }

    /// Carries out what the control plane wants. Forwarding changes at once, whatever the disk does: a revoked peer is cut
    /// off. Then the disk, and only then what others are promised.
    fn drain(&mut self) {
        loop {
            let inputs = self.carry_out();
            if inputs.is_empty() {
                return;
            }
            for input in inputs {
                self.node.handle_input(now(), input);
            }
        }
    }

    /// Carries out what there is, and returns what that brought about.
    fn carry_out(&mut self) -> Vec<Input> {
        let mut changes = Changes::default();
        let mut rest = Vec::new();
        while let Some(output) = self.node.poll_output() {
            match output {
                Output::Store(id, row) => changes.peer(id, row.as_deref()),
                Output::StoreSequence(sequence) => changes.sequence(sequence),
                Output::Fib(fib) => self.shared.fib.store(fib),
                other => rest.push(other),
            }
        }
        if !changes.is_empty() {
            self.commit(changes);
        }
        let mut inputs = Vec::new();
        for output in rest {
            match output {
                Output::Transmit { destination, local_ip, socket, datagram } => {
                    self.transmit(destination, (socket, local_ip).into(), &datagram);
                }
                Output::OpenSockets { peer, count } => {
                    inputs.push(Input::SocketsOpened { peer, sockets: self.open_sockets(count) });
                }
                Output::CloseSockets(sockets) => {
                    for socket in sockets {
                        self.shared.socket.close_extra(socket);
                    }
                }
                Output::Event(Event::Ping { token, result }) => {
                    self.answer_later(token, result.and_then(|reply| to_value(&reply)));
                }
                Output::Event(Event::Netcheck { token, mut document }) => {
                    document.port_mapping = self.port_mapping.clone();
                    self.answer_later(token, to_value(&document));
                }
                Output::Resolve { server, host } => self.resolver.resolve(server, host),
                Output::Store(..) | Output::StoreSequence(_) | Output::Fib(_) => {}
            }
        }
        inputs
    }

    fn transmit(&self, destination: SocketAddr, local: LocalEnd, datagram: &[u8]) {
        match self.shared.socket.send_to(datagram, destination, local) {
            Ok(()) => self.shared.counters.tx_datagrams.increment(),
            Err(error) => {
                tracing::debug!(%destination, %error, "a datagram was not sent");
                self.shared.counters.drop_out_own.increment();
            }
        }
    }

    /// As many as there can be.
    fn open_sockets(&self, count: u16) -> Vec<SocketId> {
        let mut sockets = Vec::with_capacity(count.into());
        for _ in 0..count {
            match self.shared.socket.open_extra() {
                Ok(socket) => sockets.push(socket),
                Err(error) => {
                    tracing::debug!(%error, opened = sockets.len(), wanted = count, "no more extra sockets");
                    break;
                }
            }
        }
        sockets
    }

    fn commit(&mut self, changes: Changes) {
        match self.store.commit(changes) {
            Ok(()) => {
                if self.store_error.take().is_some() {
                    tracing::info!("the state is on disk again");
                }
            }
            Err(error) => {
                if self.store_error.is_none() {
                    tracing::error!(%error, "the state cannot be written; it is kept in memory and tried again");
                }
                self.store_error = Some(unusable(&self.own.config.state_dir.value, &error));
            }
        }
        self.store_retry = self.store.is_behind().then(|| now().time + STORE_RETRY);
    }

    fn answer(&mut self, request: Request) {
        let now = now();
        let Request { ask, answer } = request;
        let result = match ask {
            Ask::Id => to_value(&self.node.identity_document()),
            Ask::Status => to_value(&self.status(now)),
            Ask::Ticket => self.ticket(now),
            Ask::Peers => to_value(&self.node.known_peers(now)),
            Ask::Config => to_value(&self.effective_config()),
            Ask::Why(peer) => self.node.why(now, &peer).and_then(|why| to_value(&why)),
            Ask::TrustList { pending_only } => to_value(&self.node.trust_list(now, pending_only)),
            Ask::TrustRequest(body) => self.command(now, Command::TrustRequest(body)),
            Ask::TrustApprove(peer) => self.command(now, Command::TrustApprove(peer)),
            Ask::TrustReject(peer) => self.command(now, Command::TrustReject(peer)),
            Ask::TrustRevoke(peer) => self.command(now, Command::TrustRevoke(peer)),
            Ask::Ping(request) => return self.ping(now, request, answer),
            Ask::Netcheck => return self.command_later(now, answer, |token| Command::Netcheck { token }),
            Ask::Metrics => Ok(Value::String(self.reading(now).text())),
            // Taken care of where there is time to wait.
            Ask::Reload | Ask::Diagnostics | Ask::Down => Ok(Value::Null),
        };
        // The caller may have gone.
        let _ = answer.send(result);
    }

    /// What a user was told happened must be on disk before the user is told.
    fn command(&mut self, now: Now, command: Command) -> Result<Value, Error> {
        let reply = self.node.command(now, command)?;
        self.drain();
        if let Some(why) = &self.store_error {
            return Err(Error::new(
                why.code,
                format!("it is in force, but it could not be written to disk: {}", why.message),
                "make room or repair the disk; the agent keeps trying, and a restart before that would undo it",
            ));
        }
        match reply {
            Reply::Trust(entry) => to_value(&entry),
            Reply::Later => Ok(Value::Null),
        }
    }

    fn ping(&mut self, now: Now, request: PingRequest, answer: Answer) {
        let timeout = Duration::from_millis(request.timeout_ms).min(MAX_PING_TIMEOUT);
        self.command_later(now, answer, |token| Command::Ping { token, peer: request.peer, timeout });
    }

    /// A command whose answer is an event.
    fn command_later(&mut self, now: Now, answer: Answer, command: impl FnOnce(u64) -> Command) {
        let token = self.next_token;
        self.next_token = self.next_token.wrapping_add(1);
        match self.node.command(now, command(token)) {
            Ok(_) => {
                self.waiting.insert(token, answer);
            }
            Err(error) => {
                let _ = answer.send(Err(error));
            }
        }
    }

    fn answer_later(&mut self, token: u64, result: Result<Value, Error>) {
        if let Some(answer) = self.waiting.remove(&token) {
            let _ = answer.send(result);
        }
    }

    fn ticket(&mut self, now: Now) -> Result<Value, Error> {
        let ticket = self.node.ticket(now).ok_or_else(|| {
            let message = "this host has no address that others could reach it at, so a ticket would be of no use";
            Error::new(ErrorCode::NotAvailable, message, "connect it to a network, then try again")
        })?;
        to_value(&TicketDocument { ticket: ticket.to_string() })
    }

    fn status(&self, now: Now) -> Status {
        let identity = self.node.identity_document();
        let counters = &self.shared.counters;
        Status {
            this: SelfStatus {
                id: identity.id,
                name: identity.name,
                ipv6: identity.ipv6,
                ipv4: identity.ipv4,
                version: env!("CARGO_PKG_VERSION").to_owned(),
                uptime_s: now.time.since(self.started_at).as_secs(),
                pid: std::process::id(),
                port: self.own.started.port,
            },
            interface: InterfaceStatus {
                name: self.own.started.interface.clone(),
                mtu: self.own.mtu,
                tx_packets: counters.tx_packets.get(),
                rx_packets: counters.rx_packets.get(),
                tx_bytes: counters.tx_direct_bytes.get() + counters.tx_relayed_bytes.get(),
                rx_bytes: counters.rx_direct_bytes.get() + counters.rx_relayed_bytes.get(),
            },
            rendezvous: self.node.rendezvous_statuses(),
            peers: self.node.peer_statuses(now),
            health: self.health(now),
            drops: counters.drops(),
        }
    }

    /// What Prometheus is told.
    fn reading(&self, now: Now) -> AgentReading {
        let health = self.health(now).into_iter().map(|entry| entry.code);
        agent_reading(process_reading(now.time.since(self.started_at)), &self.shared.counters, &self.node, now, health)
    }

    fn health(&self, now: Now) -> Vec<HealthEntry> {
        let mut health = self.own.health.clone();
        if let Some(why) = &self.store_error {
            health.push(HealthEntry {
                code: "state_not_saved".to_owned(),
                message: format!("changes are not on disk: {}", why.message),
                hint: "make room or repair the disk; the agent keeps trying".to_owned(),
            });
        }
        if !self.node.has_address() {
            health.push(HealthEntry {
                code: "no_address".to_owned(),
                message: "this host has no address others could reach it at".to_owned(),
                hint: "connect it to a network".to_owned(),
            });
        }
        health.extend(self.node.health(now));
        health.extend(self.range_conflict.map(range_conflict));
        health.extend(self.own.metrics.health());
        health
    }

    /// The configuration with what the agent chose itself.
    fn effective_config(&self) -> crate::api::ConfigDocument {
        let mut document = self.own.config.document();
        let chosen = [
            (Key::Tun, self.own.started.interface.clone()),
            (Key::Port, self.own.started.port.to_string()),
            (Key::Mtu, self.own.mtu.to_string()),
        ];
        for (key, value) in chosen {
            let setting = document.settings.iter_mut().find(|setting| setting.key == key.name());
            if let Some(setting) = setting.filter(|setting| setting.value != value) {
                setting.value = value;
                setting.origin = "state".to_owned();
            }
        }
        document
    }
}

async fn sleep(wait: Option<Duration>) {
    match wait {
        Some(wait) => tokio::time::sleep(wait).await,
        None => std::future::pending().await,
    }
}

fn to_value(document: &impl Serialize) -> Result<Value, Error> {
    serde_json::to_value(document)
        .map_err(|error| Error::new(ErrorCode::Internal, error.to_string(), "please report this"))
}
