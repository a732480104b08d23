//! Clocks of others, as they are told in sessions.

use std::time::Duration;

use crate::time::{Now, Time};

/// What was told counts for so long.
const TOLD_FOR: Duration = Duration::from_secs(900);

/// What somebody's clock showed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ToldClock {
    /// Milliseconds since 1970.
    unix_ms: u64,
    heard: Time,
}

impl ToldClock {
    pub(super) fn new(now: Now, unix_ms: u64) -> Self {
        Self { unix_ms, heard: now.time }
    }

    /// By how many seconds it is ahead of this host's, which may have been set since; unknown once it was told long ago, as
    /// it may have been set, too.
    pub(super) fn ahead_s(self, now: Now) -> Option<i64> {
        if now.time.since(self.heard) > TOLD_FOR {
            return None;
        }
        let passed = u64::try_from(now.time.since(self.heard).as_millis()).unwrap_or(u64::MAX);
        let theirs = i128::from(self.unix_ms.saturating_add(passed));
        Some(i64::try_from((theirs - i128::from(now.unix_ms)) / 1000).unwrap_or(i64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_clock_goes_on_and_this_one_may_be_set() {
        let at =
            |seconds: u64, unix_s: u64| Now { time: Time::ZERO + Duration::from_secs(seconds), unix_ms: unix_s * 1000 };
        let told = ToldClock::new(at(100, 5000), 8_600_000);
        assert_eq!(told.ahead_s(at(100, 5000)), Some(3600));
        assert_eq!(told.ahead_s(at(700, 5600)), Some(3600));
        assert_eq!(told.ahead_s(at(700, 9200)), Some(0));
        assert_eq!(told.ahead_s(at(700, 12_800)), Some(-3600));
        assert_eq!(told.ahead_s(at(1001, 5901)), None, "it may have been set since");
        assert_eq!(ToldClock::new(at(0, 0), u64::MAX).ahead_s(at(9, 0)), i64::try_from(u64::MAX / 1000).ok());
    }
}
