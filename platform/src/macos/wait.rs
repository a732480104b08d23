use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::unistd;

/// Wakes a thread that waits in [`crate::wait::wait_readable`]. Clones wake the same thread.
#[derive(Clone, Debug)]
pub struct Waker {
    pipe: Arc<Pipe>,
}

#[derive(Debug)]
struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
}

impl Waker {
    /// A waker that nobody has called yet.
    ///
    /// # Errors
    /// Too many open files.
    pub fn new() -> io::Result<Self> {
        let (read, write) = unistd::pipe()?;
        for end in [&read, &write] {
            fcntl(end, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
            fcntl(end, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        }
        Ok(Self { pipe: Arc::new(Pipe { read, write }) })
    }

    /// Ends the current wait, or the next one if there is none. Never blocks.
    pub fn wake(&self) {
        // A full pipe is readable already; anything else but an interruption cannot happen.
        while unistd::write(&self.pipe.write, &[0]) == Err(Errno::EINTR) {}
    }

    /// Forgets all calls of [`Waker::wake`] so far.
    pub fn drain(&self) {
        let mut bytes = [0; 512];
        loop {
            match unistd::read(&self.pipe.read, &mut bytes) {
                Ok(0) => break,
                Ok(_) | Err(Errno::EINTR) => {}
                Err(_) => break,
            }
        }
    }

    /// Readable from [`Waker::wake`] until [`Waker::drain`].
    #[must_use]
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.pipe.read.as_fd()
    }
}
