//! Control messages about the paths between two agents: where each may be reached, and probes of a
//! single path. Bodies in postcard, fields in this order, unless it says otherwise:
//!
//! | type | message | body |
//! |---|---|---|
//! | 32 | Candidates | varint u64 sequence; varint count (at most 16), each: kind, address; mapping |
//! | 33 | Probe | token, u64 big endian; then zeros up to the length of the probe |
//! | 34 | ProbeReply | varint u64 token; observed address; received length, varint u16 |
//!
//! | kind | candidate (RFC 8445, section 5.1.1) |
//! |---|---|
//! | 0 | host |
//! | 1 | server-reflexive |
//! | 2 | peer-reflexive |
//! | 3, and the server's id, 32 bytes | relayed; the address is that of the server |
//! | 4 | port-mapped, by PCP, NAT-PMP or UPnP |
//!
//! | mapping | how the sender's NATs map (RFC 4787, section 4.1) |
//! |---|---|
//! | 0 | unknown |
//! | 1 | endpoint-independent, or no NAT |
//! | 2, zigzag varint i16 step | another port for every destination; the next is `step` above the last, 0: no pattern |
//!
//! An address is 0, 4 bytes, varint port; or 1, 16 bytes, varint port. It is one that packets can be
//! sent to, and IPv4 stands as IPv4.
//!
//! A probe is as long as the packet whose passage it proves. Lengths are those of the whole IPv6
//! packet in the tunnel, 50 to 9,000 bytes: the UDP payload on the path is 32 longer. It is the only
//! control message that can be longer than 1,184 bytes; its reply never is.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::{CONTROL_HEADER_LEN, ControlError, IPV6_HEADER_LEN, MAX_CONTROL_LEN, canonical, decode_body, encode_body};
use crate::identity::AgentId;
use crate::identity::ticket::is_usable_address;

/// Message types of this file.
pub const PATH_TYPES: std::ops::RangeInclusive<u8> = TYPE_CANDIDATES..=TYPE_PROBE_REPLY;

/// Most candidates of one agent.
pub const MAX_PATH_CANDIDATES: usize = 16;

/// Shortest probe in bytes, IPv6 header included: one without zeros.
pub const MIN_PROBE_LEN: u16 = (PROBE_OVERHEAD + PROBE_TOKEN_LEN) as u16;

/// Longest probe in bytes, IPv6 header included: a jumbo frame on Ethernet, the largest packet that
/// common links carry.
pub const MAX_PROBE_LEN: u16 = 9000;

const PROBE_OVERHEAD: usize = IPV6_HEADER_LEN + CONTROL_HEADER_LEN;
const PROBE_TOKEN_LEN: usize = 8;

const TYPE_CANDIDATES: u8 = 32;
pub(super) const TYPE_PROBE: u8 = 33;
const TYPE_PROBE_REPLY: u8 = 34;

/// How an address was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum CandidateKind {
    /// An address of an interface.
    Host,
    /// An address that a server saw.
    ServerReflexive,
    /// An address that a peer saw.
    PeerReflexive,
    /// A relay.
    Relayed {
        /// The rendezvous server that relays.
        server: AgentId,
    },
    /// An address that a router forwards on request.
    PortMapped,
}

/// Where an agent may be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Candidate {
    /// How it was found.
    pub kind: CandidateKind,
    /// The address; of a relay, the server's.
    pub address: SocketAddr,
}

/// How an agent's NATs map, all of them together, for IPv4 (RFC 4787, section 4.1).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Mapping {
    /// Not known yet.
    #[default]
    Unknown,
    /// One port for all destinations, or no NAT.
    EndpointIndependent,
    /// Another port for every destination.
    EndpointDependent {
        /// The next port is this much above the last; 0: no pattern.
        step: i16,
    },
}

/// A message about the paths between two agents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PathMessage {
    /// Where I may be reached; replaces what I said before.
    Candidates {
        /// Grows with every list; a lower one is late.
        sequence: u64,
        /// At most [`MAX_PATH_CANDIDATES`].
        candidates: Vec<Candidate>,
        /// How the sender's NATs map.
        mapping: Mapping,
    },
    /// Please answer on the path this arrived by.
    Probe {
        /// To be repeated in the answer; random.
        token: u64,
        /// Of the whole IPv6 packet, [`MIN_PROBE_LEN`] to [`MAX_PROBE_LEN`].
        length: u16,
    },
    /// The answer to a Probe.
    ProbeReply {
        /// The token of the Probe.
        token: u64,
        /// Where the Probe came from.
        observed: SocketAddr,
        /// The length of the Probe.
        received: u16,
    },
}

