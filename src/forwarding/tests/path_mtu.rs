//! Packets longer than the path takes, over a network that loses what is too long without a word.

use agentnet_platform::batch::VnetHeader;
use agentnet_platform::udp::{SendBatch, SendReport, TooBig};
use smoltcp::wire::{Icmpv4Packet, Icmpv6Packet, Ipv4Packet, Ipv6Packet, TcpPacket};

use super::*;
use crate::forwarding::HeldTurns;
use crate::wire::control::{MAX_CONTROL_LEN, PathMessage};
use crate::wire::{Fragment, IpView, RelayChannel, RelayFrame, WIREGUARD_OVERHEAD};

/// What the path takes.
const PATH_MTU: u16 = 1220;

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const PSH: u8 = 0x08;
const ACK: u8 = 0x10;

/// What became of a packet.
struct Outcome {
    /// At the peer, opened.
    arrived: Vec<Vec<u8>>,
    /// For the program that sent it.
    errors: Vec<Vec<u8>>,
}

fn bench() -> Bench {
    let bench = Bench::new(true, None);
    bench.net.lose_above(usize::from(PATH_MTU) + WIREGUARD_OVERHEAD);
    bench.fib.route(bench.peer.into()).unwrap().shared.set_path_mtu(PATH_MTU);
    bench
}

impl Bench {
    fn program_sends(&mut self, header: VnetHeader, packet: &[u8]) -> Outcome {
        let mut packets = PacketBatch::new(1 << 17, 4);
        packets.free_space()[..packet.len()].copy_from_slice(packet);
        packets.commit(header, packet.len());
        let mut send = SendBatch::new(SEND_BYTES, self.socket.max_gso_segments());
        let mut replies = PacketBatch::new(32 << 10, 16);
        let mut outbound = Outbound::new(Arc::clone(&self.counters));
        let done = outbound.process(
            Time::ZERO,
            &self.fib,
            &packets,
            0,
            &mut send,
            &mut replies,
            &mut HeldTurns::default(),
            &mut self.notices,
        );
        assert_eq!(done, 1);
        self.socket.send_batch(&send);
        let mut received = RecvBatch::new();
        self.peer_socket.recv_batch(&mut received).unwrap();
        let mut open = |datagram: &[u8]| {
            let datagram = RelayFrame::parse(datagram).map_or(datagram, |frame| frame.payload);
            let mut out = vec![0; datagram.len()];
            let len = self.peer_tunnel.open(Time::ZERO, datagram, &mut out).unwrap().len;
            out[..len].to_vec()
        };
        let arrived = received.datagrams().map(|datagram| open(datagram.data)).filter(|packet| !packet.is_empty());
        Outcome { arrived: arrived.collect(), errors: replies.iter().map(|(_, packet)| packet.to_vec()).collect() }
    }

    fn to_peer(&self, ipv6: bool) -> (IpAddr, IpAddr) {
        match ipv6 {
            true => (self.own.into(), self.peer.into()),
            false => (ALIASES.own_here.into(), ALIASES.peer_here.into()),
        }
    }
}

/// An IP packet with the lengths its content asks for; IPv4 without DF.
fn ip((source, destination): (IpAddr, IpAddr), protocol: u8, content: &[u8]) -> Vec<u8> {
    let len = u16::try_from(content.len()).unwrap();
    let mut packet = match (source, destination) {
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let mut packet = vec![0x60, 0, 0, 0, 0, 0, protocol, 64];
            packet[4..6].copy_from_slice(&len.to_be_bytes());
            packet.extend(source.octets());
            packet.extend(destination.octets());
            packet
        }
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0];
            packet[2..4].copy_from_slice(&(len + 20).to_be_bytes());
            packet.extend(source.octets());
            packet.extend(destination.octets());
            Ipv4Packet::new_unchecked(packet.as_mut_slice()).fill_checksum();
            packet
        }
        _ => panic!("one family"),
    };
    packet.extend(content);
    packet
}

