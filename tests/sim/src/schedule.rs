//! Which machines have something to do, and when the others want to be woken.

use std::collections::{BTreeMap, BTreeSet};

use agentnet::time::Time;

use crate::net::HostId;

/// Every machine's next timer, and those that are to be run before time passes. Asking for what is next costs the same
/// with one host and with a thousand.
#[derive(Default)]
pub(crate) struct Schedule {
    timers: BTreeSet<(Time, HostId)>,
    armed: BTreeMap<HostId, Time>,
    ready: BTreeSet<HostId>,
}

impl Schedule {
    /// The machine is to be run now.
    pub(crate) fn wake(&mut self, id: HostId) {
        self.ready.insert(id);
    }

    /// The machine wants to be woken then, and at no other time.
    pub(crate) fn arm(&mut self, id: HostId, at: Option<Time>) {
        let before = match at {
            Some(at) => self.armed.insert(id, at),
            None => self.armed.remove(&id),
        };
        if before != at {
            self.timers.extend(at.map(|at| (at, id)));
            if let Some(before) = before {
                self.timers.remove(&(before, id));
            }
        }
    }

    /// When the first timer is due.
    pub(crate) fn next_timer(&self) -> Option<Time> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// Who is to be run now, in order: those woken, and those whose timers are due.
    pub(crate) fn take_ready(&mut self, now: Time) -> BTreeSet<HostId> {
        let due = self.timers.iter().take_while(|(at, _)| *at <= now).map(|(_, id)| *id);
        self.ready.extend(due);
        std::mem::take(&mut self.ready)
    }
}
