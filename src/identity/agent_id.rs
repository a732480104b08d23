//! The agent id: an Ed25519 public key, and its text forms.
//!
//! | form | length | example use |
//! |---|---|---|
//! | bytes | 32 bytes | wire |
//! | z-base-32 | 52 characters | everything people see |
//! | `did:key:z6Mk…` | 56 characters | W3C decentralised identifiers (did:key, multicodec `ed25519-pub`) |

use std::fmt;
use std::str::FromStr;

use ed25519_dalek::VerifyingKey;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::decode_z32;

/// Characters of the z-base-32 form: 256 bits at 5 bits each, rounded up.
pub const AGENT_ID_TEXT_LEN: usize = 52;

/// Characters of [`AgentId::short`]: 50 bits, enough to tell agents apart in a log.
pub const SHORT_ID_LEN: usize = 10;

/// did:key method prefix with the multibase letter of base58btc (did:key specification, section 3).
const DID_KEY_PREFIX: &str = "did:key:z";

/// Unsigned varint of 0xed, the multicodec of an Ed25519 public key.
const MULTICODEC_ED25519: [u8; 2] = [0xed, 0x01];

/// An agent's Ed25519 public key, known to be a valid point of full order in canonical encoding.
///
/// Signatures are checked with [`crate::identity::verify`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AgentId([u8; 32]);

/// Why bytes or text are not an agent id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AgentIdError {
    /// The bytes are not the canonical encoding of a curve point.
    #[error("not a valid Ed25519 public key")]
    NotAKey,
    /// The key has small order: anybody could sign for it.
    #[error("a weak Ed25519 public key, for which anybody could sign")]
    WeakKey,
    /// The text is not 52 characters long.
    #[error("an agent id has {AGENT_ID_TEXT_LEN} characters, not {0}")]
    Length(usize),
    /// The text is not canonical z-base-32.
    #[error("an agent id is written in z-base-32 (a-z without l and v, 1 and 3-9)")]
    Alphabet,
    /// The text is not a `did:key` of an Ed25519 key.
    #[error("not a did:key of an Ed25519 key")]
    NotADidKey,
}

impl AgentId {
    /// Checks that the bytes are a usable public key.
    ///
    /// # Errors
    /// [`AgentIdError::NotAKey`] or [`AgentIdError::WeakKey`].
    pub fn from_bytes(bytes: &[u8; 32]) -> Result<Self, AgentIdError> {
        let key = VerifyingKey::from_bytes(bytes).map_err(|_| AgentIdError::NotAKey)?;
        if key.is_weak() {
            return Err(AgentIdError::WeakKey);
        }
        // Decompression accepts y coordinates beyond the field's prime: two ids for one agent.
        if key.to_edwards().compress().to_bytes() != *bytes {
            return Err(AgentIdError::NotAKey);
        }
        Ok(Self(*bytes))
    }

    /// The 32 bytes of the public key.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The first 10 characters of the text form.
    pub fn short(&self) -> String {
        let mut text = self.to_string();
        text.truncate(SHORT_ID_LEN);
        text
    }

    /// The `did:key` form.
    pub fn to_did_key(&self) -> String {
        let mut bytes = MULTICODEC_ED25519.to_vec();
        bytes.extend_from_slice(&self.0);
        format!("{DID_KEY_PREFIX}{}", bs58::encode(bytes).into_string())
    }

    /// Reads the `did:key` form.
    ///
    /// # Errors
    /// [`AgentIdError::NotADidKey`] if it is anything else, or the errors of [`AgentId::from_bytes`].
    pub fn from_did_key(text: &str) -> Result<Self, AgentIdError> {
        let encoded = text.strip_prefix(DID_KEY_PREFIX).ok_or(AgentIdError::NotADidKey)?;
        let mut bytes = [0u8; MULTICODEC_ED25519.len() + 32];
        let written = bs58::decode(encoded).onto(bytes.as_mut_slice()).map_err(|_| AgentIdError::NotADidKey)?;
        let key = bytes
            .strip_prefix(&MULTICODEC_ED25519)
            .and_then(|key| <&[u8; 32]>::try_from(key).ok())
            .filter(|_| written == bytes.len())
            .ok_or(AgentIdError::NotADidKey)?;
        Self::from_bytes(key)
    }

    /// For a key derived from a signing key, which is valid by construction.
    pub(super) fn from_verifying_key(key: &VerifyingKey) -> Self {
        Self(key.to_bytes())
    }
}

impl fmt::Display for AgentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&z32::encode(&self.0))
    }
}

impl fmt::Debug for AgentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AgentId({})", self.short())
    }
}

impl FromStr for AgentId {
    type Err = AgentIdError;

