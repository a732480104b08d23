//! The hosts of the lab and what runs on them.
//!
//! ```text
//!   namespace anl-PID-N-sw
//!   +--------------------------------------------------+
//!   |                       br0                        |
//!   |       p0              p1              p2         |
//!   +-------|---------------|---------------|----------+
//!           | veth          | veth          | veth
//!         eth0            eth0            eth0
//!      10.77.0.1/24    10.77.0.2/24    10.77.0.3/24
//!      fd77::1/64      fd77::2/64      fd77::3/64
//!        host a          host b          host c           namespaces anl-PID-N-a, -b, -c
//!        agentnet0       agentnet0       agentnet0        made by the agents
//! ```
//!
//! Every link end is made inside its namespace: the machine's own links, addresses and routes are never touched, and
//! nothing in the lab has a way out. There is no default route and no name server.

mod agent;
mod capture;
mod clock;
mod crowd;
mod echoes;
mod host;
mod internet;
mod link;
mod load;
mod nat;
mod process;
mod router;
mod server;
mod snapshot;
mod upnpd;

pub(crate) use agent::{Agent, PROGRAM, Pair, document, error_code, trust, wait_until_asked, wait_until_trust};
pub(crate) use capture::Capture;
pub(crate) use clock::Clock;
pub(crate) use crowd::{Crowd, ticket_of};
pub(crate) use echoes::{Echoes, answers, longest_gap};
pub(crate) use host::{Host, Lab};
pub(crate) use internet::{Internet, Place};
pub(crate) use link::{Link, Shape};
pub(crate) use load::Load;
pub(crate) use nat::Nat;
pub(crate) use process::{Finished, Program, run, signal};
use router::Router;
pub(crate) use server::Server;
pub(crate) use snapshot::Snapshot;
pub(crate) use upnpd::Upnpd;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Bound for what takes milliseconds on an idle machine.
pub(crate) const SOON: Duration = Duration::from_secs(15);
/// Bound for what takes seconds on an idle machine.
pub(crate) const PATIENT: Duration = Duration::from_secs(60);
/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(20);

/// Waits until `condition` holds; fails the test with `what` when `bound` has passed.
pub(crate) fn wait_until(what: &str, bound: Duration, mut condition: impl FnMut() -> bool) {
    wait_for(what, bound, || condition().then_some(()));
}

/// Waits until `look` finds something; fails the test with `what` when `bound` has passed.
pub(crate) fn wait_for<T>(what: &str, bound: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(start.elapsed() < bound, "waited {bound:?} in vain: {what}");
        std::thread::sleep(POLL);
    }
}

/// Lets `time` pass while something is being observed. Only for showing that something does *not* happen.
pub(crate) fn observe(time: Duration) {
    std::thread::sleep(time);
}

/// Unix time in seconds, as `ping -D` and `tcpdump -tt` print it.
pub(crate) fn unix_seconds() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

/// A number from the environment.
pub(crate) fn setting(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")),
        Err(_) => default,
    }
}

/// A program of `tests/lab/programs`.
pub(crate) fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lab/programs").join(name)
}

/// Names of what is in a directory.
pub(crate) fn names_in(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).unwrap();
    entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
}

/// The middle value.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}
