//! A relay frame is its channel and its payload, and nothing else.
#![no_main]

use agentnet::wire::{DatagramKind, RELAY_PREFIX_LEN, RelayFrame, classify};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    check(input);
    check(&[b"agn\x02\x01\0\0\0", input].concat());
});

fn check(datagram: &[u8]) {
    if let Ok(frame) = RelayFrame::parse(datagram) {
        assert_eq!(classify(datagram), DatagramKind::Relay);
        let mut prefix = [0; RELAY_PREFIX_LEN];
        frame.channel.emit(&mut prefix);
        assert_eq!([&prefix, frame.payload].concat(), datagram);
    }
}
