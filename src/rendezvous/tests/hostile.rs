//! Whatever arrives, only counters move.

use super::*;
use proptest::prelude::*;

#[test]
fn forged_and_foreign_handshakes_make_no_client() {
    let mut bench = Bench::new();
    let mut agent = Agent::new(1);
    let good = agent.initiation(&bench);
    // The last 16 bytes answer a cookie, which a server that is not under load does not ask for.
    let covered = good.len() - 16;
    for position in 0..covered {
        let mut forged = good;
        forged[position] ^= 1;
        assert_eq!(bench.put(address(position as u8), &forged), [], "byte {position}");
    }
    // Made for another server.
    let elsewhere = Tunnel::new(
        &tunnel_secret(1),
        &tunnel_secret(3).public(),
        crate::tunnel::IndexTable::new().allocate(0u8, &mut TestRng::new(1)),
        bench.now.time,
        None,
    )
    .initiate(bench.now.time);
    assert_eq!(bench.put(address(1), &elsewhere.unwrap()), []);
    assert_eq!(bench.server.clients.len(), 0);
    let dropped = bench.counters.drop_handshake_invalid.get() + bench.counters.drop_unknown_kind.get();
    assert_eq!(dropped, covered as u64 + 1);
}

#[test]
fn replayed_messages_move_nothing() {
    let mut bench = Bench::new();
    let mut agent = Agent::new(1);
    let initiation = agent.initiation(&bench);
    let response = bench.put(agent.address, &initiation).remove(0).2;
    let keepalive = agent.complete(&bench, &response);
    bench.put(agent.address, &keepalive);
    let record = agent.record();
    let register = agent.sealed_message(&bench, RendezvousMessage::Register { record });
    bench.put(agent.address, &register);
    let route = bench.server.clients.get(ClientKey(0)).unwrap().route;
    let tables = bench.tables();
    bench.pass_time(10);
    let attacker = address(66);
    assert_eq!(bench.put(attacker, &initiation), []);
    assert_eq!(bench.put(attacker, &keepalive), []);
    assert_eq!(bench.put(attacker, &register), []);
    assert_eq!(bench.put(attacker, &response), [], "a server begins no handshake");
    assert_eq!(bench.tables(), tables);
    assert_eq!(bench.server.clients.get(ClientKey(0)).unwrap().route, route);
    assert_eq!(bench.counters.drop_handshake_replay.get(), 1);
    assert_eq!(bench.counters.drop_unauthenticated.get(), 2);
    assert_eq!(bench.counters.drop_unknown_kind.get(), 1);
}

#[test]
fn a_copied_initiation_cannot_move_a_client() {
    let mut bench = Bench::new();
    let mut agent = Agent::registered(1, &mut bench);
    let initiation = agent.initiation(&bench);
    // The attacker's copy overtakes; the response goes to where it came from, and means nothing there.
    let to_attacker = bench.put(address(66), &initiation);
    let to_client = bench.put(agent.address, &initiation);
    assert_eq!(to_attacker[0].2, to_client[0].2);
    assert_eq!(bench.server.clients.get(ClientKey(0)).unwrap().route.unwrap().destination, agent.address);
    let keepalive = agent.complete(&bench, &to_client[0].2);
    bench.put(agent.address, &keepalive);
    assert_eq!(agent.register(&mut bench).len(), 1);
}

#[test]
fn nobody_registers_with_anothers_record_or_key() {
    let mut bench = Bench::new();
    let mut attacker = Agent::new(1);
    attacker.connect(&mut bench);
    // The victim's own record, from the victim's address: it names another tunnel key than the session's.
    let message = RendezvousMessage::Register { record: Agent::new(2).record() };
    let packet = ControlMessage::Rendezvous(message.clone()).emit(ipv6(2), ipv6(SERVER));
    let datagram = attacker.seal(&bench, &packet);
    assert_eq!(bench.put(attacker.address, &datagram), []);
    assert_eq!(bench.counters.drop_register.get(), 1);
    // The victim's record from the attacker's own address.
    let datagram = attacker.sealed_message(&bench, message);
    assert_eq!(bench.put(attacker.address, &datagram), []);
    assert_eq!(bench.counters.drop_control_invalid.get(), 1);
    // An agent with the attacker's tunnel key is another agent, but this session has its agent.
    assert_eq!(attacker.register(&mut bench).len(), 1);
    let mut second = Agent::with_key(3, tunnel_secret(1), 1);
    let record = second.record();
    let packet = ControlMessage::Rendezvous(RendezvousMessage::Register { record }).emit(ipv6(1), ipv6(SERVER));
    let datagram = attacker.seal(&bench, &packet);
    assert_eq!(bench.put(attacker.address, &datagram), []);
    second.address = attacker.address;
    assert_eq!(bench.server.clients.with_id(&second.id()), None);
    // A server is nobody's client, not even with its own record.
    assert_eq!(bench.server.clients.with_id(&key(SERVER).id()), None);
    assert_eq!(bench.server.clients.len(), 1);
}

