use std::io;
use std::os::fd::{AsFd, AsRawFd};

use nix::sys::socket::{setsockopt, sockopt};

/// The MTU every IPv6 link has (RFC 8200, section 5).
const LEAST_IPV6_MTU: libc::c_int = 1280;

/// Raises the receive buffer beyond `net.core.rmem_max`, which only CAP_NET_ADMIN can. Best effort.
pub(crate) fn force_recv_buffer(socket: &impl AsFd, bytes: usize) -> bool {
    setsockopt(socket, sockopt::RcvBufForce, &bytes).is_ok()
}

/// Raises the send buffer beyond `net.core.wmem_max`, which only CAP_NET_ADMIN can. Best effort.
pub(crate) fn force_send_buffer(socket: &impl AsFd, bytes: usize) -> bool {
    setsockopt(socket, sockopt::SndBufForce, &bytes).is_ok()
}

/// Lets IP fragment what this socket sends from now on: routers for IPv4, and this host, to what every link takes, for
/// IPv6.
pub(crate) fn allow_fragments(socket: &impl AsFd, is_ipv6: bool) -> io::Result<()> {
    if !is_ipv6 {
        return set(socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DONT);
    }
    set(socket, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_DONT)?;
    set(socket, libc::IPPROTO_IPV6, libc::IPV6_DONTFRAG, 0)?;
    set(socket, libc::IPPROTO_IPV6, libc::IPV6_MTU, LEAST_IPV6_MTU)
}

/// Sends datagrams whole or not at all, up to the MTU of the link, whatever the kernel believes of the path: as
/// quinn-udp sets up its sockets.
pub(crate) fn forbid_fragments(socket: &impl AsFd, is_ipv6: bool) -> io::Result<()> {
    if !is_ipv6 {
        return set(socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_PROBE);
    }
    // Zero: the link's. It goes first, so that at no time whole datagrams are held to the least one.
    set(socket, libc::IPPROTO_IPV6, libc::IPV6_MTU, 0)?;
    set(socket, libc::IPPROTO_IPV6, libc::IPV6_DONTFRAG, 1)?;
    set(socket, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_PROBE)
}

fn set(socket: &impl AsFd, level: libc::c_int, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let len = libc::socklen_t::try_from(size_of::<libc::c_int>()).unwrap_or_default();
    // SAFETY: the descriptor is open while it is borrowed, and the value is one `int` of the length given.
    let result = unsafe { libc::setsockopt(socket.as_fd().as_raw_fd(), level, option, (&raw const value).cast(), len) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
