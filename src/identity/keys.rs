//! The two keys of an agent. The identity key (Ed25519) only signs; the tunnel key (X25519) only
//! does Diffie-Hellman. Neither type offers the other's operation.

use std::fmt;

use boringtun::x25519::{PublicKey, StaticSecret};
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use rand_core::CryptoRng;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use zeroize::{ZeroizeOnDrop, Zeroizing};

use super::agent_id::AgentId;
use super::decode_z32;

/// Length of an Ed25519 signature in bytes (RFC 8032, section 5.1.6).
pub const SIGNATURE_LEN: usize = 64;

/// The signing key that an agent id names. Wiped from memory when dropped.
#[derive(Clone)]
pub struct IdentityKey(SigningKey);

impl IdentityKey {
    /// Makes a new key.
    pub fn generate<R: CryptoRng + ?Sized>(rng: &mut R) -> Self {
        let mut seed = Zeroizing::new([0; 32]);
        rng.fill_bytes(seed.as_mut_slice());
        Self(SigningKey::from_bytes(&seed))
    }

    /// The key of a 32 byte seed (RFC 8032, section 5.1.5).
    pub fn from_seed(seed: [u8; 32]) -> Self {
        let seed = Zeroizing::new(seed);
        Self(SigningKey::from_bytes(&seed))
    }

    /// The seed, to be stored in the identity file and nowhere else.
    pub fn seed(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.0.to_bytes())
    }

    /// The agent id of this key.
    pub fn id(&self) -> AgentId {
        AgentId::from_verifying_key(&self.0.verifying_key())
    }

    /// Signs `context || 0x00 || message`, so that no signature is valid for two kinds of message.
    pub fn sign(&self, context: &'static str, message: &[u8]) -> [u8; SIGNATURE_LEN] {
        self.0.sign(&signed_bytes(context, message)).to_bytes()
    }
}

impl fmt::Debug for IdentityKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IdentityKey({})", self.id().short())
    }
}

/// Whether `signature` is `id`'s signature of `message` in `context`, by the strict rules that
/// leave exactly one valid reading of a signature (no small-order or non-canonical points).
pub fn verify(id: &AgentId, context: &'static str, message: &[u8], signature: &[u8; SIGNATURE_LEN]) -> bool {
    let Ok(key) = VerifyingKey::from_bytes(id.as_bytes()) else {
        return false;
    };
    key.verify_strict(&signed_bytes(context, message), &Signature::from_bytes(signature)).is_ok()
}

fn signed_bytes(context: &'static str, message: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(context.len() + 1 + message.len());
    bytes.extend_from_slice(context.as_bytes());
    bytes.push(0);
    bytes.extend_from_slice(message);
    bytes
}

/// The X25519 private key of an agent's WireGuard tunnels and introductions.
#[derive(Clone, ZeroizeOnDrop)]
pub struct TunnelSecret([u8; 32]);

impl TunnelSecret {
    /// Makes a new key.
    pub fn generate<R: CryptoRng + ?Sized>(rng: &mut R) -> Self {
        let mut bytes = Zeroizing::new([0; 32]);
        rng.fill_bytes(bytes.as_mut_slice());
        Self(*bytes)
    }

    /// The key of 32 stored bytes; every value is a key (RFC 7748, section 5).
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        let bytes = Zeroizing::new(bytes);
        Self(*bytes)
    }

    /// The bytes, for the tunnel implementation and the state file.
    pub fn to_bytes(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.0)
    }

    /// The public key that belongs to it.
    pub fn public(&self) -> TunnelPublic {
        let secret = StaticSecret::from(self.0);
        TunnelPublic(PublicKey::from(&secret).to_bytes())
    }
}

impl fmt::Debug for TunnelSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TunnelSecret(public {})", self.public())
    }
}

/// The X25519 public key of an agent's tunnels. Never one of low order, with which every
/// Diffie-Hellman result would be zero and known to everybody (RFC 7748, section 6.1).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TunnelPublic([u8; 32]);

/// Why bytes or text are not a tunnel public key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TunnelPublicError {
    /// The key has low order.
    #[error("a tunnel key of low order, which protects nothing")]
    LowOrder,
    /// The text is not the canonical z-base-32 of 32 bytes.
    #[error("a tunnel key is 52 characters of z-base-32")]
    Text,
}

impl TunnelPublic {
    /// Accepts every key that can take part in a Diffie-Hellman exchange.
    ///
    /// # Errors
    /// [`TunnelPublicError::LowOrder`].
    pub fn from_bytes(bytes: &[u8; 32]) -> Result<Self, TunnelPublicError> {
        // Every X25519 scalar is a multiple of the cofactor and smaller than it times the group
        // order, so the result is zero for low order keys and only for them, whatever the scalar.
        let probe = StaticSecret::from([1; 32]);
        if probe.diffie_hellman(&PublicKey::from(*bytes)).was_contributory() {
            Ok(Self(*bytes))
        } else {
            Err(TunnelPublicError::LowOrder)
        }
    }

