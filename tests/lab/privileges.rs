//! What a running agent may do: `docs/privileges.md`. The rest of the lab runs under the same limits, as they are the
//! default.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::unistd::User;

use crate::control::program_for_everybody;
use crate::harness::{Agent, Lab, Pair, SOON, Server, Snapshot, error_code, run, trust};
use crate::service::with_systemctl;

/// `CAP_NET_ADMIN`, bit 12 of linux/capability.h.
const NET_ADMIN: u64 = 1 << 12;

/// A line of `/proc/PID/task/TID/status` of every thread.
fn of_every_thread(pid: u32, field: &str) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let of_task = |task: fs::DirEntry| {
        let status = fs::read_to_string(task.path().join("status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(&format!("{field}:")));
        line.unwrap_or_else(|| panic!("no {field} in {status}")).split_whitespace().collect::<Vec<_>>().join(" ")
    };
    tasks.map(|task| of_task(task.unwrap())).collect()
}

fn assert_every_thread(pid: u32, field: &str, expected: &str) {
    let found = of_every_thread(pid, field);
    assert!(found.iter().all(|value| value == expected), "{field} is {found:?}, not {expected}");
}

/// Every thread is that user's, with these capabilities and no way to more.
fn assert_rights(pid: u32, uid: u32, capabilities: u64) {
    assert_every_thread(pid, "Uid", &format!("{uid} {uid} {uid} {uid}"));
    for field in ["CapEff", "CapPrm"] {
        assert_every_thread(pid, field, &format!("{capabilities:016x}"));
    }
    for field in ["CapInh", "CapBnd", "CapAmb"] {
        assert_every_thread(pid, field, &format!("{:016x}", 0));
    }
    assert_every_thread(pid, "NoNewPrivs", "1");
}

/// The same, and the system calls of every thread are filtered.
fn assert_confined(agent: &Agent<'_>, uid: u32) {
    assert_rights(agent.pid(), uid, NET_ADMIN);
    assert!(of_every_thread(agent.pid(), "Seccomp").len() >= 3, "the packet threads are missing");
    assert_every_thread(agent.pid(), "Seccomp", "2");
    // Limits on files are nowhere to be seen but in its own words.
    let log = fs::read_to_string(agent.directory().join("agentnet.log")).unwrap();
    let told = log.lines().rfind(|line| line.contains("confined")).unwrap_or_else(|| panic!("not told: {log}"));
    assert!(told.contains("files=Full") || told.contains("files=Partial"), "{told}");
}

/// Whose rights an agent takes when nothing is said.
fn usual_uid() -> u32 {
    User::from_name("agentnet").unwrap().map_or(0, |user| user.uid.as_raw())
}

fn nobody() -> User {
    User::from_name("nobody").unwrap().unwrap()
}

fn codes(agent: &Agent<'_>) -> Vec<String> {
    agent.health().iter().map(|entry| entry["code"].as_str().unwrap().to_owned()).collect()
}

fn assert_owned(directory: &Path, user: &User) {
    let mut entries = vec![directory.to_owned()];
    entries.extend(fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()));
    assert!(entries.len() > 4, "{entries:?}");
    for path in entries {
        let metadata = path.symlink_metadata().unwrap();
        assert_eq!((metadata.uid(), metadata.gid()), (user.uid.as_raw(), user.gid.as_raw()), "{}", path.display());
    }
    for secret in ["identity.key", "state.redb"] {
        assert_eq!(directory.join(secret).metadata().unwrap().mode() & 0o777, 0o600, "{secret}");
    }
}

#[test]
fn every_thread_keeps_the_right_over_the_network_alone() {
    let lab = Lab::two_hosts();
    let Pair { a, b } = Pair::trusted(&lab);
    lab.a().wait_until_reaches(b.ipv6().into());
    assert_confined(&a, usual_uid());
    assert!(!codes(&a).contains(&"not_confined".to_owned()), "{:?}", codes(&a));
}

#[test]
fn a_running_agent_has_only_open_what_it_needs() {
    let lab = Lab::two_hosts();
    let Pair { a, b } = Pair::trusted(&lab);
    lab.a().wait_until_reaches(b.ipv6().into());
    let state = a.directory().display().to_string();
    let known = |file: &str| match file {
        "/dev/null" | "/dev/net/tun" | "anon_inode:[eventpoll]" | "anon_inode:[eventfd]" => true,
        // The end of the pipe to `up`, which has gone.
        _ if file.starts_with("socket:") || file.starts_with("pipe:") => true,
        _ => ["lock", "state.redb", "agentnet.log"].iter().any(|name| file == format!("{state}/{name}")),
    };
    let open = fs::read_dir(format!("/proc/{}/fd", a.pid())).unwrap();
    let open: BTreeSet<String> =
        open.map(|fd| fs::read_link(fd.unwrap().path()).unwrap().display().to_string()).collect();
    let unknown: Vec<_> = open.iter().filter(|file| !known(file)).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
    assert!(open.contains("/dev/net/tun") && open.contains(&format!("{state}/state.redb")), "{open:?}");
}

