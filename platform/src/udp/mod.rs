//! UDP on one port number for IPv4 and IPv6, in batches, with segmentation offload where the kernel has it.

mod recv;
mod send;
mod sockets;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::BorrowedFd;

pub use recv::{Datagram, RecvBatch, Train};
pub use send::SendBatch;
pub use sockets::UdpSockets;

pub(crate) use send::Transmit;

/// How to bind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UdpOptions {
    /// The port for both families; 0 lets the operating system choose.
    pub port: u16,
    /// Whether IPv4 is wanted.
    pub v4: bool,
    /// Whether IPv6 is wanted.
    pub v6: bool,
    /// Wanted `SO_RCVBUF` in bytes; 0 leaves the system's. A request, not a demand.
    pub recv_buffer: usize,
    /// Wanted `SO_SNDBUF` in bytes; 0 leaves the system's. A request, not a demand.
    pub send_buffer: usize,
}

/// Why no sockets could be bound.
#[derive(Debug, thiserror::Error)]
pub enum UdpError {
    /// Another program has the port, in one of the families.
    #[error("UDP port {0} is in use")]
    PortInUse(u16),
    /// The process may not bind that port.
    #[error("no permission to bind UDP port {0}")]
    Permission(u16),
    /// None of the wanted families exists on this host.
    #[error("the host has neither of the wanted IP versions")]
    NoFamily,
    /// Anything else.
    #[error("cannot open a UDP socket: {0}")]
    Other(#[source] io::Error),
}

/// What became of one [`DatagramSocket::send_batch`].
#[derive(Default, Debug)]
pub struct SendReport {
    /// Datagrams the kernel took.
    pub sent_datagrams: usize,
    /// Datagrams it did not; `unreachable` and `too_big` are among them.
    pub dropped: usize,
    /// Datagrams for which the host has no route or no address of that family.
    pub unreachable: usize,
    /// Datagrams longer than the path or link takes.
    pub too_big: usize,
    /// The last error, for the log.
    pub last_error: Option<io::Error>,
    /// The destination of the last error.
    pub last_failed: Option<SocketAddr>,
    /// The shortest datagram among those in `too_big`.
    pub shortest_too_big: Option<TooBig>,
}

/// A datagram longer than the route or the link takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooBig {
    /// Where it was to go.
    pub destination: SocketAddr,
    /// Its length in bytes, without UDP and IP header.
    pub len: usize,
}

/// Something that sends and receives datagrams in batches: [`UdpSockets`] or a fake. Threads may share it.
pub trait DatagramSocket: Send + Sync {
    /// Fills `batch` from the start with what is waiting, without blocking; returns the number of trains.
    /// 0 means nothing is waiting. What `batch` held before is gone.
    ///
    /// # Errors
    /// Only those that say the socket is unusable; errors caused by earlier datagrams are swallowed.
    fn recv_batch(&self, batch: &mut RecvBatch) -> io::Result<usize>;

    /// Sends everything in `batch`. Waits a moment where the send buffer is full; a destination that fails
    /// does not stop the others. Datagrams cannot be fragmented on the way, but for those that were pushed as
    /// such. One thread at a time.
    fn send_batch(&self, batch: &SendBatch) -> SendReport;

    /// Sends one datagram, from `src_ip` if given, without blocking. It cannot be fragmented on the way.
    ///
    /// # Errors
    /// What the operating system says. A family the socket does not have is
    /// [`io::ErrorKind::NetworkUnreachable`].
    fn send_to(&self, bytes: &[u8], destination: SocketAddr, src_ip: Option<IpAddr>) -> io::Result<()>;

    /// The local port, of both families.
    fn port(&self) -> u16;

    /// Whether IPv4 destinations can be sent to.
    fn has_v4(&self) -> bool;

    /// Whether IPv6 destinations can be sent to.
    fn has_v6(&self) -> bool;

    /// The most datagrams one transmit may have, 1 without segmentation offload. It can fall to 1 later;
    /// batches made for the higher number are then split while sending.
    fn max_gso_segments(&self) -> usize;

    /// Readable when [`DatagramSocket::recv_batch`] would return something. One or two.
    fn fds(&self) -> Vec<BorrowedFd<'_>>;
}
