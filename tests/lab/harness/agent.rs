//! The agent under test, driven only through its command line.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::Value;

use super::process::signal;
use super::{Finished, Host, Lab, PATIENT, SOON, Server, names_in, run, wait_for, wait_until};

/// The program as cargo built it.
pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_agentnet");

/// What an agent leaves in its state directory, and each start may find.
const STATE_FILES: [&str; 4] = ["agentnet.log", "identity.key", "lock", "state.redb"];

/// One agent on a host: a state directory and, between `up` and `down`, a process.
pub(crate) struct Agent<'lab> {
    host: &'lab Host,
    directory: tempfile::TempDir,
    socket: PathBuf,
    /// Flags every `up` is given.
    pub(crate) flags: Vec<String>,
    /// Words that run `up`, such as `unshare`; none by default.
    pub(crate) wrapper: Vec<OsString>,
    /// What the last `up` printed.
    started: Option<Value>,
    is_up: AtomicBool,
}

impl<'lab> Agent<'lab> {
    /// An agent that was never up.
    pub(crate) fn new(host: &'lab Host) -> Self {
        Self::with_directory(host, tempfile::tempdir().unwrap())
    }

    /// The same with its state in this directory.
    pub(crate) fn with_directory(host: &'lab Host, directory: tempfile::TempDir) -> Self {
        let socket = directory.path().join("agentnet.sock");
        Self {
            host,
            directory,
            socket,
            flags: Vec::new(),
            wrapper: Vec::new(),
            started: None,
            is_up: AtomicBool::new(false),
        }
    }

    /// An agent that is up.
    pub(crate) fn started(host: &'lab Host) -> Self {
        let mut agent = Self::new(host);
        agent.up();
        agent
    }

