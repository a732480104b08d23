use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

/// Descriptors that one [`Readiness::ready`] names.
const EVENTS: usize = 32;

/// A set of descriptors behind a single one, which is readable while any of them is. Changing the set disturbs nobody
/// who waits for it.
#[derive(Debug)]
pub(crate) struct Readiness {
    epoll: Epoll,
}

impl Readiness {
    /// An empty set.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)? })
    }

    /// Adds a descriptor under a number.
    pub(crate) fn add(&self, fd: BorrowedFd<'_>, number: u16) -> io::Result<()> {
        Ok(self.epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, number.into()))?)
    }

    /// Takes a descriptor out; one that is not in it is not missed.
    pub(crate) fn remove(&self, fd: BorrowedFd<'_>) {
        let _ = self.epoll.delete(fd);
    }

    /// Calls `each` with the numbers of some descriptors that are readable now; `first` says with which of them to begin.
    /// Over several calls with different ones all get their turn.
    pub(crate) fn ready(&self, first: usize, mut each: impl FnMut(u16)) -> io::Result<()> {
        let mut events = [EpollEvent::empty(); EVENTS];
        let count = match self.epoll.wait(&mut events, EpollTimeout::ZERO) {
            Ok(count) => count,
            Err(Errno::EINTR) => 0,
            Err(errno) => return Err(errno.into()),
        };
        events[..count].rotate_left(first.checked_rem(count).unwrap_or_default());
        for number in events.iter().take(count).filter_map(|event| u16::try_from(event.data()).ok()) {
            each(number);
        }
        Ok(())
    }

    /// Readable while one of the set is.
    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.0.as_fd()
    }
}
