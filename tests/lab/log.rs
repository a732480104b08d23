//! The log as its readers need it: as text or JSON, and with the number of the connection that a line is about.

use serde_json::Value;

use crate::harness::{Agent, Lab, SOON, trust, wait_until};

#[test]
fn the_lines_of_one_connection_have_its_number_and_the_next_has_another() {
    let lab = Lab::two_hosts();
    let mut a = Agent::new(lab.a());
    a.flags = vec!["--log-format".into(), "json".into()];
    a.up();
    let mut b = Agent::started(lab.b());
    trust(&a, &b);
    wait_until("both are connected", SOON, || connections(&a).len() == 1);
    assert_eq!(lab.a().ping(b.ipv6().into(), 1), 1);
    let first = connections(&a);
    assert_eq!(first.len(), 1, "{first:?}");
    b.down();
    b.up();
    wait_until("there is another connection, and it has another number", SOON, || {
        let _ = lab.a().ping(b.ipv6().into(), 1);
        connections(&a).len() > 1
    });
}

/// Numbers of the connections with sessions, each once, as the log has them.
fn connections(agent: &Agent<'_>) -> Vec<u64> {
    let log = std::fs::read_to_string(agent.directory().join("agentnet.log")).unwrap();
    let whole = log.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let mut numbers = Vec::new();
    for line in whole.lines() {
        let line: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        let fields = &line["fields"];
        let is_about = ["connected", "connected at", "path chosen", "handshake answered"];
        if is_about.contains(&fields["message"].as_str().unwrap()) {
            assert!(fields["peer"].is_string(), "{line}");
            numbers.push(fields["conn"].as_u64().unwrap());
        }
    }
    numbers.dedup();
    numbers
}
