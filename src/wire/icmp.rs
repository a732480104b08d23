//! ICMP errors to a local program whose packet cannot be carried.
//!
//! | bytes after the IP header | field | ICMPv4 (RFC 792, RFC 1191) | ICMPv6 (RFC 4443) |
//! |---|---|---|---|
//! | 0 | type | 3 | 1, or 2 for too big |
//! | 1 | code | 1 no route, 13 prohibited, 4 too big | 0 no route, 1 prohibited, 0 too big |
//! | 2..4 | checksum | of the message | of pseudo header and message |
//! | 4..8 | MTU | u16 at 6..8, else 0 | u32, else 0 |
//! | 8.. | quoted packet | up to 576 bytes in all (RFC 1812, section 4.3.2.3) | up to 1,280 bytes in all |

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    IPV4_HEADER_LEN, IPV6_HEADER_LEN, Icmpv4DstUnreachable, Icmpv4Message, Icmpv4Packet, Icmpv6DstUnreachable,
    Icmpv6Message, Icmpv6Packet, IpProtocol, Ipv4Packet, Ipv4Repr, Ipv6Packet, Ipv6Repr,
};

use super::ip::{Fragment, IpView};

const ICMP_HEADER_LEN: usize = 8;

/// Longest ICMPv4 error in bytes (RFC 1812, section 4.3.2.3).
const MAX_ICMPV4_ERROR_LEN: usize = 576;

/// Longest ICMPv6 error in bytes: the least MTU of IPv6 (RFC 4443, section 2.4 c).
const MAX_ICMPV6_ERROR_LEN: usize = 1280;

const HOP_LIMIT: u8 = 64;

/// Why a program's packet is not carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum UnreachableReason {
    /// No agent has this address, or it cannot be reached.
    NoRoute,
    /// Trust or policy forbids it.
    AdminProhibited,
    /// Longer than the path carries.
    PacketTooBig {
        /// The longest IP packet in bytes that would have been carried.
        mtu: u16,
    },
}

/// The ICMP error that tells the sender of `packet` why it was dropped, as from `source`, or none
/// where none may be sent (RFC 1122, section 3.2.2; RFC 4443, section 2.4 e): in answer to an ICMP
/// error, to a fragment other than the first, to or from a multicast, broadcast or unspecified
/// address; nor if `source` is of the other family or `packet` is not an IP packet.
pub fn unreachable(packet: &[u8], reason: UnreachableReason, source: IpAddr) -> Option<Vec<u8>> {
    let view = IpView::parse(packet).ok()?;
    if view.fragment == Fragment::Later
        || view.is_icmp_error()
        || view.source.is_loopback()
        || !is_unicast(view.source)
        || !is_unicast(view.destination)
    {
        return None;
    }
    match (source, view.source) {
        (IpAddr::V4(source), IpAddr::V4(program)) => Some(icmpv4_error(view.packet, reason, source, program)),
        (IpAddr::V6(source), IpAddr::V6(program)) => Some(icmpv6_error(view.packet, reason, source, program)),
        _ => None,
    }
}

fn is_unicast(address: IpAddr) -> bool {
    let broadcast = matches!(address, IpAddr::V4(address) if address.is_broadcast());
    !address.is_unspecified() && !address.is_multicast() && !broadcast
}

fn icmpv4_error(dropped: &[u8], reason: UnreachableReason, source: Ipv4Addr, program: Ipv4Addr) -> Vec<u8> {
    let (code, mtu) = match reason {
        UnreachableReason::NoRoute => (Icmpv4DstUnreachable::HostUnreachable, 0),
        UnreachableReason::AdminProhibited => (Icmpv4DstUnreachable::CommProhibited, 0),
        UnreachableReason::PacketTooBig { mtu } => (Icmpv4DstUnreachable::FragRequired, mtu),
    };
    let message = message_of(u32::from(mtu), dropped, MAX_ICMPV4_ERROR_LEN - IPV4_HEADER_LEN);
    let header = Ipv4Repr {
        src_addr: source,
        dst_addr: program,
        next_header: IpProtocol::Icmp,
        payload_len: message.len(),
        hop_limit: HOP_LIMIT,
    };
    let mut error = [vec![0; IPV4_HEADER_LEN], message].concat();
    let mut ip = Ipv4Packet::new_unchecked(error.as_mut_slice());
    header.emit(&mut ip, &ChecksumCapabilities::default());
    let mut icmp = Icmpv4Packet::new_unchecked(ip.payload_mut());
    icmp.set_msg_type(Icmpv4Message::DstUnreachable);
    icmp.set_msg_code(code.into());
    icmp.fill_checksum();
    error
}

