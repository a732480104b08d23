//! The agent record: what an agent publishes about itself, signed by its identity key.
//!
//! | bytes | field | encoding |
//! |---|---|---|
//! | 0 | format version | 1 |
//! | 1.. | body | postcard, fields in this order: |
//! | | id | 32 bytes |
//! | | sequence | varint u64 |
//! | | expires, seconds since 1970 | varint u64 |
//! | | tunnel key | 32 bytes, X25519 |
//! | | rendezvous | varint count (at most 4), each: id, 32 bytes; varint length and text of `host:port` |
//! | | name | 0, or 1 followed by varint length and text |
//! | | capabilities | varint count (at most 16), each: varint length and text |
//! | | protocol versions | min u8, max u8 |
//! | last 64 | signature | Ed25519 over "agentnet record v1" \|\| 0x00 \|\| everything before it |
//!
//! At most 1,000 bytes in all, the limit of a Mainline DHT item (BEP 44). There is one encoding of
//! a record: whatever decodes must encode to the same bytes.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::agent_id::AgentId;
use super::keys::{IdentityKey, SIGNATURE_LEN, TunnelPublic, verify};
pub use super::record_fields::{
    HostPort, HostPortError, MAX_HOST_PORT_LEN, MAX_NAME_LEN, Name, NameError, RendezvousRef, RendezvousRefError,
    VersionRange,
};

/// Longest signed record in bytes (BEP 44: an item's value is at most 1,000 bytes).
pub const MAX_RECORD_LEN: usize = 1000;

/// Most rendezvous servers in a record.
pub const MAX_RENDEZVOUS: usize = 4;

/// Most capabilities in a record.
pub const MAX_CAPABILITIES: usize = 16;

/// Longest capability in bytes.
pub const MAX_CAPABILITY_LEN: usize = 32;

const RECORD_FORMAT: u8 = 1;
const RECORD_CONTEXT: &str = "agentnet record v1";

/// What an agent says about itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentRecord {
    /// Who says it.
    pub id: AgentId,
    /// Grows with every new record; the higher one replaces the lower one.
    pub sequence: u64,
    /// When it stops being valid, in seconds since 1970.
    pub expires: u64,
    /// The key to seal introductions and open tunnels to.
    pub tunnel_key: TunnelPublic,
    /// Where the agent can be reached, best first; at most [`MAX_RENDEZVOUS`].
    pub rendezvous: Vec<RendezvousRef>,
    /// What the agent calls itself.
    pub name: Option<Name>,
    /// What it offers; at most [`MAX_CAPABILITIES`], each 1 to 32 of `a-z 0-9 . _ / -`.
    pub capabilities: Vec<String>,
    /// Protocol versions it speaks.
    pub versions: VersionRange,
}

/// Why bytes are not a valid record, or a record cannot be signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Over [`MAX_RECORD_LEN`].
    #[error("the record has {0} bytes, more than {MAX_RECORD_LEN}")]
    TooLong(usize),
    /// Made by a later version.
    #[error("the record has format {0}, this agentnet reads format {RECORD_FORMAT}")]
    UnsupportedVersion(u8),
    /// The bytes do not decode, a field breaks its rules, or the encoding is not the canonical one.
    #[error("the record is malformed")]
    Malformed,
    /// More than [`MAX_RENDEZVOUS`] servers.
    #[error("the record lists more than {MAX_RENDEZVOUS} rendezvous servers")]
    TooManyRendezvous,
    /// A capability breaks the rules of its form, or there are too many.
    #[error(
        "a record has at most {MAX_CAPABILITIES} capabilities, \
         each 1 to {MAX_CAPABILITY_LEN} of a-z, 0-9 and . _ / -"
    )]
    Capabilities,
    /// The lowest version is above the highest.
    #[error("the record's protocol versions are in the wrong order")]
    Versions,
    /// Signed with a key that is not the record's id.
    #[error("the record belongs to another identity key")]
    WrongKey,
    /// The signature does not hold.
    #[error("the record's signature is wrong")]
    Signature,
}

impl AgentRecord {
    fn check(&self) -> Result<(), RecordError> {
        if self.rendezvous.len() > MAX_RENDEZVOUS {
            return Err(RecordError::TooManyRendezvous);
        }
        if self.capabilities.len() > MAX_CAPABILITIES || !self.capabilities.iter().all(|text| is_capability(text)) {
            return Err(RecordError::Capabilities);
        }
        if !self.versions.is_valid() {
            return Err(RecordError::Versions);
        }
        Ok(())
    }

    /// Format version and body: what is signed.
    fn to_signed_part(&self) -> Result<Vec<u8>, RecordError> {
        postcard::to_extend(self, vec![RECORD_FORMAT]).map_err(|_| RecordError::Malformed)
    }
}

