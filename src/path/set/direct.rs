//! What the search for a way through a hard NAT asks and tells.

use super::PathSet;
use crate::path::SocketId;
use crate::time::Time;

impl PathSet {
    /// Whether a path without a relay works.
    #[must_use]
    pub fn has_direct(&self, now: Time) -> bool {
        let direct = self.paths.iter().map(|path| path.candidate.route).filter(|route| !route.is_relayed());
        direct.into_iter().any(|route| self.quality(now, route).is_some())
    }

    /// A local socket was closed: the paths from it are no more, but for the primary one, until another takes over.
    pub fn socket_closed(&mut self, socket: SocketId) {
        let primary = self.primary;
        self.paths.retain(|path| path.candidate.route.socket() != socket || Some(path.candidate.route) == primary);
    }
}
