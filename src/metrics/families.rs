//! What there is to read: every family with its name, type, labels and meaning, as Prometheus is told and the reference
//! says.

use std::borrow::Cow;

use super::{Counters, ServerCounters};

/// What the values of a family do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// They only grow, from zero at the start of the process.
    Counter,
    /// They go up and down.
    Gauge,
    /// They are counted by size.
    Histogram,
}

impl Kind {
    /// The word of the exposition format.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// One family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Family {
    /// Its name, the unit included.
    pub name: Cow<'static, str>,
    /// Its type.
    pub kind: Kind,
    /// Its labels, with the values they may have.
    pub labels: &'static str,
    /// One line of documentation.
    pub help: &'static str,
}

/// A constant for each family of an agent, and the list of them.
macro_rules! families {
    ($($constant:ident $kind:ident $name:literal $labels:literal $help:literal;)*) => {
        $(pub(super) const $constant: Family = Family {
            name: Cow::Borrowed($name),
            kind: Kind::$kind,
            labels: $labels,
            help: $help,
        };)*

        /// Every family of an agent, in the order in which they are exposed.
        #[must_use]
        pub fn agent_families() -> Vec<Family> {
            vec![$($constant,)*]
        }
    };
}

families! {
    BUILD Gauge "agentnet_build_info" "version, os, arch" "Always 1; the labels say what runs.";
    UPTIME Gauge "agentnet_uptime_seconds" "" "Time since the agent or server started.";
    MEMORY Gauge "process_resident_memory_bytes" "" "Memory of the process that is in RAM.";
    PEERS Gauge "agentnet_peers" "path=direct,relayed,none" "Trusted peers, by the path that data takes to them.";
    RELATIONS Gauge "agentnet_relations" "trust=trusted,requested,pending,rejected,revoked"
        "Agents there is a relation with, by where trust stands.";
    SERVERS Gauge "agentnet_rendezvous_servers" "state=connected,connecting,failed"
        "Rendezvous servers in use, those of peers included.";
    HEALTH Gauge "agentnet_health" "code" "1 for each thing that is wrong, by the code that `status` has for it.";
    ROUND_TRIP Histogram "agentnet_round_trip_seconds" "path=direct,relayed"
        "Round trips of the probes of paths, by the way the answer came.";
    PACKETS Counter "agentnet_packets_total" "direction=in,out" "Packets carried between the interface and tunnels.";
    BYTES Counter "agentnet_bytes_total" "direction=in,out; path=direct,relayed" "Bytes of those packets.";
    RELAY_RATIO Gauge "agentnet_relay_usage_ratio" ""
        "Bytes that went through a relay, of all in agentnet_bytes_total; NaN while there are none.";
    DELIVERY_RATIO Gauge "agentnet_delivery_success_ratio" ""
        "Packets to trusted peers that the kernel took, of those that were sealed (agentnet_packets_total, out) and those dropped for want of a session (agentnet_drops_total, no_session); what it did not take is agentnet_drops_total, send. NaN while there are none.";
    DATAGRAMS Counter "agentnet_datagrams_total" "direction=in,out" "Datagrams received, and handed to the kernel.";
    DROPS Counter "agentnet_drops_total" "direction=in,out,inside; reason"
        "What went no further: from the network, from the interface, inside the agent. With `in_` and `out_` before them, the reasons are those of `status`.";
    HANDSHAKES Counter "agentnet_handshakes_total"
        "result=ok,failed,rejected; reason=unanswered,stranger,rate,invalid,replay"
        "Handshakes completed, given up for want of an answer, and rejected.";
    INTRODUCTIONS Counter "agentnet_introductions_total" "event=accepted,sent,passed_on"
        "Introductions accepted, sent, and passed on from one peer to another.";
    PROBES Counter "agentnet_probes_total" "" "Probes of paths sent, those of searches included.";
    SEARCHES Counter "agentnet_hard_nat_total" "event=attempt,probe,found"
        "Searches for a way through NATs that give every destination another port, their probes, and what they found.";
    TRUST Counter "agentnet_trust_events_total"
        "event=requested,asked,approved,rejected,revoked,withdrawn,expired"
        "Changes of trust: requested, approved, rejected and revoked here; asked and withdrawn by the other side; run out.";
}

/// The drops of a server, whose other counters have a family each.
pub(super) const SERVER_DROPS: Family = Family {
    name: Cow::Borrowed("agentnet_rendezvous_drops_total"),
    kind: Kind::Counter,
    labels: "reason",
    help: "What went no further. With `drop_` before them, the reasons are counters of the server.",
};

/// Every family of a rendezvous server, in the order in which they are exposed.
#[must_use]
pub fn server_families() -> Vec<Family> {
    let counters = ServerCounters::default();
    let counters = counters.iter().filter(|(name, ..)| !name.starts_with("drop_"));
    let counters: Vec<Family> = counters.map(|(name, help, _)| server_family(name, help)).collect();
    [BUILD, UPTIME, MEMORY].into_iter().chain(counters).chain([SERVER_DROPS]).collect()
}

/// The family of one counter of a server.
pub(super) fn server_family(counter: &str, help: &'static str) -> Family {
    let name = Cow::Owned(format!("agentnet_rendezvous_{counter}_total"));
    Family { name, kind: Kind::Counter, labels: "", help }
}

/// Direction, reason and number of each counter of drops.
pub(super) fn agent_drops(counters: &Counters) -> impl Iterator<Item = (&'static str, &'static str, u64)> {
    counters.iter().filter_map(|(name, _, value)| {
        let reason = name.strip_prefix("drop_")?;
        Some(match (reason.split_once('_'), reason) {
            (Some(("in", rest)), _) => ("in", rest, value),
            (Some(("out", rest)), _) => ("out", rest, value),
            // The control plane's own tables.
            (_, "notices" | "servers_full" | "log_lines") => ("inside", reason, value),
            _ => ("in", reason, value),
        })
    })
}
