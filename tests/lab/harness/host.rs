//! Namespaces and the links between them.

use std::ffi::OsStr;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sched::{CloneFlags, setns};

use super::process::signal;
use super::{Finished, PATIENT, Program, SOON, run, script, wait_until};

/// Programs this lab cannot do without, and the Debian package of each.
const NEEDED: &[(&str, &str)] = &[
    ("ip", "iproute2"),
    ("ping", "iputils-ping"),
    ("curl", "curl"),
    ("tcpdump", "tcpdump"),
    ("iperf3", "iperf3"),
    ("ssh", "openssh-client"),
    ("sshd", "openssh-server"),
    ("setpriv", "util-linux"),
    ("python3", "python3"),
    ("nft", "nftables"),
    ("tmux", "tmux"),
    ("miniupnpd", "miniupnpd-nftables"),
    ("strace", "strace"),
    ("gcc", "gcc"),
];

/// The interpreter of the distribution, the one its gRPC package belongs to.
pub(super) const PYTHON: &str = "/usr/bin/python3";

/// Namespaces of the lab are named `anl-PID-COUNT-HOST`.
const PREFIX: &str = "anl";

/// Labs of one process take turns, so that they do not measure each other.
static TURN: Mutex<()> = Mutex::new(());
static COUNT: AtomicU32 = AtomicU32::new(0);

/// Hosts on one bridge. Everything is gone when this is dropped.
pub(crate) struct Lab {
    hosts: Vec<Host>,
    _switch: Namespace,
    turn: Turn,
}

impl Lab {
    /// Two hosts, `a` and `b`.
    pub(crate) fn two_hosts() -> Self {
        Self::hosts(2)
    }

    /// Up to nine hosts, `a`, `b`, and so on.
    pub(crate) fn hosts(count: u8) -> Self {
        let turn = Turn::take();
        let switch = Namespace::new(format!("{}-sw", turn.prefix));
        switch.ip("link add br0 type bridge mcast_snooping 0");
        switch.ip("link set br0 up");
        let hosts = (0..count).map(|index| Host::attached(&switch, &turn.prefix, index)).collect();
        Self { hosts, _switch: switch, turn }
    }

    /// The first host.
    pub(crate) fn a(&self) -> &Host {
        &self.hosts[0]
    }

    /// The second host.
    pub(crate) fn b(&self) -> &Host {
        &self.hosts[1]
    }

    /// The third host.
    pub(crate) fn c(&self) -> &Host {
        &self.hosts[2]
    }

    /// The fourth host.
    pub(crate) fn d(&self) -> &Host {
        &self.hosts[3]
    }

    /// A directory for the files of this lab, readable by everybody.
    pub(crate) fn directory(&self) -> &Path {
        self.turn.directory.path()
    }
}

/// What every lab holds: its turn, the prefix of its namespaces and a directory for its files.
pub(super) struct Turn {
    pub(super) prefix: String,
    pub(super) directory: tempfile::TempDir,
    _guard: MutexGuard<'static, ()>,
}

impl Turn {
    /// Waits for the turn, then clears away what killed labs left.
    pub(super) fn take() -> Self {
        let guard = TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        check_requirements();
        remove_stale_namespaces();
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let directory = tempfile::tempdir().unwrap();
        // Programs of the lab that run as other users reach their files here.
        std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        Self { prefix: format!("{PREFIX}-{}-{number}", std::process::id()), directory, _guard: guard }
    }
}

/// A host: a network namespace with a link to the switch.
pub(crate) struct Host {
    /// `a`, `b`, `c`.
    pub(crate) name: char,
    /// Address on the link it was first attached to; unspecified when that has none.
    pub(crate) ipv4: Ipv4Addr,
    /// Address on the link it was first attached to; unspecified when that has none.
    pub(crate) ipv6: Ipv6Addr,
    namespace: Namespace,
    next_port: AtomicU16,
}

