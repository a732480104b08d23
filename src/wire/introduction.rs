//! The introduction: a message to an agent one has no session with, sealed so that only it can
//! read it, and signed by the sender. Carried as it is, or through a rendezvous server.
//!
//! | bytes | field | encoding |
//! |---|---|---|
//! | 0..3 | magic | `agn` |
//! | 3 | frame type | 1 |
//! | 4 | frame version | 1 |
//! | 5..8 | zero | |
//! | 8..40 | encapsulated key | X25519 public key (RFC 9180, section 4.1) |
//! | 40.. | ciphertext | HPKE base mode, DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, ChaCha20Poly1305; info "agentnet introduction v1", additional data bytes 0..8; 16 bytes longer than the plaintext |
//!
//! Plaintext:
//!
//! | bytes | field | encoding |
//! |---|---|---|
//! | 0.. | body | postcard, fields in this order: |
//! | | recipient | 32 bytes, agent id |
//! | | record | varint length and bytes of the sender's signed record |
//! | | candidates | varint count (at most 8), each: 0, 4 bytes, varint port; or 1, 16 bytes, varint port |
//! | | nonce | 16 bytes |
//! | | time, milliseconds since 1970 | varint u64 |
//! | | reason | varint length and text, at most 140 characters and 280 bytes |
//! | | requested ports | 0, or 1 followed by varint length and text (at most 128 bytes) |
//! | | requested time to live, seconds | 0, or 1 followed by varint u64 |
//! | | WireGuard initiation | 0, or 1 followed by varint length (148) and bytes |
//! | last 64 | signature | Ed25519 by the record's id over "agentnet introduction v1" \|\| 0x00 \|\| body |
//!
//! The recipient stands inside the signature, so that whoever receives an introduction cannot seal
//! it again to somebody else. Freshness (nonce and time) is for the caller to check.

use std::net::SocketAddr;

use hpke::aead::ChaCha20Poly1305;
use hpke::kdf::HkdfSha256;
use hpke::kem::X25519HkdfSha256;
use hpke::{Deserializable, Kem, OpModeR, OpModeS, Serializable};
use rand_core::CryptoRng;
use serde::{Deserialize, Serialize};

use super::{
    FRAME_HEADER_LEN, FRAME_INTRODUCTION, FRAME_VERSION, MAX_UNFRAGMENTED_PAYLOAD, WIREGUARD_INITIATION_LEN,
    frame_header,
};
use crate::identity::keys::SIGNATURE_LEN;
use crate::identity::ticket::{is_usable_address, without_scope};
use crate::identity::{AgentId, IdentityKey, RecordError, SignedRecord, TunnelPublic, TunnelSecret, verify};

/// Longest sealed introduction in bytes: one unfragmented datagram on every path.
pub const MAX_INTRODUCTION_LEN: usize = MAX_UNFRAGMENTED_PAYLOAD;

/// Most candidates in an introduction.
pub const MAX_CANDIDATES: usize = 8;

/// Longest reason in characters.
pub const MAX_REASON_CHARS: usize = 140;

/// Longest reason in bytes.
pub const MAX_REASON_LEN: usize = 280;

/// Longest port specification of a trust request in bytes.
pub const MAX_PORTS_LEN: usize = 128;

const CONTEXT: &str = "agentnet introduction v1";

/// Length of an encapsulated X25519 key in bytes (RFC 9180, table 2).
const ENCAPSULATED_KEY_LEN: usize = 32;

/// What the sender would like to be allowed to do.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrustRequest {
    /// Ports in the form that grants are written in; printable ASCII, at most [`MAX_PORTS_LEN`].
    pub ports: Option<String>,
    /// For how many seconds.
    pub ttl_s: Option<u64>,
}

/// An introduction, opened and verified, or ready to be sealed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Introduction {
    /// Whom it is for.
    pub recipient: AgentId,
    /// The sender's record.
    pub record: SignedRecord,
    /// Where the sender may be reached, at most [`MAX_CANDIDATES`].
    pub candidates: Vec<SocketAddr>,
    /// Random; the same nonce again is a replay.
    pub nonce: [u8; 16],
    /// The sender's clock in milliseconds since 1970.
    pub time_ms: u64,
    /// Why, for a person to read. No control or text direction characters, at most
    /// [`MAX_REASON_CHARS`] characters and [`MAX_REASON_LEN`] bytes.
    pub reason: String,
    /// What the sender asks for.
    pub request: TrustRequest,
    /// A WireGuard handshake initiation, to save a round trip.
    pub initiation: Option<[u8; WIREGUARD_INITIATION_LEN]>,
}

