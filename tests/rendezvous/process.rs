//! The server's process.

use std::fs::OpenOptions;
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use agentnet::identity::{RendezvousRef, SignedRecord};
use agentnet::wire::{RecordAnswer, RecordRequest};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(20);

/// A server, killed when it is dropped.
pub(crate) struct Server {
    child: Child,
    state: TempDir,
    pub(crate) address: SocketAddr,
    arguments: Vec<String>,
}

impl Server {
    pub(crate) fn start() -> Self {
        Self::start_with(&[])
    }

    pub(crate) fn start_with(arguments: &[&str]) -> Self {
        let state = tempfile::tempdir().unwrap();
        let arguments: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        let (child, address) = spawn(&state, &arguments);
        Self { child, state, address, arguments }
    }

    pub(crate) fn kill_and_restart(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        (self.child, self.address) = spawn(&self.state, &self.arguments);
    }

    /// Waits until what was promised is on disk: a second, as documented, and the time of a write.
    pub(crate) fn wait_until_stored(&self) {
        std::thread::sleep(Duration::from_millis(2500));
    }

    /// Sends it SIGHUP.
    pub(crate) fn hang_up(&self) {
        self.signal(Signal::SIGHUP);
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), signal).unwrap();
    }

    /// What it logged since it was started first.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.state.path().join("log")).unwrap()
    }

    /// Asks it to end, and returns its exit status.
    pub(crate) fn terminate(&mut self) -> Option<i32> {
        self.signal(Signal::SIGTERM);
        let until = Instant::now() + PATIENCE;
        while Instant::now() < until {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("it did not end");
    }

    /// What a second server on the same state says.
    pub(crate) fn error_on_the_same_state(&self) -> String {
        error(command(&self.state, &["--listen=127.0.0.1:0".to_owned()]))
    }

    /// Its record, by a request from nobody in particular.
    pub(crate) fn record(&self) -> SignedRecord {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let transaction = [4; 16];
        socket.send_to(&RecordRequest { transaction }.emit(), self.address).unwrap();
        let mut buffer = [0; 2000];
        let len = socket.recv(&mut buffer).unwrap();
        let answer = RecordAnswer::parse(&buffer[..len]).unwrap();
        assert_eq!(answer.transaction, transaction);
        answer.record().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The code of the error that a server with these arguments ends with.
pub(crate) fn error_of(arguments: &[String]) -> String {
    error(command(&tempfile::tempdir().unwrap(), arguments))
}

fn error(mut command: Command) -> String {
    let output = command.arg("--json").output().unwrap();
    assert!(!output.status.success());
    let document: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(!document["error"]["hint"].as_str().unwrap().is_empty());
    document["error"]["code"].as_str().unwrap().to_owned()
}

fn spawn(state: &TempDir, arguments: &[String]) -> (Child, SocketAddr) {
    let log = OpenOptions::new().create(true).append(true).open(state.path().join("log")).unwrap();
    let mut command = command(state, arguments);
    let mut child = command.arg("--listen=127.0.0.1:0").stdout(Stdio::piped()).stderr(log).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    let reference: RendezvousRef = line.trim_end().parse().expect(&line);
    (child, reference.address.as_str().parse().unwrap())
}

fn command(state: &TempDir, arguments: &[String]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_agentnet"));
    command.arg("--state-dir").arg(state.path().join("server")).arg("rendezvous").args(arguments);
    command.env_clear().stdin(Stdio::null()).stderr(Stdio::null());
    command
}
