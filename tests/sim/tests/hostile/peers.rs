//! A trusted peer that floods: with addresses of others, probes, introductions, echoes and records.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use agentnet::wire::control::{Candidate, CandidateKind, MIN_PROBE_LEN, Mapping};
use agentnet::wire::control::{ControlMessage, PathMessage, RendezvousMessage};
use agentnet_sim::World;
use agentnet_sim::net::NatKind;

use super::puppet::Puppet;
use super::{MS, SECOND, absurd, add_host, assert_bounded, take_sent};

/// Probes that one agent sends in a second, to whomever (`PROBE_RATE`).
const PROBE_RATE: usize = 256;

/// How long a flood lasts.
const FLOOD: Duration = Duration::from_secs(30);
/// Bytes to others for one of the puppet's, at most: a list of 16 addresses is worth seven
/// probes to each (RFC 8445, section 19.5.1, has the same of ICE).
const LARGEST_GAIN: usize = 50;

/// A victim (0) and an honest peer of it (1), and a puppet that the victim trusts.
fn world_with_peers() -> (World, Puppet) {
    let mut world = World::new(0);
    for kind in [NatKind::None, NatKind::PortRestricted] {
        add_host(&mut world, kind, Vec::new());
    }
    world.trust(1, 0);
    let mut puppet = Puppet::new(&mut world, 7);
    puppet.wins_trust(&mut world, 0);
    world.advance(SECOND * 2);
    (world, puppet)
}

/// Third parties' addresses, ever others, in 198.18.0.0/15, which nobody here has.
fn third_parties(puppet: &mut Puppet) -> Vec<Candidate> {
    let kinds = [CandidateKind::Host, CandidateKind::ServerReflexive, CandidateKind::PortMapped];
    let mut address = |index: usize| {
        let [a, b, c, ..] = puppet.rng.bytes::<4>();
        let ip = Ipv4Addr::new(198, 18 | (a & 1), b, c);
        Candidate { kind: kinds[index % 3], address: SocketAddr::from((ip, 53)) }
    };
    (0..16).map(&mut address).collect()
}

fn is_third_party(address: &SocketAddr) -> bool {
    address.ip().to_string().starts_with("198.1")
}

/// What the victim sent to third parties, and for what.
struct Reflected {
    datagrams: usize,
    bytes: usize,
    given: usize,
}

/// For half a minute the puppet names ever other addresses, this often.
fn name_others(world: &mut World, puppet: &mut Puppet, interval: Duration) -> Reflected {
    let victim = world.hosts[0].node.id();
    take_sent(world, 0);
    let (end, given) = (world.elapsed() + FLOOD, puppet.sent);
    let mut reflected = Reflected { datagrams: 0, bytes: 0, given: 0 };
    for step in 0.. {
        if world.elapsed() >= end {
            break;
        }
        let sequence = world.now().unix_ms * 10 + step;
        let message =
            PathMessage::Candidates { sequence, candidates: third_parties(puppet), mapping: Mapping::Unknown };
        puppet.says(world, victim, &ControlMessage::Path(message));
        world.advance(interval);
        puppet.attends(world);
        for (_, len) in take_sent(world, 0).into_iter().filter(|(to, _)| is_third_party(to)) {
            reflected.datagrams += 1;
            reflected.bytes += len;
        }
    }
    reflected.given = puppet.sent - given;
    let Reflected { datagrams, bytes, given } = reflected;
    println!("every {interval:?}: {datagrams} datagrams, {bytes} bytes to others for {given} bytes");
    reflected
}

#[test]
fn a_peer_cannot_make_an_agent_flood_others() {
    let (mut world, mut puppet) = world_with_peers();
    let reflected = name_others(&mut world, &mut puppet, MS * 10);
    // A third of what there is for all peers.
    let bound = PROBE_RATE * FLOOD.as_secs() as usize / 3;
    assert!((1..=bound).contains(&reflected.datagrams), "{} datagrams", reflected.datagrams);
    assert!(reflected.bytes <= reflected.given, "{} bytes for {}", reflected.bytes, reflected.given);
    assert!(world.hosts[0].counters.drop_control_rate.get() > 0);
    assert_eq!(world.hosts[0].counters.drop_out_probe.get(), 0, "others have probes left");
    assert_bounded(&world, 0, 2, 0);
    // It ends with the flood, and with the search for the puppet, which says no more.
    world.advance(SECOND * 240);
    take_sent(&mut world, 0);
    world.advance(SECOND * 600);
    let late = take_sent(&mut world, 0).iter().filter(|(to, _)| is_third_party(to)).count();
    assert_eq!(late, 0, "datagrams minutes later");
}

