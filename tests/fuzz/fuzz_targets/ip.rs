//! Parsing, rewriting, clamping and answering any packet. Clamping twice changes nothing more. Rewriting there and back
//! gives the packet back, apart from checksum fields, where two values can mean the same.
#![no_main]

use std::net::{IpAddr, Ipv4Addr};

use agentnet::wire::{IpView, UnreachableReason, clamp_mss, rewrite_ipv4, unreachable};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some((&control, packet)) = input.split_first() else { return };
    for source in [IpAddr::from([10, 0, 0, 9]), IpAddr::from([0xfd61, 0, 0, 0, 0, 0, 0, 1])] {
        for reason in [
            UnreachableReason::NoRoute,
            UnreachableReason::AdminProhibited,
            UnreachableReason::PacketTooBig { mtu: u16::from(control) },
        ] {
            if let Some(error) = unreachable(packet, reason, source) {
                assert!(IpView::parse(&error).is_ok_and(|view| view.total_len() == error.len()));
                assert_eq!(unreachable(&error, reason, source), None);
            }
        }
    }
    let mut clamped = packet.to_vec();
    clamp_mss(&mut clamped, 1180 + u16::from(control));
    assert!(!clamp_mss(&mut clamped, 1180 + u16::from(control)));
    let Ok(view) = IpView::parse(packet) else { return };
    assert!(view.l4_offset <= view.packet.len() && view.packet.len() <= packet.len());
    let (IpAddr::V4(old_source), IpAddr::V4(old_destination)) = (view.source, view.destination) else { return };
    let (new_source, new_destination) = (Ipv4Addr::new(100, 64, 0, control), Ipv4Addr::new(100, 65, 0, 1));
    let partial = control & 1 == 1;
    let mut rewritten = packet.to_vec();
    assert_eq!(rewrite_ipv4(&mut rewritten, new_source, new_destination, partial), Ok(()));
    let after = IpView::parse(&rewritten);
    assert!(after.is_ok_and(|after| after.source == new_source && after.destination == new_destination));
    assert_eq!(rewritten.len(), packet.len());
    assert_eq!(rewrite_ipv4(&mut rewritten, old_source, old_destination, partial), Ok(()));
    assert_eq!(rewritten[12..view.l4_offset], packet[12..view.l4_offset]);
});
