//! The ticket: one line of text with everything needed to contact an agent.
//!
//! `agentnet` + format version `1` + z-base-32 of:
//!
//! | bytes | field | encoding |
//! |---|---|---|
//! | 0.. | record | varint length and bytes of a signed record |
//! | | addresses | varint count (at most 8), each: 0, 4 bytes, varint port; or 1, 16 bytes, varint port |
//! | last 4 | checksum | first bytes of SHA-256("agentnet ticket v1" \|\| everything before it) |
//!
//! The addresses are hints: they are not signed, and only a session with the record's key proves
//! who is behind them.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::record::{MAX_RECORD_LEN, RecordError, SignedRecord};
use super::{TEXT_CHECKSUM_LEN, decode_z32, text_checksum};

/// Most addresses in a ticket.
pub const MAX_TICKET_ADDRESSES: usize = 8;

/// Longest ticket in characters: the longest record and eight IPv6 addresses, in z-base-32, with
/// room to spare.
pub const MAX_TICKET_LEN: usize = 2048;

const TAG: &str = "agentnet";
const VERSION: char = '1';
const CHECKSUM_LABEL: &str = "agentnet ticket v1";

/// How to contact an agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ticket {
    record: SignedRecord,
    addresses: Vec<SocketAddr>,
}

/// Why a text is not a usable ticket.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TicketError {
    /// It does not look like a ticket at all.
    #[error("this is not an agentnet ticket; a ticket is one line that begins with {TAG}{VERSION}")]
    NotATicket,
    /// A ticket of a later agentnet.
    #[error("the ticket has version {0}, this agentnet reads version {VERSION}; upgrade agentnet")]
    UnsupportedVersion(char),
    /// The end is missing.
    #[error("the ticket is cut off; copy the whole line, to its last character")]
    Truncated,
    /// Characters were changed, added or lost.
    #[error("the ticket is damaged (its checksum does not match); copy the whole line again")]
    Damaged,
    /// The record inside is not valid.
    #[error("the ticket's record is not valid: {0}; ask for a new ticket")]
    Record(RecordError),
    /// An address that no packet can be sent to, or too many addresses.
    #[error(
        "the ticket holds an unusable address, or more than {MAX_TICKET_ADDRESSES}; \
         ask for a new ticket"
    )]
    Addresses,
}

#[derive(Serialize, Deserialize)]
struct Payload<'a> {
    record: &'a [u8],
    addresses: Vec<SocketAddr>,
}

impl Ticket {
    /// Makes a ticket.
    ///
    /// # Errors
    /// [`TicketError::Addresses`] for more than [`MAX_TICKET_ADDRESSES`] or an unusable one
    /// (see [`is_usable_address`]).
    pub fn new(record: SignedRecord, addresses: Vec<SocketAddr>) -> Result<Self, TicketError> {
        let addresses: Vec<_> = addresses.into_iter().map(without_scope).collect();
        if addresses.len() > MAX_TICKET_ADDRESSES || !addresses.iter().all(is_usable_address) {
            return Err(TicketError::Addresses);
        }
        Ok(Self { record, addresses })
    }

    /// The agent's record.
    pub fn record(&self) -> &SignedRecord {
        &self.record
    }

    /// Where the agent may be reached without help.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }
}

/// Whether a peer's transport address can be sent to: not unspecified, multicast or broadcast
/// (also in IPv4-mapped form), and not port 0.
pub fn is_usable_address(address: &SocketAddr) -> bool {
    let ip = address.ip().to_canonical();
    let broadcast = matches!(ip, std::net::IpAddr::V4(ip) if ip.is_broadcast());
    address.port() != 0 && !ip.is_unspecified() && !ip.is_multicast() && !broadcast
}

/// An address as another host can use it: scope and flow label mean something on this host only.
pub(crate) fn without_scope(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip(), address.port())
}

impl fmt::Display for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let payload = Payload { record: self.record.as_bytes(), addresses: self.addresses.clone() };
        let mut bytes = postcard::to_allocvec(&payload).map_err(|_| fmt::Error)?;
        let checksum = text_checksum(CHECKSUM_LABEL, &bytes);
        bytes.extend_from_slice(&checksum);
        write!(f, "{TAG}{VERSION}{}", z32::encode(&bytes))
    }
}

impl FromStr for Ticket {
    type Err = TicketError;

    fn from_str(text: &str) -> Result<Self, TicketError> {
        let text = text.trim();
        let mut rest =
            text.strip_prefix(TAG).filter(|_| text.len() <= MAX_TICKET_LEN).ok_or(TicketError::NotATicket)?.chars();
        match rest.next() {
            Some(VERSION) => {}
            Some(other) if other.is_ascii_digit() => {
                return Err(TicketError::UnsupportedVersion(other));
            }
            _ => return Err(TicketError::NotATicket),
        }
        decode_payload(rest.as_str().as_bytes())
    }
}

