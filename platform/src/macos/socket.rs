use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// `IPV6_USE_MIN_MTU` of netinet6/in6.h (RFC 3542, section 11.1), which the libc crate does not have.
const IPV6_USE_MIN_MTU: libc::c_int = 42;
/// Its value "path MTU discovery decides", the one a socket begins with.
const MIN_MTU_FOR_MULTICAST: libc::c_int = -1;

/// macOS has no way around `kern.ipc.maxsockbuf`.
pub(crate) fn force_recv_buffer(_: &impl AsFd, _: usize) -> bool {
    false
}

/// macOS has no way around `kern.ipc.maxsockbuf`.
pub(crate) fn force_send_buffer(_: &impl AsFd, _: usize) -> bool {
    false
}

/// Lets IP fragment what this socket sends from now on: routers for IPv4, and this host, to what every link takes, for
/// IPv6.
pub(crate) fn allow_fragments(socket: &impl AsFd, is_ipv6: bool) -> io::Result<()> {
    if !is_ipv6 {
        return set(socket, libc::IPPROTO_IP, libc::IP_DONTFRAG, 0);
    }
    set(socket, libc::IPPROTO_IPV6, libc::IPV6_DONTFRAG, 0)?;
    set(socket, libc::IPPROTO_IPV6, IPV6_USE_MIN_MTU, 1)
}

/// Sends datagrams whole or not at all, as quinn-udp sets up its sockets.
pub(crate) fn forbid_fragments(socket: &impl AsFd, is_ipv6: bool) -> io::Result<()> {
    if !is_ipv6 {
        return set(socket, libc::IPPROTO_IP, libc::IP_DONTFRAG, 1);
    }
    set(socket, libc::IPPROTO_IPV6, IPV6_USE_MIN_MTU, MIN_MTU_FOR_MULTICAST)?;
    set(socket, libc::IPPROTO_IPV6, libc::IPV6_DONTFRAG, 1)
}

fn set(socket: &impl AsFd, level: libc::c_int, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let len = libc::socklen_t::try_from(size_of::<libc::c_int>()).unwrap_or_default();
    // SAFETY: the descriptor is open while it is borrowed, and the value is one `int` of the length given.
    let result = unsafe { libc::setsockopt(socket.as_fd().as_raw_fd(), level, option, (&raw const value).cast(), len) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