impl Host {
    fn attached(switch: &Namespace, prefix: &str, index: u8) -> Self {
        let number = index + 1;
        let ipv4 = Ipv4Addr::new(10, 77, 0, number);
        let ipv6 = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, u16::from(number));
        let host = Self::alone(prefix, index, ipv4, ipv6);
        switch.ip(&format!("link add p{index} type veth peer name eth0 netns {}", host.namespace()));
        switch.ip(&format!("link set p{index} master br0"));
        switch.ip(&format!("link set p{index} up"));
        host.ip(&format!("addr add {ipv4}/24 dev eth0"));
        host.ip(&format!("addr add {ipv6}/64 dev eth0 nodad"));
        host.ip("link set eth0 up");
        host.wait_until_settled();
        host
    }

    /// A host that is attached to nothing yet; the addresses are those it is going to have.
    pub(super) fn alone(prefix: &str, index: u8, ipv4: Ipv4Addr, ipv6: Ipv6Addr) -> Self {
        let name = char::from(b'a' + index);
        let namespace = Namespace::new(format!("{prefix}-{name}"));
        // Before the link is there: its link-local address is usable at once, without a check for duplicates.
        namespace.shell("echo 0 >/proc/sys/net/ipv6/conf/default/accept_dad");
        namespace.ip("link set lo up");
        Self { name, ipv4, ipv6, namespace, next_port: AtomicU16::new(20_000) }
    }

    pub(super) fn own_namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Runs `ip` on this host, from outside.
    pub(super) fn ip(&self, words: &str) {
        self.namespace.ip(words);
    }

    /// Name of its namespace.
    pub(crate) fn namespace(&self) -> &str {
        &self.namespace.name
    }

    /// A command that runs on this host.
    pub(crate) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", self.namespace()]).arg(program);
        command
    }

    /// Runs words separated by blanks on this host.
    pub(crate) fn run(&self, words: &str) -> Finished {
        self.run_within(PATIENT, words)
    }

    /// Runs words separated by blanks on this host, for at most `bound`.
    pub(crate) fn run_within(&self, bound: Duration, words: &str) -> Finished {
        run(&mut self.split(words), bound)
    }

    /// Runs words separated by blanks; fails the test when they fail.
    pub(crate) fn ok(&self, words: &str) -> String {
        self.run(words).ok()
    }

    /// Runs a line of shell.
    pub(crate) fn shell(&self, line: &str) -> Finished {
        run(self.command("sh").args(["-c", line]), PATIENT)
    }

    /// Starts words separated by blanks on this host and leaves them running.
    pub(crate) fn spawn(&self, words: &str) -> Program {
        Program::spawn(&mut self.split(words))
    }

    /// Starts a thread of this process whose sockets are this host's.
    pub(crate) fn spawn_thread<T: Send + 'static>(&self, run: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
        let namespace = std::fs::File::open(format!("/run/netns/{}", self.namespace())).unwrap();
        std::thread::spawn(move || {
            setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
            run()
        })
    }

    /// Starts a program of `tests/lab/programs` and waits until it says that it is ready.
    pub(crate) fn serve(&self, name: &str, arguments: &str) -> Program {
        let mut program = Program::spawn(&mut self.python(name, arguments));
        program.wait_for_text("ready");
        program
    }

    /// Runs a program of `tests/lab/programs` to its end.
    pub(crate) fn call(&self, name: &str, arguments: &str) -> Finished {
        self.call_within(PATIENT, name, arguments)
    }

    /// Runs a program of `tests/lab/programs` to its end, for at most `bound`.
    pub(crate) fn call_within(&self, bound: Duration, name: &str, arguments: &str) -> Finished {
        run(&mut self.python(name, arguments), bound)
    }

    /// Serves the files of `directory` by HTTP.
    pub(crate) fn serve_files(&self, address: IpAddr, port: u16, directory: &Path) -> Program {
        let mut command = self.command(PYTHON);
        command.args(["-u", "-m", "http.server", "--bind", &address.to_string(), "--directory"]);
        let mut program = Program::spawn(command.arg(directory).arg(port.to_string()));
        program.wait_for_text("Serving HTTP");
        program
    }

    /// A port nothing of this lab has used before.
    pub(crate) fn fresh_port(&self) -> u16 {
        self.next_port.fetch_add(1, Ordering::Relaxed)
    }

    /// Echoes that came back out of `count`.
    pub(crate) fn ping(&self, address: IpAddr, count: u32) -> u32 {
        let said = self.run(&format!("ping -n -c {count} -i 0.05 -W 2 {address}")).stdout;
        said.lines().filter(|line| line.contains("time=")).count().try_into().unwrap()
    }

    /// Waits until one echo comes back.
    pub(crate) fn wait_until_reaches(&self, address: IpAddr) {
        let what = format!("host {} reaches {address}", self.name);
        wait_until(&what, PATIENT, || self.run(&format!("ping -n -c 1 -W 1 {address}")).status.success());
    }

    /// Waits until no address is being checked for duplicates.
    pub(crate) fn wait_until_settled(&self) {
        let what = format!("addresses of host {} are usable", self.name);
        wait_until(&what, SOON, || {
            let links = self.ok("ip -6 addr show");
            !links.contains("tentative") && links.contains("fe80")
        });
    }

    /// Fails the test when a process runs on this host.
    pub(crate) fn assert_no_processes(&self, when: &str) {
        let pids = run(Command::new("ip").args(["netns", "pids", self.namespace()]), SOON).ok();
        assert_eq!(pids, "", "processes {when}");
    }

    fn split(&self, words: &str) -> Command {
        let mut words = words.split_whitespace();
        let mut command = self.command(words.next().unwrap());
        command.args(words);
        command
    }

    fn python(&self, name: &str, arguments: &str) -> Command {
        let mut command = self.command(PYTHON);
        command.arg("-u").arg(script(name)).args(arguments.split_whitespace());
        command
    }
}

