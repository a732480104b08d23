//! What `status` says is wrong, each with its cause made and taken away again.

use crate::harness::{Agent, Clock, Internet, Lab, Nat, PATIENT, Server, trust, wait_until};

#[test]
#[ignore = "most of a minute: scripts/matrix left_out"]
fn a_server_that_is_gone_and_udp_that_is_blocked() {
    let internet = Internet::new();
    let cores = [(); 2].map(|()| internet.public_host(None));
    let mut servers = [Server::started(&cores[0].host), Server::started(&cores[1].host)];
    let home = internet.host_behind(Nat::PortRestricted, None);
    let agent = Agent::registered(&home.host, &[&servers[0], &servers[1]]);
    assert_eq!(codes(&agent), "");
    servers[1].kill9();
    wait_for_codes(&agent, "rendezvous_unreachable");
    servers[0].kill9();
    wait_until("nothing is heard over UDP", PATIENT, || {
        let _ = agent.json(&["netcheck"]);
        codes(&agent) == "no_udp"
    });
    servers.iter_mut().for_each(Server::start);
    wait_until("all is well again", PATIENT, || {
        let _ = agent.json(&["netcheck"]);
        codes(&agent).is_empty()
    });
}

#[test]
#[ignore = "long: scripts/matrix left_out"]
fn a_hard_nat_and_nothing_but_relays() {
    let internet = Internet::new();
    let cores = [(); 2].map(|()| internet.public_host(None));
    let servers = [Server::started(&cores[0].host), Server::started(&cores[1].host)];
    let homes = [(); 2].map(|()| internet.host_behind(Nat::SymmetricRandom, None));
    let [a, b] = [0, 1].map(|index| Agent::registered(&homes[index].host, &[&servers[0], &servers[1]]));
    wait_for_codes(&a, "hard_nat");
    trust(&a, &b);
    assert_eq!(homes[0].host.ping(b.ipv6().into(), 2), 2);
    let echoes = homes[0].host.spawn(&format!("ping -i 1 {}", b.ipv6()));
    wait_for_codes(&a, "hard_nat relay_only");
    drop(echoes);
    assert!(a.run(&["status"]).ok().contains("hard_nat"));
}

#[test]
fn links_that_are_too_narrow() {
    let lab = Lab::two_hosts();
    let [a, b] = [lab.a(), lab.b()].map(|host| {
        host.ok("ip link set eth0 mtu 1280");
        Agent::started(host)
    });
    trust(&a, &b);
    let echoes = lab.a().spawn(&format!("ping -i 0.1 -s 1230 {}", b.ipv6()));
    wait_for_codes(&a, "path_mtu_small");
    drop(echoes);
}

#[test]
fn an_address_that_comes_inside_the_range_of_aliases() {
    let lab = Lab::two_hosts();
    let agent = Agent::started(lab.a());
    assert_eq!(codes(&agent), "");
    lab.a().ok("ip addr add 100.70.0.1/24 dev eth0");
    wait_for_codes(&agent, "ipv4_range_conflict");
    lab.a().ok("ip addr del 100.70.0.1/24 dev eth0");
    wait_for_codes(&agent, "");
}

#[test]
#[cfg_attr(not(target_env = "gnu"), ignore = "the C library is not the one that calls are taken from")]
fn a_clock_that_is_off_is_told_whichever_way_as_soon_as_somebody_is_connected() {
    let lab = Lab::two_hosts();
    let clock = Clock::new(lab.directory());
    let server = Server::started(lab.b());
    for (off, words) in [(3600, "ahead of"), (-3600, "behind")] {
        clock.set(off);
        let mut agent = clock.agent(lab.a(), &[&server]);
        agent.up();
        agent.wait_until_registered(1);
        wait_for_codes(&agent, "clock_skew");
        let message = agent.health()[0]["message"].as_str().unwrap().to_owned();
        assert!(message.contains(words), "{off}: {message}");
        agent.down();
    }
    // Between two agents the one cannot know which is wrong, so both say so.
    clock.set(3600);
    let mut off = clock.agent(lab.a(), &[]);
    off.up();
    let right = Agent::started(lab.b());
    trust(&right, &off);
    wait_for_codes(&off, "clock_skew");
    wait_for_codes(&right, "clock_skew");
}

fn wait_for_codes(agent: &Agent<'_>, wanted: &str) {
    wait_until(&format!("health is {wanted:?}; it began with {:?}", codes(agent)), PATIENT, || codes(agent) == wanted);
}

fn codes(agent: &Agent<'_>) -> String {
    let health = agent.health();
    health.iter().map(|entry| entry["code"].as_str().unwrap()).collect::<Vec<_>>().join(" ")
}
