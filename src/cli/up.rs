//! `agentnet up`
//!
//! 1. An agent that answers on the control socket is reported as it is.
//! 2. Otherwise the host is looked at, so that a missing permission is told before anything is touched.
//! 3. Where the package's service is there and no other agent is named, systemd starts that (`service`).
//! 4. Otherwise the program starts itself as `daemon --background`, its log going to the state directory. The new process
//!    writes one line when it is ready or has failed; that line is the result.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use nix::sys::signal::Signal;
use nix::unistd::{Pid, Uid};

use super::client::{Client, block_on};
use super::load::AgentArgs;
use super::load::write_settings;
use super::output::{Failure, Output, Page, clean};
use super::service::{SYSTEMD, Start, UNIT, how_to_start};
use super::status::show_health_entries;
use super::{Global, human};
use crate::api::{ConfigDocument, Error, ErrorCode, Identity, StartReport, Started, Status, display_addresses};
use crate::config::{Config, DEFAULT_FILE, Key, Origin};
use crate::daemon::{LOG_FILE, MAX_LOG_BYTES, OLD_LOG_FILE, make_state_dir, open_own};

/// How long an agent that may be running has to say so.
const PROBE_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a process that was told to end may take before it is killed.
const END_PATIENCE: Duration = Duration::from_secs(3);
/// Longest report taken from the new process, bytes.
const MAX_REPORT: u64 = 1 << 20;
/// How much of the log's end is looked at, bytes, and how many lines of it are shown.
const LOG_TAIL_BYTES: u64 = 16 << 10;
const LOG_TAIL_LINES: usize = 10;

/// Start the agent and wait until it is ready
#[derive(Debug, clap::Args)]
#[command(
    after_help = "With the package installed it starts the service agentnet, now and at every boot, and writes these\n\
                  flags to /etc/agentnet/agentnet.toml. Elsewhere, and with --state-dir, --socket or --config, it starts\n\
                  a process in the background."
)]
pub(super) struct Args {
    #[command(flatten)]
    agent: AgentArgs,
    /// Seconds to wait until it is ready
    #[arg(long, value_name = "S", default_value = "30", value_parser = human::parse_seconds)]
    timeout: Duration,
}

pub(super) fn run(args: &Args, global: &Global, out: &mut Output) -> Result<(), Failure> {
    let config = args.agent.load(global)?;
    let unit = SYSTEMD.unit();
    let way = how_to_start(&config, args.agent.named_file().as_deref(), unit.as_ref());
    let started = match running(&config)? {
        Some((started, differing)) => {
            if let (Start::Service { .. }, Some(unit)) = (&way, unit)
                && unit.pid == Some(started.pid)
                && !unit.enabled
            {
                match Uid::effective().is_root() {
                    true => SYSTEMD.enable(args.timeout)?,
                    false => out.note(&format!("{UNIT} does not start at boot; `sudo agentnet up` changes that.")),
                }
            }
            if !differing.is_empty() {
                out.note(&format!(
                    "The running agent was started otherwise: {}. To change that: `agentnet down`, then `up` again.",
                    differing.join(", ")
                ));
            }
            started
        }
        None => {
            crate::daemon::preflight(&config)?;
            match way {
                Start::Background => start(args, global, &config, !out.quiet && !out.json)?,
                Start::Service { write, unseen } => {
                    let was_there = unit.is_some_and(|unit| unit.active || unit.enabled);
                    start_service(args, &config, &write, &unseen, was_there, out)?
                }
            }
        }
    };
    out.result(&started, |page| show(page, &started))?;
    out.note("Next: hand the line that `agentnet ticket` prints to another agent.");
    Ok(())
}

/// The agent that answers on the control socket, and the flags it was not started with.
fn running(config: &Config) -> Result<Option<(Started, Vec<String>)>, Error> {
    let client = Client::on(config.socket.value.clone(), String::new()).with_timeout(PROBE_TIMEOUT);
    block_on(async {
        let identity: Identity = match client.get("/v1/id").await {
            Ok(identity) => identity,
            // Who may not ask is told what is missing by the look at the host that follows.
            Err(error) if matches!(error.code, ErrorCode::NoDaemon | ErrorCode::NotPermitted) => return Ok(None),
            Err(error) => return Err(error),
        };
        let status: Status = client.get("/v1/status").await?;
        let document: ConfigDocument = client.get("/v1/config").await?;
        let started = Started {
            identity,
            interface: status.interface.name,
            port: status.this.port,
            pid: status.this.pid,
            already_running: true,
            health: status.health,
        };
        Ok(Some((started, differing(config, &document))))
    })
}

