//! Where this agent may be reached, as it finds out and as it tells its peers; and what they tell.

use std::net::SocketAddr;
use std::time::Duration;

use super::addresses::Usable;
use super::limits::MAX_ADDRESSES;
use super::servers::Server;
use super::{Node, TimerKind};
use crate::identity::AgentId;
use crate::path;
use crate::time::{Now, Time};
use crate::wire::control::{Candidate, CandidateKind, ControlMessage, MAX_PATH_CANDIDATES, Mapping, PathMessage};

/// Candidates are told again after these times: nobody acknowledges them.
const TELL_AGAIN: [Duration; 2] = [Duration::from_millis(300), Duration::from_millis(1200)];

/// Lists taken from one peer in [`LISTS_WINDOW`]. A move brings three or four at once: what the host knows, and what each
/// of its servers sees. Each makes this side probe 16 addresses that the peer may have made up.
const MAX_LISTS: u32 = 10;
/// See [`MAX_LISTS`].
const LISTS_WINDOW: Duration = Duration::from_secs(10);

/// Addresses at which servers see this agent, of those it tells: as many as it has servers of its own.
const MAX_OBSERVED: usize = 4;

/// What was told to a peer.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// Of which list.
    sequence: u64,
    times: usize,
    /// Of the peer's newest list.
    theirs: u64,
    /// Its list was heard in this session.
    heard: bool,
    /// Since when lists are counted, and how many were taken since.
    window: Option<Time>,
    lists: u32,
}

impl Told {
    /// Whether the peer has not said this, or something newer, before. One that was restarted with an earlier time of day
    /// counts its lists from there, which shows in the first list of a session.
    fn is_news(&mut self, sequence: u64) -> bool {
        let first = !std::mem::replace(&mut self.heard, true);
        sequence > self.theirs || (first && sequence < self.theirs)
    }

    /// Whether one more list of the peer may be taken now.
    fn take_list(&mut self, now: Time) -> bool {
        if self.window.is_none_or(|since| now.since(since) >= LISTS_WINDOW) {
            (self.window, self.lists) = (Some(now), 0);
        }
        self.lists += 1;
        self.lists <= MAX_LISTS
    }
}

impl Node {
    /// Where this agent may be reached: its own addresses, the one its gateway gave it, then those that servers see.
    pub(super) fn own_candidates(&self) -> Vec<Candidate> {
        let hosts = self.local_addresses.iter().take(MAX_ADDRESSES).map(|ip| SocketAddr::new(*ip, self.port));
        let mut all: Vec<Candidate> = hosts.map(|address| Candidate { kind: CandidateKind::Host, address }).collect();
        let given = self.port_mapped.into_iter().map(|address| (CandidateKind::PortMapped, address));
        let seen = self.mapped_addresses().chain(self.observed_addresses().take(MAX_OBSERVED));
        for (kind, address) in given.chain(seen.map(|address| (CandidateKind::ServerReflexive, address))) {
            if all.len() < MAX_PATH_CANDIDATES && !all.iter().any(|known| known.address == address) {
                all.push(Candidate { kind, address });
            }
        }
        all
    }

    /// The same without kinds, as tickets and introductions have them.
    pub(super) fn own_transport_addresses(&self) -> Vec<SocketAddr> {
        self.own_candidates().iter().map(|candidate| candidate.address).collect()
    }

    /// How this agent's NATs map, as far as its servers show.
    pub(super) fn own_mapping(&self) -> Mapping {
        if let Some(measured) = self.gather.report().mapping {
            return measured;
        }
        let seen: Vec<SocketAddr> = self.observed_addresses().filter(SocketAddr::is_ipv4).collect();
        match seen.as_slice() {
            [] => Mapping::Unknown,
            [one] if self.local_addresses.contains(&one.ip()) => Mapping::EndpointIndependent,
            [_] => Mapping::Unknown,
            [first, rest @ ..] if rest.iter().all(|other| other == first) => Mapping::EndpointIndependent,
            _ => Mapping::EndpointDependent { step: 0 },
        }
    }

    /// Where servers see this agent. Those of peers count only where it has none of its own: everybody is told of it, and
    /// one peer's servers must not choose what the others hear.
    fn observed_addresses(&self) -> impl Iterator<Item = SocketAddr> {
        let borrowed = self.servers.values().all(Server::is_borrowed);
        self.servers.values().filter(move |server| server.is_borrowed() == borrowed).filter_map(Server::observed)
    }

    /// The gateway has begun or ceased to let others in.
    pub(super) fn port_mapped(&mut self, now: Now, address: Option<SocketAddr>) {
        if self.port_mapped != address {
            self.port_mapped = address;
            self.own_candidates_changed(now);
        }
    }

