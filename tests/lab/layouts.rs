//! Hosts that make it hard: each ends in a working agent, or in an error that has a code and says what to do.
//!
//! | layout | ends in |
//! |---|---|
//! | 100.64.0.0/10 is routed elsewhere | works, IPv4 from another range, said under `health` |
//! | the chosen IPv4 alias is in use on the host | works with another alias |
//! | the IPv4 range asked for is in use | `ipv4_range_conflict` |
//! | IPv6 is disabled | works over IPv4 |
//! | the first interface name is taken | works with the next |
//! | the interface name asked for is taken | `interface_taken` |
//! | the port asked for is in use | `port_in_use` |
//! | the port kept from last time is in use | works with another, said under `health` |
//! | no /dev/net/tun | `no_tun_device` |
//! | not root | `not_root` |
//! | the state directory is read-only | `state_dir_unusable` |
//! | the state directory is full | `disk_full` |
//! | the identity file is damaged | `identity_damaged`, the file stays as it is |
//! | the state file is damaged | `state_damaged`, the file stays as it is |
//! | a second daemon on one state directory | `state_dir_in_use`, the first goes on |

use std::ffi::OsString;
use std::net::IpAddr;
use std::os::unix::fs::chown;
use std::path::PathBuf;
use std::time::Duration;

use crate::control::program_for_everybody;
use crate::harness::{Agent, Finished, Lab, PATIENT, document, error_code, run, trust};

/// What hostile layouts are made of: the host under test is `a`, and `b` is an ordinary one.
struct Scene<'lab> {
    lab: &'lab Lab,
    agent: Agent<'lab>,
}

/// The exit status that goes with most codes, and the one of missing permission.
const FAILED: i32 = 1;
const NO_PERMISSION: i32 = 4;

#[test]
fn ipv4_range_routed_elsewhere() {
    in_layout(|scene| {
        scene.host("ip route add 100.64.0.0/10 dev eth0");
        scene.works(true, true);
        let octets = scene.agent.ipv4().octets();
        assert!(!(octets[0] == 100 && octets[1] & 0xc0 == 64), "{octets:?} lies in the range that is routed elsewhere");
        scene.says_so("100.64.0.0/10");
        assert!(scene.lab.a().ok("ip route show 100.64.0.0/10").contains("eth0"), "the other route is gone");
    });
}

#[test]
fn chosen_alias_in_use() {
    in_layout(|scene| {
        scene.agent.up();
        let chosen = scene.agent.ipv4();
        scene.agent.down();
        scene.host("ip link add other type bridge");
        scene.host(&format!("ip addr add {chosen}/32 dev other"));
        scene.host("ip link set other up");
        scene.works(true, true);
        assert_ne!(scene.agent.ipv4(), chosen);
        assert!(scene.lab.a().ok("ip addr show dev other").contains(&chosen.to_string()), "the other address is gone");
    });
}

#[test]
fn asked_ipv4_range_in_use() {
    in_layout(|scene| {
        scene.agent.flags = words("--ipv4-range 10.77.0.0/16");
        scene.fails("ipv4_range_conflict", FAILED);
    });
}

#[test]
fn ipv6_disabled() {
    in_layout(|scene| {
        scene.lab.a().shell("for each in /proc/sys/net/ipv6/conf/*/disable_ipv6; do echo 1 >$each; done").ok();
        scene.works(false, true);
    });
}

#[test]
fn first_interface_name_taken() {
    in_layout(|scene| {
        scene.host("ip link add agentnet0 type bridge");
        scene.works(true, true);
        assert_ne!(scene.agent.interface(), "agentnet0");
    });
}

#[test]
fn asked_interface_name_taken() {
    in_layout(|scene| {
        scene.host("ip link add taken7 type bridge");
        scene.agent.flags = words("--tun taken7");
        scene.fails("interface_taken", FAILED);
        assert!(scene.lab.a().ok("ip -d link show taken7").contains("bridge"), "the other interface is gone");
    });
}

#[test]
fn asked_port_in_use() {
    in_layout(|scene| {
        let _held = scene.lab.a().serve("udp_hold.py", "4321");
        scene.agent.flags = words("--port 4321");
        scene.fails("port_in_use", FAILED);
    });
}

#[test]
fn kept_port_in_use() {
    in_layout(|scene| {
        scene.agent.up();
        let kept = scene.agent.port();
        scene.agent.down();
        let _held = scene.lab.a().serve("udp_hold.py", &kept.to_string());
        scene.works(true, true);
        assert_ne!(scene.agent.port(), kept);
        scene.says_so(&kept.to_string());
    });
}

#[test]
fn no_tun_device() {
    in_layout(|scene| {
        scene.wrap("mount -t tmpfs tmpfs /dev/net");
        scene.fails("no_tun_device", FAILED);
    });
}

#[test]
fn not_root() {
    in_layout(|scene| {
        chown(scene.agent.directory(), Some(54322), Some(54322)).unwrap();
        let program = program_for_everybody(scene.lab);
        let mut command = scene.lab.a().command("setpriv");
        command.args(words("--reuid 54322 --regid 54322 --clear-groups")).arg(program);
        command.args(["--json", "--state-dir"]).arg(scene.agent.directory()).arg("up");
        assert_fails(&run(&mut command, PATIENT), "not_root", NO_PERMISSION);
    });
}

#[test]
fn state_directory_read_only() {
    in_layout(|scene| {
        let directory = scene.agent.directory().display().to_string();
        scene.wrap(&format!("mount -t tmpfs -o ro,mode=755 tmpfs {directory}"));
        scene.fails("state_dir_unusable", FAILED);
    });
}

