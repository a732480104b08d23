use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::forwarding::Segments;
use crate::forwarding::segment::tests::reference::{ACK, CWR, ECE, FIN, PSH, SYN, Spec, Sum, URG};
use crate::wire::IpView;

const ALL: Offloads = Offloads { tcp: true, udp: true };

/// What the device gets for these packets; `None` is one that was opened and went elsewhere.
fn put_together(offloads: Offloads, packets: &[Option<Vec<u8>>]) -> Vec<(VnetHeader, Vec<u8>)> {
    let mut coalescer = Coalescer::new(offloads);
    let mut batch = PacketBatch::new(4 << 20, 4096);
    for packet in packets {
        let space = coalescer.space(&mut batch);
        match packet {
            Some(packet) => {
                space[..packet.len()].copy_from_slice(packet);
                // The tag of the sealed packet is behind it.
                space[packet.len()..][..16].fill(0xee);
                coalescer.take(&mut batch, packet.len());
            }
            None => {
                space[..300].fill(0xdd);
                coalescer.leave(&mut batch);
            }
        }
    }
    coalescer.finish(&mut batch);
    batch.iter().map(|(header, packet)| (header, packet.to_vec())).collect()
}

/// What the kernel makes of it.
fn cut(delivered: &[(VnetHeader, Vec<u8>)]) -> Vec<Vec<u8>> {
    delivered
        .iter()
        .flat_map(|(header, packet)| {
            let segments = Segments::new(*header, &IpView::parse(packet).unwrap()).unwrap();
            (0..segments.count())
                .map(|index| {
                    let mut out = vec![0; segments.max_len()];
                    let len = segments.write(index, &mut out).unwrap();
                    out.truncate(len);
                    out
                })
                .collect::<Vec<_>>()
        })
        .collect()
}

fn train(spec: &Spec, gso_size: usize) -> Vec<Option<Vec<u8>>> {
    spec.cut(gso_size).iter().map(|spec| Some(spec.build(Sum::Complete))).collect()
}

fn sizes(delivered: &[(VnetHeader, Vec<u8>)]) -> Vec<(u16, usize)> {
    delivered.iter().map(|(header, packet)| (header.gso_size, packet.len())).collect()
}

#[test]
fn a_train_becomes_one_packet_as_it_was_before_it_was_cut() {
    for (ipv4, tcp) in [(true, true), (false, true), (true, false), (false, false)] {
        let mut spec = Spec::new(ipv4, tcp, 1_380 * 20 + 77);
        spec.flags = ACK | PSH | ECE;
        spec.tcp_options = if tcp { vec![1; 12] } else { Vec::new() };
        let delivered = put_together(ALL, &train(&spec, 1_380));
        let header = VnetHeader { hdr_len: spec.header_len() as u16, ..spec.device_header(1_380) };
        assert_eq!(delivered, [(header, spec.build(Sum::Partial))]);
    }
}

#[test]
fn nothing_is_put_together_for_a_device_that_cannot_take_it() {
    for (offloads, tcp) in [(Offloads { tcp: false, udp: true }, true), (Offloads { tcp: true, udp: false }, false)] {
        let packets = train(&Spec::new(true, tcp, 5_000), 1_000);
        let delivered = put_together(offloads, &packets);
        assert_eq!(delivered.len(), 5);
        assert!(delivered.iter().all(|(header, _)| *header == VnetHeader::default()));
    }
}

#[test]
fn no_packet_is_longer_or_of_more_datagrams_than_the_device_takes() {
    let spec = Spec::new(false, true, 60_000);
    let mut packets = train(&spec, 1_200);
    packets.extend(train(&Spec { sequence: spec.sequence.wrapping_add(60_000), ..spec }, 1_200));
    let delivered = put_together(ALL, &packets);
    assert_eq!(sizes(&delivered), [(1_200, 60 + 54 * 1_200), (1_200, 60 + 46 * 1_200)]);

    let packets = train(&Spec::new(false, false, 100 * 64), 64);
    assert_eq!(sizes(&put_together(ALL, &packets)), [(64, 48 + 64 * 64), (64, 48 + 36 * 64)]);
}

