//! The agent as a service of systemd, which the package installs: what there is, and what `up` and `down` do with it.
//!
//! - The service is the default agent: the one nobody gave a state directory, a control socket or a configuration file.
//!   Any other runs in the background, as does the default one where systemd does not run or has no such unit.
//! - `up` writes its flags into the configuration file, which the service reads, so that they hold at the next boot.
//! - `up` enables and starts, `down` stops and disables.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::Path;
use std::process::{Command, Output as Ended, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::api::{Error, ErrorCode};
use crate::config::{Config, DEFAULT_FILE, DEFAULT_SOCKET, DEFAULT_STATE_DIR, Key, Origin};

/// The unit.
pub(super) const UNIT: &str = "agentnet.service";
/// How long systemd may take to say what there is.
const LOOK_PATIENCE: Duration = Duration::from_secs(5);
/// How long it may take to stop the agent: the unit's own limit, and some.
const STOP_PATIENCE: Duration = Duration::from_secs(20);
/// How long, once a program has ended, the last of what it said may take.
const PIPE_PATIENCE: Duration = Duration::from_secs(1);
/// How many lines of the service's log are shown.
const LOG_LINES: &str = "--lines=10";
/// Longest output taken from systemd's programs, bytes.
const MAX_OUTPUT: u64 = 64 << 10;

/// What systemd says of the unit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Unit {
    /// It runs, or is about to.
    pub(super) active: bool,
    /// It starts at boot.
    pub(super) enabled: bool,
    /// Its process.
    pub(super) pid: Option<u32>,
}

impl Unit {
    /// From `systemctl show`. None where there is no such unit, or where the administrator has masked it.
    fn parse(text: &str) -> Option<Self> {
        let properties: BTreeMap<&str, &str> = text.lines().filter_map(|line| line.split_once('=')).collect();
        let is = |name: &str, values: &[&str]| properties.get(name).is_some_and(|value| values.contains(value));
        let pid = properties.get("MainPID").and_then(|pid| pid.parse().ok()).filter(|pid| *pid != 0);
        is("LoadState", &["loaded"]).then(|| Self {
            active: is("ActiveState", &["active", "activating", "reloading"]),
            enabled: is("UnitFileState", &["enabled", "enabled-runtime"]),
            pid,
        })
    }
}

/// How `up` starts an agent.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Start {
    /// As a process of its own.
    Background,
    /// By systemd.
    Service {
        /// Settings given by flags, to be written into the configuration file.
        write: Vec<Key>,
        /// Environment variables that the service does not see.
        unseen: Vec<&'static str>,
    },
}

/// `file` is the configuration file that was named, if one was.
pub(super) fn how_to_start(config: &Config, file: Option<&Path>, unit: Option<&Unit>) -> Start {
    if unit.is_none() || is_another(config) || file.is_some_and(|file| file != Path::new(DEFAULT_FILE)) {
        return Start::Background;
    }
    let of = |key: &Key| config.origin(*key);
    let settings = || Key::ALL.iter().filter(|key| !matches!(key, Key::StateDir | Key::Socket));
    Start::Service {
        write: settings().filter(|key| matches!(of(key), Origin::Flag(_))).copied().collect(),
        unseen: settings().filter(|key| matches!(of(key), Origin::Environment(_))).map(|key| key.variable()).collect(),
    }
}

/// Whether flags or environment name an agent that is not the service's. The configuration file is the service's own.
fn is_another(config: &Config) -> bool {
    let named = |key| matches!(config.origin(key), Origin::Flag(_) | Origin::Environment(_));
    (named(Key::StateDir) && config.state_dir.value != Path::new(DEFAULT_STATE_DIR))
        || (named(Key::Socket) && config.socket.value != Path::new(DEFAULT_SOCKET))
}

/// How `down` stops an agent.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// It is asked over its control socket.
    Ask,
    /// The same, by somebody who may not change that it starts again at boot.
    AskUntilBoot,
    /// systemd stops it, and starts it no more at boot.
    Service,
}

/// `another` says that flags or environment name an agent that is not the service's; `answering` is the process that
/// answers on the control socket. One that is not the service's was started by hand in its place, and the service is none
/// of its business.
pub(super) fn how_to_stop(another: bool, answering: Option<u32>, unit: Option<&Unit>, root: bool) -> Stop {
    let stands_in = |unit: &Unit| answering.is_some() && answering != unit.pid;
    match unit.filter(|unit| !another && !stands_in(unit) && (unit.active || unit.enabled)) {
        None => Stop::Ask,
        Some(_) if root => Stop::Service,
        Some(unit) if unit.enabled => Stop::AskUntilBoot,
        Some(_) => Stop::Ask,
    }
}