/// What the flags given here ask for and the running agent does not have.
fn differing(config: &Config, running: &ConfigDocument) -> Vec<String> {
    let given = Key::ALL.iter().filter(|key| matches!(config.origin(**key), Origin::Flag(_)));
    given
        // They say which agent is meant, and that one has answered.
        .filter(|key| !matches!(key, Key::StateDir | Key::Socket))
        .filter_map(|key| {
            let setting = running.settings.iter().find(|setting| setting.key == key.name())?;
            let value = if setting.value.is_empty() { "unset" } else { &setting.value };
            (setting.value != config.value_text(*key)).then(|| format!("{} is {value}", key.name()))
        })
        .collect()
}

/// Has systemd start the agent, with the settings that were given as flags in the file that it reads. `was_there`: the
/// service ran, or would have at the next boot.
fn start_service(
    args: &Args,
    config: &Config,
    write: &[Key],
    unseen: &[&str],
    was_there: bool,
    out: &mut Output,
) -> Result<Started, Error> {
    let names = |keys: &[Key]| keys.iter().map(|key| key.name()).collect::<Vec<_>>().join(", ");
    let written = write_settings(Path::new(DEFAULT_FILE), config, write)?;
    let keys = names(&written.keys);
    if !unseen.is_empty() {
        out.note(&format!("The service does not see {}; {DEFAULT_FILE} is where it looks.", unseen.join(", ")));
    }
    let spinner = (!out.quiet && !out.json).then(spinner);
    let enabled = SYSTEMD.enable(args.timeout);
    if let Some(spinner) = spinner {
        spinner.finish_and_clear();
    }
    if let Err(error) = enabled {
        // systemd goes on with one that only takes long. Any other would be tried again, now and at the next boot.
        if error.code != ErrorCode::TimedOut {
            if !was_there {
                let _ = SYSTEMD.disable();
            }
            written.undo();
        }
        return Err(error);
    }
    if !keys.is_empty() {
        out.note(&format!("Written to {DEFAULT_FILE}: {keys}."));
    }
    match running(config)? {
        Some((started, _)) => Ok(Started { already_running: false, ..started }),
        None => Err(Error::new(
            ErrorCode::ServiceFailed,
            format!("{UNIT} was started, but no agent answers on {}", config.socket.value.display()),
            format!("see `systemctl status {UNIT}` and `journalctl --unit={UNIT}`"),
        )),
    }
}

fn start(args: &Args, global: &Global, config: &Config, progress: bool) -> Result<Started, Error> {
    let mut log = Log::open(&config.state_dir.value)?;
    let mut child = spawn(args, global, &log)?;
    let report = child.stdout.take().map(report_of);
    let spinner = progress.then(spinner);
    let waited = report.as_ref().map(|report| report.recv_timeout(args.timeout));
    if let Some(spinner) = spinner {
        spinner.finish_and_clear();
    }
    match waited {
        Some(Ok(Some(StartReport::Ready(started)))) => Ok(started),
        Some(Ok(Some(StartReport::Error(error)))) => {
            end(&mut child);
            Err(error)
        }
        Some(Err(RecvTimeoutError::Timeout)) => {
            ask_to_end(&child);
            end(&mut child);
            Err(Error::new(
                ErrorCode::TimedOut,
                log.explain(&format!(
                    "the agent was not ready within {} s and was stopped",
                    args.timeout.as_secs_f64()
                )),
                format!("see {}; --timeout gives it longer", log.path.display()),
            ))
        }
        Some(Ok(None) | Err(RecvTimeoutError::Disconnected)) | None => {
            let how = end(&mut child).map_or_else(String::new, |status| format!(" ({status})"));
            Err(Error::new(
                ErrorCode::Internal,
                log.explain(&format!("the agent ended before it was ready{how}")),
                format!("see {}", log.path.display()),
            ))
        }
    }
}

fn spawn(args: &Args, global: &Global, log: &Log) -> Result<Child, Error> {
    let failed = |error: io::Error| {
        let message = format!("the agent's process cannot be started: {error}");
        Error::new(ErrorCode::Internal, message, "look at the limits on processes and memory")
    };
    let program = std::env::current_exe().map_err(failed)?;
    let mut command = Command::new(program);
    for (flag, path) in [("--state-dir", &global.state_dir), ("--socket", &global.socket)] {
        if let Some(path) = path {
            command.arg(flag).arg(path);
        }
    }
    command.args(["daemon", "--background"]).args(args.agent.to_arguments());
    let stderr = log.file.try_clone().map_err(failed)?;
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(stderr).spawn().map_err(failed)
}

