//! Which kind of datagram arrived, by its first bytes, checked in this order:
//!
//! | kind | bytes | length |
//! |---|---|---|
//! | STUN (RFC 8489, section 5) | first two bits 0, bytes 2..4 = length after the header, bytes 4..8 = magic cookie | 20 and more, a multiple of 4 |
//! | WireGuard initiation | 01 00 00 00 | 148 |
//! | WireGuard response | 02 00 00 00 | 92 |
//! | WireGuard cookie reply | 03 00 00 00 | 64 |
//! | WireGuard data | 04 00 00 00, receiver index u32 little endian | 32 and more |
//! | relay frame | `agn` 02, version, 00 00 00 | 8 and more |
//! | introduction | `agn` 01, version, 00 00 00 | 8 and more |
//! | record request | `agn` 03, version, 00 00 00 | 1,024 |
//! | record answer | `agn` 04, version, 00 00 00 | 25 to 1,024 |
//!
//! No datagram has two kinds. A WireGuard receiver index may equal the magic cookie, but a
//! WireGuard message has zero where STUN has its length, and is too long for that length.

use super::rendezvous::RECORD_TRANSACTION_LEN;
use super::{
    FRAME_HEADER_LEN, FRAME_INTRODUCTION, FRAME_MAGIC, FRAME_RECORD_ANSWER, FRAME_RECORD_REQUEST, FRAME_RELAY,
    RECORD_REQUEST_LEN, STUN_HEADER_LEN, STUN_MAGIC_COOKIE, WIREGUARD_COOKIE_LEN, WIREGUARD_INITIATION_LEN,
    WIREGUARD_OVERHEAD, WIREGUARD_RESPONSE_LEN,
};

/// Header, transaction and at least one byte of record.
const MIN_RECORD_ANSWER_LEN: usize = FRAME_HEADER_LEN + RECORD_TRANSACTION_LEN + 1;

/// What a datagram is, as far as its first bytes and its length tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DatagramKind {
    /// A STUN message.
    Stun,
    /// A WireGuard handshake initiation.
    WireguardInitiation,
    /// A WireGuard handshake response.
    WireguardResponse,
    /// A WireGuard cookie reply.
    WireguardCookie,
    /// A WireGuard data message (or keepalive).
    WireguardData {
        /// The receiver's index of the session.
        receiver_index: u32,
    },
    /// A relay frame, of any version.
    Relay,
    /// An introduction, of any version.
    Introduction,
    /// A request for a rendezvous server's record, of any version.
    RecordRequest,
    /// The answer to a record request, of any version.
    RecordAnswer,
    /// Nothing agentnet knows: count and drop.
    Unknown,
}

impl DatagramKind {
    /// Whether it is one of WireGuard's four messages.
    #[must_use]
    pub fn is_wireguard(self) -> bool {
        use DatagramKind::{WireguardCookie, WireguardData, WireguardInitiation, WireguardResponse};
        matches!(self, WireguardInitiation | WireguardResponse | WireguardCookie | WireguardData { .. })
    }
}

/// Tells what a datagram is. No allocation, no loop.
pub fn classify(datagram: &[u8]) -> DatagramKind {
    let Some((&[a, b, c, d, e, f, g, h], _)) = datagram.split_first_chunk::<8>() else {
        return DatagramKind::Unknown;
    };
    if is_stun(a, u16::from_be_bytes([c, d]), [e, f, g, h], datagram.len()) {
        return DatagramKind::Stun;
    }
    match ([a, b, c, d], datagram.len()) {
        ([1, 0, 0, 0], WIREGUARD_INITIATION_LEN) => DatagramKind::WireguardInitiation,
        ([2, 0, 0, 0], WIREGUARD_RESPONSE_LEN) => DatagramKind::WireguardResponse,
        ([3, 0, 0, 0], WIREGUARD_COOKIE_LEN) => DatagramKind::WireguardCookie,
        ([4, 0, 0, 0], WIREGUARD_OVERHEAD..) => {
            DatagramKind::WireguardData { receiver_index: u32::from_le_bytes([e, f, g, h]) }
        }
        ([m0, m1, m2, frame_type], FRAME_HEADER_LEN..) if [m0, m1, m2] == FRAME_MAGIC && [f, g, h] == [0; 3] => {
            match frame_type {
                FRAME_RELAY => DatagramKind::Relay,
                FRAME_INTRODUCTION => DatagramKind::Introduction,
                FRAME_RECORD_REQUEST if datagram.len() == RECORD_REQUEST_LEN => DatagramKind::RecordRequest,
                FRAME_RECORD_ANSWER if (MIN_RECORD_ANSWER_LEN..=RECORD_REQUEST_LEN).contains(&datagram.len()) => {
                    DatagramKind::RecordAnswer
                }
                _ => DatagramKind::Unknown,
            }
        }
        _ => DatagramKind::Unknown,
    }
}