/// Why an introduction cannot be sealed, or is not valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IntroductionError {
    /// Sealed, it would have this many bytes, more than [`MAX_INTRODUCTION_LEN`].
    #[error("the introduction has {0} bytes, more than {MAX_INTRODUCTION_LEN}")]
    TooLong(usize),
    /// Not an introduction frame.
    #[error("not an introduction")]
    NotAnIntroduction,
    /// Of a later version.
    #[error("the introduction has version {0}, this agentnet reads version {FRAME_VERSION}")]
    UnsupportedVersion(u8),
    /// Not sealed to this tunnel key, or changed on the way.
    #[error("the introduction cannot be opened with this agent's tunnel key")]
    NotOpened,
    /// The recipient's tunnel key cannot be sealed to.
    #[error("nothing can be sealed to the recipient's tunnel key")]
    NotSealed,
    /// The content does not decode, or its encoding is not the canonical one.
    #[error("the introduction is malformed")]
    Malformed,
    /// Sealed to this agent, but written to another one.
    #[error("the introduction was written to another agent")]
    WrongRecipient,
    /// Too many candidates, or one that no packet can be sent to.
    #[error("the introduction holds an unusable candidate, or more than {MAX_CANDIDATES}")]
    Candidates,
    /// The reason is too long, or holds characters that can deceive a reader.
    #[error(
        "a reason has at most {MAX_REASON_CHARS} characters ({MAX_REASON_LEN} bytes), \
         none of them a control character"
    )]
    Reason,
    /// The port specification is too long or not printable ASCII.
    #[error("a port specification has at most {MAX_PORTS_LEN} printable ASCII characters")]
    Ports,
    /// The sender's record is not valid.
    #[error("the sender's record is not valid: {0}")]
    Record(#[from] RecordError),
    /// The signing key is not that of the record.
    #[error("the introduction's record belongs to another identity key")]
    WrongKey,
    /// The sender's signature does not hold.
    #[error("the introduction's signature is wrong")]
    Signature,
}

/// The body as it is encoded, with the record as bytes and the initiation as a byte string.
#[derive(Serialize, Deserialize)]
struct Body<'a> {
    recipient: AgentId,
    record: &'a [u8],
    candidates: Vec<SocketAddr>,
    nonce: [u8; 16],
    time_ms: u64,
    reason: &'a str,
    ports: Option<&'a str>,
    ttl_s: Option<u64>,
    initiation: Option<&'a [u8]>,
}

impl Introduction {
    /// Signs and seals it to the recipient's tunnel key.
    ///
    /// # Errors
    /// A broken limit, [`IntroductionError::WrongKey`], or [`IntroductionError::NotSealed`].
    pub fn seal<R: CryptoRng + ?Sized>(
        &self,
        key: &IdentityKey,
        recipient_tunnel: &TunnelPublic,
        mut rng: &mut R,
    ) -> Result<Vec<u8>, IntroductionError> {
        if key.id() != self.record.id() {
            return Err(IntroductionError::WrongKey);
        }
        self.check()?;
        let mut plaintext = self.encode_body()?;
        let signature = key.sign(CONTEXT, &plaintext);
        plaintext.extend_from_slice(&signature);

        let public = <X25519HkdfSha256 as Kem>::PublicKey::from_bytes(recipient_tunnel.as_bytes())
            .map_err(|_| IntroductionError::NotSealed)?;
        let header = frame_header(FRAME_INTRODUCTION);
        let (encapsulated, ciphertext) = hpke::single_shot_seal_with_rng::<
            ChaCha20Poly1305,
            HkdfSha256,
            X25519HkdfSha256,
        >(
            &OpModeS::Base, &public, CONTEXT.as_bytes(), &plaintext, &header, &mut rng
        )
        .map_err(|_| IntroductionError::NotSealed)?;

        let datagram = [&header, encapsulated.to_bytes().as_slice(), &ciphertext].concat();
        if datagram.len() > MAX_INTRODUCTION_LEN {
            return Err(IntroductionError::TooLong(datagram.len()));
        }
        Ok(datagram)
    }

