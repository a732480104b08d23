//! The frame as it arrives, and the plaintext with a right signature, which no fuzzer could guess.
#![no_main]

use agentnet::identity::{AgentId, IdentityKey, TunnelSecret};
use agentnet::wire::introduction::{Introduction, decode_plaintext};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let recipient: AgentId = IdentityKey::from_seed([2; 32]).id();
    let _ = Introduction::open(input, &TunnelSecret::from_bytes([2; 32]), &recipient);
    let _ = decode_plaintext(input, &recipient);
    let mut plaintext = recipient.as_bytes().to_vec();
    plaintext.extend_from_slice(input);
    let signature = IdentityKey::from_seed([1; 32]).sign("agentnet introduction v1", &plaintext);
    plaintext.extend_from_slice(&signature);
    if let Ok(introduction) = decode_plaintext(&plaintext, &recipient) {
        assert_eq!(introduction.recipient, recipient);
        assert!(introduction.candidates.len() <= 8 && introduction.reason.len() <= 280);
    }
});
