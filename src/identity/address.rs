//! Overlay addresses: the IPv6 address an agent's key proves, and local IPv4 aliases for peers.
//!
//! | bytes of the IPv6 address | content |
//! |---|---|
//! | 0..4 | `fd61:6e74` (a unique local prefix, RFC 4193; "an" and "nt" cut short) |
//! | 4..16 | first 96 bits of SHA-256("agentnet address v1" \|\| agent id) |

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};

use super::agent_id::AgentId;
use super::labelled_hash;

const ADDRESS_LABEL: &str = "agentnet address v1";
const ALIAS_LABEL: &str = "agentnet ipv4 alias v1";

/// The prefix of every agent's overlay IPv6 address.
pub const OVERLAY_PREFIX: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0xfd61, 0x6e74, 0, 0, 0, 0, 0, 0), 32);

/// The range of IPv4 aliases that every agent prefers: shared address space (RFC 6598), which no host on the internet has.
pub const DEFAULT_IPV4_RANGE: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(100, 64, 0, 0), 10);

/// Addresses at the start of an alias range that are never given out, left for the host's own use
/// (gateways, name server, hand-made entries). Includes the network address.
pub const RESERVED_ALIASES: u64 = 16;

/// Aliases in one table. More than this many trusted peers on one agent is beyond the design, and
/// it bounds the steps of a probe.
pub const MAX_ALIASES: usize = 16_384;

/// The overlay IPv6 address of an agent. Only the holder of the key can prove it.
pub fn overlay_ipv6(id: &AgentId) -> Ipv6Addr {
    let hash = labelled_hash(ADDRESS_LABEL, id.as_bytes());
    let mut octets = OVERLAY_PREFIX.addr().octets();
    for (octet, byte) in octets.iter_mut().skip(4).zip(hash) {
        *octet = byte;
    }
    Ipv6Addr::from(octets)
}

/// Whether an address lies in the overlay's prefix.
pub fn is_overlay(address: Ipv6Addr) -> bool {
    OVERLAY_PREFIX.contains(&address)
}

/// The IPv4 alias that a key prefers in a range: never the network address, the broadcast address
/// or one of the first [`RESERVED_ALIASES`].
///
/// Ranges smaller than /27 have nothing left after that, so there only the network and broadcast
/// addresses are kept free, and nothing in a /31 (RFC 3021) or /32.
pub fn preferred_ipv4(id: &AgentId, range: Ipv4Net) -> Ipv4Addr {
    let usable = Usable::of(range);
    usable.at(preferred_offset(id, &usable))
}

fn preferred_offset(id: &AgentId, usable: &Usable) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = labelled_hash(ALIAS_LABEL, id.as_bytes());
    u64::from_be_bytes([a, b, c, d, e, f, g, h]) % usable.count
}

/// The addresses of a range that may be given out: `count` (at least one) from `first`.
#[derive(Debug, Clone, Copy)]
struct Usable {
    first: u32,
    count: u64,
}

impl Usable {
    fn of(range: Ipv4Net) -> Self {
        let size = 1u64 << (32 - u32::from(range.prefix_len()));
        let (reserved, broadcast) = match range.prefix_len() {
            31 | 32 => (0, 0),
            28..=30 => (1, 1),
            _ => (RESERVED_ALIASES, 1),
        };
        let network = u32::from(range.network());
        Self { first: network + reserved as u32, count: size - reserved - broadcast }
    }

    /// The address at an offset, counted around the end.
    fn at(&self, offset: u64) -> Ipv4Addr {
        Ipv4Addr::from(self.first + (offset % self.count) as u32)
    }

    fn contains(&self, address: Ipv4Addr) -> bool {
        u64::from(u32::from(address)).checked_sub(u64::from(self.first)).is_some_and(|offset| offset < self.count)
    }
}

/// No alias is free: the range is used up, or the table holds [`MAX_ALIASES`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no free IPv4 alias in {range} ({assigned} in use); configure a larger range")]
pub struct Full {
    /// The table's range.
    pub range: Ipv4Net,
    /// Aliases in use, this agent's own among them.
    pub assigned: usize,
}

