//! The NAT matrix with a few runs a cell. `scripts/matrix` has many.

use agentnet_sim::matrix;
use agentnet_sim::net::Replay;

/// Half of them with one server, half with two.
const RUNS: usize = 4;

#[test]
fn every_kind_of_nat_against_every_other() {
    let replay = Replay::seed_or(1);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let cells = matrix::run_all(replay.rng(), RUNS, threads);
    let misses: Vec<_> = cells.iter().flat_map(matrix::Cell::misses).collect();
    assert!(misses.is_empty(), "{}\n{}", misses.join("\n"), matrix::table(&cells));
    assert_eq!(cells.len(), 49);
}
