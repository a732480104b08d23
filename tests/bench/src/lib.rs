//! Two agents' data planes with a session between them, and the steps of a packet's way that are measured.
#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use agentnet::forwarding::{
    Fib, FibPeer, HeldTurns, Inbound, Notice, NoticeSink, OUT_BATCH_BYTES, Offloads, Outbound, PeerPath, SEND_BYTES,
    Segments, SharedPeer, StrangerDatagram,
};
use agentnet::identity::{AgentId, IdentityKey, TunnelSecret, overlay_ipv6};
use agentnet::metrics::Counters;
use agentnet::policy::{Direction, FlowTable, PortSpec, Protocol};
use agentnet::time::Time;
use agentnet::tunnel::{IndexTable, Tunnel, sealed_len};
use agentnet::wire::IpView;
use agentnet_platform::batch::{PacketBatch, VnetHeader};
use agentnet_platform::fake::{FakeNet, FakeSocket};
use agentnet_platform::udp::{DatagramSocket, RecvBatch, SendBatch};
use rand_core::{Infallible, TryCryptoRng, TryRng};

/// Payload of one segment, bytes: what a path of 1,420 takes of TCP over IPv6 with time stamps.
const SEGMENT: usize = 1_348;
/// Segments of a packet as the kernel hands it over.
const SEGMENTS: usize = 44;
/// Other peers in the routing table.
const OTHERS: u8 = 255;
/// Where the two are.
const PLACES: [&str; 2] = ["192.0.2.1:1000", "192.0.2.2:1000"];

/// What is measured.
pub const STEPS: [&str; 7] = ["seal", "open", "segment", "route", "policy", "out", "in"];

/// A sender, a receiver, and what one sends to the other.
pub struct Lane {
    sender: Side,
    receiver: Side,
    header: VnetHeader,
    packet: Vec<u8>,
    /// The first of the packets it is cut into.
    segment: Vec<u8>,
    flows: FlowTable,
    room: Vec<u8>,
    packets: PacketBatch,
    send: SendBatch,
    replies: PacketBatch,
    received: RecvBatch,
    delivered: PacketBatch,
    sealed: Vec<Vec<u8>>,
}

struct Side {
    fib: Fib,
    shared: Arc<SharedPeer>,
    inbound: Inbound,
    outbound: Outbound,
    socket: FakeSocket,
    other: Ipv6Addr,
}

/// Where notices go.
struct Nowhere;

impl NoticeSink for Nowhere {
    fn notice(&mut self, _: Notice) -> bool {
        true
    }

    fn stranger(&mut self, _: StrangerDatagram) -> bool {
        true
    }
}

/// Numbers for indices: they need not be random here.
struct Counting(u64);

impl TryRng for Counting {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        Ok(self.try_next_u64()? as u32)
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        Ok(self.0)
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        for byte in bytes {
            *byte = (self.try_next_u64()? >> 56) as u8;
        }
        Ok(())
    }
}

impl TryCryptoRng for Counting {}

