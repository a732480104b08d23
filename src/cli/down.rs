//! `agentnet down`

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::unistd::{Pid, Uid};
use serde::Serialize;
use tokio::time::Instant;

use super::Global;
use super::client::{Client, block_on};
use super::load::names_another;
use super::output::{Failure, Output};
use super::service::{SYSTEMD, Stop, UNIT, how_to_stop};
use crate::api::{Error, ErrorCode, Status};

/// How long the agent may take to clean up and end.
const PATIENCE: Duration = Duration::from_secs(10);
/// Time between two looks whether it has.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// Stop the agent; its interface, addresses and routes go with it
#[derive(Debug, clap::Args)]
#[command(
    after_help = "The service agentnet is also disabled, so that it does not start at the next boot; to stop it until\n\
                  then: systemctl stop agentnet"
)]
pub(super) struct Args {}

#[derive(Serialize)]
struct Stopped {
    /// False when no agent ran.
    was_running: bool,
    /// Process id it had.
    pid: Option<u32>,
}

pub(super) fn run(_: &Args, global: &Global, out: &mut Output) -> Result<(), Failure> {
    let client = Client::new(global)?;
    let unit = SYSTEMD.unit();
    // Of one that does not answer only systemd can say anything.
    let answering = block_on(running(&client)).ok().flatten();
    let way = how_to_stop(names_another(global)?, answering, unit.as_ref(), Uid::effective().is_root());
    let stopped = match way {
        Stop::Ask => block_on(stop(&client))?,
        Stop::AskUntilBoot => {
            let stopped = block_on(stop(&client))?;
            out.note(&format!("{UNIT} starts again at the next boot; `sudo agentnet down` changes that."));
            stopped
        }
        Stop::Service => {
            let pid = unit.and_then(|unit| unit.pid);
            SYSTEMD.disable()?;
            // Whoever still answers is one in the background.
            let rest = block_on(stop(&client))?;
            if rest.was_running { rest } else { Stopped { was_running: pid.is_some(), pid } }
        }
    };
    out.result(&stopped, |page| match stopped.pid {
        Some(pid) => writeln!(page, "Stopped (process {pid})."),
        None => writeln!(page, "Not running."),
    })
}

/// The process that answers on the control socket.
async fn running(client: &Client) -> Result<Option<u32>, Error> {
    match client.get::<Status>("/v1/status").await {
        Ok(status) => Ok(Some(status.this.pid)),
        Err(error) if error.code == ErrorCode::NoDaemon => Ok(None),
        Err(error) => Err(error),
    }
}

async fn stop(client: &Client) -> Result<Stopped, Error> {
    let Some(pid) = running(client).await? else { return Ok(Stopped { was_running: false, pid: None }) };
    match client.post_nothing("/v1/down").await {
        // It may end before its answer is out.
        Err(error) if error.code != ErrorCode::NoDaemon => return Err(error),
        _ => {}
    }
    let deadline = Instant::now() + PATIENCE;
    while is_there(client.socket()) || runs(pid) {
        if Instant::now() >= deadline {
            return Err(Error::new(
                ErrorCode::TimedOut,
                format!("process {pid} was asked to stop and still runs after {} s", PATIENCE.as_secs()),
                format!("look at its log; `sudo kill -9 {pid}` ends it, the next `up` cleans up after it"),
            ));
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
    Ok(Stopped { was_running: true, pid: Some(pid) })
}

fn is_there(socket: &Path) -> bool {
    socket.symlink_metadata().is_ok()
}

/// Whether a process runs. A zombie has ended: it only waits for a parent that may never look.
fn runs(pid: u32) -> bool {
    let Ok(raw) = i32::try_from(pid) else { return false };
    if nix::sys::signal::kill(Pid::from_raw(raw), None) == Err(Errno::ESRCH) {
        return false;
    }
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(')').map_or("", |(_, rest)| rest.trim_start());
    !state.starts_with(['Z', 'X'])
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn an_ended_child_does_not_run_even_before_it_is_waited_for() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        assert!(runs(child.id()));
        drop(child.stdin.take());
        let deadline = std::time::Instant::now() + Duration::from_secs(5);
        while runs(child.id()) {
            assert!(std::time::Instant::now() < deadline, "the zombie counts as running");
            std::thread::sleep(Duration::from_millis(5));
        }
        child.wait().unwrap();
        assert!(!runs(child.id()));
    }
}
