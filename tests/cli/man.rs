use std::collections::BTreeSet;

use super::agentnet;

#[test]
fn every_command_has_a_page() {
    let directory = tempfile::tempdir().unwrap();
    let outcome = agentnet(["--json", "man", directory.path().to_str().unwrap()]);
    assert_eq!((outcome.status, outcome.stderr.as_str()), (Some(0), ""));
    let names = |text: &str| text.split_whitespace().next().map(str::to_owned);
    let overview = agentnet(["--help"]).stdout;
    let commands = overview.split("\n\n").find(|part| part.starts_with("Commands:")).unwrap();
    let mut expected: BTreeSet<String> =
        commands.lines().skip(1).filter_map(names).map(|name| format!("agentnet-{name}.1")).collect();
    expected.extend(["agentnet.1", "agentnet-trust-approve.1", "agentnet-config-show.1"].map(str::to_owned));
    let found: BTreeSet<String> = std::fs::read_dir(directory.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert!(expected.len() > 15 && expected.is_subset(&found), "{expected:?}\n{found:?}");
    assert!(!found.contains("agentnet-man.1"), "a hidden command has a page");
    let document: BTreeSet<String> = serde_json::from_value(outcome.document()["pages"].clone()).unwrap();
    assert_eq!(document, found);
    let page = std::fs::read_to_string(directory.path().join("agentnet-up.1")).unwrap();
    for part in [".TH agentnet-up 1", ".SH NAME", ".SH SYNOPSIS", ".SH OPTIONS", "rendezvous"] {
        assert!(page.contains(part), "no {part} in\n{page}");
    }
}

#[test]
fn a_directory_that_is_not_there_is_told() {
    let outcome = agentnet(["--json", "man", "/nonexistent/directory"]);
    assert_eq!(outcome.status, Some(2));
    assert_eq!(outcome.document()["error"]["code"], "usage");
}