fn tcp(ends: (IpAddr, IpAddr), flags: u8, options: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut segment = vec![0x10, 0, 0, 80, 0, 0, 0, 7, 0, 0, 0, 0, 0, flags, 0xff, 0xff, 0, 0, 0, 0];
    segment[12] = u8::try_from((20 + options.len()) / 4).unwrap() << 4;
    segment.extend(options);
    segment.extend(payload);
    TcpPacket::new_unchecked(segment.as_mut_slice()).fill_checksum(&ends.0.into(), &ends.1.into());
    ip(ends, 6, &segment)
}

fn udp_of(ends: (IpAddr, IpAddr), total_len: usize) -> Vec<u8> {
    let header = if ends.0.is_ipv6() { 40 } else { 20 };
    let mut datagram = vec![0; total_len - header];
    datagram[..4].copy_from_slice(&[0x10, 0, 0, 80]);
    datagram[4..6].copy_from_slice(&u16::try_from(total_len - header).unwrap().to_be_bytes());
    ip(ends, 17, &datagram)
}

fn with_df(mut packet: Vec<u8>) -> Vec<u8> {
    let mut ip = Ipv4Packet::new_unchecked(packet.as_mut_slice());
    ip.set_dont_frag(true);
    ip.fill_checksum();
    packet
}

fn payload(len: usize) -> Vec<u8> {
    (0..len).map(|number| (number % 251) as u8).collect()
}

/// The stream that segments carry, one after the other; their checksums must be right.
fn stream(segments: &[Vec<u8>]) -> Vec<u8> {
    let mut stream = Vec::new();
    for packet in segments {
        let view = IpView::parse(packet).unwrap();
        let tcp = TcpPacket::new_checked(view.l4()).unwrap();
        assert!(tcp.verify_checksum(&view.source.into(), &view.destination.into()));
        assert_eq!(tcp.seq_number(), smoltcp::wire::TcpSeqNumber(7 + i32::try_from(stream.len()).unwrap()));
        stream.extend(tcp.payload());
    }
    stream
}

#[test]
fn tcp_is_cut_to_what_the_path_takes() {
    for ipv6 in [true, false] {
        let mut bench = bench();
        let ends = bench.to_peer(ipv6);
        let sent = payload(1_340);
        let packet = tcp(ends, ACK | PSH | FIN, &[], &sent);
        let outcome = bench.program_sends(VnetHeader::default(), &packet);
        assert!(outcome.errors.is_empty());
        assert_eq!(outcome.arrived.len(), 2);
        assert_eq!(outcome.arrived[0].len(), usize::from(PATH_MTU));
        assert_eq!(stream(&outcome.arrived), sent);
        let flags = |packet: &[u8]| IpView::parse(packet).unwrap().l4()[13];
        assert_eq!([0, 1].map(|number| flags(&outcome.arrived[number])), [ACK, ACK | PSH | FIN]);
    }
}

#[test]
fn tcp_that_the_device_is_to_cut_is_cut_smaller() {
    let mut bench = bench();
    let ends = bench.to_peer(true);
    let sent = payload(60_000);
    let packet = tcp(ends, ACK, &[], &sent);
    let header = VnetHeader { gso_type: VnetHeader::GSO_TCPV6, gso_size: 1_360, ..VnetHeader::default() };
    let outcome = bench.program_sends(header, &packet);
    assert!(outcome.arrived.iter().all(|packet| packet.len() <= usize::from(PATH_MTU)));
    assert_eq!(outcome.arrived.len(), 60_000usize.div_ceil(1_160));
    assert_eq!(stream(&outcome.arrived), sent);
    // What was asked for holds where it is less.
    let header = VnetHeader { gso_size: 1_000, ..header };
    assert_eq!(bench.program_sends(header, &packet).arrived.len(), 60);
}