    /// An agent that is up and registered with these servers.
    pub(crate) fn registered(host: &'lab Host, servers: &[&Server<'_>]) -> Self {
        let mut agent = Self::with_servers(host, servers);
        agent.up();
        agent.wait_until_registered(servers.len());
        agent
    }

    /// An agent that was never up and is to register with these servers.
    pub(crate) fn with_servers(host: &'lab Host, servers: &[&Server<'_>]) -> Self {
        let mut agent = Self::new(host);
        for server in servers {
            agent.flags.extend(["--rendezvous".into(), server.reference().into()]);
        }
        agent
    }

    /// Waits until so many servers are connected.
    pub(crate) fn wait_until_registered(&self, servers: usize) {
        wait_until("the agent is registered", PATIENT, || {
            let status = self.json(&["status"]);
            let connected = status["rendezvous"].as_array().unwrap().iter().filter(|it| it["state"] == "connected");
            connected.count() >= servers
        });
    }

    /// Kind of the path to a peer, in the word of `status`.
    pub(crate) fn path_kind(&self, peer: &Self) -> String {
        self.peer(&peer.id()).map_or_else(|| "none".to_owned(), |peer| text(&peer["path"], "kind"))
    }

    /// With its control socket at `socket`.
    pub(crate) fn with_socket(mut self, socket: PathBuf) -> Self {
        self.socket = socket;
        self
    }

    /// The host it runs on.
    pub(crate) fn host(&self) -> &'lab Host {
        self.host
    }

    /// Its state directory.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Fails the test when its state directory holds anything but what a stopped agent leaves there, and `also`.
    pub(crate) fn assert_only_state_left(&self, also: &[&str], when: &str) {
        let mut foreign = names_in(self.directory());
        foreign.retain(|name| !STATE_FILES.iter().chain(also).any(|known| known == name));
        assert!(foreign.is_empty(), "{foreign:?} left {when}");
    }

    /// Its control socket.
    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    /// `up`; fails the test when that fails.
    pub(crate) fn up(&mut self) {
        self.try_up().unwrap_or_else(|finished| panic!("{finished}\n{}", self.log()));
    }

    /// `up`, which may fail.
    pub(crate) fn try_up(&mut self) -> Result<(), Finished> {
        let finished = run(&mut self.up_command(), PATIENT);
        if !finished.status.success() {
            return Err(finished);
        }
        self.started = Some(document(&finished));
        self.is_up.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// The command behind [`Agent::up`].
    pub(crate) fn up_command(&self) -> Command {
        let mut command = self.wrapped(&self.wrapper, &["--json", "up"]);
        command.args(&self.flags).env("AGENTNET_LOG", "debug");
        command
    }

    /// `down`, and its process is gone.
    pub(crate) fn down(&self) {
        let pid = self.pid();
        self.run(&["down"]).ok();
        self.is_up.store(false, Ordering::Relaxed);
        assert!(!is_alive(pid), "process {pid} is still there after `down`");
        assert!(!self.socket.exists(), "{} is still there after `down`", self.socket.display());
    }

    /// Ends the process as a crash would.
    pub(crate) fn kill9(&self) {
        self.end("KILL");
    }

    /// Ends the process as a service manager does.
    pub(crate) fn terminate(&self) {
        self.end("TERM");
    }

    fn end(&self, name: &str) {
        assert!(self.is_up.swap(false, Ordering::Relaxed), "the agent on host {} is not up", self.host.name);
        let pid = self.pid();
        signal(name, pid);
        wait_until(&format!("process {pid} is gone"), SOON, || !is_alive(pid));
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        u32::try_from(number(self.report(), "pid")).unwrap()
    }

    /// Agent id.
    pub(crate) fn id(&self) -> String {
        text(self.report(), "id")
    }

    /// Overlay IPv6 address.
    pub(crate) fn ipv6(&self) -> Ipv6Addr {
        text(self.report(), "ipv6").parse().unwrap()
    }

    /// Its own IPv4 alias.
    pub(crate) fn ipv4(&self) -> Ipv4Addr {
        text(self.report(), "ipv4").parse().unwrap()
    }

    /// Interface name.
    pub(crate) fn interface(&self) -> String {
        text(self.report(), "interface")
    }

    /// UDP port.
    pub(crate) fn port(&self) -> u16 {
        u16::try_from(number(self.report(), "port")).unwrap()
    }

    /// What it found wrong when it started.
    pub(crate) fn health(&self) -> Vec<Value> {
        self.json(&["status"])["health"].as_array().cloned().unwrap()
    }

    /// Runs a command of the agent.
    pub(crate) fn run(&self, words: &[&str]) -> Finished {
        run(&mut self.command(words), PATIENT)
    }

    /// Runs a command with `--json`; fails the test when it fails.
    pub(crate) fn json(&self, words: &[&str]) -> Value {
        let finished = self.run_json(words);
        assert!(finished.status.success(), "{finished}\n{}", self.log());
        document(&finished)
    }

    /// Runs a command with `--json`, which may fail.
    pub(crate) fn run_json(&self, words: &[&str]) -> Finished {
        run(&mut self.command(&[&["--json"], words].concat()), PATIENT)
    }

    /// The line to hand to another agent.
    pub(crate) fn ticket(&self) -> String {
        text(&self.json(&["ticket"]), "ticket")
    }

    /// What `status` says of a peer.
    pub(crate) fn peer(&self, id: &str) -> Option<Value> {
        let status = self.json(&["status"]);
        status["peers"].as_array().unwrap().iter().find(|peer| peer["id"] == id).cloned()
    }

    /// Trust towards a peer in the words of `status`; `none` for an unknown one.
    pub(crate) fn trust_state(&self, id: &str) -> String {
        self.peer(id).map_or_else(|| "none".to_owned(), |peer| text(&peer, "trust"))
    }

    /// The IPv4 alias this agent has given to a peer.
    pub(crate) fn alias_of(&self, peer: &Self) -> Ipv4Addr {
        let alias = || self.peer(&peer.id())?["ipv4"].as_str()?.parse().ok();
        wait_for("the peer has an IPv4 alias", SOON, alias)
    }

    /// The addresses programs on this host reach `peer` at.
    pub(crate) fn addresses_of(&self, peer: &Self) -> [IpAddr; 2] {
        [peer.ipv6().into(), self.alias_of(peer).into()]
    }

    /// Packets it did not forward, by reasons that contain `word`.
    pub(crate) fn drops(&self, word: &str) -> u64 {
        let status = self.json(&["status"]);
        let drops = status["drops"].as_object().unwrap();
        drops.iter().filter(|(reason, _)| reason.contains(word)).filter_map(|(_, count)| count.as_u64()).sum()
    }

    /// The end of its log, for the text of a failure.
    pub(crate) fn log(&self) -> String {
        let log = std::fs::read(self.directory().join("agentnet.log")).unwrap_or_default();
        let log = String::from_utf8_lossy(&log).into_owned();
        let lines: Vec<&str> = log.lines().collect();
        let mut end = format!("--- log of the agent on host {}\n", self.host.name);
        for line in &lines[lines.len().saturating_sub(40)..] {
            let _ = writeln!(end, "{line}");
        }
        end
    }

    /// A command of the agent, on its host and with its own directories.
    pub(crate) fn command(&self, words: &[&str]) -> Command {
        self.wrapped(&[], words)
    }

    fn wrapped(&self, wrapper: &[OsString], words: &[&str]) -> Command {
        let mut before = wrapper.iter().map(OsString::as_os_str).chain([PROGRAM.as_ref()]);
        let mut command = self.host.command(before.next().unwrap());
        command.args(before).arg("--state-dir").arg(self.directory()).arg("--socket").arg(&self.socket);
        for variable in ["AGENTNET_STATE_DIR", "AGENTNET_SOCKET", "AGENTNET_CONFIG", "AGENTNET_LOG"] {
            command.env_remove(variable);
        }
        // Routers of the lab are asked for ports only where that is what is looked at.
        command.env("NO_COLOR", "1").env("AGENTNET_PORT_MAPPING", "off").args(words);
        command
    }

    fn report(&self) -> &Value {
        self.started.as_ref().unwrap_or_else(|| panic!("the agent on host {} was never up", self.host.name))
    }
}

