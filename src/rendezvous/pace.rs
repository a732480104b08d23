//! How often one may do something: at an interval, after a few at once.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use super::crowds::Network;
use crate::identity::AgentId;
use crate::time::Time;

/// The interval of every [`Pace`].
const INTERVAL: Duration = Duration::from_secs(1);
/// So many at once, after which the interval holds: a try, and the copies of it that went out meanwhile.
const BURST: u32 = 4;
/// Recipients that one client sends introductions to within [`BURST`] intervals: all that its rate of messages allows.
const MAX_RECIPIENTS: usize = 256;
/// Introductions sent on to one recipient within a second: as many as it takes from one server.
const MAX_ARRIVALS: usize = 8;
/// Of these from one network: two a second are left for the others.
const MAX_ARRIVALS_PER_NETWORK: usize = 6;

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

/// One client's introductions by recipient.
#[derive(Debug, Default)]
pub(super) struct Recipients {
    paces: HashMap<AgentId, Pace>,
}

impl Recipients {
    /// Whether one more may go to this recipient now; if so, it does.
    pub(super) fn take(&mut self, now: Time, recipient: AgentId) -> bool {
        if self.paces.len() >= MAX_RECIPIENTS && !self.paces.contains_key(&recipient) {
            self.paces.retain(|_, pace| pace.until > now);
            if self.paces.len() >= MAX_RECIPIENTS {
                return false;
            }
        }
        self.paces.entry(recipient).or_default().take(now)
    }
}

/// The introductions of the last second that one client was sent.
#[derive(Debug, Default)]
pub(super) struct Arrivals {
    recent: VecDeque<(Time, Network)>,
}

impl Arrivals {
    /// Whether one more from this network may be sent now; if so, it is.
    pub(super) fn take(&mut self, now: Time, network: Network) -> bool {
        while self.recent.front().is_some_and(|(at, _)| now.since(*at) >= Duration::from_secs(1)) {
            self.recent.pop_front();
        }
        let of_network = self.recent.iter().filter(|(_, other)| *other == network).count();
        let within = self.recent.len() < MAX_ARRIVALS && of_network < MAX_ARRIVALS_PER_NETWORK;
        if within {
            self.recent.push_back((now, network));
        }
        within
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::record::tests::key;

    fn at(millis: u64) -> Time {
        Time::from_origin(Duration::from_millis(millis))
    }

    #[test]
    fn four_at_once_and_then_one_a_second() {
        let mut pace = Pace::default();
        let taken: Vec<u64> = (0..100).map(|step| step * 100).filter(|millis| pace.take(at(5000 + millis))).collect();
        assert_eq!(taken, [0, 100, 200, 300, 1000, 2000, 3000, 4000, 5000, 6000, 7000, 8000, 9000]);
    }

    #[test]
    fn recipients_are_bounded_and_idle_ones_forgotten() {
        let mut recipients = Recipients::default();
        let ids: Vec<AgentId> = (0..=255).map(|number| key(number).id()).collect();
        assert!(ids.iter().all(|id| recipients.take(at(0), *id)));
        let another = crate::identity::IdentityKey::from_seed([[1; 16], [2; 16]].concat().try_into().unwrap()).id();
        assert!(!ids.contains(&another));
        assert!(!recipients.take(at(999), another));
        assert!(recipients.take(at(1000), another));
        assert_eq!(recipients.paces.len(), 1);
    }

    #[test]
    fn of_a_recipients_places_no_network_has_all() {
        let mut arrivals = Arrivals::default();
        let taken = |arrivals: &mut Arrivals, millis, network| {
            (0..20).filter(|_| arrivals.take(at(millis), [network; 6])).count()
        };
        assert_eq!([1, 2, 3].map(|network| taken(&mut arrivals, 0, network)), [6, 2, 0]);
        assert_eq!((taken(&mut arrivals, 999, 3), taken(&mut arrivals, 1000, 3)), (0, 6));
        assert!(arrivals.recent.len() <= MAX_ARRIVALS);
    }
}
