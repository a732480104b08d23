//! Prints the NAT matrix: `matrix [RUNS]`, with so many runs a cell. Fails when an aim is missed.

use std::process::ExitCode;

use agentnet_sim::matrix;
use agentnet_sim::net::Replay;

fn main() -> ExitCode {
    let runs = match std::env::args().nth(1).map_or(Ok(20), |text| text.parse()) {
        Ok(runs) if runs > 0 => runs,
        _ => {
            eprintln!("usage: matrix [RUNS]");
            return ExitCode::from(2);
        }
    };
    let replay = Replay::seed_or(1);
    println!("seed {}, {runs} runs a cell, times in virtual milliseconds", replay.seed());
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let cells = matrix::run_all(replay.rng(), runs, threads);
    print!("{}", matrix::table(&cells));
    let misses: Vec<_> = cells.iter().flat_map(matrix::Cell::misses).collect();
    for miss in &misses {
        println!("missed: {miss}");
    }
    if misses.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
