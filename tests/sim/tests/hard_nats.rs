//! Agents behind NATs of every kind come to a direct path, wherever there is one to be had.
//!
//! ```text
//!   a ── NATs of a kind ── 10 ms ── core ── 10 ms ── NATs of a kind ── b
//!                                    └──── 10 ms ── two servers
//! ```

use std::time::Duration;

use agentnet::api::PathKind;
use agentnet_sim::net::{LinkConfig, Loss, NatConfig, NatKind, SimRng, SiteOptions};
use agentnet_sim::{HostOptions, ServerOptions, World};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

struct Pair {
    world: World,
    hosts: [usize; 2],
}

impl Pair {
    /// Two agents that trust each other, and two servers.
    fn new(seed: u64, nats: [Vec<NatConfig>; 2], loss: f64) -> Self {
        let mut world = World::with_rng(SimRng::from_seed(seed));
        let access = LinkConfig { loss: Loss::Independent(loss), ..LinkConfig::with_delay(MS * 10) };
        let public = world.net.add_site(&SiteOptions::new(NatKind::None, LinkConfig::with_delay(MS * 10)));
        for _ in 0..2 {
            world.add_server(&public, ServerOptions::default());
        }
        let hosts = nats.map(|nats| {
            let options = SiteOptions { nats, ..SiteOptions::new(NatKind::None, access.clone()) };
            let site = world.net.add_site(&options);
            let rendezvous = world.servers.iter().map(|server| server.reference()).collect();
            world.add_host_at(&site, HostOptions { rendezvous, ..HostOptions::default() })
        });
        world.advance(SECOND * 2);
        world.trust(hosts[0], hosts[1]);
        Self { world, hosts }
    }

    fn of(seed: u64, kinds: [NatKind; 2]) -> Self {
        Self::new(seed, kinds.map(|kind| SiteOptions::new(kind, LinkConfig::default()).nats), 0.0)
    }

    fn is_direct(&self) -> bool {
        let kind = |host: usize| self.world.hosts[host].node.peer_statuses(self.world.now())[0].path.kind;
        self.hosts.iter().all(|host| kind(*host) == PathKind::Direct)
    }

    /// Talks until both have a direct path; returns how long that took.
    fn becomes_direct(&mut self, limit: Duration) -> Option<Duration> {
        let start = self.world.elapsed();
        while self.world.elapsed() - start < limit {
            self.talk();
            if self.is_direct() {
                return Some(self.world.elapsed() - start);
            }
        }
        None
    }

    /// Sockets open beside the main ones, of both.
    fn extra_sockets(&self) -> [usize; 2] {
        self.hosts.map(|host| self.world.hosts[host].extra_sockets)
    }

    fn attempts(&self) -> [u64; 2] {
        self.hosts.map(|host| self.world.hosts[host].counters.hard_nat_attempts.get())
    }

    fn probes(&self) -> [u64; 2] {
        self.hosts.map(|host| self.world.hosts[host].counters.hard_nat_probes.get())
    }

    /// A tenth of a second with a packet each way.
    fn talk(&mut self) {
        let [a, b] = self.hosts;
        for (from, to) in [(a, b), (b, a)] {
            let packet = self.world.packet_between(from, to);
            self.world.send(from, &packet);
        }
        self.world.advance(MS * 100);
    }

    /// The reason code, and the steps as text.
    fn why(&self) -> (String, String) {
        let id = self.world.hosts[self.hosts[1]].node.id().to_string();
        let why = self.world.hosts[self.hosts[0]].node.why(self.world.now(), &id).unwrap();
        let steps = why.steps.iter().map(|step| format!("{}: {}", step.step, step.detail));
        (why.reason_code, steps.collect::<Vec<_>>().join("\n"))
    }
}

fn is_hopeless(kinds: [NatKind; 2]) -> bool {
    use NatKind::{SymmetricRandom, SymmetricSequential};
    let [is_random, is_hard] = [
        kinds.contains(&SymmetricRandom),
        kinds.iter().all(|kind| matches!(kind, SymmetricRandom | SymmetricSequential)),
    ];
    is_random && is_hard
}

#[test]
fn every_pair_of_nats_but_two_random_ones_becomes_direct() {
    for a in NatKind::ALL {
        for b in NatKind::ALL {
            let mut pair = Pair::of(3, [a, b]);
            let after = pair.becomes_direct(SECOND * 10);
            if is_hopeless([a, b]) {
                let (code, steps) = pair.why();
                assert_eq!((after, pair.attempts()), (None, [0, 0]), "{a:?} {b:?}");
                assert!(code == "both_nats_hard" && steps.contains("nothing to aim at"), "{code}: {steps}");
            } else {
                assert!(after.is_some(), "{a:?} {b:?}: {}", pair.why().1);
            }
            let has_sequential = [a, b].contains(&NatKind::SymmetricSequential);
            if has_sequential && !is_hopeless([a, b]) {
                assert!(after < Some(SECOND), "{a:?} {b:?}: {after:?}");
            }
        }
    }
}

