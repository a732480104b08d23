//! What was on a link, by `tcpdump`.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Host, Program, SOON, run, wait_until};

/// A running capture.
pub(crate) struct Capture {
    program: Program,
    directory: tempfile::TempDir,
}

impl Capture {
    /// Starts to record `device` of `host`; from the return on nothing is missed.
    pub(crate) fn start(host: &Host, device: &str) -> Self {
        Self::start_with(host, device, "256")
    }

    /// The same, with all bytes of every packet.
    pub(crate) fn start_whole(host: &Host, device: &str) -> Self {
        Self::start_with(host, device, "0")
    }

    fn start_with(host: &Host, device: &str, bytes: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("link.pcap");
        let mut command = host.command("tcpdump");
        command.args(["-Z", "root", "-n", "-U", "--immediate-mode", "-s", bytes, "-B", "16384", "-i", device, "-w"]);
        let mut program = Program::spawn(command.arg(file));
        program.wait_for_text("listening on");
        Self { program, directory }
    }

    /// Packets so far that match `filter`.
    pub(crate) fn count(&self, filter: &str) -> usize {
        read(&self.file(), filter).len()
    }

    /// Waits until `filter` has matched.
    pub(crate) fn wait_for(&self, filter: &str) {
        wait_until(&format!("a packet on the link: {filter}"), SOON, || self.count(filter) > 0);
    }

    /// Ends the recording.
    pub(crate) fn stop(self) -> Recording {
        let file = self.file();
        let said = self.program.stderr();
        self.program.interrupt();
        assert!(!said.contains("syntax error"), "{said}");
        Recording { file, _directory: self.directory }
    }

    fn file(&self) -> PathBuf {
        self.directory.path().join("link.pcap")
    }
}

/// A capture that has ended.
pub(crate) struct Recording {
    file: PathBuf,
    _directory: tempfile::TempDir,
}

impl Recording {
    /// Where it is.
    pub(crate) fn file(&self) -> &Path {
        &self.file
    }

    /// Packets that match `filter`.
    pub(crate) fn count(&self, filter: &str) -> usize {
        self.times(filter).len()
    }

    /// When packets that match `filter` passed, in Unix seconds.
    pub(crate) fn times(&self, filter: &str) -> Vec<f64> {
        read(&self.file, filter)
    }

    /// Fails the test when anything matches `filter`.
    pub(crate) fn assert_none(&self, filter: &str) {
        let mut command = Command::new("tcpdump");
        let shown = run(command.args(["-n", "-tt", "-r"]).arg(&self.file).arg(filter), SOON).stdout;
        assert!(shown.is_empty(), "expected no packet that matches `{filter}`:\n{shown}");
    }
}

fn read(file: &PathBuf, filter: &str) -> Vec<f64> {
    let mut command = Command::new("tcpdump");
    command.args(["-n", "-tt", "-r"]).arg(file).arg(filter);
    // A packet that is just being written makes tcpdump complain at the end of the file; what came before counts.
    let finished = run(&mut command, SOON);
    assert!(!finished.stderr.contains("syntax error"), "{finished}");
    let time = |line: &str| line.split_whitespace().next().and_then(|word| word.parse().ok());
    finished.stdout.lines().filter_map(time).collect()
}
