//! Record requests and answers. A request that is read has exactly one form, and no answer is longer than it.
#![no_main]

use agentnet::wire::{RECORD_REQUEST_LEN, RecordAnswer, RecordRequest};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    for datagram in [
        input.to_vec(),
        [b"agn\x03\x01\0\0\0", input].concat(),
        [b"agn\x04\x01\0\0\0\x01\x02\x03\x04\x05\x06\x07\x08\x01\x02\x03\x04\x05\x06\x07\x08", input].concat(),
    ] {
        if let Ok(request) = RecordRequest::parse(&datagram) {
            assert_eq!(request.emit(), datagram);
        }
        if let Ok(answer) = RecordAnswer::parse(&datagram) {
            assert!(datagram.len() <= RECORD_REQUEST_LEN);
            if let Ok(record) = answer.record() {
                assert_eq!(RecordRequest { transaction: answer.transaction }.answer(&record), datagram);
            }
        }
    }
});
