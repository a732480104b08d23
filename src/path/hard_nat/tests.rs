use std::collections::{BTreeSet, HashMap};
use std::net::Ipv4Addr;

use proptest::prelude::*;

use super::*;
use crate::identity::test_rng::TestRng;

const MS: Duration = Duration::from_millis(1);
const INDEPENDENT: Mapping = Mapping::EndpointIndependent;
const RANDOM: Mapping = Mapping::EndpointDependent { step: 0 };

fn counting(step: i16) -> Mapping {
    Mapping::EndpointDependent { step }
}

/// A NAT that filters by address and port (RFC 4787, section 5).
struct Nat {
    ip: Ipv4Addr,
    mapping: Mapping,
    last: u16,
    /// The port for a socket and, where the mapping depends on it, a destination.
    ports: HashMap<(SocketId, Option<SocketAddrV4>), u16>,
    /// Who may come in where.
    open: HashMap<(u16, SocketAddrV4), SocketId>,
}

impl Nat {
    fn send(&mut self, rng: &mut TestRng, socket: SocketId, destination: SocketAddrV4) -> SocketAddrV4 {
        let key = (socket, (self.mapping != INDEPENDENT).then_some(destination));
        let known = self.ports.get(&key).copied();
        let port = known.unwrap_or_else(|| match self.mapping {
            Mapping::EndpointDependent { step } if step != 0 => port_ahead(self.last, step, 1),
            _ => random_port(rng),
        });
        if known.is_none() {
            self.last = port;
            self.ports.insert(key, port);
        }
        self.open.insert((port, destination), socket);
        SocketAddrV4::new(self.ip, port)
    }

    /// Other connections make mappings too.
    fn skip(&mut self, count: u16) {
        if let Mapping::EndpointDependent { step } = self.mapping {
            self.last = port_ahead(self.last, step, count);
        }
    }
}

fn random_port(rng: &mut TestRng) -> u16 {
    port_ahead(1024, 1, (Rng::next_u64(rng) % PORTS as u64) as u16)
}

/// Two agents that want each other, each behind a NAT.
struct Bench {
    now: Time,
    began: Time,
    rng: TestRng,
    nats: [Nat; 2],
    sides: [HardNat; 2],
    seen: [SocketAddrV4; 2],
    /// Datagrams under way, by time of arrival: to whom, and whether they answer one.
    under_way: Vec<(Time, SocketAddrV4, SocketAddrV4, bool)>,
    delay: Duration,
    /// One in so many is lost; 0 for none.
    loss: u64,
    next_socket: u16,
    open: [BTreeSet<SocketId>; 2],
    sent: [Vec<Time>; 2],
    most_open: usize,
}

impl Bench {
    fn new(seed: u64, mappings: [Mapping; 2]) -> Self {
        let mut rng = TestRng::new(seed);
        let now = Time::from_origin(Duration::from_secs(1000));
        let server = SocketAddrV4::new(Ipv4Addr::new(203, 0, 113, 1), 3478);
        let mut nats = [0, 1].map(|side: usize| Nat {
            ip: Ipv4Addr::new(192, 0, 2, side as u8 + 1),
            mapping: mappings[side],
            last: random_port(&mut rng),
            ports: HashMap::new(),
            open: HashMap::new(),
        });
        let seen = [0, 1].map(|side: usize| nats[side].send(&mut rng, SocketId::MAIN, server));
        Self {
            now,
            began: now,
            rng,
            nats,
            sides: [HardNat::new(), HardNat::new()],
            seen,
            under_way: Vec::new(),
            delay: MS * 40,
            loss: 0,
            next_socket: 0,
            open: Default::default(),
            sent: Default::default(),
            most_open: 0,
        }
    }

    fn begin(&mut self, side: usize) {
        let plan = Plan::new(self.nats[side].mapping, self.nats[1 - side].mapping);
        let attempt = Attempt { plan, target: self.seen[1 - side], is_first: side == 0, sockets: HARD_SOCKETS };
        self.sides[side].begin(self.now, attempt, SocketId::MAIN, &mut self.rng);
    }

    /// Both probe what they were told, as the path machine does.
    fn probe_plainly(&mut self) {
        for side in [0, 1] {
            self.send(side, SocketId::MAIN, self.seen[1 - side], false);
        }
    }