/// The IPv4 aliases of this agent and its peers in one range. An alias, once assigned, stays until
/// it is removed or the range changes. The agent's own alias is always its preferred one.
///
/// The same calls in the same order give the same aliases.
#[derive(Debug, Clone)]
pub struct AliasTable {
    own: AgentId,
    range: Ipv4Net,
    by_id: BTreeMap<AgentId, Ipv4Addr>,
    by_address: BTreeMap<Ipv4Addr, AgentId>,
}

impl AliasTable {
    /// A table with this agent's own alias in it.
    pub fn new(own: AgentId, range: Ipv4Net) -> Self {
        let mut table = Self { own, range: range.trunc(), by_id: BTreeMap::new(), by_address: BTreeMap::new() };
        table.put(own, preferred_ipv4(&own, range));
        table
    }

    /// The range that aliases come from.
    pub fn range(&self) -> Ipv4Net {
        self.range
    }

    /// This agent's own alias.
    pub fn own(&self) -> Ipv4Addr {
        preferred_ipv4(&self.own, self.range)
    }

    /// The alias of a peer, assigned now if it has none: its preferred one, else the next free one.
    ///
    /// # Errors
    /// [`Full`] if none is free.
    pub fn assign(&mut self, id: AgentId) -> Result<Ipv4Addr, Full> {
        if let Some(address) = self.get(&id) {
            return Ok(address);
        }
        let usable = Usable::of(self.range);
        if self.by_id.len() >= MAX_ALIASES || self.by_id.len() as u64 >= usable.count {
            return Err(self.full());
        }
        let preferred = preferred_offset(&id, &usable);
        // One more address than is taken: at least one of them is free.
        let address = (0..=self.by_id.len() as u64)
            .map(|step| usable.at(preferred + step))
            .find(|address| !self.by_address.contains_key(address))
            .ok_or_else(|| self.full())?;
        self.put(id, address);
        Ok(address)
    }

    /// Takes over a stored alias. One that is taken, or not of this range, is replaced as by
    /// [`AliasTable::assign`]; a peer that has an alias keeps it. Returns the alias that holds.
    ///
    /// # Errors
    /// [`Full`] if none is free.
    pub fn insert_stored(&mut self, id: AgentId, address: Ipv4Addr) -> Result<Ipv4Addr, Full> {
        let acceptable = self.get(&id).is_none()
            && self.by_id.len() < MAX_ALIASES
            && Usable::of(self.range).contains(address)
            && !self.by_address.contains_key(&address);
        if !acceptable {
            return self.assign(id);
        }
        self.put(id, address);
        Ok(address)
    }

    /// The alias of an agent, if it has one.
    pub fn get(&self, id: &AgentId) -> Option<Ipv4Addr> {
        self.by_id.get(id).copied()
    }

    /// The agent behind an alias.
    pub fn lookup(&self, address: Ipv4Addr) -> Option<AgentId> {
        self.by_address.get(&address).copied()
    }

    /// Frees a peer's alias. The agent's own stays.
    pub fn remove(&mut self, id: &AgentId) -> Option<Ipv4Addr> {
        if *id == self.own {
            return None;
        }
        let address = self.by_id.remove(id)?;
        self.by_address.remove(&address);
        Some(address)
    }

    /// Moves everybody to another range, in the order of their ids. Returns those for whom the new
    /// range has no room; they have no alias any more.
    pub fn set_range(&mut self, range: Ipv4Net) -> Vec<AgentId> {
        let mut moved = Self::new(self.own, range);
        let unassigned = self.by_id.keys().copied().filter(|id| moved.assign(*id).is_err()).collect();
        *self = moved;
        unassigned
    }

