//! Introductions to agents that are not there now.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::crowds::{Crowds, Network};
use crate::identity::AgentId;
use crate::identity::ticket::is_usable_address;
use crate::trust::source_network;
use crate::wire::control::MAX_SEALED_LEN;

/// For how long one is kept: an agent that is away for a week comes back to what happened in it.
pub const INTRODUCTION_LIFETIME: Duration = Duration::from_secs(7 * 24 * 3600);
/// Kept for one recipient, from all senders: what a person can look through.
pub(super) const MAX_PER_RECIPIENT: usize = 8;
/// Kept for one recipient from one sender; a further one replaces the oldest.
pub(super) const MAX_PER_PAIR: usize = 4;
/// Kept from one sender, for all recipients, so that none can fill the store.
pub(super) const MAX_PER_SENDER: usize = 64;

/// Version of the row format.
const VERSION: u8 = 1;

/// An introduction that waits for its recipient.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredIntroduction {
    /// Names it among all that are kept; grows.
    pub number: u64,
    /// Whom it is for.
    pub recipient: AgentId,
    /// Who handed it in.
    pub sender: AgentId,
    /// Where the sender's session came from.
    pub observed: SocketAddr,
    /// When it is forgotten, milliseconds since 1970.
    pub until_ms: u64,
    /// The introduction, opaque to the server.
    pub sealed: Vec<u8>,
}

/// A row cannot be read: it is damaged or of another version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("damaged row of an introduction, or one of another version")]
pub struct RowError;

impl StoredIntroduction {
    /// The row.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        // Serialising plain data into memory has no way to fail.
        postcard::to_extend(self, vec![VERSION]).unwrap_or_default()
    }

    /// Reads a row.
    ///
    /// # Errors
    /// [`RowError`] for anything [`encode`](Self::encode) did not write.
    pub fn decode(row: &[u8]) -> Result<Self, RowError> {
        let body = row.strip_prefix(&[VERSION]).ok_or(RowError)?;
        let stored: Self = postcard::from_bytes(body).map_err(|_| RowError)?;
        let fits = (1..=MAX_SEALED_LEN).contains(&stored.sealed.len()) && is_usable_address(&stored.observed);
        if fits { Ok(stored) } else { Err(RowError) }
    }
}

/// What is kept.
#[derive(Debug)]
pub(super) struct Introductions {
    /// Oldest first.
    kept: HashMap<AgentId, VecDeque<StoredIntroduction>>,
    per_sender: HashMap<AgentId, usize>,
    /// By the network of the sender, the oldest first.
    crowds: Crowds<Network, (u64, AgentId)>,
    total: usize,
    next: u64,
    limit: usize,
}

/// What to keep.
#[derive(Debug)]
pub(super) struct ToKeep {
    pub(super) recipient: AgentId,
    pub(super) sender: AgentId,
    pub(super) observed: SocketAddr,
    pub(super) sealed: Vec<u8>,
}

/// It is kept.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Kept {
    /// As it is to be stored.
    pub(super) stored: StoredIntroduction,
    /// The number of the one it replaces.
    pub(super) replaced: Option<u64>,
}

impl Introductions {
    /// None kept; at most `limit`.
    pub(super) fn new(limit: usize) -> Self {
        Self { kept: HashMap::new(), per_sender: HashMap::new(), crowds: Crowds::new(), total: 0, next: 0, limit }
    }

    /// How many are kept.
    pub(super) fn len(&self) -> usize {
        self.total
    }

    /// Keeps one, if there is room.
    pub(super) fn keep(&mut self, unix_ms: u64, new: ToKeep) -> Option<Kept> {
        let replaced = self.place_for(&new)?;
        if let Some((number, recipient)) = replaced {
            self.remove(&recipient, number);
        }
        let lifetime_ms = u64::try_from(INTRODUCTION_LIFETIME.as_millis()).unwrap_or(u64::MAX);
        let stored = StoredIntroduction {
            number: self.next,
            recipient: new.recipient,
            sender: new.sender,
            observed: new.observed,
            until_ms: unix_ms.saturating_add(lifetime_ms),
            sealed: new.sealed,
        };
        self.insert(stored.clone());
        Some(Kept { stored, replaced: replaced.map(|(number, _)| number) })
    }

    /// Which one a new one replaces, by number and recipient; `Some(None)` when there is room, `None` when there is none.
    fn place_for(&self, new: &ToKeep) -> Option<Option<(u64, AgentId)>> {
        let none = VecDeque::new();
        let waiting = self.kept.get(&new.recipient).unwrap_or(&none);
        let mut of_pair = waiting.iter().filter(|other| other.sender == new.sender);
        if let Some(oldest) = of_pair.next().filter(|_| of_pair.count() + 1 >= MAX_PER_PAIR) {
            return Some(Some((oldest.number, new.recipient)));
        }
        if self.per_sender.get(&new.sender).copied().unwrap_or(0) >= MAX_PER_SENDER {
            return None;
        }
        let network = source_network(new.observed.ip());
        if waiting.len() >= MAX_PER_RECIPIENT {
            let of_sender = oldest_of_crowd(waiting, |other| other.sender, new.sender);
            let number =
                of_sender.or_else(|| oldest_of_crowd(waiting, |other| source_network(other.observed.ip()), network))?;
            return Some(Some((number, new.recipient)));
        }
        if self.total >= self.limit {
            return self.crowds.first(self.crowds.crowded(network)?).map(Some);
        }
        Some(None)
    }

