//! Sleep until a descriptor is readable, someone wakes the thread, or time is up.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

pub use crate::os::wait::Waker;

/// Descriptors one call can wait for, besides the waker. A packet thread has four at most.
pub const MAX_FDS: usize = 15;

/// What ended a wait.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct Ready {
    /// The waker was called. It stays so until [`Waker::drain`].
    pub woken: bool,
    fds: u16,
}

impl Ready {
    /// Whether descriptor number `index` is readable or has an error to report.
    #[must_use]
    pub fn is_readable(&self, index: usize) -> bool {
        index < MAX_FDS && self.fds & (1 << index) != 0
    }

    /// Whether neither a descriptor nor the waker ended the wait, but time.
    #[must_use]
    pub fn is_timeout(&self) -> bool {
        !self.woken && self.fds == 0
    }
}

/// Blocks until one of `fds` is readable, `waker` was called, or `timeout` (`None`: never) has passed.
/// There are no periodic wake-ups in between.
///
/// # Errors
/// [`io::ErrorKind::InvalidInput`] for more than [`MAX_FDS`] descriptors; otherwise what poll(2) says.
pub fn wait_readable(fds: &[BorrowedFd<'_>], waker: &Waker, timeout: Option<Duration>) -> io::Result<Ready> {
    if fds.len() > MAX_FDS {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // The waker comes first; slots past the last descriptor are not polled.
    let mut slots: [PollFd<'_>; MAX_FDS + 1] = std::array::from_fn(|slot| {
        let fd = slot.checked_sub(1).and_then(|index| fds.get(index).copied());
        PollFd::new(fd.unwrap_or_else(|| waker.as_fd()), PollFlags::POLLIN)
    });
    let polled = &mut slots[..=fds.len()];
    // A time too far to be represented is never.
    let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
    loop {
        let remaining = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        match poll(polled, poll_timeout(remaining)) {
            Ok(0) if remaining.is_some_and(|remaining| remaining > MAX_POLL) => {}
            Ok(_) => return Ok(collect(polled)),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// The longest time poll(2) can wait: 2^31 - 1 ms, 24 days.
const MAX_POLL: Duration = Duration::from_millis(i32::MAX as u64);

/// Rounded up to milliseconds: rounding down would spin through the last one.
fn poll_timeout(remaining: Option<Duration>) -> PollTimeout {
    let Some(remaining) = remaining else {
        return PollTimeout::NONE;
    };
    let millis = remaining.as_nanos().div_ceil(1_000_000);
    PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX)
}

fn collect(polled: &[PollFd<'_>]) -> Ready {
    let mut ready = Ready::default();
    for (slot, fd) in polled.iter().enumerate() {
        // An error or a hang-up counts: the following read tells what it is.
        if fd.any() == Some(false) {
            continue;
        }
        match slot.checked_sub(1) {
            None => ready.woken = true,
            Some(index) => ready.fds |= 1 << index,
        }
    }
    ready
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn time_runs_out_neither_early_nor_late() {
        let waker = Waker::new().unwrap();
        let start = Instant::now();
        let ready = wait_readable(&[], &waker, Some(Duration::from_micros(20_500))).unwrap();
        assert!(ready.is_timeout());
        assert!(start.elapsed() >= Duration::from_micros(20_500));
        assert!(start.elapsed() < Duration::from_secs(20));
        assert!(wait_readable(&[], &waker, Some(Duration::ZERO)).unwrap().is_timeout());
    }

    #[test]
    fn a_waker_ends_the_wait_of_another_thread_until_drained() {
        let waker = Waker::new().unwrap();
        let remote = waker.clone();
        let waiter = std::thread::spawn(move || wait_readable(&[], &remote, None).unwrap());
        waker.wake();
        waker.wake();
        assert!(waiter.join().unwrap().woken);
        assert!(wait_readable(&[], &waker, Some(Duration::ZERO)).unwrap().woken);
        waker.drain();
        assert!(!wait_readable(&[], &waker, Some(Duration::ZERO)).unwrap().woken);
    }

    #[test]
    fn a_waker_can_be_called_any_number_of_times() {
        let waker = Waker::new().unwrap();
        for _ in 0..200_000 {
            waker.wake();
        }
        waker.drain();
        assert!(wait_readable(&[], &waker, Some(Duration::ZERO)).unwrap().is_timeout());
    }

    #[test]
    fn the_readable_descriptor_is_named() {
        let waker = Waker::new().unwrap();
        let quiet = UdpSocket::bind("127.0.0.1:0").unwrap();
        let busy = UdpSocket::bind("127.0.0.1:0").unwrap();
        quiet.send_to(b"x", busy.local_addr().unwrap()).unwrap();
        let ready = wait_readable(&[quiet.as_fd(), busy.as_fd()], &waker, None).unwrap();
        assert!(!ready.is_readable(0) && ready.is_readable(1) && !ready.is_readable(2));
        assert!(!ready.woken && !ready.is_timeout());
    }

    #[test]
    fn too_many_descriptors_are_refused() {
        let waker = Waker::new().unwrap();
        let fds = [waker.as_fd(); MAX_FDS + 1];
        let error = wait_readable(&fds, &waker, None).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        waker.wake();
        assert!(wait_readable(&fds[1..], &waker, None).unwrap().is_readable(MAX_FDS - 1));
    }
}
