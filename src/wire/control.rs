//! Control messages: IPv6 packets between two agents inside their session, which authenticates and
//! encrypts them. They never leave the tunnel.
//!
//! | bytes | field | encoding |
//! |---|---|---|
//! | 0..40 | IPv6 header (RFC 8200, section 3) | traffic class and flow label 0, next header 253, hop limit 1, overlay addresses of sender and receiver |
//! | 40 | control version | 1 |
//! | 41 | message type | below |
//! | 42.. | body | postcard, fields in this order |
//!
//! | type | message | body |
//! |---|---|---|
//! | 1 | Hello | varint length and bytes of the sender's signed record; consent, 0 or 1; alias of the sender and alias of the receiver, each 0, or 1 and 4 bytes; protocol versions, min u8 and max u8 |
//! | 2 | HelloAck | varint u64 record sequence; consent, 0 or 1 |
//! | 3 | Ping | varint u64 token |
//! | 4 | Pong | varint u64 token |
//! | 5 | Goodbye | reason: 0 shutdown, 1 consent withdrawn |
//! | 6 | Clock | varint u64, milliseconds since 1970 |
//! | 16 to 24 | [`RendezvousMessage`] | see there |
//! | 32 to 34 | [`PathMessage`] | see there |
//!
//! At most 1,184 bytes in all, so that they pass every path, except a Probe, which has up to 9,000. A message of an unknown type
//! or version is an error of its own: count it, ignore it, keep the session.

mod path;
mod rendezvous;

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use serde::{Deserialize, Serialize};
use smoltcp::wire::{IpProtocol, Ipv6Packet, Ipv6Repr};

use super::{CONTROL_NEXT_HEADER, LEAST_PATH_MTU};
use crate::identity::{RecordError, SignedRecord, VersionRange, is_overlay, overlay_ipv6};

pub use path::{
    Candidate, CandidateKind, MAX_PATH_CANDIDATES, MAX_PROBE_LEN, MIN_PROBE_LEN, Mapping, PATH_TYPES, PathMessage,
};
pub use rendezvous::{
    IntroducedStatus, MAX_FIRST_LEN, MAX_SEALED_LEN, RENDEZVOUS_TYPES, RelayRefusal, RendezvousMessage,
};

/// Longest control message in bytes, IPv6 header included: it passes every path. A Probe can have [`MAX_PROBE_LEN`].
pub const MAX_CONTROL_LEN: usize = LEAST_PATH_MTU;

/// Version of the control messages.
pub const CONTROL_VERSION: u8 = 1;

const IPV6_HEADER_LEN: usize = smoltcp::wire::IPV6_HEADER_LEN;
const CONTROL_HEADER_LEN: usize = 2;
const HOP_LIMIT: u8 = 1;

const TYPE_HELLO: u8 = 1;
const TYPE_HELLO_ACK: u8 = 2;
const TYPE_PING: u8 = 3;
const TYPE_PONG: u8 = 4;
const TYPE_GOODBYE: u8 = 5;
const TYPE_CLOCK: u8 = 6;

/// What an agent says first in a session, and again when something of it changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// The sender's own record.
    pub record: SignedRecord,
    /// Whether the sender has agreed to exchange IP packets with the receiver.
    pub consent: bool,
    /// The IPv4 source address the sender will use.
    pub alias_self: Option<Ipv4Addr>,
    /// The IPv4 destination address the sender will use for the receiver.
    pub alias_peer: Option<Ipv4Addr>,
    /// Protocol versions the sender speaks.
    pub versions: VersionRange,
}

/// Why a session ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum GoodbyeReason {
    /// The agent stops; it will be back.
    Shutdown,
    /// The agent no longer agrees to exchange IP packets.
    ConsentWithdrawn,
}

