//! `agentnet netcheck` behind NATs of every kind, with two rendezvous servers to ask.

use serde_json::json;

use crate::harness::{Agent, Internet, Nat, SOON, Server, Shape, wait_until};

/// A quarter of a round trip of 40 ms: each way crosses the accesses of both sides.
const ACCESS_MS: u64 = 10;

#[test]
#[ignore = "long: scripts/matrix left_out"]
fn the_nat_is_named_and_the_round_trip_measured() {
    let internet = Internet::new();
    let shape = || Some(Shape::delay(ACCESS_MS));
    let cores = [(); 2].map(|()| internet.public_host(shape()));
    let servers = [Server::started(&cores[0].host), Server::started(&cores[1].host)];
    for (nat, mapping, behind_nat) in [
        (Nat::None, "endpoint_independent", false),
        (Nat::PortRestricted, "endpoint_independent", true),
        (Nat::SymmetricRandom, "endpoint_dependent", true),
        (Nat::SymmetricSequential, "endpoint_dependent", true),
    ] {
        let home = internet.host_behind(nat, shape());
        let mut agent = Agent::new(&home.host);
        agent.flags = servers.iter().flat_map(|server| ["--rendezvous".into(), server.reference().into()]).collect();
        agent.up();
        let found = agent.json(&["netcheck"]);
        let what = format!("{nat:?}: {found}\n{}", agent.log());
        assert_eq!((&found["udp"], &found["mapping"]), (&json!(true), &json!(mapping)), "{what}");
        assert_eq!(found["ipv4"]["behind_nat"], json!(behind_nat), "{what}");
        assert_eq!(found["mapping_certain"], json!(true), "{what}");
        // The first packets waited for neighbours to be found.
        wait_until("the round trips are right", SOON, || {
            round_trips(&agent).iter().all(|ms| (39.0..60.0).contains(ms))
        });
        if nat == Nat::SymmetricSequential {
            assert_eq!(found["port_step"], json!(1), "{what}");
        }
        agent.down();
    }
}

fn round_trips(agent: &Agent<'_>) -> Vec<f64> {
    let found = agent.json(&["netcheck"]);
    found["rendezvous"].as_array().unwrap().iter().map(|server| server["rtt_ms"].as_f64().unwrap()).collect()
}

#[test]
fn without_a_server_that_answers_udp_is_said_to_be_blocked() {
    let internet = Internet::new();
    let core = internet.public_host(None);
    let mut server = Server::started(&core.host);
    server.kill9();
    let home = internet.host_behind(Nat::PortRestricted, None);
    let mut agent = Agent::new(&home.host);
    agent.flags = vec!["--rendezvous".into(), server.reference().into()];
    agent.up();
    let found = agent.json(&["netcheck"]);
    assert_eq!((&found["udp"], &found["advice"][0]["code"]), (&json!(false), &json!("udp_blocked")), "{found}");
    server.start();
    wait_until("the server is heard", SOON, || agent.json(&["netcheck"])["udp"] == json!(true));
}