fn is_stun(first: u8, length_field: u16, cookie: [u8; 4], length: usize) -> bool {
    first & 0b1100_0000 == 0
        && cookie == STUN_MAGIC_COOKIE
        && length.is_multiple_of(4)
        && length == STUN_HEADER_LEN + usize::from(length_field)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::frame_header;
    use proptest::prelude::*;

    fn wireguard(message_type: u8, length: usize) -> Vec<u8> {
        let mut datagram = vec![0; length];
        datagram[0] = message_type;
        datagram
    }

    fn stun(first: u8, attributes: usize) -> Vec<u8> {
        let mut datagram = vec![0; STUN_HEADER_LEN + attributes];
        datagram[0] = first;
        datagram[1] = 1;
        datagram[2..4].copy_from_slice(&(attributes as u16).to_be_bytes());
        datagram[4..8].copy_from_slice(&STUN_MAGIC_COOKIE);
        datagram
    }

    #[test]
    fn stun_messages() {
        assert_eq!(classify(&stun(0, 0)), DatagramKind::Stun);
        // A success response shares its first byte with a WireGuard initiation, here its length too.
        assert_eq!(classify(&stun(1, 128)), DatagramKind::Stun);
        assert_eq!(classify(&stun(0x40, 0)), DatagramKind::Unknown);
        assert_eq!(classify(&stun(0, 4)[..20]), DatagramKind::Unknown);
        assert_eq!(classify(&stun(0, 0)[..19]), DatagramKind::Unknown);
        assert_eq!(classify(&stun(0, 2)), DatagramKind::Unknown);
    }

    #[test]
    fn wireguard_messages_have_exact_lengths() {
        use DatagramKind::{WireguardCookie, WireguardInitiation, WireguardResponse};
        for (message_type, length, kind) in
            [(1, 148, WireguardInitiation), (2, 92, WireguardResponse), (3, 64, WireguardCookie)]
        {
            assert_eq!(classify(&wireguard(message_type, length)), kind);
            for other in [length - 1, length + 1] {
                assert_eq!(classify(&wireguard(message_type, other)), DatagramKind::Unknown);
            }
            let mut reserved = wireguard(message_type, length);
            reserved[3] = 1;
            assert_eq!(classify(&reserved), DatagramKind::Unknown);
        }
        assert_eq!(classify(&wireguard(4, 31)), DatagramKind::Unknown);
        let mut data = wireguard(4, 32);
        data[4..8].copy_from_slice(&[1, 2, 3, 4]);
        let receiver_index = 0x0403_0201;
        assert_eq!(classify(&data), DatagramKind::WireguardData { receiver_index });
    }

    #[test]
    fn receiver_index_that_equals_the_stun_cookie() {
        for length in [32, 36, 148] {
            let mut data = wireguard(4, length);
            data[4..8].copy_from_slice(&STUN_MAGIC_COOKIE);
            let receiver_index = u32::from_le_bytes(STUN_MAGIC_COOKIE);
            assert_eq!(classify(&data), DatagramKind::WireguardData { receiver_index });
        }
    }

    #[test]
    fn agentnet_frames() {
        assert_eq!(classify(&frame_header(FRAME_INTRODUCTION)), DatagramKind::Introduction);
        assert_eq!(classify(&frame_header(FRAME_RELAY)), DatagramKind::Relay);
        assert_eq!(classify(&frame_header(3)), DatagramKind::Unknown);
        assert_eq!(classify(&frame_header(FRAME_RELAY)[..7]), DatagramKind::Unknown);
        let sized = |frame_type, length: usize| {
            let mut datagram = frame_header(frame_type).to_vec();
            datagram.resize(length, 0);
            classify(&datagram)
        };
        assert_eq!(sized(3, 1024), DatagramKind::RecordRequest);
        assert_eq!((sized(3, 1023), sized(3, 1025)), (DatagramKind::Unknown, DatagramKind::Unknown));
        assert_eq!((sized(4, 25), sized(4, 1024)), (DatagramKind::RecordAnswer, DatagramKind::RecordAnswer));
        assert_eq!((sized(4, 24), sized(4, 1025)), (DatagramKind::Unknown, DatagramKind::Unknown));
        let mut later_version = frame_header(FRAME_RELAY);
        later_version[4] = 9;
        assert_eq!(classify(&later_version), DatagramKind::Relay);
        later_version[5] = 1;
        assert_eq!(classify(&later_version), DatagramKind::Unknown);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(datagram: Vec<u8>) {
            classify(&datagram);
        }
    }
}
