//! Ports that routers give: by them agents meet that no NAT would let meet, and they are given back.

use std::net::SocketAddr;

use serde_json::{Value, json};

use crate::harness::{Agent, Internet, Nat, PATIENT, SOON, Server, Shape, Upnpd, trust, wait_for, wait_until};

/// Asks the gateway, whatever the lab does otherwise.
const ON: [&str; 2] = ["--port-mapping", "on"];

#[test]
fn one_mapped_port_lets_two_hard_nats_meet() {
    let internet = Internet::new();
    let shape = || Some(Shape::delay(10));
    let core = internet.public_host(shape());
    let homes = [(); 2].map(|()| internet.host_behind(Nat::SymmetricRandom, shape()));
    let server = Server::started(&core.host);
    let router = Upnpd::started(&internet, homes[0].router(), true, true);
    let [mut a, mut b] = [0, 1].map(|number| Agent::new(&homes[number].host));
    for agent in [&mut a, &mut b] {
        agent.flags = vec!["--rendezvous".into(), server.reference().into()];
    }
    a.flags.extend(ON.map(Into::into));
    a.up();
    let given = address(&mapped(&a, &router, "pcp"));
    assert_eq!(given, SocketAddr::new(router.external.into(), a.port()));
    b.up();
    for agent in [&a, &b] {
        agent.wait_until_registered(1);
    }
    assert_eq!(b.json(&["netcheck"])["port_mapping"]["state"], json!("off"));
    trust(&b, &a);
    wait_until("b reaches a by the port of its router", PATIENT, || {
        let peer = b.peer(&a.id()).unwrap_or(Value::Null);
        (&peer["path"]["kind"], &peer["path"]["endpoint"]) == (&json!("direct"), &json!(given.to_string()))
    });
    assert!(b.host().ping(a.ipv6().into(), 5) > 0);
    a.down();
    assert_eq!(router.mapped(), Vec::<String>::new(), "{}", router.log());
}

#[test]
fn upnp_is_spoken_where_nothing_else_is() {
    let internet = Internet::new();
    let home = internet.host_behind(Nat::PortRestricted, None);
    let router = Upnpd::started(&internet, home.router(), false, true);
    let mut agent = Agent::new(&home.host);
    agent.flags = ON.map(Into::into).to_vec();
    agent.up();
    assert_eq!(address(&mapped(&agent, &router, "upnp")).port(), agent.port());
    agent.down();
    assert_eq!(router.mapped(), Vec::<String>::new(), "{}", router.log());
}

#[test]
fn a_router_that_gives_nothing_is_named() {
    let internet = Internet::new();
    let home = internet.host_behind(Nat::PortRestricted, None);
    let mut agent = Agent::new(&home.host);
    agent.flags = ON.map(Into::into).to_vec();
    agent.up();
    wait_until("the gateway has not answered", SOON, || {
        let found = agent.json(&["netcheck"]);
        let check = &found["port_mapping"];
        (&check["state"], &check["gateway"]) == (&json!("none"), &json!("192.168.1.1"))
    });
    agent.down();
}

/// What `netcheck` says when the router has given a port, and that the router has.
fn mapped(agent: &Agent<'_>, router: &Upnpd<'_>, protocol: &str) -> Value {
    let check = wait_for("the router has given a port", SOON, || {
        let found = agent.json(&["netcheck"])["port_mapping"].clone();
        (found["state"] == "mapped").then_some(found)
    });
    assert_eq!((&check["protocol"], &check["gateway"]), (&json!(protocol), &json!("192.168.1.1")), "{check}");
    assert_eq!(router.mapped().len(), 1, "{check}\n{}", router.log());
    check
}

fn address(check: &Value) -> SocketAddr {
    check["address"].as_str().and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("no address in {check}"))
}
