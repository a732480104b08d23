use super::agentnet;

const ID: &str = "47pjoycnsrfmxikm95jh13y88e8qnhzu5kungjpxyepgt7a8krpy";

/// `up` is refused before it touches anything, as a path through a file can hold no state.
const NOWHERE: [&str; 2] = ["--state-dir", "/dev/null/state"];

#[test]
fn discovery_is_refused_by_name() {
    for command in [&["up"][..], &["daemon"], &["config", "show"]] {
        let outcome = agentnet(NOWHERE.iter().chain(command).chain(&["--discovery", "lan,dht"]));
        assert_eq!(
            outcome.whole(),
            "status: 1\n--- stdout\n--- stderr\n\
             error: --discovery: names `lan`, a way to find agents that this version does not offer yet\n\
             hint: use `none`; agents meet by exchanging tickets (`agentnet ticket`)\n"
        );
    }
}

#[test]
fn rendezvous_servers_are_taken_when_they_are_well_formed() {
    let show = |reference: &str| agentnet(["--json", "config", "show", "--rendezvous", reference]);
    let outcome = show(&format!("{ID}@rendezvous.example.org:41641"));
    assert_eq!(outcome.status, Some(0), "{}", outcome.whole());
    let outcome = show("rendezvous.example.org:41641");
    assert_eq!((outcome.status, &outcome.document()["error"]["code"]), (Some(2), &"usage".into()));
}

#[test]
fn commands_of_later_versions_do_not_exist() {
    for command in ["network", "find", "policy", "key", "audit"] {
        assert_eq!(agentnet([command]).status, Some(2), "{command}");
    }
}
