//! The peer sends its data another way than this side does: who goes where the other is.
//!
//! It may have noticed that a path died, for which it must be followed at once; or it has just not got as far as this
//! side, and then following it would make the two change places for ever. A probe that was answered lately tells which.

use std::time::Duration;

use super::{Path, PathSet, PathState};
use crate::path::candidate::Route;
use crate::time::Time;

/// A path that was proved within this time did not die for what the peer sends since: it is only asked again.
const PROVED_LATELY: Duration = Duration::from_secs(1);
/// A path that was proved within this time is not even asked.
const JUST_PROVED: Duration = Duration::from_millis(200);
/// Two ways that both work and are equally good: after this time the one side gives in, so that the death of either is
/// seen by both...
const FOLLOWER_GIVES_IN: Duration = Duration::from_secs(1);
/// ...and after this the other.
const LEADER_GIVES_IN: Duration = Duration::from_secs(3);
/// Of a disagreement nothing was heard for this long: it is over.
const AGREED_AGAIN: Duration = Duration::from_millis(500);

/// The peer's data comes by another route than the primary one.
#[derive(Debug, Clone, Copy)]
pub(super) struct Disagreement {
    since: Time,
    heard: Time,
}

impl PathSet {
    /// The same, for the side that gives in last where both sides' ways are equally good. The peer must not be that side.
    #[must_use]
    pub fn leading(self, leads: bool) -> Self {
        Self { leads, ..self }
    }

    /// The peer sends its data by another route than the primary one, which may have died for it. A route that works is
    /// followed at once, unless the primary one has proved itself lately; any other as soon as it has proved itself:
    /// where a packet came from alone proves nothing.
    pub fn peer_moved(&mut self, now: Time, route: Route) {
        self.packet_received(now, route);
        if self.primary == Some(route) || self.follows == Some(route) || self.lost {
            return;
        }
        self.wanted = Some(now);
        let (here, there) = (self.primary.and_then(|primary| self.quality(now, primary)), self.quality(now, route));
        if let (Some(here), Some(there)) = (here, there)
            && there.replaces(here)
        {
            (self.doubted, self.follows) = (None, None);
            return self.choose(now, route);
        }
        let gives_in = self.is_tired_of_disagreeing(now);
        let proved = self.paths.iter().find(|path| Some(path.candidate.route) == self.primary);
        let age = proved.and_then(|path| path.answered).map_or(Duration::MAX, |at| now.since(at));
        if age <= JUST_PROVED && !gives_in {
            return;
        }
        if self.doubted.is_none() {
            self.begin_doubt(now);
        }
        self.follows = Some(route);
        if there.is_none() {
            self.probe_anew(now, |path| path.candidate.route == route);
        } else if age > PROVED_LATELY {
            self.note_loss();
            self.follow(now, route);
        } else if gives_in {
            self.follow(now, route);
        }
    }

    /// Goes where the peer went. The path it left must prove itself anew before it is taken again.
    pub(super) fn follow(&mut self, now: Time, route: Route) {
        let left = self.primary;
        self.probe_anew(now, |path| Some(path.candidate.route) == left);
        for path in self.paths.iter_mut().filter(|path| Some(path.candidate.route) == left) {
            (path.state, path.answered) = (PathState::Failed, None);
        }
        (self.follows, self.doubted, self.disagreement) = (None, None, None);
        self.choose(now, route);
    }

    fn is_tired_of_disagreeing(&mut self, now: Time) -> bool {
        let going_on = self.disagreement.filter(|it| now.since(it.heard) < AGREED_AGAIN);
        let since = going_on.map_or(now, |it| it.since);
        self.disagreement = Some(Disagreement { since, heard: now });
        now.since(since) >= if self.leads { LEADER_GIVES_IN } else { FOLLOWER_GIVES_IN }
    }

    fn probe_anew(&mut self, now: Time, which: impl Fn(&Path) -> bool) {
        for path in self.paths.iter_mut().filter(|path| which(path)) {
            path.attempts = 0;
            path.next = Some(now);
        }
    }
}
