//! Which external port a NAT gives to a new mapping.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::rng::SimRng;

/// The first port that NATs hand out unless they preserve a lower one.
pub const FIRST_PORT: u16 = 1_024;
/// How many ports that makes.
pub const PORT_COUNT: u16 = u16::MAX - FIRST_PORT + 1;
/// Random draws before a scan: at 90 % use, one allocation in a thousand scans.
const RANDOM_TRIES: usize = 64;

/// How external ports are chosen. No port is ever given to two mappings at once (RFC 4787 REQ-3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortAllocation {
    /// The internal port where it is free, else a random one.
    Preserving,
    /// Any free one.
    Random,
    /// The one `step` after the last; ports in use are stepped over. It starts anywhere.
    Sequential {
        /// Distance of consecutive ports.
        step: u16,
    },
    /// Every internal address has a contiguous block of ports (RFC 7422) and gets them in ascending order.
    Contiguous {
        /// Ports of a block.
        block: u16,
    },
}

/// The allocator's memory.
#[derive(Debug)]
pub(super) struct Ports {
    rng: SimRng,
    /// Offset from [`FIRST_PORT`] that a sequential allocator tries next.
    next: u16,
    /// Blocks by internal address: number of the block and offset within it that is tried next.
    blocks: BTreeMap<IpAddr, (u16, u16)>,
}

impl Ports {
    pub(super) fn new(mut rng: SimRng) -> Self {
        let next = random_offset(&mut rng);
        Self { rng, next, blocks: BTreeMap::new() }
    }

    /// As after a reboot: counters start elsewhere, blocks are forgotten.
    pub(super) fn reset(&mut self) {
        self.next = random_offset(&mut self.rng);
        self.blocks.clear();
    }

    /// Gives back the blocks of addresses that hold no mapping.
    pub(super) fn retain_blocks(&mut self, is_in_use: impl Fn(IpAddr) -> bool) {
        self.blocks.retain(|address, _| is_in_use(*address));
    }

    /// A free port for an internal endpoint; none when all that it may have are taken.
    pub(super) fn allocate(
        &mut self,
        how: PortAllocation,
        address: IpAddr,
        port: u16,
        is_free: impl Fn(u16) -> bool,
    ) -> Option<u16> {
        match how {
            PortAllocation::Preserving if port != 0 && is_free(port) => Some(port),
            PortAllocation::Preserving | PortAllocation::Random => self.random(is_free),
            PortAllocation::Sequential { step } => self.sequential(step, is_free),
            PortAllocation::Contiguous { block } => self.contiguous(block.max(1), address, is_free),
        }
    }

    fn random(&mut self, is_free: impl Fn(u16) -> bool) -> Option<u16> {
        for _ in 0..RANDOM_TRIES {
            let port = port_at(random_offset(&mut self.rng));
            if is_free(port) {
                return Some(port);
            }
        }
        let start = random_offset(&mut self.rng);
        (0..PORT_COUNT).map(|i| port_at(advance(start, i))).find(|port| is_free(*port))
    }

    fn sequential(&mut self, step: u16, is_free: impl Fn(u16) -> bool) -> Option<u16> {
        for _ in 0..PORT_COUNT {
            let port = port_at(self.next);
            self.next = advance(self.next, step);
            if is_free(port) {
                return Some(port);
            }
        }
        None
    }

    fn contiguous(&mut self, block: u16, address: IpAddr, is_free: impl Fn(u16) -> bool) -> Option<u16> {
        let (number, start) = match self.blocks.get(&address) {
            Some(held) => *held,
            None => {
                let is_taken = |number: u16| self.blocks.values().any(|(held, _)| *held == number);
                ((0..PORT_COUNT / block).find(|number| !is_taken(*number))?, 0)
            }
        };
        let offsets = (0..block).map(|i| ((u32::from(start) + u32::from(i)) % u32::from(block)) as u16);
        let offset = offsets.into_iter().find(|offset| is_free(port_at(number * block + offset)));
        let next = offset.map_or(start, |offset| (offset + 1) % block);
        self.blocks.insert(address, (number, next));
        offset.map(|offset| port_at(number * block + offset))
    }
}

