//! A rendezvous server under test, driven only through its command line.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::process::Command;

use super::process::signal;
use super::{Host, PROGRAM, Program, SOON, wait_for};

/// The port of every server.
const PORT: u16 = 41641;

/// A server on a public host, with a state directory that outlives it.
pub(crate) struct Server<'lab> {
    host: &'lab Host,
    directory: tempfile::TempDir,
    flags: Vec<String>,
    process: Option<Program>,
    reference: String,
}

impl<'lab> Server<'lab> {
    /// A server that runs, on both of the host's addresses.
    pub(crate) fn started(host: &'lab Host) -> Self {
        Self::with_flags(host, &[])
    }

    /// The same with flags of its own.
    pub(crate) fn with_flags(host: &'lab Host, flags: &[&str]) -> Self {
        let flags = flags.iter().map(ToString::to_string).collect();
        let directory = tempfile::tempdir().unwrap();
        let mut server = Self { host, directory, flags, process: None, reference: String::new() };
        server.start();
        server
    }

    /// Starts it, again.
    pub(crate) fn start(&mut self) {
        let mut command = self.command();
        let process = Program::spawn(command.args(&self.flags));
        self.reference = wait_for("the server says who it is", SOON, || {
            process.stdout().lines().next().filter(|line| line.contains('@')).map(str::to_owned)
        });
        self.process = Some(process);
    }

    /// What agents are given as `--rendezvous`.
    pub(crate) fn reference(&self) -> &str {
        &self.reference
    }

    /// Its agent id.
    pub(crate) fn id(&self) -> &str {
        self.reference.split('@').next().unwrap_or_default()
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.process.as_ref().expect("the server runs").pid()
    }

    /// Ends it as Ctrl-C does; returns what it counted and is not zero, `NAME COUNT` each.
    pub(crate) fn stop(&mut self) -> Vec<String> {
        let process = self.process.take().expect("the server runs");
        signal("INT", process.pid());
        let log = process.finish(SOON).stderr;
        let counted = log.split("counters=\"").nth(1).and_then(|rest| rest.split('"').next());
        counted.unwrap_or_else(|| panic!("no counters in {log}")).split(", ").map(str::to_owned).collect()
    }

    /// Ends the process as a crash would.
    pub(crate) fn kill9(&mut self) {
        // Dropping a program kills it.
        self.process = None;
    }

    fn command(&self) -> Command {
        let mut command = self.host.command(PROGRAM);
        command.arg("--state-dir").arg(self.directory.path()).arg("rendezvous");
        command.args(["--listen", &listen_v4(self.host.ipv4), "--listen", &listen_v6(self.host.ipv6)]);
        command.env("AGENTNET_LOG", "debug");
        command
    }
}

impl Drop for Server<'_> {
    fn drop(&mut self) {
        if std::thread::panicking()
            && let Some(process) = &self.process
        {
            eprintln!("--- log of the server on host {}\n{}", self.host.name, process.stderr());
        }
    }
}

fn listen_v4(ip: Ipv4Addr) -> String {
    format!("{ip}:{PORT}")
}

fn listen_v6(ip: Ipv6Addr) -> String {
    format!("[{ip}]:{PORT}")
}