#[test]
fn an_agent_becomes_the_user_it_is_given_and_takes_its_state_along() {
    let lab = Lab::two_hosts();
    let before = Snapshot::of(lab.a());
    let Pair { mut a, b } = Pair::trusted(&lab);
    let known = (a.id(), a.port(), a.ipv4(), a.ipv6());
    a.down();
    let root_owned = a.directory().metadata().unwrap().uid();
    assert_eq!(root_owned, usual_uid(), "nothing to take over");
    a.flags = vec!["--user".into(), "nobody".into()];
    for how in ["taken over", "after down", "after a crash"] {
        a.up();
        assert_eq!((a.id(), a.port(), a.ipv4(), a.ipv6()), known, "{how}");
        assert_eq!(a.trust_state(&b.id()), "trusted", "{how}");
        assert_confined(&a, nobody().uid.as_raw());
        assert_every_thread(a.pid(), "Groups", &nobody().gid.to_string());
        assert_owned(a.directory(), &nobody());
        assert_eq!(codes(&a), Vec::<String>::new());
        for address in a.addresses_of(&b) {
            lab.a().wait_until_reaches(address);
        }
        match how {
            "after down" => a.kill9(),
            _ => a.down(),
        }
    }
    before.assert_same(&Snapshot::of(lab.a()), "after an agent of another user");
}

#[test]
fn a_second_agent_of_another_user_takes_its_rules_away() {
    let lab = Lab::two_hosts();
    let far = Agent::started(lab.b());
    let first = Agent::started(lab.a());
    let before = Snapshot::of(lab.a());
    let mut second = Agent::new(lab.a());
    second.flags = vec!["--user".into(), "nobody".into()];
    second.up();
    trust(&second, &far);
    lab.b().wait_until_reaches(second.ipv6().into());
    assert!(Snapshot::of(lab.a()) != before);
    second.down();
    before.assert_same(&Snapshot::of(lab.a()), "after the second agent");
    drop(first);
}

#[test]
fn a_user_that_cannot_be_had_is_an_error_when_asked_for() {
    let lab = Lab::two_hosts();
    let mut agent = Agent::new(lab.a());
    agent.flags = vec!["--user".into(), "no-such-user".into()];
    assert_eq!(error_code(&agent.try_up().unwrap_err()), "config_invalid");
    // What lies there may be somebody else's.
    fs::write(agent.directory().join("letter"), "x").unwrap();
    agent.flags = vec!["--user".into(), "nobody".into()];
    assert_eq!(error_code(&agent.try_up().unwrap_err()), "config_invalid");
    assert_eq!(agent.directory().join("letter").metadata().unwrap().uid(), 0);
    assert_eq!(agent.directory().metadata().unwrap().uid(), 0);
}

#[test]
fn confinement_can_be_switched_off_and_that_is_told() {
    let lab = Lab::two_hosts();
    let mut agent = Agent::new(lab.a());
    agent.wrapper = ["env", "AGENTNET_CONFINE=off"].map(Into::into).to_vec();
    agent.up();
    assert_rights(agent.pid(), usual_uid(), NET_ADMIN);
    assert_every_thread(agent.pid(), "Seccomp", "0");
    assert!(codes(&agent).contains(&"not_confined".to_owned()), "{:?}", codes(&agent));
}

#[test]
fn a_rendezvous_server_keeps_no_right_at_all() {
    let lab = Lab::two_hosts();
    let server = Server::started(lab.a());
    let agent = Agent::registered(lab.b(), &[&server]);
    assert_rights(server.pid(), 0, 0);
    assert_every_thread(server.pid(), "Seccomp", "2");
    assert!(of_every_thread(server.pid(), "Seccomp").len() >= 2);
    drop(agent);
}