fn decode_payload(encoded: &[u8]) -> Result<Ticket, TicketError> {
    // A text cut off in the middle of a byte has left-over bits: the plain decoder drops them, and
    // what is cut off is found below, as it is for a text cut off between two bytes.
    let bytes = z32::decode(encoded).map_err(|_| TicketError::Damaged)?;
    let (payload, rest) = match postcard::take_from_bytes::<Payload<'_>>(&bytes) {
        Ok(decoded) => decoded,
        Err(postcard::Error::DeserializeUnexpectedEnd) => return Err(TicketError::Truncated),
        Err(_) => return Err(TicketError::Damaged),
    };
    if rest.len() < TEXT_CHECKSUM_LEN {
        return Err(TicketError::Truncated);
    }
    let (covered, checksum) = bytes.split_last_chunk::<TEXT_CHECKSUM_LEN>().ok_or(TicketError::Truncated)?;
    let intact = rest.len() == TEXT_CHECKSUM_LEN
        && text_checksum(CHECKSUM_LABEL, covered) == *checksum
        && decode_z32(encoded).is_some();
    if !intact || payload.record.len() > MAX_RECORD_LEN {
        return Err(TicketError::Damaged);
    }
    let record = SignedRecord::decode(payload.record).map_err(TicketError::Record)?;
    let ticket = Ticket::new(record, payload.addresses)?;
    Ok(ticket)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::record::tests::signed;
    use proptest::prelude::*;

    fn ticket() -> Ticket {
        let addresses = vec!["192.0.2.1:4500".parse().unwrap(), "[2001:db8::1]:4500".parse().unwrap()];
        Ticket::new(signed(1), addresses).unwrap()
    }

    fn fails(text: &str) -> TicketError {
        text.parse::<Ticket>().unwrap_err()
    }

    #[test]
    fn every_kind_of_failure_has_its_own_error() {
        let text = ticket().to_string();
        assert_eq!(format!(" \t{text}\r\n").parse(), Ok(ticket()));
        assert_eq!(fails(""), TicketError::NotATicket);
        assert_eq!(fails("hello"), TicketError::NotATicket);
        assert_eq!(fails("agentnetx"), TicketError::NotATicket);
        assert_eq!(fails(&"agentnet1".repeat(300)), TicketError::NotATicket);
        assert_eq!(fails(&text.replacen('1', "2", 1)), TicketError::UnsupportedVersion('2'));
        assert_eq!(fails("agentnet1"), TicketError::Truncated);
        assert_eq!(fails(&format!("{text}y")), TicketError::Damaged);
        assert_eq!(fails(&format!("{text}yyyy")), TicketError::Damaged);
        assert_eq!(fails(&format!("agentnet1{}", "l".repeat(60))), TicketError::Damaged);
    }

    #[test]
    fn every_cut_is_called_a_cut() {
        let text = ticket().to_string();
        for length in TAG.len() + 1..text.len() {
            assert_eq!(fails(&text[..length]), TicketError::Truncated, "{length}");
        }
    }

    #[test]
    fn every_wrong_character_is_noticed() {
        let text = ticket().to_string();
        for position in TAG.len() + 1..text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[position] = if bytes[position] == b'y' { b'b' } else { b'y' };
            let changed = String::from_utf8(bytes).unwrap();
            assert!(changed.parse::<Ticket>().is_err(), "{position}");
        }
    }

    #[test]
    fn forged_record_inside_an_intact_ticket() {
        let mut record = signed(1).as_bytes().to_vec();
        let last = record.len() - 1;
        record[last] ^= 1;
        let mut bytes = postcard::to_allocvec(&Payload { record: &record, addresses: vec![] }).unwrap();
        let checksum = text_checksum(CHECKSUM_LABEL, &bytes);
        bytes.extend_from_slice(&checksum);
        assert_eq!(fails(&format!("agentnet1{}", z32::encode(&bytes))), TicketError::Record(RecordError::Signature));
    }

    #[test]
    fn unusable_addresses_are_refused() {
        for address in [
            "0.0.0.0:1",
            "224.0.0.1:1",
            "255.255.255.255:1",
            "192.0.2.1:0",
            "[::]:1",
            "[ff02::1]:1",
            "[::ffff:0.0.0.0]:1",
        ] {
            let addresses = vec![address.parse().unwrap()];
            assert_eq!(Ticket::new(signed(1), addresses), Err(TicketError::Addresses), "{address}");
        }
        let nine = vec!["192.0.2.1:1".parse().unwrap(); 9];
        assert_eq!(Ticket::new(signed(1), nine), Err(TicketError::Addresses));
    }

    proptest! {
        #[test]
        fn round_trip(addresses in proptest::collection::vec(any::<SocketAddr>(), 0..=8)) {
            if let Ok(ticket) = Ticket::new(signed(1), addresses) {
                let text = ticket.to_string();
                prop_assert!(text.len() <= MAX_TICKET_LEN);
                prop_assert_eq!(text.parse(), Ok(ticket));
            }
        }

        #[test]
        fn arbitrary_text_never_panics(text: String, bytes: Vec<u8>) {
            let _ = text.parse::<Ticket>();
            let _ = format!("agentnet1{}", z32::encode(&bytes)).parse::<Ticket>();
        }
    }
}
