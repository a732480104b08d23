//! One host: control plane, data plane, device and disk.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use agentnet::forwarding::{
    Fib, HeldTurns, Inbound, Notice, NoticeSink, OUT_BATCH_BYTES, Offloads, Outbound, StrangerDatagram,
};
use agentnet::identity::{AgentId, DEFAULT_IPV4_RANGE, HostPort, IdentityKey, RendezvousRef, TunnelSecret};
use agentnet::metrics::Counters;
use agentnet::node::{Event, Input, Node, NodeConfig, Output, StoredPeer};
use agentnet::time::{Now, Time};
use agentnet_platform::batch::{PacketBatch, VnetHeader};
use agentnet_platform::fake::{PipeHandle, PipeSocket, SentDatagram, pipe_socket};
use agentnet_platform::udp::{DatagramSocket, RecvBatch, SendBatch};
use ipnet::Ipv4Net;

use crate::net::{Delivery, HostId, Internet, SimRng};

/// The UDP port of every agent.
pub const PORT: u16 = 41_641;
/// How many of the datagrams a host sent are kept to be looked at.
const SENT_LIMIT: usize = 1_024;
/// How often one host may find more to do at one instant before a test is told that it never ends.
const RUN_LIMIT: usize = 10_000;
/// As much as arrives in one batch, opened.
const IN_BYTES: usize = 4 << 20;
/// As many packets as arrive in one batch.
const IN_PACKETS: usize = 2_048;

/// How a host differs from the default.
#[derive(Clone)]
pub struct HostOptions {
    /// Where its IPv4 aliases are from; none without IPv4 on the device.
    pub ipv4_range: Option<Ipv4Net>,
    /// Its rendezvous servers.
    pub rendezvous: Vec<RendezvousRef>,
}

impl Default for HostOptions {
    fn default() -> Self {
        Self { ipv4_range: Some(DEFAULT_IPV4_RANGE), rendezvous: Vec::new() }
    }
}

/// One host with its agent.
pub struct Host {
    /// The control plane. After something was done to it directly, [`crate::World::settle`] carries out what it wants.
    pub node: Node,
    /// What control and data plane count, over all lives.
    pub counters: Arc<Counters>,
    /// What the disk holds.
    pub stored: BTreeMap<AgentId, Vec<u8>>,
    /// Datagrams sent, and to where, since the list was last cleared: the last [`SENT_LIMIT`] of them.
    pub sent: VecDeque<(SocketAddr, Vec<u8>)>,
    /// What somebody may have waited for.
    pub events: Vec<Event>,
    /// Sockets open beside the main one.
    pub extra_sockets: usize,
    profile: Profile,
    at: HostId,
    is_alive: bool,
    sequence: u64,
    socket: PipeSocket,
    network: PipeHandle,
    fib: Arc<Fib>,
    inbound: Inbound,
    outbound: Outbound,
    delivered: Vec<Vec<u8>>,
    queues: Queues,
    /// Names of servers to be looked up.
    names: Vec<(AgentId, HostPort)>,
}

/// What is the same in every life of a host's agent.
struct Profile {
    number: usize,
    /// Of the identity and of the tunnel key.
    keys: [[u8; 32]; 2],
    options: HostOptions,
    rng: SimRng,
}

/// Room for packets on their way through a host. Hosts share it: one runs at a time, and what is in it is used up before
/// the next one does.
pub(crate) struct Buffers {
    received: RecvBatch,
    opened: PacketBatch,
    from_program: PacketBatch,
    to_program: PacketBatch,
    sealed: SendBatch,
}

impl Default for Buffers {
    fn default() -> Self {
        Self {
            received: RecvBatch::new(),
            opened: PacketBatch::new(IN_BYTES, IN_PACKETS),
            from_program: PacketBatch::new(OUT_BATCH_BYTES, 4),
            to_program: PacketBatch::new(OUT_BATCH_BYTES, 4),
            sealed: SendBatch::new(OUT_BATCH_BYTES * 2, 1),
        }
    }
}

#[derive(Default)]
struct Queues {
    notices: VecDeque<Notice>,
    strangers: VecDeque<StrangerDatagram>,
    /// What came of outputs.
    opened: Vec<Input>,
}

impl NoticeSink for Queues {
    fn notice(&mut self, notice: Notice) -> bool {
        self.notices.push_back(notice);
        true
    }

    fn stranger(&mut self, datagram: StrangerDatagram) -> bool {
        self.strangers.push_back(datagram);
        true
    }
}

