use std::{io, mem};

/// `OPEN_MAX` of sys/syslimits.h: setrlimit(2) refuses more for open files.
const MAX_OPEN_FILES: u64 = 10_240;

pub(crate) fn clamp_open_files(wanted: u64) -> u64 {
    wanted.min(MAX_OPEN_FILES)
}

/// `pti_resident_size` of proc_pidinfo(3).
pub(crate) fn resident_memory() -> io::Result<u64> {
    let size = libc::c_int::try_from(mem::size_of::<libc::proc_taskinfo>()).map_err(|_| io::ErrorKind::Unsupported)?;
    // SAFETY: `proc_taskinfo` consists of integers, for which zero is a value.
    let mut info: libc::proc_taskinfo = unsafe { mem::zeroed() };
    // SAFETY: the pointer is valid for `size` bytes of writes for the duration of the call.
    let written =
        unsafe { libc::proc_pidinfo(libc::getpid(), libc::PROC_PIDTASKINFO, 0, (&raw mut info).cast(), size) };
    if written == size { Ok(info.pti_resident_size) } else { Err(io::Error::last_os_error()) }
}

/// The allocator keeps sizes apart.
pub(crate) fn keep_large_pieces_apart() {}

/// The allocator gives back what is free.
pub(crate) fn return_free_memory() {}

/// Not done there.
pub(crate) fn release_code() {}
