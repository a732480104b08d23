//! Sessions over time: they are renewed, end when idle, come back on demand and after restarts.

use std::time::Duration;

use agentnet::api::PathKind;
use agentnet::node::{Command, Event};
use agentnet_sim::{HostOptions, World, packet};

const SECOND: Duration = Duration::from_secs(1);

fn path(world: &World, host: usize) -> PathKind {
    world.hosts[host].node.peer_statuses(world.now())[0].path.kind
}

#[test]
fn the_first_packets_wait_for_the_session() {
    let mut world = World::new(2);
    world.trust(0, 1);
    world.advance(SECOND * 600);
    assert_eq!(path(&world, 0), PathKind::None);
    assert!(world.carries_ipv6(0, 1));
    assert_eq!(path(&world, 0), PathKind::Direct);
}

#[test]
fn an_hour_of_traffic_loses_nothing() {
    let mut world = World::new(2);
    world.trust(0, 1);
    for i in 0..720 {
        assert!(world.carries_ipv6(0, 1), "packet {i}");
        assert!(world.carries_ipv6(1, 0), "packet {i}");
        world.advance(SECOND * 5);
    }
    let handshakes = world.hosts[0].counters.handshakes.get();
    assert!((25..=40).contains(&handshakes), "{handshakes} handshakes in an hour");
}

#[test]
fn traffic_in_one_direction_only_is_renewed_too() {
    for (from, to) in [(0, 1), (1, 0)] {
        let mut world = World::new(2);
        world.trust(0, 1);
        for i in 0..600 {
            assert!(world.carries_ipv6(from, to), "packet {i} from {from}");
            world.advance(SECOND);
        }
    }
}

#[test]
fn bursts_after_any_pause_arrive() {
    let mut world = World::new(2);
    world.trust(0, 1);
    for pause in [1, 9, 10, 15, 16, 60, 119, 121, 164, 166, 179, 180, 181, 300, 539, 540, 541, 3600] {
        world.advance(SECOND * pause);
        assert!(world.carries_ipv6(0, 1), "after {pause} s");
        world.advance(SECOND * pause);
        assert!(world.carries_ipv6(1, 0), "after {pause} s, other way");
    }
}

#[test]
fn a_session_answered_after_a_long_silence_is_as_good_as_any() {
    for (from, to) in [(0, 1), (1, 0)] {
        let mut world = World::new(2);
        world.trust(0, 1);
        for silence in [5, 175, 200, 400, 600, 3_600] {
            world.advance(SECOND * silence);
            assert!(world.carries_ipv6(from, to), "after {silence} s");
            world.advance(SECOND);
            let before = world.hosts[to].counters.handshakes.get();
            for _ in 0..20 {
                assert!(world.carries_ipv6(from, to) && world.carries_ipv6(to, from), "after {silence} s");
                world.advance(SECOND);
            }
            let made = world.hosts[to].counters.handshakes.get() - before;
            assert_eq!(made, 0, "{from} to {to} after {silence} s: the session was given up");
        }
    }
}

#[test]
fn idle_agents_sleep() {
    let mut world = World::new(2);
    world.trust(0, 1);
    world.advance(SECOND * 10);
    // Each wakes up for a probe every ten seconds while it may still be wanted, for what that brings, and every second
    // for its session.
    let wakeups = world.advance(SECOND * 60);
    assert!(wakeups < 400, "two agents without traffic woke up {wakeups} times in a minute");
    world.advance(SECOND * 530);
    let wakeups = world.advance(SECOND * 3600);
    assert_eq!(wakeups, 0, "two idle agents woke up {wakeups} times in an hour");
}

#[test]
fn a_restarted_agent_is_back_at_once() {
    let mut world = World::new(2);
    world.trust(0, 1);
    for host in [0, 1] {
        world.restart(host);
        assert_eq!((path(&world, 0), path(&world, 1)), (PathKind::Direct, PathKind::Direct));
        assert!(world.carries_ipv6(0, 1) && world.carries_ipv6(1, 0));
        assert!(world.carries_ipv4(0, 1) && world.carries_ipv4(1, 0));
        world.advance(SECOND * 3);
    }
    world.restart(0);
    world.restart(1);
    assert!(world.carries_ipv6(0, 1) && world.carries_ipv6(1, 0));
}

