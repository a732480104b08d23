use std::ffi::{c_int, c_void};
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

/// Visits the first object that dl_iterate_phdr(3) names: the program itself.
pub(crate) fn release_code() {
    // SAFETY: the callback is one for this function, keeps nothing, and does not unwind.
    unsafe { libc::dl_iterate_phdr(Some(release_code_of), std::ptr::null_mut()) };
}

/// Every piece of an object that runs and cannot be written.
unsafe extern "C" fn release_code_of(object: *mut libc::dl_phdr_info, _size: usize, _data: *mut c_void) -> c_int {
    const STOP: c_int = 1;
    let Ok(Some(page)) = sysconf(SysconfVar::PAGE_SIZE).map(|size| size.and_then(|size| usize::try_from(size).ok()))
    else {
        return STOP;
    };
    // SAFETY: the C library passes a valid object, whose headers are as many as it says and stay for the call.
    let (base, headers) = unsafe {
        let object = &*object;
        (object.dlpi_addr as usize, std::slice::from_raw_parts(object.dlpi_phdr, object.dlpi_phnum.into()))
    };
    let wanted = libc::PF_R | libc::PF_X;
    for header in headers.iter().filter(|header| header.p_type == libc::PT_LOAD && header.p_flags == wanted) {
        let begin = (base + header.p_vaddr as usize).next_multiple_of(page);
        let end = (base + header.p_vaddr as usize + header.p_memsz as usize) / page * page;
        // SAFETY: these pages are the program's file, mapped privately and never written: what is taken away is read
        // from the file again. What is refused stays.
        unsafe { libc::madvise(begin as *mut c_void, end.saturating_sub(begin), libc::MADV_DONTNEED) };
    }
    STOP
}
