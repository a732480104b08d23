//! Several agents on one host work side by side.

use crate::harness::{Agent, Lab, trust};

#[test]
fn two_agents_on_one_host_are_both_reached() {
    let lab = Lab::two_hosts();
    let (first, second) = (Agent::started(lab.a()), Agent::started(lab.a()));
    assert_ne!(first.interface(), second.interface());
    assert_ne!(first.port(), second.port());
    let far = Agent::started(lab.b());
    for agent in [&first, &second] {
        trust(agent, &far);
    }
    for agent in [&first, &second] {
        for address in far.addresses_of(agent) {
            lab.b().wait_until_reaches(address);
            assert_eq!(lab.b().ping(address, 10), 10, "echoes from {address}");
        }
    }
}

#[test]
fn two_agents_on_one_host_reach_each_other() {
    let lab = Lab::two_hosts();
    let (first, second) = (Agent::started(lab.a()), Agent::started(lab.a()));
    trust(&first, &second);
    for (one, other) in [(&first, &second), (&second, &first)] {
        let replies = one.run_json(&["ping", &other.id(), "-c", "1"]).ok();
        assert!(replies.contains(&other.id()), "{replies}");
    }
}
