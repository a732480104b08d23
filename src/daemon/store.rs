//! The state file: what survives `kill -9` and power loss. One transaction per drain of the control plane.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::net::Ipv4Addr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use ipnet::Ipv4Net;
use redb::{Database, DatabaseError, ReadTransaction, ReadableDatabase, ReadableTable, StorageError, TableDefinition};

use super::state_dir::unusable;
use crate::api::{Error, ErrorCode};
use crate::identity::{AgentId, SignedRecord, TunnelSecret};
use crate::node::StoredPeer;
use crate::rendezvous::StoredIntroduction;

/// Single values, by name.
const VALUES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("values");
/// A table of rows, by a key of theirs.
type Rows = TableDefinition<'static, &'static [u8], &'static [u8]>;

/// The tables of rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Table {
    /// [`StoredPeer`], by agent id.
    Peers,
    /// Records of a rendezvous server's clients, by agent id.
    Records,
    /// [`StoredIntroduction`], by number, big endian.
    Introductions,
}

impl Table {
    fn definition(self) -> Rows {
        TableDefinition::new(match self {
            Self::Peers => "peers",
            Self::Records => "records",
            Self::Introductions => "introductions",
        })
    }
}

const FORMAT: &str = "format";
const TUNNEL_KEY: &str = "tunnel_key";
const SEQUENCE: &str = "record_sequence";
const PORT: &str = "port";
const IPV4_RANGE: &str = "ipv4_range";

/// Version of the tables.
const FORMAT_VERSION: u8 = 1;
/// Pages kept in memory, bytes. The state of a thousand peers is 1 MiB, and it is read once.
const CACHE_BYTES: usize = 256 * 1024;

/// The open state file. What could not be written is kept and written with the next change or [`retry`](Self::retry).
pub(super) struct Store {
    path: PathBuf,
    database: Option<Database>,
    waiting: Changes,
}

/// What is to be written.
#[derive(Default)]
pub(super) struct Changes {
    rows: HashMap<(Table, Vec<u8>), Option<Vec<u8>>>,
    values: HashMap<&'static str, Vec<u8>>,
}

/// What was found at start.
#[derive(Default)]
pub(super) struct Loaded {
    pub(super) tunnel_secret: Option<TunnelSecret>,
    pub(super) record_sequence: u64,
    pub(super) port: Option<u16>,
    pub(super) ipv4_range: Option<Ipv4Net>,
    pub(super) peers: Vec<StoredPeer>,
    pub(super) records: Vec<SignedRecord>,
    /// In the order of their numbers.
    pub(super) introductions: Vec<StoredIntroduction>,
    /// Rows that cannot be read. They are left alone.
    pub(super) unreadable: usize,
}

impl Changes {
    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.values.is_empty()
    }

    /// Store or forget a peer.
    pub(super) fn peer(&mut self, id: AgentId, row: Option<&StoredPeer>) {
        self.rows.insert((Table::Peers, id.as_bytes().to_vec()), row.map(StoredPeer::encode));
    }

    /// Store or forget the record of a client.
    pub(super) fn record(&mut self, id: AgentId, record: Option<&SignedRecord>) {
        let row = record.map(|record| record.as_bytes().to_vec());
        self.rows.insert((Table::Records, id.as_bytes().to_vec()), row);
    }

    /// Store or forget an introduction that waits.
    pub(super) fn introduction(&mut self, number: u64, stored: Option<&StoredIntroduction>) {
        let row = stored.map(StoredIntroduction::encode);
        self.rows.insert((Table::Introductions, number.to_be_bytes().to_vec()), row);
    }

    /// Adds later changes.
    pub(super) fn extend(&mut self, later: Self) {
        self.rows.extend(later.rows);
        self.values.extend(later.values);
    }

    pub(super) fn sequence(&mut self, sequence: u64) {
        self.values.insert(SEQUENCE, sequence.to_le_bytes().to_vec());
    }

    pub(super) fn tunnel_secret(&mut self, secret: &TunnelSecret) {
        self.values.insert(TUNNEL_KEY, secret.to_bytes().to_vec());
    }

    pub(super) fn port(&mut self, port: u16) {
        self.values.insert(PORT, port.to_le_bytes().to_vec());
    }

    pub(super) fn ipv4_range(&mut self, range: Ipv4Net) {
        let mut value = range.addr().octets().to_vec();
        value.push(range.prefix_len());
        self.values.insert(IPV4_RANGE, value);
    }
}

