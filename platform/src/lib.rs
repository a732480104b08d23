//! Everything agentnet asks of the operating system: devices, datagram sockets, routes, privileges.
//!
//! This crate knows no protocol. All `unsafe` of the project is here, each block with the reason it is sound.
//!
//! - [`batch`]: the slab of packets that devices read into and write from
//! - [`tun`]: the TUN device and the [`tun::PacketDevice`] trait
//! - [`udp`]: the pair of UDP sockets (IPv4 and IPv6, one port), receive and send batches
//! - [`wait`]: sleep until a descriptor is readable or someone wakes the thread
//! - [`network`]: the host's links, addresses, routes; configuring ours; events
//! - [`confine`]: giving up rights that are not needed any more
//! - [`privilege`], [`clock`], [`process`]: small questions about and to the host
//! - [`fake`]: a TUN and a datagram network without a kernel, for tests
//!
//! `linux/` and `macos/` have the same files with the same public items; one of them is compiled as `os`.

#![allow(
    clippy::disallowed_methods,
    reason = "clocks, threads and waiting are kept out of the core; this crate is where they live"
)]

pub mod batch;
pub mod clock;
pub mod confine;
pub mod fake;
pub mod network;
pub mod privilege;
pub mod process;
pub mod tun;
pub mod udp;
pub mod wait;

#[cfg(target_os = "linux")]
#[path = "linux/mod.rs"]
mod os;

#[cfg(target_os = "macos")]
#[path = "macos/mod.rs"]
mod os;