    fn send(&mut self, side: usize, socket: SocketId, to: SocketAddrV4, is_answer: bool) {
        let from = self.nats[side].send(&mut self.rng, socket, to);
        let lost = self.loss > 0 && Rng::next_u64(&mut self.rng).is_multiple_of(self.loss);
        if !lost {
            self.under_way.push((self.now + self.delay, from, to, is_answer));
        }
    }

    /// Runs both until one hears the other's answer, or gives up. Returns how long that took, and the socket there.
    fn run(&mut self) -> Option<(Duration, usize, SocketId)> {
        while self.sides.iter().any(HardNat::is_running) || !self.under_way.is_empty() {
            let timers = self.sides.iter().filter_map(HardNat::poll_timeout);
            self.now = timers.chain(self.under_way.iter().map(|(at, ..)| *at)).min()?.max(self.now);
            for side in [0, 1] {
                self.sides[side].handle_timeout(self.now, PER_TICK);
                self.carry_out(side);
            }
            if let Some(found) = self.deliver() {
                return Some(found);
            }
        }
        None
    }

    fn carry_out(&mut self, side: usize) {
        while let Some(output) = self.sides[side].poll_output() {
            match output {
                Output::OpenSockets(count) => {
                    let opened: Vec<_> = (0..count)
                        .map(|_| {
                            self.next_socket += 1;
                            SocketId::new(self.next_socket)
                        })
                        .collect();
                    self.open[side].extend(&opened);
                    self.most_open = self.most_open.max(self.open[side].len());
                    self.sides[side].sockets_opened(self.now, opened);
                }
                Output::CloseSockets(sockets) => {
                    for socket in sockets {
                        assert!(self.open[side].remove(&socket), "closed twice or never opened");
                    }
                }
                Output::Probe { socket, destination } => {
                    assert!(socket.is_main() || self.open[side].contains(&socket));
                    self.sent[side].push(self.now);
                    self.send(side, socket, destination, false);
                }
            }
        }
    }

    fn deliver(&mut self) -> Option<(Duration, usize, SocketId)> {
        let now = self.now;
        let arrived: Vec<_> = self.under_way.extract_if(.., |(at, ..)| *at <= now).collect();
        for (_, from, to, is_answer) in arrived {
            let side = self.nats.iter().position(|nat| nat.ip == *to.ip())?;
            let Some(socket) = self.nats[side].open.get(&(to.port(), from)).copied() else { continue };
            if !socket.is_main() {
                if !self.sides[side].heard(now, socket) {
                    continue;
                }
                self.carry_out(side);
            }
            if is_answer {
                return Some((now.since(self.began), side, socket));
            }
            // The path machine does not ask once only.
            for _ in 0..3 {
                self.send(side, socket, from, true);
            }
        }
        None
    }

    fn most_in_a_second(&self, side: usize) -> usize {
        let within = |from: &Time| {
            self.sent[side].iter().filter(|at| **at >= *from && at.since(*from) < Duration::from_secs(1)).count()
        };
        self.sent[side].iter().map(within).max().unwrap_or(0)
    }
}

/// How many of `runs` attempts find a way, and the longest that took.
fn tries(runs: u64, mappings: [Mapping; 2], change: impl Fn(&mut Bench)) -> (u64, Duration) {
    let (mut found, mut longest) = (0, Duration::ZERO);
    for seed in 0..runs {
        let mut bench = Bench::new(seed, mappings);
        change(&mut bench);
        bench.probe_plainly();
        let late = bench.now + MS * (seed % 100) as u32;
        bench.begin(0);
        bench.now = late;
        bench.begin(1);
        if let Some((after, ..)) = bench.run() {
            found += 1;
            longest = longest.max(after);
        }
        for side in [0, 1] {
            assert!(bench.most_in_a_second(side) <= 204, "seed {seed}");
        }
        assert!(bench.sent[0].len() + bench.sent[1].len() <= 2048 && bench.most_open <= 256, "seed {seed}");
    }
    (found, longest)
}

#[test]
fn many_sockets_meet_many_probes() {
    let (found, longest) = tries(300, [RANDOM, INDEPENDENT], |_| ());
    assert!(found >= 285, "{found} of 300");
    assert!(longest + SETTLE <= Duration::from_secs(10), "{longest:?}");
    let (found, _) = tries(100, [INDEPENDENT, RANDOM], |bench| bench.loss = 10);
    assert!(found >= 92, "{found} of 100 with one in ten lost");
}

