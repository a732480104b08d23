//! What the data plane lets through, driven by a peer that obeys no rule but has a valid session.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use agentnet_platform::batch::PacketBatch;
use agentnet_platform::fake::{FakeNet, FakeSocket};
use agentnet_platform::udp::{DatagramSocket, RecvBatch};
use parking_lot::Mutex;

use super::*;
use crate::identity::test_rng::TestRng;
use crate::identity::{AgentId, IdentityKey, TunnelSecret, overlay_ipv6};
use crate::metrics::Counters;
use crate::policy::FlowTable;
use crate::time::Time;
use crate::tunnel::{IndexTable, Tunnel};
use crate::wire::control::ControlMessage;

mod path_mtu;

const HERE: &str = "192.0.2.1:1000";
const THERE: &str = "192.0.2.2:1000";
const ALIASES: Ipv4Aliases = Ipv4Aliases {
    peer_here: Ipv4Addr::new(100, 64, 0, 2),
    own_here: Ipv4Addr::new(100, 64, 0, 1),
    peer_there: Ipv4Addr::new(198, 18, 0, 2),
    own_there: Ipv4Addr::new(198, 18, 0, 1),
};

/// This agent's data plane, and the peer's end of the session in the test's hands.
struct Bench {
    net: FakeNet,
    fib: Fib,
    inbound: Inbound,
    counters: Arc<Counters>,
    socket: FakeSocket,
    peer_socket: FakeSocket,
    peer_tunnel: Tunnel,
    own: Ipv6Addr,
    peer: Ipv6Addr,
    notices: Notices,
}

#[derive(Default)]
struct Notices {
    peers: Vec<Notice>,
    strangers: usize,
}

impl NoticeSink for Notices {
    fn notice(&mut self, notice: Notice) -> bool {
        self.peers.push(notice);
        true
    }

    fn stranger(&mut self, _: StrangerDatagram) -> bool {
        self.strangers += 1;
        true
    }
}

fn id(seed: u8) -> AgentId {
    IdentityKey::from_seed([seed; 32]).id()
}