impl Lane {
    /// Ready to carry.
    #[must_use]
    pub fn new() -> Self {
        let net = FakeNet::new();
        let secrets = [TunnelSecret::from_bytes([1; 32]), TunnelSecret::from_bytes([2; 32])];
        let mut rng = Counting(3);
        let indices = [(); 2].map(|()| IndexTable::new().allocate(0, &mut rng));
        let mut tunnels = [0, 1]
            .map(|side| Tunnel::new(&secrets[side], &secrets[1 - side].public(), indices[side], Time::ZERO, None));
        establish(&mut tunnels);
        let mut sides =
            tunnels.into_iter().zip(indices).zip(&secrets).enumerate().map(|(side, ((tunnel, index), secret))| {
                let place = |side: usize| PLACES[side].parse::<SocketAddr>().expect("an address");
                let shared = Arc::new(SharedPeer::new(tunnel));
                shared.path.store(Some(Arc::new(PeerPath::direct(place(1 - side)))));
                let peer = |seed: u8, shared: &Arc<SharedPeer>| {
                    let (id, shared) = (id(seed), Arc::clone(shared));
                    let ipv6 = overlay_ipv6(&id);
                    Arc::new(FibPeer { id, ipv6, ipv4: None, trusted: true, flows: None, shared })
                };
                let other = 1 - side as u8;
                let others = (2..OTHERS).map(|seed| {
                    let tunnel = Tunnel::new(secret, &secrets[1 - side].public(), index, Time::ZERO, None);
                    (IndexTable::new().allocate(0, &mut rng), peer(seed, &Arc::new(SharedPeer::new(tunnel))))
                });
                let peers: Vec<_> = others.chain([(index, peer(other, &shared))]).collect();
                let counters = Arc::new(Counters::default());
                let offloads = Offloads { tcp: true, udp: true };
                Side {
                    fib: Fib::new(overlay_ipv6(&id(side as u8)), None, None, peers),
                    shared,
                    inbound: Inbound::new(Arc::clone(&counters), &secret.public(), offloads),
                    outbound: Outbound::new(counters),
                    socket: net.socket(&[place(side).ip()], place(side).port()).expect("a free address"),
                    other: overlay_ipv6(&id(other)),
                }
            });
        let (Some(sender), Some(receiver)) = (sides.next(), sides.next()) else { unreachable!("two sides") };
        drop(sides);
        let (header, packet) = super_packet(receiver.other, sender.other);
        let max_segments = sender.socket.max_gso_segments();
        Self {
            sender,
            receiver,
            header,
            segment: first_segment(header, &packet),
            packet,
            flows: FlowTable::new("tcp/22,tcp/80-443,udp/53".parse::<PortSpec>().expect("a grant")),
            room: vec![0; 65_536],
            packets: PacketBatch::new(OUT_BATCH_BYTES, 64),
            send: SendBatch::new(SEND_BYTES, max_segments),
            replies: PacketBatch::new(65_536, 64),
            received: RecvBatch::new(),
            delivered: PacketBatch::new(8 << 20, 2_048),
            sealed: Vec::new(),
        }
    }

    /// Does what a step needs that is not measured.
    pub fn prepare(&mut self, step: &str) {
        match step {
            "open" => {
                let mut tunnel = self.sender.shared.tunnel.lock();
                let packet = &self.segment;
                self.sealed.clear();
                for _ in 0..SEGMENTS {
                    let mut datagram = vec![0; sealed_len(packet.len())];
                    let len = tunnel.seal(Time::ZERO, packet, &mut datagram).expect("a session");
                    datagram.truncate(len);
                    self.sealed.push(datagram);
                }
            }
            "out" => {
                self.packets.clear();
                self.packets.free_space()[..self.packet.len()].copy_from_slice(&self.packet);
                self.packets.commit(self.header, self.packet.len());
            }
            "in" => {
                self.prepare("out");
                self.run("out");
                self.sender.socket.send_batch(&self.send);
                self.received.clear();
                self.receiver.socket.recv_batch(&mut self.received).expect("a socket");
            }
            _ => {}
        }
    }

