//! Who may use how much of a receive round when more arrives than can be served.
//!
//! A round that came back full means that datagrams wait in the kernel, where the loudest sender takes the room of the
//! others. From such a round, [`SERVED_OF_8`] eighths are passed on, shared max-min: whoever asked for less than the
//! level gets all, the others get the level. Whoever took no more than an equal part of the round loses nothing.

use std::collections::HashMap;
use std::hash::Hash;

/// Of a full round so many eighths of the bytes are passed on, unless all ask for the same. Little enough that a greedy
/// sender's congestion control notices, and enough that the link is not left idle.
const SERVED_OF_8: u64 = 6;

/// The shares of one round. Keeps its memory between rounds.
#[derive(Debug)]
pub(super) struct FairShares<K> {
    users: HashMap<K, Usage>,
    demands: Vec<u64>,
    /// What each may use in this round, bytes; `None` without a limit.
    level: Option<u64>,
}

#[derive(Debug, Default)]
struct Usage {
    wanted: u64,
    used: u64,
}

impl<K: Copy + Eq + Hash> FairShares<K> {
    /// No limit. Rounds with up to this many users need no further memory.
    pub(super) fn new(users: usize) -> Self {
        Self { users: HashMap::with_capacity(users), demands: Vec::with_capacity(users), level: None }
    }

    /// A new round, without limit until [`limit`](Self::limit).
    pub(super) fn begin(&mut self) {
        self.users.clear();
        self.level = None;
    }

    /// Somebody would like to use so many bytes of the round.
    pub(super) fn weigh(&mut self, user: K, bytes: usize) {
        self.users.entry(user).or_default().wanted += bytes as u64;
    }

    /// All were weighed: from now on each has its share.
    pub(super) fn limit(&mut self) {
        self.demands.clear();
        self.demands.extend(self.users.values().map(|usage| usage.wanted));
        self.level = level(&mut self.demands);
    }

    /// Whether so many bytes are still within the user's share; if so, they are used.
    pub(super) fn admit(&mut self, user: K, bytes: usize) -> bool {
        let Some(level) = self.level else { return true };
        let usage = self.users.entry(user).or_default();
        let used = usage.used + bytes as u64;
        // A share that ends inside a frame covers it, so that a share below one frame still carries one.
        let within = usage.used < level;
        if within {
            usage.used = used;
        }
        within
    }
}

/// The most that each may use. `None` without users.
fn level(demands: &mut [u64]) -> Option<u64> {
    demands.sort_unstable();
    let total: u64 = demands.iter().sum();
    let users = u64::try_from(demands.len()).ok().filter(|users| *users > 0)?;
    let mut left = total / 8 * SERVED_OF_8;
    let mut level = u64::MAX;
    for (demand, sharing) in demands.iter().zip((1..=users).rev()) {
        level = left / sharing;
        if *demand > level {
            break;
        }
        left -= demand;
    }
    Some(level.max(total.div_ceil(users)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Frames of 1,000 bytes that each user gets through a limited round.
    fn round(frames: &[usize]) -> Vec<usize> {
        let mut shares = FairShares::new(8);
        shares.begin();
        for (user, count) in frames.iter().enumerate() {
            (0..*count).for_each(|_| shares.weigh(user, 1000));
        }
        shares.limit();
        frames
            .iter()
            .enumerate()
            .map(|(user, count)| (0..*count).filter(|_| shares.admit(user, 1000)).count())
            .collect()
    }

    #[test]
    fn the_greedy_one_loses_and_nobody_else() {
        assert_eq!(round(&[900, 50, 50]), [650, 50, 50]);
        assert_eq!(round(&[500, 480, 20]), [365, 365, 20]);
    }

    #[test]
    fn equals_and_a_single_user_lose_nothing() {
        assert_eq!(round(&[100; 5]), [100; 5]);
        assert_eq!(round(&[1000]), [1000]);
        assert_eq!(round(&[]), Vec::<usize>::new());
    }

    #[test]
    fn without_a_limit_everything_passes() {
        let mut shares = FairShares::new(8);
        shares.begin();
        assert!((0..1000).all(|_| shares.admit(1, 65_535)));
        shares.weigh(1, 10);
        shares.weigh(2, 1_000_000);
        shares.limit();
        assert!((0..1000).any(|_| !shares.admit(2, 65_535)));
        shares.begin();
        assert!((0..1000).all(|_| shares.admit(2, 65_535)));
    }

    proptest! {
        #[test]
        fn shares_are_max_min(frames in proptest::collection::vec(0usize..200, 1..20)) {
            let passed = round(&frames);
            let total: usize = frames.iter().sum();
            let most = *passed.iter().max().unwrap();
            for (asked, got) in frames.iter().zip(&passed) {
                prop_assert!(got <= asked);
                // Who lost something got as much as anybody, to a frame.
                prop_assert!(got == asked || got + 1 >= most);
                prop_assert!(*asked > total / frames.len() || got == asked);
            }
            // At least what is to be served is served.
            prop_assert!(passed.iter().sum::<usize>() + frames.len() >= total * 6 / 8);
        }
    }
}
