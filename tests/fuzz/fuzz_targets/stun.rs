//! A STUN server and a STUN client given any datagram. The second half supplies a header of each class. An answer is
//! bounded and the client understands it.
#![no_main]

use std::net::SocketAddr;

use agentnet::wire::stun::{MAX_ANSWER_LEN, MAX_GROWTH};
use agentnet::wire::{BindingResponse, ServerAddresses, respond};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    check(input);
    let attributes = &input[..input.len().min(1200) & !3];
    for message_type in [0x0001u16, 0x0101, 0x0111] {
        let mut datagram = message_type.to_be_bytes().to_vec();
        datagram.extend_from_slice(&(attributes.len() as u16).to_be_bytes());
        datagram.extend_from_slice(&[0x21, 0x12, 0xa4, 0x42, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
        datagram.extend_from_slice(attributes);
        check(&datagram);
    }
});

fn check(datagram: &[u8]) {
    let primary = SocketAddr::from(([192, 0, 2, 1], 3478));
    let server = ServerAddresses::new(primary, Some([192, 0, 2, 2].into()), Some(3479)).expect("they differ");
    let Some(transaction) = datagram.get(8..20).and_then(|bytes| bytes.try_into().ok()) else { return };
    let _ = BindingResponse::parse(datagram, &transaction);
    if let Ok(answer) = respond(datagram, SocketAddr::from(([198, 51, 100, 7], 40_000)), primary, &server) {
        assert!(server.iter().any(|address| address == answer.from));
        assert!(answer.datagram.len() <= (datagram.len() + MAX_GROWTH).min(MAX_ANSWER_LEN));
        assert!(BindingResponse::parse(&answer.datagram, &transaction).is_ok());
    }
}
