//! Whether the host was asleep: one clock goes on meanwhile, the other stands.

use std::time::{Duration, Instant};

use agentnet_platform::clock::boot_time;

/// Clocks that were read one after the other on a busy host differ by less.
const SLEPT: Duration = Duration::from_secs(2);

/// Both clocks, as they stood.
pub(super) struct SleepDetector {
    awake: Instant,
    boot: Duration,
}

impl SleepDetector {
    pub(super) fn new() -> Self {
        Self { awake: Instant::now(), boot: boot_time() }
    }

    /// Whether the host has been asleep since.
    pub(super) fn was_asleep(&self) -> bool {
        is_sleep(boot_time().saturating_sub(self.boot), self.awake.elapsed())
    }
}

fn is_sleep(by_boot_clock: Duration, by_awake_clock: Duration) -> bool {
    by_boot_clock.saturating_sub(by_awake_clock) >= SLEPT
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_difference_is_sleep() {
        let seconds = Duration::from_secs;
        assert!(!is_sleep(seconds(100), seconds(100)) && !is_sleep(seconds(1), seconds(5)));
        assert!(is_sleep(seconds(100), seconds(10)));
        assert!(!SleepDetector::new().was_asleep());
    }
}
