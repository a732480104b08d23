//! Peers behind NATs that give every destination another port, or behind others while this side has such a one: when a
//! way is searched, and what the machine that does wants carried out.
//!
//! ```text
//!   no direct path works, both NATs are known ──(500 ms)──> due ──(no other search runs)──> candidates are told anew:
//!   the peer begins too ──> sockets, probes ──(the peer is heard)──> one more candidate for the path machine
//!                                            ──(9.5 s)──> again after 1 min .. 30 min, while data takes a relay
//! ```

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use super::limits::PROBE_RATE;
use super::peer::Link;
use super::{Node, Output, TimerKind};
use crate::forwarding::PeerPath;
use crate::identity::AgentId;
use crate::path::{Attempt, HARD_SOCKETS, HardNat, HardNatOutput, HardNatReport, Plan, Route, SocketId, last_seen};
use crate::time::{Now, Time};
use crate::wire::control::{Candidate, CandidateKind, ControlMessage, MIN_PROBE_LEN, Mapping, PathMessage};

/// Extra sockets of all peers at once: those of one search, and the found ones of 256 peers. The platform opens no more.
const MAX_SOCKETS: usize = 512;
/// While another search runs, a peer looks again after this.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// The search for one peer, and what it rests on.
#[derive(Debug, Default)]
pub(super) struct Search {
    machine: HardNat,
    /// How the peer's NATs map, as it said last.
    theirs: Mapping,
    /// Where servers see it over IPv4, as it said last.
    seen: Vec<SocketAddrV4>,
}

impl Search {
    /// Takes in what the peer says. Returns whether it is at another place than before.
    pub(super) fn note(&mut self, mapping: Mapping, candidates: &[Candidate]) -> bool {
        let of = |wanted: fn(&Candidate) -> bool| -> Vec<SocketAddrV4> {
            let candidates = candidates.iter().filter(|candidate| wanted(candidate));
            candidates.filter_map(|candidate| to_aim_at(candidate.address)).collect()
        };
        let mut seen = of(|candidate| candidate.kind == CandidateKind::ServerReflexive);
        if seen.is_empty() {
            // Without a NAT servers see what the host itself has.
            seen = of(|candidate| matches!(candidate.kind, CandidateKind::Host | CandidateKind::PortMapped));
        }
        let place = |seen: &[SocketAddrV4]| seen.first().map(|address| *address.ip());
        let moved = (self.theirs, place(&self.seen)) != (mapping, place(&seen));
        (self.theirs, self.seen) = (mapping, seen);
        moved
    }

    /// How it went so far.
    pub(super) fn report(&self) -> HardNatReport {
        self.machine.report()
    }
}

/// An address that can be on the other side of a NAT.
fn to_aim_at(address: SocketAddr) -> Option<SocketAddrV4> {
    let IpAddr::V4(ip) = address.ip() else { return None };
    let is_shared = u32::from(ip) & 0xffc0_0000 == u32::from(Ipv4Addr::new(100, 64, 0, 0));
    let is_inside = ip.is_private() || ip.is_link_local() || ip.is_loopback() || is_shared;
    (super::addresses::is_usable(address) && !is_inside).then(|| SocketAddrV4::new(ip, address.port()))
}

impl Node {
    /// What this side can do for a way to this peer.
    pub(super) fn search_plan(&self, link: &Link) -> Plan {
        Plan::new(self.own_mapping(), link.search.theirs)
    }

    /// The peer said where it is, perhaps because it begins a search; or something about this side's network changed.
    pub(super) fn search_may_help(&mut self, now: Now, id: AgentId, moved: bool) {
        let Some(link) = self.link_mut(id) else { return };
        link.search.machine.may_have_changed(now.time, moved);
        self.carry_out_search(now, id);
    }

    /// This agent has other addresses than before: whatever was found is worth nothing.
    pub(super) fn moved(&mut self, now: Now) {
        for id in self.peers.keys().copied().collect::<Vec<_>>() {
            let Some(link) = self.link_mut(id) else { continue };
            link.search.machine.network_changed(now.time);
            self.carry_out_search(now, id);
        }
    }

    /// An authenticated packet of this peer came to an extra socket. Returns whether it is one to answer on.
    pub(super) fn heard_on(&mut self, now: Now, id: AgentId, socket: SocketId) -> bool {
        if self.extra_sockets.get(&socket) != Some(&id) {
            return false;
        }
        let Some(link) = self.link_mut(id) else { return false };
        let was_running = link.search.machine.is_running();
        let kept = link.search.machine.heard(now.time, socket);
        if was_running && !link.search.machine.is_running() {
            tracing::debug!(peer = %id.short(), conn = self.conn(id), socket = socket.number(), "a way through a hard NAT");
            self.counters.hard_nat_found.increment();
        }
        self.carry_out_search(now, id);
        kept
    }

    /// The shell opened these sockets for a search.
    pub(super) fn sockets_opened(&mut self, now: Now, id: AgentId, sockets: Vec<SocketId>) {
        let Some(link) = self.peers.get_mut(&id).and_then(|peer| peer.link.as_mut()) else {
            return self.outputs.push_back(Output::CloseSockets(sockets));
        };
        self.extra_sockets.extend(sockets.iter().map(|socket| (*socket, id)));
        link.search.machine.sockets_opened(now.time, sockets);
        self.carry_out_search(now, id);
    }