impl Store {
    /// Opens the state file, made if there is none.
    pub(super) fn open(path: PathBuf) -> Result<Self, Error> {
        let database = create(&path).map_err(|error| open_error(&path, &error))?;
        Ok(Self { path, database: Some(database), waiting: Changes::default() })
    }

    /// Everything stored.
    pub(super) fn load(&self) -> Result<Loaded, Error> {
        let Some(database) = &self.database else { return Ok(Loaded::default()) };
        load(database).map_err(|error| state_damaged(&self.path, &error.to_string()))?
    }

    /// Writes changes, and what waited before, in one transaction. They are on disk when this returns `Ok`.
    pub(super) fn commit(&mut self, changes: Changes) -> io::Result<()> {
        self.waiting.extend(changes);
        self.retry()
    }

    /// Writes what waits.
    pub(super) fn retry(&mut self) -> io::Result<()> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        // After an error of the file system the library wants the file opened anew.
        let database = match self.database.take() {
            Some(database) => database,
            // Never made anew: a new one would lack all that is not in memory.
            None => open(&self.path).map_err(|error| into_io(error.into()))?,
        };
        write(&database, &self.waiting).map_err(into_io)?;
        self.database = Some(database);
        self.waiting = Changes::default();
        Ok(())
    }

    /// Whether something waits for a disk that takes it.
    pub(super) fn is_behind(&self) -> bool {
        !self.waiting.is_empty()
    }
}

/// Opens the file. A new one is made under another name first: a kill or a full disk in between must not leave half a
/// database under the real one.
fn create(path: &Path) -> Result<Database, DatabaseError> {
    let io_error = |error| DatabaseError::Storage(StorageError::Io(error));
    if !path.try_exists().map_err(io_error)? {
        let beside = path.with_extension("new");
        let made = make_beside(&beside, &builder()).and_then(|()| rename_durably(&beside, path).map_err(io_error));
        if made.is_err() {
            let _ = std::fs::remove_file(&beside);
        }
        made?;
    }
    open(path)
}

fn open(path: &Path) -> Result<Database, DatabaseError> {
    builder().open(path)
}

fn builder() -> redb::Builder {
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE_BYTES);
    builder
}

fn make_beside(beside: &Path, builder: &redb::Builder) -> Result<(), DatabaseError> {
    let io_error = |error| DatabaseError::Storage(StorageError::Io(error));
    // It will hold the tunnel key. What an earlier try left is cut to nothing.
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).create(true).truncate(true).mode(0o600).open(beside).map_err(io_error)?;
    builder.create_file(file).map(drop)
}

fn rename_durably(from: &Path, to: &Path) -> io::Result<()> {
    std::fs::rename(from, to)?;
    File::open(to.parent().unwrap_or(Path::new(".")))?.sync_all()
}

/// The operating system's error where there is one, so that a full disk is told from a broken one.
fn into_io(error: redb::Error) -> io::Error {
    match error {
        redb::Error::Io(error) => error,
        other => io::Error::other(other),
    }
}

fn write(database: &Database, changes: &Changes) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    {
        let mut values = transaction.open_table(VALUES)?;
        values.insert(FORMAT, [FORMAT_VERSION].as_slice())?;
        for (key, value) in &changes.values {
            values.insert(*key, value.as_slice())?;
        }
    }
    for ((table, key), row) in &changes.rows {
        let mut rows = transaction.open_table(table.definition())?;
        match row {
            Some(row) => rows.insert(key.as_slice(), row.as_slice())?,
            None => rows.remove(key.as_slice())?,
        };
    }
    transaction.commit()?;
    Ok(())
}

