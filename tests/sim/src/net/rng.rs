//! The one source of chance: the same seed is the same run.

use std::convert::Infallible;
use std::time::Duration;

use rand_core::{TryCryptoRng, TryRng};

/// SplitMix64 (Steele, Lea, Flood 2014). Fast, with a state of one word; nothing here needs to be unpredictable, not
/// even the agents' secrets.
#[derive(Clone, Debug)]
pub struct SimRng {
    state: u64,
}

impl SimRng {
    /// The stream that belongs to `seed`.
    pub fn from_seed(seed: u64) -> Self {
        Self { state: seed }
    }

    /// A stream of its own, so that what one part draws does not change what another part gets.
    pub fn fork(&mut self) -> Self {
        Self { state: self.next_u64() }
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.state;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    /// As many bytes as wanted.
    pub fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        let Ok(()) = self.try_fill_bytes(&mut bytes);
        bytes
    }

    /// A number below `limit`; 0 for a limit of 0.
    pub fn below(&mut self, limit: u64) -> u64 {
        let product = u128::from(self.next_u64()) * u128::from(limit);
        (product >> 64) as u64
    }

    /// True with this probability (0 to 1).
    pub fn chance(&mut self, probability: f64) -> bool {
        // Always draws: switching a fault on must not shift what later packets get.
        let unit = (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
        unit < probability
    }

    /// A duration from 0 to `limit`, both included.
    pub fn duration(&mut self, limit: Duration) -> Duration {
        let nanos = u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX);
        Duration::from_nanos(self.below(nanos.saturating_add(1)))
    }
}

impl TryRng for SimRng {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        Ok((self.next_u64() >> 32) as u32)
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        Ok(self.next_u64())
    }

    fn try_fill_bytes(&mut self, target: &mut [u8]) -> Result<(), Infallible> {
        for chunk in target.chunks_mut(8) {
            chunk.copy_from_slice(&self.next_u64().to_le_bytes()[..chunk.len()]);
        }
        Ok(())
    }
}

impl TryCryptoRng for SimRng {}

/// Keeps the seed of a randomised test and prints it when the test fails.
pub struct Replay {
    seed: u64,
}

impl Replay {
    /// The seed in `AGENTNET_SIM_SEED`, else `default`.
    #[allow(clippy::disallowed_methods, reason = "whoever replays a test has no other way to say so")]
    pub fn seed_or(default: u64) -> Self {
        let given = std::env::var("AGENTNET_SIM_SEED").ok();
        let seed = given.map_or(default, |text| text.parse().expect("AGENTNET_SIM_SEED is a number"));
        Self { seed }
    }

    /// The seed.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// The stream that belongs to the seed.
    pub fn rng(&self) -> SimRng {
        SimRng::from_seed(self.seed)
    }
}

impl Drop for Replay {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("replay this run with AGENTNET_SIM_SEED={}", self.seed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_repeat_and_forks_differ() {
        let draw = |mut rng: SimRng| [rng.next_u64(), rng.next_u64(), rng.next_u64()];
        assert_eq!(draw(SimRng::from_seed(7)), draw(SimRng::from_seed(7)));
        assert_ne!(draw(SimRng::from_seed(7)), draw(SimRng::from_seed(8)));
        let mut parent = SimRng::from_seed(7);
        assert_ne!(draw(parent.fork()), draw(parent.fork()));
    }

    #[test]
    fn numbers_are_in_range_and_even() {
        let mut rng = SimRng::from_seed(1);
        let mut counts = [0u32; 10];
        for _ in 0..10_000 {
            counts[rng.below(10) as usize] += 1;
            assert!(rng.duration(Duration::from_millis(3)) <= Duration::from_millis(3));
        }
        assert!(counts.iter().all(|count| (850..1_150).contains(count)), "{counts:?}");
        assert_eq!((rng.below(0), rng.duration(Duration::ZERO)), (0, Duration::ZERO));
        assert!(!rng.chance(0.0) && rng.chance(1.0));
    }
}
