//! Commands that an agent answers.

use std::process::{Command, Stdio};

use super::fake_agent::{FakeAgent, ID, error, identity, status};

fn entry(trust: &str) -> String {
    format!(
        "{{\"id\":\"{ID}\",\"name\":\"data-2\",\"ipv6\":\"fd61:6e74::2\",\"ipv4\":null,\"trust\":\"{trust}\",\
         \"reason\":null,\"ports\":null,\"expires_s\":null,\"since_s\":0,\"from\":null}}"
    )
}

#[test]
fn a_trust_request_says_what_the_other_side_does_next() {
    let agent = FakeAgent::start(|asked| {
        let body = if asked.line == "GET /v1/id" { identity() } else { entry("requested") };
        Some((200, body))
    });
    let request = ["trust", "request", "data-2", "--reason", "to build", "--ports", "tcp/22", "--ttl", "12h"];
    let outcome = agent.run(&request);
    assert_eq!(
        outcome.whole(),
        "status: 0\n--- stdout\n\
         data-2 (47pjoycnsr) is trusted from this side, and asked to do the same. It connects once it agrees.\n\
         --- stderr\nOn the other host: agentnet trust approve 47pjoycnsr\n"
    );
    let asked = agent.asked();
    assert_eq!(asked[1].line, "POST /v1/trust/request");
    assert_eq!(asked[1].body, "{\"peer\":\"data-2\",\"reason\":\"to build\",\"ports\":\"tcp/22\",\"ttl_s\":43200}");
    let quiet = agent.run(&["--quiet", "trust", "request", "data-2"]);
    assert_eq!(quiet.stderr, "");
    let json = agent.run(&["--json", "trust", "request", "data-2"]);
    assert_eq!((&json.document()["trust"], json.stderr.as_str()), (&"requested".into(), ""));
}

#[test]
fn decisions_go_to_their_own_paths() {
    for (action, trust) in [("approve", "trusted"), ("reject", "rejected"), ("revoke", "revoked")] {
        let agent = FakeAgent::start(move |_| Some((200, entry(trust))));
        assert_eq!(agent.run(&["trust", action, "data-2"]).status, Some(0));
        assert_eq!(agent.asked()[0].line, format!("POST /v1/trust/{action}"));
        assert_eq!(agent.asked()[0].body, "{\"peer\":\"data-2\"}");
    }
}

#[test]
fn errors_of_the_agent_end_with_their_own_status() {
    for (code, wanted) in
        [("peer_not_found", 5), ("not_permitted", 4), ("ticket_invalid", 2), ("timed_out", 6), ("limit_reached", 1)]
    {
        let agent = FakeAgent::start(move |_| Some((400, error(code))));
        let outcome = agent.run(&["trust", "approve", "x"]);
        assert_eq!((outcome.status, outcome.stderr.as_str()), (Some(wanted), "error: the message\nhint: the hint\n"));
    }
}

#[test]
fn peers_are_escaped_in_queries() {
    let agent = FakeAgent::start(|_| Some((404, error("peer_not_found"))));
    agent.run(&["why", "a b&c"]);
    assert_eq!(agent.asked()[0].line, "GET /v1/why?peer=a%20b%26c");
}

#[test]
fn an_agent_that_hangs_up_is_no_agent() {
    let agent = FakeAgent::start(|_| None);
    assert_eq!(agent.run(&["id"]).status, Some(3));
}

/// A state directory in which nothing can be made, should `up` try to start an agent after all.
const NOWHERE: [&str; 2] = ["--state-dir", "/dev/null/state"];