#[test]
fn connections_begin_with_segments_that_fit() {
    let mss = |packet: &[u8]| {
        stream(&[packet.to_vec()]);
        u16::from_be_bytes(*IpView::parse(packet).unwrap().l4()[22..].first_chunk().unwrap())
    };
    for (ipv6, fitting) in [(true, 1_160), (false, 1_180)] {
        let mut bench = bench();
        let (here, there) = bench.to_peer(ipv6);
        let option = [2, 4, 5, 0x8c];
        let outcome = bench.program_sends(VnetHeader::default(), &tcp((here, there), SYN, &option, &[]));
        assert_eq!(mss(&outcome.arrived[0]), fitting, "outbound");
        let ends = if ipv6 { (there, here) } else { (ALIASES.peer_there.into(), ALIASES.own_there.into()) };
        let delivered = bench.peer_sends(&tcp(ends, SYN | ACK, &option, &[]));
        assert_eq!(mss(&delivered[0]), fitting, "inbound");
    }
}

#[test]
fn a_program_learns_what_fits_ipv6() {
    let mut bench = bench();
    let ends = bench.to_peer(true);
    let packet = udp_of(ends, 1_400);
    let outcome = bench.program_sends(VnetHeader::default(), &packet);
    assert!(outcome.arrived.is_empty());
    let error = Ipv6Packet::new_checked(outcome.errors[0].as_slice()).unwrap();
    assert_eq!((error.src_addr(), error.dst_addr()), (bench.own, bench.own));
    let message = Icmpv6Packet::new_checked(error.payload()).unwrap();
    // Never less than every link takes: a program could not send less.
    assert_eq!((u8::from(message.msg_type()), message.pkt_too_big_mtu()), (2, 1_280));
    assert_eq!(bench.dropped("out_too_big"), 1);
    bench.fib.route(bench.peer.into()).unwrap().shared.set_path_mtu(1_390);
    let outcome = bench.program_sends(VnetHeader::default(), &packet);
    assert_eq!(outcome.errors[0][44..48], 1_390u32.to_be_bytes());
}

#[test]
fn a_program_learns_what_fits_ipv4() {
    let mut bench = bench();
    let ends = bench.to_peer(false);
    let outcome = bench.program_sends(VnetHeader::default(), &with_df(udp_of(ends, 1_221)));
    assert!(outcome.arrived.is_empty());
    let error = Ipv4Packet::new_checked(outcome.errors[0].as_slice()).unwrap();
    // From itself a host takes nothing that came by a network.
    assert_eq!((error.src_addr(), error.dst_addr()), (ALIASES.peer_here, ALIASES.own_here));
    let message = Icmpv4Packet::new_checked(error.payload()).unwrap();
    assert_eq!((u8::from(message.msg_type()), message.msg_code()), (3, 4));
    assert_eq!(outcome.errors[0][26..28], PATH_MTU.to_be_bytes());
}

#[test]
fn what_must_pass_may_be_fragmented() {
    let mut bench = bench();
    let ends = bench.to_peer(true);
    for packet in [udp_of(ends, 1_221), udp_of(ends, 1_280), udp_of(bench.to_peer(false), 1_400)] {
        let outcome = bench.program_sends(VnetHeader::default(), &packet);
        assert!(outcome.errors.is_empty());
        assert_eq!(outcome.arrived, [packet]);
    }
}

#[test]
fn through_a_relay_the_packet_itself_is_cut() {
    let mut bench = bench();
    let through = PeerPath { relay: Some(RelayChannel::new(5)), ..PeerPath::direct(address(THERE)) };
    let shared = &bench.fib.route(bench.peer.into()).unwrap().shared;
    shared.path.store(Some(Arc::new(through)));
    shared.set_path_mtu(1_184);
    bench.net.lose_above(1_184 + WIREGUARD_OVERHEAD + 16);
    for packet in [udp_of(bench.to_peer(true), 1_280), udp_of(bench.to_peer(false), 1_280)] {
        let arrived = bench.program_sends(VnetHeader::default(), &packet).arrived;
        let kinds: Vec<_> = arrived.iter().map(|packet| IpView::parse(packet).unwrap().fragment).collect();
        assert_eq!(kinds, [Fragment::First, Fragment::Later]);
    }
    assert_eq!(bench.counters.tx_packets.get(), 2);
}

