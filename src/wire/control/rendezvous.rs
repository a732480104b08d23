//! Control messages between a rendezvous server and its clients, and what an agent says that opens a
//! relay. Bodies in postcard, fields in this order:
//!
//! | type | message | from | body |
//! |---|---|---|---|
//! | 16 | Register | client | varint length and bytes of the client's signed record |
//! | 17 | Registered | server | observed address; for how many seconds, varint u32; relay, 0 or 1 |
//! | 18 | Lookup | client | id, 32 bytes |
//! | 19 | LookupResult | server | id, 32 bytes; record, 0, or 1 and varint length and bytes |
//! | 20 | Introduce | client | recipient, 32 bytes; varint length and bytes (1 to 1,108) of a sealed introduction |
//! | 21 | Introduced | server | recipient, 32 bytes; status: 0 delivered, 1 stored, 2 unknown, 3 full |
//! | 22 | Introduction | server | varint length and bytes (1 to 1,108) of a sealed introduction; observed address of its sender |
//! | 23 | RelayOpen | client | peer, 32 bytes; varint u64 channel; varint length and bytes (0 to 1,108 less 10) of the first payload |
//! | 24 | RelayOpened | server | peer, 32 bytes; varint u64 channel; 0, or 1 and refusal: 0 not offered, 1 unknown peer, 2 full |
//!
//! An address is 0, 4 bytes, varint port; or 1, 16 bytes, varint port. It is one that packets can be
//! sent to, and IPv4 stands as IPv4.
//!
//! Every message passes every path, as all control messages do.
//! A request is repeated by the client if no answer comes; each can be answered twice without harm.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::{CONTROL_HEADER_LEN, ControlError, IPV6_HEADER_LEN, MAX_CONTROL_LEN, canonical, decode_body, encode_body};
use crate::identity::ticket::is_usable_address;
use crate::identity::{AgentId, SignedRecord};
use crate::wire::relay::RelayChannel;

/// Message types of this file.
pub const RENDEZVOUS_TYPES: std::ops::RangeInclusive<u8> = TYPE_REGISTER..=TYPE_RELAY_OPENED;

/// Longest sealed introduction in bytes that a server carries: what an Introduce has room for.
pub const MAX_SEALED_LEN: usize =
    MAX_CONTROL_LEN - IPV6_HEADER_LEN - CONTROL_HEADER_LEN - AGENT_ID_LEN - SEALED_LENGTH_LEN;

/// Longest first payload of a relay channel in bytes: the room of an introduction less a channel.
pub const MAX_FIRST_LEN: usize = MAX_SEALED_LEN - 10;

const AGENT_ID_LEN: usize = 32;
/// A varint of 128 to 16,383.
const SEALED_LENGTH_LEN: usize = 2;

const TYPE_REGISTER: u8 = 16;
const TYPE_REGISTERED: u8 = 17;
const TYPE_LOOKUP: u8 = 18;
const TYPE_LOOKUP_RESULT: u8 = 19;
const TYPE_INTRODUCE: u8 = 20;
const TYPE_INTRODUCED: u8 = 21;
const TYPE_INTRODUCTION: u8 = 22;
const TYPE_RELAY_OPEN: u8 = 23;
const TYPE_RELAY_OPENED: u8 = 24;

/// What became of an introduction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum IntroducedStatus {
    /// Sent on to the recipient.
    Delivered,
    /// Kept until the recipient registers, or until it expires.
    Stored,
    /// The server does not know the recipient.
    Unknown,
    /// The server keeps as many as it can, for the recipient or from the sender.
    Full,
}

/// Why a relay gives no channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum RelayRefusal {
    /// The server does not relay.
    NotOffered,
    /// The peer has no session with the server.
    UnknownPeer,
    /// The server, or the client's share of it, is used up.
    Full,
}

