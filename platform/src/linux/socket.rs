use std::io;
use std::os::fd::{AsFd, AsRawFd};

use nix::sys::socket::{setsockopt, sockopt};

/// Raises the receive buffer beyond `net.core.rmem_max`, which only CAP_NET_ADMIN can. Best effort.
pub(crate) fn force_recv_buffer(socket: &impl AsFd, bytes: usize) -> bool {
    setsockopt(socket, sockopt::RcvBufForce, &bytes).is_ok()
}

/// Raises the send buffer beyond `net.core.wmem_max`, which only CAP_NET_ADMIN can. Best effort.
pub(crate) fn force_send_buffer(socket: &impl AsFd, bytes: usize) -> bool {
    setsockopt(socket, sockopt::SndBufForce, &bytes).is_ok()
}

/// Lets routers fragment what this IPv4 socket sends from now on.
pub(crate) fn allow_fragments(socket: &impl AsFd) -> io::Result<()> {
    set(socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DONT)
}

/// Sends datagrams whole or not at all, up to the MTU of the link, whatever the kernel believes of the path: as
/// quinn-udp sets up its sockets.
pub(crate) fn forbid_fragments(socket: &impl AsFd) -> io::Result<()> {
    set(socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_PROBE)
}

fn set(socket: &impl AsFd, level: libc::c_int, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let len = libc::socklen_t::try_from(size_of::<libc::c_int>()).unwrap_or_default();
    // SAFETY: the descriptor is open while it is borrowed, and the value is one `int` of the length given.
    let result = unsafe { libc::setsockopt(socket.as_fd().as_raw_fd(), level, option, (&raw const value).cast(), len) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