/// A message between two agents inside their session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ControlMessage {
    /// Who I am and what I agreed to.
    Hello(Hello),
    /// Your Hello arrived.
    HelloAck {
        /// Sequence number of the record that arrived.
        record_sequence: u64,
        /// Whether I agreed to exchange IP packets.
        consent: bool,
    },
    /// Please answer, on the path this arrived by.
    Ping {
        /// To be repeated in the answer.
        token: u64,
    },
    /// The answer to a Ping.
    Pong {
        /// The token of the Ping.
        token: u64,
    },
    /// The session ends.
    Goodbye {
        /// Why.
        reason: GoodbyeReason,
    },
    /// What my clock shows.
    Clock {
        /// Milliseconds since 1970.
        unix_ms: u64,
    },
    /// Between a rendezvous server and its client.
    Rendezvous(RendezvousMessage),
    /// About the paths between two agents.
    Path(PathMessage),
}

/// A control message with the overlay addresses it went between.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlPacket {
    /// Overlay address of the sender. The session's owner checks that it is the peer's.
    pub source: Ipv6Addr,
    /// Overlay address of the receiver.
    pub destination: Ipv6Addr,
    /// What was said.
    pub message: ControlMessage,
}

/// Why a packet is not a control message that this version understands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    /// Not a whole IPv6 packet with next header 253 and hop limit 1 between overlay addresses.
    #[error("not a control packet")]
    NotControl,
    /// Over [`MAX_CONTROL_LEN`], or over [`MAX_PROBE_LEN`] for a Probe.
    #[error("the control message has {0} bytes, too many")]
    TooLong(usize),
    /// Of a later version.
    #[error("the control message has version {0}, this agentnet reads version {CONTROL_VERSION}")]
    UnsupportedVersion(u8),
    /// Of a type that this version does not know.
    #[error("control message type {0} is unknown")]
    UnknownType(u8),
    /// The body does not decode, or its encoding is not the canonical one.
    #[error("the control message is malformed")]
    Malformed,
    /// A list or a length is over its limit, or an address is none that packets can be sent to.
    #[error("the control message breaks a limit")]
    Limits,
    /// The record of a Hello is not valid.
    #[error("the record in the Hello is not valid: {0}")]
    Record(#[from] RecordError),
    /// The record of a Hello is not that of the packet's source address.
    #[error("the Hello carries the record of another agent")]
    ForeignRecord,
}

/// A Hello as it is encoded, with the record as bytes.
#[derive(Serialize, Deserialize)]
struct HelloBody<'a> {
    record: &'a [u8],
    consent: bool,
    alias_self: Option<Ipv4Addr>,
    alias_peer: Option<Ipv4Addr>,
    versions: VersionRange,
}

#[derive(Serialize, Deserialize)]
struct HelloAckBody {
    record_sequence: u64,
    consent: bool,
}

impl ControlPacket {
    /// Reads a whole IPv6 packet.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub fn parse(packet: &[u8]) -> Result<Self, ControlError> {
        // Each message type has its own limit, below; this one is that of a Probe.
        if packet.len() > usize::from(MAX_PROBE_LEN) {
            return Err(ControlError::TooLong(packet.len()));
        }
        let view = Ipv6Packet::new_checked(packet).map_err(|_| ControlError::NotControl)?;
        let (source, destination) = (view.src_addr(), view.dst_addr());
        let is_control = view.version() == 6
            && view.next_header() == IpProtocol::Unknown(CONTROL_NEXT_HEADER)
            && view.hop_limit() == HOP_LIMIT
            && view.total_len() == packet.len()
            && is_overlay(source)
            && is_overlay(destination);
        let Some(&[version, message_type, ref body @ ..]) = is_control.then_some(view.payload()) else {
            return Err(ControlError::NotControl);
        };
        if version != CONTROL_VERSION {
            return Err(ControlError::UnsupportedVersion(version));
        }
        if !is_control_len(packet) {
            return Err(ControlError::TooLong(packet.len()));
        }
        let message = ControlMessage::decode(message_type, body)?;
        if message.own_record().is_some_and(|record| overlay_ipv6(&record.id()) != source) {
            return Err(ControlError::ForeignRecord);
        }
        Ok(Self { source, destination, message })
    }

    /// The whole IPv6 packet.
    pub fn emit(&self) -> Vec<u8> {
        self.message.emit(self.source, self.destination)
    }
}

