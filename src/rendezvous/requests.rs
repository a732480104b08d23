//! What clients ask for inside their session.

use std::net::Ipv6Addr;
use std::time::Duration;

use super::channels::Opened;
use super::clients::{Client, REGISTRATION_S, Registration};
use super::crowds::Network;
use super::directory::Learned;
use super::introductions::ToKeep;
use super::{Change, ClientKey, Route, Server, is_wireguard};
use crate::identity::{AgentId, SignedRecord, overlay_ipv6};
use crate::time::{Now, Time};
use crate::trust::source_network;
use crate::tunnel::sealed_len;
use crate::wire::control::{ControlMessage, ControlPacket, IntroducedStatus, RelayRefusal, RendezvousMessage};
use crate::wire::{DatagramKind, RELAY_PREFIX_LEN, RelayChannel, classify};

/// Introductions that waited and are sent on with one registration. The others come with the next ones, so that a
/// mapping that was just made is not met by a burst.
const DELIVERED_AT_ONCE: usize = 4;

impl Server {
    /// A control message to the server, in the session of this client.
    pub(super) fn handle_control(&mut self, now: Now, key: ClientKey, route: Route, packet: ControlPacket) {
        let Some(client) = self.clients.get(key) else { return };
        let registration = client.registration.as_ref().map(|registration| (registration.id, registration.ipv6));
        match (packet.message, registration) {
            // Nobody else's address can stand in it: a registered client's is known, and before that it means nothing.
            (_, Some((_, ipv6))) if packet.source != ipv6 => self.counters.drop_control_invalid.increment(),
            (ControlMessage::Ping { token }, _) => {
                self.send(now.time, key, packet.source, &ControlMessage::Pong { token });
            }
            (ControlMessage::Pong { token }, Some((id, _))) => self.handle_pong(now, (key, id), route, token),
            (ControlMessage::Rendezvous(RendezvousMessage::Register { record }), _) => {
                self.handle_register(now, key, &record);
            }
            (ControlMessage::Goodbye { .. }, Some((id, _))) => {
                tracing::debug!(client = %id.short(), "client left");
                self.forget(key);
            }
            (ControlMessage::Rendezvous(request), Some((id, _))) => self.handle_request(now, key, id, request),
            _ => self.counters.drop_control_unexpected.increment(),
        }
    }

    fn handle_request(&mut self, now: Now, key: ClientKey, id: AgentId, request: RendezvousMessage) {
        match request {
            RendezvousMessage::Lookup { id } => self.handle_lookup(now, key, id),
            RendezvousMessage::Introduce { recipient, sealed } => {
                self.handle_introduce(now, key, id, recipient, sealed);
            }
            RendezvousMessage::RelayOpen { peer, channel, first } => {
                let outcome = self.open_channel(now.time, key, peer, channel, &first);
                if outcome.is_err() {
                    self.counters.drop_relay_open.increment();
                }
                self.answer(now.time, key, RendezvousMessage::RelayOpened { peer, channel, outcome });
            }
            // What a server says, said to it.
            _ => self.counters.drop_control_unexpected.increment(),
        }
    }

    fn handle_register(&mut self, now: Now, key: ClientKey, record: &SignedRecord) {
        let id = record.id();
        let Some(client) = self.clients.get(key) else { return };
        let network = client.network;
        let registered_as = client.registration.as_ref().map(|registration| registration.id);
        let Some(observed) = client.route.map(|route| route.destination) else { return };
        let valid = record.record().tunnel_key == client.tunnel_key
            && !record.is_expired(now.unix_s())
            && id != self.id
            && registered_as.is_none_or(|before| before == id);
        if !valid || !self.learn_record(record, network) {
            return self.counters.drop_register.increment();
        }
        // The agent has a new tunnel key, and with it a new session.
        if let Some(earlier) = self.clients.with_id(&id).filter(|earlier| *earlier != key) {
            self.forget(earlier);
            // It took the place of a client with it.
            self.learn_record(record, network);
        }
        if registered_as.is_none() {
            tracing::debug!(client = %id.short(), address = %observed, "client registered");
            self.counters.registrations.increment();
        } else {
            self.counters.renewals.increment();
        }
        let expires = now.time + Duration::from_secs(REGISTRATION_S.into());
        self.clients.register(key, Registration { id, ipv6: overlay_ipv6(&id), expires });
        // Before the answer, so that it is proved before the client asks for more.
        self.seek_proof(now.time, key);
        let relay = self.relay;
        self.send(now.time, key, overlay_ipv6(&id), &ControlMessage::Clock { unix_ms: now.unix_ms });
        self.answer(now.time, key, RendezvousMessage::Registered { observed, expires_s: REGISTRATION_S, relay });
        if self.clients.get(key).is_some_and(Client::is_proved) {
            self.deliver_kept(now, key, id);
        }
    }

