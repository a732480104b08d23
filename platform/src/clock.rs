//! The clock that keeps counting while the machine sleeps.

use std::time::Duration;

/// Time since the machine started, sleep included. It never goes backwards and nobody can set it.
#[must_use]
pub fn boot_time() -> Duration {
    crate::os::clock::boot_time()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boot_time_runs_forward_at_the_speed_of_time() {
        let before = boot_time();
        std::thread::sleep(Duration::from_millis(20));
        let passed = boot_time() - before;
        assert!(before > Duration::ZERO);
        assert!(passed >= Duration::from_millis(20), "{passed:?}");
        assert!(passed < Duration::from_secs(20), "{passed:?}");
    }
}
