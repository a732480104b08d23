//! STUN: what address a datagram came from (RFC 8489), and how the NATs on the way behave (RFC 5780).
//!
//! | bytes | field | encoding |
//! |---|---|---|
//! | 0..2 | message type | 0001 binding request, 0101 success response, 0111 error response |
//! | 2..4 | length | u16, bytes after the header, a multiple of 4 |
//! | 4..8 | magic cookie | 2112a442 |
//! | 8..20 | transaction id | random |
//! | 20.. | attributes | each: type u16, length u16, value, 0 to 3 bytes up to a multiple of 4 |
//!
//! All big endian. Attributes that are written and read:
//!
//! | type | attribute | value | in |
//! |---|---|---|---|
//! | 0003 | CHANGE-REQUEST (RFC 5780, section 7.2) | u32: 4 change IP, 2 change port | request |
//! | 0009 | ERROR-CODE | u16 zero, class u8, number u8, text | error |
//! | 000a | UNKNOWN-ATTRIBUTES | types, u16 each | error |
//! | 0020 | XOR-MAPPED-ADDRESS | zero u8, family u8, port and address xored with cookie and transaction id | success |
//! | 8028 | FINGERPRINT | CRC-32 of everything before it, xored with 5354554e; always last | all |
//! | 802b | RESPONSE-ORIGIN (RFC 5780, section 7.3) | zero u8, family u8, port, address | success |
//! | 802c | OTHER-ADDRESS (RFC 5780, section 7.4) | as RESPONSE-ORIGIN | success |
//!
//! The server is a basic one (RFC 8489, section 12): it authenticates nobody, so the attributes of
//! RFC 8489 that belong to authentication are known and ignored. Any other attribute below 8000 is
//! unknown: a request with one is answered by error 420, a response with one is dropped (section
//! 6.3). PADDING and RESPONSE-PORT of RFC 5780 are among them. Of several attributes with one type
//! the first counts; what follows message integrity does not count (section 14.5).
//!
//! A server answers whoever a datagram claims to come from. What it adds is bounded: an answer is at
//! most [`MAX_GROWTH`] bytes longer than its request, which is 2.1 times as many bytes on the wire
//! over IPv6 (headers included) and less over IPv4, and never more than [`MAX_ANSWER_LEN`].

use std::net::{IpAddr, SocketAddr};

use stun_rs::attributes::discovery::ChangeRequestFlags::{ChangeIp, ChangePort};
use stun_rs::attributes::discovery::{ChangeRequest, OtherAddress, ResponseOrigin};
use stun_rs::attributes::stun::{ErrorCode, Fingerprint, UnknownAttributes, XorMappedAddress};
use stun_rs::methods::BINDING;
use stun_rs::{
    AttributeType, MessageClass, MessageDecoder, MessageEncoder, MessageType, StunMessage, StunMessageBuilder,
};

use super::{MAX_UNFRAGMENTED_PAYLOAD, STUN_HEADER_LEN, STUN_MAGIC_COOKIE};
use crate::identity::ticket::is_usable_address;

/// Transaction id in bytes (RFC 8489, section 5).
pub const TRANSACTION_LEN: usize = 12;

/// Longest request in bytes that is answered: what fits 576 bytes of IPv4 (RFC 8489, section 6.1)
/// less 20 of IPv4 and 8 of UDP header.
pub const MAX_REQUEST_LEN: usize = 548;

/// Longest response in bytes that is read.
pub const MAX_RESPONSE_LEN: usize = MAX_UNFRAGMENTED_PAYLOAD;

/// An answer is at most so many bytes longer than its request: three IPv6 addresses.
pub const MAX_GROWTH: usize = 3 * (ATTRIBUTE_HEADER_LEN + IPV6_VALUE_LEN);

/// Longest answer in bytes: error 420 that lists as many attributes as fit a request.
pub const MAX_ANSWER_LEN: usize = STUN_HEADER_LEN
    + ATTRIBUTE_HEADER_LEN
    + ERROR_VALUE_LEN
    + ATTRIBUTE_HEADER_LEN
    + 2 * ((MAX_REQUEST_LEN - STUN_HEADER_LEN) / ATTRIBUTE_HEADER_LEN)
    + FINGERPRINT_LEN;

const ATTRIBUTE_HEADER_LEN: usize = 4;
/// Value of an address attribute (RFC 8489, section 14.1), by family.
const IPV4_VALUE_LEN: usize = 8;
const IPV6_VALUE_LEN: usize = 20;
const FAMILY_IPV4: u8 = 1;
const FAMILY_IPV6: u8 = 2;
const CHANGE_REQUEST_VALUE_LEN: usize = 4;
/// The whole attribute FINGERPRINT (RFC 8489, section 14.7).
const FINGERPRINT_LEN: usize = 8;

