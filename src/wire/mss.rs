//! Clamping the maximum segment size that the two ends of a TCP connection tell each other.
//!
//! | bytes of the TCP header (RFC 9293, section 3.1) | field |
//! |---|---|
//! | 12 | header length in words, upper four bits |
//! | 13 | flags; SYN is 0x02 |
//! | 16..18 | checksum |
//! | 20.. | options: 0 ends them, 1 is padding; others are kind, length in bytes of all of it, value |
//!
//! | option | kind | length | value |
//! |---|---|---|---|
//! | maximum segment size (section 3.7.1) | 2 | 4 | u16: payload bytes that the sender of the option accepts in one segment |

use super::incremental_checksum::SumChange;
use super::ip::{Fragment, IpView, PROTOCOL_TCP};

const FLAGS: usize = 13;
const FLAG_SYN: u8 = 0x02;
const CHECKSUM: usize = 16;
/// Header without options, in bytes.
const TCP_HEADER_LEN: usize = 20;
const OPTION_END: u8 = 0;
const OPTION_PADDING: u8 = 1;
const OPTION_MSS: u8 = 2;
const OPTION_MSS_LEN: u8 = 4;

/// Whether a packet opens a TCP connection: a SYN or the answer to one, with its header.
#[must_use]
pub fn is_tcp_syn(view: &IpView<'_>) -> bool {
    view.protocol == PROTOCOL_TCP
        && view.fragment != Fragment::Later
        && view.l4().get(FLAGS).is_some_and(|flags| flags & FLAG_SYN != 0)
}

/// Lowers the maximum segment size of a TCP packet with SYN, where it names one, to what fits IP packets of `mtu` bytes
/// without IP and TCP options (RFC 6691, section 2), and updates the checksum, which must be complete. Returns whether
/// it changed anything. Everything else stays as it is, malformed options too.
pub fn clamp_mss(packet: &mut [u8], mtu: u16) -> bool {
    let Ok(view) = IpView::parse(packet) else { return false };
    if !is_tcp_syn(&view) {
        return false;
    }
    let ip_header_len =
        if view.source.is_ipv4() { smoltcp::wire::IPV4_HEADER_LEN } else { smoltcp::wire::IPV6_HEADER_LEN };
    let fitting = usize::from(mtu).saturating_sub(ip_header_len + TCP_HEADER_LEN);
    let (start, end) = (view.l4_offset, view.total_len());
    let Some(tcp) = packet.get_mut(start..end) else { return false };
    clamp_option(tcp, u16::try_from(fitting).unwrap_or(u16::MAX)).is_some()
}

fn clamp_option(tcp: &mut [u8], most: u16) -> Option<()> {
    let at = find_mss(tcp)?;
    let value = *tcp.get(at..)?.first_chunk::<2>()?;
    if u16::from_be_bytes(value) <= most {
        return None;
    }
    // The value may stand at an odd offset; the checksum is about the words it is part of.
    let words = at & !1..(at + 3) & !1;
    let mut before = [0; 4];
    let before = before.get_mut(..words.len())?;
    before.copy_from_slice(tcp.get(words.clone())?);
    let field = tcp.get(CHECKSUM..)?.first_chunk::<2>().copied()?;
    *tcp.get_mut(at..)?.first_chunk_mut::<2>()? = most.to_be_bytes();
    let change = SumChange::default().replace(before, tcp.get(words)?);
    let checksum = change.apply(u16::from_be_bytes(field));
    *tcp.get_mut(CHECKSUM..)?.first_chunk_mut::<2>()? = checksum.to_be_bytes();
    Some(())
}