#[test]
fn a_peer_that_was_away_is_reached_when_it_comes_back() {
    let mut world = World::new(2);
    world.trust(0, 1);
    world.net.set_drop_rule(|_, _, _| true);
    for _ in 0..40 {
        assert!(!world.carries_ipv6(0, 1));
        world.advance(SECOND * 10);
    }
    let why = world.hosts[0].node.why(world.now(), "host1").unwrap();
    assert!(why.reason_code.starts_with("no_answer"), "{why:?}");
    world.net.clear_drop_rule();
    world.advance(SECOND * 6);
    assert!(world.carries_ipv6(0, 1) && world.carries_ipv6(1, 0));
}

#[test]
fn lost_handshakes_cost_less_than_the_library_s_five_seconds() {
    for lost in 1..=4 {
        let mut world = World::new(2);
        world.trust(0, 1);
        world.advance(SECOND * 600);
        let mut left = lost;
        world.net.set_drop_rule(move |_, _, datagram| {
            let handshake = matches!(datagram.first(), Some(1 | 2));
            if handshake && left > 0 {
                left -= 1;
                return true;
            }
            false
        });
        assert!(!world.carries_ipv6(0, 1));
        world.advance(Duration::from_millis(2200));
        let delivered = world.hosts[1].take_delivered();
        assert_eq!(delivered.len(), 1, "after {lost} lost handshake messages");
    }
}

#[test]
fn a_recorded_handshake_gets_no_answer_after_a_restart() {
    let mut world = World::new(2);
    world.trust(0, 1);
    world.advance(SECOND * 600);
    world.hosts[0].sent.clear();
    assert!(world.carries_ipv6(0, 1));
    let recorded: Vec<_> = world.hosts[0].sent.iter().filter(|(_, datagram)| datagram[0] == 1).cloned().collect();
    assert_eq!(recorded.len(), 1);
    world.advance(SECOND * 600);
    world.restart(1);
    world.advance(SECOND * 600);
    let (attacker, target, true_peer) = (world.add_outsider(), world.address(1), world.address(0));
    world.hosts[1].sent.clear();
    world.outsider_sends(attacker, target, &recorded[0].1);
    world.settle();
    assert_eq!(world.hosts[1].counters.drop_handshake_replay.get(), 1);
    assert!(world.hosts[1].sent.iter().all(|(to, _)| *to == true_peer), "only the true peer hears of it");
}

#[test]
fn ping_measures_and_gives_up() {
    let mut world = World::new(2);
    world.trust(0, 1);
    world.advance(SECOND * 600);
    let ping = |token| Command::Ping { token, peer: "host1".into(), timeout: SECOND * 3 };
    world.command(0, ping(1)).unwrap();
    assert!(matches!(world.hosts[0].events.as_slice(), [Event::Ping { token: 1, result: Ok(_) }]));
    world.net.set_drop_rule(|_, _, _| true);
    world.command(0, ping(2)).unwrap();
    world.advance(SECOND * 3);
    assert!(matches!(world.hosts[0].events.as_slice(), [_, Event::Ping { token: 2, result: Err(_) }]));
}

#[test]
fn hosts_with_different_alias_ranges_understand_each_other() {
    let mut world = World::new(1);
    let other = world.add_host(HostOptions { ipv4_range: "198.18.0.0/15".parse().ok(), ..HostOptions::default() });
    let none = world.add_host(HostOptions { ipv4_range: None, ..HostOptions::default() });
    world.trust(0, other);
    world.trust(0, none);
    assert!(world.carries_ipv4(0, other) && world.carries_ipv4(other, 0));
    assert!(world.carries_ipv6(0, none) && world.carries_ipv6(none, 0));
    world.restart(other);
    assert!(world.carries_ipv4(0, other) && world.carries_ipv4(other, 0));
}

#[test]
fn a_program_that_talks_to_nobody_is_told() {
    let mut world = World::new(1);
    let own = world.hosts[0].node.ipv6();
    let nobody = "fd61:6e74::1".parse().unwrap();
    world.send(0, &packet::udp(own.into(), nobody, 1, 2, b"hello?"));
    let errors = world.hosts[0].take_delivered();
    assert_eq!(errors.len(), 1);
    // Destination unreachable (RFC 4443, section 3.1).
    assert_eq!((errors[0][6], errors[0][40]), (58, 1));
}

#[test]
fn a_goodbye_ends_the_session_and_the_next_packet_asks_again() {
    let mut world = World::new(2);
    world.trust(0, 1);
    let now = world.now();
    world.hosts[1].node.shut_down(now);
    world.settle();
    assert_eq!(path(&world, 0), PathKind::None);
    let why = world.hosts[0].node.why(world.now(), "host1").unwrap();
    assert_eq!(why.reason_code, "peer_stopped");
    world.restart(1);
    assert!(world.carries_ipv6(0, 1));
}
