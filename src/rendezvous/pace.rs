//! How often one may do something: at an interval, after a few at once.

use std::time::Duration;

use crate::time::Time;

/// The interval of every [`Pace`].
const INTERVAL: Duration = Duration::from_secs(1);
/// So many at once, after which the interval holds: a try, and the copies of it that went out meanwhile.
const BURST: u32 = 4;
/// One thing that is done once a second, four times at once.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Pace {
    /// When all that was done would have been done without haste.
    until: Time,
}

impl Pace {
    /// Whether it may be done now; if so, it is.
    pub(super) fn take(&mut self, now: Time) -> bool {
        let ahead = self.until.since(now);
        let within = ahead <= INTERVAL * (BURST - 1);
        if within {
            self.until = now + ahead + INTERVAL;
        }
        within
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Time {
        Time::from_origin(Duration::from_millis(millis))
    }

    #[test]
    fn four_at_once_and_then_one_a_second() {
        let mut pace = Pace::default();
        let taken: Vec<u64> = (0..100).map(|step| step * 100).filter(|millis| pace.take(at(5000 + millis))).collect();
        assert_eq!(taken, [0, 100, 200, 300, 1000, 2000, 3000, 4000, 5000, 6000, 7000, 8000, 9000]);
    }
}