fn random_offset(rng: &mut SimRng) -> u16 {
    rng.below(u64::from(PORT_COUNT)) as u16
}

fn port_at(offset: u16) -> u16 {
    FIRST_PORT + offset
}

fn advance(offset: u16, by: u16) -> u16 {
    ((u32::from(offset) + u32::from(by)) % u32::from(PORT_COUNT)) as u16
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn address(last: u8) -> IpAddr {
        [10, 0, 0, last].into()
    }

    fn take(ports: &mut Ports, how: PortAllocation, host: u8, taken: &mut BTreeSet<u16>) -> Option<u16> {
        let port = ports.allocate(how, address(host), 500, |port| !taken.contains(&port))?;
        assert!(taken.insert(port), "{port} was handed out twice");
        Some(port)
    }

    #[test]
    fn every_way_but_blocks_hands_out_every_port_once() {
        for how in [PortAllocation::Random, PortAllocation::Sequential { step: 1 }, PortAllocation::Preserving] {
            let (mut ports, mut taken) = (Ports::new(SimRng::from_seed(1)), BTreeSet::new());
            while take(&mut ports, how, 1, &mut taken).is_some() {}
            let preserved = usize::from(how == PortAllocation::Preserving);
            assert_eq!(taken.len(), usize::from(PORT_COUNT) + preserved, "{how:?}");
        }
    }

    #[test]
    fn sequential_wraps_and_steps_over_what_is_taken() {
        let mut ports = Ports::new(SimRng::from_seed(1));
        ports.next = PORT_COUNT - 1;
        let mut taken = BTreeSet::from([FIRST_PORT + 1]);
        let how = PortAllocation::Sequential { step: 2 };
        let given: Vec<_> = (0..2).filter_map(|_| take(&mut ports, how, 1, &mut taken)).collect();
        assert_eq!(given, [u16::MAX, FIRST_PORT + 3]);
    }

    #[test]
    fn blocks_belong_to_addresses_until_given_back() {
        let how = PortAllocation::Contiguous { block: PORT_COUNT / 2 };
        let (mut ports, mut taken) = (Ports::new(SimRng::from_seed(1)), BTreeSet::new());
        assert_eq!(take(&mut ports, how, 1, &mut taken), Some(FIRST_PORT));
        assert_eq!(take(&mut ports, how, 2, &mut taken), Some(FIRST_PORT + PORT_COUNT / 2));
        assert_eq!(take(&mut ports, how, 1, &mut taken), Some(FIRST_PORT + 1));
        assert_eq!(take(&mut ports, how, 3, &mut taken), None);
        ports.retain_blocks(|held| held != address(1));
        taken.clear();
        assert_eq!(take(&mut ports, how, 3, &mut taken), Some(FIRST_PORT));
    }

    #[test]
    fn a_reset_forgets_blocks_and_moves_the_sequence() {
        let mut ports = Ports::new(SimRng::from_seed(1));
        let blocks = PortAllocation::Contiguous { block: 4 };
        take(&mut ports, blocks, 1, &mut BTreeSet::new());
        let before = ports.next;
        ports.reset();
        assert_ne!(ports.next, before);
        assert_eq!(take(&mut ports, blocks, 2, &mut BTreeSet::new()), Some(FIRST_PORT));
    }

    #[test]
    fn a_full_block_gives_no_port_of_another() {
        let how = PortAllocation::Contiguous { block: 4 };
        let (mut ports, mut taken) = (Ports::new(SimRng::from_seed(1)), BTreeSet::new());
        let given = (0..5).filter(|_| take(&mut ports, how, 1, &mut taken).is_some()).count();
        assert_eq!(given, 4);
    }
}
