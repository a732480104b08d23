//! Every byte layout that leaves this host or comes from another one. No state.
//!
//! Each file has one shape: the layout as a table, a checked parse that never panics, emit, and a
//! round-trip test. A fuzz target and a committed test vector for each are in `tests/`.
//!
//! | module | what it reads and writes |
//! |---|---|
//! | [`mod@classify`] | which kind of datagram arrived, by its first bytes |
//! | [`introduction`] | the sealed message to an agent one has no session with |
//! | [`control`] | messages between two agents inside their session |
//! | [`rendezvous`] | asking a rendezvous server for its record, without a session |
//! | [`relay`] | a WireGuard datagram on its way through a relay |
//! | [`stun`] | where a datagram came from, and how NATs behave |
//! | [`ip`] | the IP packets of programs: view, address rewriting, ICMP errors |
//! | [`icmp`] | the ICMP errors sent back to local programs |
//! | [`mss`] | the segment size that TCP connections begin with |

pub(crate) mod checksum;
pub mod classify;
pub mod control;
pub mod icmp;
mod incremental_checksum;
pub mod introduction;
pub mod ip;
pub mod mss;
pub mod relay;
pub mod rendezvous;
pub mod stun;

pub use classify::{DatagramKind, classify};
pub use control::{ControlError, ControlMessage, ControlPacket, GoodbyeReason, Hello, PathMessage, RendezvousMessage};
pub use icmp::{UnreachableReason, unreachable};
pub use introduction::{Introduction, IntroductionError, TrustRequest};
pub use ip::{Fragment, IpError, IpView, Ports, rewrite_ipv4};
pub use mss::{clamp_mss, is_tcp_syn};
pub use relay::{RELAY_PREFIX_LEN, RelayChannel, RelayError, RelayFrame};
pub use rendezvous::{RECORD_REQUEST_LEN, RecordAnswer, RecordFrameError, RecordRequest};
pub use stun::{BindingRequest, BindingResponse, Change, ServerAddresses, StunError, respond};

use crate::identity::VersionRange;

/// Versions of agentnet's protocol that this program speaks.
pub const PROTOCOL_VERSIONS: VersionRange = VersionRange { min: 1, max: 1 };

/// Largest UDP payload in bytes that a datagram can announce (RFC 768, 16 bit length), rounded up
/// to a whole receive buffer.
pub const MAX_DATAGRAM: usize = 65_535;

/// WireGuard handshake initiation in bytes (WireGuard white paper, section 5.4.2).
pub const WIREGUARD_INITIATION_LEN: usize = 148;

/// WireGuard handshake response in bytes (white paper, section 5.4.3).
pub const WIREGUARD_RESPONSE_LEN: usize = 92;

/// WireGuard cookie reply in bytes (white paper, section 5.4.7).
pub const WIREGUARD_COOKIE_LEN: usize = 64;

/// Bytes that a WireGuard data message adds to its content: 16 of header and 16 of authentication
/// tag (white paper, section 5.4.6). A message of this length is a keepalive.
pub const WIREGUARD_OVERHEAD: usize = 32;

/// STUN magic cookie, bytes 4..8 of every STUN message (RFC 8489, section 5).
pub const STUN_MAGIC_COOKIE: [u8; 4] = 0x2112_A442u32.to_be_bytes();

/// STUN header in bytes (RFC 8489, section 5).
pub const STUN_HEADER_LEN: usize = 20;

/// First bytes of every agentnet frame outside a session. The first two bits, 01, are those of no
/// STUN message (RFC 8489, section 5), the first byte that of no WireGuard message.
pub const FRAME_MAGIC: [u8; 3] = *b"agn";

/// Bytes before the content of an agentnet frame: magic, type, version, three zero bytes.
pub const FRAME_HEADER_LEN: usize = 8;

/// Version of the agentnet frames.
pub const FRAME_VERSION: u8 = 1;

/// Frame type of an introduction.
pub const FRAME_INTRODUCTION: u8 = 1;

/// Frame type of a relay frame.
pub const FRAME_RELAY: u8 = 2;

/// Frame type of a request for a rendezvous server's record.
pub const FRAME_RECORD_REQUEST: u8 = 3;

/// Frame type of the answer to a record request.
pub const FRAME_RECORD_ANSWER: u8 = 4;

/// IPv6 next header of control messages: "use for experimentation and testing" (RFC 3692,
/// section 2.1). Nothing with it ever leaves a session.
pub const CONTROL_NEXT_HEADER: u8 = 253;

/// Longest UDP payload that fits the least packet every IPv6 link carries: 1,280 bytes (RFC 8200,
/// section 5) less 40 of IPv6 and 8 of UDP header.
pub const MAX_UNFRAGMENTED_PAYLOAD: usize = 1232;

/// Longest IP packet in a session in bytes that fits the least packet every IPv6 link carries, through a relay too: what
/// every path takes.
pub const LEAST_PATH_MTU: usize = MAX_UNFRAGMENTED_PAYLOAD - WIREGUARD_OVERHEAD - RELAY_PREFIX_LEN;

/// The header of an agentnet frame of this type.
pub const fn frame_header(frame_type: u8) -> [u8; FRAME_HEADER_LEN] {
    let [a, g, n] = FRAME_MAGIC;
    [a, g, n, frame_type, FRAME_VERSION, 0, 0, 0]
}