#[test]
fn an_expired_record_registers_nobody() {
    let mut bench = Bench::new();
    bench.now.unix_ms = 2_000_000_000_000;
    let mut agent = Agent::new(1);
    agent.connect(&mut bench);
    assert_eq!(agent.register(&mut bench), []);
    assert_eq!(bench.counters.drop_register.get(), 1);
}

#[test]
fn before_a_registration_nothing_else_is_heard() {
    let mut bench = Bench::new();
    let _peer = Agent::registered(2, &mut bench);
    let mut agent = Agent::new(1);
    agent.connect(&mut bench);
    let (peer, channel) = (key(2).id(), RelayChannel::new(1));
    for message in [
        RendezvousMessage::Lookup { id: peer },
        RendezvousMessage::Introduce { recipient: peer, sealed: sealed(1) },
        RendezvousMessage::RelayOpen { peer, channel, first: Vec::new() },
    ] {
        assert_eq!(agent.ask(&mut bench, message), []);
    }
    assert_eq!(bench.counters.drop_control_unexpected.get(), 3);
}

#[test]
fn what_a_server_says_is_not_heard_from_clients() {
    let mut bench = Bench::new();
    let mut agent = Agent::registered(1, &mut bench);
    let id = key(2).id();
    for message in [
        RendezvousMessage::Registered { observed: address(1), expires_s: 1, relay: true },
        RendezvousMessage::LookupResult { id, record: None },
        RendezvousMessage::Introduced { recipient: id, status: IntroducedStatus::Full },
        RendezvousMessage::Introduction { sealed: sealed(1), observed: address(1) },
        RendezvousMessage::RelayOpened { peer: id, channel: RelayChannel::new(1), outcome: Ok(()) },
    ] {
        assert_eq!(agent.ask(&mut bench, message), []);
    }
    assert_eq!(bench.counters.drop_control_unexpected.get(), 5);
}

#[test]
fn packets_from_or_to_other_addresses_are_dropped() {
    let mut bench = Bench::new();
    let mut agent = Agent::registered(1, &mut bench);
    let ping = ControlMessage::Ping { token: 1 };
    for packet in [ping.emit(ipv6(2), ipv6(SERVER)), ping.emit(ipv6(1), ipv6(2)), vec![0x60; 60], vec![0x45; 40]] {
        let datagram = agent.seal(&bench, &packet);
        assert_eq!(bench.put(agent.address, &datagram), []);
    }
    assert_eq!(bench.counters.drop_control_invalid.get(), 4);
}

#[test]
fn what_is_no_introduction_is_not_handed_on() {
    let mut bench = Bench::new();
    let mut agent = Agent::registered(1, &mut bench);
    let _peer = Agent::registered(2, &mut bench);
    let message = RendezvousMessage::Introduce { recipient: key(2).id(), sealed: b"GET / HTTP/1.1".to_vec() };
    assert_eq!(agent.ask(&mut bench, message), []);
    assert_eq!(bench.counters.drop_introduce_invalid.get(), 1);
}

#[test]
fn the_relay_is_of_no_use_to_others() {
    let mut bench = Bench::new();
    let mut agent = Agent::registered(1, &mut bench);
    let _peer = Agent::registered(2, &mut bench);
    agent.open_channel(&mut bench, 2, 7).unwrap();
    let good = relay_frame(7, 64);
    assert_eq!(bench.put(address(3), &good), []);
    assert_eq!(bench.put(agent.address, &relay_frame(8, 64)), []);
    let mut not_wireguard = good.clone();
    not_wireguard[RELAY_PREFIX_LEN] = b'G';
    for bad in [&not_wireguard, &good[..RELAY_PREFIX_LEN + 31], &good[..RELAY_PREFIX_LEN - 1]] {
        assert_eq!(bench.put(agent.address, bad), []);
    }
    let alternate = Local { port: Port::Alternate, ..primary() };
    assert_eq!(bench.put_at(agent.address, alternate, &good), []);
    let counters = &bench.counters;
    assert_eq!((counters.drop_relay_source.get(), counters.drop_relay_channel.get()), (1, 1));
    assert_eq!((counters.drop_relay_invalid.get(), counters.drop_alternate_port.get()), (3, 1));
    assert_eq!(counters.relay_frames.get(), 0);
}

#[test]
fn sources_that_cannot_be_answered_are_dropped() {
    let mut bench = Bench::new();
    let request = RecordRequest { transaction: [1; 16] }.emit();
    let inside = SocketAddr::from((ipv6(1), 9));
    let sources = ["192.0.2.1:0", "0.0.0.0:9", "224.0.0.1:9", "255.255.255.255:9"].map(|text| text.parse().unwrap());
    for source in sources.into_iter().chain([inside]) {
        assert_eq!(bench.put(source, &request), [], "{source}");
    }
    assert_eq!(bench.counters.drop_source.get(), 5);
}

