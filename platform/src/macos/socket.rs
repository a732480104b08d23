use std::os::fd::AsFd;

/// macOS has no way around `kern.ipc.maxsockbuf`.
pub(crate) fn force_recv_buffer(_: &impl AsFd, _: usize) -> bool {
    false
}

/// macOS has no way around `kern.ipc.maxsockbuf`.
pub(crate) fn force_send_buffer(_: &impl AsFd, _: usize) -> bool {
    false
}
