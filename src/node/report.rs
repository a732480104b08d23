//! What users are told: the documents of [`crate::api`] from the state as it is.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Node;
use super::mtu::mtu_in_use;
use super::peer::{Link, Peer, RecordSource};
use super::resolve::Among;
use crate::api::{
    Identity, KnownPeer, PathKind, PathStatus, PeerStatus, Peers, RendezvousStatus, TrustEntry, TrustList, TrustState,
    Verdict, Why, WhyStep,
};
use crate::identity::Ticket;
use crate::path::{HardNatReport, PathLoss, PathState, Plan, Route};
use crate::time::{Now, Time};
use crate::trust::Theirs;
use crate::wire::control::IntroducedStatus;

/// For so long a relayed peer is said to be connecting: after that what could be tried at once was tried.
const CONNECTING_FOR: Duration = Duration::from_secs(10);

impl Node {
    /// Who this agent is.
    #[must_use]
    pub fn identity_document(&self) -> Identity {
        let reference = self.own_transport_addresses().first().map(|address| format!("{}@{address}", self.id));
        Identity {
            id: self.id,
            name: self.name.as_ref().map(ToString::to_string),
            ipv6: self.ipv6,
            ipv4: self.ipv4(),
            did: self.id.to_did_key(),
            reference,
        }
    }

    /// A ticket with what this agent says of itself now; `None` while there is no address it could carry.
    pub fn ticket(&mut self, now: Now) -> Option<Ticket> {
        self.check_record(now);
        let addresses = self.own_transport_addresses();
        Ticket::new(self.record.clone(), addresses).ok().filter(|ticket| !ticket.addresses().is_empty())
    }

    /// Whether this host has an address that others might reach it at.
    #[must_use]
    pub fn has_address(&self) -> bool {
        !self.local_addresses.is_empty()
    }

    /// Every agent there is a relation with, for `status`.
    #[must_use]
    pub fn peer_statuses(&self, now: Now) -> Vec<PeerStatus> {
        let related = self.peers.values().filter(|peer| peer.relation.state(now.unix_s()) != TrustState::None);
        related.map(|peer| peer_status(now, peer, self.mtu)).collect()
    }

    /// Everybody known.
    #[must_use]
    pub fn known_peers(&self, now: Now) -> Peers {
        Peers { peers: self.peers.values().map(|peer| known_peer(now, peer)).collect() }
    }

    /// Relations; with `pending_only` those that wait for this side's decision.
    #[must_use]
    pub fn trust_list(&self, now: Now, pending_only: bool) -> TrustList {
        let wanted = |state| if pending_only { state == TrustState::Pending } else { state != TrustState::None };
        let peers = self.peers.values().filter(|peer| wanted(peer.relation.state(now.unix_s())));
        TrustList { peers: peers.map(|peer| trust_entry(now, peer)).collect() }
    }

    /// How the path to a peer came about, or where it stopped.
    ///
    /// # Errors
    /// When the text names no agent.
    pub fn why(&self, now: Now, text: &str) -> Result<Why, crate::api::Error> {
        let id = self.resolve(text, Among::Related)?;
        let peer = self.peers.get(&id).ok_or_else(|| {
            crate::api::Error::new(
                crate::api::ErrorCode::PeerNotFound,
                "no known agent matches",
                "see `agentnet peers`",
            )
        })?;
        let steps = vec![record_step(now, peer)];
        Ok(self.explain_trust(now, peer, steps))
    }

