//! The I/O around the pure core: files, device, sockets, threads, signals, the control socket.
//!
//! 1. [`start`](run) checks rights, takes the state directory, loads or makes the identity, and opens what the host has
//!    to give: device, sockets, addresses, routes. Then it gives up every right that it does not need any more (`rights`),
//!    before the first packet is read.
//! 2. Packet threads carry packets, two for each queue of the device (`packet_threads`); they share nothing with the rest
//!    but the forwarding snapshot and two bounded queues.
//! 3. The main thread runs the control plane (`event_loop`): it feeds [`crate::node::Node`] with what happens and
//!    carries out what it answers, state first.
//!
//! The rendezvous server is apart from that (`rendezvous`): one thread (`relay_thread`), two ports, no device.
#![allow(clippy::disallowed_methods, reason = "this is the shell: clocks, threads and files belong here")]

mod control_socket;
mod diagnostics;
mod event_loop;
mod host;
mod host_health;
mod listener;
mod log;
mod metrics_listener;
mod packet_threads;
mod permission;
mod port_mapping;
mod reading;
mod relay_thread;
mod rendezvous;
mod resolver;
mod rights;
mod service_manager;
mod signals;
mod sleep_detector;
mod start;
mod state_dir;
mod store;
mod whole_file;

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use agentnet_platform::clock::boot_time;
use agentnet_platform::privilege::{PrivilegeError, check_network_admin};

pub use diagnostics::network_document;
pub use log::{Log, MAX_FILE_BYTES as MAX_LOG_BYTES};
pub use rendezvous::{Rendezvous, RendezvousOptions};
pub use state_dir::{LOG_FILE, OLD_LOG_FILE, make_state_dir};
pub use whole_file::{Access, open_own, write_whole};

use crate::api::{Error, ErrorCode};
use crate::config::Config;
use crate::time::{Now, Time};

/// Whether this process has the rights an agent needs.
///
/// # Errors
/// `not_root`, `no_tun_device`, `tun_denied`, `clock_invalid`.
pub fn preflight(_config: &Config) -> Result<(), Error> {
    check_network_admin().map_err(|error| privilege_error(&error))?;
    wall_clock().map(|_| ())
}

/// What a running agent needs of who started it.
pub struct Surroundings {
    /// Reads the configuration again, from where it came.
    pub load: Box<dyn Fn() -> Result<Config, Error> + Send>,
    /// The configuration file that was named, if one was: it is read again.
    pub file: Option<PathBuf>,
    /// The log of this process.
    pub log: Log,
}

/// Runs the agent until it is told to stop. With `background`, leaves the terminal and reports on standard output.
///
/// # Errors
/// Why it could not start, or had to stop.
pub fn run(config: Config, surroundings: Surroundings, background: bool) -> Result<(), Error> {
    if background {
        // Fails where the process leads a group already, and then there is no terminal to leave.
        let _ = agentnet_platform::process::detach_from_terminal();
        close_inherited();
    }
    agentnet_platform::process::keep_large_pieces_apart();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| {
        Error::new(ErrorCode::Internal, format!("the event loop cannot be set up: {error}"), "check `ulimit -n`")
    })?;
    let result = runtime.block_on(start::run(config, surroundings, background));
    // A look-up in a user database that does not answer must not keep the process.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    result
}

/// Closes what the starter had open beyond the standard streams, before anything is opened here: its locks and pipes must
/// not last as long as the agent.
fn close_inherited() {
    let Ok(entries) = std::fs::read_dir("/dev/fd") else { return };
    let numbers = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    // Read whole first: the directory has a descriptor, too, which is gone afterwards.
    for number in numbers.filter(|number| *number > 2).collect::<Vec<_>>() {
        let _ = nix::unistd::close(number);
    }
}

/// Both clocks.
fn now() -> Now {
    Now { time: Time::from_origin(boot_time()), unix_ms: wall_clock().unwrap_or(0) }
}

/// Milliseconds since 1970.
fn wall_clock() -> Result<u64, Error> {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).map_err(|_| {
        Error::new(ErrorCode::ClockInvalid, "the system clock stands before 1970", "set it: `date -s`, or start NTP")
    })?;
    Ok(u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX))
}

fn privilege_error(error: &PrivilegeError) -> Error {
    let message = error.to_string();
    match error {
        PrivilegeError::NotRoot { .. } => {
            Error::new(ErrorCode::NotRoot, message, "run it with sudo: `sudo agentnet up`")
        }
        PrivilegeError::NoTunDevice => Error::new(
            ErrorCode::NoTunDevice,
            message,
            "load the module: `sudo modprobe tun`; in a container: `--device /dev/net/tun`",
        ),
        _ => Error::new(ErrorCode::TunDenied, message, "check the permissions of /dev/net/tun"),
    }
}
