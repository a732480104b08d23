//! agentnet: every AI agent its own address on one private network, wherever it runs.
//!
//! The map, from the bottom up; a module uses those above it in this list, never those below.
//!
//! - [`identity`]: agent id, keys, addresses, the signed record, the ticket
//! - [`wire`]: every byte layout, without state
//! - [`time`], [`metrics`]: time as an argument; every counter
//! - [`tunnel`]: WireGuard sessions
//! - [`trust`], [`policy`]: who agreed to what; which packets that covers
//! - [`limits`]: how much strangers may cost
//! - [`api`], [`config`]: the JSON documents and error codes; the configuration
//! - [`path`]: which way packets to a peer take
//! - [`rendezvous`]: the server: others' first contact, and their relay
//! - [`forwarding`]: the data plane, the way of a packet
//! - [`node`]: the control plane, the life of a peer
//! - [`daemon`]: the I/O around both
//! - [`cli`]: the command line
#![forbid(unsafe_code)]

pub mod api;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod forwarding;
pub mod identity;
pub mod limits;
pub mod metrics;
pub mod node;
pub mod path;
pub mod policy;
pub mod rendezvous;
pub mod time;
pub mod trust;
pub mod tunnel;
pub mod wire;
