//! How a session with a client begins, and what arrives in it.

use super::clients::Moved;
use super::crowds::Network;
use super::{ClientKey, Route, Server};
use crate::identity::TunnelPublic;
use crate::time::{Now, Time};
use crate::trust::source_network;
use crate::tunnel::{CONTROL_OUTPUT_LEN, Initiation, OpenError, Responded, Tunnel, TunnelIndex, claimed_key};
use crate::wire::control::ControlPacket;

impl Server {
    /// A handshake initiation. Whoever completes the handshake is a client.
    pub(super) fn handle_initiation(&mut self, now: Time, route: Route, datagram: &[u8]) {
        let Ok(initiation) = Initiation::try_from(datagram) else { return };
        if !self.filter.is_for_us(datagram) {
            return self.counters.drop_handshake_invalid.increment();
        }
        let source = route.destination;
        let is_known = self.clients.is_known_address(source);
        let limiter = if is_known { &mut self.known_initiations } else { &mut self.initiations };
        if !limiter.allow(now, source) {
            return self.counters.drop_handshake_rate.increment();
        }
        let Some(claimed) = claimed_key(&self.tunnel_secret, &initiation) else {
            return self.counters.drop_handshake_invalid.increment();
        };
        let client = self.clients.with_tunnel_key(&claimed);
        let at_home = client.and_then(|key| self.clients.get_mut(key)).filter(|client| client.is_at(source));
        let allowed = match at_home {
            Some(client) => client.initiations.take(now),
            // Where a client is, other keys are strangers nevertheless.
            None => !is_known || self.initiations.allow(now, source),
        };
        if !allowed {
            return self.counters.drop_handshake_rate.increment();
        }
        let mut response = vec![0; CONTROL_OUTPUT_LEN];
        let responded = match client {
            Some(client) => self.respond_again(now, client, &initiation, &mut response),
            None => {
                let newcomer = (claimed, source_network(source.ip()));
                self.respond_first(now, newcomer, &initiation, &mut response)
            }
        };
        if let Some(responded) = responded {
            response.truncate(responded.len);
            self.transmit(route, response);
        }
    }

    fn respond_again(
        &mut self,
        now: Time,
        client: ClientKey,
        initiation: &Initiation,
        response: &mut [u8],
    ) -> Option<Responded> {
        let tunnel = &mut self.clients.get_mut(client)?.tunnel;
        // The library dates a new session by the last time it was told, and would soon take it for an old one. There is
        // nothing to be sent: this side begins no handshake, and owes no keepalive by timers that stood still.
        let responded = tunnel.refresh(now, response).and_then(|_| tunnel.respond(now, initiation, response));
        self.verified(responded)
    }

    /// The entry is made only for an initiation that verifies: a key alone, which anybody can claim, takes no room.
    fn respond_first(
        &mut self,
        now: Time,
        (claimed, network): (TunnelPublic, Network),
        initiation: &Initiation,
        response: &mut [u8],
    ) -> Option<Responded> {
        let (key, index) = self.clients.reserve(&mut *self.rng);
        let mut tunnel = Tunnel::new(&self.tunnel_secret, &claimed, index, now, None);
        let responded = self.verified(tunnel.respond(now, initiation, response));
        let accepted = responded.filter(|_| self.make_room(network));
        match accepted {
            Some(_) => self.clients.insert(now, (key, claimed), network, tunnel, self.relay_rate.unwrap_or(0)),
            None => self.clients.abandon(index),
        }
        accepted
    }

    fn verified(&self, responded: Result<Responded, OpenError>) -> Option<Responded> {
        match responded {
            Ok(responded) => return Some(responded),
            Err(OpenError::Stale) => self.counters.drop_handshake_replay.increment(),
            Err(_) => self.counters.drop_handshake_invalid.increment(),
        }
        None
    }

    /// Whether one more client fits, if need be in place of another one.
    fn make_room(&mut self, network: Network) -> bool {
        if !self.clients.is_full() {
            return true;
        }
        let Some(yielding) = self.clients.gives_way(network) else {
            self.counters.drop_clients_full.increment();
            return false;
        };
        self.counters.drop_clients_evicted.increment();
        self.forget(yielding);
        true
    }

    /// A data message of a session.
    pub(super) fn handle_data(&mut self, now: Now, route: Route, receiver_index: u32, datagram: &[u8]) {
        let key = self.clients.with_index(TunnelIndex::of_receiver(receiver_index));
        let Some((key, client)) = key.and_then(|key| Some((key, self.clients.get_mut(key)?))) else {
            return self.counters.drop_unknown_index.increment();
        };
        let opened = match client.tunnel.open(now.time, datagram, &mut self.opened) {
            Ok(opened) => opened,
            Err(OpenError::NotIp) => return self.counters.drop_control_invalid.increment(),
            Err(_) => return self.counters.drop_unauthenticated.increment(),
        };
        if opened.session_confirmed {
            self.counters.handshakes.increment();
        }
        self.clients.heard(now.time, key);
        // A packet of an older session may have been under way while the client moved.
        if opened.newest {
            self.follow(now.time, key, route);
        }
        if opened.len > 0 {
            self.handle_packet(now, key, route, opened.len);
        }
    }

    /// The client is here, if it says the truth: nothing but the address of its datagram tells, until it proves it.
    fn follow(&mut self, now: Time, key: ClientKey, route: Route) {
        match self.clients.moved(now, key, route) {
            Moved::No => {}
            Moved::Yes => {
                tracing::debug!(address = %route.destination, "client moved");
                self.proofs.cancel(key);
                self.lead_channels(key);
            }
            Moved::TooOften => self.counters.drop_client_moves.increment(),
        }
        self.seek_proof(now, key);
    }

    /// What was opened, which is a control message or nothing a server understands.
    fn handle_packet(&mut self, now: Now, key: ClientKey, route: Route, len: usize) {
        let Some(client) = self.clients.get_mut(key) else { return };
        if !client.control.take(now.time, super::clients::CONTROL_RATE) {
            return self.counters.drop_control_rate.increment();
        }
        let packet = self.opened.get(..len).unwrap_or_default();
        match ControlPacket::parse(packet) {
            Ok(packet) if packet.destination == self.ipv6 => self.handle_control(now, key, route, packet),
            Ok(_) | Err(_) => self.counters.drop_control_invalid.increment(),
        }
    }
}
