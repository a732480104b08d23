//! An agent with nothing to do does nothing and takes little room.

use std::fs;
use std::time::Duration;

use crate::harness::{Lab, Pair, observe, setting};

/// Until every short timer of the last traffic has run out: probes for 30 s, and the session for 17 s after them.
const QUIET: Duration = Duration::from_secs(48);
/// Aims of the project: fewer than 60 wake-ups a minute, less than 10 MiB. Unoptimised programs are larger.
const WAKEUPS_A_MINUTE: u64 = 60;
const RESIDENT_KIB: u64 = if cfg!(debug_assertions) { 24 * 1024 } else { 10 * 1024 };

#[test]
#[ignore = "a minute of silence: scripts/matrix ready"]
fn an_idle_agent_sleeps() {
    let lab = Lab::two_hosts();
    let Pair { a, b } = Pair::trusted(&lab);
    observe(QUIET);
    let seconds = setting("AGENTNET_LAB_IDLE_SECONDS", 15);
    let pid = a.pid();
    let before = switches(pid);
    observe(Duration::from_secs(seconds));
    let wakeups = (switches(pid) - before) * 60 / seconds;
    let resident = resident_kib(pid);
    eprintln!("idle: {wakeups} wake-ups a minute over {seconds} s, {resident} KiB resident");
    assert!(wakeups < WAKEUPS_A_MINUTE, "{wakeups} wake-ups a minute");
    assert!(resident < RESIDENT_KIB, "{resident} KiB");
    // It was asleep, not gone.
    assert_eq!(lab.a().ping(b.ipv6().into(), 3), 3);
}

/// How often the kernel gave a processor to any thread of the process.
fn switches(pid: u32) -> u64 {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let of_task =
        |task: fs::DirEntry| number(&fs::read_to_string(task.path().join("status")).unwrap(), "ctxt_switches:");
    tasks.map(|task| of_task(task.unwrap())).sum()
}

/// What a process has in memory.
pub(crate) fn resident_kib(pid: u32) -> u64 {
    number(&fs::read_to_string(format!("/proc/{pid}/status")).unwrap(), "VmRSS:")
}

/// The same without what is read from files, such as the program itself, a page of which comes in when it is first used.
pub(crate) fn own_memory_kib(pid: u32) -> u64 {
    number(&fs::read_to_string(format!("/proc/{pid}/status")).unwrap(), "RssAnon:")
}

/// The sum of the numbers behind every line that names `what`.
fn number(status: &str, what: &str) -> u64 {
    let lines = status.lines().filter(|line| line.contains(what));
    lines.map(|line| line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()).sum()
}
