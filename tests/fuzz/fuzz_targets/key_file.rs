//! An identity file that is read has the key that writing it gives.
#![no_main]

use agentnet::identity::key_file;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    for content in [input.to_vec(), [b"agentnet-identity-1 ", input].concat()] {
        if let Ok(key) = key_file::parse(&content) {
            let again = key_file::parse(key_file::emit(&key).as_str());
            assert!(again.is_ok_and(|again| again.id() == key.id()));
        }
    }
});