/// Error "Unknown Attribute" (RFC 8489, section 14.8).
pub const UNKNOWN_ATTRIBUTE: u16 = 420;
const UNKNOWN_ATTRIBUTE_TEXT: &str = "Unknown Attribute";
/// Four bytes of code and the text, padded.
const ERROR_VALUE_LEN: usize = 4 + UNKNOWN_ATTRIBUTE_TEXT.len().next_multiple_of(4);

const CHANGE_REQUEST: u16 = 0x0003;
const MESSAGE_INTEGRITY: u16 = 0x0008;
const ERROR_CODE: u16 = 0x0009;
const UNKNOWN_ATTRIBUTES: u16 = 0x000a;
const MESSAGE_INTEGRITY_SHA256: u16 = 0x001c;
const XOR_MAPPED_ADDRESS: u16 = 0x0020;
const FINGERPRINT: u16 = 0x8028;
const RESPONSE_ORIGIN: u16 = 0x802b;
const OTHER_ADDRESS: u16 = 0x802c;

/// Attributes that are decoded.
const DECODED: [u16; 6] =
    [CHANGE_REQUEST, ERROR_CODE, UNKNOWN_ATTRIBUTES, XOR_MAPPED_ADDRESS, RESPONSE_ORIGIN, OTHER_ADDRESS];

/// Comprehension-required attributes that are known and mean nothing here (RFC 8489, section
/// 18.3.1): MAPPED-ADDRESS, USERNAME, both message integrities, REALM, NONCE, PASSWORD-ALGORITHM and
/// USERHASH.
const IGNORED: [u16; 8] = [0x0001, 0x0006, MESSAGE_INTEGRITY, 0x0014, 0x0015, MESSAGE_INTEGRITY_SHA256, 0x001d, 0x001e];

/// Identifies a transaction; random, so that nobody off the path can forge the answer.
pub type Transaction = [u8; TRANSACTION_LEN];

/// Where the answer shall come from instead of where the request went (RFC 5780, section 7.2).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Change {
    /// From the server's other IP address.
    pub ip: bool,
    /// From the server's other port.
    pub port: bool,
}

/// A binding request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BindingRequest {
    /// Given by the caller; random.
    pub transaction: Transaction,
    /// Asks for an answer from elsewhere. Without any change the attribute is not sent.
    pub change: Change,
    /// Whether to add FINGERPRINT; the answer then has one too.
    pub fingerprint: bool,
}

/// What a server says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BindingResponse {
    /// The request arrived.
    Success {
        /// Where it came from, as the server saw it.
        mapped: SocketAddr,
        /// The server's address that sent this.
        origin: Option<SocketAddr>,
        /// The server's address that would be used with both changes. It has the address of the
        /// server itself when only the port can change.
        other: Option<SocketAddr>,
    },
    /// The request was refused.
    Error {
        /// 300 to 699 (RFC 8489, section 14.8).
        code: u16,
        /// With code 420: attributes that the server does not know, or cannot do.
        unknown: Vec<u16>,
    },
}

/// The public addresses of a server in one address family: one or two IP addresses, with one or two
/// ports on each (RFC 5780, section 6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServerAddresses {
    primary: SocketAddr,
    alternate_ip: Option<IpAddr>,
    alternate_port: Option<u16>,
}

/// A datagram to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// From this one of the server's addresses.
    pub from: SocketAddr,
    /// To the request's source, in the form it was given.
    pub to: SocketAddr,
    /// The content, at most [`MAX_ANSWER_LEN`] bytes.
    pub datagram: Vec<u8>,
}

/// Why a datagram is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StunError {
    /// Header, cookie or length are not those of STUN.
    #[error("not a STUN message")]
    NotStun,
    /// Over [`MAX_REQUEST_LEN`] or [`MAX_RESPONSE_LEN`].
    #[error("the STUN message has {0} bytes, too many")]
    TooLong(usize),
    /// Of another method or class than is expected here.
    #[error("STUN message type {0:#06x} is not expected")]
    UnexpectedType(u16),
    /// Attributes overrun the message, or one of those that count does not decode or is missing.
    #[error("the STUN message is malformed")]
    Malformed,
    /// The fingerprint is wrong or not at the end.
    #[error("the STUN message's fingerprint is wrong")]
    Fingerprint,
    /// A response holds this attribute, which it requires to be understood.
    #[error("the STUN response requires attribute {0:#06x}, which is unknown")]
    UnknownAttribute(u16),
    /// The answer to something else.
    #[error("the STUN response belongs to another transaction")]
    OtherTransaction,
    /// Nothing can be sent to the source, or the request did not arrive at an address of the server.
    #[error("the STUN request came from or went to an address that is not served")]
    NotServed,
}