/// Two packets of a flow, the second changed.
fn second_changed(ipv4: bool, tcp: bool, change: impl Fn(&mut Spec)) -> usize {
    let specs = Spec::new(ipv4, tcp, 2_000).cut(1_000);
    let mut second = specs[1].clone();
    change(&mut second);
    let packets = [&specs[0], &second].map(|spec| Some(spec.build(Sum::Complete)));
    let delivered = put_together(ALL, &packets);
    let expected: Vec<Vec<u8>> = packets.into_iter().flatten().collect();
    assert_eq!(cut(&delivered), expected);
    delivered.len()
}

#[test]
fn what_is_not_the_next_of_the_same_flow_stays_apart() {
    for ipv4 in [true, false] {
        assert_eq!(second_changed(ipv4, true, |_| ()), 1);
        assert_eq!(second_changed(ipv4, true, |spec| spec.flags |= PSH), 1);
        assert_eq!(second_changed(ipv4, true, |spec| spec.flags |= FIN), 1);
        assert_eq!(second_changed(ipv4, true, |spec| spec.payload.truncate(999)), 1);
        assert_eq!(second_changed(ipv4, true, |spec| spec.sequence = spec.sequence.wrapping_add(1)), 2, "a gap");
        assert_eq!(second_changed(ipv4, true, |spec| spec.sequence = spec.sequence.wrapping_sub(1_000)), 2, "again");
        for flag in [SYN, URG, CWR, ECE, 0x04] {
            assert_eq!(second_changed(ipv4, true, |spec| spec.flags |= flag), 2, "{flag:02x}");
        }
        assert_eq!(second_changed(ipv4, true, |spec| spec.flags = 0), 2);
        assert_eq!(second_changed(ipv4, true, |spec| spec.tcp_options = vec![1; 4]), 2);
        assert_eq!(second_changed(ipv4, true, |spec| spec.payload.push(0)), 2);
        assert_eq!(second_changed(ipv4, true, |spec| spec.payload.clear()), 2);
        assert_eq!(second_changed(ipv4, false, |spec| spec.payload.truncate(1)), 1);
        assert_eq!(second_changed(ipv4, false, |spec| spec.payload.push(0)), 2);
    }
    for tcp in [true, false] {
        assert_eq!(second_changed(true, tcp, |spec| spec.ident = spec.ident.wrapping_add(1)), 2);
        assert_eq!(second_changed(true, tcp, |spec| spec.extra = vec![1; 4]), 2);
        assert_eq!(second_changed(false, tcp, |spec| spec.extra = vec![60, 0, 1, 4, 0, 0, 0, 0]), 2);
    }
}

#[test]
fn after_the_last_of_a_train_a_new_one_begins() {
    for ended in [PSH, FIN] {
        let spec = Spec { flags: ACK | ended, ..Spec::new(false, true, 4_000) };
        let mut packets = train(&spec, 1_000);
        packets.extend(train(&Spec { sequence: spec.sequence.wrapping_add(4_000), ..spec }, 1_000));
        assert_eq!(sizes(&put_together(ALL, &packets)), [(1_000, 4_060); 2]);
    }
    let shorter = Spec::new(true, true, 1_500);
    let mut packets = train(&shorter, 1_000);
    let next = Spec { sequence: shorter.sequence.wrapping_add(1_500), ident: shorter.ident.wrapping_add(2), ..shorter };
    packets.extend(train(&next, 1_000));
    assert_eq!(sizes(&put_together(ALL, &packets)), [(1_000, 1_540); 2]);
}

#[test]
fn an_identification_that_stays_is_no_obstacle_where_nothing_is_fragmented() {
    let mut packets = train(&Spec::new(true, true, 3_000), 1_000);
    for packet in packets.iter_mut().flatten() {
        packet[4..6].fill(0);
        packet[10..12].fill(0);
        let checksum = !sum(&packet[..20]);
        put(packet, 10, checksum);
    }
    assert_eq!(sizes(&put_together(ALL, &packets)), [(1_000, 3_040)]);
}

