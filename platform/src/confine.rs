//! Giving up rights, for a process that has opened what it needs.
//!
//! 1. [`ServiceUser::find`] and [`ServiceUser::act`]: whose rights are enough, and opening files with them.
//! 2. [`keep_only`]: another user for good, no capability but the one that is needed, none to be gained any more.
//! 3. [`limit_files`], then [`limit_system_calls`]: what the kernel still does for the process.
//!
//! On Linux everything but the user is a property of a thread that new threads inherit, so 2. and 3. belong before the
//! first thread is started: see [`is_single_threaded`]. Nothing of it can be undone. Other systems have none of it, see
//! [`is_supported`].

use std::io;
use std::path::PathBuf;

use nix::unistd::{Gid, Uid, User};

/// Why rights could not be given up.
#[derive(Debug, thiserror::Error)]
pub enum ConfineError {
    /// This operating system has no such thing.
    #[error("this system does not have it")]
    Unsupported,
    /// The process may not become that user.
    #[error("the rights of the user {name} cannot be taken: {source}")]
    User {
        /// The user.
        name: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// Capabilities are left that should be gone.
    #[error("capabilities cannot be given up: {0}")]
    Capabilities(String),
    /// Programs that are started could still gain rights.
    #[error("new privileges cannot be ruled out: {0}")]
    NewPrivileges(#[source] io::Error),
    /// Files are not limited.
    #[error("access to files cannot be limited: {0}")]
    Files(String),
    /// The kernel did not take the filter.
    #[error("system calls cannot be filtered: {0}")]
    SystemCalls(String),
}

/// A user of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceUser {
    name: String,
    uid: Uid,
    gid: Gid,
}

impl ServiceUser {
    /// Looks a user up. `None`: there is none of that name.
    ///
    /// # Errors
    /// The user database cannot be read.
    pub fn find(name: &str) -> io::Result<Option<Self>> {
        let found = User::from_name(name)?;
        Ok(found.map(|user| Self { name: user.name, uid: user.uid, gid: user.gid }))
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its number.
    #[must_use]
    pub fn uid(&self) -> Uid {
        self.uid
    }

    /// The number of its own group.
    #[must_use]
    pub fn gid(&self) -> Gid {
        self.gid
    }

    /// Lets the process, which is root's, act with the rights of this user until the guard is dropped.
    ///
    /// # Errors
    /// [`ConfineError::User`] where root may not do that.
    pub fn act(&self) -> Result<Acting, ConfineError> {
        crate::os::confine::act(self).map(|inner| Acting { _inner: inner })
    }
}

/// The process has the rights of a [`ServiceUser`] until this is dropped.
#[must_use]
pub struct Acting {
    _inner: crate::os::confine::Acting,
}

/// Whether the operating system offers what is here.
#[must_use]
pub fn is_supported() -> bool {
    crate::os::confine::is_supported()
}

/// Whether the calling thread is the only one of the process. False where that cannot be found out.
#[must_use]
pub fn is_single_threaded() -> bool {
    crate::os::confine::is_single_threaded()
}

/// What a process may keep of root's rights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Right {
    /// To administer the network: `CAP_NET_ADMIN`.
    Network,
    /// To use files whoever they belong to: `CAP_DAC_OVERRIDE`.
    FilesOfOthers,
}

/// Becomes `user` for good, if one is given, and gives up all capabilities but those to `keep`, as far as they are there.
/// No program started from here on can gain any.
///
/// # Errors
/// The first that failed. The others of the user and the capabilities were not tried then.
pub fn keep_only(user: Option<&ServiceUser>, keep: &[Right]) -> Result<(), ConfineError> {
    crate::os::confine::keep_only(user, keep)
}

/// What a process may still do with files. Those that are open stay so.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Files {
    /// Directories in whose trees files may be read, written, made and removed.
    pub writable: Vec<PathBuf>,
    /// Directories in whose trees files may be removed.
    pub removable: Vec<PathBuf>,
    /// Directories in whose trees, and files that, may be read. What is not there is left out.
    pub readable: Vec<PathBuf>,
}

/// How much of [`limit_files`] the kernel does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileLimits {
    /// All of it.
    Full,
    /// What an older kernel knows.
    Partial,
    /// Nothing.
    None,
}

/// Refuses the calling thread, and those it starts, all files but the given ones. Where the kernel knows how, also to
/// wait for TCP connections, and to signal or call at abstract Unix sockets of processes outside.
///
/// # Errors
/// [`ConfineError::Files`], when the kernel knows limits and refused these. A kernel that knows none is
/// [`FileLimits::None`].
pub fn limit_files(files: &Files) -> Result<FileLimits, ConfineError> {
    crate::os::confine::limit_files(files)
}

/// Refuses the calling thread, and those it starts, all system calls but those that an agent makes.
///
/// # Errors
/// [`ConfineError::SystemCalls`]; [`ConfineError::Unsupported`] also for processors without a filter.
pub fn limit_system_calls() -> Result<(), ConfineError> {
    crate::os::system_calls::limit()
}
