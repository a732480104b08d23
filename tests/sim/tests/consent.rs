//! No IP packet passes before both agreed, and who is not trusted gets no answer at all.

use std::time::Duration;

use agentnet::api::{TrustState, Verdict};
use agentnet::identity::TunnelSecret;
use agentnet::node::Command;
use agentnet::time::Time;
use agentnet::tunnel::{Tunnel, TunnelIndex};
use agentnet_sim::{World, packet};

fn id(world: &World, host: usize) -> String {
    world.hosts[host].node.id().to_string()
}

#[test]
fn trust_is_asked_for_given_and_used() {
    let mut world = World::new(2);
    world.request(0, 1, None, None);
    assert_eq!((world.trust_state(0, 1), world.trust_state(1, 0)), (TrustState::Requested, TrustState::Pending));
    assert!(!world.carries_ipv6(0, 1) && !world.carries_ipv6(1, 0));
    let asker = id(&world, 0);
    world.command(1, Command::TrustApprove(asker)).unwrap();
    assert_eq!((world.trust_state(0, 1), world.trust_state(1, 0)), (TrustState::Trusted, TrustState::Trusted));
    assert!(world.carries_ipv6(0, 1) && world.carries_ipv6(1, 0));
    assert!(world.carries_ipv4(0, 1) && world.carries_ipv4(1, 0));
    let why = world.hosts[0].node.why(world.now(), "host1").unwrap();
    assert_eq!((why.verdict, why.reason_code.as_str()), (Verdict::Direct, "ok"));
}

#[test]
fn nobody_who_is_not_trusted_gets_an_answer() {
    let mut world = World::new(2);
    let asker = id(&world, 0);
    // Asked and undecided.
    world.request(0, 1, None, None);
    world.advance(Duration::from_secs(300));
    assert_eq!(world.hosts[1].sent, []);
    // Rejected.
    world.command(1, Command::TrustReject(asker.clone())).unwrap();
    world.advance(Duration::from_secs(300));
    world.request(0, 1, None, None);
    world.advance(Duration::from_secs(300));
    assert_eq!(world.hosts[1].sent, []);
    assert!(world.hosts[1].counters.drop_introduction_refused.get() > 0);
    // Revoked: the goodbye is the last word.
    world.command(1, Command::TrustApprove(asker.clone())).unwrap();
    assert!(world.carries_ipv6(0, 1));
    world.command(1, Command::TrustRevoke(asker)).unwrap();
    world.hosts[1].sent.clear();
    assert_eq!((world.trust_state(0, 1), world.trust_state(1, 0)), (TrustState::Requested, TrustState::Revoked));
    assert!(!world.carries_ipv6(0, 1) && !world.carries_ipv6(1, 0));
    world.advance(Duration::from_secs(300));
    world.request(0, 1, None, None);
    world.advance(Duration::from_secs(300));
    assert_eq!(world.hosts[1].sent, []);
}

#[test]
fn consent_taken_back_is_given_again_by_asking() {
    let mut world = World::new(2);
    world.trust(0, 1);
    let peer = id(&world, 1);
    world.command(0, Command::TrustRevoke(peer)).unwrap();
    assert_eq!((world.trust_state(0, 1), world.trust_state(1, 0)), (TrustState::Revoked, TrustState::Requested));
    world.request(0, 1, None, None);
    // Without a packet: the other side hears of it at once.
    assert_eq!((world.trust_state(0, 1), world.trust_state(1, 0)), (TrustState::Trusted, TrustState::Trusted));
    assert!(world.carries_ipv6(0, 1) && world.carries_ipv6(1, 0));
}

#[test]
fn a_stranger_that_begins_a_handshake_meets_silence() {
    let mut world = World::new(3);
    world.trust(0, 1);
    // Host 2 believes in trust that host 1 never gave: it approved a request host 1 then took back.
    world.request(1, 2, None, None);
    let (asked, asker) = (id(&world, 2), id(&world, 1));
    world.command(1, Command::TrustRevoke(asked)).unwrap();
    world.hosts[1].sent.clear();
    world.command(2, Command::TrustApprove(asker)).unwrap();
    world.advance(Duration::from_secs(100));
    assert!(world.hosts[1].counters.drop_handshake_stranger.get() > 10);
    let stranger = world.address(2);
    let to_stranger = world.hosts[1].sent.iter().filter(|(to, _)| *to == stranger).count();
    assert_eq!(to_stranger, 0);
    assert!(!world.carries_ipv6(2, 1) && world.carries_ipv6(0, 1));
}

