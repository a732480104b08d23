use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use nix::errno::Errno;
use nix::sys::event::{EvFlags, EventFilter, FilterFlag, KEvent, Kqueue};

/// Descriptors that one [`Readiness::ready`] names.
const EVENTS: usize = 32;

/// A set of descriptors behind a single one, which is readable while any of them is. Changing the set disturbs nobody
/// who waits for it.
#[derive(Debug)]
pub(crate) struct Readiness {
    queue: Kqueue,
}

impl Readiness {
    /// An empty set.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { queue: Kqueue::new()? })
    }

    /// Adds a descriptor under a number.
    pub(crate) fn add(&self, fd: BorrowedFd<'_>, number: u16) -> io::Result<()> {
        self.queue.kevent(&[change(fd, EvFlags::EV_ADD, number)], &mut [], Some(NOW))?;
        Ok(())
    }

    /// Takes a descriptor out; one that is not in it is not missed.
    pub(crate) fn remove(&self, fd: BorrowedFd<'_>) {
        let _ = self.queue.kevent(&[change(fd, EvFlags::EV_DELETE, 0)], &mut [], Some(NOW));
    }

    /// Calls `each` with the numbers of some descriptors that are readable now; `first` says with which of them to begin.
    /// Over several calls with different ones all get their turn.
    pub(crate) fn ready(&self, first: usize, mut each: impl FnMut(u16)) -> io::Result<()> {
        let empty = KEvent::new(0, EventFilter::EVFILT_READ, EvFlags::empty(), FilterFlag::empty(), 0, 0);
        let mut events = [empty; EVENTS];
        let count = match self.queue.kevent(&[], &mut events, Some(NOW)) {
            Ok(count) => count,
            Err(Errno::EINTR) => 0,
            Err(errno) => return Err(errno.into()),
        };
        events[..count].rotate_left(first.checked_rem(count).unwrap_or_default());
        for number in events.iter().take(count).filter_map(|event| u16::try_from(event.udata()).ok()) {
            each(number);
        }
        Ok(())
    }

    /// Readable while one of the set is.
    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.queue.as_fd()
    }
}

const NOW: libc::timespec = libc::timespec { tv_sec: 0, tv_nsec: 0 };

fn change(fd: BorrowedFd<'_>, flags: EvFlags, number: u16) -> KEvent {
    let ident = fd.as_raw_fd().unsigned_abs() as usize;
    KEvent::new(ident, EventFilter::EVFILT_READ, flags, FilterFlag::empty(), 0, number as isize)
}
