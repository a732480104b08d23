//! The extra sockets: opened and closed while packet threads run.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;

use super::sockets::Bound;
use super::{MAX_EXTRA_SOCKETS, SocketId};
use crate::os::readiness::Readiness;

/// Sockets by number. Whoever uses one holds it open: it is closed when the last of them lets go.
pub(super) struct ExtraSockets {
    open: ArcSwap<BTreeMap<SocketId, Arc<Bound>>>,
    /// The number given out last; held while the map is changed.
    last: Mutex<SocketId>,
    readiness: Readiness,
}

impl ExtraSockets {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self { open: ArcSwap::default(), last: Mutex::default(), readiness: Readiness::new()? })
    }

    pub(super) fn get(&self, id: SocketId) -> Option<Arc<Bound>> {
        self.open.load().get(&id).cloned()
    }

    /// Takes in a socket.
    pub(super) fn insert(&self, bound: Bound) -> io::Result<SocketId> {
        let bound = Arc::new(bound);
        let id = self.number(&bound)?;
        // Only now: what is readable can be found.
        if let Err(error) = self.readiness.add(bound.socket.as_fd(), id.number()) {
            self.close(id);
            return Err(error);
        }
        Ok(id)
    }

    pub(super) fn close(&self, id: SocketId) {
        let closed = {
            let _changing = self.last.lock().unwrap_or_else(PoisonError::into_inner);
            let mut open = BTreeMap::clone(&self.open.load());
            let closed = open.remove(&id);
            self.open.store(Arc::new(open));
            closed
        };
        if let Some(bound) = closed {
            // A thread may hold it open for a moment, and would be woken by it.
            self.readiness.remove(bound.socket.as_fd());
        }
    }

    /// Calls `each` with some of the sockets at which something waits, and begins with another one for another `first`.
    pub(super) fn ready(&self, first: usize, mut each: impl FnMut(SocketId, &Bound)) -> io::Result<()> {
        let open = self.open.load();
        if open.is_empty() {
            return Ok(());
        }
        self.readiness.ready(first, |number| {
            let id = SocketId::new(number);
            if let Some(bound) = open.get(&id) {
                each(id, bound);
            }
        })
    }

    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.readiness.as_fd()
    }

    /// Gives a socket a number that was not in use for as long as possible.
    fn number(&self, bound: &Arc<Bound>) -> io::Result<SocketId> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let mut open = BTreeMap::clone(&self.open.load());
        if open.len() >= MAX_EXTRA_SOCKETS {
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        let id = next_free(*last, |id| open.contains_key(&id));
        *last = id;
        open.insert(id, Arc::clone(bound));
        self.open.store(Arc::new(open));
        Ok(id)
    }
}

/// The first number after `last` that is free. There must be one.
pub(crate) fn next_free(last: SocketId, is_taken: impl Fn(SocketId) -> bool) -> SocketId {
    let mut id = last;
    loop {
        id = SocketId::new(id.number().wrapping_add(1));
        if !id.is_main() && !is_taken(id) {
            return id;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_go_round_without_the_main_one_and_those_in_use() {
        let taken = |id: SocketId| [1, 2, 7].contains(&id.number());
        assert_eq!(next_free(SocketId::MAIN, taken), SocketId::new(3));
        assert_eq!(next_free(SocketId::new(3), taken), SocketId::new(4));
        assert_eq!(next_free(SocketId::new(6), taken), SocketId::new(8));
        assert_eq!(next_free(SocketId::new(u16::MAX), taken), SocketId::new(3));
    }
}
