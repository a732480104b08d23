//! The configuration of a running agent changes: by command, by signal, and not at all when it is not valid.

use serde_json::json;

use crate::harness::{Agent, Internet, Nat, SOON, Server, error_code, signal, trust, wait_until};

#[test]
fn what_can_change_does_and_the_rest_is_named() {
    let internet = Internet::new();
    let cores = [(); 2].map(|()| internet.public_host(None));
    let servers = [Server::started(&cores[0].host), Server::started(&cores[1].host)];
    let homes = [(); 2].map(|()| internet.host_behind(Nat::PortRestricted, None));
    let mut agent = Agent::new(&homes[0].host);
    let file = agent.directory().join("agentnet.toml");
    let write = |text: String| std::fs::write(&file, text).unwrap();
    write(format!("name = \"one\"\nrendezvous = [\"{}\"]\n", servers[0].reference()));
    // The environment would win over the file.
    agent.wrapper = ["env", "-u", "AGENTNET_LOG"].map(Into::into).to_vec();
    agent.flags = vec!["--config".into(), file.display().to_string()];
    agent.up();
    agent.wait_until_registered(1);
    let peer = Agent::registered(&homes[1].host, &[&servers[0]]);
    trust(&agent, &peer);
    assert_eq!(agent.json(&["reload"]), json!({"applied": [], "needs_restart": []}));

    let second = servers[1].reference();
    let live = format!("name = \"two\"\nrendezvous = [\"{second}\"]\nlog_level = \"debug\"\n");
    write(format!("{live}mtu = 1300\nmetrics_listen = \"9464\"\n"));
    let reloaded = agent.json(&["reload"]);
    let (applied, rest) = (["name", "rendezvous", "log_level"], ["metrics_listen", "mtu"]);
    assert_eq!(reloaded, json!({"applied": applied, "needs_restart": rest}));
    assert_eq!(agent.json(&["id"])["name"], "two");
    wait_until("it is registered with the other server alone", SOON, || {
        let status = agent.json(&["status"]);
        let servers = status["rendezvous"].as_array().unwrap();
        let own = servers.iter().find(|server| second.starts_with(server["id"].as_str().unwrap()));
        own.is_some_and(|server| server["state"] == "connected")
    });
    wait_until("the peer knows the new name", SOON, || peer.peer(&agent.id()).unwrap()["name"] == "two");
    // Once more, it is still to be restarted for.
    assert_eq!(agent.json(&["reload"]), json!({"applied": [], "needs_restart": rest}));
    let running = agent.json(&["config", "show", "--running"]);
    let value = |key: &str| {
        let settings = running["settings"].as_array().unwrap();
        settings.iter().find(|setting| setting["key"] == key).unwrap()["value"].as_str().unwrap().to_owned()
    };
    assert_eq!((value("name").as_str(), value("mtu").as_str()), ("two", "1420"));

    write(format!("{live}port = 70000\n").replace("two", "three"));
    let refused = agent.run_json(&["reload"]);
    assert_eq!(error_code(&refused), "config_invalid", "{refused}");
    assert!(refused.stdout.contains("line 4"), "{refused}");
    assert_eq!(agent.json(&["id"])["name"], "two", "a file that is not valid changed something");

    write(live.replace("two", "four"));
    signal("HUP", agent.pid());
    wait_until("the signal is heard", SOON, || agent.json(&["id"])["name"] == "four");
    assert!(agent.log().contains("the configuration was read again"), "{}", agent.log());
}
