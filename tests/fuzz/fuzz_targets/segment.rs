//! Cutting any packet with any device header. What comes out fits the room that was announced, is addressed as the
//! packet was, holds all of its payload once and has the right checksums.
#![no_main]

use agentnet::forwarding::{SegmentError, Segments};
use agentnet::wire::{Fragment, IpView};
use agentnet_platform::batch::VnetHeader;
use libfuzzer_sys::fuzz_target;

const TCP: u8 = 6;
const UDP: u8 = 17;

fuzz_target!(|input: &[u8]| {
    let Some((&control, input)) = input.split_first() else { return };
    let Some(mut header) = VnetHeader::parse(input) else { return };
    let Ok(view) = IpView::parse(&input[VnetHeader::LEN..]) else { return };
    // Half of the inputs get past the comparison of the checksum's place at once.
    if control & 1 == 1 {
        header.csum_start = view.l4_offset as u16;
        header.csum_offset = if view.protocol == TCP { 16 } else { 6 };
    }
    let Ok(segments) = Segments::new(header, &view) else { return };
    let count = segments.count();
    assert!((1..=Segments::MAX_COUNT).contains(&count));
    assert!(!segments.is_whole() || count == 1);
    let mut out = vec![0; segments.max_len()];
    assert_eq!(segments.write(count, &mut out), Err(SegmentError::NoSuchSegment(count)));
    let mut payload = Vec::new();
    for index in 0..count {
        let len = segments.write(index, &mut out).expect("the announced room is enough");
        assert!(len == out.len() || (index + 1 == count && len < out.len()));
        let after = IpView::parse(&out[..len]).expect("a segment is a packet");
        assert_eq!(after.total_len(), len);
        assert_eq!((after.source, after.destination, after.ports), (view.source, view.destination, view.ports));
        assert_eq!((after.protocol, after.l4_offset), (view.protocol, view.l4_offset));
        if segments.is_whole() {
            assert_eq!(after.packet, view.packet);
        } else {
            assert_eq!(after.fragment, Fragment::Whole);
            payload.extend_from_slice(&after.l4()[header_len(&after)..]);
            if header.gso_type != VnetHeader::GSO_NONE {
                check_sums(&after);
            }
        }
        assert_eq!(segments.write(index, &mut out[..len - 1]), Err(SegmentError::Room(len)));
    }
    if !segments.is_whole() {
        assert_eq!(payload, view.l4()[header_len(&view)..]);
    }
});

fn header_len(view: &IpView<'_>) -> usize {
    if view.protocol == UDP { 8 } else { usize::from(view.l4()[12] >> 4) * 4 }
}

/// A header with options can be source routed; its pseudo header is then not known here.
fn check_sums(view: &IpView<'_>) {
    let ip = &view.packet[..view.l4_offset];
    let addresses = if view.source.is_ipv4() { 12..20 } else { 8..40 };
    if view.source.is_ipv4() {
        assert_eq!(sum(ip, 0), 0xffff);
    }
    if ip.len() == addresses.end {
        let pseudo = sum(&ip[addresses], u32::from(view.protocol) + view.l4().len() as u32);
        assert_eq!(sum(view.l4(), u32::from(pseudo)), 0xffff);
    }
}

fn sum(bytes: &[u8], start: u32) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | pair.get(1).copied().map_or(0, u32::from));
    let mut sum = words.fold(start, |sum, word| sum + word);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}
