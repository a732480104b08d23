//! The JSON documents of the control socket, which are also what `--json` prints.
//!
//! Requests travel as HTTP over the Unix socket named in [`crate::config`]; every path begins with `/v1/`. A request
//! that fails is answered with an [`ErrorDocument`] and the HTTP status of its [`ErrorCode`].

mod diagnostics;
mod netcheck;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::identity::AgentId;

pub use diagnostics::{BugReport, Diagnostics, Missing, NetworkDocument, SettingWithSource, SystemDocument};
pub use netcheck::{
    FamilyCheck, FilteringWord, MappingProtocol, MappingWord, Netcheck, PortMappingCheck, PortMappingState,
};

/// What a caller is told when something did not work: code for programs, message and hint for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Error {
    /// What kind of failure it is.
    pub code: ErrorCode,
    /// What happened and why.
    pub message: String,
    /// What to do about it.
    pub hint: String,
}

impl Error {
    /// An error with its three parts.
    pub fn new(code: ErrorCode, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { code, message: message.into(), hint: hint.into() }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.message, self.code)
    }
}

impl std::error::Error for Error {}

/// The document that carries an [`Error`]: `{"error":{"code":…,"message":…,"hint":…}}`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ErrorDocument {
    /// The error.
    pub error: Error,
}

macro_rules! error_codes {
    ($($variant:ident $text:literal $exit:ident $doc:literal,)*) => {
        /// Every error code there is. Codes are stable; scripts may depend on them.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum ErrorCode { $(#[doc = $doc] $variant,)* }

        impl ErrorCode {
            /// All codes, in the order they are documented.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The code as it is printed.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }

            /// The exit status a command ends with.
            #[must_use]
            pub fn exit_status(self) -> ExitStatus {
                match self { $(Self::$variant => ExitStatus::$exit,)* }
            }

            /// One line for the documentation.
            #[must_use]
            pub fn explanation(self) -> &'static str {
                match self { $(Self::$variant => $doc,)* }
            }
        }
    };
}

error_codes! {
    Usage "usage" Usage "the command line is not understood",
    ConfigInvalid "config_invalid" Usage "the configuration file or a value in it is not valid",
    NoDaemon "no_daemon" NoDaemon "no agent answers on the control socket",
    NotRoot "not_root" NoPermission "the command needs root or CAP_NET_ADMIN",
    NotPermitted "not_permitted" NoPermission "the caller may not change this agent (root and group agentnet may)",
    NoTunDevice "no_tun_device" Failed "/dev/net/tun does not exist",
    TunDenied "tun_denied" NoPermission "/dev/net/tun cannot be opened",
    InterfaceTaken "interface_taken" Failed "the interface name asked for is in use",
    InterfaceFailed "interface_failed" Failed "the interface could not be configured",
    PortInUse "port_in_use" Failed "the UDP port asked for is in use",
    AddressUnavailable "address_unavailable" Failed "the address asked for is not one of this host, or the host has none",
    NoUdp "no_udp" Failed "no UDP socket can be opened, neither IPv4 nor IPv6",
    StateDirUnusable "state_dir_unusable" Failed "the state directory cannot be created or written",
    StateDirInUse "state_dir_in_use" Failed "another agent runs on this state directory",
    StateDamaged "state_damaged" Failed "the state file cannot be read",
    DiskFull "disk_full" Failed "there is no space left for the state",
    IdentityDamaged "identity_damaged" Failed "the identity file cannot be read as an identity",
    ClockInvalid "clock_invalid" Failed "the system clock stands before 1970",
    ServiceFailed "service_failed" Failed "systemd could not start or stop the agent's service",
    Ipv4RangeConflict "ipv4_range_conflict" Failed "the IPv4 range asked for is in use on this host",
    Ipv4RangeFull "ipv4_range_full" Failed "the IPv4 range has no free alias",
    SocketInUse "socket_in_use" Failed "the control socket path is in use or cannot be created",
    PeerNotFound "peer_not_found" NotFound "no known agent matches",
    PeerAmbiguous "peer_ambiguous" NotFound "more than one known agent matches",
    PeerIsSelf "peer_is_self" Usage "the agent named is this agent",
    TicketInvalid "ticket_invalid" Usage "the ticket is damaged or not a ticket",
    RecordExpired "record_expired" Failed "the agent's record has expired",
    NoRequest "no_request" NotFound "there is no trust request from that agent",
    NotTrusted "not_trusted" Refused "there is no mutual trust with that agent",
    LimitReached "limit_reached" Failed "a table of this agent is full",
    TimedOut "timed_out" TimedOut "nothing answered in time",
    NotAvailable "not_available" Failed "this version does not offer that",
    Internal "internal" Failed "a defect in agentnet",
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The exit statuses of every command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum ExitStatus {
    /// Done.
    Done = 0,
    /// Failed.
    Failed = 1,
    /// Wrong usage.
    Usage = 2,
    /// No daemon.
    NoDaemon = 3,
    /// No permission.
    NoPermission = 4,
    /// Not found.
    NotFound = 5,
    /// Timed out.
    TimedOut = 6,
    /// Refused by trust or policy.
    Refused = 7,
}

/// `GET /v1/id`: who this agent is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Identity {
    /// Agent id.
    pub id: AgentId,
    /// Name, where one is set.
    pub name: Option<String>,
    /// Overlay IPv6 address.
    pub ipv6: Ipv6Addr,
    /// This host's IPv4 alias for itself.
    pub ipv4: Option<Ipv4Addr>,
    /// The id as a `did:key`.
    pub did: String,
    /// `AGENTID@HOST:PORT`, where the agent has an address to be reached at.
    #[serde(rename = "ref")]
    pub reference: Option<String>,
}

