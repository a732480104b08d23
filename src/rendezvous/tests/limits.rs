//! What nobody gets more of than there is.

use super::*;

fn small() -> Limits {
    Limits { clients: 3, records: 4, introductions: 2, channels: 3, channels_per_client: 2 }
}

#[test]
fn silent_clients_are_forgotten_and_their_records_are_not() {
    let mut bench = Bench::new();
    let mut stranger = Agent::new(1);
    stranger.connect(&mut bench);
    let mut client = Agent::registered(2, &mut bench);
    bench.pass_time(29);
    bench.timeout();
    assert_eq!(bench.server.clients.len(), 2);
    bench.pass_time(1);
    assert!(bench.server.poll_timeout() <= bench.now.time);
    bench.timeout();
    assert_eq!(bench.server.clients.len(), 1, "the one that never registered");
    // Registered until 60; silent until 120.
    bench.pass_time(89);
    bench.timeout();
    assert_eq!(bench.server.clients.len(), 1);
    bench.pass_time(1);
    bench.timeout();
    assert_eq!((bench.server.clients.len(), bench.counters.drop_clients_silent.get()), (0, 2));
    assert_eq!(bench.server.directory.get(&client.id(), bench.now.unix_s()), Some(&client.record()));
    client.connect(&mut bench);
    assert_eq!(client.register(&mut bench).len(), 1);
}

#[test]
fn a_session_that_is_not_renewed_ends_with_its_keys() {
    let mut bench = Bench::new();
    let mut client = Agent::registered(1, &mut bench);
    for _ in 0..17 {
        bench.pass_time(10);
        client.register(&mut bench);
        bench.timeout();
    }
    assert_eq!(bench.server.clients.len(), 1);
    bench.pass_time(10);
    bench.timeout();
    assert_eq!(bench.server.clients.len(), 0);
}

#[test]
fn a_client_that_renews_stays() {
    let mut bench = Bench::new();
    let mut client = Agent::registered(1, &mut bench);
    let _peer = Agent::registered(2, &mut bench);
    client.open_channel(&mut bench, 2, 1).unwrap();
    for round in 1..=30 {
        bench.pass_time(20);
        bench.timeout();
        if round % 6 == 0 {
            client.connect(&mut bench);
        }
        assert_eq!(client.register(&mut bench).len(), 1, "round {round}");
    }
    // The peer was forgotten, and the channel with it.
    assert_eq!((bench.server.clients.len(), bench.server.channels.len()), (1, 0));
}

#[test]
fn in_a_full_table_the_longest_silent_unregistered_gives_way() {
    let mut bench = Bench::with(config(small()));
    let _registered = Agent::registered(1, &mut bench);
    let mut strangers = [2, 3].map(Agent::new);
    for stranger in &mut strangers {
        stranger.connect(&mut bench);
        bench.pass_time(1);
    }
    let [first, second] = &mut strangers;
    let ping = first.seal(&bench, &ControlMessage::Ping { token: 1 }.emit(ipv6(2), ipv6(SERVER)));
    assert_eq!(bench.put(first.address, &ping).len(), 1);
    Agent::new(4).connect(&mut bench);
    assert_eq!(bench.counters.drop_clients_evicted.get(), 1);
    assert_eq!(bench.server.clients.len(), 3);
    assert_eq!(second.register(&mut bench), [], "it was silent for longer");
    assert_eq!(first.register(&mut bench).len(), 1);
}

#[test]
fn in_a_table_full_of_clients_strangers_wait() {
    let mut bench = Bench::with(config(small()));
    let _clients = [1, 2, 3].map(|number| Agent::registered(number, &mut bench));
    let initiation = Agent::new(4).initiation(&bench);
    assert_eq!(bench.put(address(4), &initiation), []);
    assert_eq!((bench.counters.drop_clients_full.get(), bench.server.clients.len()), (1, 3));
    // Clients themselves renew their sessions as before.
    Agent::registered(1, &mut bench);
    bench.pass_time(120);
    bench.timeout();
    Agent::new(4).connect(&mut bench);
}

#[test]
fn past_records_give_way_to_later_ones() {
    let mut bench = Bench::with(config(small()));
    for number in 1..=5 {
        Agent::registered(number, &mut bench);
        bench.pass_time(120);
        bench.timeout();
    }
    assert_eq!(bench.counters.drop_records_evicted.get(), 1);
    let remembered: Vec<AgentId> = bench.restored().records.iter().map(SignedRecord::id).collect();
    assert_eq!(remembered, [2, 3, 4, 5].map(|number| key(number).id()));
}

