use std::net::SocketAddr;

use super::probed::BURST;
use super::*;
use crate::identity::IdentityKey;
use crate::identity::test_rng::TestRng;

/// A network in which each route has a round trip, or none while it is down.
struct Bench {
    set: PathSet,
    now: Time,
    rng: TestRng,
    routes: Vec<(Route, Option<Duration>)>,
    /// Probes under way: when the answer arrives, and which.
    answers: Vec<(Time, u64, Route)>,
    probes: usize,
    primaries: Vec<(Time, Route)>,
    lost: usize,
    doubts: usize,
    rests: Vec<Route>,
}

const MS: Duration = Duration::from_millis(1);

fn direct(address: &str) -> Route {
    Route::Direct(address.parse::<SocketAddr>().unwrap())
}

fn relay() -> Route {
    Route::Relayed(IdentityKey::from_seed([1; 32]).id())
}

fn host(route: Route) -> Candidate {
    let kind = if route.is_relayed() { CandidateKind::Relayed } else { CandidateKind::Host };
    Candidate { kind, route }
}

impl Bench {
    fn new(routes: &[(Route, Option<u32>)]) -> Self {
        let mut bench = Self {
            set: PathSet::new(),
            now: Time::ZERO + Duration::from_secs(1),
            rng: TestRng::new(1),
            routes: routes.iter().map(|(route, rtt)| (*route, rtt.map(|ms| MS * ms))).collect(),
            answers: Vec::new(),
            probes: 0,
            primaries: Vec::new(),
            lost: 0,
            doubts: 0,
            rests: Vec::new(),
        };
        bench.set.network_changed(bench.now);
        let candidates: Vec<_> = routes.iter().map(|(route, _)| host(*route)).collect();
        bench.set.add_candidates(bench.now, candidates);
        bench
    }

    fn change(&mut self, route: Route, rtt: Option<u32>) {
        for (known, state) in &mut self.routes {
            if *known == route {
                *state = rtt.map(|ms| MS * ms);
            }
        }
    }

    fn rtt(&self, route: Route) -> Option<Duration> {
        self.routes.iter().find(|(known, _)| *known == route).and_then(|(_, rtt)| *rtt)
    }

    /// Lets time pass in steps of 10 ms. Every `traffic` a packet is sent on the primary path and echoed if it works.
    fn run(&mut self, duration: Duration, traffic: Option<Duration>) {
        let end = self.now + duration;
        while self.now < end {
            self.now = self.now + MS * 10;
            let elapsed = self.now.since_origin().as_millis();
            if traffic.is_some_and(|every| elapsed.is_multiple_of(every.as_millis())) {
                let echoed = self.set.primary().and_then(|route| self.rtt(route)).is_some();
                self.set.traffic(self.now, true, echoed);
            }
            while let Some(position) = self.answers.iter().position(|(at, ..)| *at <= self.now) {
                let (_, token, route) = self.answers.remove(position);
                self.set.probe_answered(self.now, token, route, false);
            }
            if self.set.poll_timeout().is_some_and(|at| at <= self.now) {
                self.set.handle_timeout(self.now, &mut self.rng);
            }
            self.drain();
        }
    }

    fn drain(&mut self) {
        while let Some(output) = self.set.poll_output() {
            match output {
                Output::Probe { route, token } => {
                    self.probes += 1;
                    if let Some(rtt) = self.rtt(route) {
                        self.answers.push((self.now + rtt, token, route));
                    }
                }
                Output::Primary(route) => self.primaries.push((self.now, route)),
                Output::Rest(route) => self.rests.push(route),
                Output::Doubted => self.doubts += 1,
                Output::Lost => self.lost += 1,
            }
        }
    }
}

#[test]
fn the_best_answering_path_becomes_primary() {
    let (near, far, dead) = (direct("192.0.2.1:1"), direct("192.0.2.2:1"), direct("192.0.2.3:1"));
    let mut bench = Bench::new(&[(dead, None), (far, Some(80)), (near, Some(20)), (relay(), Some(10))]);
    bench.run(MS * 500, Some(MS * 50));
    assert_eq!(bench.set.primary(), Some(near));
    // The relay answers first and carries data until something better is there.
    assert_eq!(bench.primaries.first().map(|(_, route)| *route), Some(relay()));
}

#[test]
fn a_silent_death_is_noticed_within_a_second() {
    let (wifi, lan) = (direct("192.0.2.1:1"), direct("[2001:db8::1]:1"));
    let mut bench = Bench::new(&[(wifi, Some(20)), (lan, Some(60)), (relay(), Some(40))]);
    bench.run(Duration::from_secs(5), Some(MS * 10));
    assert_eq!(bench.set.primary(), Some(wifi));
    let died = bench.now;
    bench.change(wifi, None);
    bench.primaries.clear();
    bench.run(Duration::from_secs(2), Some(MS * 10));
    let (at, route) = bench.primaries[0];
    assert_eq!(route, lan, "direct goes before relayed");
    assert!(at.since(died) < Duration::from_secs(1), "{:?}", at.since(died));
}