    /// One from an earlier life. False when a limit is reached.
    pub(super) fn restore(&mut self, stored: StoredIntroduction) -> bool {
        let waiting = self.kept.get(&stored.recipient);
        if self.total >= self.limit || waiting.map_or(0, VecDeque::len) >= MAX_PER_RECIPIENT {
            return false;
        }
        self.insert(stored);
        true
    }

    /// The oldest one for this agent, which is kept no more.
    pub(super) fn take(&mut self, recipient: &AgentId) -> Option<StoredIntroduction> {
        let number = self.kept.get(recipient)?.front()?.number;
        self.remove(recipient, number)
    }

    /// Forgets what was kept for too long, and returns its numbers.
    pub(super) fn expire(&mut self, unix_ms: u64) -> Vec<u64> {
        let all = self.kept.values().flatten();
        let expired: Vec<(AgentId, u64)> =
            all.filter(|kept| kept.until_ms <= unix_ms).map(|kept| (kept.recipient, kept.number)).collect();
        for (recipient, number) in &expired {
            self.remove(recipient, *number);
        }
        expired.into_iter().map(|(_, number)| number).collect()
    }

    fn insert(&mut self, stored: StoredIntroduction) {
        self.next = self.next.max(stored.number.saturating_add(1));
        self.total += 1;
        *self.per_sender.entry(stored.sender).or_default() += 1;
        self.crowds.insert(source_network(stored.observed.ip()), (stored.number, stored.recipient));
        self.kept.entry(stored.recipient).or_default().push_back(stored);
    }

    fn remove(&mut self, recipient: &AgentId, number: u64) -> Option<StoredIntroduction> {
        let waiting = self.kept.get_mut(recipient)?;
        let position = waiting.iter().position(|kept| kept.number == number)?;
        let removed = waiting.remove(position)?;
        if waiting.is_empty() {
            self.kept.remove(recipient);
        }
        self.total -= 1;
        self.crowds.remove(source_network(removed.observed.ip()), &(number, *recipient));
        if let Some(count) = self.per_sender.get_mut(&removed.sender) {
            *count -= 1;
            if *count == 0 {
                self.per_sender.remove(&removed.sender);
            }
        }
        Some(removed)
    }
}