/// Whether a text is a well-formed capability: 1 to 32 of `a-z 0-9 . _ / -`.
pub fn is_capability(text: &str) -> bool {
    (1..=MAX_CAPABILITY_LEN).contains(&text.len())
        && text.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'/' | b'-'))
}

/// A record with its signature, which was checked. Cheap to clone.
#[derive(Clone)]
pub struct SignedRecord {
    bytes: Arc<[u8]>,
    record: Arc<AgentRecord>,
}

impl SignedRecord {
    /// Signs a record with the key that its id names.
    ///
    /// # Errors
    /// [`RecordError::WrongKey`] for another key; the errors of a broken limit.
    pub fn sign(key: &IdentityKey, record: AgentRecord) -> Result<Self, RecordError> {
        if key.id() != record.id {
            return Err(RecordError::WrongKey);
        }
        record.check()?;
        let mut bytes = record.to_signed_part()?;
        let signature = key.sign(RECORD_CONTEXT, &bytes);
        bytes.extend_from_slice(&signature);
        if bytes.len() > MAX_RECORD_LEN {
            return Err(RecordError::TooLong(bytes.len()));
        }
        Ok(Self { bytes: bytes.into(), record: Arc::new(record) })
    }

    /// Reads a record and checks limits, encoding and signature. Does not look at the time.
    ///
    /// # Errors
    /// See [`RecordError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        if bytes.len() > MAX_RECORD_LEN {
            return Err(RecordError::TooLong(bytes.len()));
        }
        let format = *bytes.first().ok_or(RecordError::Malformed)?;
        if format != RECORD_FORMAT {
            return Err(RecordError::UnsupportedVersion(format));
        }
        let (signed, signature) = bytes.split_last_chunk::<SIGNATURE_LEN>().ok_or(RecordError::Malformed)?;
        let body = signed.get(1..).ok_or(RecordError::Malformed)?;
        let record: AgentRecord = postcard::from_bytes(body).map_err(|_| RecordError::Malformed)?;
        record.check()?;
        // Also catches what follows the last field, which the decoder ignores.
        if record.to_signed_part()? != signed {
            return Err(RecordError::Malformed);
        }
        if !verify(&record.id, RECORD_CONTEXT, signed, signature) {
            return Err(RecordError::Signature);
        }
        Ok(Self { bytes: bytes.into(), record: Arc::new(record) })
    }

    /// The record.
    pub fn record(&self) -> &AgentRecord {
        &self.record
    }

    /// Who signed it.
    pub fn id(&self) -> AgentId {
        self.record.id
    }

    /// The bytes that [`SignedRecord::decode`] reads.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Whether it is no longer valid at a time in seconds since 1970.
    pub fn is_expired(&self, unix_s: u64) -> bool {
        unix_s >= self.record.expires
    }

    /// Whether it is a later record of the same agent.
    pub fn supersedes(&self, other: &Self) -> bool {
        self.record.id == other.record.id && self.record.sequence > other.record.sequence
    }
}

impl PartialEq for SignedRecord {
    fn eq(&self, other: &Self) -> bool {
        self.bytes == other.bytes
    }
}

impl Eq for SignedRecord {}