#[test]
fn a_wrong_checksum_is_left_for_the_receiver() {
    for (ipv4, tcp) in [(true, true), (false, true), (true, false), (false, false)] {
        for damaged in 0..3 {
            let mut packets = train(&Spec::new(ipv4, tcp, 3_000), 1_000);
            *packets[damaged].as_mut().unwrap().last_mut().unwrap() ^= 1;
            let expected: Vec<Vec<u8>> = packets.iter().flatten().cloned().collect();
            let delivered = put_together(ALL, &packets);
            assert_eq!(cut(&delivered), expected);
            assert!(delivered.len() >= 2);
        }
    }
    let mut without = train(&Spec::new(true, false, 3_000), 1_000);
    without.iter_mut().flatten().for_each(|packet| packet[26..28].fill(0));
    assert_eq!(put_together(ALL, &without).len(), 3, "UDP without checksums");
}

fn any_train() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let tcp_options = (0..=10usize).prop_flat_map(|words| vec(any::<u8>(), words * 4));
    let flags = prop_oneof![4 => Just(ACK), 2 => Just(ACK | PSH), 1 => any::<u8>().prop_map(|flags| flags & !(SYN | 0x04 | URG))];
    let shape = (any::<[bool; 2]>(), tcp_options, 0..4_000usize, prop_oneof![1 => 8..100usize, 3 => 100..1_500usize]);
    (shape, any::<u16>(), any::<u32>(), flags).prop_map(|(shape, ident, sequence, flags)| {
        let ([ipv4, tcp], tcp_options, len, gso_size) = shape;
        let tcp_options = if tcp { tcp_options } else { Vec::new() };
        let spec = Spec { ident, sequence, flags, tcp_options, ..Spec::new(ipv4, tcp, len) };
        let least = if tcp { 8 } else { len.div_ceil(64).max(1) };
        spec.cut(gso_size.max(least)).iter().map(|spec| spec.build(Sum::Complete)).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Trains of several flows, cut and mixed, with losses, repetitions and damage.
    #[test]
    fn cutting_it_again_gives_the_same_packets(
        trains in vec(any_train(), 1..5),
        pieces in vec((0..5usize, 0..40usize, 1..12usize), 0..20),
        damage in vec((0..200usize, 0..1_600usize, any::<u8>()), 0..3),
        elsewhere in vec(0..200usize, 0..4),
    ) {
        let mut packets: Vec<Option<Vec<u8>>> = pieces
            .iter()
            .flat_map(|(train, from, count)| {
                trains[train % trains.len()].iter().skip(*from).take(*count).cloned().map(Some)
            })
            .collect();
        for (number, at, bits) in damage {
            if let Some(Some(packet)) = packets.get_mut(number) && let Some(byte) = packet.get_mut(at) {
                *byte ^= bits;
            }
        }
        // What is no packet any more does not get here.
        packets.retain(|packet| packet.as_ref().is_some_and(|packet| {
            IpView::parse(packet).is_ok_and(|view| view.packet.len() == packet.len())
        }));
        for number in elsewhere {
            packets.insert(number.min(packets.len()), None);
        }
        let expected: Vec<Vec<u8>> = packets.iter().flatten().cloned().collect();
        prop_assert_eq!(cut(&put_together(ALL, &packets)), expected);
    }

    #[test]
    fn garbage_never_panics(packets in vec(vec(any::<u8>(), 1..200), 0..20), versions in vec(any::<bool>(), 20)) {
        let packets: Vec<_> = packets.into_iter().zip(versions).map(|(mut packet, is_v4)| {
            packet[0] = if is_v4 { 0x45 } else { 0x60 };
            Some(packet)
        }).collect();
        prop_assert!(put_together(ALL, &packets).len() <= packets.len());
    }
}
