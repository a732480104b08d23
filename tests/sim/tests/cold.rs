//! First packets after a silence in which the session died: none is lost, none arrives twice, none leaves twice.

use std::time::Duration;

use agentnet_sim::net::{NatKind, Replay};
use agentnet_sim::pair::{Pair, home};

const PACKETS: u64 = 100;
const SECOND: Duration = Duration::from_secs(1);

#[test]
fn a_hundred_cold_first_packets_arrive_once() {
    let replay = Replay::seed_or(1);
    let mut rng = replay.rng();
    use NatKind::{None, PortRestricted, SymmetricRandom};
    for kinds in [[PortRestricted; 2], [None, PortRestricted], [SymmetricRandom, PortRestricted], [SymmetricRandom; 2]]
    {
        let mut pair = Pair::new(rng.fork(), kinds.map(home), 1);
        let sent = |pair: &Pair| pair.agents.map(|agent| pair.world.hosts[agent].counters.tx_packets.get());
        let before = sent(&pair);
        for number in 0..PACKETS {
            pair.fall_silent();
            pair.ping((number % 2) as usize);
            pair.listen(SECOND);
        }
        assert_eq!(pair.lost_and_repeated(), (0, 0), "{kinds:?}");
        assert_eq!(sent(&pair), before.map(|count| count + PACKETS / 2), "{kinds:?}");
    }
}
