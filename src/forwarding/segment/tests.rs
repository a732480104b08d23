pub(in crate::forwarding) mod reference;

use proptest::collection::vec;
use proptest::prelude::*;
use smoltcp::wire::{IpAddress, Ipv6Packet};

use self::reference::{ACK, CWR, ECE, FIN, PSH, RST, SYN, Spec, Sum, URG, naive_sum};
use super::*;

/// One extension header of eight bytes with a padding option, followed by destination options (60) or, in the last, by
/// what [`Spec::build`] writes there.
fn extension_headers(count: usize) -> Vec<u8> {
    [60, 0, 1, 4, 0xff, 2, 3, 4].repeat(count)
}

fn segments<'a>(header: VnetHeader, packet: &'a [u8]) -> Result<Segments<'a>, SegmentError> {
    Segments::new(header, &IpView::parse(packet).unwrap())
}

fn write_all(header: VnetHeader, packet: &[u8]) -> Vec<Vec<u8>> {
    let segments = segments(header, packet).unwrap();
    let mut all = Vec::new();
    for index in 0..segments.count() {
        let mut out = vec![0xee; segments.max_len() + 3];
        let len = segments.write(index, &mut out).unwrap();
        assert!(out[len..].iter().all(|&byte| byte == 0xee), "written past the segment");
        assert!(len == segments.max_len() || (index + 1 == segments.count() && len < segments.max_len()));
        let too_short = segments.write(index, &mut out[..len - 1]);
        assert_eq!(too_short, Err(SegmentError::Room(len)));
        out.truncate(len);
        all.push(out);
    }
    assert_eq!(segments.write(all.len(), &mut [0; 65_536]), Err(SegmentError::NoSuchSegment(all.len())));
    assert_eq!(segments.write(usize::MAX, &mut [0; 65_536]), Err(SegmentError::NoSuchSegment(usize::MAX)));
    all
}

/// Compares with the specs byte by byte, and lets smoltcp verify each segment.
fn check(spec: &Spec, gso_size: u16, header: VnetHeader, packet: &[u8]) {
    let written = write_all(header, packet);
    let expected = spec.cut(usize::from(gso_size));
    assert_eq!(written.len(), expected.len());
    let mut payload = Vec::new();
    for (segment, expected) in written.iter().zip(&expected) {
        assert_eq!(segment, &expected.build(Sum::Complete));
        payload.extend(verify(segment));
    }
    assert_eq!(payload, spec.payload);
}

/// Has smoltcp verify lengths and checksums; returns the payload.
fn verify(segment: &[u8]) -> Vec<u8> {
    let view = IpView::parse(segment).unwrap();
    assert_eq!(view.packet, segment);
    let (source, destination) = if view.source.is_ipv4() {
        let ip = Ipv4Packet::new_checked(segment).unwrap();
        assert!(ip.verify_checksum());
        (IpAddress::from(ip.src_addr()), IpAddress::from(ip.dst_addr()))
    } else {
        let ip = Ipv6Packet::new_checked(segment).unwrap();
        (IpAddress::from(ip.src_addr()), IpAddress::from(ip.dst_addr()))
    };
    if view.protocol == PROTOCOL_TCP {
        let tcp = TcpPacket::new_checked(view.l4()).unwrap();
        assert!(tcp.verify_checksum(&source, &destination));
        tcp.payload().to_vec()
    } else {
        let udp = UdpPacket::new_checked(view.l4()).unwrap();
        assert!(udp.checksum() != 0 && udp.verify_checksum(&source, &destination));
        assert_eq!(usize::from(udp.len()), view.l4().len());
        udp.payload().to_vec()
    }
}