#[test]
fn truncated_messages_of_a_session_are_dropped() {
    let mut bench = Bench::new();
    let mut agent = Agent::registered(1, &mut bench);
    let record = agent.record();
    let register = agent.sealed_message(&bench, RendezvousMessage::Register { record });
    for len in 0..register.len() {
        assert_eq!(bench.put(agent.address, &register[..len]), [], "cut at {len}");
    }
    // Registered, and what the server's clock shows.
    assert_eq!(bench.put(agent.address, &register).len(), 2, "the whole one is still accepted");
}

/// One thing somebody does to the server.
#[derive(Debug, Clone)]
enum Act {
    Arbitrary(Vec<u8>),
    Mutated(usize, prop::sample::Index, u8),
    Inside(Vec<u8>),
    InsideMutated(usize, prop::sample::Index, u8),
    Wait(u64),
}

fn acts() -> impl Strategy<Value = Vec<(u8, Act)>> {
    let act = prop_oneof![
        any::<Vec<u8>>().prop_map(Act::Arbitrary),
        (0..8usize, any::<prop::sample::Index>(), any::<u8>()).prop_map(|(n, at, xor)| Act::Mutated(n, at, xor)),
        any::<Vec<u8>>().prop_map(Act::Inside),
        (0..6usize, any::<prop::sample::Index>(), any::<u8>()).prop_map(|(n, at, xor)| Act::InsideMutated(n, at, xor)),
        (0..200u64).prop_map(Act::Wait),
    ];
    prop::collection::vec((1u8..4, act), 0..40)
}

/// Datagrams as honest agents send them.
fn valid_datagram(bench: &Bench, kind: usize) -> Vec<u8> {
    match kind {
        0 => BindingRequest { transaction: [1; 12], change: StunChange::default(), fingerprint: true }.emit(),
        1 => RecordRequest { transaction: [1; 16] }.emit(),
        2 => Agent::new(9).initiation(bench).to_vec(),
        3 => relay_frame(7, 64),
        4 => relay_frame(8, 148),
        5 => sealed(1),
        6 => RecordRequest { transaction: [1; 16] }.answer(bench.server.record()),
        _ => vec![4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    }
}

fn valid_packet(kind: usize) -> Vec<u8> {
    let (id, channel) = (key(2).id(), RelayChannel::new(7));
    let rendezvous = ControlMessage::Rendezvous;
    match kind {
        0 => ControlMessage::Ping { token: 9 },
        1 => rendezvous(RendezvousMessage::Register { record: Agent::new(1).record() }),
        2 => rendezvous(RendezvousMessage::Lookup { id }),
        3 => rendezvous(RendezvousMessage::Introduce { recipient: id, sealed: sealed(3) }),
        4 => rendezvous(RendezvousMessage::RelayOpen { peer: id, channel, first: relay_frame(7, 64).split_off(16) }),
        _ => ControlMessage::Goodbye { reason: crate::wire::GoodbyeReason::Shutdown },
    }
    .emit(ipv6(1), ipv6(SERVER))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Nothing panics, no table goes over its limit, and nobody is sent more than was asked: what leaves is never more
    /// than what came, and four introductions.
    #[test]
    fn whatever_arrives_the_limits_hold(acts in acts()) {
        let limits = Limits { clients: 3, records: 4, introductions: 2, channels: 2, channels_per_client: 1 };
        let mut bench = Bench::with(config(limits));
        let mut agent = Agent::registered(1, &mut bench);
        let mut other = Agent::registered(2, &mut bench);
        let _ = other.open_channel(&mut bench, 1, 7);
        for (from, act) in acts {
            let (put, kept) = match act {
                Act::Arbitrary(datagram) => (datagram, 0),
                Act::Mutated(kind, at, xor) => {
                    let mut datagram = valid_datagram(&bench, kind);
                    let at = at.index(datagram.len());
                    datagram[at] ^= xor;
                    (datagram, 0)
                }
                Act::Inside(packet) if agent.tunnel.has_session(bench.now.time) => (agent.seal(&bench, &packet), 4),
                Act::InsideMutated(kind, at, xor) if agent.tunnel.has_session(bench.now.time) => {
                    let mut packet = valid_packet(kind);
                    let at = at.index(packet.len());
                    packet[at] ^= xor;
                    (agent.seal(&bench, &packet), 4)
                }
                Act::Wait(seconds) => {
                    bench.pass_time(seconds);
                    // An agent that moved may be asked whether it is there.
                    let sent = bench.timeout();
                    prop_assert!(sent.len() <= 1 && sent.iter().all(|(.., datagram)| datagram.len() <= 84), "{sent:?}");
                    continue;
                }
                _ => continue,
            };
            let sent = bench.put(address(from), &put);
            prop_assert!(sent.len() <= 2 + kept, "{} datagrams", sent.len());
            prop_assert!(bench.server.clients.len() <= limits.clients);
            prop_assert!(bench.server.channels.len() <= limits.channels);
            prop_assert!(bench.server.poll_timeout() >= bench.now.time - Duration::from_secs(200));
        }
        prop_assert!(bench.restored().introductions.len() <= limits.introductions);
        prop_assert!(bench.restored().records.len() <= limits.records);
    }
}
