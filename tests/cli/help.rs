use super::agentnet;

const COMMANDS: &[&str] = &[
    "up",
    "down",
    "daemon",
    "rendezvous",
    "id",
    "status",
    "ping",
    "why",
    "netcheck",
    "ticket",
    "trust",
    "trust request",
    "trust pending",
    "trust approve",
    "trust reject",
    "trust revoke",
    "trust list",
    "peers",
    "config",
    "config show",
    "config check",
    "reload",
    "metrics",
    "bugreport",
    "completion",
    "version",
];

#[test]
fn every_command_explains_itself() {
    for command in COMMANDS {
        let outcome = agentnet(command.split(' ').chain(["--help"]));
        assert_eq!((outcome.status, outcome.stderr.as_str()), (Some(0), ""), "{command}");
        insta::assert_snapshot!(command.replace(' ', "_"), outcome.stdout);
    }
}

#[test]
fn the_overview_lists_every_command() {
    let outcome = agentnet(["--help"]);
    insta::assert_snapshot!(outcome.stdout);
    let section = outcome.stdout.split("\n\n").find(|part| part.starts_with("Commands:")).unwrap();
    let listed: Vec<&str> = section.lines().skip(1).filter_map(|line| line.split_whitespace().next()).collect();
    let tested: Vec<&str> = COMMANDS.iter().copied().filter(|command| !command.contains(' ')).collect();
    assert_eq!(listed, tested);
}
