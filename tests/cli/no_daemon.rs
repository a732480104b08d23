use super::agentnet;

const ASKING: &[&[&str]] = &[
    &["id"],
    &["status"],
    &["status", "--watch"],
    &["ping", "x"],
    &["why", "x"],
    &["ticket"],
    &["peers"],
    &["config", "show", "--running"],
    &["trust", "request", "x"],
    &["trust", "pending"],
    &["trust", "approve", "x"],
    &["trust", "reject", "x"],
    &["trust", "revoke", "x"],
    &["trust", "list"],
    &["reload"],
    &["metrics"],
];

#[test]
fn commands_that_need_an_agent_say_how_to_start_it() {
    for arguments in ASKING {
        let outcome = agentnet(["--socket", "/nonexistent/s"].iter().chain(*arguments));
        assert_eq!((outcome.status, outcome.stdout.as_str()), (Some(3), ""), "{arguments:?}");
        assert_eq!(
            outcome.stderr,
            "error: no agent answers on /nonexistent/s\n\
             hint: start it: `sudo agentnet --socket /nonexistent/s up`\n",
            "{arguments:?}"
        );
    }
}

#[test]
fn with_json_they_print_one_document() {
    for arguments in ASKING {
        let outcome = agentnet(["--json", "--state-dir", "/nonexistent"].iter().chain(*arguments));
        assert_eq!((outcome.status, outcome.stderr.as_str()), (Some(3), ""), "{arguments:?}");
        assert_eq!(
            outcome.stdout,
            "{\"error\":{\"code\":\"no_daemon\",\"message\":\"no agent answers on /nonexistent/agentnet.sock\",\
             \"hint\":\"start it: `sudo agentnet --state-dir /nonexistent up`\"}}\n",
            "{arguments:?}"
        );
    }
}

#[test]
fn down_has_nothing_to_do() {
    let outcome = agentnet(["--socket", "/nonexistent/s", "down"]);
    assert_eq!(outcome.whole(), "status: 0\n--- stdout\nNot running.\n--- stderr\n");
    let outcome = agentnet(["--socket", "/nonexistent/s", "down", "--json"]);
    assert_eq!(outcome.whole(), "status: 0\n--- stdout\n{\"was_running\":false,\"pid\":null}\n--- stderr\n");
}

#[test]
fn the_environment_names_the_agent_too() {
    let mut command = super::command(["id"]);
    command.env("AGENTNET_STATE_DIR", "/nonexistent/a");
    assert!(super::finish(command).stderr.contains("no agent answers on /nonexistent/a/agentnet.sock"));
    let mut command = super::command(["id"]);
    command.env("AGENTNET_STATE_DIR", "/nonexistent/a").env("AGENTNET_SOCKET", "/nonexistent/b");
    assert!(super::finish(command).stderr.contains("no agent answers on /nonexistent/b\n"));
}

#[test]
fn the_configuration_file_names_the_agent_where_nothing_else_does() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("agentnet.toml");
    std::fs::write(&file, "socket = \"/nonexistent/from-file\"\n").unwrap();
    let with_file = |arguments: &[&str]| {
        let mut command = super::command(arguments);
        command.env("AGENTNET_CONFIG", &file);
        super::finish(command).stderr
    };
    assert!(with_file(&["id"]).contains("no agent answers on /nonexistent/from-file\n"));
    assert!(with_file(&["--socket", "/nonexistent/s", "id"]).contains("no agent answers on /nonexistent/s\n"));
}

#[test]
fn relative_paths_start_at_the_working_directory() {
    let directory = tempfile::tempdir().unwrap();
    let mut command = super::command(["--state-dir", "state", "id"]);
    command.current_dir(directory.path());
    let wanted = directory.path().canonicalize().unwrap().join("state/agentnet.sock");
    let outcome = super::finish(command);
    assert!(outcome.stderr.contains(wanted.to_str().unwrap()), "{}", outcome.stderr);
}
