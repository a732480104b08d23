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
