//! The document of `netcheck`.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use super::{HealthEntry, RendezvousStatus};

/// `GET /v1/netcheck`: how this host looks from outside. What is not known is absent.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Netcheck {
    /// Whether UDP passes to and from any rendezvous server.
    pub udp: Option<bool>,
    /// IPv4.
    pub ipv4: FamilyCheck,
    /// IPv6.
    pub ipv6: FamilyCheck,
    /// How the NATs for IPv4 map, or that there is none.
    pub mapping: Option<MappingWord>,
    /// Whether `mapping` is certain: false when only ports of one address could be compared.
    pub mapping_certain: Option<bool>,
    /// With a mapping that depends on the destination: by how much the port grows from one mapping to the next; 0 where
    /// that is not regular.
    pub port_step: Option<i16>,
    /// Whether the port seen from outside is the agent's own.
    pub port_preserved: Option<bool>,
    /// Whose packets the NATs for IPv4 let in.
    pub filtering: Option<FilteringWord>,
    /// Whether this host reaches itself at the address seen from outside.
    pub hairpinning: Option<bool>,
    /// The NATs for IPv4, in words.
    pub nat: String,
    /// What the default gateway was asked for.
    #[serde(default)]
    pub port_mapping: PortMappingCheck,
    /// The rendezvous servers; `rtt_ms` as measured now where they answered.
    pub rendezvous: Vec<RendezvousStatus>,
    /// What stands in the way of direct paths.
    pub advice: Vec<HealthEntry>,
}

/// One address family, in [`Netcheck`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FamilyCheck {
    /// Addresses of this host.
    pub local: Vec<IpAddr>,
    /// The address and port that servers see.
    pub mapped: Option<SocketAddr>,
    /// Whether something translates addresses in between.
    pub behind_nat: Option<bool>,
}

/// What the default gateway was asked to let in, in [`Netcheck`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortMappingCheck {
    /// How it went.
    pub state: PortMappingState,
    /// The gateway.
    pub gateway: Option<IpAddr>,
    /// The protocol it answered.
    pub protocol: Option<MappingProtocol>,
    /// Others reach this agent here.
    pub address: Option<SocketAddr>,
    /// Why there is no mapping, or why the last one was not renewed.
    pub reason: Option<String>,
}

/// How asking for a port mapping went, in [`PortMappingCheck`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PortMappingState {
    /// Switched off by the configuration.
    #[default]
    Off,
    /// There is no default gateway for IPv4.
    NoGateway,
    /// The gateway has not answered yet.
    Asking,
    /// The gateway gave none.
    None,
    /// There is one.
    Mapped,
}

/// Protocols to ask a gateway for a port, in [`PortMappingCheck`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MappingProtocol {
    /// Port Control Protocol (RFC 6887).
    Pcp,
    /// NAT Port Mapping Protocol (RFC 6886).
    NatPmp,
    /// UPnP Internet Gateway Device.
    Upnp,
}

/// How NATs map (RFC 4787, section 4.1), in [`Netcheck`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MappingWord {
    /// One address and port for all destinations.
    EndpointIndependent,
    /// Another one for every destination.
    EndpointDependent,
}

/// Whose packets NATs let in (RFC 4787, section 5), in [`Netcheck`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FilteringWord {
    /// Everybody's.
    EndpointIndependent,
    /// Those of addresses this host sent to.
    AddressDependent,
    /// Those of addresses and ports this host sent to.
    AddressAndPortDependent,
}
