//! UDP on one port number for IPv4 and IPv6, in batches, with segmentation offload where the kernel has it.

mod extra;
mod recv;
mod send;
mod sockets;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::BorrowedFd;

use crate::wait::Ready;

pub use recv::{Datagram, RecvBatch, Train};
pub use send::SendBatch;
pub use sockets::UdpSockets;

pub(crate) use extra::next_free;
pub(crate) use send::Transmit;

/// Extra sockets open at once, at most: two searches for a way through a hard NAT.
pub const MAX_EXTRA_SOCKETS: usize = 512;

/// Which of the sockets of one [`DatagramSocket`]. A number is not given out again until all others were.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SocketId(u16);

impl SocketId {
    /// The sockets everybody knows this host by, of both families.
    pub const MAIN: Self = Self(0);

    /// The socket with this number.
    #[must_use]
    pub const fn new(number: u16) -> Self {
        Self(number)
    }

    /// Its number; 0 for the main ones.
    #[must_use]
    pub const fn number(self) -> u16 {
        self.0
    }

    /// Whether it is the main pair.
    #[must_use]
    pub const fn is_main(self) -> bool {
        self.0 == 0
    }
}

/// This host's end of a datagram's way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LocalEnd {
    /// The socket.
    pub socket: SocketId,
    /// The address, where it matters; otherwise the host chooses. One of the other family than the destination's is
    /// ignored.
    pub ip: Option<IpAddr>,
}

/// The main socket, from this address.
impl From<Option<IpAddr>> for LocalEnd {
    fn from(ip: Option<IpAddr>) -> Self {
        Self { socket: SocketId::MAIN, ip }
    }
}

impl From<(SocketId, Option<IpAddr>)> for LocalEnd {
    fn from((socket, ip): (SocketId, Option<IpAddr>)) -> Self {
        Self { socket, ip }
    }
}

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

    /// The same, only from those of [`DatagramSocket::fds`] that a wait found readable: a system call less for each of the
    /// others.
    ///
    /// # Errors
    /// As [`DatagramSocket::recv_batch`].
    fn recv_ready(&self, _ready: Ready, batch: &mut RecvBatch) -> io::Result<usize> {
        self.recv_batch(batch)
    }

    /// Sends everything in `batch`. Waits a moment where the send buffer is full; a destination that fails
    /// does not stop the others. Datagrams cannot be fragmented on the way, but for those that were pushed as
    /// such. One thread at a time.
    fn send_batch(&self, batch: &SendBatch) -> SendReport;

    /// The same; `meanwhile` is called about every millisecond that it waits.
    fn send_batch_while(&self, batch: &SendBatch, _meanwhile: &mut dyn FnMut()) -> SendReport {
        self.send_batch(batch)
    }

    /// Sends one datagram, from this local end, without blocking. It cannot be fragmented on the way.
    ///
    /// # Errors
    /// What the operating system says. A family the socket does not have is
    /// [`io::ErrorKind::NetworkUnreachable`], a socket that is not open [`io::ErrorKind::NotConnected`].
    fn send_to(&self, bytes: &[u8], destination: SocketAddr, local: impl Into<LocalEnd>) -> io::Result<()>;

    /// Opens one more socket: IPv4, on a port the system chooses. What arrives there comes out of
    /// [`DatagramSocket::recv_batch`] like everything else. A thread that waits for [`DatagramSocket::fds`] notices by
    /// itself.
    ///
    /// # Errors
    /// [`io::ErrorKind::QuotaExceeded`] with [`MAX_EXTRA_SOCKETS`] open; what the operating system says.
    fn open_extra(&self) -> io::Result<SocketId>;

    /// Closes an extra socket; what waits there is lost. Nothing happens for one that is not open, or the main pair.
    fn close_extra(&self, socket: SocketId);

    /// The local port of the main socket, of both families.
    fn port(&self) -> u16;

    /// Whether IPv4 destinations can be sent to.
    fn has_v4(&self) -> bool;

    /// Whether IPv6 destinations can be sent to.
    fn has_v6(&self) -> bool;

    /// The most datagrams one transmit may have, 1 without segmentation offload. It can fall to 1 later;
    /// batches made for the higher number are then split while sending.
    fn max_gso_segments(&self) -> usize;

    /// Readable when [`DatagramSocket::recv_batch`] would return something. At most three, and the same for as long as
    /// the socket lives.
    fn fds(&self) -> Vec<BorrowedFd<'_>>;
}
