use std::os::fd::AsFd;

use nix::sys::socket::{setsockopt, sockopt};

/// Raises the receive buffer beyond `net.core.rmem_max`, which only CAP_NET_ADMIN can. Best effort.
pub(crate) fn force_recv_buffer(socket: &impl AsFd, bytes: usize) -> bool {
    setsockopt(socket, sockopt::RcvBufForce, &bytes).is_ok()
}

/// Raises the send buffer beyond `net.core.wmem_max`, which only CAP_NET_ADMIN can. Best effort.
pub(crate) fn force_send_buffer(socket: &impl AsFd, bytes: usize) -> bool {
    setsockopt(socket, sockopt::SndBufForce, &bytes).is_ok()
}
