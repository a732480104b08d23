//! Who may wait for a decision. Anybody can make identities without end, so the table of pending requests is bounded,
//! and a flood from one place pushes out its own.

use std::net::{IpAddr, SocketAddr};

use crate::identity::AgentId;

/// The most requests that wait for a decision: more than a person looks through.
pub const MAX_PENDING: usize = 128;

/// What to do with a new request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// There is room.
    Admit,
    /// Admit it and forget this one, the oldest from the network that sent the most.
    Replace(AgentId),
    /// Refuse it: its own network already sent the most.
    Refuse,
}

/// Decides on a request from `source`, given those that wait: id, source and arrival (seconds since 1970).
#[must_use]
pub fn admit(waiting: &[(AgentId, Option<SocketAddr>, u64)], source: Option<SocketAddr>) -> Admission {
    let network_of = |from: Option<SocketAddr>| from.map(|from| source_network(from.ip()));
    if waiting.len() < MAX_PENDING {
        return Admission::Admit;
    }
    let count = |network| waiting.iter().filter(|(_, from, _)| network_of(*from) == network).count();
    let Some(crowded) = waiting.iter().map(|(_, from, _)| network_of(*from)).max_by_key(|network| count(*network))
    else {
        return Admission::Refuse;
    };
    if count(network_of(source)) >= count(crowded) {
        return Admission::Refuse;
    }
    let oldest = waiting.iter().filter(|(_, from, _)| network_of(*from) == crowded).min_by_key(|(_, _, at)| *at);
    oldest.map_or(Admission::Refuse, |(id, _, _)| Admission::Replace(*id))
}

/// The network an address belongs to: what one party can usually take addresses from, an IPv4 /24 or an IPv6 /48.
#[must_use]
pub fn source_network(address: IpAddr) -> [u8; 6] {
    let mut prefix = [0; 6];
    match address {
        IpAddr::V4(v4) => prefix[3..].copy_from_slice(&v4.octets()[..3]),
        IpAddr::V6(v6) => prefix.copy_from_slice(&v6.octets()[..6]),
    }
    prefix
}
