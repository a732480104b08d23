//! One host: control plane, data plane, device and disk.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use agentnet::forwarding::{Fib, Inbound, Notice, NoticeSink, OUT_BATCH_BYTES, Outbound, StrangerDatagram};
use agentnet::identity::{AgentId, DEFAULT_IPV4_RANGE, IdentityKey, TunnelSecret};
use agentnet::metrics::Counters;
use agentnet::node::{Event, Input, Node, NodeConfig, Output, StoredPeer};
use agentnet::time::{Now, Time};
use agentnet_platform::batch::{PacketBatch, VnetHeader};
use agentnet_platform::fake::{FakeNet, FakeSocket};
use agentnet_platform::udp::{DatagramSocket, RecvBatch, SendBatch};
use ipnet::Ipv4Net;
use rand_core::{TryCryptoRng, TryRng};
use sha2::{Digest, Sha256};

use super::{second_address, transport_address};

/// How a host differs from the default.
#[derive(Clone)]
pub struct HostOptions {
    pub ipv4_range: Option<Ipv4Net>,
    /// The host has an IPv6 transport address too.
    pub both_families: bool,
}

impl Default for HostOptions {
    fn default() -> Self {
        Self { ipv4_range: Some(DEFAULT_IPV4_RANGE), both_families: false }
    }
}

/// One host with its agent.
pub struct Host {
    pub node: Node,
    pub counters: Arc<Counters>,
    /// What the disk holds.
    pub stored: BTreeMap<AgentId, Vec<u8>>,
    /// Datagrams sent, and to where, since the list was last taken.
    pub sent: Vec<(SocketAddr, Vec<u8>)>,
    pub events: Vec<Event>,
    number: usize,
    options: HostOptions,
    life: u64,
    sequence: u64,
    socket: Option<FakeSocket>,
    fib: Arc<Fib>,
    inbound: Inbound,
    outbound: Outbound,
    delivered: Vec<Vec<u8>>,
    received: RecvBatch,
    packets: PacketBatch,
    queues: Queues,
}

#[derive(Default)]
struct Queues {
    notices: VecDeque<Notice>,
    strangers: VecDeque<StrangerDatagram>,
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
    pub(crate) fn new(now: Now, net: &FakeNet, number: usize, options: HostOptions) -> Self {
        let counters = Arc::new(Counters::default());
        let node = start(now, number, 0, 0, &options, Vec::new(), &counters);
        Self {
            fib: Arc::new(Fib::new(node.ipv6(), None, None, [])),
            inbound: Inbound::new(Arc::clone(&counters), &node.tunnel_key()),
            outbound: Outbound::new(Arc::clone(&counters)),
            node,
            counters,
            stored: BTreeMap::new(),
            sent: Vec::new(),
            events: Vec::new(),
            number,
            life: 0,
            sequence: 0,
            socket: Some(open(net, number, &options)),
            delivered: Vec::new(),
            received: RecvBatch::new(),
            packets: PacketBatch::new(4 << 20, 2048),
            queues: Queues::default(),
            options,
        }
    }

    pub(crate) fn restart(&mut self, now: Now, net: &FakeNet) {
        // The port is free only after the old socket is gone.
        self.socket = None;
        self.socket = Some(open(net, self.number, &self.options));
        self.queues = Queues::default();
        self.life += 1;
        let rows = self.stored.values().map(|row| StoredPeer::decode(row).unwrap()).collect();
        self.node = start(now, self.number, self.life, self.sequence, &self.options, rows, &self.counters);
        self.fib = Arc::new(Fib::new(self.node.ipv6(), None, None, []));
    }

    /// When the control plane wants to be woken.
    pub(crate) fn next_timer(&self) -> Option<Time> {
        self.node.poll_timeout().map(|(at, _)| at)
    }

    /// Wakes the control plane if it is due.
    pub(crate) fn fire(&mut self, now: Now) -> Option<()> {
        self.next_timer().filter(|at| *at <= now.time)?;
        self.node.handle_input(now, Input::Timeout);
        Some(())
    }

    /// Carries out what waits and takes in what arrived; returns how much moved.
    pub(crate) fn step(&mut self, now: Now) -> usize {
        self.drain() + self.receive(now) + self.tell_control_plane(now)
    }

