//! What of the configuration changes while the agent runs.

use super::servers::Server;
use super::{Node, Output, RECORD_LIFETIME, RECORD_RENEWAL, TimerKind, next_sequence};
use crate::identity::{AgentId, Name, RecordError, RendezvousRef, SignedRecord};
use crate::time::Now;

impl Node {
    /// Takes another name and other rendezvous servers, and tells servers and peers. Drain the outputs afterwards.
    ///
    /// # Errors
    /// When no record can be made of them. Nothing has changed then.
    pub fn reconfigure(
        &mut self,
        now: Now,
        name: Option<Name>,
        rendezvous: Vec<RendezvousRef>,
    ) -> Result<(), RecordError> {
        let mut record = self.record.record().clone();
        if record.name == name && record.rendezvous == rendezvous {
            return Ok(());
        }
        record.sequence = next_sequence(now, record.sequence);
        record.expires = now.unix_s() + RECORD_LIFETIME.as_secs();
        record.name.clone_from(&name);
        record.rendezvous.clone_from(&rendezvous);
        self.record = SignedRecord::sign(&self.identity, record)?;
        self.name = name;
        self.outputs.push_back(Output::StoreSequence(self.record.record().sequence));
        self.timers.set(TimerKind::RecordRenewal, Some(now.time + RECORD_RENEWAL));
        self.change_servers(now, rendezvous);
        for id in self.peers_in_session(now) {
            self.send_hello(now, id);
        }
        Ok(())
    }

    fn change_servers(&mut self, now: Now, wanted: Vec<RendezvousRef>) {
        let is_kept = |server: &Server| !server.is_borrowed() && wanted.contains(server.reference());
        // One that was a peer's becomes this agent's own, and one that is elsewhere now is another.
        let gone = self.servers.iter().filter(|(id, server)| {
            !is_kept(server) && (!server.is_borrowed() || wanted.iter().any(|reference| reference.id == **id))
        });
        for id in gone.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.drop_server(now, id);
        }
        for id in self.servers.keys().copied().collect::<Vec<_>>() {
            self.register_anew(now, id);
        }
        let new = wanted.into_iter().filter(|reference| !self.servers.contains_key(&reference.id));
        self.add_servers(now, new.collect());
        // A server that is no longer this agent's own may be where a peer is reached right now.
        for id in self.peers_in_session(now) {
            self.borrow_servers_of(now, id);
        }
        self.own_candidates_changed(now);
    }

    fn peers_in_session(&self, now: Now) -> Vec<AgentId> {
        self.peers.keys().copied().filter(|id| self.in_session(now, *id)).collect()
    }

    pub(super) fn in_session(&self, now: Now, id: AgentId) -> bool {
        let link = self.peers.get(&id).and_then(|peer| peer.link.as_ref());
        link.is_some_and(|link| link.shared.tunnel.lock().has_session(now.time))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::IdentityKey;
    use crate::node::tests::{node, now};

    fn server(seed: u8, address: &str) -> RendezvousRef {
        RendezvousRef { id: IdentityKey::from_seed([seed; 32]).id(), address: address.parse().unwrap() }
    }

    fn servers(node: &Node) -> Vec<String> {
        let mut all: Vec<String> = node.rendezvous_statuses().into_iter().map(|status| status.address).collect();
        all.sort_unstable();
        all
    }

    fn stored_sequences(node: &mut Node) -> Vec<u64> {
        let mut sequences = Vec::new();
        while let Some(output) = node.poll_output() {
            if let Output::StoreSequence(sequence) = output {
                sequences.push(sequence);
            }
        }
        sequences
    }

    #[test]
    fn a_new_name_and_new_servers_are_in_a_new_record() {
        let mut node = node(Vec::new());
        let before = stored_sequences(&mut node)[0];
        let (one, two) = (server(1, "192.0.2.1:1"), server(2, "192.0.2.2:2"));
        let name: Option<Name> = Some("renamed".parse().unwrap());
        node.reconfigure(now(), name.clone(), vec![one.clone(), two.clone()]).unwrap();
        assert_eq!(stored_sequences(&mut node), [before + 1]);
        assert_eq!(node.identity_document().name.as_deref(), Some("renamed"));
        let ticket = node.ticket(now()).unwrap();
        assert_eq!(ticket.record().record().rendezvous, [one.clone(), two.clone()]);
        assert_eq!(servers(&node), ["192.0.2.1:1", "192.0.2.2:2"]);
        // One goes, one moves, one comes.
        let moved = server(2, "192.0.2.9:9");
        node.reconfigure(now(), None, vec![moved, server(3, "192.0.2.3:3")]).unwrap();
        assert_eq!(servers(&node), ["192.0.2.3:3", "192.0.2.9:9"]);
        assert_eq!(node.identity_document().name, None);
    }

    #[test]
    fn what_stays_the_same_makes_no_record() {
        let mut node = node(Vec::new());
        stored_sequences(&mut node);
        node.reconfigure(now(), None, Vec::new()).unwrap();
        assert_eq!(stored_sequences(&mut node), [0; 0]);
    }
}