fn path_of(text: &str) -> PeerPath {
    PeerPath { local_ip: Some(address(HERE).ip()), ..PeerPath::direct(address(text)) }
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

impl Bench {
    fn new(trusted: bool, ports: Option<&str>) -> Self {
        let net = FakeNet::new();
        let socket = net.socket(&[address(HERE).ip()], 1000).unwrap();
        let peer_socket = net.socket(&[address(THERE).ip()], 1000).unwrap();
        let (own_secret, peer_secret) = (TunnelSecret::from_bytes([1; 32]), TunnelSecret::from_bytes([2; 32]));
        let mut rng = TestRng::new(3);
        let index = IndexTable::new().allocate(0, &mut rng);
        let other = IndexTable::new().allocate(0, &mut rng);
        let mut tunnel = Tunnel::new(&own_secret, &peer_secret.public(), index, Time::ZERO, None);
        let mut peer_tunnel = Tunnel::new(&peer_secret, &own_secret.public(), other, Time::ZERO, None);
        let mut out = [0; 2048];
        let initiation = tunnel.initiate(Time::ZERO).unwrap();
        let len = peer_tunnel.respond(Time::ZERO, &initiation, &mut out).unwrap().len;
        let response = out[..len].to_vec();
        let len = tunnel.complete(Time::ZERO, &response, &mut out).unwrap();
        let keepalive = out[..len].to_vec();
        peer_tunnel.open(Time::ZERO, &keepalive, &mut out).unwrap();

        let shared = SharedPeer::new(tunnel);
        shared.path.store(Some(Arc::new(PeerPath::direct(address(THERE)))));
        let flows = ports.map(|ports| Arc::new(Mutex::new(FlowTable::new(ports.parse().unwrap()))));
        let (own, peer) = (overlay_ipv6(&id(1)), overlay_ipv6(&id(2)));
        let entry = FibPeer { id: id(2), ipv6: peer, ipv4: Some(ALIASES), trusted, flows, shared: Arc::new(shared) };
        let counters = Arc::new(Counters::default());
        Self {
            net,
            fib: Fib::new(
                own,
                Some(ALIASES.own_here),
                Some(crate::identity::DEFAULT_IPV4_RANGE),
                [(index, Arc::new(entry))],
            ),
            inbound: Inbound::new(Arc::clone(&counters), &own_secret.public(), Offloads::default()),
            counters,
            socket,
            peer_socket,
            peer_tunnel,
            own,
            peer,
            notices: Notices::default(),
        }
    }

    /// The peer seals and sends this packet; returns what reaches programs.
    fn peer_sends(&mut self, packet: &[u8]) -> Vec<Vec<u8>> {
        let mut sealed = vec![0; packet.len() + 200];
        let len = self.peer_tunnel.seal(Time::ZERO, packet, &mut sealed).unwrap();
        self.arrives(&sealed[..len])
    }

    fn arrives(&mut self, datagram: &[u8]) -> Vec<Vec<u8>> {
        self.peer_socket.send_to(datagram, address(HERE), None).unwrap();
        let (mut received, mut packets) = (RecvBatch::new(), PacketBatch::new(1 << 20, 64));
        self.socket.recv_batch(&mut received).unwrap();
        self.inbound.process(Time::ZERO, &self.fib, &mut received, &mut packets, &mut self.notices);
        packets.iter().map(|(_, packet)| packet.to_vec()).collect()
    }

    fn dropped(&self, reason: &str) -> u64 {
        self.counters.drops().get(reason).copied().unwrap_or(0)
    }
}

/// A UDP packet with zero payload; IPv6 packets have no valid checksum, which the data plane does not look at.
fn udp(source: IpAddr, destination: IpAddr, port: u16) -> Vec<u8> {
    let mut packet = match (source, destination) {
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let mut packet = vec![0x60, 0, 0, 0, 0, 8, 17, 64];
            packet.extend(source.octets());
            packet.extend(destination.octets());
            packet
        }
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let mut packet = vec![0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0];
            packet.extend(source.octets());
            packet.extend(destination.octets());
            packet
        }
        _ => unreachable!("one family"),
    };
    packet.extend([0x10, 0, (port >> 8) as u8, port as u8, 0, 8, 0, 0]);
    packet
}

#[test]
fn an_honest_packet_arrives() {
    let mut bench = Bench::new(true, None);
    let packet = udp(bench.peer.into(), bench.own.into(), 80);
    assert_eq!(bench.peer_sends(&packet), std::slice::from_ref(&packet));
    assert_eq!(bench.counters.rx_packets.get(), 1);
    assert!(bench.notices.peers.contains(&Notice::Active { peer: id(2) }));
    bench.peer_sends(&packet);
    let active = bench.notices.peers.iter().filter(|notice| matches!(notice, Notice::Active { .. })).count();
    assert_eq!(active, 1, "told once per period");
}

#[test]
fn a_forged_ipv6_source_is_dropped_and_counted() {
    let mut bench = Bench::new(true, None);
    let (own, other) = (bench.own, overlay_ipv6(&id(3)));
    for source in [other, own, Ipv6Addr::LOCALHOST, Ipv6Addr::UNSPECIFIED] {
        assert!(bench.peer_sends(&udp(source.into(), own.into(), 80)).is_empty(), "{source}");
    }
    assert_eq!(bench.dropped("in_source"), 4);
}

#[test]
fn a_forged_ipv4_source_is_dropped_and_counted() {
    let mut bench = Bench::new(true, None);
    for source in [ALIASES.peer_here, ALIASES.own_here, Ipv4Addr::new(198, 18, 0, 3), Ipv4Addr::LOCALHOST] {
        assert!(bench.peer_sends(&udp(source.into(), ALIASES.own_there.into(), 80)).is_empty(), "{source}");
    }
    assert_eq!(bench.dropped("in_source"), 4);
}

