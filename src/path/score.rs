//! Which of two working paths is better.

use std::cmp::Ordering;
use std::time::Duration;

use super::candidate::Route;

/// A path takes over from one that works only if its round trip is shorter by this much and by [`BETTER_SHARE`]: packets
/// that overtake each other cost more than a millisecond gains.
const BETTER_BY: Duration = Duration::from_millis(2);
/// In percent of the longer one.
const BETTER_SHARE: u32 = 20;

/// What is known of a working path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Quality {
    pub(super) route: Route,
    pub(super) rtt: Duration,
}

impl Quality {
    /// Whether to leave `current` for this one while both work.
    pub(super) fn replaces(self, current: Self) -> bool {
        match current.route.is_relayed().cmp(&self.route.is_relayed()) {
            Ordering::Greater => true,
            Ordering::Less => false,
            Ordering::Equal => {
                let gain = current.rtt.saturating_sub(self.rtt);
                gain >= BETTER_BY && gain * 100 >= current.rtt * BETTER_SHARE
            }
        }
    }

    /// The order in which working paths are chosen when there is no primary one; the least is the best.
    pub(super) fn cmp(self, other: Self) -> Ordering {
        // Round trips within the hysteresis are equal, and then IPv6 goes first: fewer NATs can forget it.
        let bucket = |quality: Self| quality.rtt.as_millis() / BETTER_BY.as_millis();
        let key = |quality: Self| (quality.route.is_relayed(), bucket(quality), !quality.route.is_ipv6());
        key(self).cmp(&key(other)).then(self.rtt.cmp(&other.rtt)).then(self.route.cmp(&other.route))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::IdentityKey;

    fn direct(address: &str, rtt_us: u64) -> Quality {
        Quality { route: Route::Direct(address.parse().unwrap()), rtt: Duration::from_micros(rtt_us) }
    }

    fn relayed(rtt_us: u64) -> Quality {
        let relay = IdentityKey::from_seed([1; 32]).id();
        Quality { route: Route::Relayed(relay), rtt: Duration::from_micros(rtt_us) }
    }

    #[test]
    fn direct_goes_before_relayed_whatever_the_round_trip() {
        let (slow, fast) = (direct("192.0.2.1:1", 200_000), relayed(1_000));
        assert!(slow.replaces(fast) && !fast.replaces(slow));
        assert_eq!(slow.cmp(fast), Ordering::Less);
    }

    #[test]
    fn a_little_faster_is_not_worth_a_change() {
        let current = direct("192.0.2.1:1", 10_000);
        assert!(!direct("192.0.2.2:1", 8_100).replaces(current));
        assert!(direct("192.0.2.2:1", 7_900).replaces(current));
        assert!(!direct("192.0.2.2:1", 98_500).replaces(direct("192.0.2.1:1", 100_000)));
        assert!(!current.replaces(current));
    }

    #[test]
    fn ipv6_first_among_equals() {
        let (v4, v6) = (direct("192.0.2.1:1", 10_000), direct("[2001:db8::1]:1", 10_900));
        assert_eq!(v6.cmp(v4), Ordering::Less);
        assert_eq!(direct("[2001:db8::1]:1", 30_000).cmp(v4), Ordering::Greater);
    }
}
