//! Programs: run with a bound, or left running until dropped.

use std::fmt;
use std::fs::File;
use std::io::{Read, Seek};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use super::{SOON, wait_for, wait_until};

/// A program that has ended.
pub(crate) struct Finished {
    /// How it ended.
    pub(crate) status: ExitStatus,
    /// What it said.
    pub(crate) stdout: String,
    /// What it complained of.
    pub(crate) stderr: String,
    words: String,
}

impl Finished {
    /// Exit status as a number; -1 for a signal.
    pub(crate) fn code(&self) -> i32 {
        self.status.code().unwrap_or(-1)
    }

    /// Its output; fails the test when the program failed.
    pub(crate) fn ok(self) -> String {
        assert!(self.status.success(), "{self}");
        self.stdout
    }
}

impl fmt::Display for Finished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}\n--- out\n{}\n--- err\n{}", self.words, self.status, self.stdout, self.stderr)
    }
}

/// Runs `command` to its end; kills it and fails the test when `bound` has passed.
///
/// Output goes through files, so that a background process that inherits them cannot keep this waiting.
pub(crate) fn run(command: &mut Command, bound: Duration) -> Finished {
    let mut program = Program::spawn(command);
    let status = program.wait(bound);
    Finished { status, stdout: program.stdout(), stderr: program.stderr(), words: program.words.clone() }
}

/// A program that runs; killed by its pid when dropped.
pub(crate) struct Program {
    child: Child,
    stdout: File,
    stderr: File,
    words: String,
}

impl Program {
    /// Starts `command` with nothing on standard input.
    pub(crate) fn spawn(command: &mut Command) -> Self {
        let words = std::iter::once(command.get_program()).chain(command.get_args());
        let words = words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ");
        let stdout = tempfile::tempfile().unwrap();
        let stderr = tempfile::tempfile().unwrap();
        let child = command
            .stdin(Stdio::null())
            .stdout(stdout.try_clone().unwrap())
            .stderr(stderr.try_clone().unwrap())
            .spawn()
            .unwrap_or_else(|error| panic!("{words}: {error}"));
        Self { child, stdout, stderr, words }
    }

    /// Waits until its output, either one, contains `text`.
    pub(crate) fn wait_for_text(&mut self, text: &str) {
        let what = format!("`{}` says {text:?}", self.words);
        wait_until(&what, SOON, || {
            let said = self.stdout() + &self.stderr();
            if said.contains(text) {
                return true;
            }
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none(), "{} ended early, {ended:?}:\n{said}", self.words);
            false
        });
    }

    /// What it has said so far.
    pub(crate) fn stdout(&self) -> String {
        contents(&self.stdout)
    }

    /// What it has complained of so far.
    pub(crate) fn stderr(&self) -> String {
        contents(&self.stderr)
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it still runs.
    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Asks it to end as Ctrl-C does, and waits.
    pub(crate) fn interrupt(self) -> String {
        self.interrupt_within(SOON).stdout
    }

    /// Asks it to end as Ctrl-C does, and waits for at most `bound`.
    pub(crate) fn interrupt_within(mut self, bound: Duration) -> Finished {
        if self.is_running() {
            signal("INT", self.pid());
        }
        self.finish(bound)
    }

    /// Waits for its end; fails the test when `bound` has passed.
    pub(crate) fn finish(mut self, bound: Duration) -> Finished {
        let status = self.wait(bound);
        Finished { status, stdout: self.stdout(), stderr: self.stderr(), words: self.words.clone() }
    }

    fn wait(&mut self, bound: Duration) -> ExitStatus {
        let what = format!("`{}` ends", self.words);
        wait_for(&what, bound, || self.child.try_wait().unwrap())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Sends a signal to one process.
pub(crate) fn signal(name: &str, pid: u32) {
    let _ = Command::new("kill").args(["-s", name, "--", &pid.to_string()]).stderr(Stdio::null()).status();
}

/// The offset is shared with the program that writes, so the file is read through a handle of its own.
fn contents(file: &File) -> String {
    use std::os::fd::AsRawFd;
    let mut own = File::open(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap();
    own.rewind().unwrap();
    let mut bytes = Vec::new();
    own.read_to_end(&mut bytes).unwrap();
    String::from_utf8_lossy(&bytes).into_owned()
}
