//! Small things a daemon asks of its own process.

use std::io;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, raise, sigaction};

/// Makes the process the leader of a new session without a terminal (setsid(2)). Call it in a child: the
/// leader of a process group cannot.
///
/// # Errors
/// [`io::ErrorKind::PermissionDenied`] when the process leads a process group.
pub fn detach_from_terminal() -> io::Result<()> {
    nix::unistd::setsid()?;
    Ok(())
}

/// Stops the process as a terminal's Ctrl-Z does where nobody handles it, and returns when it is continued. In a process
/// group that nobody can continue, the system does not stop it.
///
/// # Errors
/// When the operating system refuses.
pub fn suspend() -> io::Result<()> {
    let usual = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    // SAFETY: the default action runs no code of this process.
    let handler = unsafe { sigaction(Signal::SIGTSTP, &usual) }?;
    let raised = raise(Signal::SIGTSTP);
    // SAFETY: it is the handler that was there before.
    unsafe { sigaction(Signal::SIGTSTP, &handler) }?;
    Ok(raised?)
}

/// Memory of this process that is in RAM, in bytes.
///
/// # Errors
/// When the operating system does not say.
pub fn resident_memory() -> io::Result<u64> {
    crate::os::process::resident_memory()
}

/// Has the allocator take pieces of 8 KiB and more from the operating system one by one, and give each back when it is
/// freed, where it would not do so by itself: between small pieces that stay, a part of each would stay too. Call it
/// before there are threads.
pub fn keep_large_pieces_apart() {
    crate::os::process::keep_large_pieces_apart();
}

/// Gives memory that nothing uses back to the operating system, where the allocator does not do so by itself: it keeps
/// what is free between pieces in use.
pub fn return_free_memory() {
    crate::os::process::return_free_memory();
}

/// Takes the program's code out of its memory, where Linux keeps all that ever ran: what runs again comes back, 64 KiB at
/// a time. What is needed for packets is a small part of what a start, or a command, needs. To get that back takes some
/// 100 us.
pub fn release_code() {
    crate::os::process::release_code();
}

/// Raises the limit of open files towards `wanted`, as far as the hard limit allows, and returns the limit
/// now in force. It is never lowered.
///
/// # Errors
/// When the operating system refuses.
pub fn raise_open_files_limit(wanted: u64) -> io::Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let target = crate::os::process::clamp_open_files(wanted.min(hard));
    if target <= soft {
        return Ok(soft);
    }
    setrlimit(Resource::RLIMIT_NOFILE, target, hard)?;
    Ok(target)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resident_memory_grows_with_touched_memory() {
        const BYTES: usize = 64 << 20;
        let before = resident_memory().unwrap();
        let touched = vec![1u8; BYTES];
        let after = resident_memory().unwrap();
        assert!(touched.iter().all(|&byte| byte == 1));
        assert!(before > 100_000, "{before}");
        assert!(after > before + (BYTES as u64) / 2, "{before} {after}");
    }

    #[test]
    fn code_that_was_released_still_runs() {
        for _ in 0..3 {
            release_code();
            assert!(resident_memory().unwrap() > 0);
        }
    }

    #[test]
    fn open_files_limit_is_raised_within_the_hard_limit_and_never_lowered() {
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        assert_eq!(raise_open_files_limit(1).unwrap(), soft);
        let raised = raise_open_files_limit(soft + 1).unwrap();
        assert_eq!(raised, (soft + 1).min(hard).max(soft));
        assert_eq!(getrlimit(Resource::RLIMIT_NOFILE).unwrap().0, raised);
    }
}
