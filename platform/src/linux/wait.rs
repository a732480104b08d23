use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use nix::sys::eventfd::{EfdFlags, EventFd};

/// Wakes a thread that waits in [`crate::wait::wait_readable`]. Clones wake the same thread.
#[derive(Clone, Debug)]
pub struct Waker {
    event: Arc<EventFd>,
}

impl Waker {
    /// A waker that nobody has called yet.
    ///
    /// # Errors
    /// Too many open files.
    pub fn new() -> io::Result<Self> {
        let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
        Ok(Self { event: Arc::new(EventFd::from_flags(flags)?) })
    }

    /// Ends the current wait, or the next one if there is none. Never blocks.
    pub fn wake(&self) {
        // It can only fail with the counter at its maximum, where the event is signalled already.
        let _ = self.event.write(1);
    }

    /// Forgets all calls of [`Waker::wake`] so far.
    pub fn drain(&self) {
        // It can only fail when there is nothing to forget.
        let _ = self.event.read();
    }

    /// Readable from [`Waker::wake`] until [`Waker::drain`].
    #[must_use]
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}