#[test]
fn a_peer_cannot_speak_for_another_or_reach_past_this_host() {
    let mut world = World::new(3);
    world.trust(0, 1);
    world.trust(2, 1);
    let v6 = |world: &World, host: usize| world.hosts[host].node.ipv6();
    let forged = packet::udp(v6(&world, 2).into(), v6(&world, 1).into(), 1, 2, b"forged");
    // The sender's own data plane refuses it first.
    world.send(0, &forged);
    assert_eq!(world.hosts[0].counters.drop_out_source.get(), 1);
    assert_eq!(world.hosts[1].take_delivered(), Vec::<Vec<u8>>::new());
}

#[test]
fn programs_cannot_speak_as_the_agent() {
    let mut world = World::new(2);
    world.trust(0, 1);
    let (a, b) = (world.hosts[0].node.ipv6(), world.hosts[1].node.ipv6());
    let reason = agentnet::wire::GoodbyeReason::ConsentWithdrawn;
    let forged = agentnet::wire::ControlMessage::Goodbye { reason }.emit(a, b);
    world.send(0, &forged);
    assert_eq!(world.hosts[0].counters.drop_out_control.get(), 1);
    assert_eq!(world.trust_state(1, 0), TrustState::Trusted);
}

#[test]
fn a_recorded_introduction_is_worth_nothing_later() {
    let mut world = World::new(2);
    world.request(0, 1, None, None);
    let recorded = world.hosts[0].sent.iter().rfind(|(_, datagram)| datagram.starts_with(b"agn")).cloned().unwrap();
    let asker = id(&world, 0);
    world.command(1, Command::TrustApprove(asker)).unwrap();
    let asked = id(&world, 1);
    world.command(0, Command::TrustRevoke(asked)).unwrap();
    assert_eq!(world.trust_state(1, 0), TrustState::Requested);
    let (attacker, target) = (world.add_outsider(), world.address(1));
    for _ in 0..2 {
        world.outsider_sends(attacker, target, &recorded.1);
        world.settle();
        assert_eq!(world.trust_state(1, 0), TrustState::Requested);
        world.restart(1);
    }
    assert_eq!(world.hosts[1].counters.drop_introduction_replay.get(), 2);
}

#[test]
fn a_peer_that_talks_without_end_is_slowed_down() {
    let mut world = World::new(2);
    world.trust(0, 1);
    let own = world.address(0).ip();
    for _ in 0..100 {
        let now = world.now();
        world.hosts[0].node.handle_input(now, agentnet::node::Input::AddressesChanged(vec![]));
        world.hosts[0].node.handle_input(now, agentnet::node::Input::AddressesChanged(vec![own]));
        world.settle();
    }
    // Most do not get as far as the control plane.
    let counters = &world.hosts[1].counters;
    assert!(counters.drop_control_rate.get() + counters.drop_notices.get() > 100);
    world.advance(Duration::from_secs(30));
    assert!(world.carries_ipv6(0, 1) && world.carries_ipv6(1, 0));
}

#[test]
fn cross_requests_are_consent() {
    let mut world = World::new(2);
    world.request(0, 1, None, None);
    world.request(1, 0, None, None);
    assert_eq!((world.trust_state(0, 1), world.trust_state(1, 0)), (TrustState::Trusted, TrustState::Trusted));
    assert!(world.carries_ipv6(0, 1) && world.carries_ipv6(1, 0));
}

#[test]
fn a_lost_introduction_is_sent_again() {
    let mut world = World::new(2);
    world.net.set_drop_rule(|_, _, _| true);
    world.request(0, 1, None, None);
    world.advance(Duration::from_secs(2));
    assert_eq!(world.trust_state(1, 0), TrustState::None);
    world.net.clear_drop_rule();
    world.advance(Duration::from_secs(4));
    assert_eq!(world.trust_state(1, 0), TrustState::Pending);
}

