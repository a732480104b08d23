//! `count STEP`: does one step a hundred times, for an instruction counter (`scripts/bench --instructions`).
#![forbid(unsafe_code)]

use std::process::ExitCode;

use agentnet_bench::{Lane, STEPS};

/// How often.
const TIMES: usize = 100;

fn main() -> ExitCode {
    let step = std::env::args().nth(1).unwrap_or_default();
    if !STEPS.contains(&step.as_str()) {
        eprintln!("error: no step {step:?}; there are {}", STEPS.join(", "));
        return ExitCode::from(2);
    }
    let mut lane = Lane::new();
    let mut done = 0;
    for _ in 0..TIMES {
        lane.prepare(&step);
        done += measured(&mut lane, &step);
    }
    println!("{done}");
    ExitCode::SUCCESS
}

/// The counter counts inside of this only.
#[inline(never)]
fn measured(lane: &mut Lane, step: &str) -> usize {
    lane.run(step)
}
