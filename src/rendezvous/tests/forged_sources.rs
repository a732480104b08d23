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
    // Both pretend to be at another server, which sends back what it is sent.
    let elsewhere = address(66);
    for agent in [&mut one, &mut two] {
        appear_at(agent, &mut bench, elsewhere);
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
