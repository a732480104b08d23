//! What is wrong with the agent's connections, in words and with a hint.
//!
//! [`Facts`] are collected from the state as it is, each time somebody asks; nothing is remembered, so that an entry goes
//! when its cause does.

use std::time::Duration;

use super::report::{live_route, path_status};
use super::{Node, RECORD_LIFETIME};
use crate::api::{HealthEntry, PathKind};
use crate::identity::AgentRecord;
use crate::node::peer::RecordSource;
use crate::time::Now;
use crate::wire::control::Mapping;

/// Clocks that differ by less do no harm, and most differ by some seconds.
const CLOCK_TOLERANCE_S: u64 = 300;
/// For so long a peer on a relay, or a server, is connecting.
const CONNECTING_FOR: Duration = Duration::from_secs(10);
/// What IPv6 programs take for granted, bytes (RFC 8200, section 5).
const LEAST_IPV6_MTU: u32 = 1280;
/// Names in one message; what follows is counted.
const MOST_NAMES: usize = 3;

/// What health is judged by.
#[derive(Debug, Default)]
struct Facts {
    /// Whether any server answered over UDP.
    udp: Option<bool>,
    /// The NAT gives every destination another port, and no port is mapped.
    is_hard_nat: bool,
    port: u16,
    /// Addresses of this agent's own servers that are not there.
    lost_servers: Vec<String>,
    /// By how many seconds this host's clock seems to be behind (negative: ahead of) that of others.
    clock_behind_s: i64,
    /// Of peers in session, their names: those with a direct path, and those on a relay for longer than it takes to find
    /// one.
    direct: usize,
    relayed: Vec<String>,
    /// Peers whose path takes less than any path should: name, bytes.
    narrow: Vec<(String, u32)>,
}

impl Node {
    /// What is wrong now.
    #[must_use]
    pub fn health(&self, now: Now) -> Vec<HealthEntry> {
        self.facts(now).entries()
    }

    fn facts(&self, now: Now) -> Facts {
        let report = self.gather.report();
        let is_hard = matches!(report.mapping, Some(Mapping::EndpointDependent { .. }));
        let mut facts = Facts {
            udp: report.udp,
            is_hard_nat: is_hard && self.port_mapped.is_none(),
            port: self.port,
            lost_servers: self.lost_servers(now, CONNECTING_FOR),
            clock_behind_s: self.clock_behind_s(now),
            ..Facts::default()
        };
        for peer in self.peers.values().filter(|peer| peer.trusted) {
            let Some(route) = peer.link.as_ref().and_then(|link| live_route(now, link)) else { continue };
            let path = path_status(now, peer, self.mtu);
            let name = || peer.name().unwrap_or_else(|| peer.id.short());
            let settled = path.since_s.is_some_and(|seconds| seconds >= CONNECTING_FOR.as_secs_f64());
            match path.kind {
                PathKind::Direct => facts.direct += 1,
                PathKind::Relayed if settled => facts.relayed.push(name()),
                PathKind::Relayed | PathKind::None => {}
            }
            if path.mtu < LEAST_IPV6_MTU && !route.is_relayed() {
                facts.narrow.push((name(), path.mtu));
            }
        }
        facts
    }

    /// What others' clocks say of this host's: those of trusted peers and of this agent's servers. It takes more than half
    /// of them to say that this one is wrong, or one where there is no other.
    fn clock_behind_s(&self, now: Now) -> i64 {
        let peers = self.peers.values().filter(|peer| peer.trusted);
        let peers = peers.filter_map(|peer| peer.link.as_ref()?.clock?.ahead_s(now));
        let mut told: Vec<i64> = peers.chain(self.server_clocks(now)).collect();
        told.sort_unstable_by_key(|seconds| seconds.unsigned_abs());
        match told.get(told.len().saturating_sub(1) / 2) {
            Some(middle) if middle.unsigned_abs() > CLOCK_TOLERANCE_S => *middle,
            Some(_) => 0,
            None => self.behind_by_records(now),
        }
    }

