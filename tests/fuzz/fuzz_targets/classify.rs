//! Any datagram has one kind, and an agentnet frame is never taken for STUN.
#![no_main]

use agentnet::wire::{DatagramKind, FRAME_MAGIC, classify};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|datagram: &[u8]| {
    let kind = classify(datagram);
    if datagram.starts_with(&FRAME_MAGIC) {
        assert!(matches!(
            kind,
            DatagramKind::Relay
                | DatagramKind::Introduction
                | DatagramKind::RecordRequest
                | DatagramKind::RecordAnswer
                | DatagramKind::Unknown
        ));
    }
});
