//! A host whose wall clock is set years ahead or back: what runs goes on, and what begins does so again when it is right.
#![cfg(target_os = "linux")]

use std::time::Duration;

use agentnet::api::{TrustRequestBody, TrustState};
use agentnet::node::Command;
use agentnet_sim::net::NatKind;
use agentnet_sim::pair::home;
use agentnet_sim::{HostOptions, ServerOptions, World};

const SECOND: Duration = Duration::from_secs(1);
const TEN_YEARS: i64 = 10 * 365 * 24 * 3600;
/// A packet that waits for a handshake the other side has to begin: the packet's own initiation there, the other's back.
const AT_ONCE: Duration = Duration::from_millis(500);

/// Two agents that trust each other, registered at a server, on hosts whose clocks are right.
fn pair() -> World {
    let mut world = World::new(0);
    let public = world.net.add_site(&home(NatKind::None));
    world.add_server(&public, ServerOptions::default());
    for _ in 0..2 {
        add_agent(&mut world);
    }
    world.trust(0, 1);
    world.advance(SECOND * 5);
    world
}

fn add_agent(world: &mut World) -> usize {
    let site = world.net.add_site(&home(NatKind::None));
    let rendezvous = vec![world.servers[0].reference()];
    let agent = world.add_host_at(&site, HostOptions { rendezvous, ..HostOptions::default() });
    world.advance(SECOND * 5);
    agent
}

/// A packet each second for so long; how many did not come out.
fn lost(world: &mut World, seconds: u32) -> u32 {
    let mut lost = 0;
    for second in 0..seconds {
        let (from, to) = if second % 2 == 0 { (0, 1) } else { (1, 0) };
        lost += u32::from(world.carry(from, to, AT_ONCE).is_none());
        world.advance(SECOND);
    }
    lost
}

fn codes(world: &World, host: usize) -> Vec<String> {
    world.hosts[host].node.health(world.now_on(host)).into_iter().map(|entry| entry.code).collect()
}

fn is_registered(world: &World, host: usize) -> bool {
    world.hosts[host].node.rendezvous_statuses()[0].state == "connected"
}

#[test]
fn a_session_goes_on_and_is_renewed() {
    let mut world = pair();
    for ahead in [TEN_YEARS, 0, -TEN_YEARS, 0] {
        world.set_clock(0, ahead);
        let before = world.hosts[0].counters.handshakes.get();
        assert_eq!(lost(&mut world, 300), 0, "with a clock {ahead} s ahead");
        assert!(world.hosts[0].counters.handshakes.get() > before, "the session was not renewed");
    }
}

#[test]
fn a_clock_that_is_wrong_is_told() {
    let mut world = pair();
    for (ahead, expected) in [(TEN_YEARS, true), (0, false), (-TEN_YEARS, true), (0, false)] {
        world.set_clock(0, ahead);
        lost(&mut world, 10);
        let told = codes(&world, 0).contains(&"clock_skew".to_owned());
        assert_eq!(told, expected, "with a clock {ahead} s ahead");
        // Also where it was started so.
        world.restart(0);
        lost(&mut world, 40);
        let told = codes(&world, 0).contains(&"clock_skew".to_owned());
        assert_eq!(told, expected, "started with a clock {ahead} s ahead");
    }
}

/// The other side has seen handshakes of years to come, and takes none of today's.
#[test]
fn after_a_clock_went_back_every_beginning_works() {
    let mut world = pair();
    world.set_clock(0, TEN_YEARS);
    world.restart(0);
    assert!(world.carry(0, 1, AT_ONCE).is_some());
    world.set_clock(0, 0);
    // From no session at all, again and again.
    for pause in [200, 200, 700, 181, 3_600, 200] {
        world.advance(SECOND * pause);
        assert!(world.carry(0, 1, AT_ONCE).is_some(), "after {pause} s of silence");
    }
    assert!(world.hosts[1].counters.drop_handshake_replay.get() > 5, "nothing looked like a replay");
    // And where the other side has a session that this one has forgotten.
    for age in [40, 100, 170, 31] {
        world.advance(SECOND * age);
        world.restart(0);
        assert!(world.carry(0, 1, AT_ONCE).is_some(), "restarted in a session {age} s old");
    }
    // Even a young one, a little later.
    world.restart(0);
    assert!(world.carry(0, 1, SECOND * 40).is_some());
}

#[test]
fn servers_and_newcomers_take_an_agent_whose_clock_was_set_right() {
    for ahead in [TEN_YEARS, -TEN_YEARS] {
        let mut world = pair();
        world.set_clock(0, ahead);
        world.restart(0);
        world.advance(SECOND * 60);
        world.set_clock(0, 0);
        let back = world.advance_until(SECOND * 180, |world| is_registered(world, 0));
        assert!(back.is_some(), "{ahead}: {:?}", world.hosts[0].node.rendezvous_statuses());
        assert!(lost(&mut world, 60) <= 1);
        let newcomer = add_agent(&mut world);
        world.trust(newcomer, 0);
        assert!(world.carry(0, newcomer, AT_ONCE).is_some() && world.carry(newcomer, 0, AT_ONCE).is_some());
        assert!(codes(&world, 0).is_empty(), "{:?}", codes(&world, 0));
    }
}

#[test]
fn a_server_whose_clock_jumps_is_missed_by_nobody_in_session_and_is_back_with_the_time() {
    for ahead in [TEN_YEARS, -TEN_YEARS] {
        let mut world = pair();
        world.set_server_clock(0, ahead);
        assert_eq!(lost(&mut world, 300), 0, "with a server {ahead} s ahead");
        world.restart_server(0);
        assert_eq!(lost(&mut world, 60), 0, "with a server restarted {ahead} s ahead");
        world.set_server_clock(0, 0);
        let all = |world: &mut World| is_registered(world, 0) && is_registered(world, 1);
        assert!(world.advance_until(SECOND * 180, all).is_some(), "{ahead}");
        let newcomer = add_agent(&mut world);
        world.trust(newcomer, 0);
        assert!(world.carry(newcomer, 0, AT_ONCE).is_some());
    }
}

#[test]
fn trust_for_a_time_is_back_with_the_time() {
    let mut world = pair();
    let now = world.now();
    let guest = add_agent(&mut world);
    let peer = world.hosts[0].node.ticket(now).unwrap().to_string();
    let body = TrustRequestBody { peer, reason: None, ports: None, ttl_s: Some(3_600) };
    world.command(guest, Command::TrustRequest(body)).unwrap();
    world.advance(SECOND * 5);
    let id = world.hosts[guest].node.id();
    world.command(0, Command::TrustApprove(id.to_string())).unwrap();
    world.advance(SECOND * 5);
    assert!(world.carry(guest, 0, AT_ONCE).is_some());
    world.set_clock(0, TEN_YEARS);
    world.advance(SECOND * 30);
    assert_eq!((world.trust_state(0, guest), world.carry(guest, 0, AT_ONCE)), (TrustState::None, None));
    world.set_clock(0, 0);
    world.advance(SECOND * 30);
    assert_eq!(world.trust_state(0, guest), TrustState::Trusted);
    assert!(world.carry(0, guest, AT_ONCE).is_some() && world.carry(guest, 0, AT_ONCE).is_some());
    // Its end is where it was.
    world.set_clock(0, -TEN_YEARS);
    world.advance(SECOND * 3_500);
    world.set_clock(0, 0);
    world.advance(SECOND * 200);
    assert_eq!((world.trust_state(0, guest), world.carry(guest, 0, AT_ONCE)), (TrustState::None, None));
}
