//! What Prometheus reads: of an agent and of a rendezvous server, while something happens to them.

use std::io::Write;
use std::process::{Command, Stdio};

use crate::harness::{Agent, Finished, Host, Internet, Lab, Nat, SOON, Server, trust, wait_until};

#[test]
fn an_agent_is_read_over_its_socket_and_over_tcp() {
    let lab = Lab::two_hosts();
    let mut a = Agent::new(lab.a());
    a.flags = vec!["--metrics-listen".into(), "9464".into()];
    a.up();
    let b = Agent::started(lab.b());
    trust(&a, &b);
    assert_eq!(lab.a().ping(b.ipv6().into(), 3), 3);
    wait_until("a probe was answered", SOON, || value(&a, "agentnet_round_trip_seconds_count{path=\"direct\"}") > 0.0);
    for (series, least) in [
        ("agentnet_peers{path=\"direct\"}", 1.0),
        ("agentnet_relations{trust=\"trusted\"}", 1.0),
        ("agentnet_packets_total{direction=\"out\"}", 3.0),
        ("agentnet_packets_total{direction=\"in\"}", 3.0),
        ("agentnet_bytes_total{direction=\"in\",path=\"direct\"}", 3.0 * 104.0),
        ("agentnet_handshakes_total{result=\"ok\"}", 1.0),
        ("agentnet_trust_events_total{event=\"requested\"}", 1.0),
        ("agentnet_delivery_success_ratio", 0.5),
        ("process_resident_memory_bytes", 1e6),
    ] {
        assert!(value(&a, series) >= least, "{series} is less than {least} in\n{}", text(&a));
    }
    assert_eq!(value(&b, "agentnet_trust_events_total{event=\"asked\"}"), 1.0);
    assert_eq!(value(&b, "agentnet_trust_events_total{event=\"approved\"}"), 1.0);
    let served = fetch(lab.a(), "http://127.0.0.1:9464/metrics").ok();
    assert_eq!(names(&served), names(&text(&a)), "not the same over TCP");
    assert!(!fetch(lab.b(), &format!("http://{}:9464/metrics", lab.a().ipv4)).status.success(), "open to others");
    a.down();
    a.flags.clear();
    a.up();
    assert!(!fetch(lab.a(), "http://127.0.0.1:9464/metrics").status.success(), "served although nobody asked for it");
}

#[test]
fn an_agent_starts_without_its_metrics_address_and_says_so() {
    let lab = Lab::two_hosts();
    let mut agent = Agent::new(lab.a());
    agent.flags = vec!["--metrics-listen".into(), "203.0.113.77:9464".into()];
    agent.up();
    assert!(agent.health().iter().any(|entry| entry["code"] == "metrics_not_served"), "{:?}", agent.health());
    assert_eq!(value(&agent, "agentnet_health{code=\"metrics_not_served\"}"), 1.0);
}

#[test]
fn relayed_traffic_is_told_apart() {
    let internet = Internet::new();
    let core = internet.public_host(None);
    let server = Server::with_flags(&core.host, &["--metrics-listen", "127.0.0.1:9464"]);
    let homes = [(); 2].map(|()| internet.host_behind(Nat::SymmetricRandom, None));
    let [a, b] = [0, 1].map(|index| Agent::registered(&homes[index].host, &[&server]));
    trust(&a, &b);
    assert_eq!(homes[0].host.ping(b.ipv6().into(), 3), 3);
    assert_eq!(a.path_kind(&b), "relayed");
    assert!(value(&a, "agentnet_bytes_total{direction=\"out\",path=\"relayed\"}") >= 312.0, "{}", text(&a));
    assert!(value(&a, "agentnet_bytes_total{direction=\"in\",path=\"relayed\"}") >= 312.0, "{}", text(&a));
    assert_eq!(value(&a, "agentnet_relay_usage_ratio"), 1.0);
    assert_eq!(value(&a, "agentnet_peers{path=\"relayed\"}"), 1.0);
    let served = fetch(&core.host, "http://127.0.0.1:9464/metrics").ok();
    assert!(number(&served, "agentnet_rendezvous_relay_bytes_total") >= 624.0, "{served}");
    assert!(number(&served, "agentnet_rendezvous_registrations_total") >= 2.0, "{served}");
}

#[test]
#[ignore = "needs promtool, of a large package; scripts/matrix metrics"]
fn promtool_has_no_complaint() {
    let lab = Lab::two_hosts();
    let server = Server::with_flags(lab.b(), &["--metrics-listen", "127.0.0.1:9464"]);
    let agent = Agent::registered(lab.a(), &[&server]);
    for text in [text(&agent), fetch(lab.b(), "http://127.0.0.1:9464/metrics").ok()] {
        let mut command = Command::new("promtool");
        command.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut promtool = command.spawn().expect("promtool is installed");
        promtool.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        let output = promtool.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.is_empty(), "{said}\n{text}");
    }
}

fn text(agent: &Agent<'_>) -> String {
    agent.run(&["metrics"]).ok()
}

fn value(agent: &Agent<'_>, series: &str) -> f64 {
    number(&text(agent), series)
}

fn number(text: &str, series: &str) -> f64 {
    let found = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    found.unwrap_or_else(|| panic!("no {series} in\n{text}")).parse().unwrap()
}

/// The names of all families.
fn names(text: &str) -> Vec<&str> {
    text.lines().filter(|line| line.starts_with("# TYPE ")).collect()
}

fn fetch(host: &Host, url: &str) -> Finished {
    host.run(&format!("curl --silent --show-error --fail --max-time 5 {url}"))
}