    /// Opens an introduction and verifies everything in it that does not depend on time.
    ///
    /// # Errors
    /// See [`IntroductionError`].
    pub fn open(datagram: &[u8], tunnel: &TunnelSecret, my_id: &AgentId) -> Result<Self, IntroductionError> {
        let frame = SealedIntroduction::parse(datagram)?;
        let secret = <X25519HkdfSha256 as Kem>::PrivateKey::from_bytes(&*tunnel.to_bytes())
            .map_err(|_| IntroductionError::NotOpened)?;
        let encapsulated = <X25519HkdfSha256 as Kem>::EncappedKey::from_bytes(frame.encapsulated_key)
            .map_err(|_| IntroductionError::NotOpened)?;
        let plaintext = hpke::single_shot_open::<ChaCha20Poly1305, HkdfSha256, X25519HkdfSha256>(
            &OpModeR::Base,
            &secret,
            &encapsulated,
            CONTEXT.as_bytes(),
            frame.ciphertext,
            frame.header,
        )
        .map_err(|_| IntroductionError::NotOpened)?;
        decode_plaintext(&plaintext, my_id)
    }

    fn check(&self) -> Result<(), IntroductionError> {
        if self.candidates.len() > MAX_CANDIDATES || !self.candidates.iter().all(is_usable_address) {
            return Err(IntroductionError::Candidates);
        }
        if !is_valid_reason(&self.reason) {
            return Err(IntroductionError::Reason);
        }
        if let Some(ports) = &self.request.ports {
            let printable = ports.bytes().all(|byte| (b' '..=b'~').contains(&byte));
            if ports.len() > MAX_PORTS_LEN || !printable {
                return Err(IntroductionError::Ports);
            }
        }
        Ok(())
    }

    fn encode_body(&self) -> Result<Vec<u8>, IntroductionError> {
        let body = Body {
            recipient: self.recipient,
            record: self.record.as_bytes(),
            candidates: self.candidates.iter().copied().map(without_scope).collect(),
            nonce: self.nonce,
            time_ms: self.time_ms,
            reason: &self.reason,
            ports: self.request.ports.as_deref(),
            ttl_s: self.request.ttl_s,
            initiation: self.initiation.as_ref().map(<[u8; 148]>::as_slice),
        };
        postcard::to_allocvec(&body).map_err(|_| IntroductionError::Malformed)
    }
}

/// The three parts of an introduction datagram.
struct SealedIntroduction<'a> {
    header: &'a [u8],
    encapsulated_key: &'a [u8],
    ciphertext: &'a [u8],
}

impl<'a> SealedIntroduction<'a> {
    fn parse(datagram: &'a [u8]) -> Result<Self, IntroductionError> {
        if datagram.len() > MAX_INTRODUCTION_LEN {
            return Err(IntroductionError::TooLong(datagram.len()));
        }
        let (header, rest) =
            datagram.split_first_chunk::<FRAME_HEADER_LEN>().ok_or(IntroductionError::NotAnIntroduction)?;
        let [m0, m1, m2, frame_type, version, zeros @ ..] = *header;
        let expected = frame_header(FRAME_INTRODUCTION);
        if !expected.starts_with(&[m0, m1, m2, frame_type]) || zeros != [0; 3] {
            return Err(IntroductionError::NotAnIntroduction);
        }
        if version != FRAME_VERSION {
            return Err(IntroductionError::UnsupportedVersion(version));
        }
        let (encapsulated_key, ciphertext) =
            rest.split_at_checked(ENCAPSULATED_KEY_LEN).ok_or(IntroductionError::NotAnIntroduction)?;
        Ok(Self { header, encapsulated_key, ciphertext })
    }
}

