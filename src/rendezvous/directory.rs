//! The records of agents that are, or were, clients.

use std::collections::{BTreeMap, HashMap};

use super::crowds::{Crowds, Network};
use crate::identity::{AgentId, SignedRecord};

/// What is remembered.
#[derive(Debug)]
pub(super) struct Directory {
    entries: HashMap<AgentId, Entry>,
    /// Those that are not clients now, by when they ceased to be, the longest gone first.
    past: BTreeMap<u64, AgentId>,
    /// The same by network.
    crowds: Crowds<Network, u64>,
    next: u64,
    limit: usize,
}

#[derive(Debug)]
struct Entry {
    record: SignedRecord,
    /// Its key in `past`; `None` while it is a client.
    place: Option<u64>,
    /// Where the agent was; zeros if that was in an earlier life of the server.
    network: Network,
}

/// What became of a record that was shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Learned {
    /// It is remembered in place of an earlier one, or as the first.
    New,
    /// The same, or a later one, is remembered already.
    Known,
    /// A later record of this agent names another tunnel key: whoever has this one is the agent no more.
    KeyReplaced,
}

impl Directory {
    /// Nothing remembered; at most `limit` records, which must be more than there can be clients.
    pub(super) fn new(limit: usize) -> Self {
        Self { entries: HashMap::new(), past: BTreeMap::new(), crowds: Crowds::new(), next: 0, limit }
    }

    /// The record of a client of this network. Returns with it the past client that was forgotten to make room.
    pub(super) fn register(&mut self, record: &SignedRecord, network: Network) -> (Learned, Option<AgentId>) {
        if let Some(entry) = self.entries.get_mut(&record.id()) {
            let known = !record.supersedes(&entry.record);
            if known && record.record().tunnel_key != entry.record.record().tunnel_key {
                return (Learned::KeyReplaced, None);
            }
            if let Some(place) = entry.place.take() {
                self.past.remove(&place);
                self.crowds.remove(entry.network, &place);
            }
            entry.network = network;
            if known {
                return (Learned::Known, None);
            }
            entry.record = record.clone();
            return (Learned::New, None);
        }
        let evicted = self.make_room();
        self.entries.insert(record.id(), Entry { record: record.clone(), place: None, network });
        (Learned::New, evicted)
    }

    /// A record from an earlier life. False when there is no room, or a later one is there.
    pub(super) fn restore(&mut self, record: SignedRecord) -> bool {
        if self.entries.len() >= self.limit || self.entries.contains_key(&record.id()) {
            return false;
        }
        let id = record.id();
        self.entries.insert(id, Entry { record, place: None, network: Network::default() });
        self.left(id);
        true
    }

    /// How many records are remembered.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// The agent is a client no more.
    pub(super) fn left(&mut self, id: AgentId) {
        let Some(entry) = self.entries.get_mut(&id).filter(|entry| entry.place.is_none()) else { return };
        entry.place = Some(self.next);
        self.past.insert(self.next, id);
        self.crowds.insert(entry.network, self.next);
        self.next += 1;
    }

    /// The record of an agent, unless it has expired.
    pub(super) fn get(&self, id: &AgentId, unix_s: u64) -> Option<&SignedRecord> {
        self.entries.get(id).map(|entry| &entry.record).filter(|record| !record.is_expired(unix_s))
    }

    /// Forgets past clients whose record has expired, and returns them.
    pub(super) fn expire(&mut self, unix_s: u64) -> Vec<AgentId> {
        let entries = &self.entries;
        let is_expired = |id: &&AgentId| entries.get(*id).is_none_or(|entry| entry.record.is_expired(unix_s));
        let expired: Vec<AgentId> = self.past.values().filter(is_expired).copied().collect();
        for id in &expired {
            self.remove(id);
        }
        expired
    }

    /// Of the network with the most past clients the longest gone gives way, or of all if none has two.
    fn make_room(&mut self) -> Option<AgentId> {
        if self.entries.len() < self.limit {
            return None;
        }
        let crowded = self.crowds.largest().filter(|(size, _)| *size > 1);
        let place = crowded.and_then(|(_, network)| self.crowds.first(network));
        let id = *place.and_then(|place| self.past.get(&place)).or_else(|| self.past.values().next())?;
        self.remove(&id);
        Some(id)
    }

