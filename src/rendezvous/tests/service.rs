//! What clients get.

use super::*;

fn stun(bench: &mut Bench, local: Local, change: StunChange) -> Option<(Local, BindingResponse)> {
    let transaction = [3; 12];
    let request = BindingRequest { transaction, change, fingerprint: true }.emit();
    let sent = bench.put_at(address(1), local, &request);
    let (to, from, datagram) = sent.into_iter().next()?;
    assert_eq!(to, address(1));
    Some((from, BindingResponse::parse(&datagram, &transaction).unwrap()))
}

#[test]
fn stun_on_both_ports() {
    let mut bench = Bench::new();
    let alternate = Local { port: Port::Alternate, ..primary() };
    let change_port = StunChange { ip: false, port: true };
    for (at, change, from, other) in [
        (primary(), StunChange::default(), primary(), "203.0.113.1:41642"),
        (primary(), change_port, alternate, "203.0.113.1:41642"),
        (alternate, StunChange::default(), alternate, "203.0.113.1:41641"),
        (alternate, change_port, primary(), "203.0.113.1:41641"),
    ] {
        let (sent_from, response) = stun(&mut bench, at, change).unwrap();
        assert_eq!(sent_from, from);
        let BindingResponse::Success { mapped, other: told, .. } = response else { panic!("{response:?}") };
        assert_eq!((mapped, told), (address(1), other.parse().ok()));
    }
    let change_ip = StunChange { ip: true, port: false };
    let (_, refused) = stun(&mut bench, primary(), change_ip).unwrap();
    assert!(matches!(refused, BindingResponse::Error { code: 420, .. }));
    assert_eq!(bench.counters.stun_answers.get(), 5);
}

#[test]
fn without_an_alternate_port_none_is_told() {
    let mut bench = Bench::with(ServerConfig { alternate_port: false, ..config(Limits::default()) });
    let (_, response) = stun(&mut bench, primary(), StunChange::default()).unwrap();
    assert!(matches!(response, BindingResponse::Success { other: None, .. }));
    assert_eq!(stun(&mut bench, Local { port: Port::Alternate, ..primary() }, StunChange::default()), None);
}

#[test]
fn a_record_request_is_answered_with_the_servers_record() {
    let mut bench = Bench::new();
    let sent = bench.put(address(1), &RecordRequest { transaction: [5; 16] }.emit());
    let (to, from, datagram) = &sent[0];
    assert_eq!((*to, *from, sent.len()), (address(1), primary(), 1));
    let answer = RecordAnswer::parse(datagram).unwrap();
    let record = answer.record().unwrap();
    assert_eq!((answer.transaction, record.id()), ([5; 16], key(SERVER).id()));
    assert_eq!(record.record().tunnel_key, tunnel_secret(SERVER).public());
    assert_eq!(record.record().rendezvous[0].address.as_str(), PUBLIC);
}

#[test]
fn a_client_registers_renews_and_moves() {
    let mut bench = Bench::new();
    let mut agent = Agent::new(1);
    agent.connect(&mut bench);
    let registered = |observed| vec![RendezvousMessage::Registered { observed, expires_s: 60, relay: true }];
    assert_eq!(agent.register(&mut bench), registered(address(1)));
    agent.address = address(2);
    bench.pass_time(20);
    assert_eq!(agent.register(&mut bench), registered(address(2)));
    assert_eq!((bench.counters.registrations.get(), bench.counters.renewals.get()), (1, 1));
    // The record was stored once.
    assert_eq!(bench.restored().records, [agent.record()]);
    assert_eq!(bench.changes.len(), 2);
}

#[test]
fn a_ping_is_answered_before_and_after_registration() {
    let mut bench = Bench::new();
    let mut agent = Agent::new(1);
    agent.connect(&mut bench);
    for token in [1, 2] {
        let ping = agent.seal(&bench, &ControlMessage::Ping { token }.emit(ipv6(1), ipv6(SERVER)));
        let sent = bench.put(agent.address, &ping);
        assert_eq!(agent.open(&bench, &sent[0].2), ControlMessage::Pong { token });
        agent.register(&mut bench);
    }
}

