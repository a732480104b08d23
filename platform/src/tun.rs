//! The TUN device, and the trait behind which a fake can stand in for it.

use std::io;
use std::os::fd::BorrowedFd;

use crate::batch::PacketBatch;

pub use crate::os::tun::{Tun, TunQueue};

/// How to create a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TunOptions {
    /// The interface's name. `None` takes the first free one: `agentnet0`, `agentnet1`, … on Linux,
    /// `utunN` on macOS, which allows no other names.
    pub name: Option<String>,
    /// Maximum transmission unit in bytes. IPv6 needs 1,280 at least (RFC 8200, section 5).
    pub mtu: u16,
    /// Queues, each to be served by a thread of its own; all packets of a flow are in one. 1 where the operating system
    /// has no more.
    pub queues: usize,
}

/// Queues of one device, at most.
pub const MAX_QUEUES: usize = 16;

/// Why a device could not be created.
#[derive(Debug, thiserror::Error)]
pub enum TunError {
    /// An interface of that name exists already, whoever made it. It is left alone.
    #[error("an interface named {0} exists already")]
    NameTaken(String),
    /// The operating system would not take that name.
    #[error(
        "{0:?} is not an interface name: 1 to 15 printable characters without '/', ':', '%' or spaces (macOS: utun and a number)"
    )]
    InvalidName(String),
    /// The host has no TUN driver: `/dev/net/tun` is missing or leads nowhere.
    #[error("the host has no TUN device")]
    NoDevice,
    /// The process may not create interfaces.
    #[error("no permission to create a network interface")]
    Permission,
    /// Another process has taken a queue of the interface while it was made, and would get packets of it.
    #[error("another program took part in the new network interface")]
    SharedQueues,
    /// Anything else.
    #[error("cannot create a network interface: {0}")]
    Other(#[source] io::Error),
}

/// What became of the packets of one [`PacketDevice::write_batch`].
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct WriteReport {
    /// Packets the kernel took.
    pub written: usize,
    /// Packets the kernel refused (malformed, device down, no memory). The others still went out.
    pub dropped: usize,
}

/// Something that gives and takes IP packets in batches: a [`TunQueue`] or a fake.
///
/// One thread at a time uses a queue; both calls never block.
pub trait PacketDevice: Send {
    /// Appends packets to `batch` until none is waiting or the batch is full; returns how many.
    /// 0 means nothing is waiting.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] when `batch` is empty and yet too small for the longest packet;
    /// otherwise the device is gone.
    fn read_batch(&mut self, batch: &mut PacketBatch) -> io::Result<usize>;

    /// Hands every packet of `batch` to the host. `batch` is mutable because the device header is written
    /// into each packet's headroom; the packets themselves stay as they are.
    ///
    /// # Errors
    /// The device is gone. A refused packet is no error, see [`WriteReport`].
    fn write_batch(&mut self, batch: &mut PacketBatch) -> io::Result<WriteReport>;

    /// Readable when [`PacketDevice::read_batch`] would return something.
    fn as_fd(&self) -> BorrowedFd<'_>;
}

/// The longest interface name: `IFNAMSIZ` (16) less the terminating zero.
pub(crate) const MAX_NAME: usize = 15;

/// What the kernel (`dev_valid_name`) and its tools agree to be a name. `%` is refused because the kernel
/// would take it for a pattern.
pub(crate) fn is_valid_name(name: &str) -> bool {
    (1..=MAX_NAME).contains(&name.len())
        && name != "."
        && name != ".."
        && name.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'/' | b':' | b'%'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_names_are_refused() {
        for name in ["agentnet0", "a", "abcdefghijklmno", "x-1_y.z"] {
            assert!(is_valid_name(name), "{name}");
        }
        for name in ["", ".", "..", "abcdefghijklmnop", "a b", "a/b", "a:b", "tun%d", "a\0b", "å", "a\n"] {
            assert!(!is_valid_name(name), "{name:?}");
        }
    }
}