#[test]
fn a_peer_reaches_this_agent_and_nothing_behind_it() {
    let mut bench = Bench::new(true, None);
    let (peer, other) = (bench.peer, overlay_ipv6(&id(3)));
    for destination in [other, peer, Ipv6Addr::LOCALHOST, "ff02::1".parse().unwrap(), "2001:db8::1".parse().unwrap()] {
        assert!(bench.peer_sends(&udp(peer.into(), destination.into(), 80)).is_empty(), "{destination}");
    }
    let own_here = IpAddr::V4(ALIASES.own_here);
    assert!(bench.peer_sends(&udp(ALIASES.peer_there.into(), own_here, 80)).is_empty());
    assert_eq!(bench.dropped("in_destination"), 6);
}

#[test]
fn aliases_of_the_other_host_become_those_of_this_one() {
    let mut bench = Bench::new(true, None);
    let delivered = bench.peer_sends(&udp(ALIASES.peer_there.into(), ALIASES.own_there.into(), 80));
    assert_eq!(delivered[0][12..16], ALIASES.peer_here.octets());
    assert_eq!(delivered[0][16..20], ALIASES.own_here.octets());
}

#[test]
fn without_consent_only_control_messages_pass_and_not_to_programs() {
    let mut bench = Bench::new(false, None);
    let (own, peer) = (bench.own, bench.peer);
    assert!(bench.peer_sends(&udp(peer.into(), own.into(), 80)).is_empty());
    assert_eq!(bench.dropped("in_untrusted"), 1);
    let ping = ControlMessage::Ping { token: 1 }.emit(peer, own);
    assert!(bench.peer_sends(&ping).is_empty());
    assert!(bench.notices.peers.contains(&Notice::Control {
        peer: id(2),
        packet: ping,
        newest: true,
        path: path_of(THERE)
    }));
    assert!(bench.fib.route(peer.into()).is_none());
}

#[test]
fn control_messages_in_the_name_of_another_are_dropped() {
    let mut bench = Bench::new(true, None);
    let forged = ControlMessage::Ping { token: 1 }.emit(overlay_ipv6(&id(3)), bench.own);
    assert!(bench.peer_sends(&forged).is_empty());
    assert!(!bench.notices.peers.iter().any(|notice| matches!(notice, Notice::Control { .. })));
    assert_eq!(bench.dropped("in_source"), 1);
}

#[test]
fn a_grant_that_names_ports_is_kept_on_arrival() {
    let mut bench = Bench::new(true, Some("udp/80"));
    let (own, peer) = (bench.own, bench.peer);
    assert_eq!(bench.peer_sends(&udp(peer.into(), own.into(), 80)).len(), 1);
    assert!(bench.peer_sends(&udp(peer.into(), own.into(), 81)).is_empty());
    assert_eq!(bench.dropped("in_policy"), 1);
}

#[test]
fn what_no_session_authenticates_is_counted_by_kind() {
    let mut bench = Bench::new(true, None);
    for datagram in [&[4u8, 0, 0, 0, 9, 9, 9, 9][..], &[0xff; 40], &[]] {
        bench.arrives(datagram);
    }
    let mut unknown_index = vec![0; 64];
    unknown_index[0] = 4;
    bench.arrives(&unknown_index);
    let mut response = vec![0; 92];
    response[0] = 2;
    bench.arrives(&response);
    let mut initiation = vec![0; 148];
    initiation[0] = 1;
    bench.arrives(&initiation);
    bench.arrives(&[b"agn\x01\x01\0\0\0".as_slice(), &[0; 1300]].concat());
    assert_eq!((bench.dropped("in_unknown_kind"), bench.dropped("in_unknown_index")), (2, 1));
    assert_eq!((bench.dropped("handshake_invalid"), bench.dropped("introduction_invalid")), (2, 1));
    assert_eq!(bench.notices.strangers, 0);
    let (stranger, own) = (TunnelSecret::from_bytes([5; 32]), TunnelSecret::from_bytes([1; 32]));
    let index = IndexTable::new().allocate(0, &mut TestRng::new(9));
    let initiation = Tunnel::new(&stranger, &own.public(), index, Time::ZERO, None).initiate(Time::ZERO).unwrap();
    bench.arrives(&initiation);
    assert_eq!(bench.notices.strangers, 1, "what knows the key is looked at further");
}

