use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// `CLOCK_MONOTONIC` keeps counting while macOS sleeps (clock_gettime(3)).
pub(crate) fn boot_time() -> Duration {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).expect("CLOCK_MONOTONIC exists since macOS 10.12")
}