impl BindingRequest {
    /// The datagram: 20 bytes, 8 more with a change, 8 more with a fingerprint.
    pub fn emit(&self) -> Vec<u8> {
        let flags = match (self.change.ip, self.change.port) {
            (false, false) => None,
            (true, false) => Some(ChangeIp.into()),
            (false, true) => Some(ChangePort.into()),
            (true, true) => Some(ChangeIp | ChangePort),
        };
        let mut message = message(MessageClass::Request, &self.transaction);
        if flags.is_some() {
            message = message.with_attribute(ChangeRequest::new(flags));
        }
        encode(message, self.fingerprint)
    }
}

impl BindingResponse {
    /// Reads the answer to a request.
    ///
    /// # Errors
    /// See [`StunError`].
    pub fn parse(datagram: &[u8], transaction: &Transaction) -> Result<Self, StunError> {
        let frame =
            Frame::parse(datagram, MAX_RESPONSE_LEN, &[MessageClass::SuccessResponse, MessageClass::ErrorResponse])?;
        if frame.transaction != transaction {
            return Err(StunError::OtherTransaction);
        }
        if let Some(unknown) = frame.unknown().next() {
            return Err(StunError::UnknownAttribute(unknown));
        }
        let message = frame.decode()?;
        if frame.class == MessageClass::ErrorResponse {
            let code = message.get::<ErrorCode>().and_then(|attribute| attribute.as_error_code().ok());
            let unknown =
                message.get::<UnknownAttributes>().and_then(|attribute| attribute.as_unknown_attributes().ok());
            return Ok(Self::Error {
                code: code.ok_or(StunError::Malformed)?.error_code().error_code(),
                unknown: unknown.map(|list| list.attributes().to_vec()).unwrap_or_default(),
            });
        }
        let mapped = message.get::<XorMappedAddress>().and_then(|attribute| attribute.as_xor_mapped_address().ok());
        let origin = message.get::<ResponseOrigin>().and_then(|attribute| attribute.as_response_origin().ok());
        let other = message.get::<OtherAddress>().and_then(|attribute| attribute.as_other_address().ok());
        Ok(Self::Success {
            mapped: usable(*mapped.ok_or(StunError::Malformed)?.socket_address())?,
            origin: origin.map(|attribute| usable(*attribute.socket_address())).transpose()?,
            other: other.map(|attribute| usable(*attribute.socket_address())).transpose()?,
        })
    }
}

impl ServerAddresses {
    /// The addresses as clients see them. `None` if one cannot be sent from (unspecified, multicast,
    /// port 0), the IP addresses are of two families, or an alternative is the primary one.
    pub fn new(primary: SocketAddr, alternate_ip: Option<IpAddr>, alternate_port: Option<u16>) -> Option<Self> {
        let primary = canonical(primary);
        let alternate_ip = alternate_ip.map(|ip| ip.to_canonical());
        let addresses = Self { primary, alternate_ip, alternate_port };
        let same_family = alternate_ip.is_none_or(|ip| ip.is_ipv4() == primary.is_ipv4());
        let differ = alternate_ip != Some(primary.ip()) && alternate_port != Some(primary.port());
        (same_family && differ && addresses.iter().all(|address| is_usable_address(&address))).then_some(addresses)
    }

    /// All of them, one to four, the primary one first: a socket for each.
    pub fn iter(&self) -> impl Iterator<Item = SocketAddr> + use<> {
        let ips = [Some(self.primary.ip()), self.alternate_ip];
        let ports = [Some(self.primary.port()), self.alternate_port];
        ips.into_iter()
            .flatten()
            .flat_map(move |ip| ports.into_iter().flatten().map(move |port| SocketAddr::new(ip, port)))
    }

    /// The address that differs from one of the server's as asked; `None` if there is none.
    fn changed(&self, from: SocketAddr, change: Change) -> Option<SocketAddr> {
        let other_ip = if from.ip() == self.primary.ip() { self.alternate_ip } else { Some(self.primary.ip()) };
        let other_port =
            if from.port() == self.primary.port() { self.alternate_port } else { Some(self.primary.port()) };
        let ip = if change.ip { other_ip? } else { from.ip() };
        let port = if change.port { other_port? } else { from.port() };
        Some(SocketAddr::new(ip, port))
    }

