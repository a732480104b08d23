//! What is answered to anybody who asks: where he is, and who this server is.

use std::net::SocketAddr;

use super::{Local, Output, Port, Route, Server};
use crate::limits::Rates;
use crate::time::Now;
use crate::wire::{RecordRequest, respond};

/// STUN requests that are answered to strangers. Each costs about 6 us, in all 3 % of a core.
pub(super) const STUN_RATES: Rates = Rates { per_network: 100, total: 5000 };
/// STUN requests that are answered to clients, in all 0.6 % of a core.
pub(super) const KNOWN_STUN_RATES: Rates = Rates { per_network: 100, total: 1000 };
/// Record requests. A client makes one before its first handshake.
pub(super) const RECORD_RATES: Rates = Rates { per_network: 20, total: 1000 };

impl Server {
    pub(super) fn handle_stun(&mut self, now: Now, source: SocketAddr, local: Local, request: &[u8]) {
        let answer = self.stun.iter().find_map(|server| {
            let mut addresses = server.iter();
            let primary = addresses.next()?;
            // Behind a 1:1 NAT the host does not have its public address, so the port tells which one is meant.
            let at = if local.port == Port::Primary { primary } else { addresses.next()? };
            let answer = respond(request, source, at, server).ok()?;
            let port = if answer.from.port() == primary.port() { Port::Primary } else { Port::Alternate };
            Some((Local { port, ..local }, answer))
        });
        let Some((from, answer)) = answer else { return self.counters.drop_stun_invalid.increment() };
        // Known clients have a limit of their own, which strangers cannot use up.
        let limiter = match self.clients.is_known_address(source) {
            true => &mut self.known_stun_requests,
            false => &mut self.stun_requests,
        };
        if !limiter.allow(now.time, source) {
            return self.counters.drop_stun_rate.increment();
        }
        self.counters.stun_answers.increment();
        self.outputs.push_back(Output::Transmit { destination: answer.to, from, datagram: answer.datagram });
    }

    pub(super) fn handle_record_request(&mut self, now: Now, route: Route, datagram: &[u8]) {
        if !self.records.allow(now.time, route.destination) {
            return self.counters.drop_record_rate.increment();
        }
        match RecordRequest::parse(datagram) {
            Ok(request) => {
                self.counters.record_answers.increment();
                let answer = request.answer(&self.record);
                self.transmit(route, answer);
            }
            Err(_) => self.counters.drop_record_invalid.increment(),
        }
    }
}
