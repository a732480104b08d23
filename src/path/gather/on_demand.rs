//! Whose packets the NATs let in, and whether they let this host reach itself (RFC 5780, sections 4.4 and 4.5).

use std::net::SocketAddr;
use std::time::Duration;

use super::super::net_report::Filtering;
use super::request::{Purpose, Request, State};
use super::{Gather, destinations, is_credible};
use crate::time::Time;

/// A NAT has forgotten whom this host sent to after this (RFC 4787, section 4.3, REQ-5: 5 minutes recommended).
pub(super) const CONTACT_LIFE: Duration = Duration::from_secs(5 * 60);
/// The tests that are done on demand only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tests {
    /// Not asked for, or done.
    Off,
    /// Waiting for a server that can help.
    Wanted,
    /// Under way.
    Running {
        /// Nothing was sent lately to the IP address that the one answer comes from.
        address_is_fresh: bool,
        /// Nor to the port that the other answer comes from.
        port_is_fresh: bool,
    },
}

impl Gather {
    /// Starts and ends the tests that were asked for.
    pub(super) fn run_tests(&mut self, now: Time) {
        match self.tests {
            Tests::Off => {}
            Tests::Wanted if self.restart.is_some() => {}
            Tests::Wanted => self.start_tests(now),
            Tests::Running { address_is_fresh, port_is_fresh } => self.end_tests(address_is_fresh, port_is_fresh),
        }
    }

    fn start_tests(&mut self, now: Time) {
        let candidates = self.requests.iter().filter(|request| request.purpose == Purpose::Server && request.is_v4());
        let usable = candidates.filter_map(|request| {
            let other = request.seen?.other.filter(|other| is_credible(request.to, *other))?;
            let address_is_fresh = other.ip() != request.to.ip() && self.is_fresh(now, |to| to.ip() == other.ip());
            let port_is_fresh = self.is_fresh(now, |to| *to == SocketAddr::new(request.to.ip(), other.port()));
            Some((request.server, request.to, other, address_is_fresh, port_is_fresh))
        });
        let best = usable.max_by_key(|(.., address_is_fresh, port_is_fresh)| (*address_is_fresh, *port_is_fresh));
        // A better one may be about to answer, or any at all.
        let better_may_come = self.compared().any(Request::is_first_wait);
        let any_may_come = !self.is_late(now) && self.compared().any(Request::is_pending);
        let Some((server, to, other, address_is_fresh, port_is_fresh)) =
            best.filter(|(.., address, port)| !better_may_come || (*address && *port))
        else {
            if !any_may_come {
                self.test_hairpinning(now);
                self.tests = self.if_running(false, false);
            }
            return;
        };
        if other.ip() != to.ip() {
            self.requests.push(Request::new(now, server, Purpose::FilterAddress, to).answered_from(other));
        }
        if other.port() != to.port() {
            let from = SocketAddr::new(to.ip(), other.port());
            self.requests.push(Request::new(now, server, Purpose::FilterPort, to).answered_from(from));
        }
        self.test_hairpinning(now);
        self.tests = self.if_running(address_is_fresh, port_is_fresh);
    }

    fn if_running(&self, address_is_fresh: bool, port_is_fresh: bool) -> Tests {
        if self.requests.iter().any(is_test) { Tests::Running { address_is_fresh, port_is_fresh } } else { Tests::Off }
    }

    fn test_hairpinning(&mut self, now: Time) {
        let Some(mapped) = self.known.mapped_v4.filter(|mapped| !self.local.contains(&mapped.ip())) else { return };
        let Some(server) = self.servers.first().map(|server| server.id) else { return };
        self.requests.push(Request::new(now, server, Purpose::Hairpin, mapped));
    }

    fn end_tests(&mut self, address_is_fresh: bool, port_is_fresh: bool) {
        let state = |purpose| self.requests.iter().find(|request| request.purpose == purpose).map(|it| it.state);
        let (address, port) = (state(Purpose::FilterAddress), state(Purpose::FilterPort));
        let hairpin = state(Purpose::Hairpin);
        self.known.filtering = match (address, port) {
            (Some(State::Answered), _) if address_is_fresh => Some(Filtering::EndpointIndependent),
            (None | Some(State::Silent | State::Refused), Some(State::Silent)) => {
                Some(Filtering::AddressAndPortDependent)
            }
            (Some(State::Silent), Some(State::Answered)) if port_is_fresh => Some(Filtering::AddressDependent),
            _ => None,
        };
        self.known.hairpinning = match hairpin {
            Some(State::Answered) => Some(true),
            Some(State::Silent) => Some(false),
            _ => None,
        };
        let filtering_is_done = self.known.filtering.is_some() || ![address, port].contains(&Some(State::Asking));
        if filtering_is_done && hairpin != Some(State::Asking) {
            self.requests.retain(|request| !is_test(request));
            self.tests = Tests::Off;
        }
    }

    /// Whether a NAT's filter cannot have been opened for any such address.
    fn is_fresh(&self, now: Time, matches: impl Fn(&SocketAddr) -> bool) -> bool {
        // Servers may have a session with this host, which is no business of this machine.
        let mut servers = destinations(&self.servers).map(|(_, to)| to);
        let mut contacts = self.contacts.iter().filter(|(_, at)| now.since(*at) < CONTACT_LIFE);
        !servers.any(|to| matches(&to)) && !contacts.any(|(to, _)| matches(to))
    }
}

pub(super) fn is_test(request: &Request) -> bool {
    matches!(request.purpose, Purpose::FilterAddress | Purpose::FilterPort | Purpose::Hairpin)
}
