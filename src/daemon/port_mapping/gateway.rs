//! One gateway and one port: the three protocols, in the order they are tried.
//!
//! | | requests go to | what it is |
//! |---|---|---|
//! | PCP | UDP 5351 | RFC 6887, answers with the address too |
//! | NAT-PMP | UDP 5351 | RFC 6886, where PCP is answered but not spoken |
//! | UPnP IGD | UDP 1900, then HTTP where that points to | what home routers have had longest |
//!
//! The search for UPnP is sent to the gateway alone, never by multicast, and what another host answers is not used.
//! IPv4 only: IPv6 has no addresses to translate.

use std::fmt::Display;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::num::NonZeroU16;
use std::time::Duration;

use crab_nat::{InternetProtocol, MappingFailure, PortMappingOptions, PortMappingType, TimeoutConfig};
use igd_next::aio::tokio::{Tokio, search_gateway};
use igd_next::{AddPortError, PortMappingProtocol, SearchOptions};

use crate::api::MappingProtocol;

/// How long a mapping is asked for (RFC 6886, section 3.3).
pub(super) const LIFETIME: Duration = Duration::from_secs(7200);
/// A gateway that gives less is not worth the traffic (RFC 6887, section 15: two minutes are the least).
const LEAST_LIFETIME: Duration = Duration::from_secs(120);
/// PCP and NAT-PMP: 250, 500 and 1,000 ms (RFC 6886, section 3.1, cut short: a gateway is next door).
const PATIENCE: TimeoutConfig =
    TimeoutConfig { initial_timeout: Duration::from_millis(250), max_retries: 2, max_retry_timeout: None };
/// The search for UPnP with the description it leads to. Routers with slow processors take a second for each.
const UPNP_SEARCH: Duration = Duration::from_secs(5);
/// The port of SSDP (UPnP Device Architecture 1.1, section 1.3.2).
const SSDP_PORT: u16 = 1900;
/// As much of a gateway's words as is kept, characters.
const LONGEST_REASON: usize = 200;
/// How the mapping is called in the router's list.
const DESCRIPTION: &str = "agentnet";

/// What a gateway has given.
pub(super) struct Mapping {
    /// Others reach this agent here.
    pub(super) external: SocketAddr,
    /// From now.
    pub(super) lifetime: Duration,
    gateway: Ipv4Addr,
    port: NonZeroU16,
    kept: Kept,
}

/// What it takes to renew a mapping and to give it back.
enum Kept {
    /// PCP or NAT-PMP.
    Pmp(crab_nat::PortMapping),
    Upnp(igd_next::aio::Gateway<Tokio>),
}

/// Why there is no mapping.
#[derive(Debug, thiserror::Error)]
pub(super) enum AskError {
    /// There is no way to the gateway.
    #[error("the gateway cannot be reached: {0}")]
    Unreachable(std::io::Error),
    /// It speaks none of the protocols, or has them switched off.
    #[error("the gateway answers neither PCP nor NAT-PMP nor UPnP")]
    Unanswered,
    /// It answered.
    #[error("the gateway refused: {0}")]
    Refused(String),
    /// It gave something that nobody can use.
    #[error("the gateway offered {address} for {} s, which is of no use", lifetime.as_secs())]
    Useless {
        /// Where from outside.
        address: SocketAddr,
        /// How long.
        lifetime: Duration,
    },
}

/// Asks for UDP packets to `port`.
pub(super) async fn ask(gateway: Ipv4Addr, port: NonZeroU16) -> Result<Mapping, AskError> {
    let local = local_address(gateway).map_err(AskError::Unreachable)?;
    let pmp = ask_pmp(gateway, local, port).await;
    let mapping = match pmp {
        Ok(mapping) => mapping,
        Err(pmp) => {
            tracing::debug!(%gateway, %pmp, "no mapping by PCP or NAT-PMP");
            match ask_upnp(gateway, local, port).await {
                // What was refused says more than who was not there.
                Err(AskError::Unanswered) => return Err(pmp),
                other => other?,
            }
        }
    };
    mapping.checked().await
}

