//! The agent as a service: what it tells its manager, and what `up` and `down` do where systemd has the unit.
//!
//! `scripts/package-test` does the same with the package and a real systemd.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::{Finished, Host, Lab, PATIENT, PROGRAM, document, error_code, run};

/// A systemd that knows the unit and does what the package's unit says, from a private view of the file system.
const SYSTEMCTL: &str = r#"#!/bin/sh
echo "$*" >>"$FAKE/called"
runs() { [ -s "$FAKE/pid" ] && kill -0 "$(cat "$FAKE/pid")" 2>/dev/null; }
stop() { runs && kill "$(cat "$FAKE/pid")" && while runs; do sleep 0.05; done; rm -f "$FAKE/pid"; }
case "$1" in
    show)
        [ ! -e "$FAKE/absent" ] || { echo "System has not been booted with systemd" >&2; exit 1; }
        echo LoadState=loaded
        if runs; then echo ActiveState=active; else echo ActiveState=inactive; fi
        if [ -e "$FAKE/enabled" ]; then echo UnitFileState=enabled; else echo UnitFileState=disabled; fi
        echo MainPID="$(cat "$FAKE/pid" 2>/dev/null || echo 0)"
        ;;
    enable)
        touch "$FAKE/enabled"
        runs && exit 0
        setsid "$PROGRAM" daemon </dev/null >"$FAKE/log" 2>&1 &
        echo $! >"$FAKE/pid"
        for _ in $(seq 100); do
            [ ! -S /run/agentnet/agentnet.sock ] || exit 0
            runs || break
            sleep 0.1
        done
        rm -f "$FAKE/pid"
        echo "Job for agentnet.service failed." >&2
        exit 1
        ;;
    disable)
        rm -f "$FAKE/enabled"
        stop
        ;;
esac
"#;

