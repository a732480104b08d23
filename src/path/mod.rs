//! Which way packets to one peer take, out of all the ways there may be; and, in [`Gather`], how this host looks from
//! outside.
//!
//! A [`PathSet`] holds the remote candidates of one peer, probes them inside the session, and names one of them the
//! *primary* path. Being inside the session, a probe that is answered proves both that the path works both ways and that
//! the peer is at its end; there are no credentials of its own.
//!
//! # Driving it
//!
//! Tell it what happens, then drain [`PathSet::poll_output`], then come back at [`PathSet::poll_timeout`]. Time and
//! randomness are arguments; it does no I/O.
//!
//! # Rules
//!
//! - Probes only ever promote: a path becomes primary by answering, never by being listed.
//! - Liveness is proof by data: what was sent must be followed by something received. If it is not, every path is probed
//!   at once, and the first that answers takes over; a relayed one if there is no other.
//! - Direct before relayed; among equals IPv6 first, then the shorter round trip, with hysteresis.
//! - A path that fails is tried again: on every event of the network, and with bounded backoff. None is written off.
//! - An idle peer costs nothing: without traffic there are no probes and no timers.
//!
//! [`PathMtus`] finds out how long a packet may be on the primary path.

mod candidate;
mod gather;
mod hard_nat;
mod loss;
mod mtu;
mod net_report;
mod score;
mod set;

use std::collections::VecDeque;

pub use candidate::{Candidate, CandidateKind, Route, SocketId};
pub use gather::{Gather, MAX_SERVERS, Output as GatherOutput, StunServer};
pub use hard_nat::{Attempt, HARD_SOCKETS, HardNat, HardNatReport, Output as HardNatOutput, Plan, last_seen};
pub use loss::PathLoss;
pub use mtu::{MtuProbe, PathMtus};
pub use net_report::{Filtering, MappingBasis, NetReport, ServerReport, ServerState};
pub use set::{Output, PathReport, PathSet, PathState};

/// Takes this one out of a queue that is seldom used and there for every peer: an empty one takes no memory.
fn take_sparingly<T>(queue: &mut VecDeque<T>, position: usize) -> Option<T> {
    let taken = queue.remove(position);
    if queue.is_empty() {
        queue.shrink_to_fit();
    }
    taken
}
