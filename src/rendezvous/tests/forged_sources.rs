//! A client can put any source on its datagrams. What that leads to has limits.

use super::*;

/// A sign of life from somewhere else.
fn appear_at(agent: &mut Agent, bench: &mut Bench, from: SocketAddr) -> Vec<Sent> {
    let keepalive = agent.seal(bench, &[]);
    agent.address = from;
    bench.put(from, &keepalive)
}

fn route_of(bench: &Bench, agent: &Agent) -> SocketAddr {
    let key = bench.server.clients.with_id(&agent.id()).unwrap();
    bench.server.clients.get(key).unwrap().route.unwrap().destination
}

#[test]
fn nothing_comes_from_the_server_itself() {
    let mut bench = Bench::new();
    let mut agent = Agent::registered(1, &mut bench);
    let behind_nat = Local { port: Port::Primary, ip: "10.0.0.1".parse().ok() };
    let own = [PUBLIC, "203.0.113.1:41642"].map(|own| (own, primary()));
    for (own, local) in own.into_iter().chain([("10.0.0.1:41641", behind_nat)]) {
        let keepalive = agent.seal(&bench, &[]);
        assert_eq!(bench.put_at(own.parse().unwrap(), local, &keepalive), []);
        assert_eq!(route_of(&bench, &agent), address(1), "{own}");
    }
    assert_eq!(bench.counters.drop_source.get(), 3);
    // Another program on the server's host.
    appear_at(&mut agent, &mut bench, "203.0.113.1:9".parse().unwrap());
    assert_eq!(route_of(&bench, &agent), agent.address);
}

#[test]
fn a_channel_does_not_lead_back_to_where_a_frame_came_from() {
    let mut bench = Bench::new();
    let mut one = Agent::registered(1, &mut bench);
    let mut two = Agent::registered(2, &mut bench);
    one.open_channel(&mut bench, 2, 7).unwrap();
    // Both are at another server, which sends back what it is sent.
    let elsewhere = address(66);
    for agent in [&mut one, &mut two] {
        let sent = appear_at(agent, &mut bench, elsewhere);
        agent.prove(&mut bench, sent);
    }
    assert_eq!(bench.put(elsewhere, &relay_frame(7, 64)), []);
    assert_eq!((bench.counters.drop_relay_loop.get(), bench.counters.relay_frames.get()), (1, 0));
    assert_eq!(one.open_channel(&mut bench, 2, 8), Err(RelayRefusal::Full));
}

#[test]
fn moves_are_limited() {
    let mut bench = Bench::new();
    let mut agent = Agent::registered(1, &mut bench);
    let followed = |bench: &mut Bench, agent: &mut Agent| {
        (10..20)
            .filter(|host| {
                appear_at(agent, bench, address(*host));
                route_of(bench, agent) == address(*host)
            })
            .count()
    };
    assert_eq!(followed(&mut bench, &mut agent), 4);
    assert_eq!(bench.counters.drop_client_moves.get(), 6);
    bench.pass_time(1);
    assert_eq!(followed(&mut bench, &mut agent), 4);
}

#[test]
fn a_clients_address_stays_its_own() {
    let mut bench = Bench::new();
    let victim = Agent::registered(1, &mut bench);
    let mut attacker = Agent::registered(2, &mut bench);
    let key_at = |bench: &Bench| bench.server.clients.is_known_address(victim.address);
    appear_at(&mut attacker, &mut bench, victim.address);
    assert!(key_at(&bench));
    appear_at(&mut attacker, &mut bench, address(3));
    assert!(key_at(&bench), "the victim is still there");
    appear_at(&mut attacker, &mut bench, victim.address);
    bench.server.forget(bench.server.clients.with_id(&victim.id()).unwrap());
    assert!(!key_at(&bench));
    appear_at(&mut attacker, &mut bench, victim.address);
    assert!(key_at(&bench), "then it is free");
}

/// Two clients with a channel, of which the second puts a victim's address on one packet. Returns what the victim is sent
/// besides the answer to that packet.
fn forging_pair(bench: &mut Bench) -> (Agent, Agent, Vec<Sent>) {
    let mut accomplice = Agent::registered(1, bench);
    let mut forger = Agent::registered(2, bench);
    accomplice.open_channel(bench, 2, 7).unwrap();
    let to_victim = appear_at(&mut forger, bench, address(66));
    (accomplice, forger, to_victim)
}

