//! The host's wall clock was set: what was judged or timed by it is judged and timed anew.

use super::{Node, RECORD_LIFETIME};
use crate::identity::AgentId;
use crate::time::Now;

/// The wall clock has been set when it moved by so much against the other one, milliseconds. One that is only kept right,
/// by half a thousandth at most (`ntp_adjtime`), takes hours for that.
const STEP_MS: u64 = 5_000;

/// By how much the wall clock is ahead of the other one, milliseconds.
pub(super) fn offset_ms(now: Now) -> i64 {
    let monotonic = i64::try_from(now.time.since_origin().as_millis()).unwrap_or(i64::MAX);
    i64::try_from(now.unix_ms).unwrap_or(i64::MAX).saturating_sub(monotonic)
}

impl Node {
    /// Looks whether the wall clock was set since the last time. Timers are set by the other clock, so what ends at a time
    /// of day would end at the one it was first taken for: trust would outlive its end, or stay away for ever.
    pub(super) fn check_clock(&mut self, now: Now) {
        let offset = offset_ms(now);
        let step_ms = offset.saturating_sub(self.clock_offset_ms);
        if step_ms.unsigned_abs() < STEP_MS {
            return;
        }
        self.clock_offset_ms = offset;
        tracing::info!(seconds = step_ms / 1000, "the clock of this host was set");
        let ends = self.peers.values().filter(|peer| peer.relation.expires().is_some());
        for id in ends.map(|peer| peer.id).collect::<Vec<_>>() {
            self.trust_changed(now, id);
        }
        if self.check_record(now) {
            for server in self.servers.keys().copied().collect::<Vec<AgentId>>() {
                self.register_anew(now, server);
            }
        }
    }

    /// Renews the record if its end is not plausible: it was made with a clock that has been set since. Returns whether
    /// there is a new one.
    pub(super) fn check_record(&mut self, now: Now) -> bool {
        let left = self.record.record().expires.saturating_sub(now.unix_s());
        let plausible = (1..=RECORD_LIFETIME.as_secs()).contains(&left);
        if !plausible {
            self.renew_record(now);
        }
        !plausible
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::api::TrustState;
    use crate::identity::IdentityKey;
    use crate::node::tests::{node, now};
    use crate::node::{Input, Output, StoredPeer, stored_for_tests};

    const YEARS_S: u64 = 10 * 365 * 24 * 3600;
    const HOUR: Duration = Duration::from_secs(3600);

    /// So long after the start, with the wall clock ahead of where it would be (behind, if negative).
    fn after(passed: Duration, ahead_s: i64) -> Now {
        let unix_ms = now().unix_ms + passed.as_millis() as u64;
        Now { time: now().time + passed, unix_ms: unix_ms.saturating_add_signed(ahead_s * 1000) }
    }

    /// A peer that is trusted for one hour from now on.
    fn trusted_for_an_hour() -> StoredPeer {
        let mut row = stored_for_tests(&IdentityKey::from_seed([1; 32]));
        row.relation.grant.ttl_s = Some(3600);
        row.relation.approve(now().unix_s());
        row
    }

    /// Whether packets may pass, and whether it is said that they may.
    fn passes(node: &Node, now: Now) -> (bool, bool) {
        let peer = node.peers.values().next().unwrap();
        (peer.link.is_some() && peer.trusted, peer.relation.state(now.unix_s()) == TrustState::Trusted)
    }

    fn sequences(node: &mut Node) -> Vec<u64> {
        let outputs = std::iter::from_fn(|| node.poll_output());
        outputs.filter_map(|output| if let Output::StoreSequence(it) = output { Some(it) } else { None }).collect()
    }

    #[test]
    fn trust_ends_by_the_clock_as_it_is_now() {
        let mut node = node(vec![trusted_for_an_hour()]);
        // For some time the host believes to be in another year, as one without a battery does when it starts.
        for (passed, ahead_s, expected) in [
            (HOUR / 10, -(YEARS_S as i64), true),
            (HOUR / 2, 0, true),
            (HOUR / 2 + HOUR / 10, YEARS_S as i64, false),
            (HOUR - HOUR / 10, 0, true),
            (HOUR + HOUR / 10, 0, false),
        ] {
            let at = after(passed, ahead_s);
            node.handle_input(at, Input::Timeout);
            assert_eq!(passes(&node, at), (expected, expected), "{passed:?} after the start, {ahead_s} s ahead");
        }
    }

    #[test]
    fn a_record_made_by_a_wrong_clock_is_made_anew_and_none_by_one_that_is_kept_right() {
        let mut node = node(Vec::new());
        let mut last = sequences(&mut node)[0];
        for ahead_s in [YEARS_S as i64, 0, -(YEARS_S as i64), 0] {
            let at = after(HOUR, ahead_s);
            node.handle_input(at, Input::Timeout);
            let made = sequences(&mut node);
            assert!(made.len() == 1 && made[0] > last, "{made:?} after {last}");
            last = made[0];
            assert_eq!(node.record.record().expires, at.unix_s() + RECORD_LIFETIME.as_secs());
        }
        for hour in 2..20 {
            node.handle_input(after(HOUR * hour, i64::from(hour)), Input::Timeout);
        }
        assert_eq!(sequences(&mut node), [0; 0]);
    }
}