#[test]
fn relay_channels_are_limited_and_refused_with_the_reason() {
    let mut bench = Bench::with(config(small()));
    let mut one = Agent::registered(1, &mut bench);
    let mut two = Agent::registered(2, &mut bench);
    let mut three = Agent::registered(3, &mut bench);
    assert_eq!(one.open_channel(&mut bench, 4, 1), Err(RelayRefusal::UnknownPeer));
    assert_eq!(one.open_channel(&mut bench, 1, 1), Err(RelayRefusal::UnknownPeer));
    assert_eq!(one.open_channel(&mut bench, 2, 1), Ok(()));
    assert_eq!(one.open_channel(&mut bench, 2, 1), Ok(()), "renewed");
    assert_eq!(two.open_channel(&mut bench, 1, 1), Ok(()), "renewed by the other end");
    assert_eq!(three.open_channel(&mut bench, 1, 1), Err(RelayRefusal::Full), "taken");
    assert_eq!(one.open_channel(&mut bench, 3, 2), Ok(()));
    assert_eq!(one.open_channel(&mut bench, 2, 3), Err(RelayRefusal::Full), "its share is used up");
    assert_eq!(two.open_channel(&mut bench, 1, 3), Ok(()));
    assert_eq!(two.open_channel(&mut bench, 1, 4), Err(RelayRefusal::Full), "all are used up");
    // Whose registration is over is not there.
    bench.pass_time(61);
    two.register(&mut bench);
    assert_eq!(two.open_channel(&mut bench, 1, 3), Err(RelayRefusal::UnknownPeer));
    assert_eq!(bench.counters.drop_relay_open.get(), 6);
}

#[test]
fn a_server_that_does_not_relay_says_so() {
    let mut bench = Bench::with(ServerConfig { relay: false, ..config(Limits::default()) });
    let mut one = Agent::new(1);
    one.connect(&mut bench);
    assert!(matches!(one.register(&mut bench)[..], [RendezvousMessage::Registered { relay: false, .. }]));
    let _two = Agent::registered(2, &mut bench);
    assert_eq!(one.open_channel(&mut bench, 2, 1), Err(RelayRefusal::NotOffered));
}

#[test]
fn an_idle_channel_is_closed() {
    let mut bench = Bench::new();
    let mut one = Agent::registered(1, &mut bench);
    let mut two = Agent::registered(2, &mut bench);
    one.open_channel(&mut bench, 2, 1).unwrap();
    for round in 1..=180 {
        bench.pass_time(20);
        bench.timeout();
        if round % 6 == 0 {
            one.connect(&mut bench);
            two.connect(&mut bench);
        }
        one.register(&mut bench);
        two.register(&mut bench);
        assert_eq!(bench.server.channels.len(), usize::from(round < 180), "round {round}");
    }
    assert_eq!(bench.counters.drop_channels_closed.get(), 1);
}

#[test]
fn introductions_are_limited_and_expire() {
    let mut bench = Bench::with(config(small()));
    let mut sender = Agent::registered(1, &mut bench);
    for number in [2, 3] {
        Agent::registered(number, &mut bench);
    }
    bench.pass_time(61);
    sender.register(&mut bench);
    let mut status = |bench: &mut Bench, recipient| match sender.introduce(bench, recipient, 0).0[..] {
        [RendezvousMessage::Introduced { status, .. }] => status,
        ref other => panic!("{other:?}"),
    };
    assert_eq!(status(&mut bench, 2), IntroducedStatus::Stored);
    assert_eq!(status(&mut bench, 3), IntroducedStatus::Stored);
    assert_eq!(status(&mut bench, 2), IntroducedStatus::Full);
    bench.pass_time(7 * 24 * 3600);
    bench.timeout();
    assert_eq!(bench.restored().introductions, []);
    assert_eq!(bench.counters.drop_introductions_kept.get(), 2);
}

#[test]
fn each_client_has_its_own_rate_of_messages() {
    let mut bench = Bench::new();
    let mut loud = Agent::registered(1, &mut bench);
    let mut quiet = Agent::registered(2, &mut bench);
    let answered = (0..200).filter(|_| !loud.register(&mut bench).is_empty()).count();
    assert_eq!(answered, 48, "two were spent on the registration and the proof of its address");
    assert_eq!(bench.counters.drop_control_rate.get(), 152);
    assert_eq!(quiet.register(&mut bench).len(), 1);
    bench.pass_time(1);
    assert_eq!(loud.register(&mut bench).len(), 1);
}

#[test]
fn each_client_has_its_own_rate_of_relayed_bytes() {
    let mut bench = Bench::with(ServerConfig { relay_rate: Some(10_000), ..config(Limits::default()) });
    let mut one = Agent::registered(1, &mut bench);
    let _two = Agent::registered(2, &mut bench);
    one.open_channel(&mut bench, 2, 1).unwrap();
    let frame = relay_frame(1, 984);
    let passed = |bench: &mut Bench, from| (0..100).filter(|_| !bench.put(address(from), &frame).is_empty()).count();
    assert_eq!((passed(&mut bench, 1), passed(&mut bench, 2)), (10, 10));
    assert_eq!(bench.counters.drop_relay_rate.get(), 180);
    bench.pass_time(1);
    assert_eq!(passed(&mut bench, 1), 10);
}