/// The oldest one of the group with the most, unless the newcomer's would have as many then. At most
/// [`MAX_PER_RECIPIENT`] are looked at.
fn oldest_of_crowd<G: Eq>(
    waiting: &VecDeque<StoredIntroduction>,
    group_of: impl Fn(&StoredIntroduction) -> G,
    newcomer: G,
) -> Option<u64> {
    let count = |group: G| waiting.iter().filter(|other| group_of(other) == group).count();
    let most = waiting.iter().map(|other| count(group_of(other))).max()?;
    let yielding = waiting.iter().find(|other| count(group_of(other)) == most);
    yielding.filter(|_| most > count(newcomer) + 1).map(|oldest| oldest.number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::record::tests::key;
    use proptest::prelude::*;

    const NOW_MS: u64 = 1_800_000_000_000;

    fn new(sender: u8, recipient: u8, content: u8) -> ToKeep {
        ToKeep {
            recipient: key(recipient).id(),
            sender: key(sender).id(),
            observed: "192.0.2.1:9".parse().unwrap(),
            sealed: vec![content],
        }
    }

    fn from(sender: u8, observed: &str, recipient: u8) -> ToKeep {
        ToKeep { observed: observed.parse().unwrap(), ..new(sender, recipient, sender) }
    }

    fn drain(store: &mut Introductions, recipient: u8) -> Vec<u8> {
        std::iter::from_fn(|| store.take(&key(recipient).id())).map(|stored| stored.sealed[0]).collect()
    }

    #[test]
    fn a_senders_oldest_gives_way_to_its_newest() {
        let mut store = Introductions::new(100);
        let kept: Vec<Kept> = (0..6).map(|content| store.keep(NOW_MS, new(1, 2, content)).unwrap()).collect();
        let replaced: Vec<Option<u64>> = kept.iter().map(|kept| kept.replaced).collect();
        assert_eq!(replaced, [None, None, None, None, Some(0), Some(1)]);
        assert_eq!(drain(&mut store, 2), [2, 3, 4, 5]);
        assert_eq!((store.total, store.kept.len(), store.per_sender.len()), (0, 0, 0));
    }

    #[test]
    fn limits_per_recipient_sender_and_in_all() {
        let mut store = Introductions::new(MAX_PER_SENDER + 1);
        for sender in 1..=8 {
            assert!(store.keep(NOW_MS, new(sender, 100, sender)).is_some());
        }
        assert!(store.keep(NOW_MS, new(9, 100, 0)).is_none(), "the recipient's place is used up");
        assert_eq!(drain(&mut store, 100).len(), MAX_PER_RECIPIENT);
        for recipient in 0..MAX_PER_SENDER as u8 {
            assert!(store.keep(NOW_MS, new(200, 100 + recipient, 0)).is_some());
        }
        assert!(store.keep(NOW_MS, new(200, 99, 0)).is_none(), "the sender's share is used up");
        assert!(store.keep(NOW_MS, new(201, 99, 0)).is_some());
        assert!(store.keep(NOW_MS, new(202, 99, 0)).is_none(), "everything is used up");
    }

    #[test]
    fn at_a_recipient_the_sender_or_network_with_most_gives_way() {
        let mut store = Introductions::new(100);
        for _ in 0..4 {
            store.keep(NOW_MS, from(1, "192.0.2.1:9", 100)).unwrap();
        }
        for sender in [2, 3, 4, 5] {
            store.keep(NOW_MS, from(sender, "192.0.2.1:9", 100)).unwrap();
        }
        // Of the first sender's four two give way, then its network's oldest.
        let replaced = [6, 7, 8].map(|sender| store.keep(NOW_MS, from(sender, "198.51.100.1:9", 100)));
        assert_eq!(replaced.map(|kept| kept.unwrap().replaced), [Some(0), Some(1), Some(2)]);
        assert_eq!(store.keep(NOW_MS, from(9, "198.51.100.1:9", 100)).unwrap().replaced, Some(3));
        assert_eq!(store.keep(NOW_MS, from(10, "198.51.100.1:9", 100)), None, "they have as many");
        assert_eq!(drain(&mut store, 100), [2, 3, 4, 5, 6, 7, 8, 9]);
    }

    #[test]
    fn within_one_network_the_sender_with_most_gives_way() {
        let mut store = Introductions::new(100);
        for sender in [2, 3, 4, 5, 1, 1, 1, 1] {
            store.keep(NOW_MS, from(sender, "192.0.2.1:9", 100)).unwrap();
        }
        assert_eq!([6, 7].map(|sender| store.keep(NOW_MS, new(sender, 100, 0)).unwrap().replaced), [Some(4), Some(5)]);
        assert_eq!(drain(&mut store, 100), [2, 3, 4, 5, 1, 1, 0, 0]);
    }

    #[test]
    fn in_a_full_store_the_network_with_most_gives_way() {
        let mut store = Introductions::new(4);
        for sender in 1..=4 {
            store.keep(NOW_MS, from(sender, "192.0.2.1:9", 100 + sender)).unwrap();
        }
        assert_eq!(store.keep(NOW_MS, from(5, "192.0.2.9:9", 99)), None, "its own has the most");
        assert_eq!(store.keep(NOW_MS, from(6, "198.51.100.1:9", 99)).unwrap().replaced, Some(0));
        assert_eq!(store.keep(NOW_MS, from(7, "198.51.100.1:9", 98)).unwrap().replaced, Some(1));
        assert_eq!(store.keep(NOW_MS, from(8, "198.51.100.1:9", 97)), None, "they have as many");
        assert_eq!((drain(&mut store, 101), drain(&mut store, 99)), (vec![], vec![6]));
        assert_eq!((store.total, store.crowds.size([0, 0, 0, 192, 0, 2])), (3, 2));
    }

    #[test]
    fn a_week_later_it_is_forgotten() {
        let mut store = Introductions::new(10);
        let until = store.keep(NOW_MS, new(1, 2, 7)).unwrap().stored.until_ms;
        assert_eq!(until, NOW_MS + 7 * 24 * 3_600_000);
        assert_eq!(store.expire(until - 1), Vec::<u64>::new());
        assert_eq!(store.expire(until), [0]);
        assert_eq!(drain(&mut store, 2), Vec::<u8>::new());
    }

    #[test]
    fn numbers_go_on_after_a_restart() {
        let mut store = Introductions::new(2);
        let first = store.keep(NOW_MS, new(1, 2, 7)).unwrap().stored;
        let mut later = Introductions::new(2);
        assert!(later.restore(first.clone()));
        assert_eq!(later.keep(NOW_MS, new(1, 2, 8)).unwrap().stored.number, first.number + 1);
        assert!(!later.restore(first));
    }

    proptest! {
        #[test]
        fn rows_round_trip_and_damaged_ones_never_panic(number: u64, until_ms: u64, sealed in proptest::collection::vec(any::<u8>(), 1..50), at: prop::sample::Index, change: u8) {
            let ToKeep { recipient, sender, observed, .. } = new(1, 2, 0);
            let stored = StoredIntroduction { number, recipient, sender, observed, until_ms, sealed };
            let mut row = stored.encode();
            prop_assert_eq!(StoredIntroduction::decode(&row), Ok(stored));
            let at = at.index(row.len());
            row[at] ^= change;
            let _ = StoredIntroduction::decode(&row);
            prop_assert!(StoredIntroduction::decode(&row[..at]).is_err());
        }
    }
}