#[test]
fn a_random_nat_and_a_strict_one_become_direct_nine_times_in_ten_within_ten_seconds() {
    let (mut direct, mut most) = (0, 0);
    for seed in 0..60 {
        let nats = [vec![NatConfig::symmetric_random()], vec![NatConfig::port_restricted()]];
        let mut pair = Pair::new(seed, nats, 0.03);
        if pair.becomes_direct(SECOND * 10).is_some() {
            direct += 1;
        }
        most = most.max(pair.probes().iter().sum::<u64>());
        pair.world.advance(SECOND * 10);
        let [hard, easy] = pair.extra_sockets();
        assert!(hard <= 1 && easy == 0, "seed {seed}: {hard} and {easy} sockets are left");
    }
    assert!(direct >= 54, "{direct} of 60");
    assert!(most <= 2048, "{most} probes");
}

#[test]
fn what_was_found_carries_data_both_ways_without_the_relay() {
    let mut pair = Pair::of(5, [NatKind::SymmetricRandom, NatKind::PortRestricted]);
    pair.becomes_direct(SECOND * 10).unwrap();
    assert_eq!(pair.extra_sockets(), [1, 0]);
    for _ in 0..20 {
        pair.talk();
    }
    let [a, b] = pair.hosts;
    let frames = |pair: &Pair| pair.world.servers.iter().map(|s| s.counters.relay_frames.get()).sum::<u64>();
    let before = frames(&pair);
    for host in [a, b] {
        pair.world.hosts[host].take_delivered();
    }
    // Through the relay it would be twice as long.
    assert_eq!(pair.world.carry(a, b, SECOND), Some(MS * 20));
    assert_eq!(pair.world.carry(b, a, SECOND), Some(MS * 20));
    for _ in 0..600 {
        pair.talk();
    }
    assert!(pair.is_direct());
    assert_eq!(pair.extra_sockets(), [1, 0]);
    assert!(frames(&pair) - before < 60, "only probes of the relays");
}

#[test]
fn a_host_that_moves_searches_again_at_once() {
    let mut pair = Pair::of(6, [NatKind::SymmetricRandom, NatKind::PortRestricted]);
    pair.becomes_direct(SECOND * 10).unwrap();
    for _ in 0..300 {
        pair.talk();
    }
    let elsewhere =
        pair.world.net.add_site(&SiteOptions::new(NatKind::SymmetricRandom, LinkConfig::with_delay(MS * 10)));
    pair.world.move_host(pair.hosts[0], &elsewhere);
    pair.talk();
    // The old path may still be believed in for a moment.
    for _ in 0..20 {
        pair.talk();
    }
    let after = pair.becomes_direct(SECOND * 10);
    assert!(after.is_some(), "{}", pair.why().1);
    assert!(pair.attempts()[0] >= 2);
    pair.world.advance(SECOND * 15);
    assert!(pair.extra_sockets()[0] <= 1);
}

#[test]
fn several_peers_are_searched_one_after_the_other() {
    let mut pair = Pair::of(8, [NatKind::SymmetricRandom, NatKind::PortRestricted]);
    let hard = pair.hosts[0];
    let rendezvous: Vec<_> = pair.world.servers.iter().map(|server| server.reference()).collect();
    let mut peers = vec![pair.hosts[1]];
    for _ in 0..3 {
        let access = LinkConfig::with_delay(MS * 10);
        let site = pair.world.net.add_site(&SiteOptions::new(NatKind::PortRestricted, access));
        let options = HostOptions { rendezvous: rendezvous.clone(), ..HostOptions::default() };
        let peer = pair.world.add_host_at(&site, options);
        pair.world.advance(SECOND * 2);
        pair.world.trust(hard, peer);
        peers.push(peer);
    }
    let mut most = 0;
    let all_direct = |world: &World| {
        world.hosts[hard]
            .node
            .peer_statuses(world.now())
            .iter()
            .filter(|peer| peer.path.kind == PathKind::Direct)
            .count()
    };
    for _ in 0..3000 {
        for peer in &peers {
            let packet = pair.world.packet_between(hard, *peer);
            pair.world.send(hard, &packet);
        }
        pair.world.advance(MS * 100);
        most = most.max(pair.world.hosts[hard].extra_sockets);
        if all_direct(&pair.world) == peers.len() {
            break;
        }
    }
    assert_eq!(all_direct(&pair.world), peers.len());
    assert!((256..=256 + peers.len()).contains(&most), "{most} sockets at once");
}

#[test]
fn what_cannot_be_found_is_searched_ever_more_seldom_and_only_with_traffic() {
    // The easy side's NAT has no room for a search: hardly a probe gets out.
    let small = NatConfig { table_limit: 12, ..NatConfig::port_restricted() };
    let mut pair = Pair::new(9, [vec![NatConfig::symmetric_random()], vec![small]], 0.0);
    assert_eq!(pair.becomes_direct(SECOND * 590), None);
    assert_eq!(pair.attempts(), [4, 4], "at once, after 1, 3 and 7 minutes");
    let (code, steps) = pair.why();
    assert_eq!(code, "no_direct_path");
    assert!(steps.contains("4 attempts") && steps.contains("nothing came through"), "{steps}");
    assert_eq!(pair.extra_sockets(), [0, 0]);
    pair.world.advance(SECOND * 3600);
    assert_eq!(pair.attempts(), [4, 4], "nobody wants to talk");
}