/// A message between a rendezvous server and its client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RendezvousMessage {
    /// Here I am; my record for whoever looks me up.
    Register {
        /// The client's own record.
        record: SignedRecord,
    },
    /// You are registered.
    Registered {
        /// Where the client's session comes from, as the server sees it.
        observed: SocketAddr,
        /// Seconds until the registration ends, unless it is repeated.
        expires_s: u32,
        /// Whether the server relays.
        relay: bool,
    },
    /// Who is this?
    Lookup {
        /// The agent that is looked for.
        id: AgentId,
    },
    /// This is what the server knows of an agent. Where it is, the server does not tell: that is the agent's to say.
    LookupResult {
        /// The agent that was looked for.
        id: AgentId,
        /// Its record; `None` if the server has none.
        record: Option<SignedRecord>,
    },
    /// Please hand this on.
    Introduce {
        /// To whom.
        recipient: AgentId,
        /// An introduction datagram, 1 to [`MAX_SEALED_LEN`] bytes.
        sealed: Vec<u8>,
    },
    /// What became of an introduction.
    Introduced {
        /// To whom it was addressed.
        recipient: AgentId,
        /// What became of it.
        status: IntroducedStatus,
    },
    /// Somebody wants to be introduced.
    Introduction {
        /// An introduction datagram, 1 to [`MAX_SEALED_LEN`] bytes.
        sealed: Vec<u8>,
        /// Where the sender's session comes from, as the server sees it.
        observed: SocketAddr,
    },
    /// I want to reach this agent through you. Said again, it renews the channel.
    RelayOpen {
        /// The agent at the other end.
        peer: AgentId,
        /// The channel both ends will use, drawn at random by the client: waiting for the server to name one would cost
        /// a round trip.
        channel: RelayChannel,
        /// What to pass on at once, at most [`MAX_FIRST_LEN`] bytes; may be empty.
        first: Vec<u8>,
    },
    /// The answer to a RelayOpen.
    RelayOpened {
        /// The agent at the other end.
        peer: AgentId,
        /// The channel it was asked for.
        channel: RelayChannel,
        /// Whether relay frames pass on it now.
        outcome: Result<(), RelayRefusal>,
    },
}

impl RendezvousMessage {
    /// Whether the message keeps its limits. One that is read always does; ask before sending one
    /// that was made of what others gave.
    ///
    /// # Errors
    /// [`ControlError::Limits`].
    pub fn check(&self) -> Result<(), ControlError> {
        let sealed_fits = |sealed: &[u8]| (1..=MAX_SEALED_LEN).contains(&sealed.len());
        let kept = match self {
            Self::Registered { observed, .. } => is_usable_address(observed),
            Self::LookupResult { id, record } => record.as_ref().is_none_or(|record| record.id() == *id),
            Self::Introduce { sealed, .. } => sealed_fits(sealed),
            Self::Introduction { sealed, observed } => sealed_fits(sealed) && is_usable_address(observed),
            Self::RelayOpen { first, .. } => first.len() <= MAX_FIRST_LEN,
            Self::Register { .. } | Self::Lookup { .. } | Self::Introduced { .. } | Self::RelayOpened { .. } => true,
        };
        if kept { Ok(()) } else { Err(ControlError::Limits) }
    }

    /// Message type and body.
    pub fn encode(&self) -> (u8, Vec<u8>) {
        match self {
            Self::Register { record } => (TYPE_REGISTER, encode_body(&record.as_bytes())),
            &Self::Registered { observed, expires_s, relay } => {
                (TYPE_REGISTERED, encode_body(&(canonical(observed), expires_s, relay)))
            }
            Self::Lookup { id } => (TYPE_LOOKUP, encode_body(id)),
            Self::LookupResult { id, record } => {
                (TYPE_LOOKUP_RESULT, encode_body(&(id, record.as_ref().map(SignedRecord::as_bytes))))
            }
            Self::Introduce { recipient, sealed } => (TYPE_INTRODUCE, encode_body(&(recipient, sealed))),
            Self::Introduced { recipient, status } => (TYPE_INTRODUCED, encode_body(&(recipient, status))),
            Self::Introduction { sealed, observed } => {
                (TYPE_INTRODUCTION, encode_body(&(sealed, canonical(*observed))))
            }
            Self::RelayOpen { peer, channel, first } => (TYPE_RELAY_OPEN, encode_body(&(peer, channel, first))),
            Self::RelayOpened { peer, channel, outcome } => (TYPE_RELAY_OPENED, encode_body(&(peer, channel, outcome))),
        }
    }