    /// The 32 bytes of the key.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for TunnelPublic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&z32::encode(&self.0))
    }
}

impl fmt::Debug for TunnelPublic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TunnelPublic({self})")
    }
}

impl std::str::FromStr for TunnelPublic {
    type Err = TunnelPublicError;

    fn from_str(text: &str) -> Result<Self, TunnelPublicError> {
        let bytes = decode_z32(text.as_bytes()).ok_or(TunnelPublicError::Text)?;
        let bytes = <&[u8; 32]>::try_from(bytes.as_slice()).map_err(|_| TunnelPublicError::Text)?;
        Self::from_bytes(bytes)
    }
}

impl Serialize for TunnelPublic {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() { serializer.collect_str(self) } else { self.0.serialize(serializer) }
    }
}

impl<'de> Deserialize<'de> for TunnelPublic {
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
    use crate::identity::test_rng::TestRng;

    const CONTEXT: &str = "agentnet test v1";

    #[test]
    fn signature_binds_key_context_and_message() {
        let key = IdentityKey::from_seed([1; 32]);
        let other = IdentityKey::from_seed([2; 32]);
        let mut signature = key.sign(CONTEXT, b"hello");
        assert!(verify(&key.id(), CONTEXT, b"hello", &signature));
        assert!(!verify(&other.id(), CONTEXT, b"hello", &signature));
        assert!(!verify(&key.id(), "agentnet other v1", b"hello", &signature));
        assert!(!verify(&key.id(), CONTEXT, b"hellO", &signature));
        signature[0] ^= 1;
        assert!(!verify(&key.id(), CONTEXT, b"hello", &signature));
    }

    #[test]
    fn context_and_message_cannot_run_into_each_other() {
        let key = IdentityKey::from_seed([1; 32]);
        let signature = key.sign("ab", b"c");
        assert!(!verify(&key.id(), "a", b"bc", &signature));
    }

    #[test]
    fn seed_gives_the_key_back() {
        let key = IdentityKey::generate(&mut TestRng::new(1));
        assert_eq!(IdentityKey::from_seed(*key.seed()).id(), key.id());
        assert_ne!(IdentityKey::generate(&mut TestRng::new(2)).id(), key.id());
    }

    #[test]
    fn low_order_tunnel_keys_are_refused() {
        // RFC 7748, section 6.1: u = 0, u = 1 and u = p - 1 (p = 2^255 - 19) among others.
        let mut one = [0; 32];
        one[0] = 1;
        let mut minus_one = [0xff; 32];
        minus_one[0] = 0xec;
        minus_one[31] = 0x7f;
        for bytes in [[0; 32], one, minus_one] {
            assert_eq!(TunnelPublic::from_bytes(&bytes), Err(TunnelPublicError::LowOrder));
        }
        let mut base = [0; 32];
        base[0] = 9;
        assert!(TunnelPublic::from_bytes(&base).is_ok());
    }

    #[test]
    fn public_key_is_that_of_rfc_7748() {
        // RFC 7748, section 6.1, Alice.
        let secret = TunnelSecret::from_bytes([
            0x77, 0x07, 0x6d, 0x0a, 0x73, 0x18, 0xa5, 0x7d, 0x3c, 0x16, 0xc1, 0x72, 0x51, 0xb2, 0x66, 0x45, 0xdf, 0x4c,
            0x2f, 0x87, 0xeb, 0xc0, 0x99, 0x2a, 0xb1, 0x77, 0xfb, 0xa5, 0x1d, 0xb9, 0x2c, 0x2a,
        ]);
        assert_eq!(
            secret.public().as_bytes(),
            &[
                0x85, 0x20, 0xf0, 0x09, 0x89, 0x30, 0xa7, 0x54, 0x74, 0x8b, 0x7d, 0xdc, 0xb4, 0x3e, 0xf7, 0x5a, 0x0d,
                0xbf, 0x3a, 0x0d, 0x26, 0x38, 0x1a, 0xf4, 0xeb, 0xa4, 0xa9, 0x8e, 0xaa, 0x9b, 0x4e, 0x6a,
            ]
        );
        let public = secret.public();
        assert_eq!(public.to_string().parse(), Ok(public));
    }

    #[test]
    fn debug_output_holds_no_secret() {
        let key = IdentityKey::from_seed([0x5a; 32]);
        let tunnel = TunnelSecret::from_bytes([0x5a; 32]);
        let shown = format!("{key:?} {tunnel:?}");
        let seed_text = z32::encode(&[0x5a; 32]);
        assert!(!shown.contains(&seed_text[..8]));
        assert!(!shown.contains("90, 90") && !shown.to_lowercase().contains("5a5a"));
    }
}