    fn explain_trust(&self, now: Now, peer: &Peer, mut steps: Vec<WhyStep>) -> Why {
        let state = peer.relation.state(now.unix_s());
        let trusted = state == TrustState::Trusted;
        steps.push(step("trust", trusted, trust_detail(now, peer, state), None));
        if trusted {
            return self.explain_session(now, peer, steps);
        }
        let short = peer.id.short();
        let (code, hint) = match state {
            TrustState::Pending => ("trust_pending", format!("decide: `agentnet trust approve {short}` or `reject`")),
            TrustState::Rejected => {
                ("trust_rejected", format!("to change your mind: `agentnet trust approve {short}`"))
            }
            TrustState::Revoked => ("trust_revoked", format!("to ask again: `agentnet trust request {short}`")),
            TrustState::Requested if peer.relation.theirs == Theirs::Withdrawn => {
                ("consent_withdrawn", format!("talk to its owner, then ask again: `agentnet trust request {short}`"))
            }
            TrustState::Requested => {
                steps.push(introduction_step(self, peer));
                (
                    "trust_requested",
                    "on the other host: `agentnet trust pending`, then `agentnet trust approve`".to_owned(),
                )
            }
            _ if peer.relation.expires().is_some() => {
                ("trust_expired", format!("to ask again: `agentnet trust request {short}`"))
            }
            _ => ("no_trust", format!("to ask: `agentnet trust request {short}`")),
        };
        Why { peer: peer.id, verdict: Verdict::Untrusted, steps, reason_code: code.to_owned(), hint }
    }

    fn explain_session(&self, now: Now, peer: &Peer, mut steps: Vec<WhyStep>) -> Why {
        let answer = |verdict, steps, code: &str, hint: &str| Why {
            peer: peer.id,
            verdict,
            steps,
            reason_code: code.to_owned(),
            hint: hint.to_owned(),
        };
        let Some(link) = &peer.link else {
            steps.push(step("session", false, "its tunnel key is that of another trusted peer".to_owned(), None));
            let hint = "one of the two is not what it says: compare agent ids with their owners";
            return answer(Verdict::Unreachable, steps, "tunnel_key_taken", hint);
        };
        let tunnel = link.shared.tunnel.lock();
        let (live, handshaking) = (tunnel.has_session(now.time), tunnel.is_handshaking());
        drop(tunnel);
        let tried = addresses_text(peer);
        if live {
            let since = link.established.map(|at| self.at_ms(at));
            steps.push(step("session", true, "WireGuard session established".to_owned(), since));
            steps.push(probe_step(link));
            let plan = self.search_plan(link);
            steps.extend(search_step(plan, link.search.report()));
            let path = path_status(now, peer, self.mtu);
            let measured = measured_text(&path, self.mtu);
            let since = link.path_since.map(|at| self.at_ms(at));
            if let Some(loss) = link.paths.last_loss() {
                steps.push(loss_step(self, now, &loss));
            }
            if let Some(via) = path.via {
                let (code, hint) = why_relayed(now, link, plan);
                steps.push(step("path", true, format!("through the relay of {}{measured}", via.short()), since));
                return answer(Verdict::Relayed, steps, code, hint);
            }
            let endpoint = path.endpoint.map_or_else(|| "unknown".to_owned(), |endpoint| endpoint.to_string());
            steps.push(step("path", true, format!("direct, {endpoint}{measured}"), since));
            return answer(Verdict::Direct, steps, "ok", "");
        }
        let servers = self.servers_of(peer);
        if !servers.is_empty() {
            steps.push(servers_step(&servers));
        }
        if peer.addresses.is_empty() && servers.is_empty() {
            steps.push(step("session", false, "no transport address is known".to_owned(), None));
            let hint = "get a new ticket from it: `agentnet ticket` on its host, `agentnet trust request TICKET` here";
            return answer(Verdict::Unreachable, steps, "no_address", hint);
        }
        let (code, detail, hint) = if handshaking {
            let since = link.wanted_since.map_or(0.0, |since| now.time.since(since).as_secs_f64());
            (
                "no_answer_yet",
                format!("no answer for {since:.1} s from {tried}"),
                "is the agent running there, and may UDP reach that port?",
            )
        } else if link.stopped {
            ("peer_stopped", "the peer said goodbye".to_owned(), "start it: `sudo agentnet up` on its host")
        } else if let Some(at) = link.gave_up {
            let ago = now.time.since(at).as_secs_f64();
            (
                "no_answer",
                format!("gave up {ago:.0} s ago; tried {tried}"),
                "is the agent running there, and may UDP reach that port? Any packet to it tries again",
            )
        } else {
            ("idle", "no session, because nothing was sent for a while".to_owned(), "any packet to it opens one")
        };
        steps.push(step("session", false, detail, link.established.map(|at| self.at_ms(at))));
        answer(Verdict::Unreachable, steps, code, hint)
    }

