//! Who may seal for a peer, where several queues carry packets to it.
//!
//! A datagram has its number from when it is sealed, and a receiver takes none that is more than a window behind the
//! newest (1,024 here; RFC 6479). Two threads that seal for one peer and send on their own would have to be lucky: one
//! that loses its processor in between for a few milliseconds finds its batch too old. So a thread has its turn with a
//! peer from before it seals the first packet until all are sent.

use std::array;

use parking_lot::{Mutex, MutexGuard};

use crate::identity::AgentId;

/// Turns of all peers: those of a share of them are one.
const SHARES: usize = 64;
/// Turns that one batch has at once, at most.
const MOST: usize = 8;

/// The turns of all peers.
#[derive(Debug)]
pub struct Turns {
    shares: [Mutex<()>; SHARES],
}

/// What one batch has of them. It gives them back when it is dropped.
#[derive(Debug, Default)]
pub struct HeldTurns<'a> {
    /// None where there is one queue only: it is always its turn.
    all: Option<&'a Turns>,
    held: [Option<(usize, MutexGuard<'a, ()>)>; MOST],
}

impl Default for Turns {
    fn default() -> Self {
        Self { shares: array::from_fn(|_| Mutex::new(())) }
    }
}

impl Turns {
    /// For one batch, which has none yet.
    #[must_use]
    pub fn for_batch(&self) -> HeldTurns<'_> {
        HeldTurns { all: Some(self), held: Default::default() }
    }
}

impl HeldTurns<'_> {
    /// Takes the turn with a peer. Waits for it only if the batch has no other: who has one never waits, so that no two
    /// can wait for each other. False: what is sealed must be sent first, and all given back.
    pub(super) fn take(&mut self, peer: &AgentId) -> bool {
        // A key's bits are as good as random.
        let [byte, ..] = peer.as_bytes();
        self.take_share(usize::from(*byte) % SHARES)
    }

    fn take_share(&mut self, share: usize) -> bool {
        let Some(all) = self.all else { return true };
        if self.held.iter().flatten().any(|(held, _)| *held == share) {
            return true;
        }
        let is_first = self.held.iter().all(Option::is_none);
        let (Some(turn), Some(room)) = (all.shares.get(share), self.held.iter_mut().find(|held| held.is_none())) else {
            return false;
        };
        let taken = if is_first { Some(turn.lock()) } else { turn.try_lock() };
        *room = taken.map(|guard| (share, guard));
        room.is_some()
    }

    /// Gives all back.
    pub(super) fn give_back(&mut self) {
        self.held = Default::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_queue_needs_none() {
        let mut turns = HeldTurns::default();
        assert!((0..SHARES).all(|share| turns.take_share(share)));
    }

    #[test]
    fn a_turn_is_one_batchs_until_it_is_given_back() {
        let turns = Turns::default();
        let (mut first, mut second) = (turns.for_batch(), turns.for_batch());
        assert!(first.take_share(1) && first.take_share(1), "a turn is taken once");
        assert!(second.take_share(2));
        assert!(!second.take_share(1) && !first.take_share(2), "who has a turn waits for none");
        first.give_back();
        assert!(second.take_share(1));
        drop(second);
        assert!(first.take_share(1) && first.take_share(2));
    }

    #[test]
    fn a_batch_has_so_many_at_most() {
        let turns = Turns::default();
        let mut batch = turns.for_batch();
        assert_eq!((0..SHARES).filter(|share| batch.take_share(*share)).count(), MOST);
        assert!(batch.take_share(0) && !batch.take_share(63));
        batch.give_back();
        assert!(batch.take_share(63));
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "two threads are what is tested")]
    fn the_first_turn_is_waited_for() {
        let turns = Turns::default();
        let mut held = turns.for_batch();
        assert!(held.take_share(1));
        std::thread::scope(|scope| {
            let other = scope.spawn(|| turns.for_batch().take_share(1));
            std::thread::sleep(std::time::Duration::from_millis(20));
            assert!(!other.is_finished());
            held.give_back();
            assert!(other.join().unwrap());
        });
    }
}