    /// All aliases in the order of their agents' ids, this agent's own among them.
    pub fn iter(&self) -> impl Iterator<Item = (AgentId, Ipv4Addr)> + '_ {
        self.by_id.iter().map(|(id, address)| (*id, *address))
    }

    fn put(&mut self, id: AgentId, address: Ipv4Addr) {
        self.by_id.insert(id, address);
        self.by_address.insert(address, id);
    }

    fn full(&self) -> Full {
        Full { range: self.range, assigned: self.by_id.len() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::IdentityKey;
    use proptest::prelude::*;

    fn id(number: u8) -> AgentId {
        IdentityKey::from_seed([number; 32]).id()
    }

    fn range(text: &str) -> Ipv4Net {
        text.parse().unwrap()
    }

    #[test]
    fn addresses_are_in_the_overlay_and_differ() {
        assert!(is_overlay(overlay_ipv6(&id(1))));
        assert_ne!(overlay_ipv6(&id(1)), overlay_ipv6(&id(2)));
        assert!(!is_overlay("fd61:6e75::1".parse().unwrap()));
        assert!(is_overlay("fd61:6e74:ffff::1".parse().unwrap()));
    }

    #[test]
    fn two_agents_with_the_same_wish_get_two_aliases() {
        let range = range("10.0.0.0/27");
        let mut table = AliasTable::new(id(0), range);
        for number in 1..15 {
            let address = table.assign(id(number)).unwrap();
            assert_eq!(table.lookup(address), Some(id(number)));
            assert_eq!(table.assign(id(number)), Ok(address));
        }
        // A /27 has 32 - 16 - 1 = 15 usable addresses.
        assert_eq!(table.assign(id(15)), Err(Full { range, assigned: 15 }));
        let freed = table.remove(&id(3)).unwrap();
        assert_eq!(table.assign(id(15)), Ok(freed));
    }

    #[test]
    fn stored_aliases_hold_unless_they_conflict() {
        let mut table = AliasTable::new(id(0), range("100.64.0.0/10"));
        let wish = "100.64.1.1".parse().unwrap();
        assert_eq!(table.insert_stored(id(1), wish), Ok(wish));
        let second = table.insert_stored(id(2), wish).unwrap();
        assert_eq!(second, preferred_ipv4(&id(2), table.range()));
        for unusable in ["100.64.0.15", "100.127.255.255", "10.0.0.77"] {
            let unusable = unusable.parse().unwrap();
            let given = table.insert_stored(id(3), unusable).unwrap();
            assert_ne!(given, unusable);
            table.remove(&id(3));
        }
        let own = table.own();
        assert_ne!(table.insert_stored(id(4), own), Ok(own));
    }

    #[test]
    fn new_range_moves_everybody_it_has_room_for() {
        let mut table = AliasTable::new(id(0), range("100.64.0.0/10"));
        for number in 1..20 {
            table.assign(id(number)).unwrap();
        }
        let small = range("192.168.7.0/27");
        assert_eq!(table.set_range(small).len(), 5);
        assert!(table.iter().all(|(_, address)| small.contains(&address)));
        assert_eq!(table.get(&id(0)), Some(preferred_ipv4(&id(0), small)));
        assert_eq!(table.remove(&id(0)), None);
    }

    #[test]
    fn smallest_ranges_have_an_address() {
        assert_eq!(preferred_ipv4(&id(1), range("10.1.2.3/32")), Ipv4Addr::new(10, 1, 2, 3));
        let pair = preferred_ipv4(&id(1), range("10.1.2.0/30"));
        assert!([1, 2].contains(&pair.octets()[3]));
    }

    proptest! {
        #[test]
        fn preferred_alias_is_usable(seed: [u8; 32], address: u32, prefix in 0u8..=27) {
            let id = IdentityKey::from_seed(seed).id();
            let range = Ipv4Net::new(Ipv4Addr::from(address), prefix).unwrap();
            let alias = preferred_ipv4(&id, range);
            prop_assert!(range.contains(&alias));
            prop_assert!(alias != range.broadcast());
            prop_assert!(u32::from(alias) - u32::from(range.network()) >= 16);
        }
    }
}
