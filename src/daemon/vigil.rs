//! When a packet thread stays awake for what comes next, and when it sleeps.
//!
//! A processor without work halts, and to wake a thread on it takes 45 to 200 us (measured), more than a round trip to a
//! host nearby takes otherwise. Kernels therefore poll for a moment before they halt, where that was worth it lately
//! (Linux: haltpoll, and `halt_poll_ns` of KVM). This does the same after a silence: the answer to the first packet then
//! finds the thread awake. Between hosts far apart no answer comes so soon, and under load there is no silence; in both
//! cases it never polls.

use std::time::Duration;

/// The silence before. Polling costs no more than [`WATCH`] of it, a twentieth of a processor.
const SILENCE: Duration = Duration::from_millis(10);
/// How long it polls after a silence, in all.
const WATCH: Duration = Duration::from_micros(500);
/// What came to a sleeping thread within this may come to one that is awake within [`WATCH`].
const SOON: Duration = Duration::from_millis(1);

/// What was carried last; what follows on it, and how soon, depends on that.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Carried {
    /// Packets from the network.
    pub(super) inward: bool,
    /// Packets from the device.
    pub(super) outward: bool,
}

/// Whether to poll, as far as the past tells.
#[derive(Debug, Default)]
pub(super) struct Vigil {
    /// What is left of [`WATCH`] since the last silence.
    left: Duration,
    /// For each kind of [`Carried`]: the last time something followed soon.
    soon: [bool; 4],
}

impl Vigil {
    /// How long to poll, now that this was carried.
    pub(super) fn length(&self, carried: Carried) -> Duration {
        if self.soon.get(carried.kind()).copied().unwrap_or(false) { self.left } else { Duration::ZERO }
    }

    /// Something followed after `waited`, of which `polled` was spent awake.
    pub(super) fn ended(&mut self, carried: Carried, polled: Duration, waited: Duration) {
        let limit = if polled.is_zero() { SOON } else { WATCH };
        if let Some(soon) = self.soon.get_mut(carried.kind()).filter(|_| !self.left.is_zero()) {
            *soon = waited <= limit;
        }
        self.left = if waited >= SILENCE { WATCH } else { self.left.saturating_sub(polled) };
    }
}

impl Carried {
    fn kind(self) -> usize {
        usize::from(self.inward) | usize::from(self.outward) << 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SENT: Carried = Carried { inward: false, outward: true };
    const RECEIVED: Carried = Carried { inward: true, outward: false };

    /// Lets something follow after so long; returns how long it polled.
    fn next(vigil: &mut Vigil, carried: Carried, micros: u64) -> Duration {
        let waited = Duration::from_micros(micros);
        let polled = vigil.length(carried).min(waited);
        vigil.ended(carried, polled, waited);
        polled
    }

    #[test]
    fn an_answer_that_came_at_once_is_awaited_the_next_time() {
        let mut vigil = Vigil::default();
        next(&mut vigil, RECEIVED, 20_000);
        assert_eq!(next(&mut vigil, SENT, 700), Duration::ZERO, "most of it was waking up");
        for _ in 0..3 {
            assert_eq!(next(&mut vigil, RECEIVED, 20_000), Duration::ZERO);
            assert_eq!(next(&mut vigil, SENT, 150), Duration::from_micros(150));
        }
    }

    #[test]
    fn an_answer_from_far_away_is_not() {
        let mut vigil = Vigil::default();
        next(&mut vigil, RECEIVED, 20_000);
        next(&mut vigil, SENT, 100);
        next(&mut vigil, RECEIVED, 20_000);
        assert_eq!(next(&mut vigil, SENT, 9_000), WATCH);
        next(&mut vigil, RECEIVED, 20_000);
        assert_eq!(next(&mut vigil, SENT, 9_000), Duration::ZERO);
    }

    #[test]
    fn it_polls_only_after_a_silence_and_so_long_in_all() {
        let mut vigil = Vigil::default();
        next(&mut vigil, RECEIVED, 20_000);
        next(&mut vigil, SENT, 100);
        next(&mut vigil, RECEIVED, 20_000);
        let polled: Duration = (0..100).map(|_| next(&mut vigil, SENT, 200)).sum();
        assert_eq!(polled, WATCH);
    }
}
