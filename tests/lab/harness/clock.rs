//! A wall clock that is wrong for one agent; the machine's stays as it is.

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Agent, Host, PATIENT, Server, run, script};

/// `programs/wall_clock.c`, to be preloaded, and how far it is ahead.
///
/// An agent that is linked statically does not see it: tests that use it are for `target_env = "gnu"`.
pub(crate) struct Clock {
    file: PathBuf,
    preloaded: PathBuf,
}

impl Clock {
    /// A clock that is right, with its files in `directory`.
    pub(crate) fn new(directory: &Path) -> Self {
        let preloaded = directory.join("wall_clock.so");
        let mut compiler = Command::new("gcc");
        compiler.args(["-shared", "-fPIC", "-O1", "-o"]).arg(&preloaded).arg(script("wall_clock.c")).arg("-ldl");
        run(&mut compiler, PATIENT).ok();
        let file = directory.join("ahead");
        fs::write(&file, 0_i64.to_ne_bytes()).unwrap();
        for path in [&file, &preloaded] {
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        Self { file, preloaded }
    }

    /// Sets it ahead of the machine's by so many seconds, or behind; also for agents that run.
    pub(crate) fn set(&self, ahead_s: i64) {
        // The file is mapped: it must be written, not replaced.
        fs::OpenOptions::new().write(true).open(&self.file).unwrap().write_all_at(&ahead_s.to_ne_bytes(), 0).unwrap();
    }

    /// An agent that goes by it and was never up, with these servers.
    pub(crate) fn agent<'lab>(&self, host: &'lab Host, servers: &[&Server<'_>]) -> Agent<'lab> {
        let mut agent = Agent::with_servers(host, servers);
        let variable = |name: &str, path: &Path| format!("{name}={}", path.display()).into();
        agent.wrapper = vec!["env".into(), variable("LAB_CLOCK", &self.file), variable("LD_PRELOAD", &self.preloaded)];
        agent
    }
}