    /// The servers by which a peer says it can be reached, as they stand.
    fn servers_of(&self, peer: &Peer) -> Vec<RendezvousStatus> {
        let listed = &peer.record.record().rendezvous;
        let all = self.rendezvous_statuses();
        all.into_iter().filter(|status| listed.iter().any(|reference| reference.id == status.id)).collect()
    }

    fn at_ms(&self, at: Time) -> u64 {
        u64::try_from(at.since(self.started).as_millis()).unwrap_or(u64::MAX)
    }
}

/// Why data takes a relay, and what can be done about it.
fn why_relayed(now: Now, link: &Link, plan: Plan) -> (&'static str, &'static str) {
    let direct = || link.paths.report().filter(|path| !path.candidate.route.is_relayed());
    if link.connecting_since.is_some_and(|since| now.time.since(since) < CONNECTING_FOR) {
        ("connecting", "direct paths are being tried")
    } else if direct().next().is_none() {
        ("no_candidates", "neither side knows an address of the other: does a firewall keep UDP from the servers?")
    } else if plan == Plan::Hopeless {
        (
            "both_nats_hard",
            "both NATs give every destination another port: use IPv6, or forward the agent's UDP port in one of the routers",
        )
    } else if direct().any(|path| path.state == PathState::Failed) {
        ("direct_path_died", "it is tried again, at every change of the network and from time to time")
    } else {
        (
            "no_direct_path",
            "a NAT or firewall between the two lets nothing through; allow the agent's UDP port on one side",
        )
    }
}

/// What was tried beside plain probing, because of what the NATs are.
fn search_step(plan: Plan, report: HardNatReport) -> Option<WhyStep> {
    let nats = match plan {
        Plan::Unknown | Plan::Plain => return None,
        Plan::Hopeless => {
            let detail =
                "both NATs give every destination another port, and not both count: there is nothing to aim at";
            return Some(step("probe", false, detail.to_owned(), None));
        }
        Plan::Hard { .. } => "this side's NAT gives every destination another port: many sockets",
        Plan::Easy { step: 0 } => "the peer's NAT gives every destination another port: many of its ports",
        Plan::Easy { .. } => "the peer's NAT counts its ports: those that come next, then many",
        Plan::Paired { .. } => "both NATs count their ports: pairs of those that come next",
    };
    let how = match report {
        HardNatReport { attempts: 0, .. } => "not tried yet",
        HardNatReport { is_running: true, .. } => "under way",
        HardNatReport { found: true, .. } => "a way was found",
        _ => "nothing came through",
    };
    let HardNatReport { attempts, probes, .. } = report;
    Some(step("probe", report.found, format!("{nats}; {attempts} attempts, {probes} probes, {how}"), None))
}

/// The round trip of a path, and how long packets may be where that is less than the interface takes.
fn measured_text(path: &PathStatus, interface_mtu: u32) -> String {
    let rtt = path.rtt_ms.map_or_else(String::new, |rtt| format!(", {rtt:.2} ms"));
    if path.mtu < interface_mtu { format!("{rtt}, packets of up to {} bytes", path.mtu) } else { rtt }
}

/// A path that died is named, with the gap it left.
fn loss_step(node: &Node, now: Now, loss: &PathLoss) -> WhyStep {
    let way = route_text(loss.route);
    let ago = now.time.since(loss.since).as_secs();
    let gap = match loss.gap {
        Some(gap) => format!("{:.1} s later another path took over", gap.as_secs_f64()),
        None => "no other path answers yet".to_owned(),
    };
    step(
        "path",
        loss.gap.is_some(),
        format!("{way} stopped answering {ago} s ago; {gap}"),
        Some(node.at_ms(loss.since)),
    )
}

