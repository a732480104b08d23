//! Who a WireGuard message is for: 24-bit random indices, one per tunnel.

use std::collections::HashMap;
use std::hash::Hash;

use rand_core::CryptoRng;

/// Names a tunnel on this agent. The library appends 8 bits that count handshakes, so this has 24.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TunnelIndex(u32);

impl TunnelIndex {
    /// The number, below 2^24.
    #[must_use]
    pub fn value(self) -> u32 {
        self.0
    }

    /// The tunnel a receiver index on the wire belongs to.
    #[must_use]
    pub fn of_receiver(receiver_index: u32) -> Self {
        Self(receiver_index >> 8)
    }
}

/// Hands out unused random indices. Random, so that a peer's messages for an earlier life of this agent meet no session.
#[derive(Debug)]
pub struct IndexTable<K> {
    owners: HashMap<TunnelIndex, K>,
}

impl<K: Copy + Eq + Hash> IndexTable<K> {
    /// No index in use.
    #[must_use]
    pub fn new() -> Self {
        Self { owners: HashMap::new() }
    }

    /// An unused index for `owner`. The table is far from full with any number of peers an agent may have.
    pub fn allocate(&mut self, owner: K, rng: &mut dyn CryptoRng) -> TunnelIndex {
        loop {
            let index = TunnelIndex(rng.next_u32() >> 8);
            if let std::collections::hash_map::Entry::Vacant(free) = self.owners.entry(index) {
                free.insert(owner);
                return index;
            }
        }
    }

    /// Whose tunnel this is.
    #[must_use]
    pub fn owner(&self, index: TunnelIndex) -> Option<K> {
        self.owners.get(&index).copied()
    }

    /// How many are in use.
    #[must_use]
    pub fn in_use(&self) -> usize {
        self.owners.len()
    }

    /// Frees an index.
    pub fn release(&mut self, index: TunnelIndex) {
        self.owners.remove(&index);
    }
}

impl<K: Copy + Eq + Hash> Default for IndexTable<K> {
    fn default() -> Self {
        Self::new()
    }
}
