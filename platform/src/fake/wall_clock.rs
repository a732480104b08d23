//! A wall clock that a test moves, for libraries that read the system's.
//!
//! The C library's `clock_gettime`, which the standard library's `SystemTime` is made of, is replaced in the whole
//! program by one that asks here first. Threads that set no wall clock, and all other clocks, get the system's.

use std::cell::Cell;
use std::time::Duration;

thread_local! {
    static WALL_CLOCK: Cell<Option<Duration>> = const { Cell::new(None) };
}

/// From now on the wall clock of this thread stands at this time since 1970; at the system's time if none. On systems
/// other than Linux it has no effect.
pub fn set_wall_clock(since_1970: Option<Duration>) {
    WALL_CLOCK.set(since_1970);
}

/// # Safety
/// As for the C library's: `time` is null or may be written to.
#[cfg(target_os = "linux")]
#[unsafe(no_mangle)]
unsafe extern "C" fn clock_gettime(clock: libc::clockid_t, time: *mut libc::timespec) -> libc::c_int {
    let set = WALL_CLOCK.get().filter(|_| clock == libc::CLOCK_REALTIME && !time.is_null());
    let Some(now) = set else {
        // SAFETY: the kernel checks both arguments; what it writes to is the caller's as promised.
        let result = unsafe { libc::syscall(libc::SYS_clock_gettime, clock, time) };
        return libc::c_int::try_from(result).unwrap_or(-1);
    };
    let seconds = libc::time_t::try_from(now.as_secs()).unwrap_or(libc::time_t::MAX);
    let value = libc::timespec { tv_sec: seconds, tv_nsec: now.subsec_nanos().into() };
    // SAFETY: not null, and the caller promises that it may be written to.
    unsafe { time.write(value) };
    0
}
