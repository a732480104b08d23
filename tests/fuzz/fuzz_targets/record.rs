//! What decodes as a record has exactly the bytes it came from. The second half signs the input, so that the parser
//! behind the signature is reached.
#![no_main]

use agentnet::identity::{IdentityKey, SignedRecord};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    check(input);
    let key = IdentityKey::from_seed([1; 32]);
    let mut signed = vec![1];
    signed.extend_from_slice(key.id().as_bytes());
    signed.extend_from_slice(input);
    let signature = key.sign("agentnet record v1", &signed);
    signed.extend_from_slice(&signature);
    check(&signed);
});

fn check(bytes: &[u8]) {
    let Ok(record) = SignedRecord::decode(bytes) else { return };
    assert_eq!(record.as_bytes(), bytes);
    if record.id() == IdentityKey::from_seed([1; 32]).id() {
        let again = SignedRecord::sign(&IdentityKey::from_seed([1; 32]), record.record().clone());
        assert_eq!(again.as_ref().map(SignedRecord::as_bytes), Ok(bytes));
    }
}