fn icmpv6_error(dropped: &[u8], reason: UnreachableReason, source: Ipv6Addr, program: Ipv6Addr) -> Vec<u8> {
    let unreachable = Icmpv6Message::DstUnreachable;
    let (message_type, code, mtu) = match reason {
        UnreachableReason::NoRoute => (unreachable, Icmpv6DstUnreachable::NoRoute.into(), 0),
        UnreachableReason::AdminProhibited => (unreachable, Icmpv6DstUnreachable::AdminProhibit.into(), 0),
        UnreachableReason::PacketTooBig { mtu } => (Icmpv6Message::PktTooBig, 0, u32::from(mtu)),
    };
    let message = message_of(mtu, dropped, MAX_ICMPV6_ERROR_LEN - IPV6_HEADER_LEN);
    let header = Ipv6Repr {
        src_addr: source,
        dst_addr: program,
        next_header: IpProtocol::Icmpv6,
        payload_len: message.len(),
        hop_limit: HOP_LIMIT,
    };
    let mut error = [vec![0; IPV6_HEADER_LEN], message].concat();
    let mut ip = Ipv6Packet::new_unchecked(error.as_mut_slice());
    header.emit(&mut ip);
    let mut icmp = Icmpv6Packet::new_unchecked(ip.payload_mut());
    icmp.set_msg_type(message_type);
    icmp.set_msg_code(code);
    icmp.fill_checksum(&source, &program);
    error
}

