use std::path::PathBuf;

use tempfile::TempDir;

use super::{Outcome, command, finish};

const GOOD: &str = "# An agent on a build host.\nname = \"build-7\"\nport = 41641\ndiscovery = []\n\
                    ipv4_range = \"10.77.0.0/16\"\nstate_dir = \"/srv/agentnet\"\nlog_level = \"debug\"\n\
                    log_format = \"json\"\nmtu = 1420\n";

struct File {
    directory: TempDir,
    path: PathBuf,
}

fn file(text: &str) -> File {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("agentnet.toml");
    std::fs::write(&path, text).unwrap();
    File { directory, path }
}

impl File {
    /// Runs a command on this file; its directory is `DIR` in what comes out.
    fn run(&self, arguments: &[&str], environment: &[(&str, &str)]) -> Outcome {
        let mut command = command(arguments);
        command.env("AGENTNET_CONFIG", &self.path).envs(environment.iter().copied());
        let mut outcome = finish(command);
        let directory = self.directory.path().to_str().unwrap();
        outcome.stdout = outcome.stdout.replace(directory, "DIR");
        outcome.stderr = outcome.stderr.replace(directory, "DIR");
        outcome
    }
}

#[test]
fn show_tells_every_value_and_its_origin() {
    let file = file(GOOD);
    let environment = [("AGENTNET_LOG", "warn"), ("AGENTNET_PORT", "5000"), ("AGENTNET_TUN", "")];
    let arguments = ["config", "show", "--port", "6000", "--socket", "/run/x.sock"];
    insta::assert_snapshot!("show", file.run(&arguments, &environment).whole());
    let json = file.run(&["config", "show", "--json"], &environment);
    insta::assert_snapshot!("show_json", json.whole());
    assert_eq!(json.document()["settings"][0]["origin"], "file");
}

#[test]
fn check_accepts_a_good_file() {
    let file = file(GOOD);
    assert_eq!(
        file.run(&["config", "check"], &[]).whole(),
        "status: 0\n--- stdout\nDIR/agentnet.toml is valid.\n--- stderr\n"
    );
    assert_eq!(
        file.run(&["config", "check", "--json"], &[]).stdout,
        "{\"file\":\"DIR/agentnet.toml\",\"valid\":true}\n"
    );
}

#[test]
fn check_looks_at_the_file_alone() {
    let file = file(GOOD);
    assert_eq!(file.run(&["config", "check"], &[("AGENTNET_PORT", "nonsense")]).status, Some(0));
    assert_eq!(file.run(&["config", "show"], &[("AGENTNET_PORT", "nonsense")]).status, Some(2));
}

#[test]
fn bad_files_are_explained_by_line() {
    for (name, text) in [
        ("unknown_key", "name = \"a\"\nprot = 1\n"),
        ("dashed_key", "log-level = \"info\"\n"),
        ("wrong_type", "port = \"41641\"\n"),
        ("port_out_of_range", "\nport = 70000\n"),
        ("bad_name", "name = \"Build_7\"\n"),
        ("bad_level", "log_level = \"inof\"\n"),
        ("bad_range", "ipv4_range = \"10.77.1.0/16\"\n"),
        ("public_range", "ipv4_range = \"8.0.0.0/8\"\n"),
        ("relative_path", "state_dir = \"state\"\n"),
        ("unknown_discovery", "discovery = [\"lan\", \"dth\"]\n"),
        ("discovery_not_offered", "discovery = [\"lan\"]\n"),
        ("syntax", "name = \"a\"\nport 41641\n"),
        ("twice", "name = \"a\"\nname = \"b\"\n"),
        ("several", "prot = 1\nmtu = \"x\"\n"),
        ("several_values", "port = 70000\nmtu = 1\n"),
    ] {
        let file = file(text);
        let outcome = file.run(&["config", "check"], &[]);
        assert_eq!(outcome.stdout, "", "{name}");
        insta::assert_snapshot!(format!("bad_{name}"), outcome.whole());
        let json = file.run(&["--json", "config", "check"], &[]);
        assert_eq!((json.status, json.stderr.as_str()), (outcome.status, ""), "{name}");
        let code = if name == "discovery_not_offered" { "not_available" } else { "config_invalid" };
        assert_eq!(json.document()["error"]["code"], code, "{name}");
    }
}

#[test]
fn a_file_that_is_named_must_be_there() {
    let file = file("");
    let missing = file.directory.path().join("missing.toml");
    let outcome = file.run(&["config", "check", missing.to_str().unwrap()], &[]);
    insta::assert_snapshot!("missing", outcome.whole());
    let outcome = file.run(&["config", "show", "--config", file.directory.path().to_str().unwrap()], &[]);
    assert_eq!(outcome.status, Some(2), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("cannot be read"), "{}", outcome.stderr);
}

#[test]
fn a_file_is_text_of_reasonable_length() {
    let file = file("");
    std::fs::write(&file.path, b"name = \"\xff\"\n").unwrap();
    assert!(file.run(&["config", "check"], &[]).stderr.contains("UTF-8"));
    std::fs::write(&file.path, "#".repeat(2 << 20)).unwrap();
    assert!(file.run(&["config", "check"], &[]).stderr.contains("longer than"));
}