    fn remove(&mut self, id: &AgentId) {
        let Some(entry) = self.entries.remove(id) else { return };
        if let Some(place) = entry.place {
            self.past.remove(&place);
            self.crowds.remove(entry.network, &place);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::TunnelSecret;
    use crate::identity::record::tests::{key, record, signed};

    const NOW: u64 = 1_800_000_000;
    const NETWORK: Network = [1; 6];

    fn record_with(agent: u8, sequence: u64, tunnel: u8) -> SignedRecord {
        let tunnel_key = TunnelSecret::from_bytes([tunnel; 32]).public();
        SignedRecord::sign(&key(agent), crate::identity::AgentRecord { sequence, tunnel_key, ..record(agent) }).unwrap()
    }

    #[test]
    fn past_clients_are_remembered_until_their_record_expires() {
        let mut directory = Directory::new(10);
        directory.register(&signed(1), NETWORK);
        directory.register(&signed(2), NETWORK);
        directory.left(signed(1).id());
        let expires = record(1).expires;
        assert_eq!(directory.get(&signed(1).id(), expires - 1), Some(&signed(1)));
        assert_eq!(directory.get(&signed(1).id(), expires), None);
        assert_eq!(directory.expire(expires - 1), []);
        assert_eq!(directory.expire(expires), [signed(1).id()]);
        assert_eq!((directory.entries.len(), directory.past.len()), (1, 0));
    }

    #[test]
    fn the_longest_gone_gives_way_and_clients_never_do() {
        let mut directory = Directory::new(3);
        for agent in 1..=3 {
            directory.register(&signed(agent), NETWORK);
        }
        directory.left(signed(2).id());
        directory.left(signed(1).id());
        assert_eq!(directory.register(&signed(2), NETWORK), (Learned::Known, None));
        assert_eq!(directory.register(&signed(4), NETWORK), (Learned::New, Some(signed(1).id())));
        assert_eq!(directory.get(&signed(1).id(), NOW), None);
        assert_eq!((directory.entries.len(), directory.past.len()), (3, 0));
    }

    #[test]
    fn a_network_with_many_past_clients_forgets_its_own() {
        let mut directory = Directory::new(4);
        for (agent, network) in [(1, [1; 6]), (2, [2; 6]), (3, [2; 6]), (4, [3; 6])] {
            directory.register(&signed(agent), network);
            directory.left(signed(agent).id());
        }
        assert_eq!(directory.register(&signed(5), NETWORK).1, Some(signed(2).id()));
        assert_eq!(directory.register(&signed(6), NETWORK).1, Some(signed(1).id()), "none has two");
        assert_eq!(directory.crowds.largest(), Some((1, [3; 6])));
    }

    #[test]
    fn a_replaced_key_registers_nobody() {
        let mut directory = Directory::new(3);
        assert_eq!(directory.register(&record_with(1, 5, 1), NETWORK).0, Learned::New);
        assert_eq!(directory.register(&record_with(1, 6, 2), NETWORK).0, Learned::New);
        assert_eq!(directory.register(&record_with(1, 5, 1), NETWORK).0, Learned::KeyReplaced);
        // An older record with the key in force is the same agent after a restored backup.
        assert_eq!(directory.register(&record_with(1, 4, 2), NETWORK).0, Learned::Known);
        assert_eq!(directory.get(&key(1).id(), NOW), Some(&record_with(1, 6, 2)));
    }

    #[test]
    fn restored_records_do_not_go_over_the_limit_or_back() {
        let mut directory = Directory::new(2);
        directory.register(&record_with(1, 5, 1), NETWORK);
        assert!(!directory.restore(record_with(1, 4, 1)));
        assert!(directory.restore(signed(2)));
        assert!(!directory.restore(signed(3)));
        assert_eq!(directory.past.len(), 1);
    }
}