    /// What OTHER-ADDRESS says: as much changed as the server can.
    fn other(&self, from: SocketAddr) -> Option<SocketAddr> {
        let change = Change { ip: self.alternate_ip.is_some(), port: self.alternate_port.is_some() };
        (change != Change::default()).then(|| self.changed(from, change)).flatten()
    }
}

/// Answers a datagram that arrived `at` one of the server's addresses. No state, no allocation that
/// grows with anything but the request.
///
/// # Errors
/// The request is dropped without an answer: see [`StunError`].
pub fn respond(
    request: &[u8],
    source: SocketAddr,
    at: SocketAddr,
    server: &ServerAddresses,
) -> Result<Answer, StunError> {
    let (mapped, at) = (canonical(source), canonical(at));
    let served = server.iter().any(|address| address == at);
    if !served || !is_usable_address(&mapped) || mapped.is_ipv4() != at.is_ipv4() {
        return Err(StunError::NotServed);
    }
    let frame = Frame::parse(request, MAX_REQUEST_LEN, &[MessageClass::Request])?;
    let refused = |unknown: UnknownAttributes| {
        let code = stun_rs::ErrorCode::new(UNKNOWN_ATTRIBUTE, UNKNOWN_ATTRIBUTE_TEXT).expect("420 is an error code");
        let answer = message(MessageClass::ErrorResponse, frame.transaction)
            .with_attribute(ErrorCode::from(code))
            .with_attribute(unknown);
        Answer { from: at, to: source, datagram: encode(answer, frame.fingerprint) }
    };
    let mut unknown = UnknownAttributes::default();
    frame.unknown().for_each(|attribute_type| unknown.add(attribute_type));
    if !unknown.attributes().is_empty() {
        return Ok(refused(unknown));
    }
    let Some(from) = server.changed(at, frame.change()?) else {
        // What the server cannot do counts as unknown (RFC 5780, section 6.1).
        unknown.add(CHANGE_REQUEST);
        return Ok(refused(unknown));
    };
    let mut answer = message(MessageClass::SuccessResponse, frame.transaction)
        .with_attribute(XorMappedAddress::from(mapped))
        .with_attribute(ResponseOrigin::from(from));
    if let Some(other) = server.other(at) {
        answer = answer.with_attribute(OtherAddress::from(other));
    }
    Ok(Answer { from, to: source, datagram: encode(answer, frame.fingerprint) })
}

/// A message whose structure was checked, with the attributes that count.
struct Frame<'a> {
    class: MessageClass,
    header: &'a [u8; STUN_HEADER_LEN],
    transaction: &'a Transaction,
    attributes: Vec<Attribute<'a>>,
    fingerprint: bool,
}

struct Attribute<'a> {
    attribute_type: u16,
    value: &'a [u8],
}

impl<'a> Frame<'a> {
    fn parse(datagram: &'a [u8], limit: usize, classes: &[MessageClass]) -> Result<Self, StunError> {
        let (header, rest) = datagram.split_first_chunk::<STUN_HEADER_LEN>().ok_or(StunError::NotStun)?;
        let [t0, t1, l0, l1, c0, c1, c2, c3, ..] = *header;
        let (message_type, length) = (u16::from_be_bytes([t0, t1]), u16::from_be_bytes([l0, l1]));
        let is_stun = message_type >> 14 == 0
            && [c0, c1, c2, c3] == STUN_MAGIC_COOKIE
            && rest.len() == usize::from(length)
            && rest.len().is_multiple_of(4);
        let transaction = header.last_chunk::<TRANSACTION_LEN>().filter(|_| is_stun).ok_or(StunError::NotStun)?;
        if datagram.len() > limit {
            return Err(StunError::TooLong(datagram.len()));
        }
        let class = classes.iter().find(|class| MessageType::new(BINDING, **class).as_u16() == message_type);
        let class = *class.ok_or(StunError::UnexpectedType(message_type))?;
        let mut frame = Self { class, header, transaction, attributes: Vec::new(), fingerprint: false };
        frame.parse_attributes(datagram, rest)?;
        Ok(frame)
    }

    fn parse_attributes(&mut self, datagram: &[u8], mut rest: &'a [u8]) -> Result<(), StunError> {
        let mut integrity = false;
        while let Some((&[t0, t1, l0, l1], after)) = rest.split_first_chunk::<ATTRIBUTE_HEADER_LEN>() {
            let (attribute_type, length) = (u16::from_be_bytes([t0, t1]), usize::from(u16::from_be_bytes([l0, l1])));
            let value = after.get(..length).ok_or(StunError::Malformed)?;
            rest = after.get(length.next_multiple_of(4)..).ok_or(StunError::Malformed)?;
            match attribute_type {
                FINGERPRINT => {
                    check_fingerprint(datagram, value, rest)?;
                    self.fingerprint = true;
                }
                _ if integrity => {}
                MESSAGE_INTEGRITY | MESSAGE_INTEGRITY_SHA256 => integrity = true,
                _ if self.value(attribute_type).is_some() => {}
                _ => self.attributes.push(Attribute { attribute_type, value }),
            }
        }
        Ok(())
    }