    fn from_str(text: &str) -> Result<Self, AgentIdError> {
        let length = text.chars().count();
        if length != AGENT_ID_TEXT_LEN {
            return Err(AgentIdError::Length(length));
        }
        let bytes = decode_z32(text.as_bytes()).ok_or(AgentIdError::Alphabet)?;
        let bytes = <&[u8; 32]>::try_from(bytes.as_slice()).map_err(|_| AgentIdError::Alphabet)?;
        Self::from_bytes(bytes)
    }
}

impl Serialize for AgentId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() { serializer.collect_str(self) } else { self.0.serialize(serializer) }
    }
}

impl<'de> Deserialize<'de> for AgentId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            let text = String::deserialize(deserializer)?;
            text.parse().map_err(de::Error::custom)
        } else {
            let bytes = <[u8; 32]>::deserialize(deserializer)?;
            Self::from_bytes(&bytes).map_err(de::Error::custom)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::IdentityKey;
    use proptest::prelude::*;

    #[test]
    fn weak_and_invalid_keys_are_refused() {
        // y = 1, the neutral element, and a point of order eight.
        let mut neutral = [0; 32];
        neutral[0] = 1;
        assert_eq!(AgentId::from_bytes(&neutral), Err(AgentIdError::WeakKey));
        // y = 2 is on no point of the curve.
        let mut off_curve = [0; 32];
        off_curve[0] = 2;
        assert_eq!(AgentId::from_bytes(&off_curve), Err(AgentIdError::NotAKey));
    }

    #[test]
    fn second_encoding_of_a_key_is_refused() {
        // y = p + 3 encodes the same point as y = 3 (p = 2^255 - 19).
        let mut canonical = [0; 32];
        canonical[0] = 3;
        let mut beyond = [0xff; 32];
        beyond[0] = 0xed + 3;
        beyond[31] = 0x7f;
        assert!(AgentId::from_bytes(&canonical).is_ok());
        assert_eq!(AgentId::from_bytes(&beyond), Err(AgentIdError::NotAKey));
    }

    #[test]
    fn text_forms_name_what_is_wrong() {
        let id = IdentityKey::from_seed([7; 32]).id();
        let text = id.to_string();
        assert_eq!(text.len(), AGENT_ID_TEXT_LEN);
        assert_eq!(text[1..].parse::<AgentId>(), Err(AgentIdError::Length(51)));
        let wrong_letter = format!("l{}", &text[1..]);
        assert_eq!(wrong_letter.parse::<AgentId>(), Err(AgentIdError::Alphabet));
        assert_eq!(format!("{id:?}"), format!("AgentId({})", &text[..10]));
        assert_eq!(AgentId::from_did_key("did:key:zabc"), Err(AgentIdError::NotADidKey));
        assert_eq!(AgentId::from_did_key("did:web:example.org"), Err(AgentIdError::NotADidKey));
    }

    #[test]
    fn left_over_bits_are_refused() {
        let id = IdentityKey::from_seed([7; 32]).id();
        let text = id.to_string();
        // 52 characters carry 260 bits; the last 4 must be zero.
        let last = text.as_bytes()[51];
        let position = z32::ALPHABET.iter().position(|&c| c == last).unwrap();
        let mut other = text.into_bytes();
        other[51] = z32::ALPHABET[position + 1];
        let other = String::from_utf8(other).unwrap();
        assert_eq!(other.parse::<AgentId>(), Err(AgentIdError::Alphabet));
    }

    #[test]
    fn serde_uses_text_for_people_and_bytes_for_the_wire() {
        let id = IdentityKey::from_seed([9; 32]).id();
        assert_eq!(serde_json::to_string(&id).unwrap(), format!("\"{id}\""));
        assert_eq!(postcard::to_allocvec(&id).unwrap(), id.as_bytes());
        assert!(postcard::from_bytes::<AgentId>(&[0; 32]).is_err());
    }

    proptest! {
        #[test]
        fn every_form_round_trips(seed: [u8; 32]) {
            let id = IdentityKey::from_seed(seed).id();
            prop_assert_eq!(AgentId::from_bytes(id.as_bytes()), Ok(id));
            prop_assert_eq!(id.to_string().parse(), Ok(id));
            prop_assert_eq!(AgentId::from_did_key(&id.to_did_key()), Ok(id));
            let json = serde_json::to_string(&id).unwrap();
            prop_assert_eq!(serde_json::from_str::<AgentId>(&json).unwrap(), id);
        }

        #[test]
        fn arbitrary_input_never_panics(text: String, bytes: [u8; 32]) {
            let _ = text.parse::<AgentId>();
            let _ = AgentId::from_did_key(&text);
            let _ = AgentId::from_did_key(&format!("did:key:z{text}"));
            let _ = AgentId::from_bytes(&bytes);
        }
    }
}
