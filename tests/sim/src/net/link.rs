//! One direction of a link.

use std::time::Duration;

use super::counters::{DropReason, LinkCounters};
use super::rng::SimRng;

/// How packets are lost by chance.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Loss {
    /// Each with this probability (0 to 1).
    Independent(f64),
    /// In bursts (Gilbert): outside a burst nothing is lost, within it everything. In the long run
    /// `enter / (enter + leave)` is lost, `1 / leave` in a row.
    Burst {
        /// Probability that a packet begins a burst.
        enter: f64,
        /// Probability that a packet ends the burst.
        leave: f64,
    },
}

/// A link's capacity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// IP packets' bits per second; 0 counts as 1.
    pub bits_per_second: u64,
    /// Bytes that may wait; a packet that comes when as much is waiting is dropped.
    pub queue_bytes: usize,
}

/// What a link does to packets.
#[derive(Clone, Debug, PartialEq)]
pub struct LinkConfig {
    /// One-way delay.
    pub delay: Duration,
    /// Each packet's delay is longer by up to this much; packets do not overtake each other by that.
    pub jitter: Duration,
    /// Loss by chance.
    pub loss: Loss,
    /// Probability that a packet is held up by `reorder_delay`, and may be overtaken.
    pub reorder: f64,
    /// How long such a packet is held up.
    pub reorder_delay: Duration,
    /// The largest IP packet in bytes; larger ones vanish.
    pub mtu: usize,
    /// Capacity, unlimited if none.
    pub rate: Option<Rate>,
    /// Nothing arrives.
    pub blackhole: bool,
    /// IP packets larger than this vanish: a fault that comes and goes, whatever the MTU is.
    pub drop_above: Option<usize>,
}

impl Default for LinkConfig {
    /// An Ethernet that adds nothing and loses nothing.
    fn default() -> Self {
        Self {
            delay: Duration::ZERO,
            jitter: Duration::ZERO,
            loss: Loss::Independent(0.0),
            reorder: 0.0,
            reorder_delay: Duration::ZERO,
            mtu: 1_500,
            rate: None,
            blackhole: false,
            drop_above: None,
        }
    }
}

impl LinkConfig {
    /// An Ethernet with this one-way delay.
    pub fn with_delay(delay: Duration) -> Self {
        Self { delay, ..Self::default() }
    }
}

/// One direction of a link. Its configuration may change at any time; packets under way keep what they got.
#[derive(Debug)]
pub struct Link {
    /// What it does to packets from now on.
    pub config: LinkConfig,
    counters: LinkCounters,
    rng: SimRng,
    is_in_burst: bool,
    /// When the last byte of what waits has left.
    free_at: Duration,
    /// When the last packet arrives that was not held up.
    last_arrival: Duration,
}

impl Link {
    pub(super) fn new(config: LinkConfig, rng: SimRng) -> Self {
        Self {
            config,
            counters: LinkCounters::default(),
            rng,
            is_in_burst: false,
            free_at: Duration::ZERO,
            last_arrival: Duration::ZERO,
        }
    }

    /// What happened so far.
    pub fn counters(&self) -> &LinkCounters {
        &self.counters
    }

    /// An IP packet of `size` bytes enters; returns when it arrives.
    pub(super) fn packet(&mut self, now: Duration, size: usize) -> Result<Duration, DropReason> {
        let result = self.transit(now, size);
        match result {
            Ok(_) => {
                self.counters.packets += 1;
                self.counters.bytes += size as u64;
            }
            Err(reason) => self.counters.drops.count(reason),
        }
        result
    }

    fn transit(&mut self, now: Duration, size: usize) -> Result<Duration, DropReason> {
        // The draws come first and for every packet, so that a fault does not shift the chances of later packets.
        let is_lost = self.is_lost();
        let jitter = self.rng.duration(self.config.jitter);
        let is_held_up = self.rng.chance(self.config.reorder);
        if size > self.config.mtu || self.config.drop_above.is_some_and(|limit| size > limit) {
            return Err(DropReason::TooBig);
        }
        let departure = self.departure(now, size)?;
        if self.config.blackhole {
            return Err(DropReason::Blackhole);
        }
        if is_lost {
            return Err(DropReason::Loss);
        }
        let arrival = (departure + self.config.delay + jitter).max(self.last_arrival);
        if is_held_up {
            return Ok(arrival + self.config.reorder_delay);
        }
        self.last_arrival = arrival;
        Ok(arrival)
    }

    fn is_lost(&mut self) -> bool {
        match self.config.loss {
            Loss::Independent(probability) => self.rng.chance(probability),
            Loss::Burst { enter, leave } => {
                let turns = self.rng.chance(if self.is_in_burst { leave } else { enter });
                self.is_in_burst ^= turns;
                self.is_in_burst
            }
        }
    }

