//! capabilities(7), credentials(7), landlock(7).

use std::fs;

use caps::{CapSet, Capability, CapsHashSet};
use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError, RulesetStatus,
    Scope, path_beneath_rules,
};
use nix::sys::prctl;
use nix::unistd::{Gid, Uid, getegid, geteuid, getgroups, setegid, seteuid, setgroups, setresgid, setresuid};

use crate::confine::{ConfineError, FileLimits, Files, Right, ServiceUser};

/// The newest kernel whose limits were tried with this program: Linux 6.12.
const KNOWN: ABI = ABI::V6;

/// What the process was before.
pub(crate) struct Acting {
    uid: Uid,
    gid: Gid,
    groups: Vec<Gid>,
}

impl Drop for Acting {
    fn drop(&mut self) {
        // In this order: the user's right to set groups comes back with it. What fails leaves fewer rights, not more.
        let _ = seteuid(self.uid);
        let _ = setegid(self.gid);
        let _ = setgroups(&self.groups);
    }
}

pub(crate) fn is_supported() -> bool {
    true
}

pub(crate) fn is_single_threaded() -> bool {
    fs::read_dir("/proc/self/task").is_ok_and(|tasks| tasks.count() == 1)
}

pub(crate) fn act(user: &ServiceUser) -> Result<Acting, ConfineError> {
    let failed = |errno: nix::Error| refused(user, errno);
    let before = Acting { uid: geteuid(), gid: getegid(), groups: getgroups().map_err(failed)? };
    setgroups(&[user.gid()]).map_err(failed)?;
    // From here on the guard takes back what was done.
    setegid(user.gid()).and_then(|()| seteuid(user.uid())).map_err(failed)?;
    Ok(before)
}

pub(crate) fn keep_only(user: Option<&ServiceUser>, keep: &[Right]) -> Result<(), ConfineError> {
    // Takes a right that goes with the user. A process that never had it has a bounding set that somebody else chose.
    if let Err(error) = caps::clear(None, CapSet::Bounding) {
        tracing::debug!(%error, "the bounding set of capabilities stays as it is");
    }
    if let Some(user) = user {
        become_user(user, !keep.is_empty()).map_err(|errno| refused(user, errno))?;
    }
    let wanted = keep.iter().map(|right| match right {
        Right::Network => Capability::CAP_NET_ADMIN,
        Right::FilesOfOthers => Capability::CAP_DAC_OVERRIDE,
    });
    let wanted = wanted.collect();
    reduce_to(&wanted).map_err(|error| ConfineError::Capabilities(error.to_string()))?;
    prctl::set_no_new_privs().map_err(|errno| ConfineError::NewPrivileges(errno.into()))
}

fn refused(user: &ServiceUser, errno: nix::Error) -> ConfineError {
    ConfineError::User { name: user.name().to_owned(), source: errno.into() }
}

fn become_user(user: &ServiceUser, keep_capabilities: bool) -> nix::Result<()> {
    prctl::set_keepcaps(keep_capabilities)?;
    setgroups(&[user.gid()])?;
    setresgid(user.gid(), user.gid(), user.gid())?;
    setresuid(user.uid(), user.uid(), user.uid())?;
    prctl::set_keepcaps(false)
}

fn reduce_to(wanted: &CapsHashSet) -> Result<(), caps::errors::CapsError> {
    let permitted = caps::read(None, CapSet::Permitted)?;
    let kept: CapsHashSet = permitted.intersection(wanted).copied().collect();
    caps::clear(None, CapSet::Ambient)?;
    caps::clear(None, CapSet::Inheritable)?;
    caps::set(None, CapSet::Effective, &kept)?;
    caps::set(None, CapSet::Permitted, &kept)
}

pub(crate) fn limit_files(files: &Files) -> Result<FileLimits, ConfineError> {
    match limit(files).map_err(|error| ConfineError::Files(error.to_string()))? {
        RulesetStatus::FullyEnforced => Ok(FileLimits::Full),
        RulesetStatus::PartiallyEnforced => Ok(FileLimits::Partial),
        RulesetStatus::NotEnforced => Ok(FileLimits::None),
    }
}