    /// One time what is measured: a step for each of 44 packets of 1,420 bytes. Returns how many there were.
    pub fn run(&mut self, step: &str) -> usize {
        match step {
            "seal" => {
                let (mut tunnel, packet) = (self.sender.shared.tunnel.lock(), &self.segment);
                (0..SEGMENTS).filter(|_| tunnel.seal(Time::ZERO, packet, &mut self.room).is_ok()).count()
            }
            "open" => {
                let mut tunnel = self.receiver.shared.tunnel.lock();
                self.sealed.iter().filter(|sealed| tunnel.open(Time::ZERO, sealed, &mut self.room).is_ok()).count()
            }
            "segment" => {
                let view = IpView::parse(&self.packet).expect("a packet");
                let segments = Segments::new(self.header, &view).expect("a packet to be cut");
                (0..segments.count()).filter(|index| segments.write(*index, &mut self.room).is_ok()).count()
            }
            "route" => {
                let to = IpAddr::V6(self.sender.other);
                (0..SEGMENTS).filter(|_| self.sender.fib.route(std::hint::black_box(to)).is_some()).count()
            }
            "policy" => {
                let flows = &mut self.flows;
                let ports = (443, 50_000);
                (0..SEGMENTS)
                    .map(|_| flows.check(Time::ZERO, Direction::Out, true, Protocol::Tcp, std::hint::black_box(ports)))
                    .count()
            }
            "out" => {
                self.send.clear();
                let Side { outbound, fib, .. } = &mut self.sender;
                outbound.process(
                    Time::ZERO,
                    fib,
                    &self.packets,
                    0,
                    &mut self.send,
                    &mut self.replies,
                    &mut HeldTurns::default(),
                    &mut Nowhere,
                );
                self.send.len()
            }
            "in" => {
                self.delivered.clear();
                let Side { inbound, fib, .. } = &mut self.receiver;
                inbound.process(Time::ZERO, fib, &mut self.received, &mut self.delivered, &mut Nowhere);
                let whole = self.delivered.get(0).is_some_and(|(_, packet)| packet.len() == self.packet.len());
                if whole && self.delivered.len() == 1 { SEGMENTS } else { 0 }
            }
            _ => 0,
        }
    }
}

impl Default for Lane {
    fn default() -> Self {
        Self::new()
    }
}

fn id(seed: u8) -> AgentId {
    IdentityKey::from_seed([seed; 32]).id()
}

fn establish(tunnels: &mut [Tunnel; 2]) {
    let [one, other] = tunnels;
    let mut out = [0; 2048];
    let initiation = one.initiate(Time::ZERO).expect("no handshake is under way");
    let len = other.respond(Time::ZERO, &initiation, &mut out).expect("a valid initiation").len;
    let response = out[..len].to_vec();
    let len = one.complete(Time::ZERO, &response, &mut out).expect("a valid response");
    let keepalive = out[..len].to_vec();
    other.open(Time::ZERO, &keepalive, &mut out).expect("a valid keepalive");
}

/// TCP over IPv6 as the kernel hands it over: to be cut, with the sum of its pseudo header only.
fn super_packet(source: Ipv6Addr, destination: Ipv6Addr) -> (VnetHeader, Vec<u8>) {
    let tcp_len = 32 + SEGMENT * SEGMENTS;
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend((tcp_len as u16).to_be_bytes());
    packet.extend([6, 64]);
    packet.extend(source.octets());
    packet.extend(destination.octets());
    let words = packet[8..40].chunks_exact(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
    let mut sum = words.sum::<u32>() + 6 + tcp_len as u32;
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    packet.extend([0xc3, 0x50, 0x01, 0xbb, 0, 0, 0, 1, 0, 0, 0, 2, 0x80, 0x10, 0x01, 0xf5]);
    packet.extend((sum as u16).to_be_bytes());
    packet.extend([0, 0, 1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2]);
    packet.extend((0..SEGMENT * SEGMENTS).map(|at| (at * 7) as u8));
    let header = VnetHeader {
        flags: VnetHeader::NEEDS_CSUM,
        gso_type: VnetHeader::GSO_TCPV6,
        hdr_len: 72,
        gso_size: SEGMENT as u16,
        csum_start: 40,
        csum_offset: 16,
    };
    (header, packet)
}

fn first_segment(header: VnetHeader, packet: &[u8]) -> Vec<u8> {
    let segments = Segments::new(header, &IpView::parse(packet).expect("a packet")).expect("a packet to be cut");
    let mut segment = vec![0; segments.max_len()];
    let len = segments.write(0, &mut segment).expect("room");
    segment.truncate(len);
    segment
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_does_all_of_its_work() {
        let mut lane = Lane::new();
        for step in STEPS.into_iter().cycle().take(3 * STEPS.len()) {
            lane.prepare(step);
            assert_eq!(lane.run(step), SEGMENTS, "{step}");
        }
    }
}
