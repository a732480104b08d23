//! Consent between this agent and one other. Reachable is not trusted: IP packets pass only while both said yes.
//!
//! A [`Relation`] is two independent statements, ours and theirs. What a user sees, [`Relation::state`], follows from
//! the two and from the time; it is never stored.
//!
//! ```text
//!                       theirs: nothing   asked or granted
//!     ours: undecided       none              pending
//!           granted         requested         trusted
//!           rejected        rejected          rejected
//!           revoked         revoked           revoked
//! ```

mod pending;

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::api::TrustState;

pub use pending::{Admission, MAX_PENDING, admit, source_network};

/// What was agreed on, the same in both directions.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// Ports that may be opened, in the text form of [`crate::policy::PortSpec`]; everything when absent.
    pub ports: Option<String>,
    /// Trust ends this many seconds after it began; never when absent.
    pub ttl_s: Option<u64>,
}

/// What this agent said.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ours {
    /// Nothing yet.
    #[default]
    Undecided,
    /// Yes.
    Granted,
    /// No, to a request.
    Rejected,
    /// No longer.
    Revoked,
}

/// What the other agent said, as proved by its signature or its session.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Theirs {
    /// Nothing, or no longer yes.
    #[default]
    Nothing,
    /// It asked for trust in a signed introduction, which is its yes.
    Asked(Request),
    /// It said yes in a session.
    Granted,
    /// It took its yes back in a session. It is not asked again unless the user asks.
    Withdrawn,
}

impl Theirs {
    /// Whether the other side agrees.
    #[must_use]
    pub fn is_yes(&self) -> bool {
        matches!(self, Self::Asked(_) | Self::Granted)
    }
}

/// A request as it arrived.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// What the user on the other side gave as a reason.
    pub reason: String,
    /// When it arrived, seconds since 1970.
    pub received: u64,
    /// Where it came from.
    pub from: Option<SocketAddr>,
}

/// Both sides' consent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Relation {
    /// This side.
    pub ours: Ours,
    /// The other side.
    pub theirs: Theirs,
    /// What the yes of both covers.
    pub grant: Grant,
    /// When [`state`](Self::state) last changed by somebody's word, seconds since 1970.
    pub since: u64,
    /// When this side's yes ends, seconds since 1970; set when both first agreed.
    expires: Option<u64>,
}

impl Relation {
    /// Where it stands at this time (seconds since 1970).
    #[must_use]
    pub fn state(&self, unix_s: u64) -> TrustState {
        match (&self.ours, &self.theirs) {
            (Ours::Undecided, Theirs::Nothing | Theirs::Withdrawn) => TrustState::None,
            (Ours::Undecided, _) => TrustState::Pending,
            (Ours::Rejected, _) => TrustState::Rejected,
            (Ours::Revoked, _) => TrustState::Revoked,
            (Ours::Granted, _) if self.has_expired(unix_s) => TrustState::None,
            (Ours::Granted, Theirs::Nothing | Theirs::Withdrawn) => TrustState::Requested,
            (Ours::Granted, _) => TrustState::Trusted,
        }
    }

    /// Whether this side agrees to hold a session with the other: it said yes, and the yes has not run out.
    #[must_use]
    pub fn admits_session(&self, unix_s: u64) -> bool {
        matches!(self.state(unix_s), TrustState::Trusted | TrustState::Requested)
    }

    /// When trust ends by itself, seconds since 1970. While the clock stands before that, trust holds: a clock that
    /// jumps ahead and back destroys nothing.
    #[must_use]
    pub fn expires(&self) -> Option<u64> {
        self.expires.filter(|_| self.ours == Ours::Granted)
    }

    fn has_expired(&self, unix_s: u64) -> bool {
        self.expires().is_some_and(|at| at <= unix_s)
    }

    /// This side asks, which is its yes. A grant that ran out begins anew.
    pub fn request(&mut self, unix_s: u64, grant: Grant) {
        if self.has_expired(unix_s) || self.theirs == Theirs::Withdrawn {
            self.theirs = Theirs::Nothing;
        }
        self.ours = Ours::Granted;
        self.grant = grant;
        self.since = unix_s;
        self.expires = None;
        self.agreed(unix_s);
    }

    /// This side says yes to a request.
    pub fn approve(&mut self, unix_s: u64) {
        self.ours = Ours::Granted;
        self.since = unix_s;
        self.expires = None;
        self.agreed(unix_s);
    }

    /// This side says no to a request.
    pub fn reject(&mut self, unix_s: u64) {
        self.ours = Ours::Rejected;
        self.since = unix_s;
    }

    /// This side takes its yes back.
    pub fn revoke(&mut self, unix_s: u64) {
        self.ours = Ours::Revoked;
        self.since = unix_s;
    }

    /// An introduction of the other side arrived and verified, newer than any before.
    pub fn introduction_received(&mut self, unix_s: u64, request: Request, grant: Grant) {
        if self.has_expired(unix_s) {
            // What was agreed is over. This is a new request, and waits for a new decision.
            *self = Self::default();
        }
        match self.ours {
            Ours::Rejected | Ours::Revoked => return,
            // Only the first request names what will be approved: what a user was shown must be what a user approves.
            Ours::Undecided if !self.theirs.is_yes() => {
                self.grant = grant;
                self.since = unix_s;
            }
            Ours::Granted if !self.theirs.is_yes() => self.since = unix_s,
            Ours::Undecided | Ours::Granted => {}
        }
        self.theirs = Theirs::Asked(request);
        self.agreed(unix_s);
    }

    /// The other side stated its consent inside a session. Returns whether anything changed.
    pub fn consent_received(&mut self, unix_s: u64, consent: bool) -> bool {
        if self.theirs.is_yes() == consent {
            return false;
        }
        self.theirs = if consent { Theirs::Granted } else { Theirs::Withdrawn };
        self.since = unix_s;
        self.agreed(unix_s);
        true
    }

    /// Sets the end when both agree for the first time since this side's word. Nothing the other side does later, such
    /// as taking its yes back and giving it again, moves it.
    fn agreed(&mut self, unix_s: u64) {
        if self.ours == Ours::Granted && self.theirs.is_yes() && self.expires.is_none() {
            self.expires = self.grant.ttl_s.map(|ttl| unix_s.saturating_add(ttl));
        }
    }

    /// The request that waits for this side's decision.
    #[must_use]
    pub fn request_received(&self) -> Option<&Request> {
        match &self.theirs {
            Theirs::Asked(request) => Some(request),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests;