impl Mapping {
    /// Which protocol it was got by.
    pub(super) fn protocol(&self) -> MappingProtocol {
        match &self.kept {
            Kept::Upnp(_) => MappingProtocol::Upnp,
            Kept::Pmp(mapping) if matches!(mapping.mapping_type(), PortMappingType::NatPmp) => MappingProtocol::NatPmp,
            Kept::Pmp(_) => MappingProtocol::Pcp,
        }
    }

    /// Who gave it.
    pub(super) fn gateway(&self) -> Ipv4Addr {
        self.gateway
    }

    /// The same for longer; another one if the gateway does not remember it.
    pub(super) async fn renewed(&self) -> Result<Self, AskError> {
        let again = match &self.kept {
            Kept::Pmp(mapping) => {
                let mut mapping = mapping.clone();
                match mapping.renew().await {
                    Ok(()) => Self::from_pmp(self.gateway, self.port, mapping).await,
                    Err(failure) => Err(pmp_error(&failure)),
                }
            }
            Kept::Upnp(upnp) => {
                let local = local_address(self.gateway).map_err(AskError::Unreachable)?;
                add_upnp(self.gateway, upnp.clone(), local, self.port, self.external.port()).await
            }
        };
        match again {
            Ok(again) => again.checked().await,
            Err(error) => {
                tracing::debug!(%error, "a port mapping was not renewed");
                ask(self.gateway, self.port).await
            }
        }
    }

    /// Tells the gateway that it is not needed any more.
    pub(super) async fn give_back(self) {
        let result = match self.kept {
            Kept::Pmp(mapping) => mapping.try_drop().await.map_err(|(failure, _)| failure.to_string()),
            Kept::Upnp(upnp) => {
                let removed = upnp.remove_port(PortMappingProtocol::UDP, self.external.port()).await;
                removed.map_err(|error| error.to_string())
            }
        };
        match result {
            Ok(()) => tracing::debug!(external = %self.external, "the port mapping was given back"),
            Err(error) => tracing::debug!(external = %self.external, error, "the port mapping was not given back"),
        }
    }

    async fn from_pmp(gateway: Ipv4Addr, port: NonZeroU16, mapping: crab_nat::PortMapping) -> Result<Self, AskError> {
        let address = match mapping.mapping_type() {
            PortMappingType::Pcp { external_ip, .. } => external_ip.to_canonical(),
            PortMappingType::NatPmp => match crab_nat::natpmp::external_address(gateway.into(), Some(PATIENCE)).await {
                Ok(address) => address.into(),
                Err(failure) => {
                    let _ = mapping.try_drop().await;
                    return Err(pmp_error(&failure.into()));
                }
            },
        };
        let external = SocketAddr::new(address, mapping.external_port().get());
        let lifetime = Duration::from_secs(mapping.lifetime().into());
        Ok(Self { external, lifetime, gateway, port, kept: Kept::Pmp(mapping) })
    }

    async fn checked(self) -> Result<Self, AskError> {
        let of_use = match self.external.ip() {
            IpAddr::V4(ip) => {
                !ip.is_unspecified()
                    && !ip.is_loopback()
                    && !ip.is_link_local()
                    && !ip.is_multicast()
                    && !ip.is_broadcast()
            }
            IpAddr::V6(_) => false,
        };
        if of_use && self.external.port() != 0 && self.lifetime >= LEAST_LIFETIME {
            return Ok(self);
        }
        let error = AskError::Useless { address: self.external, lifetime: self.lifetime };
        self.give_back().await;
        Err(error)
    }
}

async fn ask_pmp(gateway: Ipv4Addr, local: Ipv4Addr, port: NonZeroU16) -> Result<Mapping, AskError> {
    let options = PortMappingOptions {
        external_port: Some(port),
        lifetime_seconds: u32::try_from(LIFETIME.as_secs()).ok(),
        timeout_config: Some(PATIENCE),
    };
    let udp = InternetProtocol::Udp;
    let mapping = match crab_nat::PortMapping::new(gateway.into(), local.into(), udp, port, options).await {
        // Some that speak only NAT-PMP answer PCP otherwise than RFC 6887, section 9 wants.
        Err(MappingFailure::Pcp(failure)) if !is_silence(&failure) => {
            tracing::debug!(%gateway, %failure, "no mapping by PCP");
            crab_nat::natpmp::port_mapping(gateway.into(), udp, port, options)
                .await
                .map_err(|failure| pmp_error(&failure.into()))?
        }
        other => other.map_err(|failure| pmp_error(&failure))?,
    };
    Mapping::from_pmp(gateway, port, mapping).await
}