#[test]
fn up_reports_the_agent_that_runs() {
    let agent = FakeAgent::start(|asked| {
        let body = match asked.line.as_str() {
            "GET /v1/id" => identity(),
            "GET /v1/status" => status(4711),
            _ => "{\"settings\":[{\"key\":\"port\",\"value\":\"41641\",\"origin\":\"state\"}]}".to_owned(),
        };
        Some((200, body))
    });
    let up = |more: &[&str]| agent.run(&NOWHERE.iter().chain(&["up"]).chain(more).copied().collect::<Vec<_>>());
    let json = up(&["--json"]).document();
    assert_eq!((&json["already_running"], json["pid"].as_u64()), (&true.into(), Some(4711)));
    assert_eq!((&json["interface"], &json["id"]), (&"agentnet0".into(), &ID.into()));
    let other = up(&["--port", "5000"]);
    assert!(other.stdout.starts_with("build-7 is already running (process 4711).\n"), "{}", other.stdout);
    assert!(other.stderr.starts_with("The running agent was started otherwise: port is 41641."), "{}", other.stderr);
    assert!(!up(&["--port", "41641"]).stderr.contains("otherwise"));
}

#[test]
fn down_waits_until_socket_and_process_are_gone() {
    let mut process = Command::new("sleep").arg("60").stdin(Stdio::null()).spawn().unwrap();
    let pid = process.id();
    let socket = std::sync::Arc::new(std::sync::OnceLock::<std::path::PathBuf>::new());
    let known = std::sync::Arc::clone(&socket);
    let agent = FakeAgent::start(move |asked| {
        if asked.line == "POST /v1/down" {
            // Later than the answer, as an agent cleans up after it.
            let socket = known.get().unwrap().clone();
            std::thread::spawn(move || {
                std::thread::sleep(std::time::Duration::from_millis(150));
                std::fs::remove_file(socket).unwrap();
                std::thread::sleep(std::time::Duration::from_millis(150));
                Command::new("kill").arg(pid.to_string()).status().unwrap();
            });
        }
        Some((200, status(pid)))
    });
    socket.set(agent.socket().to_owned()).unwrap();
    let begun = std::time::Instant::now();
    let outcome = agent.run(&["down", "--json"]);
    let took = begun.elapsed();
    process.kill().unwrap();
    process.wait().unwrap();
    assert_eq!(outcome.stdout, format!("{{\"was_running\":true,\"pid\":{pid}}}\n"), "{}", outcome.stderr);
    assert!(took.as_millis() >= 300, "did not wait: {took:?}");
}

#[test]
fn metrics_are_printed_as_the_agent_sent_them() {
    let text = "# HELP a Words.\n# TYPE a gauge\na 1.0\n";
    let agent = FakeAgent::start(move |_| Some((200, text.to_owned())));
    assert_eq!(agent.run(&["metrics"]).stdout, text);
    assert_eq!(agent.asked()[0].line, "GET /v1/metrics");
    assert_eq!(agent.run(&["--json", "metrics"]).document()["text"], text);
}

#[test]
fn a_check_of_the_network_is_printed_as_the_agent_sent_it() {
    let document = "{\"udp\":false,\"ipv4\":{\"local\":[\"192.0.2.1\"],\"mapped\":null,\"behind_nat\":null},\
        \"ipv6\":{\"local\":[],\"mapped\":null,\"behind_nat\":null},\"mapping\":null,\"mapping_certain\":null,\
        \"port_step\":null,\"port_preserved\":null,\"filtering\":null,\"hairpinning\":null,\
        \"port_mapping\":{\"state\":\"no_gateway\",\"gateway\":null,\"protocol\":null,\"address\":null,\"reason\":null},\
        \"nat\":\"not known\",\
        \"rendezvous\":[],\"advice\":[{\"code\":\"udp_blocked\",\"message\":\"m\",\"hint\":\"h\"}]}";
    let agent = FakeAgent::start(move |_| Some((200, document.to_owned())));
    let outcome = agent.run(&["--json", "netcheck"]);
    assert_eq!(agent.asked()[0].line, "GET /v1/netcheck");
    assert_eq!(outcome.document(), serde_json::from_str::<serde_json::Value>(document).unwrap());
    let text = agent.run(&["netcheck"]).stdout;
    assert!(text.contains("is blocked: no server answered") && text.contains("192.0.2.1; no server sees it"), "{text}");
}