/// Reads and verifies what was sealed. Public for the fuzz target only, which cannot guess a seal.
#[doc(hidden)]
pub fn decode_plaintext(plaintext: &[u8], my_id: &AgentId) -> Result<Introduction, IntroductionError> {
    let (encoded, signature) = plaintext.split_last_chunk::<SIGNATURE_LEN>().ok_or(IntroductionError::Malformed)?;
    let body: Body<'_> = postcard::from_bytes(encoded).map_err(|_| IntroductionError::Malformed)?;
    if body.recipient != *my_id {
        return Err(IntroductionError::WrongRecipient);
    }
    let initiation = body
        .initiation
        .map(<[u8; WIREGUARD_INITIATION_LEN]>::try_from)
        .transpose()
        .map_err(|_| IntroductionError::Malformed)?;
    let introduction = Introduction {
        recipient: body.recipient,
        record: SignedRecord::decode(body.record)?,
        candidates: body.candidates,
        nonce: body.nonce,
        time_ms: body.time_ms,
        reason: body.reason.to_owned(),
        request: TrustRequest { ports: body.ports.map(str::to_owned), ttl_s: body.ttl_s },
        initiation,
    };
    introduction.check()?;
    // Also catches what follows the last field, which the decoder ignores.
    if introduction.encode_body()? != encoded {
        return Err(IntroductionError::Malformed);
    }
    if !verify(&introduction.record.id(), CONTEXT, encoded, signature) {
        return Err(IntroductionError::Signature);
    }
    Ok(introduction)
}

/// Whether a text can be the reason of an introduction; ask before accepting one from a user.
pub fn is_valid_reason(text: &str) -> bool {
    text.len() <= MAX_REASON_LEN && text.chars().count() <= MAX_REASON_CHARS && !text.chars().any(is_deceptive)
}