#[test]
fn a_request_survives_a_restart_of_either_side() {
    let mut world = World::new(2);
    world.request(0, 1, None, None);
    world.restart(0);
    world.restart(1);
    assert_eq!((world.trust_state(0, 1), world.trust_state(1, 0)), (TrustState::Requested, TrustState::Pending));
    let asker = id(&world, 0);
    world.command(1, Command::TrustApprove(asker)).unwrap();
    assert!(world.carries_ipv6(0, 1));
}

#[test]
fn trust_for_a_time_ends_by_itself() {
    let mut world = World::new(2);
    world.request(0, 1, None, Some(60));
    let asker = id(&world, 0);
    world.command(1, Command::TrustApprove(asker)).unwrap();
    world.advance(Duration::from_secs(59));
    assert!(world.carries_ipv6(0, 1));
    world.advance(Duration::from_secs(2));
    assert!(!world.carries_ipv6(0, 1) && !world.carries_ipv6(1, 0));
    let why = world.hosts[0].node.why(world.now(), "host1").unwrap();
    assert_eq!(why.reason_code, "trust_expired");
}

#[test]
fn a_grant_that_names_ports_lets_only_those_be_opened() {
    let mut world = World::new(2);
    world.request(0, 1, Some("udp/2000"), None);
    let asker = id(&world, 0);
    world.command(1, Command::TrustApprove(asker)).unwrap();
    assert!(world.carries_ipv6(0, 1) && world.carries_ipv4(0, 1));
    let (a, b) = (world.hosts[0].node.ipv6(), world.hosts[1].node.ipv6());
    let answer = packet::udp(b.into(), a.into(), 2000, 1000, b"answer");
    world.send(1, &answer);
    assert_eq!(world.hosts[0].take_delivered(), [answer]);
    let other = packet::udp(a.into(), b.into(), 1000, 2001, b"other");
    world.send(0, &other);
    assert_eq!(world.hosts[1].take_delivered(), Vec::<Vec<u8>>::new());
    assert_eq!(world.hosts[0].counters.drop_out_policy.get(), 1);
}

#[test]
fn a_flood_of_strangers_fills_no_table_and_pushes_nobody_out() {
    let mut world = World::new(2);
    world.trust(0, 1);
    let (outsider, target) = (world.add_outsider(), world.address(1));
    for i in 0..20_000u32 {
        let mut datagram = match i % 4 {
            0 => vec![1, 0, 0, 0].into_iter().chain([0; 144]).collect::<Vec<u8>>(),
            1 => b"agn\x01\x01\0\0\0".iter().copied().chain([7; 200]).collect(),
            2 => vec![4, 0, 0, 0].into_iter().chain([9; 60]).collect(),
            _ => vec![0xff; 50],
        };
        let last = datagram.len() - 4;
        datagram[last..].copy_from_slice(&i.to_le_bytes());
        world.outsider_sends(outsider, target, &datagram);
        if i % 50 == 0 {
            world.settle();
        }
    }
    // Who knows the key gets further, up to the rate limit.
    let key = world.hosts[1].node.tunnel_key();
    for seed in 0..200u8 {
        let secret = TunnelSecret::from_bytes([seed; 32]);
        let mut stranger = Tunnel::new(&secret, &key, TunnelIndex::of_receiver(0), Time::ZERO, None);
        world.outsider_sends(outsider, target, &stranger.initiate(Time::ZERO).unwrap());
    }
    world.settle();
    assert!(world.carries_ipv6(0, 1));
    let drops = world.hosts[1].counters.drops();
    assert!(drops["handshake_invalid"] > 1000 && drops["introduction_rate"] > 1000, "{drops:?}");
    assert!(drops["handshake_rate"] > 100 && drops["handshake_stranger"] <= 100, "{drops:?}");
    assert_eq!(world.hosts[1].node.known_peers(world.now()).peers.len(), 1);
}
