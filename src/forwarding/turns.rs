//! Who may seal for a peer, where several queues carry packets to it.
//!
//! A datagram has its number from when it is sealed, and a receiver takes none that is more than a window behind the
//! newest (1,024 here; RFC 6479). Two threads that seal for one peer and send on their own would have to be lucky: one
//! that loses its processor in between for a few milliseconds finds its batch too old. So a thread has its turn with a
//! peer from before it seals the first packet until all are sent.

use std::array;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};

use crate::identity::AgentId;

/// Turns of all peers: those of a share of them are one.
const SHARES: usize = 64;
/// Turns that one batch has at once, at most.
const MOST: usize = 8;
/// How long a turn is waited for at a time.
const NAP: Duration = Duration::from_millis(1);

/// The turns of all peers.
#[derive(Debug)]
pub struct Turns {
    shares: [Mutex<()>; SHARES],
}

/// What one batch has of them. It gives them back when it is dropped.
#[derive(Default)]
pub struct HeldTurns<'a> {
    /// None where there is one queue only: it is always its turn.
    all: Option<&'a Turns>,
    /// What else there is to do while a turn is waited for.
    meanwhile: Option<&'a mut dyn FnMut()>,
    held: [Option<(usize, MutexGuard<'a, ()>)>; MOST],
}

impl Default for Turns {
    fn default() -> Self {
        Self { shares: array::from_fn(|_| Mutex::new(())) }
    }
}

impl<'a> HeldTurns<'a> {
    /// For one batch, which has none yet. `meanwhile` is called again and again while it waits for a turn.
    #[must_use]
    pub fn new(all: Option<&'a Turns>, meanwhile: &'a mut dyn FnMut()) -> Self {
        Self { all, meanwhile: Some(meanwhile), held: Default::default() }
    }

    /// Does what else there is to do.
    pub fn meanwhile(&mut self) {
        if let Some(meanwhile) = &mut self.meanwhile {
            meanwhile();
        }
    }

    /// Takes the turn with a peer. Waits for it only if the batch has no other: who has one never waits, so that no two
    /// can wait for each other. False: what is sealed must be sent first, and all given back.
    pub(super) fn take(&mut self, peer: &AgentId) -> bool {
        // A key's bits are as good as random.
        let [byte, ..] = peer.as_bytes();
        self.take_share(usize::from(*byte) % SHARES)
    }

    fn take_share(&mut self, share: usize) -> bool {
        let Some(turn) = self.all.map(|all| all.shares.get(share)) else { return true };
        if self.held.iter().flatten().any(|(held, _)| *held == share) {
            return true;
        }
        let is_first = self.held.iter().all(Option::is_none);
        let (Some(turn), Some(room)) = (turn, self.held.iter().position(Option::is_none)) else { return false };
        let mut taken = turn.try_lock();
        while is_first && taken.is_none() {
            self.meanwhile();
            taken = turn.try_lock_for(NAP);
        }
        let is_taken = taken.is_some();
        if let Some(room) = self.held.get_mut(room) {
            *room = taken.map(|guard| (share, guard));
        }
        is_taken
    }

    /// Gives all back.
    pub(super) fn give_back(&mut self) {
        self.held = Default::default();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn one_queue_needs_none() {
        let mut turns = HeldTurns::default();
        assert!((0..SHARES).all(|share| turns.take_share(share)));
    }

    #[test]
    fn a_turn_is_one_batchs_until_it_is_given_back() {
        let turns = Turns::default();
        let (mut idle, mut idle_too) = (|| {}, || {});
        let (mut first, mut second) =
            (HeldTurns::new(Some(&turns), &mut idle), HeldTurns::new(Some(&turns), &mut idle_too));
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
        let mut idle = || {};
        let mut batch = HeldTurns::new(Some(&turns), &mut idle);
        assert_eq!((0..SHARES).filter(|share| batch.take_share(*share)).count(), MOST);
        assert!(batch.take_share(0) && !batch.take_share(63));
        batch.give_back();
        assert!(batch.take_share(63));
    }

    #[test]
    fn the_first_turn_is_waited_for_and_the_rest_goes_on_meanwhile() {
        let (turns, busy) = (Turns::default(), AtomicUsize::new(0));
        let mut idle = || {};
        let mut held = HeldTurns::new(Some(&turns), &mut idle);
        assert!(held.take_share(1));
        std::thread::scope(|scope| {
            let other = scope.spawn(|| {
                HeldTurns::new(Some(&turns), &mut || {
                    busy.fetch_add(1, Ordering::Relaxed);
                })
                .take_share(1)
            });
            while busy.load(Ordering::Relaxed) < 3 {
                std::thread::yield_now();
            }
            assert!(!other.is_finished());
            held.give_back();
            assert!(other.join().unwrap());
        });
    }
}