fn any_spec() -> impl Strategy<Value = (Spec, u16)> {
    let payload = prop_oneof![
        4 => vec(any::<u8>(), 0..300),
        2 => (any::<u8>(), 300..65_000usize).prop_map(|(byte, len)| (0..len).map(|at| byte ^ (at * 31) as u8).collect()),
        1 => (0..65_000usize).prop_map(|len| vec![0xff; len]),
        1 => (0..65_000usize).prop_map(|len| vec![0; len]),
    ];
    let gso_size = prop_oneof![8..100u16, 8..2_000u16, 8..65_000u16];
    let tcp_options = (0..=10usize).prop_flat_map(|words| vec(any::<u8>(), words * 4));
    let flags = any::<u8>().prop_map(|flags| flags & !(SYN | RST | URG));
    let shape = (any::<[bool; 2]>(), 0..=10usize, tcp_options, payload, gso_size);
    (shape, any::<u16>(), any::<u32>(), flags).prop_map(|(shape, ident, sequence, flags)| {
        let ([ipv4, tcp], extra, tcp_options, payload, gso_size) = shape;
        let extra = if ipv4 { vec![1; extra * 4] } else { extension_headers(extra / 2) };
        let tcp_options = if tcp { tcp_options } else { Vec::new() };
        let least = if tcp { 8 } else { payload.len().div_ceil(MAX_DATAGRAMS) };
        (Spec { ipv4, tcp, extra, ident, sequence, flags, tcp_options, payload }, gso_size.max(least as u16))
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn every_segment_is_as_the_reference_writes_it((spec, gso_size) in any_spec()) {
        check(&spec, gso_size, spec.device_header(gso_size), &spec.build(Sum::Partial));
    }

    #[test]
    fn a_partial_checksum_is_completed((spec, _) in any_spec()) {
        let segments = write_all(spec.device_header(0), &spec.build(Sum::Partial));
        prop_assert_eq!(segments, vec![spec.build(Sum::Complete)]);
    }

    #[test]
    fn garbage_never_panics(
        header in any::<[u8; VnetHeader::LEN]>(),
        (spec, gso_size) in any_spec(),
        damage in vec((0..160usize, any::<u8>()), 0..6),
        cut_off in 0..200usize,
        honest in any::<[bool; 2]>(),
    ) {
        let mut packet = spec.build(Sum::Partial);
        for (at, byte) in damage {
            if let Some(place) = packet.get_mut(at) {
                *place = byte;
            }
        }
        packet.truncate(packet.len().saturating_sub(if honest[0] { 0 } else { cut_off }));
        let header = if honest[1] { spec.device_header(gso_size) } else { VnetHeader::parse(&header).unwrap() };
        if let Ok(view) = IpView::parse(&packet) && let Ok(segments) = Segments::new(header, &view) {
            prop_assert!((1..=Segments::MAX_COUNT).contains(&segments.count()));
            let mut out = vec![0; segments.max_len()];
            for index in 0..segments.count() {
                let len = segments.write(index, &mut out).unwrap();
                let after = IpView::parse(&out[..len]).unwrap();
                prop_assert_eq!((after.source, after.destination, after.ports), (view.source, view.destination, view.ports));
            }
        }
    }

    #[test]
    fn the_sum_is_the_naive_one(bytes in vec(any::<u8>(), 0..200)) {
        prop_assert_eq!(sum(&bytes), naive_sum(&bytes));
    }
}

#[test]
fn flags_sequence_and_identification() {
    let mut spec = Spec::new(true, true, 2_500);
    spec.flags = FIN | PSH | ACK | ECE | CWR;
    let mut header = spec.device_header(1_000);
    header.gso_type |= VnetHeader::ECN;
    let packet = spec.build(Sum::Partial);
    check(&spec, 1_000, header, &packet);
    let written = write_all(header, &packet);
    let flags: Vec<u8> = written.iter().map(|segment| segment[33]).collect();
    assert_eq!(flags, [ACK | ECE | CWR, ACK | ECE, FIN | PSH | ACK | ECE]);
    let sequences: Vec<&[u8]> = written.iter().map(|segment| &segment[24..28]).collect();
    assert_eq!(sequences, [[0xff, 0xff, 0xff, 0x00], [0, 0, 2, 232], [0, 0, 6, 208]]);
    let idents: Vec<&[u8]> = written.iter().map(|segment| &segment[4..6]).collect();
    assert_eq!(idents, [[0xff, 0xfe], [0xff, 0xff], [0, 0]]);
    let lengths: Vec<usize> = written.iter().map(Vec::len).collect();
    assert_eq!(lengths, [1_040, 1_040, 540]);
}

#[test]
fn the_longest_packets() {
    for (ipv4, tcp, gso_size) in [(true, true, 1_380), (false, true, 1_360), (true, false, 1_201), (false, false, 513)]
    {
        let mut spec = Spec::new(ipv4, tcp, 0);
        spec.payload = vec![0xff; 65_535 - spec.header_len()];
        check(&spec, gso_size, spec.device_header(gso_size), &spec.build(Sum::Partial));
    }
}

#[test]
fn as_many_segments_as_there_can_be() {
    let mut spec = Spec::new(true, true, 0);
    spec.payload = Spec::new(true, true, 65_535 - 40).payload;
    let packet = spec.build(Sum::Partial);
    let cut = segments(spec.device_header(8), &packet).unwrap();
    assert_eq!(cut.count(), 8_187);
    assert!(cut.count() <= Segments::MAX_COUNT);
    check(&spec, 8, spec.device_header(8), &packet);
}

#[test]
fn exactly_one_segment() {
    for (ipv4, tcp) in [(true, true), (false, true), (true, false), (false, false)] {
        for payload_len in [0, 1, 999, 1_000] {
            let mut spec = Spec::new(ipv4, tcp, payload_len);
            spec.flags = FIN | PSH | CWR;
            let packet = spec.build(Sum::Partial);
            assert_eq!(segments(spec.device_header(1_000), &packet).unwrap().count(), 1);
            check(&spec, 1_000, spec.device_header(1_000), &packet);
        }
    }
}

#[test]
fn nothing_to_do_is_whole() {
    let mut fragment = Spec::new(true, false, 10).build(Sum::Complete);
    fragment[6] = 0x20;
    for packet in [fragment, Spec::new(false, true, 10).build(Sum::Complete)] {
        // Fields that no flag makes valid are not looked at.
        let header = VnetHeader {
            flags: VnetHeader::DATA_VALID,
            gso_size: 9,
            csum_start: 60_000,
            csum_offset: 60_000,
            ..VnetHeader::default()
        };
        assert!(segments(header, &packet).unwrap().is_whole());
        assert_eq!(write_all(header, &packet), [packet]);
    }
    let spec = Spec::new(true, true, 10);
    let packet = spec.build(Sum::Partial);
    assert!(!segments(spec.device_header(0), &packet).unwrap().is_whole());
    assert!(!segments(spec.device_header(100), &packet).unwrap().is_whole());
}

#[test]
fn bytes_after_the_total_length_take_no_part() {
    for gso_size in [0, 40] {
        let spec = Spec::new(true, false, 101);
        let mut packet = spec.build(Sum::Partial);
        packet.extend([0xab; 7]);
        let expected = spec.cut(if gso_size == 0 { 101 } else { 40 });
        let expected: Vec<_> = expected.iter().map(|segment| segment.build(Sum::Complete)).collect();
        assert_eq!(write_all(spec.device_header(gso_size), &packet), expected);
    }
}

#[test]
fn a_udp_checksum_of_zero_is_sent_as_ones() {
    for (ipv4, gso_size) in [(true, 0), (false, 0), (true, 2), (false, 2)] {
        let mut spec = Spec::new(ipv4, false, 0);
        spec.payload = vec![0; 2];
        let sum = !naive_sum(&spec.build(Sum::Complete)[spec.l4_offset() + 6..][..2]);
        spec.payload = sum.to_be_bytes().map(|byte| !byte).to_vec();
        let segment = &write_all(spec.device_header(gso_size), &spec.build(Sum::Partial))[0];
        assert_eq!(segment[spec.l4_offset() + 6..][..2], [0xff, 0xff]);
        verify(segment);
    }
}

#[test]
fn a_wrong_pseudo_header_sum_matters_only_behind_options() {
    let mut spec = Spec::new(true, true, 100);
    let mut packet = spec.build(Sum::Partial);
    packet[20 + 16] ^= 0x55;
    check(&spec, 40, spec.device_header(40), &packet);

    // A source route: the sum is that of another destination, which no field of the IP header names.
    spec.extra = vec![1; 4];
    let mut packet = spec.build(Sum::Partial);
    let field = [packet[24 + 16], packet[24 + 17]];
    let moved = u16::from_be_bytes(field).wrapping_add(1);
    packet[24 + 16..24 + 18].copy_from_slice(&moved.to_be_bytes());
    let segment = &write_all(spec.device_header(40), &packet)[1];
    let expected = spec.cut(40)[1].build(Sum::Complete);
    let checksum = |packet: &[u8]| u16::from_be_bytes([packet[24 + 16], packet[24 + 17]]);
    assert_eq!(checksum(segment), checksum(&expected) - 1);
}

#[test]
fn without_a_checksum_request_super_packets_get_theirs_too() {
    let spec = Spec::new(false, true, 100);
    let mut header = spec.device_header(30);
    header.flags = VnetHeader::DATA_VALID;
    header.csum_start = 9;
    check(&spec, 30, header, &spec.build(Sum::Complete));

    let mut spec = Spec::new(false, true, 100);
    spec.extra = extension_headers(1);
    assert_eq!(segments(header, &spec.build(Sum::Complete)).err(), Some(SegmentError::NoPseudoHeader));
}

#[test]
fn hints_and_unknown_flags_are_not_looked_at() {
    let spec = Spec::new(true, true, 100);
    let header = VnetHeader { hdr_len: 0xffff, flags: 0xff, ..spec.device_header(30) };
    check(&spec, 30, header, &spec.build(Sum::Partial));
}

#[test]
fn atomic_fragments_are_cut_and_real_ones_refused() {
    let mut spec = Spec::new(false, true, 100);
    spec.extra = extension_headers(2);
    let mut packet = spec.build(Sum::Partial);
    packet[40..56].copy_from_slice(&[44, 0, 1, 4, 0, 0, 0, 0, 6, 0, 0, 0, 1, 2, 3, 4]);
    for (segment, expected) in write_all(spec.device_header(30), &packet).iter().zip(spec.cut(30)) {
        assert_eq!(segment[40..56], packet[40..56]);
        assert_eq!(segment[56..], expected.build(Sum::Complete)[56..]);
    }
    for (high, low) in [(0, 1), (0, 8), (1, 1)] {
        packet[50..52].copy_from_slice(&[high, low]);
        for gso_size in [0, 30] {
            assert_eq!(segments(spec.device_header(gso_size), &packet).err(), Some(SegmentError::Fragment));
        }
    }
    let spec = Spec::new(true, false, 100);
    for (high, low) in [(0x20, 0), (0, 3), (0x20, 3)] {
        let mut packet = spec.build(Sum::Partial);
        packet[6..8].copy_from_slice(&[high, low]);
        for gso_size in [0, 30] {
            assert_eq!(segments(spec.device_header(gso_size), &packet).err(), Some(SegmentError::Fragment));
        }
    }
}

/// What is refused when this is changed in the device header of a good packet.
fn refused(spec: &Spec, gso_size: u16, change: impl FnOnce(&mut VnetHeader)) -> Option<SegmentError> {
    let packet = spec.build(Sum::Partial);
    let mut header = spec.device_header(gso_size);
    assert!(segments(header, &packet).is_ok());
    change(&mut header);
    segments(header, &packet).err()
}

#[test]
fn types_that_do_not_fit_are_refused() {
    let tcp = Spec::new(true, true, 100);
    let udp = Spec::new(false, false, 100);
    for gso_type in [2, 3, 6, 0x20, 0x40, 0x80, 0x83, 0x85, 0xff] {
        for spec in [&tcp, &udp] {
            assert_eq!(refused(spec, 30, |header| header.gso_type = gso_type), Some(SegmentError::GsoType(gso_type)));
        }
    }
    for gso_type in [VnetHeader::GSO_TCPV6, VnetHeader::GSO_UDP_L4, VnetHeader::GSO_TCPV6 | VnetHeader::ECN] {
        assert_eq!(refused(&tcp, 30, |header| header.gso_type = gso_type), Some(SegmentError::Protocol));
    }
    for gso_type in [VnetHeader::GSO_TCPV4, VnetHeader::GSO_TCPV6] {
        assert_eq!(refused(&udp, 30, |header| header.gso_type = gso_type), Some(SegmentError::Protocol));
    }
    let mut icmp = tcp.build(Sum::Partial);
    icmp[9] = 1;
    for gso_size in [0, 30] {
        assert_eq!(segments(tcp.device_header(gso_size), &icmp).err(), Some(SegmentError::Protocol));
    }
}

#[test]
fn checksums_elsewhere_are_refused() {
    let mut extended = Spec::new(false, false, 100);
    extended.extra = extension_headers(2);
    for spec in [Spec::new(true, true, 100), Spec::new(true, false, 100), Spec::new(false, true, 100), extended] {
        for gso_size in [0, 30] {
            let (start, offset) = (spec.device_header(0).csum_start, spec.device_header(0).csum_offset);
            for (start, offset) in [
                (0, 0),
                (0, 12),
                (start - 1, offset),
                (start + 1, offset),
                (start, offset + 1),
                (start, offset - 2),
                (start, 0xffff),
                (0xffff, offset),
                (0xffff, 0xffff),
                (start - 2, offset + 2),
            ] {
                let error = refused(&spec, gso_size, |header| {
                    (header.csum_start, header.csum_offset) = (start, offset);
                });
                assert_eq!(error, Some(SegmentError::ChecksumPosition), "{start} {offset}");
            }
        }
    }
}

#[test]
fn sizes_out_of_range_are_refused() {
    let tcp = Spec::new(true, true, 100);
    let udp = Spec::new(true, false, 100);
    let with = |spec: &Spec, gso_size| refused(spec, 30, |header| header.gso_size = gso_size);
    for gso_size in [0, 7, 65_535 - 39, 0xffff] {
        assert_eq!(with(&tcp, gso_size), Some(SegmentError::GsoSize(gso_size)));
    }
    for gso_size in [0, 65_535 - 27, 0xffff] {
        assert_eq!(with(&udp, gso_size), Some(SegmentError::GsoSize(gso_size)));
    }
    assert_eq!((with(&tcp, 8), with(&tcp, 65_495)), (None, None));
    assert_eq!((with(&udp, 1), with(&udp, 65_507)), (None, None));
    let many = Spec::new(false, false, 129 * 2);
    assert_eq!(with(&many, 2), Some(SegmentError::DatagramCount(129)));
    assert_eq!(with(&Spec::new(false, false, 128 * 2), 2), None);
}

#[test]
fn long_headers_are_not_repeated() {
    let mut spec = Spec::new(false, true, 100);
    spec.extra = vec![0; 200];
    spec.extra[..2].copy_from_slice(&[60, 23]);
    spec.extra[192..194].copy_from_slice(&[6, 0]);
    assert_eq!(
        segments(spec.device_header(50), &spec.build(Sum::Partial)).err(),
        Some(SegmentError::HeaderLength(260))
    );
    // The same packet can have its checksum completed.
    assert_eq!(write_all(spec.device_header(0), &spec.build(Sum::Partial)), [spec.build(Sum::Complete)]);
}

#[test]
fn headers_cut_off_are_refused() {
    for (spec, l4_lens) in [(Spec::new(true, true, 0), 0..20), (Spec::new(true, false, 0), 0..8)] {
        for l4_len in l4_lens {
            let mut packet = spec.build(Sum::Partial);
            packet.truncate(20 + l4_len);
            packet[2..4].copy_from_slice(&(20 + l4_len as u16).to_be_bytes());
            for gso_size in [0, 30] {
                let error = segments(spec.device_header(gso_size), &packet).err();
                assert_eq!(error, Some(SegmentError::L4Length), "{l4_len} of {spec:?}");
            }
        }
    }
    // TCP options that do not end in the packet, and a data offset inside the fixed header.
    let spec = Spec::new(true, true, 10);
    for data_offset in [0x00, 0x40, 0x80, 0xf0] {
        let mut packet = spec.build(Sum::Partial);
        packet[20 + 12] = data_offset;
        for gso_size in [0, 30] {
            assert_eq!(segments(spec.device_header(gso_size), &packet).err(), Some(SegmentError::L4Length));
        }
    }
    // A UDP length that is not the packet's.
    let spec = Spec::new(true, false, 10);
    for udp_len in [0, 7, 17, 19, 0xffff] {
        let mut packet = spec.build(Sum::Partial);
        packet[24..26].copy_from_slice(&u16::to_be_bytes(udp_len));
        for gso_size in [0, 30] {
            assert_eq!(segments(spec.device_header(gso_size), &packet).err(), Some(SegmentError::L4Length));
        }
    }
}

#[test]
fn what_is_urgent_stays_where_it_is() {
    for (ipv4, pointer) in [(true, 0), (true, 40), (false, 41), (false, 75), (true, 100), (false, 900), (true, 0xffff)]
    {
        let mut spec = Spec::new(ipv4, true, 100);
        spec.flags |= URG;
        let mut packet = spec.build(Sum::Partial);
        let at = spec.l4_offset();
        packet[at + 18..at + 20].copy_from_slice(&u16::to_be_bytes(pointer));
        let written = write_all(spec.device_header(40), &packet);
        assert_eq!(written.len(), 3);
        for (number, segment) in written.iter().enumerate() {
            verify(segment);
            let tcp = TcpPacket::new_checked(&segment[at..]).unwrap();
            let left = usize::from(pointer).saturating_sub(40 * number);
            assert_eq!(usize::from(tcp.urgent_at()), left, "segment {number} of one whose pointer is {pointer}");
            assert_eq!(tcp.urg(), number == 0 || left > 0, "segment {number} of one whose pointer is {pointer}");
        }
    }
}

#[test]
fn syn_and_rst_are_not_cut() {
    for flag in [SYN, RST] {
        let mut spec = Spec::new(false, true, 100);
        spec.flags |= flag;
        let packet = spec.build(Sum::Partial);
        assert_eq!(segments(spec.device_header(99), &packet).err(), Some(SegmentError::TcpFlags));
        check(&spec, 100, spec.device_header(100), &packet);
    }
}

#[test]
fn a_damaged_packet_is_not_made_whole_by_cutting_it() {
    for ipv4 in [true, false] {
        let spec = Spec::new(ipv4, true, 1000);
        let packet = spec.build(Sum::Complete);
        let limited = |packet: &[u8]| {
            let view = IpView::parse(packet).unwrap();
            Segments::new(VnetHeader::default(), &view).unwrap().limited(&view, 500).map(|cut| cut.count())
        };
        assert_eq!(limited(&packet), Ok(3));
        // The last byte of the payload, the checksum itself, and in IPv4 that of the header.
        let at = [packet.len() - 1, spec.l4_offset() + 17, 11];
        for at in &at[..if ipv4 { 3 } else { 2 }] {
            let mut damaged = packet.clone();
            damaged[*at] ^= 0x40;
            assert_eq!(limited(&damaged), Err(SegmentError::Checksum), "byte {at}, IPv4 {ipv4}");
        }
    }
}
