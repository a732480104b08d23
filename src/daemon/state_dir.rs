//! The state directory: one agent's identity and state, used by one process at a time.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::unistd::Uid;

use super::whole_file::{Access, write_whole};
use crate::api::{Error, ErrorCode, HealthEntry};
use crate::identity::{IdentityKey, key_file};

/// The identity key, as text.
const IDENTITY_FILE: &str = "identity.key";
/// Everything else.
const STATE_FILE: &str = "state.redb";
/// Held locked while an agent runs here.
const LOCK_FILE: &str = "lock";
/// A process that was just killed holds its lock until its last thread is gone.
const LOCK_PATIENCE: Duration = Duration::from_secs(1);
/// How often the lock is tried in that time.
const LOCK_RETRY: Duration = Duration::from_millis(10);
/// Nobody else may read the identity.
const PRIVATE: Access = Access { mode: 0o600, owner: None };
/// Largest identity file that is read, bytes. One has two lines.
const MAX_IDENTITY_BYTES: u64 = 4096;

/// A state directory this process has for itself.
#[derive(Debug)]
pub(super) struct StateDir {
    path: PathBuf,
    /// The lock goes with the process, however it ends.
    _lock: File,
}

impl StateDir {
    /// Creates the directory if need be, and takes it.
    pub(super) fn take(path: &Path) -> Result<Self, Error> {
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|error| unusable(path, &error))?;
        check_owner(path)?;
        let lock_path = path.join(LOCK_FILE);
        let mut options = OpenOptions::new();
        let lock = options.create(true).truncate(false).write(true).mode(0o600).open(&lock_path);
        let lock = lock.map_err(|error| unusable(&lock_path, &error))?;
        let give_up = Instant::now() + LOCK_PATIENCE;
        let locked = loop {
            match lock.try_lock() {
                Err(TryLockError::WouldBlock) if Instant::now() < give_up => std::thread::sleep(LOCK_RETRY),
                result => break result,
            }
        };
        match locked {
            Ok(()) => Ok(Self { path: path.to_owned(), _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(Error::new(
                ErrorCode::StateDirInUse,
                format!("another agent runs on {}", path.display()),
                "use that one, stop it with `agentnet down`, or give this one its own --state-dir",
            )),
            Err(TryLockError::Error(error)) => Err(unusable(&lock_path, &error)),
        }
    }

    /// Where the state file is.
    pub(super) fn state_file(&self) -> PathBuf {
        self.path.join(STATE_FILE)
    }

    /// Loads the identity; on the first start, makes one. Also what is wrong with it nevertheless.
    pub(super) fn identity(&self) -> Result<(IdentityKey, Option<HealthEntry>), Error> {
        let path = self.path.join(IDENTITY_FILE);
        let metadata = match fs::metadata(&path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let key = IdentityKey::generate(&mut super::start::system_rng());
                write_whole(&path, key_file::emit(&key).as_bytes(), PRIVATE)
                    .map_err(|error| unusable(&path, &error))?;
                tracing::info!(path = %path.display(), "identity created");
                return Ok((key, None));
            }
            Err(error) => return Err(unusable(&path, &error)),
        };
        if metadata.len() > MAX_IDENTITY_BYTES {
            return Err(damaged(&path, "it is far too long"));
        }
        let content = fs::read(&path).map_err(|error| unusable(&path, &error))?;
        let key =
            key_file::parse(zeroize::Zeroizing::new(content)).map_err(|error| damaged(&path, &error.to_string()))?;
        let exposed = metadata.permissions().mode() & 0o077 != 0;
        let health = exposed.then(|| HealthEntry {
            code: "identity_exposed".to_owned(),
            message: format!("other users may read the identity key {}", path.display()),
            hint: format!("chmod 600 {}", path.display()),
        });
        Ok((key, health))
    }
}

/// Whoever else may write here could put links in the way of files that root opens.
fn check_owner(path: &Path) -> Result<(), Error> {
    let metadata = fs::metadata(path).map_err(|error| unusable(path, &error))?;
    let ours = metadata.uid() == Uid::effective().as_raw();
    let writable_by_others = metadata.permissions().mode() & 0o022 != 0;
    if ours && !writable_by_others {
        return Ok(());
    }
    Err(Error::new(
        ErrorCode::StateDirUnusable,
        format!("{} belongs to, or may be written by, somebody else", path.display()),
        format!("chown it to the user the agent runs as, and chmod go-w {}", path.display()),
    ))
}

fn damaged(path: &Path, why: &str) -> Error {
    Error::new(
        ErrorCode::IdentityDamaged,
        format!("{} is not usable: {why}", path.display()),
        "restore it from a backup; without one, move it away and a new agent with a new address is made",
    )
}

/// What the operating system said about a file of ours.
pub(super) fn unusable(path: &Path, error: &io::Error) -> Error {
    let message = format!("{}: {error}", path.display());
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            Error::new(ErrorCode::DiskFull, message, "make room on that file system")
        }
        _ => Error::new(
            ErrorCode::StateDirUnusable,
            message,
            "the agent needs a directory it can write; name another one with --state-dir",
        ),
    }
}
