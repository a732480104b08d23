//! An agent that is told to end while it starts: at whatever system call that finds it, it ends soon, leaves nothing, and
//! the next start works.
//!
//! `strace` tells which system calls the main thread makes until it says that it started, and then makes the signal arrive
//! as it enters one of them: each of them in turn.

use std::collections::HashMap;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::harness::{
    Agent, Finished, Host, Lab, PROGRAM, Pair, Program, SOON, Snapshot, observe, setting, wait_until,
};

/// Stages that every run of the tests looks at, of a first start and of a later one.
const FEW: usize = 6;
/// The agent has ended so soon after the signal; an unoptimised one under `strace` on a busy machine.
const ENDS_WITHIN: Duration = Duration::from_secs(10);
/// One that still runs after this and answers was not told to end: starts differ by some calls.
const READY_WITHIN: Duration = Duration::from_secs(2);
/// Of the stages at least this part must have been come to.
const LEAST_REACHED: f64 = 0.8;

#[test]
fn some_stages_of_a_start() {
    every_stage_of_a_later_start(FEW);
    every_stage_of_a_first_start(FEW);
}

#[test]
#[ignore = "takes ten minutes: scripts/matrix endure"]
fn every_stage_of_a_start() {
    let stages = usize::try_from(setting("AGENTNET_LAB_STAGES", u64::MAX)).unwrap();
    every_stage_of_a_later_start(stages);
    every_stage_of_a_first_start(stages);
}

/// An agent with identity and trust keeps both.
fn every_stage_of_a_later_start(at_most: usize) {
    let lab = Lab::two_hosts();
    let before = Snapshot::of(lab.a());
    let Pair { mut a, b } = Pair::trusted(&lab);
    let known = (a.id(), a.port(), a.ipv4(), a.ipv6(), a.alias_of(&b));
    a.down();
    let calls = calls_of_a_start(&a, &lab.directory().join("calls"));
    let (began, mut reached, stages) = (Instant::now(), 0, some_of(&calls, at_most));
    for call in &stages {
        reached += usize::from(end_at(&a, call));
        assert_left_clean(lab.a(), &before, &a, call);
        a.up();
        assert_eq!((a.id(), a.port(), a.ipv4(), a.ipv6(), a.alias_of(&b)), known, "after {call:?}");
        assert_eq!(a.trust_state(&b.id()), "trusted", "after {call:?}");
        a.down();
    }
    told("later", reached, stages.len(), calls.len(), began);
    a.up();
    lab.a().wait_until_reaches(b.ipv6().into());
}

/// An agent that was never up has no identity yet, or a whole one.
fn every_stage_of_a_first_start(at_most: usize) {
    let lab = Lab::two_hosts();
    let before = Snapshot::of(lab.a());
    let calls = calls_of_a_start(&Agent::new(lab.a()), &lab.directory().join("calls"));
    let (began, mut reached, stages) = (Instant::now(), 0, some_of(&calls, at_most));
    for call in &stages {
        let mut agent = Agent::new(lab.a());
        reached += usize::from(end_at(&agent, call));
        assert_left_clean(lab.a(), &before, &agent, call);
        let identity = fs::read(agent.directory().join("identity.key")).ok();
        agent.up();
        let kept = fs::read(agent.directory().join("identity.key")).unwrap();
        assert!(identity.is_none_or(|identity| identity == kept), "another identity after {call:?}");
        agent.down();
    }
    told("first", reached, stages.len(), calls.len(), began);
}

fn told(which: &str, reached: usize, tried: usize, calls: usize, began: Instant) {
    let seconds = began.elapsed().as_secs_f64();
    eprintln!("{which} start: ended at {reached} of {tried} tried of {calls} system calls, in {seconds:.0} s");
    assert!(reached as f64 >= tried as f64 * LEAST_REACHED, "{reached} of {tried} were come to");
}

/// A system call: its name, and how many of that name come before it and with it.
type Call = (String, usize);

/// So many of all, the first and the last among them.
fn some_of(calls: &[Call], at_most: usize) -> Vec<Call> {
    let count = at_most.clamp(2, calls.len());
    (0..count).map(|number| calls[number * (calls.len() - 1) / (count - 1)].clone()).collect()
}

/// What the main thread calls until the agent has started.
fn calls_of_a_start(agent: &Agent<'_>, trace: &Path) -> Vec<Call> {
    let program = Program::spawn(&mut daemon(agent, &["-s", "200", "-o", trace.to_str().unwrap()]));
    wait_until("the agent answers", SOON, || agent.run(&["id"]).status.success());
    agent.run(&["down"]).ok();
    program.finish(SOON);
    let trace = fs::read_to_string(trace).unwrap();
    let main = trace.split_whitespace().next().unwrap();
    let (mut counts, mut calls) = (HashMap::new(), Vec::new());
    for line in trace.lines().filter_map(|line| line.strip_prefix(main)) {
        // What was interrupted by another thread's line goes on in one that has no name in this place.
        let Some((name, _)) = line.trim_start().split_once('(') else { continue };
        if name.chars().all(|letter| letter.is_ascii_alphanumeric() || letter == '_') {
            let count = counts.entry(name.to_owned()).or_insert(0);
            *count += 1;
            calls.push((name.to_owned(), *count));
        }
        if line.contains("agent started") {
            return calls;
        }
    }
    panic!("no word of the start in the trace");
}

/// Starts the daemon, which gets SIGTERM as it enters this call, and waits for its end. False where it did not come to
/// that call.
fn end_at(agent: &Agent<'_>, (name, count): &Call) -> bool {
    let inject = format!("inject={name}:signal=TERM:when={count}");
    let mut program = Program::spawn(&mut daemon(agent, &["-o", "/dev/null", "-e", &inject]));
    let began = Instant::now();
    while program.is_running() {
        assert!(began.elapsed() < ENDS_WITHIN, "told to end at {name} {count} it still runs:\n{}", program.stderr());
        if began.elapsed() > READY_WITHIN && agent.run(&["id"]).status.success() {
            agent.run(&["down"]).ok();
            program.finish(SOON);
            return false;
        }
        observe(Duration::from_millis(5));
    }
    let Finished { status, stderr, .. } = program.finish(SOON);
    // Before it listens to signals the system ends it, and `strace` passes that on.
    assert!(status.success() || status.signal() == Some(15), "{status} after {name} {count}:\n{stderr}");
    true
}

/// The daemon, in the foreground, as a service manager starts it, under `strace`.
fn daemon(agent: &Agent<'_>, strace: &[&str]) -> Command {
    let mut command = agent.host().command("strace");
    command.args(["-f", "-qqq"]).args(strace).arg(PROGRAM).arg("--state-dir").arg(agent.directory());
    command.arg("--socket").arg(agent.socket()).arg("daemon");
    command.env("AGENTNET_PORT_MAPPING", "off").env("NO_COLOR", "1");
    command
}

fn assert_left_clean(host: &Host, before: &Snapshot, agent: &Agent<'_>, call: &Call) {
    let when = format!("after {call:?}");
    before.assert_same(&Snapshot::of(host), &when);
    host.assert_no_processes(&when);
    agent.assert_only_state_left(&[], &when);
}
