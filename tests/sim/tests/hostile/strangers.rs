//! Somebody whom nobody knows, and somebody who recorded what was said.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;

use agentnet::identity::TunnelSecret;
use agentnet::tunnel::{IndexTable, Tunnel};
use agentnet::wire::{RELAY_PREFIX_LEN, RecordRequest, RelayChannel, ServerAddresses, respond};
use agentnet_sim::net::{LinkConfig, NatKind, SimRng, SiteOptions};
use agentnet_sim::{ServerOptions, World};

use super::puppet::Puppet;
use super::{MS, SECOND, add_host, assert_bounded, take_sent};

/// Two agents that trust each other, the first one public, with a server.
fn world_with_pair() -> World {
    let mut world = World::new(0);
    let public = world.net.add_site(&SiteOptions::new(NatKind::None, LinkConfig::with_delay(MS * 10)));
    world.add_server(&public, ServerOptions::default());
    let reference = world.servers[0].reference();
    for kind in [NatKind::None, NatKind::PortRestricted] {
        add_host(&mut world, kind, vec![reference.clone()]);
    }
    world.advance(SECOND * 2);
    world.trust(1, 0);
    world.advance(SECOND * 2);
    world
}

#[test]
fn strangers_flood_in_vain() {
    let mut world = world_with_pair();
    let mut puppet = Puppet::new(&mut world, 7);
    let target = world.address(0);
    let before = world.hosts[0].node.table_sizes();
    take_sent(&mut world, 0);
    let mut answered = 0;
    for step in 0..1_000u64 {
        for datagram in flood(&mut puppet, &world, target) {
            puppet.sends(&mut world, target, &datagram);
        }
        world.advance(MS * 10);
        puppet.attends(&mut world);
        let to_puppet = take_sent(&mut world, 0).into_iter().filter(|(to, _)| *to == puppet.address());
        answered += to_puppet.map(|(_, len)| len).sum::<usize>();
        if step % 100 == 99 {
            assert!(world.carry(1, 0, SECOND).is_some() && world.carry(0, 1, SECOND).is_some(), "at step {step}");
        }
    }
    assert_eq!(answered, 0);
    assert_bounded(&world, 0, 1, 1);
    let after = world.hosts[0].node.table_sizes();
    assert!(after.peers <= before.peers + 64 && after.links == before.links, "{after:?}");
    let counters = &world.hosts[0].counters;
    for (name, count) in [
        ("stranger", counters.drop_handshake_stranger.get()),
        ("rate", counters.drop_handshake_rate.get()),
        ("introductions", counters.drop_introduction_rate.get()),
        ("stun", counters.drop_in_stun.get() + counters.drop_in_unknown_kind.get()),
    ] {
        assert!(count > 0, "{name}");
    }
}

/// Everything a stranger can send, some of it valid.
fn flood(puppet: &mut Puppet, world: &World, target: SocketAddr) -> Vec<Vec<u8>> {
    let now = world.now().time;
    let secret = TunnelSecret::from_bytes(puppet.rng.bytes());
    let index = IndexTable::new().allocate((), &mut puppet.rng);
    let mut tunnel = Tunnel::new(&secret, &world.hosts[0].node.tunnel_key(), index, now, None);
    let initiation = tunnel.initiate(now).unwrap().to_vec();
    // Ever another agent.
    let mut other = Puppet::unborn(SimRng::from_seed(puppet.rng.next_u64()));
    let introduction = other.introduction(world, 0, vec![target]);
    let request = agentnet::wire::BindingRequest {
        transaction: puppet.rng.bytes(),
        change: Default::default(),
        fingerprint: false,
    }
    .emit();
    let server = ServerAddresses::new(puppet.address(), None, None).unwrap();
    let stun = respond(&request, target, puppet.address(), &server).unwrap().datagram;
    let mut frame = [0; RELAY_PREFIX_LEN];
    RelayChannel::new(puppet.rng.next_u64()).emit(&mut frame);
    let answer = RecordRequest { transaction: puppet.rng.bytes() }.answer(&puppet.record(world));
    let mut data = vec![4, 0, 0, 0];
    data.extend(puppet.rng.bytes::<60>());
    let cut = introduction[..introduction.len() / 2].to_vec();
    vec![[&frame[..], &initiation].concat(), initiation, introduction, cut, request, stun, answer, data, frame.to_vec()]
}

#[test]
fn what_was_recorded_is_worth_nothing_again() {
    let mut world = World::new(0);
    let recorded = Rc::new(RefCell::new(Vec::new()));
    let tape = Rc::clone(&recorded);
    world.net.set_drop_rule(move |_, _, bytes| {
        tape.borrow_mut().push(bytes.to_vec());
        false
    });
    let public = world.net.add_site(&SiteOptions::new(NatKind::None, LinkConfig::with_delay(MS * 10)));
    world.add_server(&public, ServerOptions::default());
    let reference = world.servers[0].reference();
    let hosts = [(); 2].map(|()| add_host(&mut world, NatKind::None, vec![reference.clone()]));
    world.advance(SECOND * 2);
    world.trust(hosts[1], hosts[0]);
    for _ in 0..3 {
        assert!(world.carry(0, 1, SECOND).is_some() && world.carry(1, 0, SECOND).is_some());
        world.advance(SECOND * 150);
    }
    world.net.clear_drop_rule();
    assert!(world.carry(0, 1, SECOND).is_some() && world.carry(1, 0, SECOND).is_some());
    world.advance(SECOND);
    let recorded = recorded.borrow();
    assert!(recorded.len() > 100);
    let mut puppet = Puppet::new(&mut world, 7);
    let server: SocketAddr = world.servers[0].reference().address.to_string().parse().unwrap();
    let targets = [world.address(0), world.address(1), server];
    let sizes = |world: &World| [0, 1].map(|host| world.hosts[host].node.table_sizes());
    let paths = |world: &World| [0, 1].map(|host| world.hosts[host].node.peer_statuses(world.now())[0].path.endpoint);
    let before = (sizes(&world), paths(&world), world.servers[0].server.table_sizes());
    for datagram in recorded.iter() {
        for target in targets {
            let len = datagram.len();
            puppet.sends(&mut world, target, datagram);
            puppet.sends(&mut world, target, &datagram[..len - 1]);
        }
        world.advance(MS);
    }
    world.advance(SECOND);
    puppet.swallows(&mut world);
    println!("{} datagrams replayed: {} bytes for {}", recorded.len(), puppet.received, puppet.sent);
    // A server answers whoever asks where he is or who it is, and the newest handshake twice, never with more.
    assert!(puppet.received * 3 < puppet.sent, "{} bytes for {}", puppet.received, puppet.sent);
    let after = (sizes(&world), paths(&world), world.servers[0].server.table_sizes());
    assert_eq!(before.1, after.1, "data goes where it went");
    for (before, after) in before.0.iter().zip(after.0) {
        assert_eq!(
            (before.peers, before.links, before.servers, before.relays),
            (after.peers, after.links, after.servers, after.relays)
        );
        assert_eq!((before.addresses, before.paths), (after.addresses, after.paths));
    }
    assert_eq!(
        (before.2.clients, before.2.records, before.2.channels),
        (after.2.clients, after.2.records, after.2.channels)
    );
    assert_eq!((world.carry(0, 1, SECOND), world.carry(1, 0, SECOND)), (Some(MS * 20), Some(MS * 20)));
}