    /// False when the agent has another tunnel key since.
    fn learn_record(&mut self, record: &SignedRecord, network: Network) -> bool {
        let (learned, evicted) = self.directory.register(record, network);
        if let Some(evicted) = evicted {
            self.counters.drop_records_evicted.increment();
            self.store(Change::Record(evicted, None));
        }
        if learned == Learned::New {
            self.store(Change::Record(record.id(), Some(record.clone())));
        }
        learned != Learned::KeyReplaced
    }

    /// Sends a client what waited for it, some of it.
    pub(super) fn deliver_kept(&mut self, now: Now, key: ClientKey, id: AgentId) {
        for _ in 0..DELIVERED_AT_ONCE {
            let Some(kept) = self.introductions.take(&id) else { return };
            self.store(Change::Introduction(kept.number, None));
            if kept.until_ms <= now.unix_ms {
                self.counters.drop_introductions_kept.increment();
                continue;
            }
            let message = RendezvousMessage::Introduction { sealed: kept.sealed, observed: kept.observed };
            if self.answer(now.time, key, message) {
                self.counters.introductions_delivered_late.increment();
            }
        }
    }

    fn handle_lookup(&mut self, now: Now, key: ClientKey, id: AgentId) {
        let own = (id == self.id).then_some(&self.record);
        let record = own.or_else(|| self.directory.get(&id, now.unix_s())).cloned();
        match record {
            Some(_) => self.counters.lookups_found.increment(),
            None => self.counters.lookups_unknown.increment(),
        }
        self.answer(now.time, key, RendezvousMessage::LookupResult { id, record });
    }

    fn handle_introduce(&mut self, now: Now, key: ClientKey, sender: AgentId, recipient: AgentId, sealed: Vec<u8>) {
        if classify(&sealed) != DatagramKind::Introduction {
            return self.counters.drop_introduce_invalid.increment();
        }
        let Some(client) = self.clients.get_mut(key) else { return };
        let Some(observed) = client.route.map(|route| route.destination) else { return };
        let status = if client.introduced.take(now.time, recipient) {
            self.pass_on(now, ToKeep { recipient, sender, observed, sealed })
        } else {
            self.counters.drop_introduce_rate.increment();
            IntroducedStatus::Full
        };
        self.answer(now.time, key, RendezvousMessage::Introduced { recipient, status });
    }

    /// Sends an introduction to its recipient if that is there, else keeps it.
    fn pass_on(&mut self, now: Now, introduction: ToKeep) -> IntroducedStatus {
        let ToKeep { recipient, observed, .. } = introduction;
        if let Some(other) = self.clients.with_id(&recipient).filter(|other| self.is_live(now.time, *other)) {
            let network = source_network(observed.ip());
            if !self.clients.get_mut(other).is_some_and(|other| other.arrivals.take(now.time, network)) {
                self.counters.drop_introduce_rate.increment();
                return IntroducedStatus::Full;
            }
            let message = RendezvousMessage::Introduction { sealed: introduction.sealed.clone(), observed };
            if self.answer(now.time, other, message) {
                self.counters.introductions_delivered.increment();
                return IntroducedStatus::Delivered;
            }
        }
        if self.directory.get(&recipient, now.unix_s()).is_none() {
            self.counters.drop_introduce_unknown.increment();
            return IntroducedStatus::Unknown;
        }
        self.keep(now, introduction)
    }