    /// Where nobody has told its clock: what records say that were made by others a moment ago, or cannot have been made
    /// yet, and those of servers that are over by this clock, so that there is no session.
    fn behind_by_records(&self, now: Now) -> i64 {
        let told = self.peers.values().filter(|peer| peer.trusted && peer.record_source == RecordSource::Session);
        let told = told.map(|peer| peer.record.record());
        let ahead_of_us = told.chain(self.server_records()).map(|record| behind_s(now, record)).max().unwrap_or(0);
        // Whoever is in session shows its record in each, and renews it long before its end.
        let in_session = self.peers.values().filter(|peer| peer.trusted && self.in_session(now, peer.id));
        let over = in_session.map(|peer| now.unix_s().saturating_sub(peer.record.record().expires));
        let over = over.filter(|seconds| *seconds > CLOCK_TOLERANCE_S);
        let behind_us = self.expired_answers(now).chain(over).max().unwrap_or(0);
        let signed = |seconds: u64| i64::try_from(seconds).unwrap_or(i64::MAX);
        if ahead_of_us > 0 { signed(ahead_of_us) } else { -signed(behind_us) }
    }
}

/// By how many seconds a record was made in the future; 0 within tolerance. Its number is at least the time, and so is its
/// end less the time it lives; with one of both alone it may be of another program.
fn behind_s(now: Now, record: &AgentRecord) -> u64 {
    let made = record.sequence.min(record.expires.saturating_sub(RECORD_LIFETIME.as_secs()));
    let behind = made.saturating_sub(now.unix_s());
    if behind > CLOCK_TOLERANCE_S { behind } else { 0 }
}

impl Facts {
    fn entries(&self) -> Vec<HealthEntry> {
        let network = [self.no_udp(), self.unreachable_servers(), self.hard_nat()];
        let rest = [self.relay_only(), self.clock_skew(), self.narrow_paths()];
        network.into_iter().chain(rest).flatten().collect()
    }

    fn no_udp(&self) -> Option<HealthEntry> {
        (self.udp == Some(false)).then(|| {
            entry(
                "no_udp",
                "no rendezvous server answers over UDP: a firewall drops it, or this host is offline".to_owned(),
                "allow UDP from this host to the servers' addresses; `agentnet netcheck` tries again".to_owned(),
            )
        })
    }

    /// One or some of them; where none answers, that is said once.
    fn unreachable_servers(&self) -> Option<HealthEntry> {
        (!self.lost_servers.is_empty() && self.udp != Some(false)).then(|| {
            entry(
                "rendezvous_unreachable",
                format!("no answer from rendezvous server {}", list(&self.lost_servers)),
                "is it running, are its id and address right, and may UDP reach it? See `agentnet status`".to_owned(),
            )
        })
    }

    fn hard_nat(&self) -> Option<HealthEntry> {
        self.is_hard_nat.then(|| {
            entry(
                "hard_nat",
                "the NAT gives every destination another port, so that many peers are reached through a relay"
                    .to_owned(),
                format!(
                    "switch PCP or UPnP on in the router, forward UDP port {} to this host there, or use IPv6",
                    self.port
                ),
            )
        })
    }

    fn relay_only(&self) -> Option<HealthEntry> {
        (self.direct == 0 && !self.relayed.is_empty()).then(|| {
            entry(
                "relay_only",
                format!("every peer is reached through a relay only: {}", list(&self.relayed)),
                "`agentnet why PEER` says what keeps them from a direct path".to_owned(),
            )
        })
    }

    fn clock_skew(&self) -> Option<HealthEntry> {
        let (seconds, word) = match self.clock_behind_s {
            0 => return None,
            behind @ 1.. => (behind, "behind"),
            ahead => (-ahead, "ahead of"),
        };
        Some(entry(
            "clock_skew",
            format!(
                "this host's clock is {seconds} s or more {word} that of others: records and trust run out wrongly"
            ),
            "set it: start NTP (`timedatectl set-ntp true`); if it is right, those of the others are not".to_owned(),
        ))
    }

    fn narrow_paths(&self) -> Option<HealthEntry> {
        let least = self.narrow.iter().map(|(_, mtu)| *mtu).min()?;
        let names: Vec<String> = self.narrow.iter().map(|(name, _)| name.clone()).collect();
        Some(entry(
            "path_mtu_small",
            format!("the path takes packets of {least} bytes at most, to {}: longer ones are cut", list(&names)),
            "raise the MTU of the links in between (of a VPN, a tunnel, PPPoE) to 1,360 bytes or more".to_owned(),
        ))
    }
}

/// Some of them by name, the others by number.
fn list(names: &[String]) -> String {
    let mut text = names.iter().take(MOST_NAMES).cloned().collect::<Vec<_>>().join(", ");
    if names.len() > MOST_NAMES {
        text.push_str(&format!(" and {} more", names.len() - MOST_NAMES));
    }
    text
}

fn entry(code: &str, message: String, hint: String) -> HealthEntry {
    HealthEntry { code: code.to_owned(), message, hint }
}

#[cfg(test)]
mod tests;