/// The outer error is the library's, the inner one about what was read.
fn load(database: &Database) -> Result<Result<Loaded, Error>, redb::Error> {
    let transaction = database.begin_read()?;
    let mut loaded = Loaded::default();
    let values = match transaction.open_table(VALUES) {
        Ok(values) => values,
        Err(redb::TableError::TableDoesNotExist(_)) => return Ok(Ok(loaded)),
        Err(error) => return Err(error.into()),
    };
    let get = |key: &str| -> Result<Option<Vec<u8>>, StorageError> {
        Ok(values.get(key)?.map(|value| value.value().to_vec()))
    };
    let format = get(FORMAT)?.and_then(|value| value.first().copied());
    if format != Some(FORMAT_VERSION) {
        return Ok(Err(Error::new(
            ErrorCode::StateDamaged,
            format!("the state was written by another version (format {format:?})"),
            "install the version that wrote it, or a later one",
        )));
    }
    loaded.tunnel_secret = get(TUNNEL_KEY)?.and_then(|value| value.try_into().ok()).map(TunnelSecret::from_bytes);
    loaded.record_sequence = get(SEQUENCE)?.and_then(|value| value.try_into().ok()).map_or(0, u64::from_le_bytes);
    loaded.port = get(PORT)?.and_then(|value| value.try_into().ok()).map(u16::from_le_bytes);
    loaded.ipv4_range = get(IPV4_RANGE)?.and_then(|value| {
        let octets: [u8; 4] = value.get(..4)?.try_into().ok()?;
        Ipv4Net::new(Ipv4Addr::from(octets), *value.get(4)?).ok()
    });
    let damaged = &mut loaded.unreadable;
    loaded.peers = rows(&transaction, Table::Peers, damaged, StoredPeer::decode)?;
    loaded.records = rows(&transaction, Table::Records, damaged, SignedRecord::decode)?;
    loaded.introductions = rows(&transaction, Table::Introductions, damaged, StoredIntroduction::decode)?;
    Ok(Ok(loaded))
}

/// The rows of a table that can be read; those that cannot are counted.
fn rows<T, E: std::fmt::Display>(
    transaction: &ReadTransaction,
    table: Table,
    unreadable: &mut usize,
    decode: impl Fn(&[u8]) -> Result<T, E>,
) -> Result<Vec<T>, redb::Error> {
    let rows = match transaction.open_table(table.definition()) {
        Ok(rows) => rows,
        Err(redb::TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    };
    let mut decoded = Vec::new();
    for row in rows.iter()? {
        let (_, row) = row?;
        match decode(row.value()) {
            Ok(row) => decoded.push(row),
            Err(error) => {
                tracing::error!(%error, ?table, "a stored row cannot be read");
                *unreadable += 1;
            }
        }
    }
    Ok(decoded)
}

fn open_error(path: &Path, error: &DatabaseError) -> Error {
    match error {
        DatabaseError::Storage(StorageError::Io(error)) if error.kind() != io::ErrorKind::InvalidData => {
            unusable(path, error)
        }
        DatabaseError::DatabaseAlreadyOpen => Error::new(
            ErrorCode::StateDirInUse,
            format!("{} is in use by another process", path.display()),
            "stop that process",
        ),
        other => state_damaged(path, &other.to_string()),
    }
}

fn state_damaged(path: &Path, why: &str) -> Error {
    Error::new(
        ErrorCode::StateDamaged,
        format!("{} cannot be read: {why}", path.display()),
        "restore it from a backup; or move it away: the identity stays, trust has to be given anew",
    )
}

#[cfg(test)]
mod tests;