impl ControlMessage {
    /// The whole IPv6 packet that carries this message between two overlay addresses.
    pub fn emit(&self, source: Ipv6Addr, destination: Ipv6Addr) -> Vec<u8> {
        let (message_type, body) = self.encode();
        let payload_len = CONTROL_HEADER_LEN + body.len();
        let header = Ipv6Repr {
            src_addr: source,
            dst_addr: destination,
            next_header: IpProtocol::Unknown(CONTROL_NEXT_HEADER),
            payload_len,
            hop_limit: HOP_LIMIT,
        };
        let mut packet = vec![0; IPV6_HEADER_LEN];
        packet.reserve_exact(payload_len);
        header.emit(&mut Ipv6Packet::new_unchecked(packet.as_mut_slice()));
        packet.extend_from_slice(&[CONTROL_VERSION, message_type]);
        packet.extend_from_slice(&body);
        debug_assert!(packet.len() <= MAX_CONTROL_LEN || message_type == path::TYPE_PROBE);
        packet
    }

    /// The record by which the sender says who it is.
    fn own_record(&self) -> Option<&SignedRecord> {
        match self {
            Self::Hello(hello) => Some(&hello.record),
            Self::Rendezvous(RendezvousMessage::Register { record }) => Some(record),
            _ => None,
        }
    }

    fn encode(&self) -> (u8, Vec<u8>) {
        match self {
            Self::Hello(hello) => (
                TYPE_HELLO,
                encode_body(&HelloBody {
                    record: hello.record.as_bytes(),
                    consent: hello.consent,
                    alias_self: hello.alias_self,
                    alias_peer: hello.alias_peer,
                    versions: hello.versions,
                }),
            ),
            &Self::HelloAck { record_sequence, consent } => {
                (TYPE_HELLO_ACK, encode_body(&HelloAckBody { record_sequence, consent }))
            }
            Self::Ping { token } => (TYPE_PING, encode_body(token)),
            Self::Pong { token } => (TYPE_PONG, encode_body(token)),
            Self::Goodbye { reason } => (TYPE_GOODBYE, encode_body(reason)),
            Self::Clock { unix_ms } => (TYPE_CLOCK, encode_body(unix_ms)),
            Self::Rendezvous(message) => message.encode(),
            Self::Path(message) => message.encode(),
        }
    }

    fn decode(message_type: u8, body: &[u8]) -> Result<Self, ControlError> {
        let message = match message_type {
            TYPE_HELLO => {
                let hello: HelloBody<'_> = decode_body(body)?;
                if !hello.versions.is_valid() {
                    return Err(ControlError::Malformed);
                }
                Self::Hello(Hello {
                    record: SignedRecord::decode(hello.record)?,
                    consent: hello.consent,
                    alias_self: hello.alias_self,
                    alias_peer: hello.alias_peer,
                    versions: hello.versions,
                })
            }
            TYPE_HELLO_ACK => {
                let ack: HelloAckBody = decode_body(body)?;
                Self::HelloAck { record_sequence: ack.record_sequence, consent: ack.consent }
            }
            TYPE_PING => Self::Ping { token: decode_body(body)? },
            TYPE_PONG => Self::Pong { token: decode_body(body)? },
            TYPE_GOODBYE => Self::Goodbye { reason: decode_body(body)? },
            TYPE_CLOCK => Self::Clock { unix_ms: decode_body(body)? },
            // These check their own encoding.
            other if RENDEZVOUS_TYPES.contains(&other) => {
                return RendezvousMessage::decode(other, body).map(Self::Rendezvous);
            }
            other if PATH_TYPES.contains(&other) => return PathMessage::decode(other, body).map(Self::Path),
            other => return Err(ControlError::UnknownType(other)),
        };
        // Also catches what follows the last field, which the decoder ignores.
        if message.encode() != (message_type, body.to_vec()) {
            return Err(ControlError::Malformed);
        }
        Ok(message)
    }
}

fn encode_body(body: &impl Serialize) -> Vec<u8> {
    postcard::to_allocvec(body).expect("bodies have known lengths and no failing fields")
}

