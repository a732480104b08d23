use super::agentnet;

#[test]
fn every_shell_gets_a_script_with_the_commands() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let outcome = agentnet(["completion", shell]);
        assert_eq!((outcome.status, outcome.stderr.as_str()), (Some(0), ""), "{shell}");
        for word in ["status", "ticket", "approve", "until-direct", "ipv4-range"] {
            assert!(outcome.stdout.contains(word), "{shell} misses {word}");
        }
    }
}

#[test]
fn json_wraps_the_script() {
    let document = agentnet(["--json", "completion", "bash"]).document();
    assert_eq!(document["shell"], "bash");
    assert_eq!(document["script"].as_str(), Some(agentnet(["completion", "bash"]).stdout.as_str()));
}