#[test]
fn a_peer_that_names_others_slowly_gains_little() {
    let (mut world, mut puppet) = world_with_peers();
    let reflected = name_others(&mut world, &mut puppet, SECOND);
    let bound = PROBE_RATE * FLOOD.as_secs() as usize / 3;
    assert!((1..=bound).contains(&reflected.datagrams), "{} datagrams", reflected.datagrams);
    assert!(reflected.bytes <= reflected.given * LARGEST_GAIN, "{} bytes for {}", reflected.bytes, reflected.given);
}

#[test]
fn addresses_of_this_host_and_of_the_overlay_are_not_tried() {
    let (mut world, mut puppet) = world_with_peers();
    let victim = world.hosts[0].node.id();
    let usable = absurd().into_iter().filter(agentnet::identity::ticket::is_usable_address);
    let candidates = usable.map(|address| Candidate { kind: CandidateKind::Host, address }).collect();
    let message = PathMessage::Candidates { sequence: u64::MAX, candidates, mapping: Mapping::Unknown };
    puppet.says(&mut world, victim, &ControlMessage::Path(message));
    world.advance(SECOND * 2);
    take_sent(&mut world, 0);
    // Nor when a session is to be had anew.
    world.restart(0);
    world.advance(SECOND * 30);
    take_sent(&mut world, 0);
}

#[test]
fn a_peer_that_floods_messages_does_not_keep_others_from_being_heard() {
    let (mut world, mut puppet) = world_with_peers();
    let (victim, honest) = (world.hosts[0].node.id(), world.hosts[1].node.id());
    let home = world.net.add_site(&agentnet_sim::net::SiteOptions::new(
        NatKind::PortRestricted,
        agentnet_sim::net::LinkConfig::with_delay(MS * 10),
    ));
    let (mut answered, mut records) = (0, 0);
    let given = puppet.sent;
    for step in 0..2_000u64 {
        let list = PathMessage::Candidates {
            sequence: world.now().unix_ms + step,
            candidates: third_parties(&mut puppet),
            mapping: Mapping::Unknown,
        };
        let probe = PathMessage::Probe { token: step, length: MIN_PROBE_LEN };
        let reply = PathMessage::ProbeReply { token: step, observed: puppet.address(), received: MIN_PROBE_LEN };
        let introduce = RendezvousMessage::Introduce { recipient: honest, sealed: vec![7; 600] };
        let candidates = third_parties(&mut puppet).into_iter().take(4).map(|candidate| candidate.address).collect();
        let introduction = puppet.introduction(&world, 0, candidates);
        let introduction = RendezvousMessage::Introduction { sealed: introduction, observed: puppet.address() };
        let hello = puppet.hello(&world);
        records += 1;
        let messages = [
            ControlMessage::Path(list),
            ControlMessage::Path(probe.clone()),
            ControlMessage::Path(probe),
            ControlMessage::Path(reply),
            ControlMessage::Ping { token: step },
            ControlMessage::Pong { token: step },
            ControlMessage::Rendezvous(introduce),
            ControlMessage::Rendezvous(introduction),
            hello,
        ];
        for message in &messages {
            puppet.says(&mut world, victim, message);
        }
        if step == 1_000 {
            world.move_host(1, &home);
        }
        world.advance(MS * 10);
        puppet.attends(&mut world);
        answered += take_sent(&mut world, 0).iter().map(|(_, len)| len).sum::<usize>();
        if step % 100 == 99 {
            let packet = world.packet_between(1, 0);
            world.send(1, &packet);
            let heard = world.advance_until(SECOND, |world| world.hosts[0].take_delivered().contains(&packet));
            assert!(heard.is_some(), "at step {step}");
        }
    }
    let given = puppet.sent - given;
    println!("{answered} bytes for {given}");
    assert!(answered <= given, "{answered} bytes for {given}");
    assert!(world.hosts[0].counters.drop_control_rate.get() > records);
    assert_bounded(&world, 0, 2, 0);
    assert!(world.carry(0, 1, SECOND * 3).is_some());
}
