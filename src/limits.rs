//! How much strangers may cost: token buckets, per source network and over all.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use crate::time::Time;
use crate::trust::source_network;

/// What a source network may send, and what all of them may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rates {
    /// From one network (IPv4 /24, IPv6 /48): per second, and as many at once.
    pub per_network: u32,
    /// From everybody: per second, and as many at once.
    pub total: u32,
}

/// Networks counted at once. When more send, the idle ones are forgotten, and if there are none, newcomers wait.
const MAX_NETWORKS: usize = 1024;

const MICROS_PER_SECOND: u128 = 1_000_000;

/// Token buckets per source network and over all.
#[derive(Debug)]
pub struct RateLimiter {
    rates: Rates,
    total: Bucket,
    networks: HashMap<[u8; 6], Bucket>,
}

/// Tokens that come back at a rate, up to as many as one second brings.
#[derive(Debug, Clone, Copy)]
pub struct Bucket {
    tokens: u32,
    refilled: Time,
}

impl RateLimiter {
    /// A limiter with full buckets.
    #[must_use]
    pub fn new(rates: Rates) -> Self {
        Self { rates, total: Bucket::full(Time::ZERO, rates.total), networks: HashMap::new() }
    }

    /// How many source networks are counted, those of a while ago among them.
    #[must_use]
    pub fn networks(&self) -> usize {
        self.networks.len()
    }

    /// Whether one more from this source passes now.
    pub fn allow(&mut self, now: Time, source: SocketAddr) -> bool {
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
    #[must_use]
    pub fn full(now: Time, rate: u32) -> Self {
        Self { tokens: rate, refilled: now }
    }

    /// Takes a token, of `rate` a second, if there is one.
    pub fn take(&mut self, now: Time, rate: u32) -> bool {
        self.take_many(now, 1, rate)
    }

    /// Takes `amount` tokens, of `rate` a second, if there are so many.
    pub fn take_many(&mut self, now: Time, amount: u32, rate: u32) -> bool {
        self.refill(now, rate);
        self.tokens.checked_sub(amount).is_some_and(|left| {
            self.tokens = left;
            true
        })
    }

    fn refill(&mut self, now: Time, rate: u32) {
        let earned = now.since(self.refilled).as_micros().saturating_mul(rate.into()) / MICROS_PER_SECOND;
        let earned = u32::try_from(earned).unwrap_or(u32::MAX);
        if earned >= rate.saturating_sub(self.tokens) {
            self.tokens = rate;
            self.refilled = now;
        } else if earned > 0 {
            self.tokens += earned;
            // Only the time these tokens took: the rest counts for the next one.
            self.refilled = self.refilled + time_of(earned, rate);
        }
    }

    fn is_full(&self, now: Time, rate: u32) -> bool {
        let mut later = *self;
        later.refill(now, rate);
        later.tokens == rate
    }
}

/// How long `tokens` take to come back at a `rate` above zero, rounded up.
fn time_of(tokens: u32, rate: u32) -> Duration {
    let micros = (u128::from(tokens) * MICROS_PER_SECOND).div_ceil(u128::from(rate.max(1)));
    Duration::from_micros(u64::try_from(micros).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATES: Rates = Rates { per_network: 4, total: 20 };

    #[test]
    fn one_network_cannot_use_up_all() {
        let mut limiter = RateLimiter::new(RATES);
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

    #[test]
    fn a_bucket_gives_its_rate_however_often_it_is_asked() {
        for step_us in [1, 70, 999, 1_000, 1_700, 39_000] {
            let mut bucket = Bucket::full(Time::ZERO, 1000);
            assert!(bucket.take_many(Time::ZERO, 1000, 1000));
            let asked = (1..=10_000_000 / step_us).map(|i| Time::ZERO + Duration::from_micros(i * step_us));
            let taken: u32 = asked.map(|now| (0..100).take_while(|_| bucket.take(now, 1000)).count() as u32).sum();
            assert!((9_950..=10_000).contains(&taken), "{taken} tokens in 10 s, asked every {step_us} us");
        }
    }

    #[test]
    fn more_than_a_second_brings_is_never_given() {
        let mut bucket = Bucket::full(Time::ZERO, 10);
        assert!(!bucket.take_many(Time::ZERO + Duration::from_secs(100), 11, 10));
        assert!(bucket.take_many(Time::ZERO, 10, 10));
        assert!(!bucket.take(Time::ZERO + Duration::from_millis(99), 10));
        assert!(bucket.take(Time::ZERO + Duration::from_millis(100), 10));
    }
}