/// A host that has the user, and paths of its own where the default agent keeps things.
#[test]
fn the_usual_user_is_taken_where_there_is_one() {
    let lab = Lab::two_hosts();
    program_for_everybody(&lab);
    let (finished, _) = with_systemctl(
        lab.a(),
        &lab,
        "touch \"$FAKE/absent\"\n\
         sed -i '/^agentnet:/d' /etc/passwd /etc/group\n\
         agentnet up >/dev/null\n\
         pid() { agentnet --socket \"${1:-/run/agentnet/agentnet.sock}\" --json status | tr -dc 'a-z0-9:' | sed 's/.*pid:\\([0-9]*\\).*/\\1/'; }\n\
         status() { sed -n \"s/^$1:[[:space:]]*//p\" /proc/\"$(pid ${2:-})\"/status | tr '\\t' ' '; }\n\
         echo \"stays $(status Uid)\"\n\
         agentnet down >/dev/null\n\
         echo 'agentnet:x:941:941::/:/bin/false' >>/etc/passwd\n\
         echo 'agentnet:x:941:' >>/etc/group\n\
         echo foreign >/var/lib/letter\n\
         umask 077\n\
         agentnet up\n\
         echo \"becomes $(status Uid)\"\n\
         stat --format='%n %u %a' /run/agentnet /run/agentnet/agentnet.sock /var/lib/agentnet /var/lib/agentnet/identity.key\n\
         agentnet down >/dev/null\n\
         ls /run/agentnet\n\
         agentnet --state-dir /var/lib --socket /run/agentnet/other.sock up | grep -E 'runs_as_root|not_confined'\n\
         status CapEff /run/agentnet/other.sock\n\
         stat --format='%n %u' /var/lib\n\
         agentnet --state-dir /var/lib --socket /run/agentnet/other.sock down >/dev/null\n\
         ls /run/agentnet\n",
    );
    let said = finished.ok();
    let lines: Vec<&str> = said.lines().filter(|line| !line.starts_with("  ") || line.contains('!')).collect();
    let expected = [
        "stays 0 0 0 0",
        "is up (process ",
        "becomes 941 941 941 941",
        "/run/agentnet 941 755",
        "/run/agentnet/agentnet.sock 941 666",
        "/var/lib/agentnet 941 700",
        "/var/lib/agentnet/identity.key 941 600",
        "runs as root, not as agentnet: /var/lib is not the agent's alone",
        "keeps the right to files of others: /run/agentnet is somebody else's",
        "0000000000001002",
        "/var/lib 0",
    ];
    let lines: Vec<&str> = lines.into_iter().filter(|line| !line.is_empty()).collect();
    assert_eq!(lines.len(), expected.len(), "{said}");
    for (line, part) in lines.iter().zip(expected) {
        assert!(line.contains(part), "{line:?} is not {part:?} in\n{said}");
    }
}

/// A container whose volume belongs to the image's user, started with less than it takes to become that user.
#[test]
fn root_without_the_right_to_become_the_user_of_its_state_says_what_is_missing() {
    let lab = Lab::two_hosts();
    let (finished, _) = with_systemctl(
        lab.a(),
        &lab,
        "touch \"$FAKE/absent\"\n\
         sed -i '/^agentnet:/d' /etc/passwd /etc/group\n\
         echo 'agentnet:x:940:940::/:/bin/false' >>/etc/passwd\n\
         echo 'agentnet:x:940:' >>/etc/group\n\
         install --directory --owner 940 --group 940 --mode 700 /var/lib/agentnet\n\
         with() { setpriv --inh-caps=-all --bounding-set=\"-all,+net_admin$1\" \"$PROGRAM\" daemon; }\n\
         with '' 2>&1 | grep -E '^(error|hint)'\n\
         with ,+setuid,+setgid 2>&1 | grep -E '^(error|hint)'\n\
         install --directory --owner 940 /run/agentnet\n\
         with ,+setuid,+setgid >\"$FAKE/log\" 2>&1 &\n\
         for _ in $(seq 100); do [ ! -S /run/agentnet/agentnet.sock ] || break; sleep 0.1; done\n\
         agentnet --quiet status && cat \"$FAKE/log\"\n",
    );
    let said = finished.ok();
    for part in [
        "error: the agent cannot become the user agentnet",
        "CAP_SETUID and CAP_SETGID",
        "--cap-add SETUID --cap-add SETGID",
        "error: the agent cannot become the user agentnet: /run/agentnet cannot be given to it",
        "--cap-add CHOWN",
        "confined user=940",
    ] {
        assert!(said.contains(part), "no {part} in\n{said}");
    }
}

#[test]
fn what_is_not_the_agents_socket_directory_stays_as_it_is() {
    let lab = Lab::two_hosts();
    let directory = lab.directory().join("run");
    fs::create_dir(&directory).unwrap();
    let mut agent = Agent::new(lab.a()).with_socket(directory.join("agentnet.sock"));
    agent.flags = vec!["--user".into(), "nobody".into()];
    assert_eq!(error_code(&run(&mut agent.up_command(), SOON)), "config_invalid");
    assert_eq!(directory.metadata().unwrap().uid(), 0);
    agent.flags = Vec::new();
    agent.up();
    agent.down();
}