#[test]
fn without_any_direct_path_the_relay_carries_on_and_the_way_back_is_found() {
    let path = direct("192.0.2.1:1");
    let mut bench = Bench::new(&[(path, Some(20)), (relay(), Some(40))]);
    bench.run(Duration::from_secs(5), Some(MS * 10));
    bench.change(path, None);
    bench.run(Duration::from_secs(2), Some(MS * 10));
    assert_eq!(bench.set.primary(), Some(relay()));
    bench.change(path, Some(20));
    bench.run(Duration::from_secs(25), Some(MS * 10));
    assert_eq!(bench.set.primary(), Some(path));
}

#[test]
fn nothing_left_is_said_once_per_attempt_and_recovers() {
    let path = direct("192.0.2.1:1");
    let mut bench = Bench::new(&[(path, Some(20))]);
    bench.run(Duration::from_secs(2), Some(MS * 10));
    bench.change(path, None);
    bench.run(Duration::from_secs(3), Some(MS * 10));
    assert_eq!(bench.lost, 1);
    assert!(bench.probes < 60, "{} probes", bench.probes);
    assert_eq!(bench.set.primary(), Some(path), "data keeps going somewhere");
    bench.change(path, Some(20));
    bench.run(Duration::from_secs(1), Some(MS * 10));
    assert!(bench.set.report().any(|path| path.state == PathState::Working));
}

#[test]
fn one_way_traffic_is_no_reason_to_leave_a_path() {
    let (near, far) = (direct("192.0.2.1:1"), direct("192.0.2.2:1"));
    let dead = (2..=9).map(|n| (direct(&format!("192.0.2.1{n}:1")), None));
    let routes: Vec<_> = dead.chain([(near, Some(20)), (far, Some(90))]).collect();
    let mut bench = Bench::new(&routes);
    bench.run(Duration::from_secs(1), Some(MS * 10));
    bench.probes = 0;
    bench.primaries.clear();
    for _ in 0..1000 {
        bench.set.traffic(bench.now, true, false);
        bench.run(MS * 10, None);
    }
    assert_eq!(bench.primaries, []);
    assert_eq!(bench.lost, 0);
    assert!(bench.probes < 100, "{} probes in 11 s", bench.probes);
}

#[test]
fn a_little_jitter_does_not_change_paths() {
    let (a, b) = (direct("192.0.2.1:1"), direct("192.0.2.2:1"));
    let mut bench = Bench::new(&[(a, Some(50)), (b, Some(52))]);
    bench.run(Duration::from_secs(2), Some(MS * 100));
    let changes = bench.primaries.len();
    for second in 0..120 {
        bench.change(a, Some(50 + second % 7));
        bench.change(b, Some(50 + (second + 3) % 7));
        bench.run(Duration::from_secs(1), Some(MS * 100));
    }
    assert_eq!(bench.primaries.len(), changes);
}

#[test]
fn probes_are_few() {
    let mut routes: Vec<_> = (1..=15).map(|n| (direct(&format!("192.0.2.{n}:1")), None)).collect();
    routes.push((direct("192.0.2.100:1"), Some(20)));
    let mut bench = Bench::new(&routes);
    bench.run(Duration::from_secs(10), Some(MS * 100));
    assert!(bench.probes <= 16 * BURST.len(), "{} probes in the first 10 s", bench.probes);
    bench.probes = 0;
    bench.run(Duration::from_secs(3600), Some(Duration::from_secs(1)));
    // The primary every 10 s, 15 that never answer every 300 s.
    assert!(bench.probes < 360 + 15 * 20, "{} probes in an hour", bench.probes);
}

#[test]
fn an_idle_peer_costs_nothing() {
    let path = direct("192.0.2.1:1");
    let mut bench = Bench::new(&[(path, Some(20)), (relay(), None)]);
    bench.run(Duration::from_secs(60), None);
    assert_eq!(bench.set.poll_timeout(), None);
    bench.probes = 0;
    bench.run(Duration::from_secs(600), None);
    assert_eq!(bench.probes, 0);
    // And is measured again when it is wanted again.
    bench.run(Duration::from_secs(1), Some(MS * 100));
    assert!(bench.probes > 0);
}