impl Host {
    pub(crate) fn new(
        now: Now,
        net: &Internet,
        at: HostId,
        number: usize,
        options: HostOptions,
        mut rng: SimRng,
    ) -> Self {
        let counters = Arc::new(Counters::default());
        let keys = [rng.bytes(), rng.bytes()];
        let mut profile = Profile { number, keys, options, rng };
        let addresses = net.addresses(at);
        let node = profile.start(now, addresses.clone(), 0, Vec::new(), &counters);
        let (socket, network) = pipe_socket(&addresses, PORT).expect("enough file descriptors");
        Self {
            fib: Arc::new(Fib::new(node.ipv6(), None, None, [])),
            inbound: Inbound::new(Arc::clone(&counters), &node.tunnel_key(), Offloads::default()),
            outbound: Outbound::new(Arc::clone(&counters)),
            node,
            counters,
            stored: BTreeMap::new(),
            sent: VecDeque::new(),
            events: Vec::new(),
            extra_sockets: 0,
            profile,
            at,
            is_alive: true,
            sequence: 0,
            socket,
            network,
            delivered: Vec::new(),
            queues: Queues::default(),
            names: Vec::new(),
        }
    }

    pub(crate) fn kill(&mut self) {
        self.is_alive = false;
        let _ = self.network.take_sent();
    }

    pub(crate) fn restart(&mut self, now: Now, net: &Internet) {
        let addresses = net.addresses(self.at);
        let rows = self.stored.values().map(|row| StoredPeer::decode(row).expect("as it was stored")).collect();
        self.node = self.profile.start(now, addresses.clone(), self.sequence, rows, &self.counters);
        (self.socket, self.network) = pipe_socket(&addresses, PORT).expect("enough file descriptors");
        self.fib = Arc::new(Fib::new(self.node.ipv6(), None, None, []));
        self.inbound = Inbound::new(Arc::clone(&self.counters), &self.node.tunnel_key(), Offloads::default());
        self.outbound = Outbound::new(Arc::clone(&self.counters));
        self.queues = Queues::default();
        self.extra_sockets = 0;
        self.names.clear();
        self.is_alive = true;
    }

    pub(crate) fn addresses_changed(&mut self, now: Now, addresses: &[IpAddr]) {
        self.network.set_addresses(addresses);
        if self.is_alive {
            // Another network can give the same addresses.
            self.node.handle_input(now, Input::NetworkChanged);
            self.drain();
            self.node.handle_input(now, Input::AddressesChanged(addresses.to_vec()));
        }
    }

    /// Which names of servers the control plane wants looked up.
    pub(crate) fn take_names(&mut self) -> Vec<(AgentId, HostPort)> {
        std::mem::take(&mut self.names)
    }

    /// A name was looked up.
    pub(crate) fn resolved(&mut self, now: Now, server: AgentId, addresses: Vec<SocketAddr>) {
        self.node.handle_input(now, Input::Resolved { server, addresses });
    }

    /// When the control plane wants to be woken.
    pub(crate) fn next_timer(&self) -> Option<Time> {
        self.node.poll_timeout().map(|(at, _)| at).filter(|_| self.is_alive)
    }

    /// A datagram waits to be received.
    pub(crate) fn datagram_arrived(&mut self, delivery: &Delivery) {
        if self.is_alive {
            let _ = self.network.inject(delivery.source, delivery.destination, &delivery.bytes);
        }
    }

    /// Does all there is to do at this instant. Returns how often a timer woke the control plane up.
    pub(crate) fn run(&mut self, now: Now, net: &mut Internet, buffers: &mut Buffers) -> usize {
        let mut wakeups = 0;
        for _ in 0..RUN_LIMIT {
            if !self.is_alive {
                return wakeups;
            }
            let fired = usize::from(self.fire(now));
            let moved = self.drain() + self.receive(now, buffers) + self.tell_control_plane(now);
            self.transmit(now, net);
            wakeups += fired;
            if fired + moved == 0 {
                return wakeups;
            }
        }
        panic!("host {} always finds more to do", self.profile.number);
    }

    /// A program of this host sends a packet.
    pub(crate) fn program_sends(&mut self, now: Now, packet: &[u8], buffers: &mut Buffers) {
        if !self.is_alive {
            return;
        }
        let Buffers { from_program, to_program, sealed, .. } = buffers;
        from_program.clear();
        to_program.clear();
        sealed.clear();
        from_program.free_space()[..packet.len()].copy_from_slice(packet);
        from_program.commit(VnetHeader::default(), packet.len());
        self.outbound.process(
            now.time,
            &self.fib,
            from_program,
            0,
            sealed,
            to_program,
            &mut HeldTurns::default(),
            &mut self.queues,
        );
        self.delivered.extend(to_program.iter().map(|(_, packet)| packet.to_vec()));
        self.socket.send_batch(sealed);
    }

