//! How much strangers may cost: the limits of the control plane.

use std::time::Duration;

use crate::limits::Rates;

/// The most agents there can be a relation with. A row is about 1 KiB in memory and on disk.
pub const MAX_PEERS: usize = 4096;
/// The most relations that ended in a no: enough to remember every no a person says; the oldest is forgotten first.
pub const MAX_REFUSED: usize = 1024;
/// Transport addresses kept per peer: two interfaces of both families, before and after a move.
pub const MAX_ADDRESSES: usize = 8;
/// Rendezvous servers in use: this agent's own four, and those of a dozen peers at a time.
pub const MAX_SERVERS: usize = 64;
/// Transport addresses of one server that are tried.
pub const MAX_SERVER_ADDRESSES: usize = 8;
/// Relays to one peer: the four it lists, and the four by which it comes here.
pub const MAX_RELAYS: usize = 8;
/// Echo requests waiting for their answer at once, over all local callers.
pub const MAX_PINGS: usize = 256;
/// Callers that wait for a check of the network at once: they all get the same answer.
pub const MAX_NETCHECKS: usize = 64;

/// Handshake initiations from unknown addresses. Each costs two Diffie-Hellman operations, about 100 us: 100 a second
/// are 1 % of a core.
pub(super) const INITIATION_RATES: Rates = Rates { per_network: 20, total: 100 };
/// Introductions. Each costs a decapsulation and three signature checks, about 300 us: 20 a second are under 1 %.
pub(super) const INTRODUCTION_RATES: Rates = Rates { per_network: 4, total: 20 };
/// Initiations from an address at which a trusted peer is known: they pass whatever strangers send.
pub(super) const KNOWN_INITIATION_RATES: Rates = Rates { per_network: 50, total: 1000 };
/// Control messages from one peer: enough for pings from many programs, 1 % of a core.
pub(super) const MESSAGE_RATE: u32 = 500;
/// Hellos and their acknowledgements from one peer. Each costs a signature check and may cost a write to disk; one per change is enough.
pub(super) const HELLO_RATE: u32 = 8;
/// Probes of all paths to all peers, a second: a home router takes a few hundred new mappings a second without harm.
pub(super) const PROBE_RATE: u32 = 256;
/// Probes of paths to one peer that may not exist, a second: two bursts of all 32.
pub(super) const PEER_PROBE_RATE: u32 = 64;
/// Doubts, a second, for which every server is asked where it sees this agent: a peer can raise as many as it likes.
pub(super) const DOUBT_RATE: u32 = 2;
/// Requests for records that go where peers say that their servers are, a second: a kilobyte each, to somebody who may
/// not have asked for it.
pub(super) const RECORD_REQUEST_RATE: u32 = 16;
/// Writes to disk, a second, of what a peer can change at will and a restart can do without.
pub(super) const HINT_RATE: u32 = 4;

/// When an unanswered message goes out again: doubling from `first` up to `longest`.
pub(super) fn backoff(attempt: u32, first: Duration, longest: Duration) -> Duration {
    first.saturating_mul(1 << attempt.min(20)).min(longest)
}