/// Where the value of the option is; none if the options end, or stop making sense, before it.
fn find_mss(tcp: &[u8]) -> Option<usize> {
    let header_len = usize::from(tcp.get(12)? >> 4) * 4;
    let header = tcp.get(..header_len)?;
    let mut at = TCP_HEADER_LEN;
    // Each turn goes on by one byte at least.
    loop {
        match header.get(at..)? {
            [OPTION_END, ..] => return None,
            [OPTION_PADDING, ..] => at += 1,
            [OPTION_MSS, OPTION_MSS_LEN, _, _, ..] => return Some(at + 2),
            [kind, len, ..] if *kind != OPTION_MSS && *len >= 2 => at += usize::from(*len),
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use smoltcp::phy::ChecksumCapabilities;
    use smoltcp::wire::{IpAddress, IpProtocol, Ipv4Packet, Ipv4Repr, Ipv6Packet, Ipv6Repr, TcpPacket};

    const SYN: u8 = FLAG_SYN;
    const ACK: u8 = 0x10;

    /// A TCP packet with these flags and options (a multiple of four bytes), and a right checksum.
    fn packet(ipv6: bool, flags: u8, options: &[u8], payload: &[u8]) -> Vec<u8> {
        let mut tcp = vec![0x10, 0, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0, flags, 0xff, 0xff, 0, 0, 0, 0];
        tcp[12] = u8::try_from((TCP_HEADER_LEN + options.len()) / 4).unwrap() << 4;
        tcp.extend_from_slice(options);
        tcp.extend_from_slice(payload);
        let mut bytes = vec![0; if ipv6 { 40 } else { 20 }];
        let (payload_len, hop_limit, next_header) = (tcp.len(), 64, IpProtocol::Tcp);
        let (source, destination): (IpAddress, IpAddress) = if ipv6 {
            let (src_addr, dst_addr) = ("fd61::1".parse().unwrap(), "fd61::2".parse().unwrap());
            let header = Ipv6Repr { src_addr, dst_addr, next_header, payload_len, hop_limit };
            header.emit(&mut Ipv6Packet::new_unchecked(bytes.as_mut_slice()));
            (src_addr.into(), dst_addr.into())
        } else {
            let (src_addr, dst_addr) = ("100.64.0.1".parse().unwrap(), "100.64.0.2".parse().unwrap());
            let header = Ipv4Repr { src_addr, dst_addr, next_header, payload_len, hop_limit };
            bytes.extend_from_slice(&tcp);
            header.emit(&mut Ipv4Packet::new_unchecked(bytes.as_mut_slice()), &ChecksumCapabilities::default());
            bytes.truncate(20);
            (src_addr.into(), dst_addr.into())
        };
        TcpPacket::new_unchecked(tcp.as_mut_slice()).fill_checksum(&source, &destination);
        bytes.extend_from_slice(&tcp);
        bytes
    }

    fn mss_option(mss: u16) -> Vec<u8> {
        let [high, low] = mss.to_be_bytes();
        vec![2, 4, high, low]
    }

    /// The MSS that a parser which knows nothing of this file finds; the checksum must be right.
    fn mss_of(packet: &[u8]) -> Option<u16> {
        let view = IpView::parse(packet).unwrap();
        let tcp = TcpPacket::new_checked(view.l4()).unwrap();
        assert!(tcp.verify_checksum(&view.source.into(), &view.destination.into()), "the checksum is wrong");
        smoltcp::wire::TcpRepr::parse(
            &tcp,
            &view.source.into(),
            &view.destination.into(),
            &ChecksumCapabilities::default(),
        )
        .unwrap()
        .max_seg_size
    }

    #[test]
    fn syn_and_syn_ack_are_clamped_in_both_families() {
        for (ipv6, fitting) in [(false, 1180), (true, 1160)] {
            for flags in [SYN, SYN | ACK] {
                let mut bytes = packet(ipv6, flags, &mss_option(1380), &[]);
                assert!(clamp_mss(&mut bytes, 1220));
                assert_eq!(mss_of(&bytes), Some(fitting));
                assert!(!clamp_mss(&mut bytes, 1220), "it fits now");
            }
        }
    }

    #[test]
    fn what_fits_or_opens_no_connection_stays() {
        for bytes in [
            packet(false, SYN, &mss_option(1180), &[]),
            packet(false, SYN, &mss_option(536), &[]),
            packet(false, SYN, &[], &[]),
            packet(false, ACK, &mss_option(1380), &[7; 9]),
        ] {
            let mut changed = bytes.clone();
            assert!(!clamp_mss(&mut changed, 1220));
            assert_eq!(changed, bytes);
        }
    }

    #[test]
    fn the_option_is_found_among_others_at_odd_offsets_too() {
        let window_scale = [3, 3, 7];
        for options in [
            [&[1, 1, 1, 1][..], &mss_option(1380)].concat(),
            [&window_scale[..], &mss_option(1380), &[0]].concat(),
            [&window_scale[..], &mss_option(1380), &[1, 1, 1, 3, 3]].concat(),
        ] {
            let mut bytes = packet(false, SYN, &options, &[1, 2, 3]);
            assert!(clamp_mss(&mut bytes, 1220), "{options:?}");
            let view = IpView::parse(&bytes).unwrap();
            let tcp = TcpPacket::new_checked(view.l4()).unwrap();
            assert!(tcp.verify_checksum(&view.source.into(), &view.destination.into()));
            let at = find_mss(view.l4()).unwrap();
            assert_eq!(view.l4()[at..at + 2], 1180u16.to_be_bytes());
        }
    }

    #[test]
    fn malformed_options_are_left_alone() {
        for options in [
            // Ended before; a length of zero; one beyond the header; another length than it has; cut off.
            [&[0, 0, 0, 0][..], &mss_option(1380)].concat(),
            [&[3, 0, 1, 1][..], &mss_option(1380)].concat(),
            [&[3, 40, 1, 1][..], &mss_option(1380)].concat(),
            vec![2, 6, 5, 100, 0, 0, 0, 0],
            vec![1, 1, 2, 4],
            vec![1, 1, 1, 2],
        ] {
            let bytes = packet(true, SYN, &options, &[]);
            let mut changed = bytes.clone();
            assert!(!clamp_mss(&mut changed, 1220), "{options:?}");
            assert_eq!(changed, bytes);
        }
    }

    proptest! {
        #[test]
        fn the_rest_stays_and_the_checksum_stays_right(
            ipv6: bool, mss: u16, mtu in 1184u16..9000, padding in 0usize..4, payload: Vec<u8>,
        ) {
            // The padding moves the option to odd and even offsets.
            let mut options = vec![1; padding];
            options.extend(mss_option(mss));
            options.resize(options.len().next_multiple_of(4), 1);
            let before = packet(ipv6, SYN, &options, &payload);
            let mut after = before.clone();
            let changed = clamp_mss(&mut after, mtu);
            let most = mtu - if ipv6 { 60 } else { 40 };
            prop_assert_eq!(changed, mss > most);
            prop_assert_eq!(mss_of(&after), Some(mss.min(most)));
            let checksum = if ipv6 { 56..58 } else { 36..38 };
            let at = checksum.start + 4 + padding + 2;
            for (position, (one, other)) in before.iter().zip(&after).enumerate() {
                let may_change = checksum.contains(&position) || (at..at + 2).contains(&position);
                prop_assert!(may_change || one == other, "byte {}", position);
            }
        }

        #[test]
        fn arbitrary_bytes_never_panic(mut bytes: Vec<u8>, mtu: u16) {
            let len = bytes.len();
            clamp_mss(&mut bytes, mtu);
            prop_assert_eq!(bytes.len(), len);
        }

        #[test]
        fn arbitrary_options_never_panic(ipv6: bool, words in 0usize..10, seed: [u8; 40], length: u8, mtu: u16) {
            let mut bytes = packet(ipv6, SYN, &seed[..words * 4], &[]);
            let at = if ipv6 { 52 } else { 32 };
            bytes[at] = length;
            clamp_mss(&mut bytes, mtu);
        }
    }
}