/// Reads the first line of the new process on a thread of its own, as a pipe cannot be read with a time limit.
fn report_of(stdout: ChildStdout) -> mpsc::Receiver<Option<StartReport>> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut line = String::new();
        let read = BufReader::new(stdout.take(MAX_REPORT)).read_line(&mut line);
        let report = read.ok().and_then(|_| serde_json::from_str(&line).ok());
        // The receiver has gone when it ran out of patience.
        let _ = sender.send(report);
    });
    receiver
}

/// Sees to it that the new process is gone: lets it end and clean up by itself, asks it to, and kills it at last.
fn end(child: &mut Child) -> Option<ExitStatus> {
    if let Some(status) = ended_within(child, END_PATIENCE) {
        return Some(status);
    }
    ask_to_end(child);
    if let Some(status) = ended_within(child, END_PATIENCE) {
        return Some(status);
    }
    let _ = child.kill();
    child.wait().ok()
}

fn ended_within(child: &mut Child, patience: Duration) -> Option<ExitStatus> {
    let deadline = Instant::now() + patience;
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status),
            Ok(None) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(10)),
            _ => return None,
        }
    }
}

/// Sends SIGTERM. The process is not waited for yet, so that the number is its own even if it has ended.
fn ask_to_end(child: &Child) {
    if let Ok(pid) = i32::try_from(child.id()) {
        let _ = nix::sys::signal::kill(Pid::from_raw(pid), Signal::SIGTERM);
    }
}

/// Hidden by itself where standard error is no terminal.
fn spinner() -> ProgressBar {
    let spinner = ProgressBar::new_spinner();
    spinner.set_message("starting the agent");
    spinner.enable_steady_tick(Duration::from_millis(100));
    spinner
}

/// The log that the new process appends to.
struct Log {
    path: PathBuf,
    file: File,
    /// Where this start's lines begin.
    begin: u64,
}

impl Log {
    fn open(state_dir: &Path) -> Result<Self, Error> {
        let unusable = |path: &Path, error: &io::Error| {
            let code = match error.kind() {
                io::ErrorKind::StorageFull => ErrorCode::DiskFull,
                _ => ErrorCode::StateDirUnusable,
            };
            let message = format!("{} cannot be used for the agent's state: {error}", path.display());
            Error::new(code, message, "make room for it there, or name another directory with --state-dir")
        };
        make_state_dir(state_dir).map_err(|error| unusable(state_dir, &error))?;
        let path = state_dir.join(LOG_FILE);
        if path.metadata().is_ok_and(|log| log.len() > MAX_LOG_BYTES) {
            std::fs::rename(&path, state_dir.join(OLD_LOG_FILE)).map_err(|error| unusable(&path, &error))?;
        }
        let mut options = OpenOptions::new();
        options.create(true).append(true).read(true).mode(0o600);
        let file = open_own(&path, &mut options).map_err(|error| unusable(&path, &error))?;
        let begin = file.metadata().map_err(|error| unusable(&path, &error))?.len();
        Ok(Self { path, file, begin })
    }

    /// `what`, and below it the last lines this start has logged.
    fn explain(&mut self, what: &str) -> String {
        let mut message = what.to_owned();
        for line in self.last_lines().unwrap_or_default() {
            message.push('\n');
            message.push_str(&line);
        }
        message
    }

    fn last_lines(&mut self) -> io::Result<Vec<String>> {
        let end = self.file.metadata()?.len();
        self.file.seek(SeekFrom::Start(self.begin.max(end.saturating_sub(LOG_TAIL_BYTES))))?;
        let mut tail = Vec::new();
        (&self.file).take(LOG_TAIL_BYTES).read_to_end(&mut tail)?;
        let tail = String::from_utf8_lossy(&tail);
        let lines: Vec<&str> = tail.lines().filter(|line| !line.trim().is_empty()).collect();
        let first = lines.len().saturating_sub(LOG_TAIL_LINES);
        Ok(lines.into_iter().skip(first).map(str::to_owned).collect())
    }
}

