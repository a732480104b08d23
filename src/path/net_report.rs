//! How this host looks from outside, as one plain struct.

use std::net::SocketAddr;
use std::time::Duration;

use crate::identity::AgentId;
use crate::wire::control::Mapping;

/// What is known of the way from this host to the internet; `None` is unknown.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NetReport {
    /// Whether any server answered over UDP.
    pub udp: Option<bool>,
    /// Where servers see this host over IPv4, by the latest answer. With an endpoint-dependent mapping the port is that
    /// of the newest mapping.
    pub mapped_v4: Option<SocketAddr>,
    /// The same over IPv6.
    pub mapped_v6: Option<SocketAddr>,
    /// How the NATs for IPv4 map, all of them together; never [`Mapping::Unknown`].
    pub mapping: Option<Mapping>,
    /// What `mapping` rests on.
    pub mapping_basis: Option<MappingBasis>,
    /// Whose packets the NATs for IPv4 let in; only after [`Gather::measure_fully`](super::Gather::measure_fully).
    pub filtering: Option<Filtering>,
    /// Whether the IPv4 address that servers see is not one of this host.
    pub behind_nat_v4: Option<bool>,
    /// The same for IPv6.
    pub behind_nat_v6: Option<bool>,
    /// Whether the port that servers see over IPv4 is the one the socket has.
    pub port_preserved: Option<bool>,
    /// Whether this host reaches its own mapped IPv4 address; only behind a NAT, and only after
    /// [`Gather::measure_fully`](super::Gather::measure_fully).
    pub hairpinning: Option<bool>,
    /// The servers, in the order they were given.
    pub servers: Vec<ServerReport>,
}

/// How sure [`NetReport::mapping`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MappingBasis {
    /// The address that servers see is the host's own.
    NoNat,
    /// Destinations with different IP addresses were compared: certain.
    Addresses,
    /// Two ports of one IP address were compared. A NAT whose mapping depends on the address alone looks
    /// endpoint-independent that way.
    Ports,
}

/// Whose packets a NAT lets in (RFC 4787, section 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filtering {
    /// Everybody's.
    EndpointIndependent,
    /// Those from an address this host has sent to.
    AddressDependent,
    /// Those from an address and port this host has sent to.
    AddressAndPortDependent,
}

/// One server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServerReport {
    /// Which.
    pub id: AgentId,
    /// Whether it answers.
    pub state: ServerState,
    /// Its address with the shortest round trip.
    pub address: Option<SocketAddr>,
    /// That round trip.
    pub rtt: Option<Duration>,
}

/// Whether a server answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServerState {
    /// It was asked and still has time.
    Asked,
    /// It answered.
    Answered,
    /// It did not answer in time; it is asked again now and then.
    Silent,
}
