//! A row of the state file that can be read is written the same way again.
#![no_main]

use agentnet::node::StoredPeer;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    if let Ok(peer) = StoredPeer::decode(input) {
        assert_eq!(StoredPeer::decode(&peer.encode()).unwrap(), peer);
    }
});