    /// A program of this host sends a packet.
    pub(crate) fn program_sends(&mut self, now: Now, packet: &[u8]) {
        let mut packets = PacketBatch::new(OUT_BATCH_BYTES, 4);
        packets.free_space()[..packet.len()].copy_from_slice(packet);
        packets.commit(VnetHeader::default(), packet.len());
        let (mut send, mut replies) = (SendBatch::new(OUT_BATCH_BYTES * 2, 1), PacketBatch::new(65_536, 4));
        self.outbound.process(now.time, &self.fib, &packets, 0, &mut send, &mut replies, &mut self.queues);
        self.delivered.extend(replies.iter().map(|(_, packet)| packet.to_vec()));
        self.socket.as_ref().unwrap().send_batch(&send);
    }

    /// Packets that came out of the device since the last call.
    pub fn take_delivered(&mut self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.delivered)
    }

    /// A datagram out of nowhere.
    pub fn socket(&self) -> &FakeSocket {
        self.socket.as_ref().unwrap()
    }

    /// This host's IPv4 alias for a peer.
    pub fn alias_of(&self, now: Now, id: AgentId) -> Option<Ipv4Addr> {
        self.node.known_peers(now).peers.iter().find(|peer| peer.id == id)?.ipv4
    }

    fn drain(&mut self) -> usize {
        let mut moved = 0;
        while let Some(output) = self.node.poll_output() {
            moved += 1;
            match output {
                Output::Transmit { destination, local_ip, datagram } => {
                    let _ = self.socket.as_ref().unwrap().send_to(&datagram, destination, local_ip);
                    self.sent.push((destination, datagram));
                }
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

    fn receive(&mut self, now: Now) -> usize {
        let moved = self.socket.as_ref().unwrap().recv_batch(&mut self.received).unwrap();
        self.packets.clear();
        self.inbound.process(now.time, &self.fib, &mut self.received, &mut self.packets, &mut self.queues);
        self.delivered.extend(self.packets.iter().map(|(_, packet)| packet.to_vec()));
        moved
    }

    fn tell_control_plane(&mut self, now: Now) -> usize {
        let moved = self.queues.notices.len() + self.queues.strangers.len();
        for notice in std::mem::take(&mut self.queues.notices) {
            self.node.handle_input(now, Input::Notice(notice));
        }
        for datagram in std::mem::take(&mut self.queues.strangers) {
            self.node.handle_input(now, Input::Stranger(datagram));
        }
        moved
    }
}

fn open(net: &FakeNet, number: usize, options: &HostOptions) -> FakeSocket {
    net.socket(&addresses(number, options), transport_address(number).port()).unwrap()
}

fn addresses(number: usize, options: &HostOptions) -> Vec<IpAddr> {
    let second = options.both_families.then(|| second_address(number).ip());
    [transport_address(number).ip()].into_iter().chain(second).collect()
}

fn start(
    now: Now,
    number: usize,
    life: u64,
    sequence: u64,
    options: &HostOptions,
    peers: Vec<StoredPeer>,
    counters: &Arc<Counters>,
) -> Node {
    let address = transport_address(number);
    let seed = [u8::try_from(number + 1).unwrap(); 32];
    let config = NodeConfig {
        identity: IdentityKey::from_seed(seed),
        tunnel_secret: TunnelSecret::from_bytes(seed),
        record_sequence: sequence,
        name: Some(format!("host{number}").parse().unwrap()),
        ipv4_range: options.ipv4_range,
        port: address.port(),
        mtu: 1420,
        local_addresses: addresses(number, options),
        peers,
        counters: Arc::clone(counters),
        rng: Box::new(SeededRng { seed: (number as u64) << 32 | life, counter: 0 }),
    };
    Node::new(now, config).unwrap()
}

/// SHA-256 in counter mode: the same seed is the same run.
struct SeededRng {
    seed: u64,
    counter: u64,
}

impl TryRng for SeededRng {
    type Error = std::convert::Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Self::Error> {
        let mut bytes = [0; 4];
        self.try_fill_bytes(&mut bytes).map(|()| u32::from_le_bytes(bytes))
    }

    fn try_next_u64(&mut self) -> Result<u64, Self::Error> {
        let mut bytes = [0; 8];
        self.try_fill_bytes(&mut bytes).map(|()| u64::from_le_bytes(bytes))
    }

    fn try_fill_bytes(&mut self, target: &mut [u8]) -> Result<(), Self::Error> {
        for chunk in target.chunks_mut(32) {
            self.counter += 1;
            let block = Sha256::new().chain_update(self.seed.to_le_bytes()).chain_update(self.counter.to_le_bytes());
            chunk.copy_from_slice(&block.finalize()[..chunk.len()]);
        }
        Ok(())
    }
}

impl TryCryptoRng for SeededRng {}