    /// Packets that came out of the device since the last call.
    pub fn take_delivered(&mut self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.delivered)
    }

    /// The same, and they stay.
    pub fn delivered(&self) -> &[Vec<u8>] {
        &self.delivered
    }

    /// Whether its agent runs.
    pub fn is_alive(&self) -> bool {
        self.is_alive
    }

    /// Which host of the internet it is.
    pub fn at(&self) -> HostId {
        self.at
    }

    /// This host's IPv4 alias for a peer.
    pub fn alias_of(&self, now: Now, id: AgentId) -> Option<Ipv4Addr> {
        self.node.known_peers(now).peers.iter().find(|peer| peer.id == id)?.ipv4
    }

    fn fire(&mut self, now: Now) -> bool {
        let is_due = self.next_timer().is_some_and(|at| at <= now.time);
        if is_due {
            self.node.handle_input(now, Input::Timeout);
        }
        is_due
    }

    fn drain(&mut self) -> usize {
        let mut moved = 0;
        while let Some(output) = self.node.poll_output() {
            moved += 1;
            match output {
                Output::Transmit { destination, local_ip, socket, datagram } => {
                    let _ = self.socket.send_to(&datagram, destination, (socket, local_ip));
                }
                Output::OpenSockets { peer, count } => {
                    let sockets: Vec<_> = (0..count).map_while(|_| self.socket.open_extra().ok()).collect();
                    self.extra_sockets += sockets.len();
                    self.queues.opened.push(Input::SocketsOpened { peer, sockets });
                }
                Output::CloseSockets(sockets) => {
                    for socket in sockets {
                        self.socket.close_extra(socket);
                        self.extra_sockets -= 1;
                    }
                }
                Output::Resolve { server, host } => self.names.push((server, host)),
                Output::Fib(fib) => self.fib = fib,
                Output::Store(id, Some(row)) => {
                    self.stored.insert(id, row.encode());
                }
                Output::Store(id, None) => {
                    self.stored.remove(&id);
                }
                Output::StoreSequence(sequence) => self.sequence = sequence,
                Output::Event(event) => self.events.push(event),
            }
        }
        moved
    }

    fn receive(&mut self, now: Now, buffers: &mut Buffers) -> usize {
        let Buffers { received, opened, .. } = buffers;
        let moved = self.socket.recv_batch(received).expect("a pipe does not fail");
        opened.clear();
        self.inbound.process(now.time, &self.fib, received, opened, &mut self.queues);
        self.delivered.extend(opened.iter().map(|(_, packet)| packet.to_vec()));
        moved
    }

    fn tell_control_plane(&mut self, now: Now) -> usize {
        let Queues { notices, strangers, opened } = std::mem::take(&mut self.queues);
        let moved = notices.len() + strangers.len() + opened.len();
        let notices = notices.into_iter().map(Input::Notice);
        for input in opened.into_iter().chain(notices).chain(strangers.into_iter().map(Input::Stranger)) {
            self.node.handle_input(now, input);
            self.drain();
        }
        moved
    }

    /// Puts what the socket sent on its way.
    fn transmit(&mut self, now: Now, net: &mut Internet) {
        for SentDatagram { destination, src_ip, src_port, bytes } in self.network.take_sent() {
            // What the host's own kernel refuses is lost.
            let _ = net.send(now.time.since_origin(), self.at, src_port, src_ip, destination, bytes.clone());
            if self.sent.len() >= SENT_LIMIT {
                self.sent.pop_front();
            }
            self.sent.push_back((destination, bytes));
        }
    }
}

impl Profile {
    fn start(
        &mut self,
        now: Now,
        local_addresses: Vec<IpAddr>,
        record_sequence: u64,
        peers: Vec<StoredPeer>,
        counters: &Arc<Counters>,
    ) -> Node {
        let config = NodeConfig {
            identity: IdentityKey::from_seed(self.keys[0]),
            tunnel_secret: TunnelSecret::from_bytes(self.keys[1]),
            record_sequence,
            name: Some(format!("host{}", self.number).parse().expect("a plain name")),
            ipv4_range: self.options.ipv4_range,
            port: PORT,
            mtu: 1420,
            local_addresses,
            rendezvous: self.options.rendezvous.clone(),
            peers,
            counters: Arc::clone(counters),
            rng: Box::new(self.rng.fork()),
        };
        Node::new(now, config).expect("a record of plain contents")
    }
}
