//! Return routability: a client shows that it receives where its packets come from.
//!
//! ```text
//!   a registered client's packet comes from where it has shown nothing ──> Ping with a token to there, up to 4 times
//!   the token comes back from there ──> what others send the client goes there from now on, to where it was until then
//!   its packets come from elsewhere ──> the token is void
//!   the token does not come back    ──> what others send the client goes nowhere, until its next packet is asked again
//! ```
//!
//! Nothing else proves an address. The source of a datagram can be forged, and the response to one handshake initiation
//! goes to wherever copies of it come from.

use std::collections::{BTreeSet, HashMap};
use std::net::Ipv6Addr;
use std::time::Duration;

use super::{ClientKey, Route, Server};
use crate::identity::AgentId;
use crate::time::{Now, Time};
use crate::wire::control::ControlMessage;

/// The first Ping that is not answered goes out again after this, then after twice that, and so on.
const RETRY: Duration = Duration::from_millis(250);
/// So many Pings, of at most 84 bytes each, and the client is not there. The limit of moves is theirs as well: a client that
/// pretends to be elsewhere, now here, now there, draws less than 400 bytes a second.
const MAX_TRIES: u32 = 4;

/// The proofs under way, one per client at most.
#[derive(Debug, Default)]
pub(super) struct Proofs {
    pending: HashMap<ClientKey, Proof>,
    due: BTreeSet<(Time, ClientKey)>,
}

#[derive(Debug)]
struct Proof {
    token: u64,
    tries: u32,
    due: Time,
}

/// What is to be done about a proof that waited long enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Due {
    /// Ask once more.
    Ask(u64),
    /// It failed.
    Failed,
}

impl Proofs {
    fn is_pending(&self, key: ClientKey) -> bool {
        self.pending.contains_key(&key)
    }

    fn begin(&mut self, now: Time, key: ClientKey, token: u64) {
        self.cancel(key);
        let due = now + RETRY;
        self.pending.insert(key, Proof { token, tries: 1, due });
        self.due.insert((due, key));
    }

    /// Whether this is the token that was asked for; if so, the proof is over.
    fn complete(&mut self, key: ClientKey, token: u64) -> bool {
        let proved = self.pending.get(&key).is_some_and(|proof| proof.token == token);
        if proved {
            self.cancel(key);
        }
        proved
    }

    /// Its token is worth nothing any more.
    pub(super) fn cancel(&mut self, key: ClientKey) {
        if let Some(proof) = self.pending.remove(&key) {
            self.due.remove(&(proof.due, key));
        }
    }

    fn pop_due(&mut self, now: Time) -> Option<(ClientKey, Due)> {
        let &(due, key) = self.due.first().filter(|(due, _)| *due <= now)?;
        self.due.remove(&(due, key));
        match self.pending.get_mut(&key).filter(|proof| proof.tries < MAX_TRIES) {
            Some(proof) => {
                proof.due = now + RETRY * (1 << proof.tries);
                proof.tries += 1;
                self.due.insert((proof.due, key));
                Some((key, Due::Ask(proof.token)))
            }
            None => {
                self.pending.remove(&key);
                Some((key, Due::Failed))
            }
        }
    }

    /// When the next one is due.
    pub(super) fn next_timeout(&self) -> Option<Time> {
        self.due.first().map(|(due, _)| *due)
    }
}

impl Server {
    /// Asks a client to prove where it is, unless it has, or is being asked, or is nobody yet.
    pub(super) fn seek_proof(&mut self, now: Time, key: ClientKey) {
        let Some(client) = self.clients.get(key).filter(|client| !client.is_proved()) else { return };
        let Some(ipv6) = client.registration.as_ref().map(|registration| registration.ipv6) else { return };
        if !self.proofs.is_pending(key) {
            let token = self.rng.next_u64();
            self.proofs.begin(now, key, token);
            self.ask_for_proof(now, key, ipv6, token);
        }
    }

    /// Asks again where no answer came, and stops where none will come.
    pub(super) fn proofs_due(&mut self, now: Time) {
        while let Some((key, due)) = self.proofs.pop_due(now) {
            let registration = self.clients.get(key).and_then(|client| client.registration.as_ref());
            match (due, registration.map(|registration| registration.ipv6)) {
                (Due::Ask(token), Some(ipv6)) => self.ask_for_proof(now, key, ipv6, token),
                _ => self.proof_failed(key),
            }
        }
    }

    /// A token came from there.
    pub(super) fn handle_pong(&mut self, now: Now, (key, id): (ClientKey, AgentId), route: Route, token: u64) {
        let is_there = self.clients.get(key).is_some_and(|client| client.route == Some(route));
        if !is_there || !self.proofs.complete(key, token) {
            return self.counters.drop_control_unexpected.increment();
        }
        tracing::debug!(client = %id.short(), address = %route.destination, "client proved where it is");
        self.set_proved(key, Some(route));
        self.deliver_kept(now, key, id);
    }

    /// Channels lead to where it was until now, and it seems to be there no more.
    fn proof_failed(&mut self, key: ClientKey) {
        self.counters.drop_client_unproved.increment();
        self.set_proved(key, None);
    }

    fn set_proved(&mut self, key: ClientKey, route: Option<Route>) {
        let Some(client) = self.clients.get_mut(key) else { return };
        client.proved = route;
        self.lead_channels(key);
    }

    /// Channels know where a client is.
    pub(super) fn lead_channels(&mut self, key: ClientKey) {
        if let Some(end) = self.clients.get(key).and_then(|client| client.channel_end(key)) {
            self.channels.moved(end);
        }
    }

    fn ask_for_proof(&mut self, now: Time, key: ClientKey, to: Ipv6Addr, token: u64) {
        self.send(now, key, to, &ControlMessage::Ping { token });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLIENT: ClientKey = ClientKey(1);

    fn at(ms: u64) -> Time {
        Time::from_origin(Duration::from_millis(ms))
    }

    #[test]
    fn a_proof_is_asked_for_four_times_ever_more_slowly() {
        let mut proofs = Proofs::default();
        proofs.begin(at(0), CLIENT, 7);
        for due in [250, 750, 1750] {
            assert_eq!(proofs.next_timeout(), Some(at(due)));
            assert_eq!(proofs.pop_due(at(due - 1)), None);
            assert_eq!(proofs.pop_due(at(due)), Some((CLIENT, Due::Ask(7))));
        }
        assert_eq!(proofs.pop_due(at(3749)), None);
        assert_eq!(proofs.pop_due(at(3750)), Some((CLIENT, Due::Failed)));
        assert!(!proofs.complete(CLIENT, 7), "too late");
        assert_eq!((proofs.pending.len(), proofs.due.len()), (0, 0));
    }

    #[test]
    fn only_the_last_token_counts_and_once() {
        let mut proofs = Proofs::default();
        proofs.begin(at(0), CLIENT, 7);
        proofs.begin(at(1), CLIENT, 8);
        assert!(!proofs.complete(CLIENT, 7) && !proofs.complete(ClientKey(2), 8));
        assert!(proofs.complete(CLIENT, 8) && !proofs.complete(CLIENT, 8));
        assert_eq!((proofs.pending.len(), proofs.due.len()), (0, 0));
    }
}