#[test]
fn no_session_runs_inside_another() {
    let net = FakeNet::new();
    let mut bench = Bench::new(true, None);
    let overlay = net.socket(&["100.64.0.9".parse().unwrap()], 7).unwrap();
    bench.socket = net.socket(&[address(HERE).ip()], 1000).unwrap();
    bench.peer_socket = overlay;
    let packet = udp(bench.peer.into(), bench.own.into(), 80);
    assert!(bench.peer_sends(&packet).is_empty());
    assert_eq!(bench.dropped("in_overlay"), 1);
}

#[test]
fn a_confirmed_session_is_told_until_it_is_heard() {
    struct Deaf;
    impl NoticeSink for Deaf {
        fn notice(&mut self, _: Notice) -> bool {
            false
        }
        fn stranger(&mut self, _: StrangerDatagram) -> bool {
            false
        }
    }
    let mut bench = Bench::new(true, None);
    bench.fib.route(bench.peer.into()).unwrap().shared.set_confirmed();
    let packet = udp(bench.peer.into(), bench.own.into(), 80);
    let mut sealed = [0; 512];
    let len = bench.peer_tunnel.seal(Time::ZERO, &packet, &mut sealed).unwrap();
    bench.peer_socket.send_to(&sealed[..len], address(HERE), None).unwrap();
    let (mut received, mut packets) = (RecvBatch::new(), PacketBatch::new(1 << 20, 64));
    bench.socket.recv_batch(&mut received).unwrap();
    bench.inbound.process(Time::ZERO, &bench.fib, &mut received, &mut packets, &mut Deaf);
    bench.peer_sends(&packet);
    assert!(bench.notices.peers.contains(&Notice::SessionConfirmed { peer: id(2) }));
    assert!(bench.notices.peers.contains(&Notice::Active { peer: id(2) }));
}

#[test]
fn a_peer_that_changes_its_address_with_every_packet_does_not_fill_the_queue() {
    let mut bench = Bench::new(true, None);
    bench.notices.peers.clear();
    let packet = udp(bench.peer.into(), bench.own.into(), 80);
    // It is never where it was last: data from there is from elsewhere each time.
    bench
        .fib
        .route(bench.peer.into())
        .unwrap()
        .shared
        .path
        .store(Some(Arc::new(PeerPath::direct(address("192.0.2.99:1")))));
    (0..1000).for_each(|_| drop(bench.peer_sends(&packet)));
    let elsewhere = |notice: &&Notice| matches!(notice, Notice::HeardElsewhere { .. });
    let told = bench.notices.peers.iter().filter(elsewhere).count();
    assert_eq!(told, 16);
}

#[test]
fn a_packet_from_a_new_address_is_reported() {
    let mut bench = Bench::new(true, None);
    bench.notices.peers.clear();
    let packet = udp(bench.peer.into(), bench.own.into(), 80);
    bench.peer_sends(&packet);
    assert!(!bench.notices.peers.iter().any(|notice| matches!(notice, Notice::HeardElsewhere { .. })));
    let peer = bench.fib.route(bench.peer.into()).unwrap();
    peer.shared.path.store(Some(Arc::new(PeerPath::direct(address("192.0.2.99:1")))));
    bench.peer_sends(&packet);
    let roamed = bench.notices.peers.iter().any(
        |notice| matches!(notice, Notice::HeardElsewhere { path, data: true, .. } if path.endpoint == address(THERE)),
    );
    assert!(roamed);
}