#[test]
fn an_address_packets_come_from_is_tried() {
    let (listed, real) = (direct("192.0.2.1:1"), direct("198.51.100.7:999"));
    let mut bench = Bench::new(&[(listed, None)]);
    bench.routes.push((real, Some(MS * 30)));
    bench.set.packet_received(bench.now, real);
    bench.run(MS * 200, Some(MS * 50));
    assert_eq!(bench.set.primary(), Some(real));
    let report = bench.set.report().find(|path| path.candidate.route == real).unwrap();
    assert_eq!((report.candidate.kind, report.state), (CandidateKind::PeerReflexive, PathState::Working));
}

#[test]
fn the_table_is_bounded_and_keeps_what_works() {
    let good = direct("192.0.2.1:1");
    let mut bench = Bench::new(&[(good, Some(20))]);
    bench.run(Duration::from_secs(1), Some(MS * 50));
    for n in 0..1000u16 {
        let route = Route::Direct(SocketAddr::from(([203, 0, 113, 1], 1000 + n)));
        bench.set.packet_received(bench.now, route);
        bench.run(MS * 10, Some(MS * 10));
    }
    assert_eq!(bench.set.report().count(), MAX_PATHS);
    assert_eq!(bench.set.primary(), Some(good));
}

#[test]
fn forged_answers_prove_nothing() {
    let path = direct("192.0.2.1:1");
    let mut bench = Bench::new(&[(path, None)]);
    bench.run(MS * 100, Some(MS * 50));
    bench.set.probe_answered(bench.now, 12345, path, false);
    bench.drain();
    assert_eq!(bench.set.primary(), None);
}

#[test]
fn an_idle_peer_rests_on_the_relay_and_comes_back_with_the_first_proof() {
    let near = direct("192.0.2.1:1");
    let mut bench = Bench::new(&[(near, Some(20)), (relay(), Some(40))]);
    bench.run(MS * 5_000, Some(MS * 50));
    assert_eq!((bench.set.primary(), bench.rests.len()), (Some(near), 0));
    bench.run(MS * 60_000, None);
    assert_eq!((bench.set.primary(), bench.rests.as_slice()), (Some(near), [relay()].as_slice()));
    assert_eq!(bench.set.poll_timeout(), None, "resting costs nothing");
    let before = bench.primaries.len();
    bench.run(MS * 200, Some(MS * 50));
    assert_eq!(bench.primaries[before..].iter().map(|(_, route)| *route).collect::<Vec<_>>(), [near]);
}

#[test]
fn a_path_that_died_in_a_pause_is_left_at_once() {
    let near = direct("192.0.2.1:1");
    let mut bench = Bench::new(&[(near, Some(20)), (relay(), Some(40))]);
    bench.run(MS * 5_000, Some(MS * 50));
    bench.run(MS * 60_000, None);
    bench.change(near, None);
    bench.run(MS * 2_000, Some(MS * 50));
    // The way back is through the relay as well, so nothing was lost, and nothing hurried.
    assert_eq!(bench.set.primary(), Some(relay()));
}

#[test]
fn a_path_that_takes_some_probes_to_open_anew_after_a_pause_gets_them() {
    let path = direct("192.0.2.1:1");
    let mut bench = Bench::new(&[(path, Some(20)), (relay(), Some(40))]);
    bench.run(Duration::from_secs(5), Some(MS * 50));
    bench.run(Duration::from_secs(200), None);
    // Its first probes open this side's NAT only.
    bench.change(path, None);
    bench.run(MS * 100, Some(MS * 50));
    assert!(!bench.set.has_direct(bench.now));
    bench.change(path, Some(20));
    bench.run(MS * 400, Some(MS * 50));
    assert!(bench.set.has_direct(bench.now));
}

#[test]
fn a_new_list_of_candidates_replaces_what_does_not_work() {
    let (dead, near, moved) = (direct("192.0.2.3:1"), direct("192.0.2.1:1"), direct("192.0.2.4:1"));
    let mut bench = Bench::new(&[(dead, None), (near, Some(20)), (moved, Some(30))]);
    bench.set = PathSet::new();
    bench.set.network_changed(bench.now);
    bench.set.add_candidates(bench.now, [host(dead), host(near)]);
    bench.run(MS * 500, Some(MS * 50));
    bench.set.candidates_received(bench.now, [host(moved)]);
    bench.run(MS * 500, Some(MS * 50));
    let known: Vec<_> = bench.set.report().map(|path| (path.candidate.route, path.state)).collect();
    assert_eq!(known, [(near, PathState::Working), (moved, PathState::Working)]);
}

#[test]
fn a_doubt_that_a_probe_does_not_settle_is_said_once() {
    let near = direct("192.0.2.1:1");
    let mut bench = Bench::new(&[(near, Some(20)), (relay(), Some(40))]);
    bench.run(MS * 1_000, Some(MS * 50));
    bench.change(near, None);
    bench.change(relay(), None);
    bench.run(MS * 450, Some(MS * 50));
    // Nothing answers at all, so it may be this agent that moved; said once.
    assert_eq!((bench.doubts, bench.set.primary()), (1, Some(near)));
}