/// Runs a script on a host that has [`SYSTEMCTL`] and paths of its own where the default agent keeps things.
pub(crate) fn with_systemctl(host: &Host, lab: &Lab, lines: &str) -> (Finished, String) {
    let fake = lab.directory().join("fake");
    std::fs::create_dir_all(&fake).unwrap();
    let program = |name: &str, text: &str| {
        let path = fake.join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    };
    program("systemctl", SYSTEMCTL);
    program("journalctl", "#!/bin/sh\ncat \"$FAKE/log\"\n");
    let script = format!(
        "set -eu\n\
         mount --make-rprivate /\n\
         mount -t tmpfs tmpfs /mnt\n\
         mkdir /mnt/upper /mnt/work\n\
         mount -t overlay -o lowerdir=/etc,upperdir=/mnt/upper,workdir=/mnt/work overlay /etc\n\
         rm -rf /etc/agentnet\n\
         mount -t tmpfs -o mode=755 tmpfs /var/lib\n\
         mount -t tmpfs -o mode=755 tmpfs /run\n\
         agentnet() {{ \"$PROGRAM\" \"$@\"; }}\n\
         trap 'agentnet --quiet down >/dev/null 2>&1 || true' EXIT\n\
         {lines}"
    );
    let mut command = host.command("unshare");
    command.args(["--mount", "sh", "-c", &script]);
    command.env("PATH", format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", fake.display()));
    command.env("FAKE", &fake).env("PROGRAM", PROGRAM);
    let finished = run(&mut command, PATIENT);
    let called = std::fs::read_to_string(fake.join("called")).unwrap_or_default();
    // What was asked is asked by every command.
    let called = called.lines().filter(|line| !line.starts_with("show ")).collect::<Vec<_>>().join("\n");
    (finished, called)
}

#[test]
fn up_starts_the_service_and_down_stops_it() {
    let lab = Lab::two_hosts();
    let (finished, called) = with_systemctl(
        lab.a(),
        &lab,
        "agentnet up --name alice\n\
         cat /etc/agentnet/agentnet.toml\n\
         agentnet up --name alice\n\
         agentnet up --name bob 2>&1\n\
         agentnet down\n\
         agentnet down\n\
         agentnet up\n\
         agentnet config show | grep ^name\n",
    );
    let said = finished.ok();
    let found = said.lines().filter(|line| !line.starts_with(' ')).collect::<Vec<_>>();
    let starts = [
        "alice is up (process ",
        "name = \"alice\"",
        "alice is already running (process ",
        "The running agent was started otherwise: name is alice.",
        "alice is already running (process ",
        "Next: ",
        "Stopped (process ",
        "Not running.",
        "alice is up (process ",
        "name ",
    ];
    assert_eq!(found.len(), starts.len(), "{said}");
    for (line, start) in found.iter().zip(starts) {
        assert!(line.starts_with(start), "{line:?} is not {start:?} in\n{said}");
    }
    let expected = "enable --now agentnet.service\ndisable --now agentnet.service\nenable --now agentnet.service\ndisable --now agentnet.service";
    assert_eq!(called, expected);
}

#[test]
fn another_agent_and_a_host_without_systemd_have_theirs_in_the_background() {
    let lab = Lab::two_hosts();
    let (finished, called) = with_systemctl(
        lab.a(),
        &lab,
        "agentnet --state-dir /var/lib/another up --name other >/dev/null\n\
         agentnet --state-dir /var/lib/another down\n\
         touch \"$FAKE/absent\"\n\
         agentnet up --name alice >/dev/null\n\
         test ! -e /etc/agentnet/agentnet.toml\n\
         test -s /var/lib/agentnet/agentnet.log\n\
         agentnet down\n",
    );
    assert_eq!(finished.ok().lines().filter(|line| line.starts_with("Stopped (process ")).count(), 2);
    assert_eq!(called, "");
}

#[test]
fn a_process_in_the_background_holds_nothing_of_its_starter() {
    let lab = Lab::two_hosts();
    let lock = lab.directory().join("lock");
    let state = lab.directory().join("state");
    let agent = format!("{PROGRAM} --state-dir {}", state.display());
    let script = format!(
        "exec 9>{0}; flock -n 9 && {agent} up >/dev/null && exec 9>&- && flock -n {0} echo free; {agent} --quiet down",
        lock.display()
    );
    assert!(lab.a().shell(&script).ok().starts_with("free\n"));
}

#[test]
fn a_service_that_does_not_start_is_explained() {
    let lab = Lab::two_hosts();
    let (finished, called) = with_systemctl(
        lab.a(),
        &lab,
        "mkdir -p /var/lib/agentnet\nchmod 777 /var/lib/agentnet\nagentnet --json up --port 4000\n",
    );
    assert_eq!((finished.code(), error_code(&finished).as_str()), (1, "service_failed"));
    let message = document(&finished)["error"]["message"].as_str().unwrap().to_owned();
    for part in ["did not start", "Job for agentnet.service failed.", "may be written by, somebody else"] {
        assert!(message.contains(part), "no {part:?} in {message}");
    }
    assert!(called.starts_with("enable --now agentnet.service"), "{called}");
}

/// Starts `command` as a service that is watched, and returns what it said until it was asked to stop and ended.
fn service_messages(mut command: Command, directory: &Path) -> Vec<String> {
    let path = directory.join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(PATIENT)).unwrap();
    let next = || {
        let mut buffer = [0; 1024];
        let length = socket.recv(&mut buffer).expect("the service says nothing more");
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    };
    command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "300000").stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    let mut messages = vec![next()];
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(2) {
        messages.push(next());
    }
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGTERM).unwrap();
    while !messages.last().unwrap().starts_with("STOPPING=1") {
        messages.push(next());
    }
    assert!(child.wait().unwrap().success());
    messages
}

fn assert_in_order(messages: &[String], status: &str) {
    assert_eq!(messages[0], format!("READY=1\nSTATUS={status}\n"));
    let signs = messages.iter().filter(|message| *message == "WATCHDOG=1\n").count();
    // One each 100 ms; a busy machine may be late.
    assert!((10..=25).contains(&signs), "{signs} signs of life in two seconds");
    assert_eq!(messages.len(), signs + 2, "{messages:?}");
}

#[test]
fn an_idle_agent_tells_its_manager_that_it_lives() {
    let lab = Lab::two_hosts();
    let mut command = lab.a().command(PROGRAM);
    command.arg("--state-dir").arg(lab.directory().join("state")).args(["daemon", "--tun", "tun7", "--port", "4000"]);
    assert_in_order(&service_messages(command, lab.directory()), "interface tun7, UDP port 4000");
}

#[test]
fn an_idle_rendezvous_server_tells_its_manager_that_it_lives() {
    let lab = Lab::two_hosts();
    let mut command = lab.a().command(PROGRAM);
    command.arg("--state-dir").arg(lab.directory().join("state")).arg("rendezvous");
    assert_in_order(&service_messages(command, lab.directory()), "serving");
}