/// What `agentnet rendezvous` prints when it is ready.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RendezvousReady {
    /// `AGENTID@HOST:PORT`, for others to name the server by.
    #[serde(rename = "ref")]
    pub reference: String,
    /// Agent id.
    pub id: AgentId,
    /// Public addresses, the one in `ref` first.
    pub addresses: Vec<SocketAddr>,
}

/// `GET /v1/status`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// This agent.
    #[serde(rename = "self")]
    pub this: SelfStatus,
    /// Its interface.
    pub interface: InterfaceStatus,
    /// Rendezvous servers in use.
    pub rendezvous: Vec<RendezvousStatus>,
    /// Every agent there is a relation with.
    pub peers: Vec<PeerStatus>,
    /// What is wrong; empty when all is well.
    pub health: Vec<HealthEntry>,
    /// Packets that were not forwarded, by reason.
    pub drops: std::collections::BTreeMap<String, u64>,
}

/// This agent, in [`Status`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SelfStatus {
    /// Agent id.
    pub id: AgentId,
    /// Name, where one is set.
    pub name: Option<String>,
    /// Overlay IPv6 address.
    pub ipv6: Ipv6Addr,
    /// This host's IPv4 alias for itself.
    pub ipv4: Option<Ipv4Addr>,
    /// Version of the running program.
    pub version: String,
    /// Seconds since the agent started.
    pub uptime_s: u64,
    /// Process id.
    pub pid: u32,
    /// UDP port, IPv4 and IPv6.
    pub port: u16,
}

/// The interface, in [`Status`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct InterfaceStatus {
    /// Interface name.
    pub name: String,
    /// Interface MTU in bytes.
    pub mtu: u32,
    /// Packets taken from the interface and sent into tunnels.
    pub tx_packets: u64,
    /// Packets from tunnels written to the interface.
    pub rx_packets: u64,
    /// Bytes of those packets.
    pub tx_bytes: u64,
    /// Bytes of those packets.
    pub rx_bytes: u64,
}

/// One rendezvous server, in [`Status`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RendezvousStatus {
    /// Its agent id.
    pub id: AgentId,
    /// `HOST:PORT`.
    pub address: String,
    /// `connected`, `connecting` or `failed`.
    pub state: String,
    /// Round trip in milliseconds, where measured.
    pub rtt_ms: Option<f64>,
}

