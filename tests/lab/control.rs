//! Who may do what over the control socket, and the exit status of what went wrong.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use crate::harness::{Agent, Finished, Lab, PROGRAM, Pair, SOON, error_code, run, trust, wait_until_asked};

/// Group id of `agentnet` in the lab; no file of the machine is changed for it.
const GROUP: &str = "54321";
/// An ordinary user, and one that was added to the group.
const USER: &str = "54322";
const MEMBER: &str = "54323";

#[test]
fn anybody_may_look_and_only_the_group_may_change() {
    let lab = Lab::two_hosts();
    let far = Agent::started(lab.b());
    let agent = started_for_everybody(&lab);
    let ticket = far.ticket();
    let stranger = ["--reuid", USER, "--regid", USER, "--clear-groups"];
    for words in [&["status"][..], &["id"], &["peers"], &["trust", "list"]] {
        as_user(&lab, &agent, &stranger, words).ok();
    }
    for words in [&["trust", "request", ticket.as_str()][..], &["down"]] {
        let refused = as_user(&lab, &agent, &stranger, words);
        assert_eq!((refused.code(), error_code(&refused).as_str()), (4, "not_permitted"), "{refused}");
    }
    assert_eq!(agent.trust_state(&far.id()), "none", "a refused change was made");
    let member = ["--reuid", MEMBER, "--regid", MEMBER, "--groups", GROUP];
    as_user(&lab, &agent, &member, &["trust", "request", &ticket]).ok();
    assert_eq!(agent.trust_state(&far.id()), "requested");
    let by_primary_group = ["--reuid", USER, "--regid", GROUP, "--clear-groups"];
    as_user(&lab, &agent, &by_primary_group, &["trust", "revoke", &far.id()]).ok();
    assert_eq!(agent.trust_state(&far.id()), "revoked");
}

#[test]
fn failures_have_their_exit_status_and_code() {
    let lab = Lab::two_hosts();
    let Pair { a, b } = Pair::trusted(&lab);
    let unknown = Agent::started(lab.b());
    let damaged = unknown.ticket().replace('y', "b");
    let expect = |words: &[&str], status: i32, code: &str| {
        let finished = a.run_json(words);
        assert_eq!((finished.code(), error_code(&finished).as_str()), (status, code), "{finished}");
        let for_people = a.run(words);
        assert_eq!(for_people.code(), status, "{for_people}");
        assert!(for_people.stdout.is_empty() && for_people.stderr.starts_with("error: "), "{for_people}");
    };
    expect(&["why", &unknown.id()], 5, "peer_not_found");
    expect(&["trust", "approve", &unknown.id()], 5, "peer_not_found");
    expect(&["trust", "request", &damaged], 2, "ticket_invalid");
    expect(&["trust", "request", &a.ticket()], 2, "peer_is_self");
    unknown.json(&["trust", "request", &a.ticket()]);
    wait_until_asked(&a, &unknown);
    assert_eq!(a.run(&["ping", &unknown.id(), "-c", "1"]).code(), 7, "ping of an agent that is not trusted");
    assert_eq!(a.run(&["ping", &b.id(), "-c", "1"]).code(), 0, "ping of a trusted peer");
    b.down();
    assert_eq!(a.run(&["ping", &b.id(), "-c", "1", "--timeout", "2"]).code(), 6, "ping of a peer that is down");
    a.down();
    expect(&["status"], 3, "no_daemon");
    assert_eq!(a.run(&["down"]).code(), 0, "down is idempotent");
}

#[test]
fn up_is_idempotent() {
    let lab = Lab::two_hosts();
    let mut agent = Agent::started(lab.a());
    let pid = agent.pid();
    agent.up();
    assert_eq!(agent.pid(), pid);
    let said = run(&mut agent.up_command(), SOON).ok();
    assert!(said.contains("\"already_running\":true") || said.contains("\"already_running\": true"), "{said}");
}

#[test]
fn a_peer_is_named_by_prefix_name_and_address() {
    let lab = Lab::two_hosts();
    let a = Agent::started(lab.a());
    let mut b = Agent::new(lab.b());
    b.flags = vec!["--name".into(), "far-host".into()];
    b.up();
    trust(&a, &b);
    for peer in [&b.id()[..8], "far-host", &b.ipv6().to_string(), &a.alias_of(&b).to_string()] {
        let why = a.json(&["why", peer]);
        assert_eq!(why["peer"], b.id().as_str(), "{peer}");
    }
}

/// An agent whose control socket lies where everybody may go, in a world with a group `agentnet` of one member.
fn started_for_everybody(lab: &Lab) -> Agent<'_> {
    let open = lab.directory().join("run");
    std::fs::create_dir(&open).unwrap();
    std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o755)).unwrap();
    let group = extended(lab, "group", &format!("agentnet:x:{GROUP}:lab-member"));
    let passwd = extended(lab, "passwd", &format!("lab-member:x:{MEMBER}:{MEMBER}::/:/bin/false"));
    let mut agent = Agent::new(lab.a()).with_socket(open.join("agentnet.sock"));
    let line = format!("mount --bind {group} /etc/group && mount --bind {passwd} /etc/passwd && exec \"$@\"");
    agent.wrapper = ["unshare", "-m", "sh", "-c", &line, "sh"].map(Into::into).to_vec();
    agent.up();
    agent
}

/// A copy of a file of `/etc` with one more entry, in place of one of the same name.
fn extended(lab: &Lab, name: &str, entry: &str) -> String {
    let key = &entry[..=entry.find(':').unwrap()];
    let original = std::fs::read_to_string(format!("/etc/{name}")).unwrap();
    let kept = original.lines().filter(|line| !line.starts_with(key)).chain([entry]);
    let copy = lab.directory().join(name);
    std::fs::write(&copy, kept.map(|line| format!("{line}\n")).collect::<String>()).unwrap();
    copy.display().to_string()
}

/// Runs a command of the agent as another user, whom `setpriv` makes from `identity`.
fn as_user(lab: &Lab, agent: &Agent<'_>, identity: &[&str], words: &[&str]) -> Finished {
    let mut command = Command::new("setpriv");
    command.args(identity).arg(program_for_everybody(lab));
    command.arg("--socket").arg(agent.socket()).arg("--json").args(words);
    run(&mut command, SOON)
}

/// The build directory may be closed to other users, a copy is not.
pub(crate) fn program_for_everybody(lab: &Lab) -> PathBuf {
    let copy = lab.directory().join("agentnet");
    if !copy.exists() {
        std::fs::copy(PROGRAM, &copy).unwrap();
        std::fs::set_permissions(&copy, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    copy
}
