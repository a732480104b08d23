//! The text form of the identity file. Reading and writing the file itself is the daemon's job.
//!
//! ```text
//! # This file is the agent's identity. Whoever has it is this agent. Keep it secret and back it up.
//! agentnet-identity-1 <58 characters of z-base-32>
//! ```
//!
//! | bytes of the decoded text | content |
//! |---|---|
//! | 0..32 | Ed25519 seed (RFC 8032, section 5.1.5) |
//! | 32..36 | first bytes of SHA-256("agentnet identity file v1" \|\| seed) |
//!
//! Blank lines and lines that begin with `#` mean nothing; nothing else may follow the key.

use zeroize::Zeroizing;

use super::keys::IdentityKey;
use super::{TEXT_CHECKSUM_LEN, decode_z32, text_checksum};

const TAG: &str = "agentnet-identity-";
const VERSION: &str = "1";
const CHECKSUM_LABEL: &str = "agentnet identity file v1";
const COMMENT: &str = "# This file is the agent's identity. Whoever has it is this agent. \
                       Keep it secret and back it up.";

/// Why a text is not a usable identity file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyFileError {
    /// Nothing but white space and comments.
    #[error("the identity file is empty; restore it from a backup, or remove it to get a new identity")]
    Empty,
    /// The first line is something else.
    #[error("this is not an agentnet identity file; check the path")]
    NotAnIdentityFile,
    /// Written by a version of agentnet that this one does not know.
    #[error("the identity file has version {0}, this agentnet reads version {VERSION}; upgrade agentnet")]
    UnsupportedVersion(String),
    /// The key is incomplete or was changed.
    #[error("the identity file is damaged (its checksum does not match); restore it from a backup")]
    Damaged,
    /// Something follows the key.
    #[error("the identity file has something after its key; remove everything after the first line with a key")]
    TrailingGarbage,
}

/// The content of an identity file.
pub fn emit(key: &IdentityKey) -> Zeroizing<String> {
    let seed = key.seed();
    let mut bytes = Zeroizing::new(Vec::with_capacity(seed.len() + TEXT_CHECKSUM_LEN));
    bytes.extend_from_slice(seed.as_slice());
    bytes.extend_from_slice(&text_checksum(CHECKSUM_LABEL, seed.as_slice()));
    let encoded = Zeroizing::new(z32::encode(&bytes));
    Zeroizing::new(format!("{COMMENT}\n{TAG}{VERSION} {}\n", *encoded))
}

/// Reads the content of an identity file.
///
/// # Errors
/// See [`KeyFileError`]; each is a different thing to do for the person at the keyboard.
pub fn parse(content: impl AsRef<[u8]>) -> Result<IdentityKey, KeyFileError> {
    let text = std::str::from_utf8(content.as_ref()).map_err(|_| KeyFileError::NotAnIdentityFile)?;
    let mut words = text.lines().map(str::trim).filter(|line| !line.starts_with('#')).flat_map(str::split_whitespace);
    let version = words
        .next()
        .ok_or(KeyFileError::Empty)?
        .strip_prefix(TAG)
        .filter(|version| is_version(version))
        .ok_or(KeyFileError::NotAnIdentityFile)?;
    if version != VERSION {
        return Err(KeyFileError::UnsupportedVersion(version.to_owned()));
    }
    let encoded = words.next().ok_or(KeyFileError::Damaged)?;
    let key = decode_key(encoded).ok_or(KeyFileError::Damaged)?;
    if words.next().is_some() {
        return Err(KeyFileError::TrailingGarbage);
    }
    Ok(key)
}

/// One to four digits: longer ones are no version, and would be repeated in the error.
fn is_version(text: &str) -> bool {
    (1..=4).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit())
}

fn decode_key(encoded: &str) -> Option<IdentityKey> {
    let bytes = Zeroizing::new(decode_z32(encoded.as_bytes())?);
    let (seed, checksum) = bytes.split_last_chunk::<TEXT_CHECKSUM_LEN>()?;
    let seed = <[u8; 32]>::try_from(seed).ok().map(Zeroizing::new)?;
    (text_checksum(CHECKSUM_LABEL, seed.as_slice()) == *checksum).then(|| IdentityKey::from_seed(*seed))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn fails(text: &str) -> KeyFileError {
        parse(text).unwrap_err()
    }

    #[test]
    fn every_kind_of_failure_has_its_own_error() {
        let good = emit(&IdentityKey::from_seed([3; 32]));
        assert_eq!(fails(""), KeyFileError::Empty);
        assert_eq!(fails("# only a comment\n\n"), KeyFileError::Empty);
        assert_eq!(fails("hello\n"), KeyFileError::NotAnIdentityFile);
        assert_eq!(parse([0xff, 0xfe]).unwrap_err(), KeyFileError::NotAnIdentityFile);
        assert_eq!(fails(&good.replace("identity-1", "identity-2")), KeyFileError::UnsupportedVersion("2".to_owned()));
        assert_eq!(fails(&good.replace("identity-1", "identity-one")), KeyFileError::NotAnIdentityFile);
        assert_eq!(fails("agentnet-identity-1\n"), KeyFileError::Damaged);
        assert_eq!(fails(&good[..good.trim_end().len() - 1]), KeyFileError::Damaged);
        assert_eq!(fails(&format!("{}x", good.as_str())), KeyFileError::TrailingGarbage);
        assert!(parse(format!("\r\n{}\n# note\n", good.replace('\n', "\r\n"))).is_ok());
    }

    #[test]
    fn one_wrong_character_is_noticed() {
        let good = emit(&IdentityKey::from_seed([3; 32]));
        let key_at = good.rfind(' ').unwrap() + 1;
        for position in key_at..good.trim_end().len() {
            let mut text = good.as_bytes().to_vec();
            text[position] = if text[position] == b'y' { b'b' } else { b'y' };
            assert_eq!(parse(&text).unwrap_err(), KeyFileError::Damaged);
        }
    }

    proptest! {
        #[test]
        fn round_trip(seed: [u8; 32]) {
            let key = IdentityKey::from_seed(seed);
            prop_assert_eq!(*parse(emit(&key).as_str()).unwrap().seed(), seed);
        }

        #[test]
        fn arbitrary_input_never_panics(bytes: Vec<u8>, text: String) {
            let _ = parse(&bytes);
            let _ = parse(format!("agentnet-identity-1 {text}"));
        }
    }
}