/// Where trust between this agent and a peer stands, seen from here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TrustState {
    /// Both sides said yes.
    Trusted,
    /// This side said yes, the other has not yet.
    Requested,
    /// The other side asked, this side has not decided.
    Pending,
    /// This side said no to a request.
    Rejected,
    /// This side took its yes back.
    Revoked,
    /// Known, no relation.
    None,
}

impl TrustState {
    /// The word used in JSON and in tables.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Trusted => "trusted",
            Self::Requested => "requested",
            Self::Pending => "pending",
            Self::Rejected => "rejected",
            Self::Revoked => "revoked",
            Self::None => "none",
        }
    }
}

/// One peer, in [`Status`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PeerStatus {
    /// Agent id.
    pub id: AgentId,
    /// Name from its record.
    pub name: Option<String>,
    /// Overlay IPv6 address.
    pub ipv6: Ipv6Addr,
    /// This host's IPv4 alias for it.
    pub ipv4: Option<Ipv4Addr>,
    /// Trust.
    pub trust: TrustState,
    /// The path data takes.
    pub path: PathStatus,
    /// Seconds since the last WireGuard handshake.
    pub last_handshake_s: Option<f64>,
    /// Bytes sent to it, inside the tunnel.
    pub tx_bytes: u64,
    /// Bytes received from it, inside the tunnel.
    pub rx_bytes: u64,
    /// Milliseconds from the first wish to talk to the first direct path.
    pub time_to_direct_ms: Option<f64>,
}

/// Kind of path.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PathKind {
    /// UDP straight to the peer.
    Direct,
    /// Through a relay.
    Relayed,
    /// No path at this time.
    #[default]
    None,
}

impl PathKind {
    /// The word used in JSON and in tables.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Relayed => "relayed",
            Self::None => "none",
        }
    }
}

/// A path, in [`PeerStatus`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct PathStatus {
    /// Kind.
    pub kind: PathKind,
    /// The peer's transport address.
    pub endpoint: Option<SocketAddr>,
    /// The relay in between.
    pub via: Option<AgentId>,
    /// Last measured round trip in milliseconds.
    pub rtt_ms: Option<f64>,
    /// Seconds since this became the path.
    pub since_s: Option<f64>,
    /// Largest IP packet the path carries inside the tunnel, bytes.
    pub mtu: u32,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthEntry {
    /// Stable code.
    pub code: String,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub hint: String,
}

/// `GET /v1/ticket`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TicketDocument {
    /// One line to hand to another agent.
    pub ticket: String,
}

/// `GET /v1/peers`: everybody known.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Peers {
    /// In the order of their ids.
    pub peers: Vec<KnownPeer>,
}

/// One known agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KnownPeer {
    /// Agent id.
    pub id: AgentId,
    /// Name from its record.
    pub name: Option<String>,
    /// Overlay IPv6 address.
    pub ipv6: Ipv6Addr,
    /// This host's IPv4 alias for it.
    pub ipv4: Option<Ipv4Addr>,
    /// Trust.
    pub trust: TrustState,
    /// Where its record came from: `ticket`, `introduction` or `session`.
    pub source: String,
    /// Seconds since the record arrived.
    pub record_age_s: u64,
    /// Seconds until the record expires; 0 when it has.
    pub record_expires_s: u64,
    /// Transport addresses known for it.
    pub addresses: Vec<SocketAddr>,
}

/// `POST /v1/ping`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PingRequest {
    /// PEER.
    pub peer: String,
    /// Give up after this many milliseconds (at most 60,000).
    pub timeout_ms: u64,
}

/// The answer to one [`PingRequest`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PingReply {
    /// Agent id of the peer that answered.
    pub id: AgentId,
    /// Its name.
    pub name: Option<String>,
    /// Round trip over the tunnel in milliseconds.
    pub rtt_ms: f64,
    /// The path it took.
    pub path: PathStatus,
}