#[test]
fn a_nat_that_counts_is_met_at_once() {
    for (step, skipped) in [(1, 0), (1, 40), (2, 9), (-1, 5), (-4, 60)] {
        let (found, longest) = tries(50, [INDEPENDENT, counting(step)], |bench| bench.nats[1].skip(skipped));
        assert_eq!(found, 50, "step {step}, {skipped} skipped");
        assert!(longest < MS * 800, "step {step}, {skipped} skipped: {longest:?}");
    }
}

#[test]
fn a_nat_that_counts_too_fast_is_met_like_one_that_does_not() {
    let (found, _) = tries(100, [INDEPENDENT, counting(1)], |bench| bench.nats[1].skip(3000));
    assert!(found >= 95, "{found} of 100");
}

#[test]
fn two_nats_that_count_meet() {
    for (a, b) in (0..=6).flat_map(|a| (0..=6).map(move |b| (a, b))) {
        let (found, longest) = tries(5, [counting(1), counting(2)], |bench| {
            bench.nats[0].skip(a);
            bench.nats[1].skip(b);
        });
        assert_eq!(found, 5, "{a} and {b} skipped");
        assert!(longest < MS * 1200, "{a} and {b} skipped: {longest:?}");
    }
}

#[test]
fn both_sides_decide_alike() {
    use Plan::{Easy, Hard, Hopeless, Paired, Plain, Unknown};
    let expected = [
        (INDEPENDENT, INDEPENDENT, Plain, Plain),
        (RANDOM, INDEPENDENT, Hard { step: 0 }, Easy { step: 0 }),
        (counting(3), INDEPENDENT, Hard { step: 3 }, Easy { step: 3 }),
        (counting(3), counting(-2), Paired { step: -2 }, Paired { step: 3 }),
        (RANDOM, RANDOM, Hopeless, Hopeless),
        (RANDOM, counting(1), Hopeless, Hopeless),
        (Mapping::Unknown, RANDOM, Unknown, Unknown),
    ];
    for (a, b, plan_a, plan_b) in expected {
        assert_eq!((Plan::new(a, b), Plan::new(b, a)), (plan_a, plan_b));
        assert_eq!(plan_a.is_something(), plan_b.is_something());
    }
}

#[test]
fn the_winner_stays_open_and_nothing_else() {
    let mut bench = Bench::new(7, [RANDOM, INDEPENDENT]);
    bench.begin(0);
    bench.begin(1);
    bench.run().unwrap();
    assert!(!bench.sides[0].is_running() && bench.sides[0].report().found);
    assert_eq!(bench.open[0].len(), 1);
    let winner = *bench.open[0].first().unwrap();
    assert!(bench.sides[0].heard(bench.now, winner), "it goes on being one to keep to");
    assert_eq!(bench.sides[0].sockets().collect::<Vec<_>>(), [winner]);
    // It carries data while the next attempt runs, and is closed when another path does.
    let attempt =
        Attempt { plan: Plan::Hard { step: 0 }, target: bench.seen[1], is_first: true, sockets: HARD_SOCKETS };
    bench.sides[0].begin(bench.now, attempt, winner, &mut bench.rng);
    bench.carry_out(0);
    assert!(bench.open[0].contains(&winner));
    bench.sides[0].connected(bench.now, SocketId::MAIN);
    bench.carry_out(0);
    assert!(bench.open[0].is_empty());
}

#[test]
fn a_host_without_sockets_to_spare_gives_up_in_time() {
    let mut side = HardNat::new();
    let target = SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 1), 5000);
    let attempt = Attempt { plan: Plan::Hard { step: 0 }, target, is_first: true, sockets: 256 };
    side.begin(Time::ZERO, attempt, SocketId::MAIN, &mut TestRng::new(1));
    side.handle_timeout(Time::ZERO, 4);
    assert!(std::iter::from_fn(|| side.poll_output()).any(|output| output == Output::OpenSockets(256)));
    side.sockets_opened(Time::ZERO, Vec::new());
    let mut now = Time::ZERO;
    while let Some(at) = side.poll_timeout() {
        now = at;
        side.handle_timeout(now, 4);
    }
    assert_eq!(now, Time::ZERO + ATTEMPT_LIFE);
    assert!(!side.report().found && side.report().probes == 2, "{:?}", side.report());
    // What is opened when nobody wants it any more is closed.
    while side.poll_output().is_some() {}
    side.sockets_opened(now, vec![SocketId::new(1)]);
    assert_eq!(side.poll_output(), Some(Output::CloseSockets(vec![SocketId::new(1)])));
}