#[test]
fn a_crowded_round_is_shared_fairly() {
    let mut bench = Bench::new();
    let mut greedy = Agent::registered(1, &mut bench);
    let mut modest = Agent::registered(2, &mut bench);
    greedy.open_channel(&mut bench, 2, 1).unwrap();
    modest.open_channel(&mut bench, 1, 2).unwrap();
    let (large, small) = (relay_frame(1, 984), relay_frame(2, 984));
    let pass = |bench: &mut Bench, crowded: bool| {
        bench.server.begin_round();
        if crowded {
            (0..90).for_each(|_| bench.server.weigh(address(1), &large));
            (0..10).for_each(|_| bench.server.weigh(address(2), &small));
            bench.server.limit_round();
        }
        let time = bench.now.time;
        let of_greedy = (0..90).filter(|_| bench.server.relay(time, address(1), &large).is_some()).count();
        let of_modest = (0..10).filter(|_| bench.server.relay(time, address(2), &small).is_some()).count();
        (of_greedy, of_modest)
    };
    assert_eq!(pass(&mut bench, true), (65, 10));
    assert_eq!(bench.counters.drop_relay_unfair.get(), 25);
    assert_eq!(pass(&mut bench, false), (90, 10));
}

#[test]
fn strangers_are_limited_per_network_and_clients_are_not_among_them() {
    let mut bench = Bench::new();
    let mut client = Agent::registered(1, &mut bench);
    let stranger: SocketAddr = "192.0.1.2:5".parse().unwrap();
    for _ in 0..100 {
        // The same network as the client's, and a fresh key each time would be no better.
        let initiation = Agent::new(2).initiation(&bench);
        bench.put(stranger, &initiation);
    }
    assert!(bench.counters.drop_handshake_rate.get() >= 80);
    client.connect(&mut bench);
    let request = RecordRequest { transaction: [1; 16] }.emit();
    let answered = (0..100).filter(|_| !bench.put(stranger, &request).is_empty()).count();
    assert_eq!((answered, bench.counters.drop_record_rate.get()), (20, 80));
}

#[test]
fn stun_is_limited_per_network_and_clients_have_a_share() {
    let mut bench = Bench::new();
    let client = Agent::registered(1, &mut bench);
    let binding = BindingRequest { transaction: [1; 12], change: StunChange::default(), fingerprint: false }.emit();
    let mut asked = |from, count: usize| (0..count).filter(|_| !bench.put(from, &binding).is_empty()).count();
    assert_eq!(asked(neighbour(1, 2), 150), 100);
    assert_eq!(asked(neighbour(2, 2), 1), 1, "one network does not take what is there for others");
    for network in 3..=60 {
        asked(neighbour(network, 2), 100);
    }
    assert_eq!(asked(neighbour(61, 2), 1), 0, "all is used up");
    assert_eq!(asked(client.address, 150), 100, "by strangers");
    assert_eq!(bench.counters.drop_stun_rate.get() + bench.counters.stun_answers.get(), 6102);
}

#[test]
fn malformed_stun_uses_up_nothing() {
    let mut bench = Bench::new();
    let binding = BindingRequest { transaction: [1; 12], change: StunChange::default(), fingerprint: false }.emit();
    let mut malformed = binding.clone();
    malformed[0] = 1;
    for _ in 0..200 {
        assert_eq!(bench.put(address(1), &malformed), []);
    }
    assert_eq!(bench.counters.drop_stun_invalid.get(), 200);
    assert_eq!(bench.put(address(1), &binding).len(), 1);
}

#[test]
fn a_clients_handshakes_have_a_pace() {
    let mut bench = Bench::new();
    let mut client = Agent::registered(1, &mut bench);
    let answered = |bench: &mut Bench, client: &mut Agent| {
        let initiations = (0..10).map(|_| client.initiation(bench)).collect::<Vec<_>>();
        initiations.iter().filter(|initiation| !bench.put(client.address, *initiation).is_empty()).count()
    };
    assert_eq!(answered(&mut bench, &mut client), 4);
    assert_eq!(bench.counters.drop_handshake_rate.get(), 6);
    bench.pass_time(2);
    assert_eq!(answered(&mut bench, &mut client), 2);
}

#[test]
fn a_few_networks_do_not_use_up_the_handshakes_of_all_clients() {
    let mut bench = Bench::new();
    let loud = [1, 2, 3].map(|number| Agent::registered(number, &mut bench).address);
    let mut quiet = Agent::registered(4, &mut bench);
    let initiation = Agent::new(9).initiation(&bench);
    for from in loud {
        for _ in 0..600 {
            bench.put(from, &initiation);
        }
    }
    quiet.connect(&mut bench);
}
