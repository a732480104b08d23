//! Where peers may be reached: which addresses count, and how they are kept.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use ipnet::Ipv4Net;

use super::Node;
use super::limits::MAX_ADDRESSES;
use super::peer::Peer;
use crate::identity::ticket::is_usable_address;
use crate::identity::{AgentId, AliasTable, is_overlay};

/// Which addresses may be a peer's transport address. What is sent to an overlay address or to an alias would come back
/// into the overlay; what is sent to loopback would reach programs of this host, which take that for one of their own.
#[derive(Debug, Clone, Copy)]
pub(super) struct Usable {
    /// This host's range of aliases.
    aliases: Option<Ipv4Net>,
}

impl Usable {
    pub(super) fn contains(self, address: SocketAddr) -> bool {
        let own = match address.ip().to_canonical() {
            IpAddr::V4(v4) => v4.is_loopback() || self.aliases.is_some_and(|range| range.contains(&v4)),
            IpAddr::V6(v6) => v6.is_loopback(),
        };
        is_usable(address) && !own
    }
}

/// An address that may be somebody's transport address. Overlay addresses would loop.
pub(super) fn is_usable(address: SocketAddr) -> bool {
    let overlay = matches!(address.ip(), IpAddr::V6(v6) if is_overlay(v6));
    is_usable_address(&address) && !overlay
}

/// Where linked peers may be, for a look at every initiation that comes.
/// Each address with how often it is known; at most [`MAX_ADDRESSES`] of each peer.
#[derive(Debug, Default)]
pub(super) struct KnownSources(HashMap<IpAddr, u32>);

impl KnownSources {
    /// Whether one of them may be there.
    pub(super) fn contains(&self, source: IpAddr) -> bool {
        self.0.contains_key(&source)
    }

    /// These are a peer's.
    pub(super) fn add(&mut self, addresses: &[SocketAddr]) {
        for address in addresses {
            *self.0.entry(address.ip()).or_default() += 1;
        }
    }

    /// They are no longer: each was added before.
    pub(super) fn remove(&mut self, addresses: &[SocketAddr]) {
        for address in addresses {
            if let Some(times) = self.0.get_mut(&address.ip()) {
                *times -= 1;
                if *times == 0 {
                    self.0.remove(&address.ip());
                }
            }
        }
    }
}

impl Node {
    /// Which addresses may be a peer's.
    pub(super) fn usable(&self) -> Usable {
        Usable { aliases: self.aliases.as_ref().map(AliasTable::range) }
    }

    /// Notes where a peer may be reached, as it says itself: behind the most promising address, before older hearsay.
    pub(super) fn note_candidates(&mut self, id: AgentId, candidates: impl IntoIterator<Item = SocketAddr>) {
        self.change_addresses(id, |peer, usable| peer.note_candidates(usable, candidates));
    }

    /// Notes where an authenticated packet of it came from, as the most promising address. Returns whether that is news.
    pub(super) fn note_address(&mut self, id: AgentId, address: SocketAddr) -> bool {
        self.change_addresses(id, |peer, usable| peer.note_address(usable, address)).unwrap_or(false)
    }

    fn change_addresses<T>(&mut self, id: AgentId, change: impl FnOnce(&mut Peer, Usable) -> T) -> Option<T> {
        let usable = self.usable();
        let peer = self.peers.get_mut(&id)?;
        if peer.link.is_none() {
            return Some(change(peer, usable));
        }
        self.known_sources.remove(&peer.addresses);
        let changed = change(peer, usable);
        self.known_sources.add(&peer.addresses);
        Some(changed)
    }
}

impl Peer {
    /// Notes where it may be reached, as it says itself: behind the most promising address, before older hearsay.
    pub(super) fn note_candidates(&mut self, usable: Usable, candidates: impl IntoIterator<Item = SocketAddr>) {
        let older = std::mem::take(&mut self.addresses);
        let (proven, hearsay) = older.split_at(older.len().min(1));
        for address in proven.iter().copied().chain(candidates).chain(hearsay.iter().copied()) {
            if usable.contains(address) && !self.addresses.contains(&address) && self.addresses.len() < MAX_ADDRESSES {
                self.addresses.push(address);
            }
        }
    }

    /// Notes where an authenticated packet of it came from, as the most promising address. Returns whether that is news.
    fn note_address(&mut self, usable: Usable, address: SocketAddr) -> bool {
        if self.addresses.first() == Some(&address) || !usable.contains(address) {
            return false;
        }
        self.addresses.retain(|known| *known != address);
        self.addresses.insert(0, address);
        self.addresses.truncate(MAX_ADDRESSES);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_known_as_long_as_anybody_has_it() {
        let at = |port| SocketAddr::from(([192, 0, 2, 1], port));
        let (mut known, ip) = (KnownSources::default(), at(1).ip());
        known.add(&[at(1), at(2)]);
        known.add(&[at(1)]);
        known.remove(&[at(1), at(2)]);
        assert!(known.contains(ip));
        known.remove(&[at(1)]);
        assert!(!known.contains(ip) && known.0.is_empty());
    }
}