/// systemd's programs, and how to run them.
pub(super) struct Systemd {
    systemctl: &'static str,
    journalctl: &'static str,
}

/// Those found by the search path.
pub(super) const SYSTEMD: Systemd = Systemd { systemctl: "systemctl", journalctl: "journalctl" };

impl Systemd {
    /// The unit; none where systemd does not run.
    pub(super) fn unit(&self) -> Option<Unit> {
        let properties = "--property=LoadState,ActiveState,UnitFileState,MainPID";
        let ended = run(self.systemctl, &["show", properties, UNIT], LOOK_PATIENCE).ok()??;
        ended.status.success().then(|| Unit::parse(&String::from_utf8_lossy(&ended.stdout)))?
    }

    /// Starts the service, now and at every boot, and waits until it is ready.
    ///
    /// # Errors
    /// `service_failed`, with the last lines of its log; `timed_out`.
    pub(super) fn enable(&self, patience: Duration) -> Result<(), Error> {
        let hint = format!("see `systemctl status {UNIT}` and `journalctl --unit={UNIT}`");
        match self.systemctl(&["enable", "--now", UNIT], patience)? {
            Some(ended) if ended.status.success() => Ok(()),
            Some(ended) => {
                let mut message = format!("{UNIT} did not start");
                let said = String::from_utf8_lossy(&ended.stderr).into_owned() + &self.log();
                for line in said.lines().filter(|line| !line.trim().is_empty()) {
                    message.push('\n');
                    message.push_str(line);
                }
                Err(Error::new(ErrorCode::ServiceFailed, message, hint))
            }
            None => Err(Error::new(
                ErrorCode::TimedOut,
                format!("{UNIT} was not ready within {} s; systemd goes on with it", patience.as_secs_f64()),
                hint,
            )),
        }
    }

    /// Stops the service, now and for every boot.
    ///
    /// # Errors
    /// `service_failed`, `timed_out`.
    pub(super) fn disable(&self) -> Result<(), Error> {
        let hint = format!("see `systemctl status {UNIT}`");
        match self.systemctl(&["disable", "--now", UNIT], STOP_PATIENCE)? {
            Some(ended) if ended.status.success() => Ok(()),
            Some(ended) => {
                let message = format!("{UNIT} was not stopped\n{}", String::from_utf8_lossy(&ended.stderr).trim());
                Err(Error::new(ErrorCode::ServiceFailed, message, hint))
            }
            None => {
                let message = format!("{UNIT} did not stop within {} s", STOP_PATIENCE.as_secs());
                Err(Error::new(ErrorCode::TimedOut, message, hint))
            }
        }
    }

    fn systemctl(&self, arguments: &[&str], patience: Duration) -> Result<Option<Ended>, Error> {
        run(self.systemctl, arguments, patience).map_err(|error| {
            let message = format!("{} cannot be run: {error}", self.systemctl);
            Error::new(ErrorCode::ServiceFailed, message, "look at the installation of systemd")
        })
    }

    /// The last lines of the service's log, as far as they can be had.
    fn log(&self) -> String {
        let unit = format!("--unit={UNIT}");
        let ended = run(self.journalctl, &[&unit, LOG_LINES, "--output=cat", "--no-pager", "--quiet"], LOOK_PATIENCE);
        let ended = ended.ok().flatten().filter(|ended| ended.status.success());
        ended.map_or_else(String::new, |ended| String::from_utf8_lossy(&ended.stdout).into_owned())
    }
}

/// Runs a program to its end. `None` when it took longer than that, and was killed.
fn run(program: &str, arguments: &[&str], patience: Duration) -> io::Result<Option<Ended>> {
    let mut command = Command::new(program);
    // Its words are read by this program, its messages by people in any language.
    command.args(arguments).env("SYSTEMD_PAGER", "").env("SYSTEMD_COLORS", "0");
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let (stdout, stderr) = (child.stdout.take().map(collect), child.stderr.take().map(collect));
    let deadline = Instant::now() + patience;
    let status = loop {
        match child.try_wait()? {
            Some(status) => break status,
            None if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(10)),
            None => {
                child.kill()?;
                child.wait()?;
                return Ok(None);
            }
        }
    };
    // Whoever it left behind may hold its pipes open.
    let text = |said: Option<mpsc::Receiver<Vec<u8>>>| {
        said.and_then(|said| said.recv_timeout(PIPE_PATIENCE).ok()).unwrap_or_default()
    };
    Ok(Some(Ended { status, stdout: text(stdout), stderr: text(stderr) }))
}

