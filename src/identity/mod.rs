//! Who an agent is: keys, names, addresses, and the signed statements about them.
//!
//! Everything here is a pure function of its arguments: no clock, no randomness of its own, no I/O.
//!
//! | module | what it holds |
//! |---|---|
//! | [`agent_id`] | the Ed25519 public key that names an agent, and its text forms |
//! | [`keys`] | the identity key (only signs) and the tunnel key (only does Diffie-Hellman) |
//! | [`key_file`] | the text form of the identity file |
//! | [`address`] | overlay IPv6 address and IPv4 aliases derived from the agent id |
//! | [`record`] | what an agent publishes about itself, signed |
//! | [`ticket`] | one line of text with everything needed to contact an agent |

pub mod address;
pub mod agent_id;
pub mod key_file;
pub mod keys;
pub mod record;
mod record_fields;
pub mod ticket;

pub use address::{AliasTable, DEFAULT_IPV4_RANGE, OVERLAY_PREFIX, is_overlay, overlay_ipv6, preferred_ipv4};
pub use agent_id::{AgentId, AgentIdError};
pub use keys::{IdentityKey, TunnelPublic, TunnelSecret, verify};
pub use record::{AgentRecord, HostPort, MAX_RECORD_LEN, Name, RecordError, RendezvousRef, SignedRecord, VersionRange};
pub use ticket::{Ticket, TicketError};

use sha2::{Digest, Sha256};

/// Bytes of the checksums that protect hand-copied text (tickets, identity files): one in 2^32
/// damaged texts passes, and signatures stand behind it.
pub(crate) const TEXT_CHECKSUM_LEN: usize = 4;

/// First bytes of SHA-256(label || data).
pub(crate) fn text_checksum(label: &str, data: &[u8]) -> [u8; TEXT_CHECKSUM_LEN] {
    let [a, b, c, d, ..] = labelled_hash(label, data);
    [a, b, c, d]
}

/// SHA-256(label || data).
pub(crate) fn labelled_hash(label: &str, data: &[u8]) -> [u8; 32] {
    Sha256::new().chain_update(label.as_bytes()).chain_update(data).finalize().into()
}

/// Decodes z-base-32 and accepts only the one text that encodes the result: the bare decoder
/// ignores left-over bits, so several texts would name the same bytes.
pub(crate) fn decode_z32(text: &[u8]) -> Option<Vec<u8>> {
    let bytes = z32::decode(text).ok()?;
    (z32::encode(&bytes).as_bytes() == text).then_some(bytes)
}

/// Random source for tests: SHA-256 in counter mode over a seed, so that vectors stay the same.
#[cfg(test)]
pub(crate) mod test_rng {
    use std::convert::Infallible;

    pub(crate) struct TestRng {
        seed: u64,
        counter: u64,
    }

    impl TestRng {
        pub(crate) fn new(seed: u64) -> Self {
            Self { seed, counter: 0 }
        }
    }

    impl rand_core::TryRng for TestRng {
        type Error = Infallible;

        fn try_next_u32(&mut self) -> Result<u32, Infallible> {
            let mut bytes = [0; 4];
            self.try_fill_bytes(&mut bytes)?;
            Ok(u32::from_le_bytes(bytes))
        }

        fn try_next_u64(&mut self) -> Result<u64, Infallible> {
            let mut bytes = [0; 8];
            self.try_fill_bytes(&mut bytes)?;
            Ok(u64::from_le_bytes(bytes))
        }

        fn try_fill_bytes(&mut self, target: &mut [u8]) -> Result<(), Infallible> {
            for chunk in target.chunks_mut(32) {
                let mut input = self.seed.to_le_bytes().to_vec();
                input.extend_from_slice(&self.counter.to_le_bytes());
                self.counter += 1;
                let block = super::labelled_hash("agentnet test rng", &input);
                chunk.copy_from_slice(&block[..chunk.len()]);
            }
            Ok(())
        }
    }

    impl rand_core::TryCryptoRng for TestRng {}
}
