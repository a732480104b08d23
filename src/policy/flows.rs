//! Connection tracking for relations limited to some ports: what was allowed to start may be answered.

use std::collections::HashMap;
use std::time::Duration;

use super::{PortSpec, Protocol};
use crate::time::Time;

/// The most flows tracked for one peer; a new flow beyond it is refused until others end. 4,096 flows of 24 bytes keep
/// a hostile peer below 200 KiB.
pub const MAX_FLOWS: usize = 4096;
/// A TCP flow without a packet for this long is forgotten (RFC 5382, REQ-5: at least 2 hours 4 minutes).
const TCP_IDLE: Duration = Duration::from_secs(7440);
/// A UDP flow without a packet for this long is forgotten (RFC 4787, REQ-5: at least 2 minutes, 5 recommended).
const UDP_IDLE: Duration = Duration::from_secs(300);

/// How often a full table is searched for flows that ended.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// Which way a packet goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From this host to the peer.
    Out,
    /// From the peer to this host.
    In,
}

/// Whether a packet passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It passes.
    Pass,
    /// The grant does not cover it and it answers nothing.
    Refuse,
}

/// The flows with one peer under a limited grant.
#[derive(Debug)]
pub struct FlowTable {
    ports: PortSpec,
    last_seen: HashMap<Flow, Time>,
    swept: Time,
}

/// Ports from this host's side; both address families share a table, as both belong to the same peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Flow {
    protocol: Protocol,
    ipv6: bool,
    local: u16,
    remote: u16,
}

impl FlowTable {
    /// No flows yet; only the given ports may be opened, in either direction.
    #[must_use]
    pub fn new(ports: PortSpec) -> Self {
        Self { ports, last_seen: HashMap::new(), swept: Time::ZERO }
    }

    /// The ports that may be opened.
    #[must_use]
    pub fn ports(&self) -> &PortSpec {
        &self.ports
    }

    /// Decides on a TCP or UDP packet and remembers the flow it belongs to.
    pub fn check(
        &mut self,
        now: Time,
        direction: Direction,
        ipv6: bool,
        protocol: Protocol,
        ports: (u16, u16),
    ) -> Verdict {
        let (source, destination) = ports;
        let (local, remote) = match direction {
            Direction::Out => (source, destination),
            Direction::In => (destination, source),
        };
        let flow = Flow { protocol, ipv6, local, remote };
        if let Some(seen) = self.last_seen.get_mut(&flow)
            && now.since(*seen) < idle_limit(protocol)
        {
            *seen = now;
            return Verdict::Pass;
        }
        if !self.ports.covers(protocol, destination) || !self.make_room(now) {
            return Verdict::Refuse;
        }
        self.last_seen.insert(flow, now);
        Verdict::Pass
    }

    fn make_room(&mut self, now: Time) -> bool {
        // A full table is looked through at most this often: refusing must stay cheap.
        if self.last_seen.len() >= MAX_FLOWS && now.since(self.swept) >= SWEEP_INTERVAL {
            self.swept = now;
            self.last_seen.retain(|flow, seen| now.since(*seen) < idle_limit(flow.protocol));
        }
        self.last_seen.len() < MAX_FLOWS
    }
}

fn idle_limit(protocol: Protocol) -> Duration {
    match protocol {
        Protocol::Tcp => TCP_IDLE,
        Protocol::Udp => UDP_IDLE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(spec: &str) -> FlowTable {
        FlowTable::new(spec.parse().unwrap())
    }

    #[test]
    fn replies_pass_and_nothing_else() {
        let mut flows = table("tcp/22");
        let now = Time::ZERO;
        assert_eq!(flows.check(now, Direction::In, true, Protocol::Tcp, (40000, 22)), Verdict::Pass);
        assert_eq!(flows.check(now, Direction::Out, true, Protocol::Tcp, (22, 40000)), Verdict::Pass);
        assert_eq!(flows.check(now, Direction::Out, true, Protocol::Tcp, (22, 40001)), Verdict::Refuse);
        assert_eq!(flows.check(now, Direction::In, true, Protocol::Tcp, (22, 40000)), Verdict::Refuse);
        assert_eq!(flows.check(now, Direction::Out, false, Protocol::Tcp, (22, 40000)), Verdict::Refuse);
    }

    #[test]
    fn a_flow_ends_by_idling() {
        let mut flows = table("udp/53");
        assert_eq!(flows.check(Time::ZERO, Direction::Out, true, Protocol::Udp, (5353, 53)), Verdict::Pass);
        let later = Time::ZERO + UDP_IDLE;
        assert_eq!(flows.check(later, Direction::In, true, Protocol::Udp, (53, 5353)), Verdict::Refuse);
    }

    #[test]
    fn the_table_is_bounded() {
        let mut flows = table("udp/1-65535");
        for port in 1..=u16::try_from(MAX_FLOWS).unwrap() {
            assert_eq!(flows.check(Time::ZERO, Direction::In, true, Protocol::Udp, (9, port)), Verdict::Pass);
        }
        assert_eq!(flows.check(Time::ZERO, Direction::In, true, Protocol::Udp, (9, 60000)), Verdict::Refuse);
        let later = Time::ZERO + UDP_IDLE;
        assert_eq!(flows.check(later, Direction::In, true, Protocol::Udp, (9, 60000)), Verdict::Pass);
    }
}