/// A network namespace. Dropping it ends what still runs inside and removes it.
pub(super) struct Namespace {
    pub(super) name: String,
}

impl Namespace {
    pub(super) fn new(name: String) -> Self {
        run(Command::new("ip").args(["netns", "add", &name]), SOON).ok();
        Self { name }
    }

    pub(super) fn ip(&self, words: &str) {
        run(Command::new("ip").args(["-n", &self.name]).args(words.split_whitespace()), SOON).ok();
    }

    pub(super) fn shell(&self, line: &str) -> String {
        run(Command::new("ip").args(["netns", "exec", &self.name, "sh", "-c", line]), SOON).ok()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        remove_namespace(&self.name);
    }
}

fn check_requirements() {
    let uid = std::fs::metadata("/proc/self").unwrap().uid();
    assert!(uid == 0, "the lab makes network namespaces: run it as root (uid is {uid})");
    let folders = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];
    let is_there = |program: &str| folders.iter().any(|folder| Path::new(folder).join(program).exists());
    let missing: Vec<&str> =
        NEEDED.iter().filter(|(program, _)| !is_there(program)).map(|(_, package)| *package).collect();
    assert!(missing.is_empty(), "the lab needs more programs: apt-get install {}", missing.join(" "));
}

/// Removes what labs left behind that were killed before they could.
fn remove_stale_namespaces() {
    let listed = run(Command::new("ip").args(["netns", "list"]), SOON).ok();
    for name in listed.lines().filter_map(|line| line.split_whitespace().next()) {
        let mut parts = name.split('-');
        if parts.next() != Some(PREFIX) {
            continue;
        }
        let owner = parts.next().and_then(|pid| pid.parse::<u32>().ok());
        if owner.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            remove_namespace(name);
        }
    }
}

fn remove_namespace(name: &str) {
    let ip = |words: [&str; 3]| Command::new("ip").args(words).output();
    if let Ok(pids) = ip(["netns", "pids", name]) {
        let pids = String::from_utf8_lossy(&pids.stdout).into_owned();
        pids.split_whitespace().filter_map(|pid| pid.parse().ok()).for_each(|pid| signal("KILL", pid));
    }
    let _ = ip(["netns", "del", name]);
}
