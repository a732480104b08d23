use super::*;
use proptest::prelude::*;

const SOURCE: Ipv4Addr = Ipv4Addr::new(100, 64, 1, 2);
const DESTINATION: Ipv4Addr = Ipv4Addr::new(100, 100, 200, 20);

/// An IPv4 packet with `options` words of no-operation, header checksum included.
fn ipv4(protocol: u8, options: usize, fragment_field: u16, payload: &[u8]) -> Vec<u8> {
    let header_len = 20 + options * 4;
    let mut packet = vec![1; header_len];
    packet[0] = 0x40 | (header_len / 4) as u8;
    packet[2..4].copy_from_slice(&((header_len + payload.len()) as u16).to_be_bytes());
    packet[6..8].copy_from_slice(&fragment_field.to_be_bytes());
    packet[9] = protocol;
    packet[12..16].copy_from_slice(&SOURCE.octets());
    packet[16..20].copy_from_slice(&DESTINATION.octets());
    packet.extend_from_slice(payload);
    fill_header_checksum(&mut packet);
    packet
}

fn fill_header_checksum(packet: &mut [u8]) {
    Ipv4Packet::new_unchecked(packet).fill_checksum();
}

/// One's complement sum of some byte strings, each padded to words (RFC 1071).
fn ones_complement_sum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0u64;
    for part in parts {
        for (position, byte) in part.iter().enumerate() {
            sum += u64::from(*byte) << (8 * (1 - position % 2));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// Sum of the pseudo header of RFC 9293, section 3.1.
fn pseudo_header(source: Ipv4Addr, destination: Ipv4Addr, protocol: u8, length: usize) -> u16 {
    let [high, low] = (length as u16).to_be_bytes();
    ones_complement_sum(&[&source.octets(), &destination.octets(), &[0, protocol, high, low]])
}

/// Sums the protocol's checksum anew; what a zero means is the protocol's business.
fn fill_l4_checksum(packet: &mut [u8]) {
    let header = Ipv4Packet::new_unchecked(&*packet);
    let (start, protocol) = (usize::from(header.header_len()), header.next_header());
    let (source, destination) = (header.src_addr(), header.dst_addr());
    let l4 = &mut packet[start..];
    let offset = match u8::from(protocol) {
        6 => 16,
        1 => 2,
        _ => 6,
    };
    let Some(field) = l4.get_mut(offset..offset + 2) else {
        return;
    };
    field.fill(0);
    let pseudo = match u8::from(protocol) {
        1 => 0,
        protocol => pseudo_header(source, destination, protocol, l4.len()),
    };
    let mut sum = !ones_complement_sum(&[&pseudo.to_be_bytes(), l4]);
    if matches!(u8::from(protocol), 17 | 136) && sum == 0 {
        sum = 0xffff;
    }
    l4[offset..offset + 2].copy_from_slice(&sum.to_be_bytes());
}

/// The same packet with other addresses, everything summed from scratch.
fn rewritten_from_scratch(packet: &[u8], source: Ipv4Addr, destination: Ipv4Addr) -> Vec<u8> {
    let mut packet = packet.to_vec();
    packet[12..16].copy_from_slice(&source.octets());
    packet[16..20].copy_from_slice(&destination.octets());
    fill_header_checksum(&mut packet);
    fill_l4_checksum(&mut packet);
    packet
}

/// An IPv6 packet.
fn ipv6(next_header: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0; 40];
    packet[0] = 0x60;
    packet[4..6].copy_from_slice(&(payload.len() as u16).to_be_bytes());
    packet[6] = next_header;
    packet[23] = 1;
    packet[39] = 2;
    packet.extend_from_slice(payload);
    packet
}

#[test]
fn view_of_whole_packets() {
    let mut payload = vec![0; 20];
    payload[..4].copy_from_slice(&[0x1f, 0x90, 0, 80]);
    let mut packet = ipv4(6, 3, 0, &payload);
    let length = packet.len();
    packet.extend_from_slice(b"padding");
    let view = IpView::parse(&packet).unwrap();
    assert_eq!(view.total_len(), length);
    assert_eq!(view.source, IpAddr::V4(SOURCE));
    assert_eq!(view.destination, IpAddr::V4(DESTINATION));
    assert_eq!((view.protocol, view.l4_offset), (PROTOCOL_TCP, 32));
    assert_eq!(view.l4(), payload);
    let ports = Ports { source: 8080, destination: 80 };
    assert_eq!(view.ports, Some(ports));

    let packet = ipv6(17, &payload[..8]);
    let view = IpView::parse(&packet).unwrap();
    assert_eq!(view.source, "::1".parse::<IpAddr>().unwrap());
    assert_eq!(view.destination, "::2".parse::<IpAddr>().unwrap());
    assert_eq!((view.protocol, view.l4_offset), (PROTOCOL_UDP, 40));
    assert_eq!((view.ports, view.fragment), (Some(ports), Fragment::Whole));
}

#[test]
fn ports_need_the_whole_fixed_header() {
    let ports = |packet: &[u8]| IpView::parse(packet).unwrap().ports;
    assert!(ports(&ipv4(6, 0, 0, &[0; 20])).is_some());
    assert!(ports(&ipv4(6, 0, 0, &[0; 19])).is_none());
    assert!(ports(&ipv4(17, 0, 0, &[0; 8])).is_some());
    assert!(ports(&ipv4(17, 0, 0, &[0; 7])).is_none());
    assert!(ports(&ipv4(1, 0, 0, &[0; 20])).is_none());
}

#[test]
fn fragments() {
    let fragment = |packet: &[u8]| {
        let view = IpView::parse(packet).unwrap();
        (view.fragment, view.ports.is_some())
    };
    let payload = [0; 24];
    assert_eq!(fragment(&ipv4(6, 0, 0x4000, &payload)), (Fragment::Whole, true));
    assert_eq!(fragment(&ipv4(6, 0, 0x2000, &payload)), (Fragment::First, true));
    assert_eq!(fragment(&ipv4(6, 0, 0x2001, &payload)), (Fragment::Later, false));
    assert_eq!(fragment(&ipv4(6, 0, 0x0001, &payload)), (Fragment::Later, false));

    let ipv6_fragment = |field: u16| {
        let [high, low] = field.to_be_bytes();
        let mut payload = vec![6, 0, high, low, 0, 0, 0, 1];
        payload.extend_from_slice(&[0; 24]);
        fragment(&ipv6(44, &payload))
    };
    assert_eq!(ipv6_fragment(0), (Fragment::Whole, true));
    assert_eq!(ipv6_fragment(1), (Fragment::First, true));
    assert_eq!(ipv6_fragment(8), (Fragment::Later, false));
}

#[test]
fn extension_headers_are_walked_and_bounded() {
    let chain = |count: usize| {
        let mut payload = vec![];
        for number in 0..count {
            let next = if number + 1 == count { 17 } else { 60 };
            payload.extend_from_slice(&[next, 0, 1, 4, 0, 0, 0, 0]);
        }
        payload.extend_from_slice(&[0, 53, 0, 54, 0, 8, 0, 0]);
        ipv6(if count == 0 { 17 } else { 60 }, &payload)
    };
    for count in 0..=8 {
        let packet = chain(count);
        let view = IpView::parse(&packet).unwrap();
        assert_eq!(view.l4_offset, 40 + 8 * count);
        assert_eq!(view.ports.map(|ports| ports.source), Some(53));
    }
    assert_eq!(IpView::parse(&chain(9)), Err(IpError::ExtensionHeaders));

    // Hop-by-hop of 16 bytes, then an authentication header of 12.
    let mut payload = vec![51, 1];
    payload.resize(16, 0);
    payload.extend_from_slice(&[17, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    payload.extend_from_slice(&[0; 8]);
    let packet = ipv6(0, &payload);
    let view = IpView::parse(&packet).unwrap();
    assert_eq!((view.protocol, view.l4_offset), (17, 40 + 28));

    assert_eq!(IpView::parse(&ipv6(60, &[17, 1, 0, 0, 0, 0, 0, 0])), Err(IpError::Length));
    assert_eq!(IpView::parse(&ipv6(60, &[17])), Err(IpError::Length));
    assert_eq!(IpView::parse(&ipv6(44, &[17, 0, 0, 1])), Err(IpError::Length));
}

#[test]
fn broken_headers() {
    assert_eq!(IpView::parse(&[]), Err(IpError::Version));
    assert_eq!(IpView::parse(&[0x50; 40]), Err(IpError::Version));
    let good = ipv4(17, 0, 0, &[0; 8]);
    assert_eq!(IpView::parse(&good[..27]), Err(IpError::Length));
    let mut short_header = good.clone();
    short_header[0] = 0x44;
    assert_eq!(IpView::parse(&short_header), Err(IpError::Length));
    let mut short_total = good.clone();
    short_total[3] = 19;
    assert_eq!(IpView::parse(&short_total), Err(IpError::Length));
    assert_eq!(IpView::parse(&ipv6(17, &[0; 8])[..47]), Err(IpError::Length));
    assert_eq!(rewrite_ipv4(&mut ipv6(17, &[0; 8]), SOURCE, DESTINATION, false), Err(IpError::NotIpv4));
}

#[test]
fn udp_without_checksum_stays_without() {
    let mut packet = ipv4(17, 0, 0, &[0, 1, 0, 2, 0, 9, 0, 0, 5]);
    rewrite_ipv4(&mut packet, DESTINATION, SOURCE, false).unwrap();
    assert_eq!(packet[26..28], [0, 0]);
}

#[test]
fn udp_checksum_that_becomes_zero_is_sent_as_ones() {
    // Zero after the change of one word: 0xffff - (new - old) == 0 in one's complement.
    let mut packet = ipv4(17, 0, 0, &[0, 1, 0, 2, 0, 8, 0, 0]);
    fill_l4_checksum(&mut packet);
    let checksum = u16::from_be_bytes([packet[26], packet[27]]);
    let old_word = u16::from_be_bytes([packet[14], packet[15]]);
    let sum = u32::from(old_word) + u32::from(checksum);
    let new_word = ((sum & 0xffff) + (sum >> 16)) as u16;
    let [high, low] = new_word.to_be_bytes();
    let source = Ipv4Addr::new(100, 64, high, low);
    let expected = rewritten_from_scratch(&packet, source, DESTINATION);
    rewrite_ipv4(&mut packet, source, DESTINATION, false).unwrap();
    assert_eq!(packet[26..28], [0xff, 0xff]);
    assert_eq!(packet, expected);
}

#[test]
fn icmp_error_that_quotes_strangers_keeps_their_addresses() {
    let mut quoted = ipv4(17, 0, 0, &[0; 8]);
    quoted[12..20].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
    let mut icmp = vec![3, 1, 0, 0, 0, 0, 0, 0];
    icmp.extend_from_slice(&quoted);
    let mut packet = ipv4(1, 0, 0, &icmp);
    fill_l4_checksum(&mut packet);
    let before = packet[20..].to_vec();
    rewrite_ipv4(&mut packet, DESTINATION, SOURCE, false).unwrap();
    assert_eq!(packet[20..], before);
}

fn address() -> impl Strategy<Value = Ipv4Addr> {
    any::<u32>().prop_map(Ipv4Addr::from)
}

fn bytes(length: std::ops::Range<usize>) -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(any::<u8>(), length)
}

proptest! {
    #[test]
    fn rewriting_equals_summing_anew(
        protocol in proptest::sample::select(vec![6u8, 17, 33, 136]),
        options in 0usize..=10,
        mut payload in bytes(20..200),
        source in address(),
        destination in address(),
    ) {
        // UDP without a checksum has its own test.
        payload[6] |= 1;
        let mut packet = ipv4(protocol, options, 0x4000, &payload);
        fill_l4_checksum(&mut packet);
        let expected = rewritten_from_scratch(&packet, source, destination);
        let trailing = packet.len();
        packet.extend_from_slice(&[0xee; 3]);
        rewrite_ipv4(&mut packet, source, destination, false).unwrap();
        prop_assert_eq!(&packet[..trailing], expected);
        prop_assert_eq!(&packet[trailing..], [0xee; 3]);
    }

    #[test]
    fn partial_checksum_is_the_sum_of_the_new_pseudo_header(
        protocol in proptest::sample::select(vec![6u8, 17]),
        payload in bytes(20..100),
        source in address(),
        destination in address(),
    ) {
        let field = if protocol == 6 { 36 } else { 26 };
        let mut packet = ipv4(protocol, 0, 0, &payload);
        let pseudo = |source, destination| {
            pseudo_header(source, destination, protocol, payload.len())
        };
        packet[field..field + 2].copy_from_slice(&pseudo(SOURCE, DESTINATION).to_be_bytes());
        rewrite_ipv4(&mut packet, source, destination, true).unwrap();
        prop_assert_eq!(
            u16::from_be_bytes([packet[field], packet[field + 1]]),
            pseudo(source, destination)
        );
        prop_assert!(Ipv4Packet::new_unchecked(&packet).verify_checksum());
    }

    #[test]
    fn later_fragments_change_in_the_header_only(
        payload in bytes(0..100),
        source in address(),
        destination in address(),
        offset in 1u16..0x2000,
    ) {
        let mut packet = ipv4(17, 0, offset, &payload);
        rewrite_ipv4(&mut packet, source, destination, false).unwrap();
        prop_assert!(Ipv4Packet::new_unchecked(&packet).verify_checksum());
        prop_assert_eq!(&packet[20..], payload);
    }

    #[test]
    fn icmp_errors_quote_what_the_receiver_sent(
        protocol in proptest::sample::select(vec![1u8, 6, 17, 132]),
        message_type in proptest::sample::select(vec![3u8, 4, 5, 11, 12]),
        options in 0usize..=10,
        payload in bytes(0..60),
        source in address(),
        destination in address(),
    ) {
        // Half a quoted checksum cannot be updated; an error quotes 8 bytes or more (RFC 792).
        prop_assume!((protocol, payload.len()) != (6, 17) && (protocol, payload.len()) != (17, 7));
        let (whole_len, quoted_len) = (payload.len().max(20), payload.len());
        let mut whole = payload;
        whole.resize(whole_len, 3);
        whole[6] |= 1;
        // What the receiver of the error had sent: from DESTINATION to SOURCE.
        let mut quoted = ipv4(protocol, options, 0, &whole);
        quoted[12..16].copy_from_slice(&DESTINATION.octets());
        quoted[16..20].copy_from_slice(&SOURCE.octets());
        fill_header_checksum(&mut quoted);
        if protocol == 6 || protocol == 17 {
            fill_l4_checksum(&mut quoted);
        }
        let mut quoted_after = rewritten_quote(&quoted, protocol, destination, source);
        let cut = 20 + options * 4 + quoted_len;
        quoted.truncate(cut);
        quoted_after.truncate(cut);

        let mut icmp = vec![message_type, 1, 0, 0, 0, 0, 5, 0];
        icmp.extend_from_slice(&quoted);
        let mut packet = ipv4(1, 0, 0, &icmp);
        fill_l4_checksum(&mut packet);

        let mut expected = rewritten_from_scratch(&packet, source, destination);
        expected[28..].copy_from_slice(&quoted_after);
        fill_l4_checksum(&mut expected);
        rewrite_ipv4(&mut packet, source, destination, false).unwrap();
        prop_assert_eq!(packet, expected);
    }

    #[test]
    fn arbitrary_bytes_never_panic(mut packet: Vec<u8>, first in 0u8.., partial: bool) {
        let _ = IpView::parse(&packet);
        let _ = rewrite_ipv4(&mut packet, SOURCE, DESTINATION, partial);
        let mut packet = ipv4(first, 0, 0, &packet);
        prop_assert!(IpView::parse(&packet).is_ok());
        prop_assert_eq!(rewrite_ipv4(&mut packet, DESTINATION, SOURCE, partial), Ok(()));
        let _ = IpView::parse(&ipv6(first, &packet));
    }

    #[test]
    fn rewriting_back_gives_the_packet_back(
        protocol in proptest::sample::select(vec![1u8, 6, 17]),
        mut payload in bytes(20..100),
        source in address(),
        destination in address(),
    ) {
        payload[6] |= 1;
        let mut packet = ipv4(protocol, 0, 0, &payload);
        fill_l4_checksum(&mut packet);
        let before = packet.clone();
        rewrite_ipv4(&mut packet, source, destination, false).unwrap();
        rewrite_ipv4(&mut packet, SOURCE, DESTINATION, false).unwrap();
        prop_assert_eq!(packet, before);
    }
}

fn rewritten_quote(quoted: &[u8], protocol: u8, source: Ipv4Addr, destination: Ipv4Addr) -> Vec<u8> {
    if protocol == 6 || protocol == 17 {
        return rewritten_from_scratch(quoted, source, destination);
    }
    let mut quoted = quoted.to_vec();
    quoted[12..16].copy_from_slice(&source.octets());
    quoted[16..20].copy_from_slice(&destination.octets());
    fill_header_checksum(&mut quoted);
    quoted
}