impl PathMessage {
    /// Whether the message keeps its limits. One that is read always does; ask before sending one
    /// that was made of what others gave.
    ///
    /// # Errors
    /// [`ControlError::Limits`].
    pub fn check(&self) -> Result<(), ControlError> {
        let is_probe_len = |length| (MIN_PROBE_LEN..=MAX_PROBE_LEN).contains(&length);
        let kept = match self {
            Self::Candidates { candidates, .. } => {
                candidates.len() <= MAX_PATH_CANDIDATES
                    && candidates.iter().all(|candidate| is_usable_address(&candidate.address))
            }
            &Self::Probe { length, .. } => is_probe_len(length),
            Self::ProbeReply { observed, received, .. } => is_usable_address(observed) && is_probe_len(*received),
        };
        if kept { Ok(()) } else { Err(ControlError::Limits) }
    }

    /// Message type and body.
    pub fn encode(&self) -> (u8, Vec<u8>) {
        match self {
            Self::Candidates { sequence, candidates, mapping } => {
                let written = |candidate: &Candidate| Candidate { address: canonical(candidate.address), ..*candidate };
                let candidates: Vec<Candidate> = candidates.iter().map(written).collect();
                (TYPE_CANDIDATES, encode_body(&(sequence, candidates, mapping)))
            }
            Self::Probe { token, length } => {
                let mut body = Vec::with_capacity(usize::from(*length));
                body.extend_from_slice(&token.to_be_bytes());
                body.resize(usize::from(*length).saturating_sub(PROBE_OVERHEAD).max(PROBE_TOKEN_LEN), 0);
                (TYPE_PROBE, body)
            }
            Self::ProbeReply { token, observed, received } => {
                (TYPE_PROBE_REPLY, encode_body(&(token, canonical(*observed), received)))
            }
        }
    }

    /// Reads a body.
    ///
    /// # Errors
    /// [`ControlError::UnknownType`] for a type outside [`PATH_TYPES`]; [`ControlError::TooLong`],
    /// [`ControlError::Malformed`] or [`ControlError::Limits`].
    pub fn decode(message_type: u8, body: &[u8]) -> Result<Self, ControlError> {
        let length = PROBE_OVERHEAD + body.len();
        let limit = if message_type == TYPE_PROBE { usize::from(MAX_PROBE_LEN) } else { MAX_CONTROL_LEN };
        if length > limit {
            return Err(ControlError::TooLong(length));
        }
        let message = match message_type {
            TYPE_CANDIDATES => {
                let (sequence, candidates, mapping) = decode_body(body)?;
                Self::Candidates { sequence, candidates, mapping }
            }
            TYPE_PROBE => return decode_probe(body, length),
            TYPE_PROBE_REPLY => {
                let (token, observed, received) = decode_body(body)?;
                Self::ProbeReply { token, observed, received }
            }
            other => return Err(ControlError::UnknownType(other)),
        };
        // Also catches what follows the last field, which the decoder ignores.
        if message.encode() != (message_type, body.to_vec()) {
            return Err(ControlError::Malformed);
        }
        message.check()?;
        Ok(message)
    }
}