#[test]
fn look_up_finds_clients_past_clients_and_the_server() {
    let mut bench = Bench::new();
    let mut asking = Agent::registered(1, &mut bench);
    let mut other = Agent::registered(2, &mut bench);
    let mut look_up = |bench: &mut Bench, number| match asking
        .ask(bench, RendezvousMessage::Lookup { id: key(number).id() })
        .as_slice()
    {
        [RendezvousMessage::LookupResult { id, record }] if *id == key(number).id() => record.clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!(look_up(&mut bench, 2), Some(other.record()));
    let reason = crate::wire::GoodbyeReason::Shutdown;
    let goodbye = other.seal(&bench, &ControlMessage::Goodbye { reason }.emit(ipv6(2), ipv6(SERVER)));
    bench.put(other.address, &goodbye);
    assert_eq!(bench.server.clients.len(), 1);
    assert_eq!(look_up(&mut bench, 2), Some(other.record()));
    assert_eq!(look_up(&mut bench, SERVER), Some(bench.server.record().clone()));
    assert_eq!(look_up(&mut bench, 3), None);
    assert_eq!((bench.counters.lookups_found.get(), bench.counters.lookups_unknown.get()), (3, 1));
}

#[test]
fn an_introduction_reaches_who_is_there() {
    let mut bench = Bench::new();
    let mut sender = Agent::registered(1, &mut bench);
    let mut recipient = Agent::registered(2, &mut bench);
    let (answers, sent) = sender.introduce(&mut bench, 2, 7);
    let status = IntroducedStatus::Delivered;
    assert_eq!(answers, [RendezvousMessage::Introduced { recipient: key(2).id(), status }]);
    let introduction = RendezvousMessage::Introduction { sealed: sealed(7), observed: address(1) };
    assert_eq!(recipient.open_all(&bench, &sent), [introduction]);
}

#[test]
fn an_introduction_waits_for_who_was_there_even_through_a_restart() {
    let mut bench = Bench::new();
    let mut sender = Agent::registered(1, &mut bench);
    let mut recipient = Agent::registered(2, &mut bench);
    bench.pass_time(61);
    sender.register(&mut bench);
    for content in 0..6 {
        bench.pass_time(1);
        let (answers, sent) = sender.introduce(&mut bench, 2, content);
        let status = IntroducedStatus::Stored;
        assert_eq!(answers, [RendezvousMessage::Introduced { recipient: key(2).id(), status }]);
        assert_eq!(sent.len(), 1, "nothing goes to a client whose registration is over");
    }
    let restored = bench.restored();
    assert_eq!(restored.introductions.len(), 4);
    let mut later = Bench::with(ServerConfig { restored, ..config(Limits::default()) });
    assert!(later.server.record().supersedes(bench.server.record()));
    recipient.connect(&mut later);
    let answers = recipient.register(&mut later);
    let introduction = |content| RendezvousMessage::Introduction { sealed: sealed(content), observed: address(1) };
    assert_eq!(answers[1..], [2, 3, 4, 5].map(introduction));
    assert_eq!(recipient.register(&mut later).len(), 1, "they are delivered once");
    assert_eq!(later.restored().introductions, []);
    let (answers, _) = sender.introduce(&mut bench, 9, 0);
    assert_eq!(answers, [RendezvousMessage::Introduced { recipient: key(9).id(), status: IntroducedStatus::Unknown }]);
}

#[test]
fn relay_frames_pass_unchanged_both_ways() {
    let mut bench = Bench::new();
    let mut one = Agent::registered(1, &mut bench);
    let mut other = Agent::registered(2, &mut bench);
    assert_eq!(one.open_channel(&mut bench, 2, 77), Ok(()));
    let frame = relay_frame(77, 100);
    assert_eq!(bench.put(one.address, &frame), [(address(2), primary(), frame.clone())]);
    assert_eq!(bench.put(other.address, &frame), [(address(1), primary(), frame.clone())]);
    // The other end moves: a sign of life in its session, and frames follow.
    other.address = address(3);
    assert_eq!(bench.put(other.address, &frame), []);
    other.register(&mut bench);
    assert_eq!(bench.put(one.address, &frame), [(address(3), primary(), frame.clone())]);
    assert_eq!(bench.put(other.address, &frame), [(address(1), primary(), frame.clone())]);
    assert_eq!((bench.counters.relay_frames.get(), bench.counters.drop_relay_source.get()), (4, 1));
}

#[test]
fn the_first_payload_travels_with_the_opening() {
    let mut bench = Bench::new();
    let mut one = Agent::registered(1, &mut bench);
    let _other = Agent::registered(2, &mut bench);
    let (peer, channel) = (key(2).id(), RelayChannel::new(5));
    let frame = relay_frame(5, 148);
    let mut first = frame[RELAY_PREFIX_LEN..].to_vec();
    let mut open = |bench: &mut Bench, first: &[u8]| {
        let datagram = one.sealed_message(bench, RendezvousMessage::RelayOpen { peer, channel, first: first.to_vec() });
        bench.put(address(1), &datagram)
    };
    assert_eq!(open(&mut bench, &first)[0], (address(2), primary(), frame));
    // What is no WireGuard message does not travel; the channel is open nevertheless.
    first[0] = 9;
    assert_eq!(open(&mut bench, &first).len(), 1);
    assert_eq!(bench.counters.drop_relay_invalid.get(), 1);
}

#[test]
fn a_session_is_renewed_without_losing_anything() {
    let mut bench = Bench::new();
    let mut one = Agent::registered(1, &mut bench);
    let _other = Agent::registered(2, &mut bench);
    one.open_channel(&mut bench, 2, 77).unwrap();
    bench.pass_time(50);
    one.connect(&mut bench);
    assert_eq!(bench.server.clients.len(), 2);
    assert_eq!(one.open_channel(&mut bench, 2, 77), Ok(()));
    assert_eq!(bench.server.channels.len(), 1);
}

#[test]
fn a_new_tunnel_key_takes_the_place_of_the_old_one() {
    let mut bench = Bench::new();
    let mut old = Agent::registered(1, &mut bench);
    let mut new = Agent::with_key(1, tunnel_secret(99), 2);
    new.connect(&mut bench);
    assert_eq!(new.register(&mut bench).len(), 1);
    assert_eq!(bench.server.clients.len(), 1);
    // Whoever still has the old key is the agent no more.
    old.connect(&mut bench);
    assert_eq!(old.register(&mut bench), []);
    assert_eq!(bench.counters.drop_register.get(), 1);
    assert_eq!(bench.restored().records, [new.record()]);
}

#[test]
fn the_record_is_renewed_while_the_server_runs() {
    let mut bench = Bench::new();
    let before = bench.server.record().clone();
    bench.pass_time(7 * 24 * 3600);
    bench.timeout();
    assert!(bench.server.record().supersedes(&before));
    let stored = bench.restored().sequence;
    assert_eq!(stored, bench.server.record().record().sequence);
}

#[test]
fn every_registration_is_told_what_the_clock_shows() {
    let mut bench = Bench::new();
    let mut agent = Agent::registered(1, &mut bench);
    bench.now.unix_ms += 77_000;
    let message = RendezvousMessage::Register { record: agent.record() };
    let datagram = agent.sealed_message(&bench, message);
    let sent = bench.put(agent.address, &datagram);
    let told = sent.iter().map(|(_, _, datagram)| agent.open(&bench, datagram)).find_map(|message| match message {
        ControlMessage::Clock { unix_ms } => Some(unix_ms),
        _ => None,
    });
    assert_eq!(told, Some(bench.now.unix_ms));
}
