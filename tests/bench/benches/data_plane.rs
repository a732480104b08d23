//! Time for 44 packets of 1,420 bytes, step by step.
#![allow(clippy::disallowed_methods, reason = "it measures real time")]

use std::time::{Duration, Instant};

use agentnet_bench::{Lane, STEPS};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

fn data_plane(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("44 packets");
    group.throughput(Throughput::Elements(44)).measurement_time(Duration::from_secs(3)).sample_size(30);
    let mut lane = Lane::new();
    for step in STEPS {
        group.bench_function(step, |bencher| {
            bencher.iter_custom(|times| {
                (0..times)
                    .map(|_| {
                        lane.prepare(step);
                        let start = Instant::now();
                        std::hint::black_box(lane.run(step));
                        start.elapsed()
                    })
                    .sum()
            });
        });
    }
    group.finish();
}

criterion_group!(benches, data_plane);
criterion_main!(benches);