    fn keep(&mut self, now: Now, introduction: ToKeep) -> IntroducedStatus {
        let Some(kept) = self.introductions.keep(now.unix_ms, introduction) else {
            self.counters.drop_introduce_full.increment();
            return IntroducedStatus::Full;
        };
        if let Some(replaced) = kept.replaced {
            self.counters.drop_introductions_kept.increment();
            self.store(Change::Introduction(replaced, None));
        }
        self.counters.introductions_stored.increment();
        self.store(Change::Introduction(kept.stored.number, Some(Box::new(kept.stored))));
        IntroducedStatus::Stored
    }

    fn open_channel(
        &mut self,
        now: Time,
        key: ClientKey,
        peer: AgentId,
        channel: RelayChannel,
        first: &[u8],
    ) -> Result<(), RelayRefusal> {
        if !self.relay {
            return Err(RelayRefusal::NotOffered);
        }
        let end = |owner: ClientKey| self.clients.get(owner).filter(|client| client.is_live(now))?.channel_end(owner);
        let other = self.clients.with_id(&peer).filter(|other| *other != key).and_then(end);
        let to_other = other.and_then(|other| other.route).ok_or(RelayRefusal::UnknownPeer)?;
        // Its own address may be proved later: a proof that was lost on its way should not cost a try.
        let (opener, other) = end(key).zip(other).ok_or(RelayRefusal::UnknownPeer)?;
        match self.channels.open(now, channel, opener, other) {
            Ok(Opened::New) => self.counters.channels_opened.increment(),
            Ok(Opened::Replaced) => {
                self.counters.channels_opened.increment();
                self.counters.drop_channels_closed.increment();
            }
            Ok(Opened::Renewed) => {}
            Err(_) => return Err(RelayRefusal::Full),
        }
        if !first.is_empty() {
            self.relay_first(now, key, to_other, channel, first);
        }
        Ok(())
    }

    /// What came with the opening goes on as a relay frame, under the rules of one.
    fn relay_first(&mut self, now: Time, sender: ClientKey, route: Route, channel: RelayChannel, first: &[u8]) {
        if !is_wireguard(first) {
            return self.counters.drop_relay_invalid.increment();
        }
        let mut prefix = [0; RELAY_PREFIX_LEN];
        channel.emit(&mut prefix);
        let frame = [&prefix, first].concat();
        if !self.within_rate(now, sender, frame.len()) {
            return self.counters.drop_relay_rate.increment();
        }
        self.counters.relay_frames.increment();
        self.counters.relay_bytes.add(frame.len() as u64);
        self.transmit(route, frame);
    }

    /// Whether it can be sent what it did not ask for.
    fn is_live(&self, now: Time, key: ClientKey) -> bool {
        self.clients.get(key).is_some_and(|client| client.is_live(now) && client.is_proved())
    }

    /// Says something to a registered client; whether it could be sealed.
    fn answer(&mut self, now: Time, key: ClientKey, message: RendezvousMessage) -> bool {
        let client = self.clients.get(key).and_then(|client| client.registration.as_ref());
        let Some(ipv6) = client.map(|registration| registration.ipv6) else { return false };
        self.send(now, key, ipv6, &ControlMessage::Rendezvous(message))
    }

    /// Says something to a client, where its newest packet came from; whether it could be sealed.
    pub(super) fn send(&mut self, now: Time, key: ClientKey, to: Ipv6Addr, message: &ControlMessage) -> bool {
        let packet = message.emit(self.ipv6, to);
        let Some(client) = self.clients.get_mut(key) else { return false };
        let mut datagram = vec![0; sealed_len(packet.len())];
        let sealed = client.tunnel.seal(now, &packet, &mut datagram);
        let (Ok(len), Some(route)) = (sealed, client.route) else {
            self.counters.drop_control_no_session.increment();
            return false;
        };
        datagram.truncate(len);
        self.transmit(route, datagram);
        true
    }
}
