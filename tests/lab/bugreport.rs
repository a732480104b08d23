//! One file with everything that helps, and nothing that is secret.

use std::os::unix::fs::MetadataExt;

use agentnet::identity::key_file;
use serde_json::Value;

use crate::harness::{Agent, Lab, Pair, SOON, run, trust};

/// In the environment of agent and command.
const PLANTED: &str = "planted-secret-5f1c0a";

#[test]
fn a_report_holds_what_helps() {
    let lab = Lab::two_hosts();
    let Pair { a, b } = Pair::trusted(&lab);
    assert_eq!(lab.a().ping(b.ipv6().into(), 1), 1);
    let report = report(&a);
    assert_eq!(report["missing"], serde_json::json!([]), "{report}");
    assert_eq!(report["status"]["self"]["id"], a.id());
    assert_eq!(report["why"][0]["peer"], b.id());
    assert!(report["netcheck"]["nat"].is_string() && report["running_configuration"]["settings"].is_array());
    let any =
        |list: &Value, part: &str| list.as_array().unwrap().iter().any(|line| line.as_str().unwrap().contains(part));
    assert!(any(&report["log"], "agent started") && any(&report["log"], "conn="), "{}", report["log"]);
    assert!(any(&report["metrics"], "agentnet_uptime_seconds"));
    assert!(any(&report["network"]["links"], &a.interface()) && any(&report["network"]["routes"], "fd61:6e74::/32"));
    assert!(any(&report["files"], "identity.key: ") && any(&report["files"], "mode 0600"));
    let state_dir = report["configuration"].as_array().unwrap().iter().find(|setting| setting["key"] == "state_dir");
    assert_eq!(state_dir.unwrap()["from"], "--state-dir");
}

#[test]
fn no_secret_is_in_it() {
    let lab = Lab::two_hosts();
    let mut a = Agent::new(lab.a());
    a.wrapper = ["env", &format!("PLANTED_TOKEN={PLANTED}"), "AGENTNET_LOG=trace"].map(Into::into).to_vec();
    a.up();
    let b = Agent::started(lab.b());
    trust(&a, &b);
    let tickets = [a.ticket(), b.ticket()];
    let path = lab.directory().join("report.json");
    let mut command = a.command(&["bugreport", "--output", path.to_str().unwrap()]);
    run(command.env("PLANTED_TOKEN", PLANTED), SOON).ok();
    assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    let file = std::fs::read(&path).unwrap();
    let identity = std::fs::read(a.directory().join("identity.key")).unwrap();
    let seed = *key_file::parse(zeroize::Zeroizing::new(identity)).unwrap().seed();
    a.down();
    let mut secrets = vec![("identity seed", seed.to_vec()), ("tunnel key", tunnel_key(&a))];
    secrets.push(("environment", PLANTED.as_bytes().to_vec()));
    for (what, secret) in secrets {
        for (form, text) in forms(&secret) {
            assert!(!contains(&file, &text), "the {what} is in the report, {form}");
        }
    }
    for ticket in &tickets {
        assert!(!contains(&file, &ticket.as_bytes()[..60]), "a ticket is in the report");
    }
    // The search itself works: the id, which is no secret, is found.
    assert!(contains(&file, a.id().as_bytes()));
}

#[test]
fn without_an_agent_the_report_says_what_is_missing() {
    let lab = Lab::two_hosts();
    let agent = Agent::started(lab.a());
    agent.down();
    let report = report(&agent);
    let missing = report["missing"].as_array().unwrap();
    assert!(missing.iter().any(|one| one["why"].as_str().unwrap().starts_with("no agent answers")), "{missing:?}");
    assert!(report["status"].is_null() && report["network"]["links"].is_array());
    let log = report["log"].as_array().unwrap();
    assert!(log.iter().any(|line| line.as_str().unwrap().contains("agent stopped")), "{log:?}");
}

fn report(agent: &Agent<'_>) -> Value {
    let finished = agent.run(&["bugreport", "--output", "-"]);
    serde_json::from_str(&finished.ok()).unwrap()
}

/// As it lies in the state of an agent that is down.
fn tunnel_key(agent: &Agent<'_>) -> Vec<u8> {
    let database = redb::Database::open(agent.directory().join("state.redb")).unwrap();
    let read = redb::ReadableDatabase::begin_read(&database).unwrap();
    let values = read.open_table(redb::TableDefinition::<&str, &[u8]>::new("values")).unwrap();
    let key = values.get("tunnel_key").unwrap().unwrap().value().to_vec();
    assert_eq!(key.len(), 32);
    key
}

/// A secret as it may be written down.
fn forms(secret: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let hex: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut forms = vec![
        ("raw", secret.to_vec()),
        ("in hexadecimal", hex.clone().into_bytes()),
        ("in capital hexadecimal", hex.to_uppercase().into_bytes()),
        ("in z-base-32", z32::encode(secret).into_bytes()),
        ("as numbers", secret.iter().map(u8::to_string).collect::<Vec<_>>().join(", ").into_bytes()),
    ];
    for (form, last) in [("in base64", b"+/"), ("in base64url", b"-_")] {
        let text = base64(secret, last);
        forms.push((form, text.into_bytes()));
    }
    forms
}

/// Without padding and without what the last bytes share with it.
fn base64(bytes: &[u8], last: &[u8; 2]) -> String {
    let alphabet: Vec<u8> = (b'A'..=b'Z').chain(b'a'..=b'z').chain(b'0'..=b'9').chain(*last).collect();
    let groups = bytes.chunks_exact(3).flat_map(|group| {
        let bits = u32::from(group[0]) << 16 | u32::from(group[1]) << 8 | u32::from(group[2]);
        [18, 12, 6, 0].map(|shift| alphabet[(bits >> shift & 63) as usize] as char)
    });
    groups.collect()
}

fn contains(file: &[u8], part: &[u8]) -> bool {
    file.windows(part.len()).any(|window| window == part)
}
