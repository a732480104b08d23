//! Rendezvous servers that lie, and one that falls silent.

use std::net::SocketAddr;

use agentnet::identity::ticket::is_usable_address;
use agentnet::wire::control::{ControlMessage, IntroducedStatus, RendezvousMessage};
use agentnet::wire::{RELAY_PREFIX_LEN, RecordRequest, RelayChannel};
use agentnet_sim::net::NatKind;
use agentnet_sim::{ServerOptions, World};

use super::puppet::Puppet;
use super::{MS, SECOND, absurd, add_host, assert_bounded, take_sent};

/// Two agents behind NATs that only a relay joins, each with a bad server and a good one, that trust each other.
fn world_with(bad: fn(&mut Puppet, &mut World)) -> (World, Puppet, [usize; 2]) {
    let mut world = World::new(0);
    let public = world.open_site(false);
    world.add_server(&public, ServerOptions::default());
    let mut puppet = Puppet::new(&mut world, 7);
    let servers = vec![puppet.reference(), world.servers[0].reference()];
    let hosts = [(); 2].map(|()| add_host(&mut world, NatKind::SymmetricRandom, servers.clone()));
    for _ in 0..100 {
        world.advance(MS * 20);
        bad(&mut puppet, &mut world);
    }
    for host in hosts {
        assert!(puppet.has_session(&world, world.hosts[host].node.id()));
    }
    world.trust(hosts[0], hosts[1]);
    (world, puppet, hosts)
}

/// Registers everybody, each time as seen at another absurd address.
fn lie(puppet: &mut Puppet, world: &mut World) {
    let heard = puppet.attends(world);
    let observed = absurd_usable();
    let observed = observed[puppet.rng.below(observed.len() as u64) as usize];
    puppet.registers(world, &heard, observed);
}

/// One of everything a server may say, and much it may not.
fn forge(puppet: &mut Puppet, world: &mut World, victim: usize, other: usize) {
    let (id, other_id) = (world.hosts[victim].node.id(), world.hosts[other].node.id());
    let channel = RelayChannel::new(puppet.rng.next_u64());
    let introduction = puppet.introduction(world, victim, absurd_usable());
    let third_party: SocketAddr = format!("203.0.113.{}:53", puppet.rng.below(255)).parse().unwrap();
    let now = world.now();
    let own = world.hosts[victim].node.ticket(now).unwrap().addresses().to_vec();
    let observed = own.first().copied().unwrap_or(third_party);
    let messages = [
        RendezvousMessage::Registered { observed, expires_s: 0, relay: true },
        RendezvousMessage::Introduction { sealed: introduction, observed: third_party },
        RendezvousMessage::Introduction { sealed: vec![0x5a; 700], observed: third_party },
        RendezvousMessage::Introduced { recipient: other_id, status: IntroducedStatus::Full },
        RendezvousMessage::RelayOpened { peer: other_id, channel, outcome: Ok(()) },
        RendezvousMessage::RelayOpened { peer: id, channel, outcome: Ok(()) },
        RendezvousMessage::LookupResult { id: other_id, record: None },
        RendezvousMessage::RelayOpen { peer: other_id, channel, first: vec![1; 148] },
    ];
    for message in messages {
        puppet.says(world, id, &ControlMessage::Rendezvous(message));
    }
}

/// Those that may stand in a message.
fn absurd_usable() -> Vec<SocketAddr> {
    absurd().into_iter().filter(is_usable_address).collect()
}

/// Datagrams beside the session, at the address at which the server sees its victim.
fn forge_outside(puppet: &mut Puppet, world: &mut World, victim: SocketAddr, recorded: &[Vec<u8>]) {
    let record = puppet.record(world);
    let answer = RecordRequest { transaction: puppet.rng.bytes() }.answer(&record);
    let mut frame = [0; RELAY_PREFIX_LEN];
    RelayChannel::new(puppet.rng.next_u64()).emit(&mut frame);
    let rubbish = puppet.rng.bytes::<200>();
    let mut datagrams = vec![answer, [&frame[..], &rubbish].concat(), rubbish.to_vec()];
    for datagram in recorded {
        datagrams.push([&frame[..], datagram].concat());
        datagrams.push(datagram.clone());
        datagrams.push(datagram[..datagram.len() / 2].to_vec());
    }
    for datagram in datagrams {
        puppet.sends(world, victim, &datagram);
    }
}

#[test]
fn a_lying_server_moves_nothing_but_counters() {
    let (mut world, mut puppet, [a, b]) = world_with(lie);
    let endpoints = [a, b].map(|host| puppet.endpoint(world.hosts[host].node.id()).unwrap());
    let before = [a, b].map(|host| world.hosts[host].node.table_sizes());
    let (mut third_parties, mut to_puppet) = (0, 0);
    let recorded: Vec<Vec<u8>> = [a, b]
        .iter()
        .flat_map(|host| world.hosts[*host].sent.iter().rev().take(10))
        .map(|(_, bytes)| bytes.clone())
        .collect();
    let sent_before = puppet.sent;
    for round in 0..300 {
        for (victim, other) in [(a, b), (b, a)] {
            forge(&mut puppet, &mut world, victim, other);
        }
        for endpoint in endpoints {
            forge_outside(&mut puppet, &mut world, endpoint, &recorded);
        }
        world.advance(MS * 100);
        lie(&mut puppet, &mut world);
        for host in [a, b] {
            for (to, len) in take_sent(&mut world, host) {
                to_puppet += if to == puppet.address() { len } else { 0 };
                let is_third = to.ip().to_string().starts_with("203.0.113.");
                third_parties += if is_third { len } else { 0 };
            }
        }
        if round % 10 == 9 {
            assert!(world.carry(a, b, SECOND).is_some() && world.carry(b, a, SECOND).is_some(), "round {round}");
        }
    }
    let given = puppet.sent - sent_before;
    assert!(to_puppet < given / 20, "{to_puppet} bytes for {given}");
    assert_eq!(third_parties, 0, "nobody else is sent anything");
    for (host, before) in [a, b].into_iter().zip(before) {
        assert_bounded(&world, host, 1, 2);
        let after = world.hosts[host].node.table_sizes();
        // One more agent asks for trust.
        assert_eq!((after.peers, after.links), (before.peers + 1, before.links));
        assert!(world.hosts[host].counters.drop_control_invalid.get() > 0);
    }
}

#[test]
fn a_server_that_falls_silent_is_passed_by() {
    let (mut world, mut puppet, [a, b]) = world_with(lie);
    for pause in [1, 30, 100, 600] {
        world.advance(SECOND * pause);
        let received = puppet.received;
        assert!(world.carry(a, b, SECOND * 3).is_some(), "after {pause} s");
        assert!(world.carry(b, a, SECOND * 3).is_some(), "after {pause} s");
        puppet.swallows(&mut world);
        // What is sent into a black hole becomes rare.
        assert!(puppet.received - received < 3_000 * (pause as usize + 20), "{}", puppet.received - received);
    }
    for host in [a, b] {
        assert_bounded(&world, host, 1, 2);
    }
}