fn decode_probe(body: &[u8], length: usize) -> Result<PathMessage, ControlError> {
    let (token, zeros) = body.split_first_chunk::<PROBE_TOKEN_LEN>().ok_or(ControlError::Malformed)?;
    let length = u16::try_from(length).map_err(|_| ControlError::TooLong(length))?;
    // What nobody reads must not carry anything.
    if zeros.iter().any(|byte| *byte != 0) {
        return Err(ControlError::Malformed);
    }
    Ok(PathMessage::Probe { token: u64::from_be_bytes(*token), length })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::record::tests::key;
    use crate::wire::control::test_support::any_address;
    use proptest::prelude::*;

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn any_kind() -> impl Strategy<Value = CandidateKind> {
        prop_oneof![
            Just(CandidateKind::Host),
            Just(CandidateKind::ServerReflexive),
            Just(CandidateKind::PeerReflexive),
            (1u8..9).prop_map(|number| CandidateKind::Relayed { server: key(number).id() }),
            Just(CandidateKind::PortMapped),
        ]
    }

    fn any_message() -> impl Strategy<Value = PathMessage> {
        let candidate = (any_kind(), any_address()).prop_map(|(kind, address)| Candidate { kind, address });
        let lengths = MIN_PROBE_LEN..=MAX_PROBE_LEN;
        let mapping = prop_oneof![
            Just(Mapping::Unknown),
            Just(Mapping::EndpointIndependent),
            any::<i16>().prop_map(|step| Mapping::EndpointDependent { step }),
        ];
        prop_oneof![
            (any::<u64>(), proptest::collection::vec(candidate, 0..=MAX_PATH_CANDIDATES), mapping)
                .prop_map(|(sequence, candidates, mapping)| PathMessage::Candidates { sequence, candidates, mapping }),
            (any::<u64>(), lengths.clone()).prop_map(|(token, length)| PathMessage::Probe { token, length }),
            (any::<u64>(), any_address(), lengths)
                .prop_map(|(token, observed, received)| { PathMessage::ProbeReply { token, observed, received } }),
        ]
    }

    fn decoded(message: &PathMessage) -> Result<PathMessage, ControlError> {
        let (message_type, body) = message.encode();
        PathMessage::decode(message_type, &body)
    }

    #[test]
    fn bodies_are_exactly_those_of_the_table() {
        let observed = address("192.0.2.1:300");
        let relayed = CandidateKind::Relayed { server: key(1).id() };
        let kinds = [
            CandidateKind::Host,
            CandidateKind::ServerReflexive,
            CandidateKind::PeerReflexive,
            relayed,
            CandidateKind::PortMapped,
        ];
        let candidates = kinds.map(|kind| Candidate { kind, address: observed }).to_vec();
        let mut body = vec![0xac, 2, 5];
        for number in 0..5 {
            body.push(number);
            if number == 3 {
                body.extend_from_slice(key(1).id().as_bytes());
            }
            body.extend_from_slice(&[0, 192, 0, 2, 1, 0xac, 2]);
        }
        body.extend_from_slice(&[2, 3]);
        let mapping = Mapping::EndpointDependent { step: -2 };
        assert_eq!(PathMessage::Candidates { sequence: 300, candidates, mapping }.encode(), (32, body));
        let probe = PathMessage::Probe { token: 0x0102_0304_0506_0708, length: 52 };
        assert_eq!(probe.encode(), (33, vec![1, 2, 3, 4, 5, 6, 7, 8, 0, 0]));
        let reply = PathMessage::ProbeReply { token: 300, observed, received: 1300 };
        assert_eq!(reply.encode(), (34, vec![0xac, 2, 0, 192, 0, 2, 1, 0xac, 2, 0x94, 0x0a]));
    }

    #[test]
    fn limits_hold_for_reading() {
        let good = Candidate { kind: CandidateKind::Host, address: address("192.0.2.1:1") };
        let broken = [
            PathMessage::Candidates { sequence: 1, candidates: vec![good; 17], mapping: Mapping::Unknown },
            PathMessage::Candidates {
                sequence: 1,
                candidates: vec![Candidate { address: address("192.0.2.1:0"), ..good }],
                mapping: Mapping::Unknown,
            },
            PathMessage::ProbeReply { token: 1, observed: address("[ff02::1]:1"), received: 100 },
            PathMessage::ProbeReply { token: 1, observed: good.address, received: 49 },
            PathMessage::ProbeReply { token: 1, observed: good.address, received: 9001 },
        ];
        for message in broken {
            assert_eq!(message.check(), Err(ControlError::Limits), "{message:?}");
            assert_eq!(decoded(&message), Err(ControlError::Limits), "{message:?}");
        }
        for length in [0, 49, 9001] {
            assert_eq!(PathMessage::Probe { token: 1, length }.check(), Err(ControlError::Limits));
        }
        assert_eq!(PathMessage::decode(33, &[0; 8959]), Err(ControlError::TooLong(9001)));
        assert_eq!(PathMessage::decode(33, &[0; 7]), Err(ControlError::Malformed));
        assert_eq!(PathMessage::decode(34, &[0; 1143]), Err(ControlError::TooLong(1185)));
        assert_eq!(PathMessage::decode(35, &[]), Err(ControlError::UnknownType(35)));
    }

    #[test]
    fn the_longest_candidates_pass_every_path() {
        let kind = CandidateKind::Relayed { server: key(1).id() };
        let longest = Candidate { kind, address: address("[2001:db8::1]:65535") };
        let message = PathMessage::Candidates {
            sequence: u64::MAX,
            candidates: vec![longest; MAX_PATH_CANDIDATES],
            mapping: Mapping::EndpointDependent { step: i16::MIN },
        };
        assert!(PROBE_OVERHEAD + message.encode().1.len() <= MAX_CONTROL_LEN);
        assert_eq!(decoded(&message), Ok(message));
    }

    #[test]
    fn a_probe_carries_nothing_but_its_token() {
        let (message_type, body) = PathMessage::Probe { token: 7, length: 9000 }.encode();
        assert_eq!(PROBE_OVERHEAD + body.len(), 9000);
        for position in [8, 100, body.len() - 1] {
            let mut changed = body.clone();
            changed[position] = 1;
            assert_eq!(PathMessage::decode(message_type, &changed), Err(ControlError::Malformed));
        }
        assert_eq!(PathMessage::decode(message_type, &body), Ok(PathMessage::Probe { token: 7, length: 9000 }));
    }

    proptest! {
        #[test]
        fn round_trip(message in any_message()) {
            prop_assert_eq!(message.check(), Ok(()));
            prop_assert_eq!(decoded(&message), Ok(message));
        }

        #[test]
        fn changed_bodies_never_panic_and_keep_limits(message in any_message(), at: prop::sample::Index, value: u8) {
            let (message_type, mut body) = message.encode();
            let at = at.index(body.len());
            body[at] = value;
            if let Ok(read) = PathMessage::decode(message_type, &body) {
                prop_assert_eq!(read.check(), Ok(()));
                prop_assert_eq!(read.encode(), (message_type, body));
            }
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>, message_type in 31u8..36) {
            let _ = PathMessage::decode(message_type, &bytes);
        }
    }
}