/// ICMP header without type, code and checksum, and as much of the dropped packet as fits.
fn message_of(mtu: u32, dropped: &[u8], max_len: usize) -> Vec<u8> {
    let mut message = vec![0; 4];
    message.extend_from_slice(&mtu.to_be_bytes());
    message.extend(dropped.iter().take(max_len - ICMP_HEADER_LEN));
    message
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const REASONS: [UnreachableReason; 3] =
        [UnreachableReason::NoRoute, UnreachableReason::AdminProhibited, UnreachableReason::PacketTooBig { mtu: 1400 }];

    fn ipv4(source: &str, destination: &str, protocol: u8, payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0; IPV4_HEADER_LEN];
        packet.extend_from_slice(payload);
        let mut header = Ipv4Packet::new_unchecked(packet.as_mut_slice());
        Ipv4Repr {
            src_addr: source.parse().unwrap(),
            dst_addr: destination.parse().unwrap(),
            next_header: protocol.into(),
            payload_len: payload.len(),
            hop_limit: 64,
        }
        .emit(&mut header, &ChecksumCapabilities::default());
        packet
    }

    fn ipv6(source: &str, destination: &str, protocol: u8, payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0; IPV6_HEADER_LEN];
        packet.extend_from_slice(payload);
        let mut header = Ipv6Packet::new_unchecked(packet.as_mut_slice());
        Ipv6Repr {
            src_addr: source.parse().unwrap(),
            dst_addr: destination.parse().unwrap(),
            next_header: protocol.into(),
            payload_len: payload.len(),
            hop_limit: 64,
        }
        .emit(&mut header);
        packet
    }

    fn answer_v4(packet: &[u8]) -> Option<Vec<u8>> {
        unreachable(packet, UnreachableReason::NoRoute, "100.64.0.20".parse().unwrap())
    }

    fn answer_v6(packet: &[u8]) -> Option<Vec<u8>> {
        unreachable(packet, UnreachableReason::NoRoute, "fd61::1".parse().unwrap())
    }

    #[test]
    fn ipv4_errors_are_whole_and_quote_the_packet() {
        let packet = ipv4("10.0.0.1", "10.0.0.2", 17, &[7; 900]);
        for (reason, code, mtu) in [(REASONS[0], 1, 0), (REASONS[1], 13, 0), (REASONS[2], 4, 1400)] {
            let source = "10.0.0.9".parse().unwrap();
            let error = unreachable(&packet, reason, source).unwrap();
            assert_eq!(error.len(), MAX_ICMPV4_ERROR_LEN);
            let header = Ipv4Packet::new_checked(error.as_slice()).unwrap();
            assert!(header.verify_checksum());
            assert_eq!(IpAddr::V4(header.src_addr()), source);
            assert_eq!(header.dst_addr(), Ipv4Addr::new(10, 0, 0, 1));
            let message = Icmpv4Packet::new_checked(header.payload()).unwrap();
            assert!(message.verify_checksum());
            assert_eq!(message.msg_type(), Icmpv4Message::DstUnreachable);
            assert_eq!(message.msg_code(), code);
            assert_eq!(u16::from_be_bytes([error[26], error[27]]), mtu);
            assert_eq!(message.data(), &packet[..548]);
        }
    }

    #[test]
    fn ipv6_errors_are_whole_and_quote_the_packet() {
        let packet = ipv6("fd61::2", "fd61::3", 6, &[7; 1400]);
        for (reason, kind, mtu) in [(REASONS[0], (1, 0), 0), (REASONS[1], (1, 1), 0), (REASONS[2], (2, 0), 1400)] {
            let error = unreachable(&packet, reason, "fd61::1".parse().unwrap()).unwrap();
            assert_eq!(error.len(), MAX_ICMPV6_ERROR_LEN);
            let header = Ipv6Packet::new_checked(error.as_slice()).unwrap();
            let message = Icmpv6Packet::new_checked(header.payload()).unwrap();
            assert!(message.verify_checksum(&header.src_addr(), &header.dst_addr()));
            assert_eq!((error[40], error[41]), kind);
            assert_eq!(error[44..48], u32::to_be_bytes(mtu));
            assert_eq!(error[48..], packet[..1232]);
        }
    }

    #[test]
    fn some_packets_are_never_answered() {
        let (a, b) = ("10.0.0.1", "10.0.0.2");
        assert!(answer_v4(&ipv4(a, b, 1, &[8, 0, 0, 0, 0, 0, 0, 0])).is_some());
        for message_type in [3, 4, 5, 11, 12] {
            assert_eq!(answer_v4(&ipv4(a, b, 1, &[message_type; 8])), None);
        }
        assert_eq!(answer_v4(&ipv4(a, b, 1, &[])), None);
        for (source, destination) in
            [(a, "224.0.0.251"), (a, "255.255.255.255"), ("0.0.0.0", b), ("224.0.0.1", b), ("127.0.0.1", b)]
        {
            assert_eq!(answer_v4(&ipv4(source, destination, 17, &[0; 8])), None);
        }
        let mut later_fragment = ipv4(a, b, 17, &[0; 8]);
        later_fragment[7] = 5;
        assert_eq!(answer_v4(&later_fragment), None);
        assert_eq!(answer_v6(&ipv4(a, b, 17, &[0; 8])), None);

        let (a, b) = ("fd61::2", "fd61::3");
        assert!(answer_v6(&ipv6(a, b, 58, &[128, 0, 0, 0])).is_some());
        for message_type in [1, 2, 3, 4, 127, 137] {
            assert_eq!(answer_v6(&ipv6(a, b, 58, &[message_type, 0, 0, 0])), None);
        }
        assert_eq!(answer_v6(&ipv6(a, "ff02::1", 17, &[0; 8])), None);
        assert_eq!(answer_v6(&ipv6("::", b, 17, &[0; 8])), None);
        assert_eq!(answer_v4(&ipv6(a, b, 17, &[0; 8])), None);
    }

    proptest! {
        #[test]
        fn no_error_answers_an_error(packet: Vec<u8>, payload: Vec<u8>) {
            for packet in [packet, ipv4("10.0.0.1", "10.0.0.2", 17, &payload)] {
                for reason in REASONS {
                    if let Some(error) = unreachable(&packet, reason, "10.0.0.9".parse().unwrap()) {
                        prop_assert_eq!(answer_v4(&error), None);
                    }
                }
            }
        }
    }
}
