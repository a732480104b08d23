//! How long there was no path, for people.

use std::time::Duration;

use super::candidate::Route;
use crate::time::Time;

/// The primary path died, and another took over or was looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PathLoss {
    /// The path that died.
    pub route: Route,
    /// The first sign of it: something was sent, and nothing came back.
    pub since: Time,
    /// How long until another path carried data; `None` while there is none.
    pub gap: Option<Duration>,
}

impl PathLoss {
    pub(super) fn new(route: Route, since: Time) -> Self {
        Self { route, since, gap: None }
    }

    /// Another path carries data.
    pub(super) fn end(&mut self, now: Time) {
        self.gap.get_or_insert(now.since(self.since));
    }
}
