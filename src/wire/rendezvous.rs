//! Asking a rendezvous server for its record, before there is a session with it.
//!
//! The request:
//!
//! | bytes | field | encoding |
//! |---|---|---|
//! | 0..3 | magic | `agn` |
//! | 3 | frame type | 3 |
//! | 4 | frame version | 1 |
//! | 5..8 | zero | |
//! | 8..24 | transaction | random |
//! | 24..1024 | zero | as long as the longest answer, so that a forged source gains nothing |
//!
//! The answer:
//!
//! | bytes | field | encoding |
//! |---|---|---|
//! | 0..3 | magic | `agn` |
//! | 3 | frame type | 4 |
//! | 4 | frame version | 1 |
//! | 5..8 | zero | |
//! | 8..24 | transaction | that of the request |
//! | 24.. | record | the server's signed record, 1 to 1,000 bytes |
//!
//! An agent that is not a rendezvous server never answers: its record is for those it knows. The
//! client compares the transaction first, then reads the record, whose signature costs more, and
//! then compares its id with that of the server it asked for.

use super::{FRAME_HEADER_LEN, FRAME_RECORD_ANSWER, FRAME_RECORD_REQUEST, FRAME_VERSION, frame_header};
use crate::identity::{MAX_RECORD_LEN, RecordError, SignedRecord};

/// Transaction of a record request in bytes: nobody off the path guesses 128 bits.
pub const RECORD_TRANSACTION_LEN: usize = 16;

/// Length of a record request in bytes, and of the longest answer.
pub const RECORD_REQUEST_LEN: usize = RECORD_PREFIX_LEN + MAX_RECORD_LEN;

const RECORD_PREFIX_LEN: usize = FRAME_HEADER_LEN + RECORD_TRANSACTION_LEN;

/// A request for the record of whoever receives it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordRequest {
    /// Repeated in the answer; random, given by the caller.
    pub transaction: [u8; RECORD_TRANSACTION_LEN],
}

/// The answer to a record request, borrowed from the datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordAnswer<'a> {
    /// That of the request. Compare it before anything else.
    pub transaction: [u8; RECORD_TRANSACTION_LEN],
    record: &'a [u8],
}

/// Why a datagram is not a record request or not an answer to one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RecordFrameError {
    /// Not a frame of this type.
    #[error("not a record request or answer")]
    NotRecordFrame,
    /// Of a later version.
    #[error("the frame has version {0}, this agentnet reads version {FRAME_VERSION}")]
    UnsupportedVersion(u8),
    /// A request of another length than [`RECORD_REQUEST_LEN`], or an answer that is longer or empty.
    #[error("the frame has {0} bytes, which is not allowed")]
    Length(usize),
    /// The filling of a request is not zero.
    #[error("the frame is malformed")]
    Malformed,
}

impl RecordRequest {
    /// Reads a datagram.
    ///
    /// # Errors
    /// See [`RecordFrameError`].
    pub fn parse(datagram: &[u8]) -> Result<Self, RecordFrameError> {
        let (transaction, filling) = parse_prefix(datagram, FRAME_RECORD_REQUEST)?;
        if datagram.len() != RECORD_REQUEST_LEN {
            return Err(RecordFrameError::Length(datagram.len()));
        }
        if filling.iter().any(|byte| *byte != 0) {
            return Err(RecordFrameError::Malformed);
        }
        Ok(Self { transaction })
    }

    /// The datagram.
    pub fn emit(&self) -> Vec<u8> {
        let mut datagram = emit_prefix(FRAME_RECORD_REQUEST, self.transaction);
        datagram.resize(RECORD_REQUEST_LEN, 0);
        datagram
    }

    /// The datagram that answers it, never longer than the request.
    pub fn answer(&self, own: &SignedRecord) -> Vec<u8> {
        let mut datagram = emit_prefix(FRAME_RECORD_ANSWER, self.transaction);
        datagram.extend_from_slice(own.as_bytes());
        datagram
    }
}

impl<'a> RecordAnswer<'a> {
    /// Reads a datagram, but not yet the record in it.
    ///
    /// # Errors
    /// See [`RecordFrameError`].
    pub fn parse(datagram: &'a [u8]) -> Result<Self, RecordFrameError> {
        let (transaction, record) = parse_prefix(datagram, FRAME_RECORD_ANSWER)?;
        if record.is_empty() || record.len() > MAX_RECORD_LEN {
            return Err(RecordFrameError::Length(datagram.len()));
        }
        Ok(Self { transaction, record })
    }

    /// The record, after its signature and limits were checked. The caller looks at id and expiry.
    ///
    /// # Errors
    /// See [`RecordError`].
    pub fn record(&self) -> Result<SignedRecord, RecordError> {
        SignedRecord::decode(self.record)
    }
}

