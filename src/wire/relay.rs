//! The relay frame: a WireGuard datagram on its way through a relay, which cannot read it.
//!
//! | bytes | field | encoding |
//! |---|---|---|
//! | 0..3 | magic | `agn` |
//! | 3 | frame type | 2 |
//! | 4 | frame version | 1 |
//! | 5..8 | zero | |
//! | 8..16 | channel | u64 big endian, random, drawn by the end that opened it |
//! | 16.. | payload | one WireGuard datagram, 32 bytes and more, opaque |
//!
//! The frame carries no proof: whoever knows a channel can use it, therefore it is random and is
//! only ever told inside a session. What a stranger puts on a channel fails at the receiver's
//! WireGuard session.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{FRAME_HEADER_LEN, FRAME_RELAY, FRAME_VERSION, WIREGUARD_OVERHEAD, frame_header};

/// Bytes before the payload: reserve them in the send buffer.
pub const RELAY_PREFIX_LEN: usize = FRAME_HEADER_LEN + 8;

/// Shortest payload in bytes: a WireGuard keepalive.
pub const MIN_RELAY_PAYLOAD: usize = WIREGUARD_OVERHEAD;

/// One way through a relay. Whoever knows it can send on it, so it is never logged.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RelayChannel(u64);

/// A relay frame, borrowed from the datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RelayFrame<'a> {
    /// Which way through the relay.
    pub channel: RelayChannel,
    /// The WireGuard datagram.
    pub payload: &'a [u8],
}

/// Why a datagram is not a relay frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RelayError {
    /// Not a relay frame.
    #[error("not a relay frame")]
    NotRelay,
    /// Of a later version.
    #[error("the relay frame has version {0}, this agentnet reads version {FRAME_VERSION}")]
    UnsupportedVersion(u8),
    /// The payload has this many bytes, fewer than [`MIN_RELAY_PAYLOAD`].
    #[error("the relay frame's payload has {0} bytes, fewer than {MIN_RELAY_PAYLOAD}")]
    TooShort(usize),
}

impl RelayChannel {
    /// A channel of this number, which must be random and hard to guess.
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The number.
    pub const fn number(self) -> u64 {
        self.0
    }

    /// The bytes before the payload. Also gives a frame that is passed on its new channel, in place.
    pub fn emit(self, prefix: &mut [u8; RELAY_PREFIX_LEN]) {
        let (header, channel) = prefix.split_at_mut(FRAME_HEADER_LEN);
        header.copy_from_slice(&frame_header(FRAME_RELAY));
        channel.copy_from_slice(&self.0.to_be_bytes());
    }
}

impl fmt::Debug for RelayChannel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RelayChannel(..)")
    }
}

impl<'a> RelayFrame<'a> {
    /// Reads a datagram. Nothing is copied.
    ///
    /// # Errors
    /// See [`RelayError`].
    pub fn parse(datagram: &'a [u8]) -> Result<Self, RelayError> {
        let (prefix, payload) = datagram.split_first_chunk::<RELAY_PREFIX_LEN>().ok_or(RelayError::NotRelay)?;
        let [m0, m1, m2, frame_type, version, z0, z1, z2, channel @ ..] = *prefix;
        if !frame_header(FRAME_RELAY).starts_with(&[m0, m1, m2, frame_type]) || [z0, z1, z2] != [0; 3] {
            return Err(RelayError::NotRelay);
        }
        if version != FRAME_VERSION {
            return Err(RelayError::UnsupportedVersion(version));
        }
        if payload.len() < MIN_RELAY_PAYLOAD {
            return Err(RelayError::TooShort(payload.len()));
        }
        Ok(Self { channel: RelayChannel(u64::from_be_bytes(channel)), payload })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{DatagramKind, classify};
    use proptest::prelude::*;

    fn emit(channel: u64, payload: &[u8]) -> Vec<u8> {
        let mut datagram = vec![0xee; RELAY_PREFIX_LEN];
        datagram.extend_from_slice(payload);
        RelayChannel::new(channel).emit(datagram.first_chunk_mut().unwrap());
        datagram
    }

    #[test]
    fn layout_is_that_of_the_table() {
        let datagram = emit(0x0102_0304_0506_0708, &[9; 32]);
        assert_eq!(datagram[..16], *b"agn\x02\x01\0\0\0\x01\x02\x03\x04\x05\x06\x07\x08");
        assert_eq!(datagram[16..], [9; 32]);
        assert_eq!(classify(&datagram), DatagramKind::Relay);
    }

    #[test]
    fn broken_frames() {
        let good = emit(7, &[9; 32]);
        for position in [0, 1, 2, 3, 5, 6, 7] {
            let mut datagram = good.clone();
            datagram[position] ^= 1;
            assert_eq!(RelayFrame::parse(&datagram), Err(RelayError::NotRelay), "byte {position}");
        }
        let mut datagram = good.clone();
        datagram[4] = 2;
        assert_eq!(RelayFrame::parse(&datagram), Err(RelayError::UnsupportedVersion(2)));
        assert_eq!(RelayFrame::parse(&good[..15]), Err(RelayError::NotRelay));
        assert_eq!(RelayFrame::parse(&good[..16]), Err(RelayError::TooShort(0)));
        assert_eq!(RelayFrame::parse(&good[..47]), Err(RelayError::TooShort(31)));
        assert!(RelayFrame::parse(&good).is_ok());
    }

    #[test]
    fn channels_are_not_logged() {
        let datagram = emit(123_456_789, &[0; 32]);
        assert!(!format!("{:?}", RelayFrame::parse(&datagram)).contains("123"));
    }

    proptest! {
        #[test]
        fn round_trip(channel: u64, payload in proptest::collection::vec(any::<u8>(), 32..200)) {
            let datagram = emit(channel, &payload);
            let frame = RelayFrame::parse(&datagram).unwrap();
            prop_assert_eq!((frame.channel.number(), frame.payload), (channel, payload.as_slice()));
        }

        #[test]
        fn passing_on_changes_the_channel_only(from: u64, to: u64, payload in proptest::collection::vec(any::<u8>(), 32..99)) {
            let mut datagram = emit(from, &payload);
            RelayChannel::new(to).emit(datagram.first_chunk_mut().unwrap());
            prop_assert_eq!(datagram, emit(to, &payload));
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            let _ = RelayFrame::parse(&bytes);
            let _ = RelayFrame::parse(&[&frame_header(FRAME_RELAY), bytes.as_slice()].concat());
        }
    }
}