#[test]
fn a_rival_that_answers_shortens_the_doubt() {
    let near = direct("192.0.2.1:1");
    let mut bench = Bench::new(&[(near, Some(20)), (relay(), Some(40))]);
    bench.run(MS * 1_000, Some(MS * 50));
    bench.change(near, None);
    bench.run(MS * 1_000, Some(MS * 50));
    let loss = bench.set.last_loss().unwrap();
    assert_eq!((loss.route, bench.set.primary()), (near, Some(relay())));
    assert!(loss.gap.is_some_and(|gap| (MS * 400..MS * 500).contains(&gap)), "{loss:?}");
}

#[test]
fn a_peer_that_moved_is_followed_at_once_where_the_way_is_proved() {
    let (near, moved) = (direct("192.0.2.1:1"), direct("192.0.2.4:1"));
    let mut bench = Bench::new(&[(near, Some(20)), (relay(), Some(40)), (moved, Some(20))]);
    bench.set = PathSet::new();
    bench.set.network_changed(bench.now);
    bench.set.add_candidates(bench.now, [host(near), host(relay())]);
    bench.run(MS * 2_000, Some(MS * 50));
    bench.change(near, None);
    bench.set.peer_moved(bench.now, relay());
    assert_eq!(bench.set.primary(), Some(relay()));
    // A way nobody knows must prove itself first: a round trip.
    bench.set.peer_moved(bench.now, moved);
    assert_eq!(bench.set.primary(), Some(relay()));
    bench.run(MS * 40, Some(MS * 50));
    assert_eq!(bench.set.primary(), Some(moved));
}

#[test]
fn a_path_that_was_proved_lately_is_asked_before_the_peer_is_followed() {
    let near = direct("192.0.2.1:1");
    for dies in [false, true] {
        let mut bench = Bench::new(&[(near, Some(20)), (relay(), Some(40))]);
        bench.run(MS * 500, Some(MS * 50));
        bench.primaries.clear();
        if dies {
            bench.change(near, None);
        }
        for _ in 0..20 {
            bench.set.peer_moved(bench.now, relay());
            bench.run(MS * 10, Some(MS * 50));
        }
        let expected = if dies { vec![relay()] } else { Vec::new() };
        assert_eq!(bench.primaries.iter().map(|(_, route)| *route).collect::<Vec<_>>(), expected);
    }
}

#[test]
fn a_better_way_that_the_peer_takes_is_taken_at_once() {
    let near = direct("192.0.2.1:1");
    let mut bench = Bench::new(&[(relay(), Some(40))]);
    bench.run(MS * 2_000, Some(MS * 50));
    bench.routes.push((near, Some(MS * 40)));
    bench.set.peer_moved(bench.now, near);
    assert_eq!(bench.set.primary(), Some(relay()));
    bench.run(MS * 60, Some(MS * 50));
    assert_eq!(bench.set.primary(), Some(near));
}

#[test]
fn of_two_that_disagree_about_equal_ways_one_gives_in_first() {
    for (leads, gives_in_after) in [(false, 1..2), (true, 3..4)] {
        let (mine, theirs) = (direct("192.0.2.1:1"), direct("192.0.2.2:1"));
        let mut bench = Bench::new(&[(mine, Some(20)), (theirs, Some(21))]);
        bench.set = std::mem::take(&mut bench.set).leading(leads);
        bench.run(MS * 500, Some(MS * 50));
        assert_eq!(bench.set.primary(), Some(mine));
        bench.primaries.clear();
        (bench.probes, bench.lost) = (0, 0);
        let start = bench.now;
        while bench.primaries.is_empty() {
            bench.set.peer_moved(bench.now, theirs);
            bench.run(MS * 10, Some(MS * 50));
        }
        assert_eq!(bench.set.primary(), Some(theirs));
        assert!(gives_in_after.contains(&bench.now.since(start).as_secs()), "{:?}", bench.now.since(start));
        assert!(bench.probes < 60, "{} probes", bench.probes);
    }
}

#[test]
fn after_a_move_the_first_path_that_answers_carries_data() {
    let near = direct("192.0.2.1:1");
    let mut bench = Bench::new(&[(near, Some(20)), (relay(), Some(40))]);
    bench.run(MS * 1_000, Some(MS * 50));
    bench.change(near, None);
    bench.set.host_moved(bench.now);
    bench.run(MS * 60, Some(MS * 50));
    assert_eq!(bench.set.primary(), Some(relay()));
}