#[test]
fn what_fits_travels_as_it_is() {
    let mut bench = bench();
    let fitting = usize::from(PATH_MTU);
    let (v6, v4) = (bench.to_peer(true), bench.to_peer(false));
    let cases = [udp_of(v6, fitting), with_df(udp_of(v4, fitting)), tcp(v6, ACK, &[], &payload(fitting - 60))];
    for packet in cases {
        assert_eq!(bench.program_sends(VnetHeader::default(), &packet).arrived, [packet]);
    }
    let shared = &bench.fib.route(bench.peer.into()).unwrap().shared;
    assert!(shared.take_long_sent() && !shared.take_long_sent(), "long packets are noted once");
    bench.program_sends(VnetHeader::default(), &udp_of(v6, 1_184));
    assert!(!bench.fib.route(bench.peer.into()).unwrap().shared.take_long_sent());
}

#[test]
fn datagrams_that_the_device_is_to_cut_are_too_big_together() {
    let mut bench = bench();
    let packet = udp_of(bench.to_peer(true), 48 + 3 * 1_300);
    let header = VnetHeader { gso_type: VnetHeader::GSO_UDP_L4, gso_size: 1_300, ..VnetHeader::default() };
    let outcome = bench.program_sends(header, &packet);
    assert_eq!((outcome.arrived.len(), outcome.errors.len()), (0, 1));
    let header = VnetHeader { gso_size: 1_200, ..header };
    let outcome = bench.program_sends(header, &packet);
    assert_eq!((outcome.arrived.len(), outcome.errors.len()), (4, 0), "of 1,248 bytes, in fragments");
}

#[test]
fn what_the_host_refuses_is_told_once_in_a_while() {
    let mut outbound = Outbound::new(Arc::default());
    let mut notices = Notices::default();
    let too_big = TooBig { destination: address(THERE), len: 1_452 };
    let report = |shortest_too_big| SendReport { shortest_too_big, ..SendReport::default() };
    outbound.batch_sent(Time::ZERO, &report(None), &mut notices);
    assert!(notices.peers.is_empty());
    let later = |ms| Time::ZERO + std::time::Duration::from_millis(ms);
    for ms in [0, 10, 50, 99, 100] {
        outbound.batch_sent(later(ms), &report(Some(too_big)), &mut notices);
    }
    assert_eq!(notices.peers, vec![Notice::TooBig { endpoint: address(THERE), len: 1_452 }; 2]);
    outbound.batch_sent(later(101), &report(Some(TooBig { len: 1_400, ..too_big })), &mut notices);
    assert_eq!(notices.peers.len(), 3, "another length is news");
}

#[test]
fn only_probes_are_longer_than_every_path_takes() {
    let mut bench = bench();
    let (own, peer) = (bench.own, bench.peer);
    let probe = ControlMessage::Path(PathMessage::Probe { token: 1, length: 9_000 }).emit(peer, own);
    bench.net.lose_above(10_000);
    assert!(bench.peer_sends(&probe).is_empty());
    let reached =
        |bench: &Bench| bench.notices.peers.iter().filter(|notice| matches!(notice, Notice::Control { .. })).count();
    assert_eq!(reached(&bench), 1);
    let mut other = probe;
    other[41] = 1;
    other.truncate(MAX_CONTROL_LEN + 1);
    other[4..6].copy_from_slice(&u16::try_from(MAX_CONTROL_LEN + 1 - 40).unwrap().to_be_bytes());
    bench.peer_sends(&other);
    assert_eq!((reached(&bench), bench.dropped("control_invalid")), (1, 1));
}