fn show(page: &mut Page, started: &Started) -> io::Result<()> {
    let identity = &started.identity;
    let verb = if started.already_running { "is already running" } else { "is up" };
    let who = identity.name.clone().unwrap_or_else(|| identity.id.short());
    writeln!(page, "{} {verb} (process {}).", clean(&who), started.pid)?;
    page.field("id", &identity.id.to_string())?;
    let addresses = display_addresses(identity.ipv6, identity.ipv4);
    let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    page.field("addresses", &addresses.join(", "))?;
    page.field("interface", &format!("{}, UDP port {}", started.interface, started.port))?;
    show_health_entries(page, &started.health)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::super::output::testing::rendered;
    use super::*;
    use crate::api::ConfigSetting;
    use crate::config::Settings;

    fn started() -> Started {
        serde_json::from_str(
            r#"{"id":"47pjoycnsrfmxikm95jh13y88e8qnhzu5kungjpxyepgt7a8krpy","name":"build-7","ipv6":"fd61:6e74::1",
                "ipv4":"100.64.0.17","did":"did:key:z","ref":null,"interface":"agentnet0","port":41641,"pid":4711,
                "already_running":false,"health":[{"code":"no_ipv6","message":"IPv6 is off","hint":"turn it on"}]}"#,
        )
        .unwrap()
    }

    #[test]
    fn a_start_is_told_with_everything_needed_next() {
        insta::assert_snapshot!(rendered(|page| show(page, &started())), @r#"
        build-7 is up (process 4711).
          id         47pjoycnsrfmxikm95jh13y88e8qnhzu5kungjpxyepgt7a8krpy
          addresses  fd61:6e74::1, 100.64.0.17
          interface  agentnet0, UDP port 41641
          ! IPv6 is off (no_ipv6)
            turn it on
        "#);
        let again = Started { already_running: true, ..started() };
        assert!(rendered(|page| show(page, &again)).starts_with("build-7 is already running (process 4711).\n"));
    }

    #[test]
    fn flags_the_running_agent_lacks_are_named() {
        let mut settings = Settings::default();
        settings.set(Key::Port, vec!["1000".to_owned()], Origin::Flag("--port"));
        settings.set(Key::Name, vec!["one".to_owned()], Origin::Flag("--name"));
        settings.set(Key::Tun, vec!["tun7".to_owned()], Origin::Environment("AGENTNET_TUN"));
        settings.set(Key::StateDir, vec!["/a".to_owned()], Origin::Flag("--state-dir"));
        let config = Config::from_settings(&settings).unwrap();
        let setting = |key: &str, value: &str| ConfigSetting {
            key: key.to_owned(),
            value: value.to_owned(),
            origin: "default".to_owned(),
        };
        let document = |port: &str, name: &str| ConfigDocument {
            settings: vec![
                setting("port", port),
                setting("name", name),
                setting("tun", "agentnet0"),
                setting("state_dir", "/b"),
            ],
        };
        assert_eq!(differing(&config, &document("1000", "one")), Vec::<String>::new());
        assert_eq!(differing(&config, &document("1001", "")), ["name is unset", "port is 1001"]);
    }

    #[test]
    fn only_this_starts_last_lines_are_shown() {
        let directory = tempfile::tempdir().unwrap();
        let state_dir = directory.path().join("deep/state");
        let mut first = Log::open(&state_dir).unwrap();
        writeln!(first.file, "from an earlier start").unwrap();
        let mut log = Log::open(&state_dir).unwrap();
        assert_eq!(log.explain("what"), "what");
        for line in 0..30 {
            writeln!(log.file, "line {line}\n").unwrap();
        }
        let text = log.explain("what");
        assert_eq!(text.lines().count(), 1 + LOG_TAIL_LINES);
        assert!(text.starts_with("what\nline 20\n") && text.ends_with("line 29"), "{text}");
        log.file.set_len(MAX_LOG_BYTES + 1).unwrap();
        assert_eq!(Log::open(&state_dir).unwrap().begin, 0);
        assert!(state_dir.join(OLD_LOG_FILE).exists());
        let mode = |directory: &Path| directory.metadata().unwrap().mode() & 0o777;
        assert_eq!(mode(&state_dir), 0o700);
        // Another user has to get through to it.
        let usual = directory.path().join("usual");
        std::fs::create_dir(&usual).unwrap();
        assert_eq!(mode(state_dir.parent().unwrap()), mode(&usual) & 0o755);
    }

    #[test]
    fn a_log_leads_nowhere_else() {
        let directory = tempfile::tempdir().unwrap();
        let (log, other) = (directory.path().join(LOG_FILE), directory.path().join("other"));
        std::fs::write(&other, "x").unwrap();
        std::os::unix::fs::symlink(&other, &log).unwrap();
        assert_eq!(Log::open(directory.path()).err().unwrap().code, ErrorCode::StateDirUnusable);
        std::fs::remove_file(&log).unwrap();
        std::fs::hard_link(&other, &log).unwrap();
        assert_eq!(Log::open(directory.path()).err().unwrap().code, ErrorCode::StateDirUnusable);
        assert_eq!(std::fs::read_to_string(other).unwrap(), "x");
    }
}
