use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// macOS has no way around `kern.ipc.maxsockbuf`.
pub(crate) fn force_recv_buffer(_: &impl AsFd, _: usize) -> bool {
    false
}

/// macOS has no way around `kern.ipc.maxsockbuf`.
pub(crate) fn force_send_buffer(_: &impl AsFd, _: usize) -> bool {
    false
}

/// Lets routers fragment what this IPv4 socket sends from now on.
pub(crate) fn allow_fragments(socket: &impl AsFd) -> io::Result<()> {
    set(socket, libc::IPPROTO_IP, libc::IP_DONTFRAG, 0)
}

/// Sends datagrams whole or not at all, as quinn-udp sets up its sockets.
pub(crate) fn forbid_fragments(socket: &impl AsFd) -> io::Result<()> {
    set(socket, libc::IPPROTO_IP, libc::IP_DONTFRAG, 1)
}

fn set(socket: &impl AsFd, level: libc::c_int, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let len = libc::socklen_t::try_from(size_of::<libc::c_int>()).unwrap_or_default();
    // SAFETY: the descriptor is open while it is borrowed, and the value is one `int` of the length given.
    let result = unsafe { libc::setsockopt(socket.as_fd().as_raw_fd(), level, option, (&raw const value).cast(), len) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