#[test]
fn state_directory_full() {
    in_layout(|scene| {
        let directory = scene.agent.directory().display().to_string();
        let fill = format!("{{ cat /dev/zero >{directory}/filler; }} 2>/dev/null");
        scene.wrap(&format!("mount -t tmpfs -o size=64k,mode=755 tmpfs {directory} && {{ {fill} || true; }}"));
        scene.fails("disk_full", FAILED);
    });
}

#[test]
fn state_directory_almost_full() {
    in_layout(|scene| {
        let directory = scene.agent.directory().display().to_string();
        let fill = format!("{{ head -c 60K /dev/zero >{directory}/filler; }} 2>/dev/null");
        scene.wrap(&format!("mount -t tmpfs -o size=64k,mode=755 tmpfs {directory} && {{ {fill} || true; }}"));
        scene.fails("disk_full", FAILED);
    });
}

#[test]
fn state_directory_writable_by_others() {
    in_layout(|scene| {
        let directory = scene.agent.directory().display().to_string();
        scene.host(&format!("chmod 777 {directory}"));
        scene.fails("state_dir_unusable", FAILED);
        scene.host(&format!("chmod 755 {directory}"));
        scene.host(&format!("chown 65534 {directory}"));
        scene.fails("state_dir_unusable", FAILED);
    });
}

#[test]
fn identity_damaged() {
    damaged_file("identity_damaged", |content| content.windows(17).any(|part| part == b"agentnet-identity"));
}

#[test]
fn state_damaged() {
    damaged_file("state_damaged", |content| content.starts_with(b"redb"));
}

#[test]
fn second_daemon_on_one_state_directory() {
    in_layout(|scene| {
        scene.works(true, true);
        let socket = scene.lab.directory().join("second.sock");
        let mut command = scene.lab.a().command(crate::harness::PROGRAM);
        command.arg("--json").arg("--state-dir").arg(scene.agent.directory()).arg("--socket").arg(socket).arg("up");
        assert_fails(&run(&mut command, PATIENT), "state_dir_in_use", FAILED);
        scene.agent.json(&["status"]);
        assert_eq!(scene.agent.run(&["status"]).code(), 0, "the first daemon does not answer any more");
    });
}

/// Damages the file of the state directory that `is_it` recognises, in its middle.
fn damaged_file(code: &str, is_it: impl Fn(&[u8]) -> bool) {
    in_layout(|scene| {
        scene.agent.up();
        scene.agent.down();
        let entries = std::fs::read_dir(scene.agent.directory()).unwrap();
        let files = entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_file());
        let mut found = files.filter(|path| is_it(&std::fs::read(path).unwrap()));
        let path: PathBuf = found.next().unwrap_or_else(|| panic!("no such file in the state directory"));
        let mut content = std::fs::read(&path).unwrap();
        content.truncate(content.len() / 2);
        let end = content.len().saturating_sub(8);
        content[end..].fill(b'#');
        std::fs::write(&path, &content).unwrap();
        scene.fails(code, FAILED);
        assert!(std::fs::read(&path).unwrap() == content, "{} was changed", path.display());
    });
}

fn in_layout(test: impl FnOnce(&mut Scene<'_>)) {
    let lab = Lab::two_hosts();
    test(&mut Scene { lab: &lab, agent: Agent::new(lab.a()) });
}

impl Scene<'_> {
    fn host(&self, line: &str) {
        self.lab.a().ok(line);
    }

    /// Runs the agent where `line` has been done to its file system, seen by nobody else.
    fn wrap(&mut self, line: &str) {
        let line: OsString = format!("{line} && exec \"$@\"").into();
        self.agent.wrapper = [&["unshare", "-m", "sh", "-c"].map(OsString::from)[..], &[line, "sh".into()]].concat();
    }

    /// The agent comes up, finds trust, and the other host is reached over the versions that work here.
    fn works(&mut self, ipv6: bool, ipv4: bool) {
        self.agent.up();
        let other = Agent::started(self.lab.b());
        trust(&self.agent, &other);
        let alias = IpAddr::from(self.agent.alias_of(&other));
        for (works, address) in [(ipv6, other.ipv6().into()), (ipv4, alias)] {
            if works {
                self.lab.a().wait_until_reaches(address);
            }
        }
    }

    /// `health` mentions `subject` and gives a hint.
    fn says_so(&self, subject: &str) {
        let health = self.agent.health();
        let mentions = |entry: &&serde_json::Value| entry["message"].as_str().unwrap().contains(subject);
        let entry = health.iter().find(mentions).unwrap_or_else(|| panic!("nothing on {subject} in {health:?}"));
        assert!(!entry["hint"].as_str().unwrap().is_empty(), "{entry}");
    }

    /// The agent does not come up, says why within reasonable time, and leaves the host as it was.
    fn fails(&mut self, code: &str, status: i32) {
        let links = self.lab.a().ok("ip -d link show");
        let start = std::time::Instant::now();
        let finished = self.agent.try_up().expect_err("the agent came up");
        assert!(start.elapsed() < Duration::from_secs(10), "it took {:?} to say so", start.elapsed());
        assert_fails(&finished, code, status);
        assert_eq!(links, self.lab.a().ok("ip -d link show"), "a failed start left something behind");
    }
}

fn assert_fails(finished: &Finished, code: &str, status: i32) {
    assert_eq!((error_code(finished).as_str(), finished.code()), (code, status), "{}", document(finished));
}

fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(str::to_owned).collect()
}
