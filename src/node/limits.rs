//! How much strangers may cost: the limits of the control plane and the token buckets that keep them.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use crate::time::Time;
use crate::trust::source_network;

/// The most agents there can be a relation with. A row is about 1 KiB in memory and on disk.
pub const MAX_PEERS: usize = 4096;
/// The most relations that ended in a no: enough to remember every no a person says; the oldest is forgotten first.
pub const MAX_REFUSED: usize = 1024;
/// Transport addresses kept per peer: two interfaces of both families, before and after a move.
pub const MAX_ADDRESSES: usize = 8;
/// Rendezvous servers in use: this agent's own four, and those of a dozen peers at a time.
pub const MAX_SERVERS: usize = 64;
/// Transport addresses of one server that are tried.
pub const MAX_SERVER_ADDRESSES: usize = 8;
/// Relays to one peer: the four it lists, and the four by which it comes here.
pub const MAX_RELAYS: usize = 8;
/// Echo requests waiting for their answer at once, over all local callers.
pub const MAX_PINGS: usize = 256;

/// What a source network may send, and what all of them may.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rates {
    /// From one network (IPv4 /24, IPv6 /48): per second, and as many at once.
    pub per_network: u32,
    /// From everybody: per second, and as many at once.
    pub total: u32,
}

/// Handshake initiations from unknown addresses. Each costs two Diffie-Hellman operations, about 100 us: 100 a second
/// are 1 % of a core.
pub(super) const INITIATION_RATES: Rates = Rates { per_network: 20, total: 100 };
/// Introductions. Each costs a decapsulation and three signature checks, about 300 us: 20 a second are under 1 %.
pub(super) const INTRODUCTION_RATES: Rates = Rates { per_network: 4, total: 20 };
/// Initiations from an address at which a trusted peer is known: they pass whatever strangers send.
pub(super) const KNOWN_INITIATION_RATES: Rates = Rates { per_network: 50, total: 1000 };
/// Control messages from one peer: enough for pings from many programs, 1 % of a core.
pub(super) const MESSAGE_RATE: u32 = 500;
/// Hellos and their acknowledgements from one peer. Each costs a signature check and may cost a write to disk; one per change is enough.
pub(super) const HELLO_RATE: u32 = 8;
/// Probes of all paths to all peers, a second: a home router takes a few hundred new mappings a second without harm.
pub(super) const PROBE_RATE: u32 = 256;
/// Networks counted at once. When more send, the idle ones are forgotten, and if there are none, newcomers wait.
const MAX_NETWORKS: usize = 1024;

/// Token buckets per source network and over all.
#[derive(Debug)]
pub(super) struct RateLimiter {
    rates: Rates,
    total: Bucket,
    networks: HashMap<[u8; 6], Bucket>,
}

/// Tokens that come back at a rate, up to as many as one second brings.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bucket {
    tokens: u32,
    refilled: Time,
}

impl RateLimiter {
    pub(super) fn new(rates: Rates) -> Self {
        Self { rates, total: Bucket::full(Time::ZERO, rates.total), networks: HashMap::new() }
    }

    /// Whether one more from this source passes now.
    pub(super) fn allow(&mut self, now: Time, source: SocketAddr) -> bool {
        let network = source_network(source.ip());
        if !self.networks.contains_key(&network) && self.networks.len() >= MAX_NETWORKS {
            let rate = self.rates.per_network;
            self.networks.retain(|_, bucket| !bucket.is_full(now, rate));
            if self.networks.len() >= MAX_NETWORKS {
                return false;
            }
        }
        let bucket = self.networks.entry(network).or_insert(Bucket::full(now, self.rates.per_network));
        // A network over its own limit must not use up what is there for all.
        bucket.take(now, self.rates.per_network) && self.total.take(now, self.rates.total)
    }
}

impl Bucket {
    /// With all its tokens.
    pub(super) fn full(now: Time, rate: u32) -> Self {
        Self { tokens: rate, refilled: now }
    }

    /// Takes a token, of `rate` a second, if there is one.
    pub(super) fn take(&mut self, now: Time, rate: u32) -> bool {
        self.refill(now, rate);
        self.tokens.checked_sub(1).is_some_and(|left| {
            self.tokens = left;
            true
        })
    }

    fn refill(&mut self, now: Time, rate: u32) {
        let earned = now.since(self.refilled).as_millis().saturating_mul(rate.into()) / 1000;
        if earned > 0 {
            let earned = u32::try_from(earned).unwrap_or(rate);
            self.tokens = rate.min(self.tokens.saturating_add(earned));
            self.refilled = now;
        }
    }

    fn is_full(&self, now: Time, rate: u32) -> bool {
        let mut later = *self;
        later.refill(now, rate);
        later.tokens == rate
    }
}

/// When an unanswered message goes out again: doubling from `first` up to `longest`.
pub(super) fn backoff(attempt: u32, first: Duration, longest: Duration) -> Duration {
    first.saturating_mul(1 << attempt.min(20)).min(longest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_network_cannot_use_up_all() {
        let mut limiter = RateLimiter::new(INTRODUCTION_RATES);
        let (loud, quiet) = ("192.0.2.1:1".parse().unwrap(), "198.51.100.1:1".parse().unwrap());
        let passed = (0..1000).filter(|_| limiter.allow(Time::ZERO, loud)).count();
        assert_eq!(passed, 4);
        assert!(limiter.allow(Time::ZERO, quiet));
        assert!(limiter.allow(Time::ZERO + Duration::from_secs(1), loud));
    }

    #[test]
    fn the_table_of_networks_is_bounded() {
        let mut limiter = RateLimiter::new(Rates { per_network: 1, total: u32::MAX });
        for i in 0..5000u32 {
            limiter.allow(Time::ZERO, SocketAddr::from((std::net::Ipv4Addr::from(i << 8), 1)));
        }
        assert_eq!(limiter.networks.len(), MAX_NETWORKS);
        assert!(limiter.allow(Time::ZERO + Duration::from_secs(5), "203.0.113.1:1".parse().unwrap()));
    }
}
