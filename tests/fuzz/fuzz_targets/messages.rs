//! The session accepts nothing it did not make, and no datagram makes it panic.
#![no_main]

use agentnet::identity::TunnelSecret;
use agentnet::time::Time;
use agentnet::tunnel::{Initiation, Tunnel, TunnelIndex, claimed_key, message_receiver};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let (own, peer) = (TunnelSecret::from_bytes([1; 32]), TunnelSecret::from_bytes([2; 32]));
    let mut tunnel = Tunnel::new(&own, &peer.public(), TunnelIndex::of_receiver(7 << 8), Time::ZERO, None);
    let mut out = vec![0; input.len() + 200];
    tunnel.initiate(Time::ZERO);
    let _ = message_receiver(input);
    assert!(tunnel.open(Time::ZERO, input, &mut out).is_err());
    assert!(tunnel.complete(Time::ZERO, input, &mut out).is_err());
    let _ = tunnel.take_cookie(input);
    if let Ok(initiation) = Initiation::try_from(input) {
        let _ = claimed_key(&own, &initiation);
        assert!(tunnel.respond(Time::ZERO, &initiation, &mut out).is_err());
    }
});