fn decode_body<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, ControlError> {
    postcard::from_bytes(body).map_err(|_| ControlError::Malformed)
}

/// Whether a control message of this type may be as long as `packet`.
#[must_use]
pub fn is_control_len(packet: &[u8]) -> bool {
    let is_probe = packet.get(IPV6_HEADER_LEN + 1) == Some(&path::TYPE_PROBE);
    packet.len() <= if is_probe { usize::from(MAX_PROBE_LEN) } else { MAX_CONTROL_LEN }
}

/// An address as it is written: IPv4 as IPv4, and without what means something on this host only.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod test_support {
    use std::net::{IpAddr, SocketAddr};

    use proptest::prelude::*;

    use crate::identity::ticket::is_usable_address;

    /// An address that packets can be sent to, in its only written form.
    pub(super) fn any_address() -> impl Strategy<Value = SocketAddr> {
        (any::<IpAddr>(), 1u16..)
            .prop_map(|(ip, port)| super::canonical(SocketAddr::new(ip, port)))
            .prop_filter("usable", is_usable_address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::MAX_RECORD_LEN;
    use crate::identity::record::tests::{key, record, signed};
    use crate::wire::{RELAY_PREFIX_LEN, WIREGUARD_OVERHEAD};
    use proptest::prelude::*;

    fn addresses() -> (Ipv6Addr, Ipv6Addr) {
        (overlay_ipv6(&key(1).id()), overlay_ipv6(&key(2).id()))
    }

    fn hello() -> ControlMessage {
        ControlMessage::Hello(Hello {
            record: signed(1),
            consent: true,
            alias_self: Some(Ipv4Addr::new(100, 64, 1, 2)),
            alias_peer: None,
            versions: VersionRange { min: 1, max: 2 },
        })
    }

    fn emit(message: &ControlMessage) -> Vec<u8> {
        let (source, destination) = addresses();
        message.emit(source, destination)
    }

    fn arbitrary_message() -> impl Strategy<Value = ControlMessage> {
        prop_oneof![
            Just(hello()),
            (any::<u64>(), any::<bool>())
                .prop_map(|(record_sequence, consent)| { ControlMessage::HelloAck { record_sequence, consent } }),
            any::<u64>().prop_map(|token| ControlMessage::Ping { token }),
            any::<u64>().prop_map(|token| ControlMessage::Pong { token }),
            Just(ControlMessage::Goodbye { reason: GoodbyeReason::Shutdown }),
            Just(ControlMessage::Goodbye { reason: GoodbyeReason::ConsentWithdrawn }),
            any::<u64>().prop_map(|unix_ms| ControlMessage::Clock { unix_ms }),
            (any::<u64>(), MIN_PROBE_LEN..=MAX_PROBE_LEN)
                .prop_map(|(token, length)| ControlMessage::Path(PathMessage::Probe { token, length })),
            (1u8..9).prop_map(|n| ControlMessage::Rendezvous(RendezvousMessage::Lookup { id: key(n).id() })),
        ]
    }

    #[test]
    fn header_is_exactly_that_of_the_table() {
        let (source, destination) = addresses();
        let packet = emit(&ControlMessage::Ping { token: 300 });
        assert_eq!(packet[..8], [0x60, 0, 0, 0, 0, 4, 253, 1]);
        assert_eq!(packet[8..24], source.octets());
        assert_eq!(packet[24..40], destination.octets());
        assert_eq!(packet[40..], [1, 3, 0xac, 0x02]);
    }

    #[test]
    fn newer_messages_are_told_apart_from_broken_ones() {
        let mut packet = emit(&ControlMessage::Ping { token: 1 });
        packet[41] = 77;
        assert_eq!(ControlPacket::parse(&packet), Err(ControlError::UnknownType(77)));
        packet[40] = 2;
        assert_eq!(ControlPacket::parse(&packet), Err(ControlError::UnsupportedVersion(2)));
    }

    #[test]
    fn other_packets_are_not_control() {
        let good = emit(&ControlMessage::Ping { token: 1 });
        let change = |position: usize, value: u8| {
            let mut packet = good.clone();
            packet[position] = value;
            ControlPacket::parse(&packet)
        };
        for (position, value) in [(0, 0x45), (5, 2), (5, 4), (6, 17), (7, 2), (8, 0xfe), (24, 0xfe)] {
            let result = change(position, value);
            assert_eq!(result, Err(ControlError::NotControl), "byte {position}");
        }
        assert_eq!(ControlPacket::parse(&good[..42]), Err(ControlError::NotControl));
        assert_eq!(ControlPacket::parse(&[0; 9001]), Err(ControlError::TooLong(9001)));
    }

    #[test]
    fn the_limit_fits_a_link_of_1280_bytes_through_a_relay() {
        assert_eq!(40 + 8 + RELAY_PREFIX_LEN + WIREGUARD_OVERHEAD + MAX_CONTROL_LEN, 1280);
    }

    #[test]
    fn only_a_probe_is_longer_than_others() {
        let probe = emit(&ControlMessage::Path(PathMessage::Probe { token: 1, length: MAX_PROBE_LEN }));
        assert_eq!(probe.len(), usize::from(MAX_PROBE_LEN));
        assert!(ControlPacket::parse(&probe).is_ok());
        for message_type in [TYPE_HELLO, 16, 34, 77] {
            let mut other = probe[..1185].to_vec();
            other[4..6].copy_from_slice(&1145u16.to_be_bytes());
            other[41] = message_type;
            assert_eq!(ControlPacket::parse(&other), Err(ControlError::TooLong(1185)));
        }
    }

    #[test]
    fn nobody_registers_somebody_else() {
        let message = ControlMessage::Rendezvous(RendezvousMessage::Register { record: signed(1) });
        let (source, destination) = addresses();
        assert!(ControlPacket::parse(&message.emit(source, destination)).is_ok());
        assert_eq!(ControlPacket::parse(&message.emit(destination, source)), Err(ControlError::ForeignRecord));
    }

    #[test]
    fn a_message_has_one_encoding() {
        let (source, destination) = addresses();
        let mut packet = ControlMessage::Ping { token: 1 }.emit(source, destination);
        packet.push(0);
        packet[5] += 1;
        assert_eq!(ControlPacket::parse(&packet), Err(ControlError::Malformed));
    }

    #[test]
    fn hello_speaks_for_its_sender_only() {
        let (source, destination) = addresses();
        let packet = hello().emit(destination, source);
        assert_eq!(ControlPacket::parse(&packet), Err(ControlError::ForeignRecord));
        let mut packet = hello().emit(source, destination);
        packet[44 + 40] ^= 1;
        assert!(matches!(ControlPacket::parse(&packet), Err(ControlError::Record(_))));
    }

    #[test]
    fn longest_hello_fits() {
        let mut long = record(1);
        long.capabilities = vec!["a".repeat(32); 16];
        long.rendezvous = vec![format!("{}@{}:1", key(4).id(), "a".repeat(115)).parse().unwrap(); 2];
        long.sequence = u64::MAX;
        let record = SignedRecord::sign(&key(1), long).unwrap();
        let record_len = record.as_bytes().len();
        assert!(record_len > 950);
        let packet = emit(&ControlMessage::Hello(Hello {
            record,
            consent: false,
            alias_self: Some(Ipv4Addr::LOCALHOST),
            alias_peer: Some(Ipv4Addr::LOCALHOST),
            versions: VersionRange { min: 1, max: 1 },
        }));
        assert!(packet.len() - record_len + MAX_RECORD_LEN <= MAX_CONTROL_LEN);
        assert!(ControlPacket::parse(&packet).is_ok());
    }

    proptest! {
        #[test]
        fn round_trip(message in arbitrary_message()) {
            let (source, destination) = addresses();
            let packet = message.emit(source, destination);
            let parsed = ControlPacket::parse(&packet).unwrap();
            prop_assert_eq!(parsed.emit(), packet);
            prop_assert_eq!(parsed, ControlPacket { source, destination, message });
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>, message_type in 0u8..8) {
            let _ = ControlPacket::parse(&bytes);
            let _ = ControlMessage::decode(message_type, &bytes);
        }
    }
}
