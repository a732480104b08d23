//! What happened to packets, for assertions about cost and loss.

use std::collections::BTreeMap;

/// Why a packet went no further.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DropReason {
    /// The drop rule wants it lost.
    Rule,
    /// Lost by chance on a link.
    Loss,
    /// The link is a black hole.
    Blackhole,
    /// Larger than the link's MTU, or than what the link lets through at the moment.
    TooBig,
    /// The queue in front of a slow link is full.
    QueueFull,
    /// Too many packets under way in the whole internet.
    InFlightLimit,
    /// Nobody has the destination address.
    NoRoute,
    /// The interface went down while the packet was under way.
    InterfaceDown,
    /// The interface lost that address while the packet was under way.
    AddressGone,
    /// A NAT has no mapping for that external port.
    NoMapping,
    /// A NAT or firewall has a mapping, but not for this sender.
    Filtered,
    /// The table of a NAT or firewall is full.
    TableFull,
    /// A NAT has no external port left.
    PortsExhausted,
    /// A NAT does not hairpin.
    NoHairpinning,
}

/// Dropped packets by reason.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Drops {
    by_reason: BTreeMap<DropReason, u64>,
}

impl Drops {
    /// Packets dropped for this reason.
    pub fn of(&self, reason: DropReason) -> u64 {
        self.by_reason.get(&reason).copied().unwrap_or(0)
    }

    /// All packets dropped.
    pub fn total(&self) -> u64 {
        self.by_reason.values().sum()
    }

    pub(super) fn count(&mut self, reason: DropReason) {
        *self.by_reason.entry(reason).or_default() += 1;
    }
}

/// One direction of one link.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinkCounters {
    /// Packets that will arrive.
    pub packets: u64,
    /// Their size as IP packets, in bytes.
    pub bytes: u64,
    /// Packets that will not.
    pub drops: Drops,
}

/// One NAT or firewall.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BoxCounters {
    /// Packets let out.
    pub outbound: u64,
    /// Packets let in, without the hairpinned ones.
    pub inbound: u64,
    /// Packets from inside to inside over the external address.
    pub hairpinned: u64,
    /// Mappings ever made (for a firewall: internal endpoints).
    pub mappings_created: u64,
    /// The most mappings at once, idle ones that were not yet swept included.
    pub mappings_peak: usize,
    /// Sessions (mapping and remote endpoint) ever made.
    pub sessions_created: u64,
    /// The most sessions at once, idle ones that were not yet swept included.
    pub sessions_peak: usize,
    /// Packets dropped here.
    pub drops: Drops,
}