fn is_silence(failure: &crab_nat::pcp::Failure) -> bool {
    matches!(failure, crab_nat::pcp::Failure::Timeout | crab_nat::pcp::Failure::Socket(_))
}

fn pmp_error(failure: &MappingFailure) -> AskError {
    use crab_nat::natpmp::Failure as NatPmp;
    match failure {
        MappingFailure::Pcp(failure) if is_silence(failure) => AskError::Unanswered,
        MappingFailure::NatPmp(NatPmp::Timeout | NatPmp::Socket(_)) => AskError::Unanswered,
        failure => refused(failure),
    }
}

async fn ask_upnp(gateway: Ipv4Addr, local: Ipv4Addr, port: NonZeroU16) -> Result<Mapping, AskError> {
    let mut options = SearchOptions::default();
    options.bind_addr = SocketAddr::new(local.into(), 0);
    options.broadcast_address = SocketAddr::new(gateway.into(), SSDP_PORT);
    options.timeout = Some(UPNP_SEARCH);
    options.allowed_gateway_ips = vec![gateway.into()];
    let found = search_gateway(options).await.map_err(|error| {
        tracing::debug!(%gateway, %error, "no UPnP gateway");
        AskError::Unanswered
    })?;
    // Anybody who hears of the search may answer it.
    if found.addr.ip() != IpAddr::V4(gateway) {
        return Err(AskError::Refused(format!("UPnP is answered by {}, another host", found.addr.ip())));
    }
    add_upnp(gateway, found, local, port, port.get()).await
}

async fn add_upnp(
    gateway: Ipv4Addr,
    upnp: igd_next::aio::Gateway<Tokio>,
    local: Ipv4Addr,
    port: NonZeroU16,
    wanted: u16,
) -> Result<Mapping, AskError> {
    let local = SocketAddr::new(local.into(), port.get());
    let seconds = u32::try_from(LIFETIME.as_secs()).unwrap_or(u32::MAX);
    let (udp, what) = (PortMappingProtocol::UDP, DESCRIPTION);
    let external_port = match upnp.add_port(udp, wanted, local, seconds, what).await {
        Ok(()) => wanted,
        // It is given back at the end, and the next start of this agent takes the same one over.
        Err(AddPortError::OnlyPermanentLeasesSupported) => {
            upnp.add_port(udp, wanted, local, 0, what).await.map_err(refused)?;
            wanted
        }
        Err(AddPortError::PortInUse | AddPortError::ExternalPortZeroInvalid) => {
            upnp.add_any_port(udp, local, seconds, what).await.map_err(refused)?
        }
        Err(error) => return Err(refused(error)),
    };
    let address = upnp.get_external_ip().await;
    let mapping = |address| Mapping {
        external: SocketAddr::new(address, external_port),
        lifetime: LIFETIME,
        gateway,
        port,
        kept: Kept::Upnp(upnp),
    };
    match address {
        Ok(address) => Ok(mapping(address)),
        Err(error) => {
            let error = refused(error);
            mapping(Ipv4Addr::UNSPECIFIED.into()).give_back().await;
            Err(error)
        }
    }
}

/// What the gateway said is somebody else's text, a whole page at times.
fn refused(why: impl Display) -> AskError {
    let text = why.to_string();
    AskError::Refused(text.chars().take(LONGEST_REASON).map(|c| if c.is_control() { ' ' } else { c }).collect())
}

/// The address of this host that the gateway sees. Nothing is sent.
fn local_address(gateway: Ipv4Addr) -> std::io::Result<Ipv4Addr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect((gateway, SSDP_PORT))?;
    match socket.local_addr()?.ip() {
        IpAddr::V4(ip) => Ok(ip),
        IpAddr::V6(_) => Err(std::io::ErrorKind::AddrNotAvailable.into()),
    }
}

// Other systems have one loopback address, not a network of them.
#[cfg(test)]
#[cfg(target_os = "linux")]
pub(super) mod fake;

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests;