/// Characters that move the cursor, end the line, or turn the direction of the text around them:
/// with these a reason could imitate the program's own words.
fn is_deceptive(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
                | '\u{feff}'
        )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::record::tests::{key, signed};
    use crate::identity::test_rng::TestRng;
    use proptest::prelude::*;

    const SENDER: u8 = 1;
    const RECIPIENT: u8 = 2;

    /// A change that breaks an introduction, and the error it gives.
    type Broken = (fn(&mut Introduction), IntroductionError);

    fn introduction() -> Introduction {
        Introduction {
            recipient: key(RECIPIENT).id(),
            record: signed(SENDER),
            candidates: vec!["192.0.2.1:4500".parse().unwrap()],
            nonce: [7; 16],
            time_ms: 1_800_000_000_000,
            reason: "Fetching the weekly report".to_owned(),
            request: TrustRequest { ports: Some("tcp/443".to_owned()), ttl_s: Some(3600) },
            initiation: Some([9; WIREGUARD_INITIATION_LEN]),
        }
    }

    fn tunnel() -> TunnelSecret {
        TunnelSecret::from_bytes([RECIPIENT; 32])
    }

    fn seal(introduction: &Introduction) -> Result<Vec<u8>, IntroductionError> {
        introduction.seal(&key(SENDER), &tunnel().public(), &mut TestRng::new(1))
    }

    fn open(datagram: &[u8]) -> Result<Introduction, IntroductionError> {
        Introduction::open(datagram, &tunnel(), &key(RECIPIENT).id())
    }

    #[test]
    fn sealed_and_opened() {
        let datagram = seal(&introduction()).unwrap();
        assert!(datagram.len() <= MAX_INTRODUCTION_LEN);
        assert_eq!(crate::wire::classify(&datagram), crate::wire::DatagramKind::Introduction);
        assert_eq!(open(&datagram), Ok(introduction()));
    }

    #[test]
    fn every_changed_byte_and_every_cut_is_noticed() {
        let good = seal(&introduction()).unwrap();
        for position in 0..good.len() {
            let mut datagram = good.clone();
            datagram[position] ^= 1;
            assert!(open(&datagram).is_err(), "byte {position}");
            assert!(open(&good[..position]).is_err(), "cut at {position}");
        }
        let mut later = good.clone();
        later[4] = 2;
        assert_eq!(open(&later), Err(IntroductionError::UnsupportedVersion(2)));
    }

    #[test]
    fn recipient_cannot_pass_it_on_as_his_own() {
        let datagram = seal(&introduction()).unwrap();
        let wrong_key = TunnelSecret::from_bytes([3; 32]);
        assert_eq!(Introduction::open(&datagram, &wrong_key, &key(RECIPIENT).id()), Err(IntroductionError::NotOpened));
        // Sealed again to agent 3, as the recipient could do with what he read.
        assert_eq!(Introduction::open(&datagram, &tunnel(), &key(3).id()), Err(IntroductionError::WrongRecipient));
        let mut readdressed = introduction();
        readdressed.recipient = key(3).id();
        let mut plaintext = readdressed.encode_body().unwrap();
        let signature = key(SENDER).sign(CONTEXT, &introduction().encode_body().unwrap());
        plaintext.extend_from_slice(&signature);
        assert_eq!(decode_plaintext(&plaintext, &key(3).id()), Err(IntroductionError::Signature));
    }

    #[test]
    fn only_the_records_owner_can_send_it() {
        assert_eq!(
            introduction().seal(&key(3), &tunnel().public(), &mut TestRng::new(1)),
            Err(IntroductionError::WrongKey)
        );
        let mut plaintext = introduction().encode_body().unwrap();
        let signature = key(3).sign(CONTEXT, &plaintext);
        plaintext.extend_from_slice(&signature);
        assert_eq!(decode_plaintext(&plaintext, &key(RECIPIENT).id()), Err(IntroductionError::Signature));
    }

    #[test]
    fn limits_hold_for_sealing_and_for_opening() {
        let cases: [Broken; 8] = [
            (|i| i.reason = "x".repeat(141), IntroductionError::Reason),
            (|i| i.reason = "€".repeat(94), IntroductionError::Reason),
            (|i| i.reason = "a\nb".to_owned(), IntroductionError::Reason),
            (|i| i.reason = "a\u{202e}b".to_owned(), IntroductionError::Reason),
            (|i| i.request.ports = Some("x".repeat(129)), IntroductionError::Ports),
            (|i| i.request.ports = Some("é".to_owned()), IntroductionError::Ports),
            (|i| i.candidates = vec!["192.0.2.1:1".parse().unwrap(); 9], IntroductionError::Candidates),
            (|i| i.candidates = vec!["0.0.0.0:1".parse().unwrap()], IntroductionError::Candidates),
        ];
        for (change, error) in cases {
            let mut broken = introduction();
            change(&mut broken);
            assert_eq!(seal(&broken), Err(error));
            let mut plaintext = broken.encode_body().unwrap();
            let signature = key(SENDER).sign(CONTEXT, &plaintext);
            plaintext.extend_from_slice(&signature);
            assert_eq!(decode_plaintext(&plaintext, &key(RECIPIENT).id()), Err(error));
        }
    }

    #[test]
    fn too_long_for_one_datagram() {
        let mut long = introduction();
        let mut record = long.record.record().clone();
        record.capabilities = (10..26).map(|n| format!("{n}{}", "a".repeat(30))).collect();
        record.rendezvous = vec![format!("{}@{}:1", key(4).id(), "a".repeat(80)).parse().unwrap(); 2];
        long.record = SignedRecord::sign(&key(SENDER), record).unwrap();
        long.reason = "x".repeat(140);
        assert!(matches!(seal(&long), Err(IntroductionError::TooLong(_))));
        assert_eq!(open(&[0; MAX_INTRODUCTION_LEN + 1]), Err(IntroductionError::TooLong(MAX_INTRODUCTION_LEN + 1)));
    }

    #[test]
    fn body_has_one_encoding() {
        let mut plaintext = introduction().encode_body().unwrap();
        plaintext.push(0);
        let signature = key(SENDER).sign(CONTEXT, &plaintext);
        plaintext.extend_from_slice(&signature);
        assert_eq!(decode_plaintext(&plaintext, &key(RECIPIENT).id()), Err(IntroductionError::Malformed));
    }

    proptest! {
        #[test]
        fn round_trip(
            reason in "[ -~äöü]{0,120}",
            ports in proptest::option::of("[a-z0-9/,-]{0,60}"),
            ttl_s: Option<u64>,
            time_ms: u64,
            nonce: [u8; 16],
            with_initiation: bool,
        ) {
            let introduction = Introduction {
                reason,
                request: TrustRequest { ports, ttl_s },
                time_ms,
                nonce,
                initiation: with_initiation.then_some([5; WIREGUARD_INITIATION_LEN]),
                ..introduction()
            };
            prop_assert_eq!(open(&seal(&introduction).unwrap()), Ok(introduction));
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            let _ = open(&bytes);
            let _ = open(&[&frame_header(FRAME_INTRODUCTION)[..], &bytes].concat());
            let _ = decode_plaintext(&bytes, &key(RECIPIENT).id());
        }
    }
}
