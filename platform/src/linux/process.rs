use std::{fs, io};

use nix::unistd::{SysconfVar, sysconf};

/// The kernel's own bound (`fs.nr_open`) is enforced by the hard limit.
pub(crate) fn clamp_open_files(wanted: u64) -> u64 {
    wanted
}

/// The second number of proc_pid_statm(5), in pages.
pub(crate) fn resident_memory() -> io::Result<u64> {
    let statm = fs::read_to_string("/proc/self/statm")?;
    let pages: u64 = statm
        .split_ascii_whitespace()
        .nth(1)
        .and_then(|number| number.parse().ok())
        .ok_or(io::ErrorKind::InvalidData)?;
    let page_size =
        sysconf(SysconfVar::PAGE_SIZE)?.and_then(|size| u64::try_from(size).ok()).ok_or(io::ErrorKind::Unsupported)?;
    Ok(pages.saturating_mul(page_size))
}

/// mallopt(3).
#[cfg(target_env = "gnu")]
pub(crate) fn keep_large_pieces_apart() {
    // SAFETY: it takes two numbers; what it refuses stays as it is.
    unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, 8 * 1024) };
}

/// Other C libraries have limits of their own.
#[cfg(not(target_env = "gnu"))]
pub(crate) fn keep_large_pieces_apart() {}

/// malloc_trim(3).
#[cfg(target_env = "gnu")]
pub(crate) fn return_free_memory() {
    // SAFETY: it asks nothing of its caller, and any thread may call it.
    unsafe { libc::malloc_trim(0) };
}

/// Other C libraries give back what is free.
#[cfg(not(target_env = "gnu"))]
pub(crate) fn return_free_memory() {}
