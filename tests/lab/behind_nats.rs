//! Two agents behind NATs, and a rendezvous server both know.

use std::time::Duration;

use serde_json::Value;

use crate::harness::{Agent, Internet, Nat, SOON, Server, Shape, trust, wait_until};

/// A quarter of a round trip of 40 ms: each way crosses the accesses of both sides.
const ACCESS: Duration = Duration::from_millis(10);

#[test]
fn cones_meet_and_leave_the_relay() {
    let internet = Internet::new();
    let shape = || Some(Shape { delay: ACCESS, ..Shape::default() });
    let core = internet.public_host(shape());
    let homes = [Nat::PortRestricted, Nat::PortRestricted].map(|nat| internet.host_behind(nat, shape()));
    let server = Server::started(&core.host);
    let [a, b] = [0, 1].map(|number| behind(&homes[number].host, &server));
    trust(&a, &b);
    a.run(&["ping", &b.id(), "--until-direct", "--interval", "0.1"]).ok();
    assert_eq!(kind(&a, &b), "direct", "{}", a.log());
    wait_until("the other side goes direct too", SOON, || kind(&b, &a) == "direct");
}

/// An agent that knows the server, and is registered with it.
fn behind<'lab>(host: &'lab crate::harness::Host, server: &Server<'_>) -> Agent<'lab> {
    let mut agent = Agent::new(host);
    agent.flags = vec!["--rendezvous".into(), server.reference().into()];
    agent.up();
    wait_until("the agent is registered", SOON, || agent.json(&["status"])["rendezvous"][0]["state"] == "connected");
    agent
}

fn kind(one: &Agent<'_>, other: &Agent<'_>) -> String {
    one.peer(&other.id()).map_or(Value::Null, |peer| peer["path"]["kind"].clone()).as_str().unwrap_or("?").to_owned()
}