    /// Reads a body.
    ///
    /// # Errors
    /// [`ControlError::UnknownType`] for a type outside [`RENDEZVOUS_TYPES`]; [`ControlError::TooLong`],
    /// [`ControlError::Malformed`], [`ControlError::Record`] or [`ControlError::Limits`].
    pub fn decode(message_type: u8, body: &[u8]) -> Result<Self, ControlError> {
        let length = IPV6_HEADER_LEN + CONTROL_HEADER_LEN + body.len();
        if length > MAX_CONTROL_LEN {
            return Err(ControlError::TooLong(length));
        }
        let message = Self::decode_fields(message_type, body)?;
        // Also catches what follows the last field, which the decoder ignores.
        if message.encode() != (message_type, body.to_vec()) {
            return Err(ControlError::Malformed);
        }
        message.check()?;
        Ok(message)
    }

    fn decode_fields(message_type: u8, body: &[u8]) -> Result<Self, ControlError> {
        Ok(match message_type {
            TYPE_REGISTER => Self::Register { record: SignedRecord::decode(decode_body(body)?)? },
            TYPE_REGISTERED => {
                let (observed, expires_s, relay) = decode_body(body)?;
                Self::Registered { observed, expires_s, relay }
            }
            TYPE_LOOKUP => Self::Lookup { id: decode_body(body)? },
            TYPE_LOOKUP_RESULT => {
                let (id, record): (AgentId, Option<&[u8]>) = decode_body(body)?;
                Self::LookupResult { id, record: record.map(SignedRecord::decode).transpose()? }
            }
            TYPE_INTRODUCE => {
                let (recipient, sealed): (AgentId, &[u8]) = decode_body(body)?;
                Self::Introduce { recipient, sealed: sealed.to_vec() }
            }
            TYPE_INTRODUCED => {
                let (recipient, status) = decode_body(body)?;
                Self::Introduced { recipient, status }
            }
            TYPE_INTRODUCTION => {
                let (sealed, observed): (&[u8], SocketAddr) = decode_body(body)?;
                Self::Introduction { sealed: sealed.to_vec(), observed }
            }
            TYPE_RELAY_OPEN => {
                let (peer, channel, first): (AgentId, RelayChannel, &[u8]) = decode_body(body)?;
                Self::RelayOpen { peer, channel, first: first.to_vec() }
            }
            TYPE_RELAY_OPENED => {
                let (peer, channel, outcome) = decode_body(body)?;
                Self::RelayOpened { peer, channel, outcome }
            }
            other => return Err(ControlError::UnknownType(other)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::record::tests::{key, record, signed};
    use crate::wire::control::test_support::any_address;
    use proptest::prelude::*;

    const HEADERS: usize = IPV6_HEADER_LEN + CONTROL_HEADER_LEN;

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn any_id() -> impl Strategy<Value = AgentId> {
        (1u8..9).prop_map(|number| key(number).id())
    }

    fn any_sealed() -> impl Strategy<Value = Vec<u8>> {
        proptest::collection::vec(any::<u8>(), 1..=MAX_SEALED_LEN)
    }

    fn any_message() -> impl Strategy<Value = RendezvousMessage> {
        use IntroducedStatus::{Delivered, Full, Stored, Unknown};
        let lookup_result = (1u8..9, any::<bool>());
        let refusal =
            prop_oneof![Just(RelayRefusal::NotOffered), Just(RelayRefusal::UnknownPeer), Just(RelayRefusal::Full)];
        let outcome = prop_oneof![Just(Ok(())), refusal.prop_map(Err)];
        let any_channel = || any::<u64>().prop_map(RelayChannel::new);
        let any_first = proptest::collection::vec(any::<u8>(), 0..=MAX_FIRST_LEN);
        prop_oneof![
            (1u8..9).prop_map(|number| RendezvousMessage::Register { record: signed(number) }),
            (any_address(), any::<u32>(), any::<bool>()).prop_map(|(observed, expires_s, relay)| {
                RendezvousMessage::Registered { observed, expires_s, relay }
            }),
            any_id().prop_map(|id| RendezvousMessage::Lookup { id }),
            lookup_result.prop_map(|(number, known)| RendezvousMessage::LookupResult {
                id: key(number).id(),
                record: known.then(|| signed(number)),
            }),
            (any_id(), any_sealed()).prop_map(|(recipient, sealed)| RendezvousMessage::Introduce { recipient, sealed }),
            (any_id(), proptest::sample::select(vec![Delivered, Stored, Unknown, Full]))
                .prop_map(|(recipient, status)| RendezvousMessage::Introduced { recipient, status }),
            (any_sealed(), any_address())
                .prop_map(|(sealed, observed)| RendezvousMessage::Introduction { sealed, observed }),
            (any_id(), any_channel(), any_first).prop_map(|(peer, channel, first)| RendezvousMessage::RelayOpen {
                peer,
                channel,
                first
            }),
            (any_id(), any_channel(), outcome).prop_map(|(peer, channel, outcome)| RendezvousMessage::RelayOpened {
                peer,
                channel,
                outcome
            }),
        ]
    }

    fn decoded(message: &RendezvousMessage) -> Result<RendezvousMessage, ControlError> {
        let (message_type, body) = message.encode();
        RendezvousMessage::decode(message_type, &body)
    }

    #[test]
    fn bodies_are_exactly_those_of_the_table() {
        let id = key(1).id();
        let observed = address("192.0.2.1:300");
        let channel = RelayChannel::new(300);
        let encoded = |message: RendezvousMessage| message.encode();
        let with_id = |rest: &[u8]| [id.as_bytes(), rest].concat();
        assert_eq!(
            encoded(RendezvousMessage::Registered { observed, expires_s: 300, relay: true }),
            (17, vec![0, 192, 0, 2, 1, 0xac, 2, 0xac, 2, 1])
        );
        assert_eq!(encoded(RendezvousMessage::Lookup { id }), (18, with_id(&[])));
        assert_eq!(encoded(RendezvousMessage::LookupResult { id, record: None }), (19, with_id(&[0])));
        assert_eq!(
            encoded(RendezvousMessage::Introduce { recipient: id, sealed: vec![7; 2] }),
            (20, with_id(&[2, 7, 7]))
        );
        assert_eq!(
            encoded(RendezvousMessage::Introduced { recipient: id, status: IntroducedStatus::Full }),
            (21, with_id(&[3]))
        );
        assert_eq!(
            encoded(RendezvousMessage::Introduction { sealed: vec![7; 2], observed }),
            (22, vec![2, 7, 7, 0, 192, 0, 2, 1, 0xac, 2])
        );
        assert_eq!(
            encoded(RendezvousMessage::RelayOpen { peer: id, channel, first: vec![7; 2] }),
            (23, with_id(&[0xac, 2, 2, 7, 7]))
        );
        assert_eq!(
            encoded(RendezvousMessage::RelayOpened { peer: id, channel, outcome: Ok(()) }),
            (24, with_id(&[0xac, 2, 0]))
        );
        assert_eq!(
            encoded(RendezvousMessage::RelayOpened { peer: id, channel, outcome: Err(RelayRefusal::Full) }),
            (24, with_id(&[0xac, 2, 1, 2]))
        );
    }

    #[test]
    fn the_longest_messages_pass_every_path() {
        let mut long = record(1);
        long.capabilities = vec!["a".repeat(32); 16];
        long.rendezvous = vec![format!("{}@{}:1", key(4).id(), "a".repeat(125)).parse().unwrap(); 2];
        let record = SignedRecord::sign(&key(1), long).unwrap();
        assert!(record.as_bytes().len() > 970);
        let id = key(1).id();
        let observed = address("[2001:db8::1]:65535");
        let sealed = vec![0; MAX_SEALED_LEN];
        for message in [
            RendezvousMessage::LookupResult { id, record: Some(record.clone()) },
            RendezvousMessage::Register { record },
            RendezvousMessage::Introduce { recipient: id, sealed: sealed.clone() },
            RendezvousMessage::Introduction { sealed, observed },
            RendezvousMessage::RelayOpen {
                peer: id,
                channel: RelayChannel::new(u64::MAX),
                first: vec![0; MAX_FIRST_LEN],
            },
        ] {
            let packet = HEADERS + message.encode().1.len();
            assert!(packet <= MAX_CONTROL_LEN, "{packet}");
            assert_eq!(decoded(&message), Ok(message));
        }
        assert_eq!(MAX_SEALED_LEN, 1108);
    }

    #[test]
    fn limits_hold_for_reading() {
        let id = key(1).id();
        let good = address("192.0.2.1:1");
        let broken = [
            RendezvousMessage::Registered { observed: address("0.0.0.0:1"), expires_s: 1, relay: false },
            RendezvousMessage::Registered { observed: address("192.0.2.1:0"), expires_s: 1, relay: false },
            RendezvousMessage::LookupResult { id, record: Some(signed(2)) },
            RendezvousMessage::Introduce { recipient: id, sealed: vec![] },
            RendezvousMessage::Introduction { sealed: vec![], observed: good },
            RendezvousMessage::Introduction { sealed: vec![0], observed: address("[::]:1") },
        ];
        for message in broken {
            assert_eq!(decoded(&message), Err(ControlError::Limits), "{message:?}");
        }
        let long = RendezvousMessage::Introduce { recipient: id, sealed: vec![0; MAX_SEALED_LEN + 1] };
        assert_eq!((long.check(), decoded(&long)), (Err(ControlError::Limits), Err(ControlError::TooLong(1185))));
        assert_eq!(RendezvousMessage::decode(18, &[0; 1143]), Err(ControlError::TooLong(1185)));
        assert_eq!(RendezvousMessage::decode(25, &[]), Err(ControlError::UnknownType(25)));
    }

    #[test]
    fn a_message_has_one_encoding() {
        let observed = address("[::ffff:192.0.2.1]:1");
        let message = RendezvousMessage::Registered { observed, expires_s: 1, relay: false };
        let read = RendezvousMessage::Registered { observed: address("192.0.2.1:1"), expires_s: 1, relay: false };
        assert_eq!(decoded(&message), Ok(read));
        let mut mapped = vec![1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 0, 2, 1, 1, 1, 0];
        assert_eq!(RendezvousMessage::decode(17, &mapped), Err(ControlError::Malformed));
        mapped[11] = 0xfe;
        assert!(RendezvousMessage::decode(17, &mapped).is_ok());
        mapped.push(0);
        assert_eq!(RendezvousMessage::decode(17, &mapped), Err(ControlError::Malformed));
        assert_eq!(
            RendezvousMessage::decode(21, &[&key(1).id().as_bytes()[..], &[4]].concat()),
            Err(ControlError::Malformed)
        );
    }

    #[test]
    fn records_are_verified() {
        let (message_type, mut body) = RendezvousMessage::Register { record: signed(1) }.encode();
        *body.last_mut().unwrap() ^= 1;
        assert!(matches!(RendezvousMessage::decode(message_type, &body), Err(ControlError::Record(_))));
    }

    proptest! {
        #[test]
        fn round_trip(message in any_message()) {
            prop_assert!(HEADERS + message.encode().1.len() <= MAX_CONTROL_LEN);
            prop_assert_eq!(message.check(), Ok(()));
            prop_assert_eq!(decoded(&message), Ok(message));
        }

        #[test]
        fn changed_bodies_never_panic_and_keep_limits(message in any_message(), at: prop::sample::Index, value: u8) {
            let (message_type, mut body) = message.encode();
            let at = at.index(body.len());
            body[at] = value;
            if let Ok(read) = RendezvousMessage::decode(message_type, &body) {
                prop_assert_eq!(read.check(), Ok(()));
                prop_assert_eq!(read.encode(), (message_type, body));
            }
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>, message_type in 15u8..26) {
            let _ = RendezvousMessage::decode(message_type, &bytes);
        }
    }
}
