//! A table in parts, for snapshots that share what did not change.
//!
//! A copy of the whole table costs a counter per part, and a change to the copy costs one part. With a thousand peers a
//! change of one is a fiftieth of the work, and so is what is left to the packet thread that drops the last snapshot.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::Arc;

use crate::tunnel::TunnelIndex;

/// About the square root of the most entries there can be: two for each of 4,096 peers.
const PARTS: usize = 64;

/// A key, part of which is as good as random.
pub(super) trait Spread {
    /// That part.
    fn spread(&self) -> u32;
}

impl Spread for TunnelIndex {
    fn spread(&self) -> u32 {
        self.value()
    }
}

/// Addresses end in digests of keys.
impl Spread for IpAddr {
    fn spread(&self) -> u32 {
        match self {
            Self::V4(v4) => v4.to_bits(),
            Self::V6(v6) => v6.octets()[15].into(),
        }
    }
}

/// See the [module](self).
#[derive(Debug, Clone)]
pub(super) struct Parted<K, V> {
    parts: [Arc<HashMap<K, V>>; PARTS],
}

impl<K, V> Default for Parted<K, V> {
    fn default() -> Self {
        Self { parts: std::array::from_fn(|_| Arc::default()) }
    }
}

impl<K: Spread + Copy + Eq + Hash, V: Clone> Parted<K, V> {
    pub(super) fn get(&self, key: &K) -> Option<&V> {
        self.parts[Self::part(key)].get(key)
    }

    pub(super) fn insert(&mut self, key: K, value: V) {
        Arc::make_mut(&mut self.parts[Self::part(&key)]).insert(key, value);
    }

    pub(super) fn remove(&mut self, key: &K) -> Option<V> {
        let part = &mut self.parts[Self::part(key)];
        // What is not there needs no copy.
        part.contains_key(key).then(|| Arc::make_mut(part).remove(key)).flatten()
    }

    fn part(key: &K) -> usize {
        key.spread() as usize % PARTS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_shares_every_part_but_the_changed_one() {
        let mut table = Parted::default();
        let index = |number: u32| TunnelIndex::of_receiver(number << 8);
        for number in 0..1000 {
            table.insert(index(number), number);
        }
        let before = table.clone();
        table.insert(index(1000), 1000);
        assert_eq!(table.remove(&index(2000)), None);
        let shared = table.parts.iter().zip(&before.parts).filter(|(new, old)| Arc::ptr_eq(new, old));
        assert_eq!(shared.count(), PARTS - 1);
        assert_eq!((table.get(&index(1000)), before.get(&index(1000))), (Some(&1000), None));
        assert_eq!(table.remove(&index(7)), Some(7));
        assert_eq!((table.get(&index(7)), before.get(&index(7))), (None, Some(&7)));
        assert!((0..1000).all(|number| before.get(&index(number)) == Some(&number)));
    }
}