fn parse_prefix(datagram: &[u8], expected_type: u8) -> Result<([u8; RECORD_TRANSACTION_LEN], &[u8]), RecordFrameError> {
    let (prefix, rest) = datagram.split_first_chunk::<RECORD_PREFIX_LEN>().ok_or(RecordFrameError::NotRecordFrame)?;
    let [m0, m1, m2, frame_type, version, z0, z1, z2, transaction @ ..] = *prefix;
    if !frame_header(expected_type).starts_with(&[m0, m1, m2, frame_type]) || [z0, z1, z2] != [0; 3] {
        return Err(RecordFrameError::NotRecordFrame);
    }
    if version != FRAME_VERSION {
        return Err(RecordFrameError::UnsupportedVersion(version));
    }
    Ok((transaction, rest))
}

fn emit_prefix(frame_type: u8, transaction: [u8; RECORD_TRANSACTION_LEN]) -> Vec<u8> {
    let mut datagram = Vec::with_capacity(RECORD_REQUEST_LEN);
    datagram.extend_from_slice(&frame_header(frame_type));
    datagram.extend_from_slice(&transaction);
    datagram
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::record::tests::{key, record, signed};
    use crate::wire::MAX_UNFRAGMENTED_PAYLOAD;
    use proptest::prelude::*;

    const REQUEST: RecordRequest = RecordRequest { transaction: [7; 16] };

    #[test]
    fn layout_is_that_of_the_table() {
        let request = REQUEST.emit();
        assert_eq!(request[..8], *b"agn\x03\x01\0\0\0");
        assert_eq!((&request[8..24], &request[24..]), ([7; 16].as_slice(), [0; 1000].as_slice()));
        let answer = REQUEST.answer(&signed(1));
        assert_eq!(answer[..8], *b"agn\x04\x01\0\0\0");
        assert_eq!((&answer[8..24], &answer[24..]), ([7; 16].as_slice(), signed(1).as_bytes()));
    }

    #[test]
    fn the_longest_answer_is_no_longer_than_the_request() {
        let mut long = record(1);
        long.capabilities = vec!["a".repeat(32); 16];
        long.rendezvous = vec![format!("{}@{}:1", key(4).id(), "a".repeat(125)).parse().unwrap(); 2];
        let long = SignedRecord::sign(&key(1), long).unwrap();
        assert!(long.as_bytes().len() > 970);
        assert!(REQUEST.answer(&long).len() <= REQUEST.emit().len());
        const { assert!(RECORD_REQUEST_LEN == 1024 && RECORD_REQUEST_LEN <= MAX_UNFRAGMENTED_PAYLOAD) };
    }

    #[test]
    fn requests_that_could_amplify_or_hide_something_are_dropped() {
        let good = REQUEST.emit();
        assert_eq!(RecordRequest::parse(&good[..1023]), Err(RecordFrameError::Length(1023)));
        assert_eq!(RecordRequest::parse(&[good.as_slice(), &[0]].concat()), Err(RecordFrameError::Length(1025)));
        assert_eq!(RecordRequest::parse(&good[..23]), Err(RecordFrameError::NotRecordFrame));
        let change = |position: usize, value: u8| {
            let mut datagram = good.clone();
            datagram[position] = value;
            RecordRequest::parse(&datagram)
        };
        for (position, value) in [(0, b'b'), (1, 0), (2, 0), (3, 4), (5, 1), (6, 1), (7, 1)] {
            assert_eq!(change(position, value), Err(RecordFrameError::NotRecordFrame), "byte {position}");
        }
        assert_eq!(change(4, 2), Err(RecordFrameError::UnsupportedVersion(2)));
        assert_eq!(change(24, 1), Err(RecordFrameError::Malformed));
        assert_eq!(change(1023, 1), Err(RecordFrameError::Malformed));
    }

    #[test]
    fn broken_answers() {
        let good = REQUEST.answer(&signed(1));
        assert_eq!(RecordAnswer::parse(&good[..24]), Err(RecordFrameError::Length(24)));
        assert_eq!(RecordAnswer::parse(&REQUEST.emit()), Err(RecordFrameError::NotRecordFrame));
        let long = [&good[..24], &[1; 1001]].concat();
        assert_eq!(RecordAnswer::parse(&long), Err(RecordFrameError::Length(1025)));
        let mut forged = good.clone();
        *forged.last_mut().unwrap() ^= 1;
        let answer = RecordAnswer::parse(&forged).unwrap();
        assert_eq!((answer.transaction, answer.record()), ([7; 16], Err(RecordError::Signature)));
    }

    proptest! {
        #[test]
        fn round_trip(transaction: [u8; 16], agent in 1u8..20) {
            let request = RecordRequest { transaction };
            prop_assert_eq!(RecordRequest::parse(&request.emit()), Ok(request));
            let datagram = request.answer(&signed(agent));
            let answer = RecordAnswer::parse(&datagram).unwrap();
            prop_assert_eq!((answer.transaction, answer.record()), (transaction, Ok(signed(agent))));
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            for frame_type in [FRAME_RECORD_REQUEST, FRAME_RECORD_ANSWER] {
                for datagram in [bytes.clone(), [&frame_header(frame_type), bytes.as_slice()].concat()] {
                    let _ = RecordRequest::parse(&datagram);
                    let _ = RecordAnswer::parse(&datagram).map(|answer| answer.record());
                }
            }
        }
    }
}
