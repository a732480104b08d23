//! Transport addresses to try (RFC 8445, section 5.1.1), and the routes they stand for.

use std::net::SocketAddr;

use crate::identity::AgentId;

/// How a candidate was learned. The order is that of RFC 8445, section 5.1.2.2, with port-mapped addresses where they
/// belong: as good as what a NAT was seen to give.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CandidateKind {
    /// An address of the peer's own interfaces.
    Host,
    /// The peer asked its NAT for it.
    PortMapped,
    /// An authenticated packet came from it.
    PeerReflexive,
    /// A server saw the peer there.
    ServerReflexive,
    /// Through a relay.
    Relayed,
}

/// Where packets go so that they reach the peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Route {
    /// Straight to a transport address.
    Direct(SocketAddr),
    /// Through a relay this agent has a session with.
    Relayed(AgentId),
}

/// One way to try.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Candidate {
    /// How it was learned.
    pub kind: CandidateKind,
    /// The way.
    pub route: Route,
}

impl Route {
    /// Whether a relay is in between.
    #[must_use]
    pub fn is_relayed(self) -> bool {
        matches!(self, Self::Relayed(_))
    }

    /// The transport address, if no relay is in between.
    #[must_use]
    pub fn direct(self) -> Option<SocketAddr> {
        match self {
            Self::Direct(address) => Some(address),
            Self::Relayed(_) => None,
        }
    }

    /// Whether it is a transport address of IPv6.
    #[must_use]
    pub fn is_ipv6(self) -> bool {
        matches!(self, Self::Direct(address) if address.is_ipv6())
    }
}