/// Reads on a thread of its own: a pipe that is not read stops the one who writes. All comes at the end, or when there is
/// too much.
fn collect(pipe: impl Read + Send + 'static) -> mpsc::Receiver<Vec<u8>> {
    let (sender, said) = mpsc::channel();
    std::thread::spawn(move || {
        let mut all = Vec::new();
        let mut pipe = pipe.take(MAX_OUTPUT);
        let _ = pipe.read_to_end(&mut all);
        let _ = sender.send(all);
        // The rest goes nowhere.
        let _ = io::copy(&mut pipe.into_inner(), &mut io::sink());
    });
    said
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::config::Settings;

    const UNIT_THERE: Option<Unit> = Some(Unit { active: false, enabled: false, pid: None });

    fn config(given: &[(Key, &str, Origin)]) -> Config {
        let mut settings = Settings::default();
        for (key, value, origin) in given {
            settings.set(*key, vec![(*value).to_owned()], origin.clone());
        }
        Config::from_settings(&settings).unwrap()
    }

    #[test]
    fn what_systemd_says_is_understood() {
        let of = |load: &str, active: &str, enabled: &str, pid: &str| {
            let text = format!("MainPID={pid}\nLoadState={load}\nActiveState={active}\nUnitFileState={enabled}\n");
            Unit::parse(&text)
        };
        assert_eq!(of("loaded", "inactive", "disabled", "0"), UNIT_THERE);
        let running = Unit { active: true, enabled: true, pid: Some(7) };
        assert_eq!(of("loaded", "active", "enabled", "7"), Some(running.clone()));
        assert_eq!(of("loaded", "activating", "enabled-runtime", "7"), Some(running));
        assert_eq!(of("loaded", "failed", "", "0"), UNIT_THERE);
        for load in ["not-found", "masked", "bad-setting", ""] {
            assert_eq!(of(load, "inactive", "", "0"), None, "{load}");
        }
        assert_eq!(Unit::parse(""), None);
    }

    #[test]
    fn the_default_agent_is_the_service() {
        let plain = Start::Service { write: Vec::new(), unseen: Vec::new() };
        assert_eq!(how_to_start(&config(&[]), None, UNIT_THERE.as_ref()), plain);
        assert_eq!(how_to_start(&config(&[]), Some(Path::new(DEFAULT_FILE)), UNIT_THERE.as_ref()), plain);
        assert_eq!(how_to_start(&config(&[]), None, None), Start::Background);
        let named = [(Key::StateDir, DEFAULT_STATE_DIR, Origin::Flag("--state-dir"))];
        assert_eq!(
            how_to_start(&config(&named), None, UNIT_THERE.as_ref()),
            Start::Background,
            "its socket is another"
        );
        let both = [
            (Key::StateDir, DEFAULT_STATE_DIR, Origin::Flag("--state-dir")),
            (Key::Socket, DEFAULT_SOCKET, Origin::Flag("--socket")),
        ];
        assert_eq!(how_to_start(&config(&both), None, UNIT_THERE.as_ref()), plain);
        let in_file = [(Key::StateDir, "/srv/a", Origin::File { path: DEFAULT_FILE.into(), line: 1 })];
        assert_eq!(how_to_start(&config(&in_file), None, UNIT_THERE.as_ref()), plain);
    }

    #[test]
    fn another_agent_runs_in_the_background() {
        for (key, value, origin) in [
            (Key::StateDir, "/srv/a", Origin::Flag("--state-dir")),
            (Key::StateDir, "/srv/a", Origin::Environment("AGENTNET_STATE_DIR")),
            (Key::Socket, "/run/a.sock", Origin::Flag("--socket")),
        ] {
            let config = config(&[(key, value, origin)]);
            assert_eq!(how_to_start(&config, None, UNIT_THERE.as_ref()), Start::Background, "{value}");
        }
        assert_eq!(how_to_start(&config(&[]), Some(Path::new("/etc/b.toml")), UNIT_THERE.as_ref()), Start::Background);
    }

    #[test]
    fn flags_are_written_and_the_environment_is_not_seen() {
        let config = config(&[
            (Key::Name, "a", Origin::Flag("--name")),
            (Key::Port, "7", Origin::Environment("AGENTNET_PORT")),
            (Key::Mtu, "1400", Origin::File { path: DEFAULT_FILE.into(), line: 1 }),
        ]);
        let expected = Start::Service { write: vec![Key::Name], unseen: vec!["AGENTNET_PORT"] };
        assert_eq!(how_to_start(&config, None, UNIT_THERE.as_ref()), expected);
    }

    #[test]
    fn down_stops_what_up_has_started() {
        let with = |active, enabled| Some(Unit { active, enabled, pid: active.then_some(7) });
        let how = |unit: Option<Unit>, another, root| {
            let answering = unit.as_ref().and_then(|unit| unit.pid);
            how_to_stop(another, answering, unit.as_ref(), root)
        };
        assert_eq!(how(None, false, true), Stop::Ask);
        assert_eq!(how(with(false, false), false, true), Stop::Ask);
        for unit in [with(true, true), with(true, false), with(false, true)] {
            assert_eq!(how(unit.clone(), false, true), Stop::Service);
            assert_eq!(how(unit, true, true), Stop::Ask);
        }
        assert_eq!(how(with(true, true), false, false), Stop::AskUntilBoot);
        assert_eq!(how(with(true, false), false, false), Stop::Ask);
    }

    #[test]
    fn the_service_is_left_alone_when_another_agent_stands_in_for_it() {
        for (active, pid) in [(true, Some(7)), (false, None)] {
            let unit = Unit { active, enabled: true, pid };
            assert_eq!(how_to_stop(false, Some(8), Some(&unit), true), Stop::Ask);
            assert_eq!(how_to_stop(false, None, Some(&unit), true), Stop::Service);
        }
    }

    /// Programs that say what they were called with, and end as told.
    fn fake(directory: &Path, systemctl: &str) -> Systemd {
        let program = |name: &str, script: &str| {
            let path = directory.join(name);
            std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
            &*path.to_str().unwrap().to_owned().leak()
        };
        Systemd { systemctl: program("systemctl", systemctl), journalctl: program("journalctl", "echo no such port") }
    }

    #[test]
    fn systemd_is_asked_in_its_own_words() {
        let directory = tempfile::tempdir().unwrap();
        let called = directory.path().join("called");
        let said = "LoadState=loaded\\nActiveState=active\\nUnitFileState=enabled\\nMainPID=12";
        let script = format!("echo \"$*\" >>{}; printf '{said}\\n'", called.display());
        let systemd = fake(directory.path(), &script);
        assert_eq!(systemd.unit(), Some(Unit { active: true, enabled: true, pid: Some(12) }));
        systemd.enable(Duration::from_secs(5)).unwrap();
        systemd.disable().unwrap();
        let expected = "show --property=LoadState,ActiveState,UnitFileState,MainPID agentnet.service\n\
                        enable --now agentnet.service\ndisable --now agentnet.service\n";
        assert_eq!(std::fs::read_to_string(called).unwrap(), expected);
    }

    #[test]
    fn a_service_that_fails_is_explained_by_its_log() {
        let directory = tempfile::tempdir().unwrap();
        let systemd = fake(directory.path(), "echo 'Job failed.' >&2; exit 1");
        assert_eq!(systemd.unit(), None);
        let error = systemd.enable(Duration::from_secs(5)).unwrap_err();
        assert_eq!(error.code, ErrorCode::ServiceFailed);
        assert_eq!(error.message, "agentnet.service did not start\nJob failed.\nno such port");
        assert_eq!(systemd.disable().unwrap_err().message, "agentnet.service was not stopped\nJob failed.");
        let missing = Systemd { systemctl: "/nonexistent", ..SYSTEMD };
        assert_eq!(missing.unit(), None);
        assert_eq!(missing.disable().unwrap_err().code, ErrorCode::ServiceFailed);
    }

    #[test]
    fn a_pipe_that_stays_open_holds_nobody_up() {
        let directory = tempfile::tempdir().unwrap();
        let systemd = fake(directory.path(), "sleep 5 & exit 0");
        let start = Instant::now();
        systemd.disable().unwrap();
        assert!(start.elapsed() < Duration::from_secs(4));
    }

    #[test]
    fn patience_ends() {
        let directory = tempfile::tempdir().unwrap();
        let systemd = fake(directory.path(), "exec sleep 30");
        let error = systemd.enable(Duration::from_millis(50)).unwrap_err();
        assert_eq!(error.code, ErrorCode::TimedOut);
    }
}
