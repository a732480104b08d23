//! What is kept of a peer across restarts.
//!
//! One row per peer: a version byte, then postcard. The record's bytes stay as they were signed.

use std::net::{Ipv4Addr, SocketAddr};

use serde::{Deserialize, Serialize};

use super::peer::{RecordSource, TheirAliases};
use crate::identity::{AgentId, RecordError, SignedRecord, TunnelPublic};
use crate::trust::Relation;
use crate::tunnel::Initiation;

/// Version of the row format.
const VERSION: u8 = 1;

/// One peer as it is stored.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredPeer {
    /// Its record.
    pub record: SignedRecord,
    /// Where the record came from.
    pub record_source: RecordSource,
    /// When, seconds since 1970.
    pub record_received: u64,
    /// Trust.
    pub relation: Relation,
    /// Transport addresses, the most promising first.
    pub addresses: Vec<SocketAddr>,
    /// This host's IPv4 alias for it.
    pub alias: Option<Ipv4Addr>,
    /// The aliases it uses.
    pub their_aliases: Option<TheirAliases>,
    /// The last handshake initiation accepted from it; older ones are replays.
    pub last_initiation: Option<Initiation>,
    /// Time of the newest introduction from it, by its clock, milliseconds since 1970.
    pub last_introduction_ms: u64,
    /// The tunnel key under which it said hello.
    pub proved_key: Option<TunnelPublic>,
}

/// Why a row cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum StoredError {
    /// Written by a version this one does not know.
    #[error("row of unknown version {0}")]
    Version(u8),
    /// Not a row.
    #[error("damaged row")]
    Damaged,
    /// The record in it does not verify.
    #[error("damaged record: {0}")]
    Record(#[from] RecordError),
}

#[derive(Serialize, Deserialize)]
struct Row {
    record: Vec<u8>,
    record_source: RecordSource,
    record_received: u64,
    relation: Relation,
    addresses: Vec<SocketAddr>,
    alias: Option<Ipv4Addr>,
    their_aliases: Option<TheirAliases>,
    last_initiation: Option<Vec<u8>>,
    last_introduction_ms: u64,
    proved_key: Option<TunnelPublic>,
}

impl StoredPeer {
    /// Who it is.
    #[must_use]
    pub fn id(&self) -> AgentId {
        self.record.record().id
    }

    /// The row.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let row = Row {
            record: self.record.as_bytes().to_vec(),
            record_source: self.record_source,
            record_received: self.record_received,
            relation: self.relation.clone(),
            addresses: self.addresses.clone(),
            alias: self.alias,
            their_aliases: self.their_aliases,
            last_initiation: self.last_initiation.map(|initiation| initiation.to_vec()),
            last_introduction_ms: self.last_introduction_ms,
            proved_key: self.proved_key,
        };
        // Serialising plain data into memory has no way to fail.
        postcard::to_extend(&row, vec![VERSION]).unwrap_or_default()
    }

    /// Reads a row.
    ///
    /// # Errors
    /// [`StoredError`] for anything [`encode`](Self::encode) did not write.
    pub fn decode(bytes: &[u8]) -> Result<Self, StoredError> {
        let (version, body) = bytes.split_first().ok_or(StoredError::Damaged)?;
        if *version != VERSION {
            return Err(StoredError::Version(*version));
        }
        let row: Row = postcard::from_bytes(body).map_err(|_| StoredError::Damaged)?;
        let last_initiation = match row.last_initiation {
            Some(bytes) => Some(Initiation::try_from(bytes.as_slice()).map_err(|_| StoredError::Damaged)?),
            None => None,
        };
        Ok(Self {
            record: SignedRecord::decode(&row.record)?,
            record_source: row.record_source,
            record_received: row.record_received,
            relation: row.relation,
            addresses: row.addresses,
            alias: row.alias,
            their_aliases: row.their_aliases,
            last_initiation,
            last_introduction_ms: row.last_introduction_ms,
            proved_key: row.proved_key,
        })
    }
}
