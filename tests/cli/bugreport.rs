//! A report without an agent, and what becomes of its file.

use std::os::unix::fs::MetadataExt;

use super::agentnet;

#[test]
fn without_an_agent_there_is_a_report_all_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().join("state");
    let file = directory.path().join("report.json");
    let (state, path) = (state.to_str().unwrap(), file.to_str().unwrap());
    let outcome = agentnet(["--json", "--state-dir", state, "bugreport", "--output", path]);
    assert_eq!(outcome.status, Some(0), "{}", outcome.whole());
    assert_eq!(outcome.document()["file"], path);
    assert_eq!(std::fs::metadata(&file).unwrap().mode() & 0o777, 0o600);
    let report: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    assert_eq!(report["version"], env!("CARGO_PKG_VERSION"));
    let missing: Vec<&str> =
        report["missing"].as_array().unwrap().iter().filter_map(|one| one["what"].as_str()).collect();
    assert_eq!(missing, ["files", "log", "everything that a running agent says"]);
    let again = agentnet(["--state-dir", state, "bugreport", "--output", path]);
    assert_eq!(again.status, Some(2), "an existing file was replaced: {}", again.whole());
}

#[test]
fn a_configuration_that_is_not_valid_is_part_of_the_report() {
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("agentnet.toml");
    std::fs::write(&config, "mtu = 1\n").unwrap();
    let state = directory.path().join("state");
    let words =
        ["--state-dir", state.to_str().unwrap(), "bugreport", "--output", "-", "--config", config.to_str().unwrap()];
    let outcome = agentnet(words);
    let report: serde_json::Value = serde_json::from_str(&outcome.stdout).unwrap();
    assert_eq!(report["missing"][0]["what"], "configuration", "{report}");
    assert!(report["missing"][0]["why"].as_str().unwrap().contains("mtu"), "{report}");
}
