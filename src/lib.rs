//! agentnet: every AI agent its own address on one private network, wherever it runs.
#![forbid(unsafe_code)]

pub mod api;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod forwarding;
pub mod identity;
pub mod metrics;
pub mod node;
pub mod policy;
pub mod time;
pub mod trust;
pub mod tunnel;
pub mod wire;