    /// They are not what they were: who is talked to hears of it now, the others when they are talked to.
    pub(super) fn own_candidates_changed(&mut self, now: Now) {
        self.candidates_sequence = now.unix_ms.max(self.candidates_sequence.saturating_add(1));
        for id in self.peers.keys().copied().collect::<Vec<_>>() {
            if self
                .peers
                .get(&id)
                .and_then(|peer| peer.link.as_ref())
                .is_some_and(|link| link.paths.is_wanted(now.time))
            {
                self.tell_candidates(now, id);
            }
        }
    }

    /// Tells a peer where this agent may be reached, unless it was told.
    pub(super) fn tell_candidates(&mut self, now: Now, id: AgentId) {
        let sequence = self.candidates_sequence;
        let Some(link) = self.link_mut(id) else { return };
        if link.told.sequence != sequence {
            (link.told.sequence, link.told.times) = (sequence, 0);
            self.candidates_timer(now, id);
        }
    }

    /// A session is new: what was told in an earlier one may not have been kept.
    pub(super) fn session_is_new(&mut self, id: AgentId) {
        if let Some(link) = self.link_mut(id) {
            (link.told.sequence, link.told.heard) = (0, false);
        }
    }

    pub(super) fn candidates_timer(&mut self, now: Now, id: AgentId) {
        let message = PathMessage::Candidates {
            sequence: self.candidates_sequence,
            candidates: self.own_candidates(),
            mapping: self.own_mapping(),
        };
        let Some(link) = self.link_mut(id) else { return };
        let again = TELL_AGAIN.get(link.told.times).map(|after| now.time + *after);
        link.told.times += 1;
        let message = ControlMessage::Path(message);
        // Through the relays as well: the primary path may be what has just died.
        let primary = self.peers.get(&id).and_then(|peer| peer.link.as_ref()).and_then(|link| link.paths.primary());
        for relay in self.open_relays(now, id).into_iter().filter(|route| Some(*route) != primary) {
            self.send_control_on(now, id, &message, relay);
        }
        if self.send_control(now, id, &message) {
            self.timers.set(TimerKind::Candidates(id), again);
        } else if let Some(link) = self.link_mut(id) {
            link.told.sequence = 0;
        }
    }

    /// A peer says where it may be reached.
    pub(super) fn candidates_received(
        &mut self,
        now: Now,
        id: AgentId,
        sequence: u64,
        candidates: &[Candidate],
        mapping: Mapping,
    ) {
        let usable = self.usable();
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let Some(link) = &mut peer.link else { return };
        if !link.told.is_news(sequence) {
            return;
        }
        if !link.told.take_list(now.time) {
            return self.counters.drop_control_rate.increment();
        }
        link.told.theirs = sequence;
        let moved = link.search.note(mapping, candidates);
        let to_try: Vec<path::Candidate> = candidates.iter().filter_map(|it| to_try(usable, it)).collect();
        link.paths.candidates_received(now.time, to_try.iter().copied());
        self.note_candidates(id, to_try.iter().filter_map(|candidate| candidate.route.address()));
        self.store_hint(now, id);
        self.search_may_help(now, id, moved);
        self.carry_out_paths(now, id);
    }
}

/// What a path machine can try. Relays are known from the peer's record, which is signed.
fn to_try(usable: Usable, candidate: &Candidate) -> Option<path::Candidate> {
    let kind = match candidate.kind {
        CandidateKind::Host => path::CandidateKind::Host,
        CandidateKind::ServerReflexive => path::CandidateKind::ServerReflexive,
        CandidateKind::PeerReflexive => path::CandidateKind::PeerReflexive,
        CandidateKind::PortMapped => path::CandidateKind::PortMapped,
        CandidateKind::Relayed { .. } => return None,
    };
    usable
        .contains(candidate.address)
        .then_some(path::Candidate { kind, route: path::Route::Direct(candidate.address) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::IdentityKey;
    use crate::node::tests::{node, now};
    use crate::trust::Grant;

    #[test]
    fn a_peer_whose_clock_went_back_is_heard_in_its_next_session() {
        let key = IdentityKey::from_seed([1; 32]);
        let mut row = crate::node::stored_for_tests(&key);
        row.relation.grant = Grant::default();
        row.relation.approve(6);
        let (mut node, id) = (node(vec![row]), key.id());
        let tell = |node: &mut Node, sequence, address: &str| {
            let address: SocketAddr = address.parse().unwrap();
            let told = [Candidate { kind: CandidateKind::Host, address }];
            node.candidates_received(now(), id, sequence, &told, Mapping::Unknown);
            node.peers[&id].addresses.contains(&address)
        };
        assert!(tell(&mut node, 1 << 41, "198.51.100.1:9"));
        assert!(!tell(&mut node, (1 << 41) - 1, "198.51.100.2:9"), "an older list of the same session was taken");
        node.session_established(now(), id);
        assert!(!tell(&mut node, 1 << 41, "198.51.100.4:9"), "a list was taken twice");
        node.session_established(now(), id);
        assert!(tell(&mut node, 1 << 40, "198.51.100.3:9"));
    }
}