    pub(super) fn search_timer(&mut self, now: Now, id: AgentId) {
        let Some(link) = self.peers.get_mut(&id).and_then(|peer| peer.link.as_mut()) else { return };
        let machine = &mut link.search.machine;
        if machine.is_running() {
            let mut allowed = 0;
            while allowed < machine.due(now.time) && self.probe_budget.take(now.time, PROBE_RATE) {
                allowed += 1;
            }
            machine.handle_timeout(now.time, allowed);
        } else if self.search_due(now, id).is_some_and(|at| at <= now.time) && !self.is_searching() {
            self.begin_search(now, id);
        }
        self.carry_out_search(now, id);
    }

    /// Looks whether a search has become needed or useless. Called whenever the paths may have changed.
    pub(super) fn consider_search(&mut self, now: Now, id: AgentId) {
        let Some(link) = self.peers.get_mut(&id).and_then(|peer| peer.link.as_mut()) else { return };
        if let Some(primary) = link.paths.primary().filter(|primary| !primary.is_relayed())
            && link.paths.has_direct(now.time)
        {
            link.search.machine.connected(now.time, primary.socket());
        }
        self.carry_out_search(now, id);
    }

    /// There is no session any more: nothing stays open.
    pub(super) fn search_unlinked(&mut self, id: AgentId, link: &Link) {
        self.timers.set(TimerKind::Search(id), None);
        self.close_sockets(link.search.machine.sockets().collect());
    }

    fn begin_search(&mut self, now: Now, id: AgentId) {
        let Some(link) = self.peers.get(&id).and_then(|peer| peer.link.as_ref()) else { return };
        let plan = self.search_plan(link);
        let Some(target) = last_seen(plan, &link.search.seen) else { return };
        let left = u16::try_from(MAX_SOCKETS.saturating_sub(self.extra_sockets.len())).unwrap_or(u16::MAX);
        let attempt = Attempt { plan, target, is_first: self.id < id, sockets: left.min(HARD_SOCKETS) };
        tracing::debug!(peer = %id.short(), conn = self.conn(id), ?plan, "searching a way through a hard NAT");
        self.counters.hard_nat_attempts.increment();
        self.searching = Some(id);
        let Some(link) = self.peers.get_mut(&id).and_then(|peer| peer.link.as_mut()) else { return };
        let in_use = link.paths.primary().map(Route::socket).unwrap_or_default();
        link.search.machine.begin(now.time, attempt, in_use, &mut *self.rng);
        // The peer is to begin as well, and it may not know why it should.
        self.candidates_sequence = now.unix_ms.max(self.candidates_sequence.saturating_add(1));
        self.tell_candidates(now, id);
    }

    /// One search at a time: its sockets and probes are as much as a home router should bear.
    fn is_searching(&self) -> bool {
        let link = self.searching.and_then(|id| self.peers.get(&id)?.link.as_ref());
        link.is_some_and(|link| link.search.machine.is_running())
    }

    /// When the next search for this peer is due.
    fn search_due(&mut self, now: Now, id: AgentId) -> Option<Time> {
        let link = self.peers.get(&id)?.link.as_ref()?;
        let is_needed = link.paths.is_wanted(now.time)
            && !link.paths.has_direct(now.time)
            && !link.search.seen.is_empty()
            && self.search_plan(link).is_something()
            && link.shared.tunnel.lock().has_session(now.time);
        let is_paired = matches!(self.search_plan(link), Plan::Paired { .. });
        let machine = &mut self.link_mut(id)?.search.machine;
        let was_needed = machine.is_needed();
        let due = machine.poll_begin(now.time, is_needed);
        if due.is_some() && !was_needed && is_paired {
            // Both must aim well, and what they know of each other's ports may be from long before. (An easy peer aims
            // at a mapping this side has for it already: an older port is the better one to count from.)
            self.measure_ports(now);
        }
        due
    }

    fn carry_out_search(&mut self, now: Now, id: AgentId) {
        while let Some(output) = self.link_mut(id).and_then(|link| link.search.machine.poll_output()) {
            match output {
                HardNatOutput::OpenSockets(count) => {
                    self.outputs.push_back(Output::OpenSockets { peer: id, count });
                }
                HardNatOutput::CloseSockets(sockets) => {
                    if let Some(link) = self.link_mut(id) {
                        for socket in &sockets {
                            link.paths.socket_closed(*socket);
                        }
                    }
                    self.close_sockets(sockets);
                }
                HardNatOutput::Probe { socket, destination } => self.send_search_probe(now, id, socket, destination),
            }
        }
        self.arm_search_timer(now, id);
    }

    fn arm_search_timer(&mut self, now: Now, id: AgentId) {
        let running = self.link_mut(id).and_then(|link| link.search.machine.poll_timeout());
        let at = running.or_else(|| {
            let due = self.search_due(now, id)?;
            Some(if due <= now.time && self.is_searching() { now.time + LOOK_AGAIN } else { due })
        });
        self.timers.set(TimerKind::Search(id), at);
    }

    fn close_sockets(&mut self, sockets: Vec<SocketId>) {
        if sockets.is_empty() {
            return;
        }
        for socket in &sockets {
            self.extra_sockets.remove(socket);
        }
        self.outputs.push_back(Output::CloseSockets(sockets));
    }

    fn send_search_probe(&mut self, now: Now, id: AgentId, socket: SocketId, destination: SocketAddrV4) {
        let Some(peer) = self.peers.get(&id) else { return };
        // Nobody waits for this very answer: whatever comes is a candidate.
        let probe = PathMessage::Probe { token: self.rng.next_u64(), length: MIN_PROBE_LEN };
        let packet = ControlMessage::Path(probe).emit(self.ipv6, peer.ipv6);
        if let Some(datagram) = self.seal_for(now, id, &packet) {
            self.counters.probes.increment();
            self.counters.hard_nat_probes.increment();
            self.transmit_on(&PeerPath { socket, ..PeerPath::direct(destination.into()) }, datagram);
        }
    }
}