impl fmt::Debug for SignedRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SignedRecord").field(&self.record).finish()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::identity::TunnelSecret;
    use proptest::prelude::*;

    pub(crate) fn key(number: u8) -> IdentityKey {
        IdentityKey::from_seed([number; 32])
    }

    pub(crate) fn record(number: u8) -> AgentRecord {
        AgentRecord {
            id: key(number).id(),
            sequence: 1,
            expires: 2_000_000_000,
            tunnel_key: TunnelSecret::from_bytes([number; 32]).public(),
            rendezvous: vec![],
            name: None,
            capabilities: vec![],
            versions: VersionRange { min: 1, max: 1 },
        }
    }

    pub(crate) fn signed(number: u8) -> SignedRecord {
        SignedRecord::sign(&key(number), record(number)).unwrap()
    }

    /// A change that breaks a record, and the error it gives.
    type Broken = (fn(&mut AgentRecord), RecordError);

    /// Signs bytes that no honest agent would.
    fn forge(signed_part: &[u8]) -> Vec<u8> {
        let mut bytes = signed_part.to_vec();
        bytes.extend_from_slice(&key(1).sign(RECORD_CONTEXT, signed_part));
        bytes
    }

    #[test]
    fn every_changed_byte_is_noticed() {
        let good = signed(1);
        for position in 0..good.as_bytes().len() {
            let mut bytes = good.as_bytes().to_vec();
            bytes[position] ^= 1;
            assert!(SignedRecord::decode(&bytes).is_err(), "byte {position}");
        }
        assert_eq!(SignedRecord::decode(good.as_bytes()), Ok(good));
    }

    #[test]
    fn a_record_has_one_encoding() {
        let body = record(1).to_signed_part().unwrap();
        let mut trailing = body.clone();
        trailing.push(0);
        assert_eq!(SignedRecord::decode(&forge(&trailing)), Err(RecordError::Malformed));
        // The sequence number 1 as a varint of two bytes.
        let mut long_varint = body.clone();
        assert_eq!(long_varint[33], 1);
        long_varint.splice(33..34, [0x81, 0x00]);
        assert_eq!(SignedRecord::decode(&forge(&long_varint)), Err(RecordError::Malformed));
        assert!(SignedRecord::decode(&forge(&body)).is_ok());
    }

    #[test]
    fn limits_hold_for_signing_and_for_reading() {
        let server = RendezvousRef { id: key(2).id(), address: "rv.example.org:3478".parse().unwrap() };
        let cases: [Broken; 5] = [
            (|r| r.capabilities = vec!["a".to_owned(); 17], RecordError::Capabilities),
            (|r| r.capabilities = vec!["A".to_owned()], RecordError::Capabilities),
            (|r| r.capabilities = vec![String::new()], RecordError::Capabilities),
            (|r| r.capabilities = vec!["a".repeat(33)], RecordError::Capabilities),
            (|r| r.versions = VersionRange { min: 2, max: 1 }, RecordError::Versions),
        ];
        for (change, error) in cases {
            let mut broken = record(1);
            change(&mut broken);
            let bytes = forge(&broken.to_signed_part().unwrap());
            assert_eq!(SignedRecord::sign(&key(1), broken), Err(error));
            assert_eq!(SignedRecord::decode(&bytes), Err(error));
        }
        let mut broken = record(1);
        broken.rendezvous = vec![server.clone(); 5];
        assert_eq!(SignedRecord::sign(&key(1), broken), Err(RecordError::TooManyRendezvous));
        let mut long = record(1);
        long.rendezvous =
            vec![RendezvousRef { address: format!("{}:1", "a".repeat(253)).parse().unwrap(), ..server }; 4];
        let bytes = forge(&long.to_signed_part().unwrap());
        let error = RecordError::TooLong(bytes.len());
        assert_eq!(SignedRecord::decode(&bytes), Err(error));
        assert_eq!(SignedRecord::sign(&key(1), long), Err(error));
    }

    #[test]
    fn nobody_signs_for_somebody_else() {
        assert_eq!(SignedRecord::sign(&key(2), record(1)), Err(RecordError::WrongKey));
        let body = record(2).to_signed_part().unwrap();
        assert_eq!(SignedRecord::decode(&forge(&body)), Err(RecordError::Signature));
    }

    #[test]
    fn later_format_is_told_apart_from_damage() {
        let mut bytes = signed(1).as_bytes().to_vec();
        bytes[0] = 2;
        assert_eq!(SignedRecord::decode(&bytes), Err(RecordError::UnsupportedVersion(2)));
        assert_eq!(SignedRecord::decode(&[]), Err(RecordError::Malformed));
    }

    #[test]
    fn expiry_and_succession() {
        let old = signed(1);
        let mut next = record(1);
        next.sequence = 2;
        let next = SignedRecord::sign(&key(1), next).unwrap();
        assert!(next.supersedes(&old) && !old.supersedes(&next));
        assert!(!old.supersedes(&old) && !next.supersedes(&signed(2)));
        assert!(!old.is_expired(1_999_999_999) && old.is_expired(2_000_000_000));
    }

    proptest! {
        #[test]
        fn round_trip(
            sequence: u64,
            expires: u64,
            name in proptest::option::of("[a-z0-9]{1,63}"),
            capabilities in proptest::collection::vec("[a-z0-9._/-]{1,32}", 0..=8),
            hosts in proptest::collection::vec("[a-z0-9]{1,40}:[1-9][0-9]{0,3}", 0..=4),
            min in 0u8..10,
            span in 0u8..10,
        ) {
            let record = AgentRecord {
                sequence,
                expires,
                name: name.map(|name| name.parse().unwrap()),
                capabilities,
                rendezvous: hosts
                    .iter()
                    .map(|host| RendezvousRef { id: key(3).id(), address: host.parse().unwrap() })
                    .collect(),
                versions: VersionRange { min, max: min + span },
                ..record(1)
            };
            let signed = SignedRecord::sign(&key(1), record.clone()).unwrap();
            let decoded = SignedRecord::decode(signed.as_bytes()).unwrap();
            prop_assert_eq!(decoded.record(), &record);
            prop_assert_eq!(decoded.as_bytes(), signed.as_bytes());
        }

        #[test]
        fn arbitrary_bytes_never_panic(mut bytes: Vec<u8>) {
            let _ = SignedRecord::decode(&bytes);
            bytes.insert(0, RECORD_FORMAT);
            let _ = SignedRecord::decode(&bytes);
        }
    }
}
