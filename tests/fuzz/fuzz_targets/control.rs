//! What parses as a control packet is what emitting it gives. The second half supplies the header.
#![no_main]

use agentnet::identity::{IdentityKey, overlay_ipv6};
use agentnet::wire::{ControlMessage, ControlPacket};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    check(input);
    let own = |seed| overlay_ipv6(&IdentityKey::from_seed([seed; 32]).id());
    let mut packet = ControlMessage::Ping { token: 0 }.emit(own(1), own(2));
    packet.truncate(40);
    packet.extend_from_slice(input);
    let length = u16::try_from(input.len()).unwrap_or(u16::MAX);
    packet[4..6].copy_from_slice(&length.to_be_bytes());
    check(&packet);
});

fn check(packet: &[u8]) {
    if let Ok(parsed) = ControlPacket::parse(packet) {
        // Traffic class and flow label are not part of the message.
        assert_eq!(parsed.emit()[4..], packet[4..]);
    }
}
