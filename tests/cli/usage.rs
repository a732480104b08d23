use super::agentnet;

const WRONG: &[(&str, &[&str])] = &[
    ("unknown_command", &["stauts"]),
    ("unknown_flag", &["status", "--wach"]),
    ("missing_peer", &["ping"]),
    ("missing_subcommand", &["trust"]),
    ("count_zero", &["ping", "x", "-c", "0"]),
    ("timeout_too_long", &["ping", "x", "--timeout", "61"]),
    ("duration_without_unit", &["trust", "request", "x", "--ttl", "30"]),
    ("unknown_shell", &["completion", "tcsh"]),
    ("flags_that_exclude", &["config", "show", "--running", "--port", "1"]),
];

#[test]
fn wrong_usage_is_explained_on_standard_error() {
    for (name, arguments) in WRONG {
        let outcome = agentnet(*arguments);
        assert_eq!((outcome.status, outcome.stdout.as_str()), (Some(2), ""), "{name}");
        insta::assert_snapshot!(*name, outcome.stderr);
    }
}

#[test]
fn wrong_usage_with_json_is_one_document() {
    for (name, arguments) in WRONG {
        let outcome = agentnet(arguments.iter().chain(&["--json"]));
        assert_eq!((outcome.status, outcome.stderr.as_str()), (Some(2), ""), "{name}");
        assert_eq!(outcome.document()["error"]["code"], "usage", "{name}");
        insta::assert_snapshot!(format!("{name}_json"), outcome.stdout);
    }
}

#[test]
fn no_command_shows_the_overview_and_fails() {
    let outcome = agentnet([""; 0]);
    assert_eq!((outcome.status, outcome.stdout.as_str()), (Some(2), ""));
    assert_eq!(outcome.stderr, agentnet(["--help"]).stdout);
    let document = agentnet(["--json"]).document();
    assert!(document["error"]["message"].as_str().unwrap().contains("requires a subcommand"), "{document}");
}
