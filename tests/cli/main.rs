//! The command line as scripts and people meet it: arguments in, output and exit status out.
//!
//! No test starts an agent. Where one must answer, [`fake_agent`] does.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests have clocks and threads, and fail by panicking"
)]

mod bugreport;
mod closed_output;
mod completion;
mod config;
mod fake_agent;
mod help;
mod man;
mod no_daemon;
mod not_available;
mod ping;
mod running_agent;
mod usage;
mod version;

use std::ffi::OsStr;
use std::process::{Command, Stdio};

/// What a command did.
struct Outcome {
    status: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Outcome {
    /// The one JSON document on standard output.
    fn document(&self) -> serde_json::Value {
        assert_eq!(self.stdout.lines().count(), 1, "{}", self.stdout);
        serde_json::from_str(&self.stdout).expect(&self.stdout)
    }

    /// Everything, for a snapshot.
    fn whole(&self) -> String {
        let status = self.status.map_or_else(|| "none".to_owned(), |status| status.to_string());
        format!("status: {status}\n--- stdout\n{}--- stderr\n{}", self.stdout, self.stderr)
    }
}

/// The program, in an environment of its own.
fn command(arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_agentnet"));
    command.args(arguments).env_clear().env("COLUMNS", "100").stdin(Stdio::null());
    command
}

fn finish(mut command: Command) -> Outcome {
    let output = command.output().unwrap();
    Outcome {
        status: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

fn agentnet(arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Outcome {
    finish(command(arguments))
}
