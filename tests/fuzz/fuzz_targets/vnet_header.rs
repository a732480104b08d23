//! A virtio network header is what its first ten bytes say, and writes the same bytes.
#![no_main]

use agentnet_platform::batch::VnetHeader;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    match VnetHeader::parse(input) {
        None => assert!(input.len() < VnetHeader::LEN),
        Some(header) => {
            let mut bytes = [0; VnetHeader::LEN];
            header.emit(&mut bytes);
            assert!(input.starts_with(&bytes));
        }
    }
});