impl Drop for Agent<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
        if *self.is_up.get_mut() {
            signal("KILL", self.pid());
        }
    }
}

/// Two hosts with an agent each that trust each other.
pub(crate) struct Pair<'lab> {
    /// On host a.
    pub(crate) a: Agent<'lab>,
    /// On host b.
    pub(crate) b: Agent<'lab>,
}

impl<'lab> Pair<'lab> {
    /// Starts both and lets each say yes.
    pub(crate) fn trusted(lab: &'lab Lab) -> Self {
        let pair = Self { a: Agent::started(lab.a()), b: Agent::started(lab.b()) };
        trust(&pair.a, &pair.b);
        pair
    }
}

/// `asking` asks `asked`, which approves; returns when both call the other trusted.
pub(crate) fn trust(asking: &Agent<'_>, asked: &Agent<'_>) {
    asking.json(&["trust", "request", &asked.ticket(), "--reason", "lab"]);
    wait_until_asked(asked, asking);
    asked.json(&["trust", "approve", &asking.id()]);
    for (one, other) in [(asking, asked), (asked, asking)] {
        wait_until_trust(one, other, "trusted");
    }
}

/// Waits until a request of `asking` lies before `asked`.
pub(crate) fn wait_until_asked(asked: &Agent<'_>, asking: &Agent<'_>) {
    let id = asking.id();
    wait_until("the request arrives", SOON, || {
        let pending = asked.json(&["trust", "pending"]);
        pending["peers"].as_array().unwrap().iter().any(|peer| peer["id"] == id.as_str())
    });
}

/// Waits until `one` says of `other` that trust is in `state`.
pub(crate) fn wait_until_trust(one: &Agent<'_>, other: &Agent<'_>, state: &str) {
    let id = other.id();
    let what = format!("host {} calls the agent on host {} {state}", one.host.name, other.host.name);
    wait_until(&what, Duration::from_secs(30), || one.trust_state(&id) == state);
}

/// The one JSON document a command printed.
pub(crate) fn document(finished: &Finished) -> Value {
    serde_json::from_str(&finished.stdout).unwrap_or_else(|error| panic!("not one JSON document, {error}: {finished}"))
}

/// The code of the error a command printed; the error must also say what to do.
pub(crate) fn error_code(finished: &Finished) -> String {
    let error = &document(finished)["error"];
    for part in ["message", "hint"] {
        assert!(!text(error, part).is_empty(), "no {part}: {finished}");
    }
    text(error, "code")
}

fn text(value: &Value, key: &str) -> String {
    value[key].as_str().unwrap_or_else(|| panic!("no {key} in {value}")).to_owned()
}

fn number(value: &Value, key: &str) -> u64 {
    value[key].as_u64().unwrap_or_else(|| panic!("no {key} in {value}"))
}

/// A process that has ended but was not yet waited for does not count.
fn is_alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().and_then(|rest| rest.trim_start().chars().next()).is_some_and(|state| state != 'Z')
}
