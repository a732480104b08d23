//! The state directory: one agent's identity and state, used by one process at a time.

use std::fs::{self, DirBuilder, File, Metadata, OpenOptions, TryLockError};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use agentnet_platform::confine::{ConfineError, ServiceUser};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag};
use nix::unistd::{Uid, fchownat};

use super::whole_file::{Access, write_whole};
use crate::api::{Error, ErrorCode, HealthEntry};
use crate::config::SOCKET_IN_STATE_DIR;
use crate::identity::{IdentityKey, key_file};

/// The log of an agent in the background, inside its state directory.
pub const LOG_FILE: &str = "agentnet.log";
/// Where a log goes that has grown too long, in place of the one before.
pub const OLD_LOG_FILE: &str = "agentnet.log.old";
/// The identity key, as text.
const IDENTITY_FILE: &str = "identity.key";
/// Everything else.
const STATE_FILE: &str = "state.redb";
/// Held locked while an agent runs here.
const LOCK_FILE: &str = "lock";
/// All that an agent has in its state directory, half-written files included.
const OUR_FILES: [&str; 8] = [
    IDENTITY_FILE,
    "identity.key.new",
    STATE_FILE,
    "state.new",
    LOCK_FILE,
    LOG_FILE,
    OLD_LOG_FILE,
    SOCKET_IN_STATE_DIR,
];
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
    /// Creates the directory if need be, and takes it. Then it belongs to `user`, if one is given, with all that an agent
    /// of root has left there.
    pub(super) fn take(path: &Path, user: Option<&ServiceUser>) -> Result<Self, Error> {
        make_state_dir(path).map_err(|error| unusable(path, &error))?;
        match user {
            Some(user) if is_owned_by(path, user.uid())? => {
                // Who owns a directory can put links in the way of what root opens there.
                let _acting = user.act().map_err(|error| not_theirs(path, &error))?;
                Self::lock(path)
            }
            Some(user) => {
                check_owner(path)?;
                let taken = Self::lock(path)?;
                hand_over(path, user).map_err(|error| unusable(path, &error))?;
                Ok(taken)
            }
            None => {
                check_owner(path)?;
                Self::lock(path)
            }
        }
    }

    fn lock(path: &Path) -> Result<Self, Error> {
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

/// Creates a state directory where there is none. It is its owner's alone.
///
/// # Errors
/// What the operating system said.
pub fn make_state_dir(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        // Not for the owner alone: the agent may become another user, who has to get through.
        DirBuilder::new().recursive(true).mode(0o755).create(parent)?;
    }
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        made => made,
    }
}

/// What is in a state directory that is not an agent's, by name. Nothing where there is no directory yet.
///
/// # Errors
/// What the operating system said.
pub(super) fn foreign_file(path: &Path) -> io::Result<Option<String>> {
    let entries = match fs::read_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let kind = entry.file_type()?;
        // On a file system of its own this is the file system's.
        let is_lost_and_found = kind.is_dir() && entry.file_name() == "lost+found";
        let is_ours = OUR_FILES.iter().any(|name| entry.file_name() == *name) && (kind.is_file() || kind.is_socket());
        if !is_ours && !is_lost_and_found {
            return Ok(Some(entry.file_name().to_string_lossy().into_owned()));
        }
    }
    Ok(None)
}

/// Gives the directory of an agent of root to another user. Until its end nobody but root can write there, and it is the
/// same directory all the time, whatever its path leads to meanwhile.
fn hand_over(path: &Path, user: &ServiceUser) -> io::Result<()> {
    let directory = open_to_give(path, OFlag::empty())?;
    // Looked at before by its path, which may have led elsewhere.
    if let Some(name) = foreign_file(&path_of(&directory))? {
        return Err(io::Error::other(format!("it also holds {name}")));
    }
    for name in OUR_FILES {
        match fchownat(&directory, name, Some(user.uid()), Some(user.gid()), AtFlags::AT_SYMLINK_NOFOLLOW) {
            Err(Errno::ENOENT) => {}
            changed => changed?,
        }
    }
    fchown(&directory, Some(user.uid().as_raw()), Some(user.gid().as_raw()))?;
    tracing::info!(path = %path.display(), user = user.name(), "the state directory has been handed over");
    Ok(())
}

/// Whether it is that user's, and nobody else can write there.
pub(super) fn is_owned_by(path: &Path, owner: Uid) -> Result<bool, Error> {
    let metadata = fs::metadata(path).map_err(|error| unusable(path, &error))?;
    Ok(is_only_of(&metadata, owner))
}

pub(super) fn is_only_of(metadata: &Metadata, owner: Uid) -> bool {
    metadata.uid() == owner.as_raw() && metadata.permissions().mode() & 0o022 == 0
}

/// Opens a directory that belongs to this process's user, root, to give it to another one.
///
/// # Errors
/// What the operating system said, or that it is somebody else's.
pub(super) fn open_to_give(path: &Path, flags: OFlag) -> io::Result<File> {
    let directory = OpenOptions::new().read(true).custom_flags((OFlag::O_DIRECTORY | flags).bits()).open(path)?;
    match is_only_of(&directory.metadata()?, Uid::effective()) {
        true => Ok(directory),
        false => Err(io::Error::other("it is not root's any more")),
    }
}

/// The path of an open directory, wherever it is now.
pub(super) fn path_of(directory: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd()))
}

/// Whoever else may write here could put links in the way of files that root opens.
fn check_owner(path: &Path) -> Result<(), Error> {
    if is_owned_by(path, Uid::effective())? {
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

fn not_theirs(path: &Path, error: &ConfineError) -> Error {
    let message = format!("{} cannot be opened: {error}", path.display());
    Error::new(ErrorCode::StateDirUnusable, message, "chown it to the user the agent runs as")
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
