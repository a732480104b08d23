//! One path: what its probes say of it, and when the next is due.

use std::collections::VecDeque;
use std::time::Duration;

use super::PathState;
use crate::path::candidate::Candidate;
use crate::path::take_sparingly;
use crate::time::Time;

/// Probes of one path whose answer is still waited for.
const MAX_OUTSTANDING: usize = 8;
/// A candidate that is new, or new again after an event, is probed at these times. Both sides do so at once, so that
/// each opens its own NAT for the other (RFC 8445 paces at 50 ms; the session's handshake has gone before).
pub(super) const BURST: [Duration; 7] = [
    Duration::ZERO,
    Duration::from_millis(50),
    Duration::from_millis(150),
    Duration::from_millis(350),
    Duration::from_millis(750),
    Duration::from_millis(1500),
    Duration::from_millis(3000),
];
/// After the burst a path that never answered is tried again after this, doubling up to [`RETRY_LONGEST`], while there
/// is traffic.
const RETRY_FIRST: Duration = Duration::from_secs(10);
/// See [`RETRY_FIRST`]. Minutes, not hours: a NAT that was rebooted is worth finding.
const RETRY_LONGEST: Duration = Duration::from_secs(300);
/// A working path that is not the primary one is measured this often while there is traffic.
const STANDBY_INTERVAL: Duration = Duration::from_secs(25);
/// The primary path is measured this often while there is traffic.
const PRIMARY_INTERVAL: Duration = Duration::from_secs(10);
/// An unanswered probe is forgotten after this.
const PROBE_LIFE: Duration = Duration::from_secs(5);
/// A path that answered within this time is taken to work.
const FRESH_FOR: Duration = Duration::from_secs(40);

#[derive(Debug)]
pub(super) struct Path {
    pub(super) candidate: Candidate,
    pub(super) state: PathState,
    pub(super) rtt: Option<Duration>,
    pub(super) answered: Option<Time>,
    pub(super) outstanding: VecDeque<(u64, Time)>,
    /// Probes sent since the path became unproven, or since the last event.
    pub(super) attempts: usize,
    pub(super) probes: u32,
    pub(super) next: Option<Time>,
    /// Within one site: nothing on the way forgets it.
    pub(super) is_local: bool,
}

impl Path {
    pub(super) fn new(candidate: Candidate, next: Option<Time>) -> Self {
        Self {
            candidate,
            state: PathState::Unproven,
            rtt: None,
            answered: None,
            outstanding: VecDeque::new(),
            attempts: 0,
            probes: 0,
            next,
            is_local: false,
        }
    }

    pub(super) fn probe(&mut self, now: Time, token: u64, interval: Duration) -> u64 {
        if self.outstanding.len() == MAX_OUTSTANDING {
            self.outstanding.pop_front();
        }
        self.outstanding.push_back((token, now));
        self.attempts += 1;
        self.probes = self.probes.saturating_add(1);
        self.next = Some(now + interval);
        token
    }

    /// Until the next probe, if nothing happens. A path that worked before a pause is as good as a new one.
    pub(super) fn interval(&self, now: Time, is_primary: bool) -> Duration {
        if self.state == PathState::Working && self.is_fresh(now) {
            return if is_primary { PRIMARY_INTERVAL } else { STANDBY_INTERVAL };
        }
        match (BURST.get(self.attempts + 1), BURST.get(self.attempts)) {
            (Some(next), Some(last)) => next.saturating_sub(*last),
            _ => {
                let doublings =
                    u32::try_from(self.attempts.saturating_sub(BURST.len() - 1)).unwrap_or(u32::MAX).min(16);
                RETRY_FIRST.saturating_mul(1 << doublings).min(RETRY_LONGEST)
            }
        }
    }

    /// Drops probes nobody will answer any more. A path that leaves them unanswered works no longer.
    pub(super) fn forget_probes(&mut self, now: Time) {
        let before = self.outstanding.len();
        self.outstanding.retain(|(_, sent)| now.since(*sent) < PROBE_LIFE);
        if self.outstanding.len() < before && !self.is_fresh(now) && self.state == PathState::Working {
            self.state = PathState::Failed;
            self.attempts = 0;
        }
    }

    /// Answered lately.
    pub(super) fn is_fresh(&self, now: Time) -> bool {
        self.answered.is_some_and(|at| now.since(at) < FRESH_FOR)
    }

    /// When the probe with this token was sent, which is answered by that.
    pub(super) fn take_outstanding(&mut self, token: u64) -> Option<Time> {
        let position = self.outstanding.iter().position(|(sent, _)| *sent == token)?;
        take_sparingly(&mut self.outstanding, position).map(|(_, at)| at)
    }

    pub(super) fn prove(&mut self, now: Time, rtt: Duration) {
        // As TCP smooths it (RFC 6298, section 2.3).
        self.rtt = Some(self.rtt.map_or(rtt, |smoothed| (smoothed * 7 + rtt) / 8));
        self.state = PathState::Working;
        self.answered = Some(now);
        self.attempts = 0;
        // The burst has done its work.
        self.next = self.next.map(|at| at.max(now + PRIMARY_INTERVAL));
    }
}