#[test]
fn attempts_follow_each_other_ever_more_slowly() {
    let mut side = HardNat::new();
    let mut now = Time::from_origin(Duration::from_secs(5));
    assert_eq!(side.poll_begin(now, true), Some(now + SETTLE));
    assert_eq!(side.poll_begin(now + MS * 300, true), Some(now + SETTLE), "it is counted from the first time");
    assert_eq!(side.poll_begin(now, false), None);
    assert_eq!(side.poll_begin(now + MS, true), Some(now + MS + SETTLE));
    let target = SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 1), 5000);
    let attempt = Attempt { plan: Plan::Easy { step: 0 }, target, is_first: true, sockets: 256 };
    let mut waits = Vec::new();
    for _ in 0..8 {
        side.begin(now, attempt, SocketId::MAIN, &mut TestRng::new(1));
        assert_eq!(side.poll_begin(now, true), None, "one at a time");
        side.handle_timeout(now + ATTEMPT_LIFE, 4);
        let next = side.poll_begin(now + ATTEMPT_LIFE, true).unwrap();
        waits.push(next.since(now).as_secs() / 60);
        now = next;
    }
    assert_eq!(waits, [1, 2, 4, 8, 16, 30, 30, 30]);
    side.network_changed(now);
    assert_eq!(side.poll_begin(now, true), Some(now + SETTLE));
}

#[test]
fn the_peer_can_ask_for_an_attempt_now_and_then() {
    let mut side = HardNat::new();
    let now = Time::from_origin(Duration::from_secs(5));
    let target = SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 1), 5000);
    let attempt = Attempt { plan: Plan::Easy { step: 0 }, target, is_first: true, sockets: 256 };
    side.begin(now, attempt, SocketId::MAIN, &mut TestRng::new(1));
    side.may_have_changed(now + MS, false);
    assert!(side.is_running(), "it may be this attempt that made it speak");
    let end = now + ATTEMPT_LIFE;
    side.handle_timeout(end, 4);
    side.may_have_changed(end, false);
    assert_eq!(side.poll_begin(end, true), Some(now + RETRY_FIRST), "not again so soon");
    let later = now + ASKED_INTERVAL;
    side.may_have_changed(later, false);
    assert_eq!(side.poll_begin(later, true), Some(later + SETTLE));
    // It moves: what runs is aimed at where it was.
    side.begin(later, attempt, SocketId::MAIN, &mut TestRng::new(1));
    side.may_have_changed(later + MS, true);
    assert!(!side.is_running());
    assert_eq!(side.poll_begin(later + MS, true), Some(later + ASKED_INTERVAL + SETTLE));
}

#[test]
fn of_several_ports_the_one_given_out_last_counts() {
    let at = |ports: &[u16]| -> Vec<SocketAddrV4> {
        ports.iter().map(|port| SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 1), *port)).collect()
    };
    let last = |step, ports: &[u16]| last_seen(Plan::Easy { step }, &at(ports)).unwrap().port();
    assert_eq!(last(1, &[5000, 5002, 5001]), 5002);
    assert_eq!(last(-1, &[5000, 5002, 4999]), 4999);
    assert_eq!(last(2, &[65_534, 1030, 65_532]), 1030);
    assert_eq!(last(0, &[5000, 5002]), 5000);
    let mut elsewhere = at(&[5000]);
    elsewhere.push(SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 2), 6000));
    assert_eq!(last_seen(Plan::Easy { step: 1 }, &elsewhere), elsewhere.first().copied());
    assert_eq!(last_seen(Plan::Easy { step: 1 }, &[]), None);
}