fn limit(files: &Files) -> Result<RulesetStatus, RulesetError> {
    let read: BitFlags<AccessFs> = AccessFs::ReadFile | AccessFs::ReadDir;
    let write = read | AccessFs::WriteFile | AccessFs::Truncate | AccessFs::MakeReg | AccessFs::RemoveFile;
    let status = Ruleset::default()
        .handle_access(AccessFs::from_all(KNOWN))?
        .handle_access(AccessNet::BindTcp)?
        .scope(Scope::from_all(KNOWN))?
        .create()?
        .add_rules(path_beneath_rules(&files.readable, read))?
        .add_rules(path_beneath_rules(&files.writable, write))?
        .add_rules(path_beneath_rules(&files.removable, AccessFs::RemoveFile))?
        .restrict_self()?;
    Ok(status.ruleset)
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    /// On a thread of its own, which takes its limits with it.
    fn apart(test: impl FnOnce() + Send) {
        std::thread::scope(|scope| scope.spawn(test).join().unwrap());
    }

    fn kind<T>(result: io::Result<T>) -> Option<io::ErrorKind> {
        result.err().map(|error| error.kind())
    }

    #[test]
    fn only_the_files_that_were_named_can_be_opened() {
        let directory = tempfile::tempdir().unwrap();
        let [state, socket, other] = ["state", "socket", "other"].map(|name| directory.path().join(name));
        for tree in [&state, &socket, &other] {
            fs::create_dir(tree).unwrap();
            fs::write(tree.join("before"), "x").unwrap();
        }
        let files = Files {
            writable: vec![state.clone()],
            removable: vec![socket.clone()],
            readable: vec!["/etc".into(), directory.path().join("missing")],
        };
        apart(|| {
            let denied = Some(io::ErrorKind::PermissionDenied);
            let open = fs::File::open(other.join("before")).unwrap();
            assert_ne!(limit_files(&files).unwrap(), FileLimits::None, "this kernel has no landlock");
            fs::write(state.join("new"), "y").unwrap();
            fs::rename(state.join("new"), state.join("before")).unwrap();
            assert_eq!(fs::read(state.join("before")).unwrap(), b"y");
            assert_eq!(io::read_to_string(&open).unwrap(), "x", "what is open stays open");
            assert!(fs::read_to_string("/etc/passwd").is_ok());
            fs::remove_file(socket.join("before")).unwrap();
            assert_eq!(kind(fs::write(socket.join("new"), "x")), denied);
            assert_eq!(kind(fs::read(other.join("before"))), denied);
            assert_eq!(kind(fs::write("/etc/agentnet-test", "x")), denied);
            assert_eq!(kind(fs::read_dir("/proc")), denied);
            assert_eq!(kind(fs::create_dir(state.join("directory"))), denied);
        });
        assert!(fs::read(other.join("before")).is_ok(), "the limits reach other threads");
    }

    #[test]
    fn capabilities_are_given_up() {
        apart(|| {
            let had = caps::has_cap(None, CapSet::Permitted, Capability::CAP_NET_ADMIN).unwrap();
            keep_only(None, &[Right::Network]).unwrap();
            let kept = CapsHashSet::from_iter(had.then_some(Capability::CAP_NET_ADMIN));
            for set in [CapSet::Effective, CapSet::Permitted] {
                assert_eq!(caps::read(None, set).unwrap(), kept, "{set:?}");
            }
            for set in [CapSet::Ambient, CapSet::Inheritable] {
                assert_eq!(caps::read(None, set).unwrap(), CapsHashSet::new(), "{set:?}");
            }
            assert!(prctl::get_no_new_privs().unwrap());
            keep_only(None, &[]).unwrap();
            assert_eq!(caps::read(None, CapSet::Permitted).unwrap(), CapsHashSet::new());
            // No way back.
            assert!(caps::raise(None, CapSet::Permitted, Capability::CAP_NET_ADMIN).is_err());
        });
    }

    #[test]
    fn threads_are_counted() {
        let before = is_single_threaded();
        apart(|| assert!(!is_single_threaded()));
        // The test's own thread has company in some harnesses.
        assert_eq!(is_single_threaded(), before);
    }
}