    fn value(&self, attribute_type: u16) -> Option<&'a [u8]> {
        self.attributes.iter().find(|attribute| attribute.attribute_type == attribute_type).map(|found| found.value)
    }

    /// Comprehension-required attributes that this program does not know.
    fn unknown(&self) -> impl Iterator<Item = u16> {
        let types = self.attributes.iter().map(|attribute| attribute.attribute_type);
        types.filter(|known| {
            AttributeType::new(*known).is_comprehension_required()
                && !DECODED.contains(known)
                && !IGNORED.contains(known)
        })
    }

    fn change(&self) -> Result<Change, StunError> {
        let message = self.decode()?;
        let flags = message.get::<ChangeRequest>().and_then(|attribute| attribute.as_change_request().ok());
        Ok(flags.map_or(Change::default(), |request| {
            let flags = request.flags();
            Change { ip: flags.contains(ChangeIp), port: flags.contains(ChangePort) }
        }))
    }

    /// Decodes the attributes that are used. The others are left out, because the decoder would look
    /// into them as well: it brings user names into Unicode normal form, and fails where it cannot.
    fn decode(&self) -> Result<StunMessage, StunError> {
        let mut message = self.header.to_vec();
        for attribute_type in DECODED {
            let Some(value) = self.value(attribute_type) else { continue };
            if !has_right_length(attribute_type, value) {
                return Err(StunError::Malformed);
            }
            message.extend_from_slice(&attribute_type.to_be_bytes());
            message.extend_from_slice(&(value.len() as u16).to_be_bytes());
            message.extend_from_slice(value);
            message.resize(message.len().next_multiple_of(4), 0);
        }
        let length = (message.len() - STUN_HEADER_LEN) as u16;
        let [_, _, l0, l1, ..] = message.as_mut_slice() else { return Err(StunError::NotStun) };
        [*l0, *l1] = length.to_be_bytes();
        let (message, _) = MessageDecoder::default().decode(&message).map_err(|_| StunError::Malformed)?;
        Ok(message)
    }
}

/// The decoder accepts values that are too long.
fn has_right_length(attribute_type: u16, value: &[u8]) -> bool {
    match attribute_type {
        CHANGE_REQUEST => value.len() == CHANGE_REQUEST_VALUE_LEN,
        XOR_MAPPED_ADDRESS | RESPONSE_ORIGIN | OTHER_ADDRESS => match value.get(1) {
            Some(&FAMILY_IPV4) => value.len() == IPV4_VALUE_LEN,
            Some(&FAMILY_IPV6) => value.len() == IPV6_VALUE_LEN,
            _ => false,
        },
        _ => true,
    }
}

fn check_fingerprint(datagram: &[u8], value: &[u8], rest: &[u8]) -> Result<(), StunError> {
    let value: &[u8; 4] = value.try_into().map_err(|_| StunError::Fingerprint)?;
    let covered = datagram.len().checked_sub(FINGERPRINT_LEN).and_then(|length| datagram.get(..length));
    let holds = rest.is_empty() && covered.is_some_and(|covered| Fingerprint::from(value).validate(covered));
    if holds { Ok(()) } else { Err(StunError::Fingerprint) }
}

fn message(class: MessageClass, transaction: &Transaction) -> StunMessageBuilder {
    StunMessageBuilder::new(BINDING, class).with_transaction_id(transaction.into())
}

fn encode(mut message: StunMessageBuilder, fingerprint: bool) -> Vec<u8> {
    if fingerprint {
        message = message.with_attribute(Fingerprint::default());
    }
    let mut datagram = vec![0; MAX_ANSWER_LEN];
    let length = MessageEncoder::default()
        .encode(&mut datagram, &message.build())
        .expect("no message written here is longer than the longest answer");
    datagram.truncate(length);
    datagram
}

/// IPv4 as IPv4, also on a socket for both families.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn usable(address: SocketAddr) -> Result<SocketAddr, StunError> {
    if is_usable_address(&address) { Ok(address) } else { Err(StunError::Malformed) }
}

#[cfg(test)]
#[path = "stun_tests.rs"]
mod tests;
