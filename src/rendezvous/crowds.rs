//! Who gives way when a table is full. Anybody can make keys without end, but not addresses: entries count by the
//! network they came from, and the one with the most makes room for the others.

use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;

/// A source network, as [`crate::trust::source_network`] tells it.
pub(super) type Network = [u8; 6];

/// The entries of a table by group. Every operation costs O(log n).
#[derive(Debug)]
pub(super) struct Crowds<G, I> {
    groups: HashMap<G, BTreeSet<I>>,
    by_size: BTreeSet<(usize, G)>,
}

impl<G: Copy + Ord + Hash, I: Ord + Copy> Crowds<G, I> {
    /// No entries.
    pub(super) fn new() -> Self {
        Self { groups: HashMap::new(), by_size: BTreeSet::new() }
    }

    /// An entry; within its group the lesser ones give way first.
    pub(super) fn insert(&mut self, group: G, entry: I) {
        let entries = self.groups.entry(group).or_default();
        let before = entries.len();
        if entries.insert(entry) {
            self.by_size.remove(&(before, group));
            self.by_size.insert((before + 1, group));
        }
    }

    /// The entry is gone.
    pub(super) fn remove(&mut self, group: G, entry: &I) -> bool {
        let Some(entries) = self.groups.get_mut(&group) else { return false };
        let before = entries.len();
        let was_there = entries.remove(entry);
        if was_there {
            self.by_size.remove(&(before, group));
            if before > 1 {
                self.by_size.insert((before - 1, group));
            } else {
                self.groups.remove(&group);
            }
        }
        was_there
    }

    /// How many entries a group has.
    pub(super) fn size(&self, group: G) -> usize {
        self.groups.get(&group).map_or(0, BTreeSet::len)
    }

    /// The largest group, if it keeps at least as many as the newcomer's has after one moved from it to that.
    pub(super) fn crowded(&self, newcomer: G) -> Option<G> {
        self.largest().filter(|(size, _)| *size > self.size(newcomer) + 1).map(|(_, group)| group)
    }

    /// The largest group and its size.
    pub(super) fn largest(&self) -> Option<(usize, G)> {
        self.by_size.last().copied()
    }

    /// The entry of a group that gives way first.
    pub(super) fn first(&self, group: G) -> Option<I> {
        self.groups.get(&group)?.first().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_largest_gives_way_but_not_to_its_equals() {
        let mut crowds = Crowds::new();
        for (group, entry) in [(1, 7), (1, 5), (1, 9), (2, 1), (2, 2)] {
            crowds.insert(group, entry);
        }
        assert_eq!((crowds.crowded(3), crowds.first(1)), (Some(1), Some(5)));
        assert_eq!(crowds.crowded(2), None, "it would have more then");
        assert_eq!(crowds.crowded(1), None);
        assert!(crowds.remove(1, &5) && crowds.remove(1, &7) && !crowds.remove(1, &7));
        assert_eq!((crowds.crowded(3), crowds.first(2)), (Some(2), Some(1)));
    }

    proptest! {
        #[test]
        fn sizes_are_those_of_the_groups(acts in proptest::collection::vec((0u8..4, 0u8..4, any::<bool>()), 0..60)) {
            let mut crowds = Crowds::new();
            let mut entries = BTreeSet::new();
            for (group, entry, add) in acts {
                if add {
                    crowds.insert(group, entry);
                    entries.insert((group, entry));
                } else {
                    prop_assert_eq!(crowds.remove(group, &entry), entries.remove(&(group, entry)));
                }
                let size = |group| entries.iter().filter(|(of, _)| *of == group).count();
                prop_assert_eq!(crowds.largest().map(|(size, _)| size), (0..4).map(size).max().filter(|most| *most > 0));
                prop_assert!((0..4).all(|group| crowds.size(group) == size(group)));
                prop_assert_eq!(crowds.by_size.len(), crowds.groups.len());
            }
        }
    }
}