/// `GET /v1/why?peer=PEER`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Why {
    /// Agent id of the peer.
    pub peer: AgentId,
    /// What it comes down to.
    pub verdict: Verdict,
    /// The way to a path, in order, up to the first step that failed.
    pub steps: Vec<WhyStep>,
    /// Why it stands as it stands; `ok` when the peer is reached.
    pub reason_code: String,
    /// What to do; empty when there is nothing to do.
    pub hint: String,
}

/// The short answer of [`Why`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Reached, straight.
    Direct,
    /// Reached through a relay.
    Relayed,
    /// Trusted, and not reached.
    Unreachable,
    /// No mutual trust.
    Untrusted,
}

/// One step of [`Why`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WhyStep {
    /// `record`, `trust`, `introduction`, `session`, `probe` or `path`.
    pub step: String,
    /// Whether it holds.
    pub ok: bool,
    /// What is known about it.
    pub detail: String,
    /// When it came about: milliseconds since the agent started, where known.
    pub at_ms: Option<u64>,
}

/// `POST /v1/trust/request`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrustRequestBody {
    /// PEER, usually a ticket.
    pub peer: String,
    /// Shown to the other side.
    pub reason: Option<String>,
    /// What may be reached once trusted, in both directions (`tcp/22,tcp/8000-8100,udp/53`); everything when absent.
    pub ports: Option<String>,
    /// Trust ends after this many seconds; never when absent.
    pub ttl_s: Option<u64>,
}

/// `POST /v1/trust/approve`, `/reject`, `/revoke`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerBody {
    /// PEER.
    pub peer: String,
}

/// `GET /v1/trust/pending` and `GET /v1/trust/list`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrustList {
    /// The relations.
    pub peers: Vec<TrustEntry>,
}

/// One relation, and the answer to every change of trust.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrustEntry {
    /// Agent id.
    pub id: AgentId,
    /// Name from its record.
    pub name: Option<String>,
    /// Overlay IPv6 address.
    pub ipv6: Ipv6Addr,
    /// This host's IPv4 alias for it, where it has one.
    pub ipv4: Option<Ipv4Addr>,
    /// Trust.
    pub trust: TrustState,
    /// What the other side gave as its reason.
    pub reason: Option<String>,
    /// Protocols and ports that may be used; everything when absent.
    pub ports: Option<String>,
    /// Seconds until trust ends by itself.
    pub expires_s: Option<u64>,
    /// Seconds since the last change.
    pub since_s: u64,
    /// Where its request came from.
    pub from: Option<SocketAddr>,
}

/// `GET /v1/config`: the effective configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ConfigDocument {
    /// Every setting.
    pub settings: Vec<ConfigSetting>,
}

/// One setting.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ConfigSetting {
    /// Its key in the configuration file.
    pub key: String,
    /// Its value as text.
    pub value: String,
    /// Where the value came from: `default`, `file`, `environment`, `flag` or `state`.
    pub origin: String,
}

/// `POST /v1/reload`: what became of the settings that differ from those in force.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reloaded {
    /// Keys of those that are in force now.
    pub applied: Vec<String>,
    /// Keys of those that take a restart.
    pub needs_restart: Vec<String>,
}

/// What `agentnet daemon --background` writes to its standard output, one line, when it is ready or cannot start.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StartReport {
    /// The agent runs.
    Ready(Started),
    /// It could not start.
    Error(Error),
}

/// What `up` prints.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Started {
    /// Who it is.
    #[serde(flatten)]
    pub identity: Identity,
    /// Interface name.
    pub interface: String,
    /// UDP port.
    pub port: u16,
    /// Process id.
    pub pid: u32,
    /// True when it was running before.
    pub already_running: bool,
    /// What is wrong nevertheless.
    pub health: Vec<HealthEntry>,
}

/// An IP address a program would connect to, for texts.
#[must_use]
pub fn display_addresses(ipv6: Ipv6Addr, ipv4: Option<Ipv4Addr>) -> Vec<IpAddr> {
    let mut all = vec![IpAddr::V6(ipv6)];
    all.extend(ipv4.map(IpAddr::V4));
    all
}
