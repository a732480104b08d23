//! Putting any packets together. Cutting the result again gives back the same packets, in the same order.
#![no_main]

use agentnet::forwarding::{Coalescer, Offloads, Segments};
use agentnet::wire::IpView;
use agentnet_platform::batch::PacketBatch;
use libfuzzer_sys::fuzz_target;

const TCP: u8 = 6;
const DONT_FRAGMENT: u8 = 0x40;

fuzz_target!(|input: &[u8]| {
    let packets = packets(input);
    let mut coalescer = Coalescer::new(Offloads { tcp: true, udp: true });
    let mut batch = PacketBatch::new(1 << 20, 256);
    for packet in &packets {
        coalescer.space(&mut batch)[..packet.len()].copy_from_slice(packet);
        coalescer.take(&mut batch, packet.len());
        // What comes to nothing leaves no trace.
        coalescer.space(&mut batch)[..100].fill(0xdd);
        coalescer.leave(&mut batch);
    }
    coalescer.finish(&mut batch);
    let mut expected = packets.iter();
    for (header, whole) in batch.iter() {
        let view = IpView::parse(whole).expect("what was put together is a packet");
        let segments = Segments::new(header, &view).expect("it can be cut");
        let mut out = vec![0; segments.max_len()];
        for index in 0..segments.count() {
            let len = segments.write(index, &mut out).expect("the announced room is enough");
            let packet = expected.next().expect("no more packets than there were");
            assert!(out[..len] == packet[..] || differ_in_identification_only(&out[..len], packet));
        }
    }
    assert!(expected.next().is_none());
});

/// At most 64 packets: a byte says how long the next is and whether it goes on from the one before, the others are it.
fn packets(mut input: &[u8]) -> Vec<Vec<u8>> {
    let mut packets: Vec<Vec<u8>> = Vec::new();
    while let Some((&control, rest)) = input.split_first()
        && packets.len() < 64
    {
        let (own, rest) = rest.split_at(rest.len().min(usize::from(control >> 1) + 1));
        input = rest;
        let mut packet = match packets.last() {
            Some(before) if control & 1 == 1 => next_of(before, own.first().copied().unwrap_or_default()),
            _ => own.to_vec(),
        };
        let Ok(view) = IpView::parse(&packet) else { continue };
        let len = view.total_len();
        packet.truncate(len);
        set_checksums(&mut packet);
        packets.push(packet);
    }
    packets
}

/// The same packet, a little on: `how` says in which way.
fn next_of(before: &[u8], how: u8) -> Vec<u8> {
    let (mut packet, is_v4) = (before.to_vec(), before[0] >> 4 == 4);
    let l4 = if is_v4 { 20 } else { 40 };
    if is_v4 && how & 1 == 0 {
        let identification = u16::from_be_bytes([packet[4], packet[5]]).wrapping_add(1);
        packet[4..6].copy_from_slice(&identification.to_be_bytes());
    }
    if packet.get(if is_v4 { 9 } else { 6 }) == Some(&TCP)
        && let Some(offset) = packet.get(l4 + 12)
    {
        let payload = packet.len().saturating_sub(l4 + usize::from(offset >> 4) * 4) as u32;
        if how & 2 == 0
            && let Some(field) = packet.get_mut(l4 + 4..l4 + 8).and_then(|field| field.first_chunk_mut())
        {
            *field = u32::from_be_bytes(*field).wrapping_add(payload).to_be_bytes();
        }
        if how & 4 == 4
            && let Some(flags) = packet.get_mut(l4 + 13)
        {
            *flags ^= 1 << (how >> 5);
        }
    }
    packet
}

/// Of packets without options: others are not put together anyway.
fn set_checksums(packet: &mut [u8]) {
    let is_v4 = packet[0] >> 4 == 4;
    let (addresses, protocol, l4) = if is_v4 { (12..20, packet[9], 20) } else { (8..40, packet[6], 40) };
    if is_v4 {
        packet[10..12].fill(0);
        let sum = !sum(&packet[..20], 0);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
    }
    let at = l4 + if protocol == TCP { 16 } else { 6 };
    if packet.len() < at + 2 {
        return;
    }
    packet[at..at + 2].fill(0);
    let pseudo = sum(&packet[addresses], u32::from(protocol) + (packet.len() - l4) as u32);
    let checksum = match !sum(&packet[l4..], u32::from(pseudo)) {
        0 if protocol != TCP => 0xffff,
        checksum => checksum,
    };
    packet[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
}

/// Where nothing is fragmented the identification means nothing.
fn differ_in_identification_only(one: &[u8], other: &[u8]) -> bool {
    let is_unused = one[0] >> 4 == 4 && one[6] & DONT_FRAGMENT != 0 && one[9] == TCP;
    is_unused
        && one.len() == other.len()
        && one[..4] == other[..4]
        && one[6..10] == other[6..10]
        && one[12..] == other[12..]
}

fn sum(bytes: &[u8], start: u32) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | pair.get(1).copied().map_or(0, u32::from));
    let mut sum = words.fold(start, |sum, word| sum + word);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}
