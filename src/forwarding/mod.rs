//! The way of a packet.
//!
//! ```text
//!  out   program -> kernel -> TUN                                  in   UDP socket -> kernel GRO
//!   1. read a batch from the device                                 1. receive a batch of trains
//!   2. parse; the source must be this agent                         2. classify each datagram by its first bytes; what a
//!                                                                      relay passes on is unwrapped
//!   3. destination -> peer (no route: tell the program)             3. receiver index -> peer
//!   4. policy of the peer's grant                                   4. open straight into the device's buffer
//!   5. longer than the path takes? cut it, or tell the program      5. control messages leave for the control plane
//!   6. segment, and seal straight into the send buffer              6. both consented? source and destination right?
//!   7. send the batch, equal sizes as one UDP_SEGMENT train         7. policy; IPv4 aliases rewritten to local ones
//!                                                                   8. TCP that begins: no longer than the path takes
//!                                                                   9. what continues the packet before becomes one with it
//!                                                                  10. write the batch to the device
//! ```
//!
//! [`Outbound`] and [`Inbound`] are functions over batches, each driven by one packet thread at a time. They read one
//! immutable snapshot, the [`Fib`], loaded once per batch, and take a peer's session lock once for each run of packets
//! of that peer, never across a system call; a long run passes it on where the other direction waits ([`Sessions`]). Where
//! several queues carry packets to one peer, a batch is sealed and sent before the next one is sealed ([`Turns`]). They
//! allocate nothing on the way of an ordinary packet. What the control plane must know leaves as a [`Notice`], on the
//! first packet of a period or when a packet cannot go on.

mod coalesce;
mod fib;
mod fit;
mod fragment;
mod inbound;
mod notice;
mod outbound;
mod parted;
mod peer_path;
mod segment;
mod session_lock;
mod turns;

pub use coalesce::{Coalescer, Offloads};
pub use fib::{Fib, FibPeer, Ipv4Aliases, PeerCounters, SharedPeer};
pub use inbound::Inbound;
pub use notice::{Notice, NoticeSink, StrangerDatagram};
pub use outbound::Outbound;
pub use peer_path::PeerPath;
pub use segment::{SegmentError, Segments};
pub use session_lock::Sessions;
pub use turns::{HeldTurns, Turns};

/// Packets in one batch from the device. 64 full packets are two UDP_SEGMENT trains; more would only add delay.
pub const OUT_BATCH_PACKETS: usize = 64;
/// Bytes of that batch: room for three packets of 64 KiB, as segmentation offload would deliver them.
pub const OUT_BATCH_BYTES: usize = 256 * 1024;
/// Bytes of the send buffer: several packets of 64 KiB, cut and sealed. One cut into more pieces than fit here, which
/// takes a segment size below 64 bytes, is refused.
pub const SEND_BYTES: usize = 512 * 1024;
/// Packets that may wait for a session with one peer, in the channel and in the control plane together.
pub const WAITING_PACKETS: usize = 64;

#[cfg(test)]
mod tests;
