//! What Prometheus is told, put together from where it is known.

use std::sync::Arc;
use std::time::Duration;

use agentnet_platform::process::resident_memory;

use crate::api::{PathKind, TrustState};
use crate::metrics::{AgentReading, Counters, ProcessReading};
use crate::node::Node;
use crate::time::Now;

/// This process, which has run for `uptime`.
pub(super) fn process_reading(uptime: Duration) -> ProcessReading {
    ProcessReading {
        version: env!("CARGO_PKG_VERSION"),
        os: std::env::consts::OS,
        arch: std::env::consts::ARCH,
        uptime,
        resident_bytes: resident_memory().ok(),
    }
}

/// The agent. Of `health`, the codes.
pub(super) fn agent_reading(
    process: ProcessReading,
    counters: &Arc<Counters>,
    node: &Node,
    now: Now,
    health: impl Iterator<Item = String>,
) -> AgentReading {
    let peers = node.peer_statuses(now);
    let count = |wanted: &dyn Fn(&crate::api::PeerStatus) -> bool| peers.iter().filter(|peer| wanted(peer)).count();
    let on_path = |kind: PathKind| {
        let there = count(&|peer| peer.trust == TrustState::Trusted && peer.path.kind == kind);
        (kind.as_str(), there as u64)
    };
    let relations =
        [TrustState::Trusted, TrustState::Requested, TrustState::Pending, TrustState::Rejected, TrustState::Revoked];
    let servers = node.rendezvous_statuses();
    let in_state = |state: &'static str| (state, servers.iter().filter(|server| server.state == state).count() as u64);
    let mut health: Vec<String> = health.collect();
    health.sort_unstable();
    health.dedup();
    AgentReading {
        process,
        counters: Arc::clone(counters),
        peers: [PathKind::Direct, PathKind::Relayed, PathKind::None].map(on_path).into(),
        relations: relations.map(|state| (state.as_str(), count(&|peer| peer.trust == state) as u64)).into(),
        servers: ["connected", "connecting", "failed"].map(in_state).into(),
        health,
    }
}
