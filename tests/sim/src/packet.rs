//! IP packets as a kernel would make them.

use std::net::IpAddr;

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{IpProtocol, Ipv4Packet, Ipv4Repr, Ipv6Packet, Ipv6Repr, UdpPacket, UdpRepr};

/// A UDP packet with right checksums.
pub fn udp(source: IpAddr, destination: IpAddr, source_port: u16, destination_port: u16, payload: &[u8]) -> Vec<u8> {
    let udp = UdpRepr { src_port: source_port, dst_port: destination_port };
    let udp_len = udp.header_len() + payload.len();
    let checksums = ChecksumCapabilities::default();
    let (mut packet, header_len) = match (source, destination) {
        (IpAddr::V6(src_addr), IpAddr::V6(dst_addr)) => {
            let next_header = IpProtocol::Udp;
            let repr = Ipv6Repr { src_addr, dst_addr, next_header, payload_len: udp_len, hop_limit: 64 };
            let mut packet = vec![0; repr.buffer_len() + udp_len];
            repr.emit(&mut Ipv6Packet::new_unchecked(&mut packet[..]));
            (packet, repr.buffer_len())
        }
        (IpAddr::V4(src_addr), IpAddr::V4(dst_addr)) => {
            let next_header = IpProtocol::Udp;
            let repr = Ipv4Repr { src_addr, dst_addr, next_header, payload_len: udp_len, hop_limit: 64 };
            let mut packet = vec![0; repr.buffer_len() + udp_len];
            repr.emit(&mut Ipv4Packet::new_unchecked(&mut packet[..]), &checksums);
            (packet, repr.buffer_len())
        }
        _ => panic!("addresses of one family"),
    };
    let mut datagram = UdpPacket::new_unchecked(&mut packet[header_len..]);
    udp.emit(
        &mut datagram,
        &source.into(),
        &destination.into(),
        payload.len(),
        |room| room.copy_from_slice(payload),
        &checksums,
    );
    packet
}