#[test]
fn no_frame_and_no_introduction_reaches_a_forged_source() {
    let mut bench = Bench::new();
    let (mut accomplice, mut forger, mut to_victim) = forging_pair(&mut bench);
    let frame = relay_frame(7, 1000);
    for second in 0..120 {
        for _ in 0..10 {
            to_victim.extend(bench.put(accomplice.address, &frame));
        }
        to_victim.extend(accomplice.introduce(&mut bench, 2, 1).1);
        let renewed = accomplice.open_channel(&mut bench, 2, 8);
        // Four Pings later it is not where it was either; the bench looks once a second.
        assert_eq!(renewed, if second < 5 { Ok(()) } else { Err(RelayRefusal::UnknownPeer) }, "{second} s");
        bench.pass_time(1);
        to_victim.extend(bench.timeout());
        if second % 20 == 19 {
            accomplice.register(&mut bench);
        }
    }
    to_victim.retain(|(to, ..)| *to == forger.address);
    assert_eq!(to_victim.len(), 4);
    for (_, _, datagram) in to_victim {
        assert!(datagram.len() <= 84, "{} bytes", datagram.len());
        assert!(matches!(forger.open(&bench, &datagram), ControlMessage::Ping { .. }));
    }
    assert_eq!(bench.counters.drop_client_unproved.get(), 1);
    assert!(bench.counters.drop_relay_unproved.get() > 0);
}

#[test]
fn frames_go_to_where_a_client_was_until_it_has_proved_where_it_is() {
    let mut bench = Bench::new();
    let (accomplice, mut mover, asked) = forging_pair(&mut bench);
    let frame = relay_frame(7, 100);
    let sent_to = |bench: &mut Bench, from| bench.put(from, &frame).first().map(|(to, ..)| *to);
    assert_eq!(sent_to(&mut bench, accomplice.address), Some(address(2)));
    // What it sends passes from there already, and from where it was.
    for from in [mover.address, address(2)] {
        assert_eq!(sent_to(&mut bench, from), Some(accomplice.address), "{from}");
    }
    mover.prove(&mut bench, asked);
    assert_eq!(sent_to(&mut bench, accomplice.address), Some(mover.address));
    assert_eq!(sent_to(&mut bench, mover.address), Some(accomplice.address));
    assert_eq!(sent_to(&mut bench, address(2)), None);
}

#[test]
fn a_token_proves_only_the_address_it_was_sent_to_and_the_newest() {
    let mut bench = Bench::new();
    let (accomplice, mut forger, asked) = forging_pair(&mut bench);
    let ControlMessage::Ping { token } = forger.open(&bench, &asked[0].2) else { panic!("not asked") };
    let sent_to = |bench: &mut Bench| bench.put(accomplice.address, &relay_frame(7, 100)).first().map(|(to, ..)| *to);
    // A guess, and the token from where it was not sent to.
    forger.pong(&mut bench, token ^ 1);
    assert_eq!(sent_to(&mut bench), Some(address(2)));
    forger.address = address(67);
    forger.pong(&mut bench, token);
    assert_eq!(sent_to(&mut bench), Some(address(2)));
    // Back where it was: nothing is to be proved, and the tokens are void.
    assert_eq!(appear_at(&mut forger, &mut bench, address(2)), []);
    assert_eq!(bench.server.proofs.next_timeout(), None);
    forger.address = address(66);
    forger.pong(&mut bench, token);
    assert_eq!(sent_to(&mut bench), Some(address(2)));
    // Where it moved once too often it is not, whatever it knows.
    bench.pass_time(1);
    let asked = (67..71).map(|host| appear_at(&mut forger, &mut bench, address(host)).remove(0)).last().unwrap();
    let ControlMessage::Ping { token } = forger.open(&bench, &asked.2) else { panic!("not asked") };
    forger.address = address(71);
    forger.pong(&mut bench, token);
    assert_eq!(sent_to(&mut bench), Some(address(2)));
    forger.address = address(70);
    forger.pong(&mut bench, token);
    assert_eq!(sent_to(&mut bench), Some(address(70)));
}

#[test]
fn a_first_address_is_to_be_proved_as_well() {
    let mut bench = Bench::new();
    let mut accomplice = Agent::registered(1, &mut bench);
    let mut forger = Agent::new(2);
    // The response to its own initiation, and then everything else as if from the victim.
    forger.connect(&mut bench);
    forger.address = address(66);
    let record = forger.record();
    let register = forger.sealed_message(&bench, RendezvousMessage::Register { record });
    let asked = bench.put(forger.address, &register);
    assert_eq!(accomplice.open_channel(&mut bench, 2, 7), Err(RelayRefusal::UnknownPeer));
    // Introductions wait.
    let (answers, sent) = accomplice.introduce(&mut bench, 2, 1);
    assert_eq!(answers, [RendezvousMessage::Introduced { recipient: forger.id(), status: IntroducedStatus::Stored }]);
    assert!(sent.iter().all(|(to, ..)| *to == accomplice.address));
    let brought = forger.prove(&mut bench, asked);
    assert!(matches!(brought[..], [RendezvousMessage::Registered { .. }, RendezvousMessage::Introduction { .. }]));
    assert_eq!(accomplice.open_channel(&mut bench, 2, 7), Ok(()));
}
