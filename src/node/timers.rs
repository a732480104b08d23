//! Every timer of the control plane: one enum, one table.

use std::collections::{BTreeSet, HashMap};

use crate::identity::AgentId;
use crate::time::Time;

/// What can become due.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TimerKind {
    /// Handshake and session timers of one peer.
    Tunnel(AgentId),
    /// Probes and liveness of the paths to one peer.
    Path(AgentId),
    /// What there is to do with one rendezvous server.
    Server(AgentId),
    /// Telling one peer again where this agent may be reached.
    Candidates(AgentId),
    /// The search for a way to one peer through hard NATs.
    Search(AgentId),
    /// Sending the hello again that was not acknowledged.
    Hello(AgentId),
    /// Sending the introduction again to a peer that has not answered.
    Introduction(AgentId),
    /// Trust in one peer runs out, or is to be looked at again.
    Trust(AgentId),
    /// An echo stays unanswered.
    Ping(u64),
    /// Questions about how this host looks from outside.
    Gather,
    /// Whoever waits for a check of the network has waited long enough.
    Netcheck,
    /// This agent's own record is to be renewed.
    RecordRenewal,
}

/// Room for timers that is kept.
const USUAL: usize = 256;

/// When each timer is due. A timer is set once or not at all.
#[derive(Debug, Default)]
pub(super) struct Timers {
    due: HashMap<TimerKind, Time>,
    order: BTreeSet<(Time, TimerKind)>,
}

impl Timers {
    /// Sets, moves or (`None`) stops a timer.
    pub(super) fn set(&mut self, kind: TimerKind, at: Option<Time>) {
        if let Some(before) = self.due.remove(&kind) {
            self.order.remove(&(before, kind));
            // After a start with many peers there is room for thousands.
            if self.due.len() < self.due.capacity() / 8 && self.due.capacity() > USUAL {
                self.due.shrink_to(USUAL.max(self.due.len() * 2));
            }
        }
        if let Some(at) = at {
            self.due.insert(kind, at);
            self.order.insert((at, kind));
        }
    }

    /// How many are set.
    pub(super) fn len(&self) -> usize {
        self.due.len()
    }

    /// The earliest timer.
    pub(super) fn next(&self) -> Option<(Time, TimerKind)> {
        self.order.first().copied()
    }

    /// Takes a timer that is due.
    pub(super) fn pop_due(&mut self, now: Time) -> Option<TimerKind> {
        let (_, kind) = self.next().filter(|(at, _)| *at <= now)?;
        self.set(kind, None);
        Some(kind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_timer_is_set_once() {
        let mut timers = Timers::default();
        let at = |s| Time::from_origin(Duration::from_secs(s));
        timers.set(TimerKind::Ping(1), Some(at(5)));
        timers.set(TimerKind::Ping(1), Some(at(2)));
        timers.set(TimerKind::Ping(2), Some(at(3)));
        assert_eq!(timers.next(), Some((at(2), TimerKind::Ping(1))));
        assert_eq!(timers.pop_due(at(1)), None);
        assert_eq!(timers.pop_due(at(9)), Some(TimerKind::Ping(1)));
        timers.set(TimerKind::Ping(2), None);
        assert_eq!(timers.pop_due(at(9)), None);
    }
}
