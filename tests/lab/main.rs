//! The lab: agents on real hosts' terms. Network namespaces, real TUN devices, real programs; needs root and Linux.
//!
//! One behaviour, one file. `AGENTNET_LAB_RUNS` sets how often measured scenarios repeat (default 3),
//! `AGENTNET_LAB_SECONDS` how long throughput runs last (default 5), `AGENTNET_LAB_COLD_RUNS` how many connections begin
//! cold (default 10), `AGENTNET_LAB_SEED` replays a random one. `AGENTNET_LAB_CYCLES` (500), `AGENTNET_LAB_MINUTES` (30)
//! and `AGENTNET_LAB_STAGES` (all) say how much the rows of `scripts/matrix endure` do.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]
#![allow(clippy::disallowed_methods, reason = "the lab runs in real time and reads its own settings")]
#![allow(clippy::print_stderr, reason = "measurements are reported on standard error")]
#![allow(clippy::print_stdout, reason = "so are tables, on standard output")]

mod harness;

mod broken_paths;
mod bugreport;
mod churn;
mod clock_jumps;
mod cold;
mod control;
mod disk_full;
mod docs;
mod health;
mod idle;
mod internet;
mod itself;
mod layouts;
mod leftovers;
mod log;
mod matrix;
mod metrics;
mod netcheck;
mod offload;
mod outages;
mod path_mtu;
mod peers;
mod port_mapping;
mod privileges;
mod ready;
mod relay;
mod reload;
mod restart;
mod roaming;
mod screens;
mod service;
mod several_agents;
mod ssh_grpc;
mod stages;
mod start_stop;
mod state;
mod strangers;
mod traffic;
