//! Bodies of the rendezvous and path messages: the first byte is the message type. What is read keeps its limits and
//! is what writing it gives.
#![no_main]

use agentnet::wire::{PathMessage, RendezvousMessage};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some((&message_type, body)) = input.split_first() else { return };
    if let Ok(message) = RendezvousMessage::decode(message_type, body) {
        assert!(message.check().is_ok() && PathMessage::decode(message_type, body).is_err());
        assert_eq!(message.encode(), (message_type, body.to_vec()));
    }
    if let Ok(message) = PathMessage::decode(message_type, body) {
        assert!(message.check().is_ok());
        assert_eq!(message.encode(), (message_type, body.to_vec()));
    }
});