#[test]
fn no_port_is_sent_to_in_vain() {
    let ports = easy_ports(5000, 3, &mut TestRng::new(1));
    assert_eq!(ports.len(), 1152);
    let distinct: HashSet<u16> = ports.iter().map(|(_, port)| *port).collect();
    assert_eq!(distinct.len(), 64 + 1024);
    assert!(!distinct.contains(&5000));
    assert_eq!(ports[..3].iter().map(|(_, port)| *port).collect::<Vec<_>>(), [5003, 5006, 5009]);
    for is_first in [false, true] {
        let ports: Vec<u16> = paired_ports(5000, 1, is_first).iter().map(|(_, port)| *port).collect();
        assert!(ports.is_sorted_by(|a, b| a < b), "a second probe to one port would make no mapping");
    }
}

#[derive(Debug, Clone)]
enum Act {
    Begin(Mapping, Mapping, bool),
    Wait(u16),
    Opened(u8),
    Heard(u8),
    Connected(u8),
    MayHaveChanged(bool),
    NetworkChanged,
    Stop,
}

fn any_mapping() -> impl Strategy<Value = Mapping> {
    prop_oneof![Just(Mapping::Unknown), Just(INDEPENDENT), Just(RANDOM), any::<i16>().prop_map(counting)]
}

fn any_act() -> impl Strategy<Value = Act> {
    prop_oneof![
        (any_mapping(), any_mapping(), any::<bool>()).prop_map(|(own, theirs, first)| Act::Begin(own, theirs, first)),
        (0u16..3000).prop_map(Act::Wait),
        (0u8..20).prop_map(Act::Opened),
        any::<u8>().prop_map(Act::Heard),
        any::<u8>().prop_map(Act::Connected),
        any::<bool>().prop_map(Act::MayHaveChanged),
        Just(Act::NetworkChanged),
        Just(Act::Stop),
    ]
}

proptest! {
    #[test]
    fn ports_stay_among_those_given_out(last: u16, step: i16, count in 0u16..2000) {
        prop_assert!(port_ahead(last, step, count) >= 1024);
    }

    /// Whatever happens, every socket that was opened is known or closed once, and probes leave from open ones.
    #[test]
    fn no_socket_is_lost(acts in proptest::collection::vec(any_act(), 0..60)) {
        let mut side = HardNat::new();
        let (mut now, mut rng, mut number) = (Time::ZERO, TestRng::new(1), 0);
        let mut open: BTreeSet<SocketId> = BTreeSet::new();
        let target = SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 1), 5000);
        let pick = |open: &BTreeSet<SocketId>, n: u8| open.iter().nth(usize::from(n) % 8).copied().unwrap_or_default();
        for act in acts {
            match act {
                Act::Begin(own, theirs, is_first) => {
                    let attempt = Attempt { plan: Plan::new(own, theirs), target, is_first, sockets: 20 };
                    side.begin(now, attempt, pick(&open, 0), &mut rng);
                }
                Act::Wait(ms) => now = now + MS * u32::from(ms),
                Act::Opened(count) => {
                    let opened: Vec<_> = (0..count).map(|n| SocketId::new(number + 1 + u16::from(n))).collect();
                    number += u16::from(count);
                    open.extend(&opened);
                    side.sockets_opened(now, opened);
                }
                Act::Heard(n) => {
                    side.heard(now, pick(&open, n));
                }
                Act::Connected(n) => side.connected(now, pick(&open, n)),
                Act::MayHaveChanged(moved) => side.may_have_changed(now, moved),
                Act::NetworkChanged => side.network_changed(now),
                Act::Stop => side.stop(now),
            }
            if side.poll_timeout().is_some_and(|at| at <= now) {
                prop_assert!(side.due(now) <= PER_TICK);
                side.handle_timeout(now, PER_TICK);
                prop_assert!(side.poll_timeout().is_none_or(|at| at > now), "it would spin");
            }
            while let Some(output) = side.poll_output() {
                match output {
                    Output::OpenSockets(count) => prop_assert!(count <= 20),
                    Output::CloseSockets(sockets) => {
                        for socket in sockets {
                            prop_assert!(open.remove(&socket));
                        }
                    }
                    Output::Probe { socket, .. } => prop_assert!(socket.is_main() || open.contains(&socket)),
                }
            }
            prop_assert_eq!(&side.sockets().collect::<BTreeSet<_>>(), &open);
        }
    }
}
