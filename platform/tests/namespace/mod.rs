//! A network namespace of a test's own. Needs root; a test that cannot have one fails.

use std::fs::File;
use std::future::Future;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::sched::{CloneFlags, setns};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// Exists until dropped, also when the test panics.
pub(crate) struct Namespace {
    name: String,
}

impl Namespace {
    pub(crate) fn new() -> Self {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("agentnet-platform-{}-{number}", std::process::id());
        run("ip", &["netns", "add", &name]);
        let namespace = Self { name };
        namespace.ip(&["link", "set", "lo", "up"]);
        namespace
    }

    /// Runs `ip` inside and returns what it prints.
    pub(crate) fn ip(&self, arguments: &[&str]) -> String {
        run("ip", &[&["-n", &self.name], arguments].concat())
    }

    /// Adds a link that is up and has a carrier: one end of a pair, the other end named after it.
    #[allow(dead_code, reason = "not every test file needs it")]
    pub(crate) fn add_link(&self, name: &str) {
        let peer = format!("{name}-peer");
        self.ip(&["link", "add", name, "type", "veth", "peer", "name", &peer]);
        self.ip(&["link", "set", &peer, "up"]);
        self.ip(&["link", "set", name, "up"]);
    }

    /// Sets a sysctl inside.
    #[allow(dead_code, reason = "not every test file needs it")]
    pub(crate) fn sysctl(&self, assignment: &str) {
        run("ip", &["netns", "exec", &self.name, "sysctl", "-qw", assignment]);
    }

    /// Runs `test` in a thread inside.
    pub(crate) fn enter<T: Send>(&self, test: impl FnOnce() -> T + Send) -> T {
        let path = format!("/run/netns/{}", self.name);
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                let file = File::open(path).unwrap();
                setns(file, CloneFlags::CLONE_NEWNET).unwrap();
                test()
            });
            match thread.join() {
                Ok(value) => value,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// Runs `test` in a thread inside, on a runtime that stays in that thread.
    #[allow(dead_code, reason = "not every test file needs a runtime")]
    pub(crate) fn enter_async<T: Send, F: Future<Output = T>>(&self, test: impl FnOnce() -> F + Send) -> T {
        self.enter(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(test())
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