fn route_text(route: Route) -> String {
    match route {
        Route::Direct(address) | Route::Extra(_, address) => address.to_string(),
        Route::Relayed(server) => format!("relay {}", server.short()),
    }
}

fn servers_step(servers: &[RendezvousStatus]) -> WhyStep {
    let ok = servers.iter().any(|server| server.state == "connected");
    let texts = servers.iter().map(|server| format!("{} {}", server.address, server.state));
    step("introduction", ok, format!("its rendezvous servers: {}", texts.collect::<Vec<_>>().join(", ")), None)
}

fn step(step: &str, ok: bool, detail: String, at_ms: Option<u64>) -> WhyStep {
    WhyStep { step: step.to_owned(), ok, detail, at_ms }
}

fn record_step(now: Now, peer: &Peer) -> WhyStep {
    let source = source_word(peer.record_source);
    let expired = peer.record.is_expired(now.unix_s());
    let detail = if expired { format!("from {source}, expired") } else { format!("from {source}") };
    step("record", true, detail, None)
}

fn introduction_step(node: &Node, peer: &Peer) -> WhyStep {
    let sent = peer.asking.attempts;
    let servers = node.servers_of(peer);
    let through = servers.iter().map(|server| server.address.clone());
    let to: Vec<String> = peer.addresses.iter().map(ToString::to_string).chain(through).collect();
    let passed_on = peer.asking.passed_on.map_or("", |status| match status {
        IntroducedStatus::Delivered => "; a server passed it on",
        IntroducedStatus::Stored => "; a server keeps it until the agent comes back",
        IntroducedStatus::Unknown => "; its server has not seen it for long",
        IntroducedStatus::Full => "; its server has no room for it",
    });
    let detail = if to.is_empty() {
        "no transport address is known".to_owned()
    } else {
        format!("sent {sent} times to {}{passed_on}; nobody confirms a request but by approving it", to.join(", "))
    };
    step("introduction", false, detail, peer.asking.last.map(|at| node.at_ms(at)))
}

fn trust_detail(now: Now, peer: &Peer, state: TrustState) -> String {
    let since = now.unix_s().saturating_sub(peer.relation.since);
    match state {
        TrustState::Trusted => match peer.relation.expires() {
            Some(at) => format!("mutual, for {} s more", at.saturating_sub(now.unix_s())),
            None => "mutual".to_owned(),
        },
        TrustState::Requested if peer.relation.theirs == Theirs::Withdrawn => {
            format!("the other side took its consent back {since} s ago")
        }
        TrustState::Requested => format!("asked {since} s ago, not answered yet"),
        TrustState::Pending => format!("it asked {since} s ago, and waits for a decision here"),
        TrustState::Rejected => "its request was rejected here".to_owned(),
        TrustState::Revoked => "revoked here".to_owned(),
        TrustState::None if peer.relation.expires().is_some() => "ran out".to_owned(),
        TrustState::None => "neither side asked".to_owned(),
    }
}

fn probe_step(link: &Link) -> WhyStep {
    let (mut answering, mut silent) = (Vec::new(), Vec::new());
    for path in link.paths.report() {
        let way = route_text(path.candidate.route);
        match (path.state, path.rtt) {
            (PathState::Working, Some(rtt)) => answering.push(format!("{way} in {:.2} ms", rtt.as_secs_f64() * 1000.0)),
            _ => silent.push(way),
        }
    }
    let ok = !answering.is_empty();
    let mut detail = if ok { answering.join(", ") } else { "nothing answered yet".to_owned() };
    if !silent.is_empty() {
        detail.push_str("; silent: ");
        detail.push_str(&silent.join(", "));
    }
    step("probe", ok, detail, None)
}