    /// When the packet's last byte has left.
    fn departure(&mut self, now: Duration, size: usize) -> Result<Duration, DropReason> {
        let Some(Rate { bits_per_second, queue_bytes }) = self.config.rate else {
            return Ok(now);
        };
        let rate = u128::from(bits_per_second.max(1));
        let backlog = self.free_at.saturating_sub(now);
        let waiting_bytes = backlog.as_nanos() * rate / 8_000_000_000;
        if waiting_bytes > 0 && waiting_bytes + size as u128 > queue_bytes as u128 {
            return Err(DropReason::QueueFull);
        }
        let nanos = size as u128 * 8_000_000_000 / rate;
        self.free_at = self.free_at.max(now) + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        Ok(self.free_at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const PACKETS: u32 = 20_000;

    fn link(config: LinkConfig) -> Link {
        Link::new(config, SimRng::from_seed(42))
    }

    /// One packet a millisecond: when each arrives, if it does.
    fn run(config: LinkConfig) -> Vec<Option<Duration>> {
        let mut link = link(config);
        (0..PACKETS).map(|i| link.packet(MS * i, 100).ok()).collect()
    }

    fn lost(arrivals: &[Option<Duration>]) -> f64 {
        arrivals.iter().filter(|arrival| arrival.is_none()).count() as f64 / f64::from(PACKETS)
    }

    #[test]
    fn a_plain_link_only_delays() {
        let arrivals = run(LinkConfig::with_delay(MS * 7));
        assert!((0..).zip(&arrivals).all(|(i, arrival)| *arrival == Some(MS * (i + 7))));
    }

    #[test]
    fn independent_loss_is_as_configured_and_not_in_bursts() {
        let arrivals = run(LinkConfig { loss: Loss::Independent(0.1), ..LinkConfig::default() });
        assert!((0.09..0.11).contains(&lost(&arrivals)), "{}", lost(&arrivals));
        let pairs = arrivals.windows(2).filter(|pair| pair[0].is_none() && pair[1].is_none()).count();
        assert!((140..260).contains(&pairs), "{pairs} of about 200");
    }

    #[test]
    fn burst_loss_has_the_rate_and_length_of_its_chain() {
        let loss = Loss::Burst { enter: 0.01, leave: 0.1 };
        let arrivals = run(LinkConfig { loss, ..LinkConfig::default() });
        let expected = 0.01 / 0.11;
        assert!((lost(&arrivals) - expected).abs() < 0.025, "{}", lost(&arrivals));
        let bursts = arrivals.windows(2).filter(|pair| pair[0].is_some() && pair[1].is_none()).count();
        let length = lost(&arrivals) * f64::from(PACKETS) / bursts as f64;
        assert!((8.0..12.5).contains(&length), "{length}");
    }

    #[test]
    fn jitter_is_even_and_keeps_the_order() {
        // Packets further apart than the jitter show it undisturbed.
        let mut link = link(LinkConfig { jitter: MS * 10, ..LinkConfig::with_delay(MS * 5) });
        let delays: Vec<_> = (0..5_000).map(|i| link.packet(MS * 20 * i, 100).unwrap() - MS * 20 * i).collect();
        let mean = delays.iter().sum::<Duration>() / 5_000;
        assert!((MS * 97 / 10..MS * 103 / 10).contains(&mean), "{mean:?}");
        assert!(delays.iter().all(|delay| (MS * 5..=MS * 15).contains(delay)));

        let arrivals = run(LinkConfig { jitter: MS * 10, ..LinkConfig::default() });
        assert!(arrivals.is_sorted());
    }

    #[test]
    fn reordering_happens_as_often_as_configured() {
        let arrivals = run(LinkConfig { reorder: 0.05, reorder_delay: MS * 3, ..LinkConfig::default() });
        let overtaken = arrivals.windows(2).filter(|pair| pair[0] > pair[1]).count() as f64 / f64::from(PACKETS);
        assert!((0.04..0.055).contains(&overtaken), "{overtaken}");
        assert_eq!(lost(&arrivals), 0.0);
    }

    #[test]
    fn rate_spaces_packets_and_bounds_the_queue() {
        // 800 kb/s: 100 bytes a millisecond.
        let rate = Some(Rate { bits_per_second: 800_000, queue_bytes: 500 });
        let mut link = link(LinkConfig { rate, ..LinkConfig::default() });
        let arrivals: Vec<_> = (0..8).map(|_| link.packet(Duration::ZERO, 100)).collect();
        let expected = (1..=8).map(|i| if i <= 5 { Ok(MS * i) } else { Err(DropReason::QueueFull) });
        assert_eq!(arrivals, expected.collect::<Vec<_>>());
        assert_eq!(link.packet(MS * 2, 100), Ok(MS * 6));
        assert_eq!(link.packet(MS * 100, 2_000), Err(DropReason::TooBig));
        assert_eq!(link.packet(MS * 100, 1_000), Ok(MS * 110), "an idle link takes any packet");
        assert_eq!(link.counters().drops.of(DropReason::QueueFull), 3);
        assert_eq!((link.counters().packets, link.counters().bytes), (7, 1_600));
    }

    #[test]
    fn size_limits_and_the_black_hole() {
        let mut link = link(LinkConfig { mtu: 1_400, ..LinkConfig::default() });
        let mut sizes = |config: fn(&mut LinkConfig)| {
            config(&mut link.config);
            [1_000, 1_001, 1_400, 1_401].map(|size| link.packet(MS, size).err())
        };
        let too_big = Some(DropReason::TooBig);
        assert_eq!(sizes(|_| ()), [None, None, None, too_big]);
        assert_eq!(sizes(|config| config.drop_above = Some(1_000)), [None, too_big, too_big, too_big]);
        assert_eq!(sizes(|config| config.drop_above = None), [None, None, None, too_big]);
        let hole = Some(DropReason::Blackhole);
        assert_eq!(sizes(|config| config.blackhole = true), [hole, hole, hole, too_big]);
    }

    #[test]
    fn a_fault_does_not_shift_later_chances() {
        let loss = LinkConfig { loss: Loss::Independent(0.5), ..LinkConfig::default() };
        let (mut plain, mut faulty) = (link(loss.clone()), link(loss));
        for i in 0..100 {
            faulty.config.blackhole = i < 50;
            let (a, b) = (plain.packet(MS * i, 100), faulty.packet(MS * i, 100));
            assert!(i < 50 || a == b);
        }
    }
}