fn addresses_text(peer: &Peer) -> String {
    peer.addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn source_word(source: RecordSource) -> &'static str {
    match source {
        RecordSource::Ticket => "ticket",
        RecordSource::Introduction => "introduction",
        RecordSource::Session => "session",
    }
}

/// The path to a peer as it is now.
pub(super) fn path_status(now: Now, peer: &Peer, mtu: u32) -> PathStatus {
    let Some((link, route)) = peer.link.as_ref().and_then(|link| Some((link, live_route(now, link)?))) else {
        return PathStatus::default();
    };
    let mut status = PathStatus {
        rtt_ms: link.paths.primary_rtt().map(|rtt| rtt.as_secs_f64() * 1000.0).or(link.rtt_ms),
        since_s: link.path_since.map(|at| now.time.since(at).as_secs_f64()),
        mtu: mtu_in_use(link, mtu),
        ..PathStatus::default()
    };
    status.set_route(route);
    status
}

impl PathStatus {
    /// Which way it is.
    pub(super) fn set_route(&mut self, route: Route) {
        (self.kind, self.endpoint, self.via) = match route {
            Route::Direct(endpoint) | Route::Extra(_, endpoint) => (PathKind::Direct, Some(endpoint), None),
            Route::Relayed(server) => (PathKind::Relayed, None, Some(server)),
        };
    }
}

/// The path data takes, as far as there is a session to take it.
pub(super) fn live_route(now: Now, link: &Link) -> Option<Route> {
    link.paths.primary().filter(|_| link.shared.tunnel.lock().has_session(now.time))
}

fn peer_status(now: Now, peer: &Peer, mtu: u32) -> PeerStatus {
    let link = peer.link.as_ref();
    let handshake = link.and_then(|link| link.shared.tunnel.lock().session_since());
    let count = |counter: fn(&Link) -> u64| link.map_or(0, counter);
    PeerStatus {
        id: peer.id,
        name: peer.name(),
        ipv6: peer.ipv6,
        ipv4: peer.alias,
        trust: peer.relation.state(now.unix_s()),
        path: path_status(now, peer, mtu),
        last_handshake_s: handshake.map(|at| now.time.since(at).as_secs_f64()),
        tx_bytes: count(|link| link.shared.counters.tx_bytes.load(Ordering::Relaxed)),
        rx_bytes: count(|link| link.shared.counters.rx_bytes.load(Ordering::Relaxed)),
        time_to_direct_ms: link.and_then(|link| link.time_to_direct_ms),
    }
}

fn known_peer(now: Now, peer: &Peer) -> KnownPeer {
    KnownPeer {
        id: peer.id,
        name: peer.name(),
        ipv6: peer.ipv6,
        ipv4: peer.alias,
        trust: peer.relation.state(now.unix_s()),
        source: source_word(peer.record_source).to_owned(),
        record_age_s: now.unix_s().saturating_sub(peer.record_received),
        record_expires_s: peer.record.record().expires.saturating_sub(now.unix_s()),
        addresses: peer.addresses.clone(),
    }
}

/// One relation.
pub(super) fn trust_entry(now: Now, peer: &Peer) -> TrustEntry {
    let request = peer.relation.request_received();
    TrustEntry {
        id: peer.id,
        name: peer.name(),
        ipv6: peer.ipv6,
        ipv4: peer.alias,
        trust: peer.relation.state(now.unix_s()),
        reason: request.map(|request| request.reason.clone()).filter(|reason| !reason.is_empty()),
        ports: peer.relation.grant.ports.clone(),
        expires_s: match peer.relation.expires() {
            Some(at) => Some(at.saturating_sub(now.unix_s())),
            // What it will be once both agree.
            None => peer.relation.grant.ttl_s,
        },
        since_s: now.unix_s().saturating_sub(peer.relation.since),
        from: request.and_then(|request| request.from),
    }
}
