//! Many agents that come, go and move, behind all kinds of NATs, with a few servers that know nothing of each other:
//! whoever is asked is reached, and nothing grows.
//!
//! Full size: `scripts/swarm`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use agentnet::api::{TrustRequestBody, TrustState};
use agentnet::forwarding::WAITING_PACKETS;
use agentnet::node::limits::MAX_ADDRESSES;
use agentnet::node::{Command, NodeTableSizes};
use agentnet::rendezvous::ServerTableSizes;
use agentnet_sim::net::{LinkConfig, Loss, NatKind, Replay, SimRng, Site, SiteOptions};
use agentnet_sim::{HostOptions, ServerOptions, World, packet};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

/// What happens to an agent in a minute, with this probability: it is killed, it moves, or its NAT reboots.
const CHURN_PER_MINUTE: f64 = 0.1;
/// An agent is gone for so long at most.
const LONGEST_ABSENCE: Duration = MINUTE;
/// Only who has run for so long is asked.
const SETTLED_AFTER: Duration = Duration::from_secs(10);
/// Nor whose NAT forgot it lately: nobody tells it, and it finds out with its next registration, which comes every 20 s.
const NAT_NOTICED_AFTER: Duration = Duration::from_secs(25);
/// Programs ask again after this, as TCP does.
const ASK_AGAIN: Duration = SECOND;
/// Whoever asks is to get through within this.
const BOUND: Duration = Duration::from_secs(10);
/// Pairs are asked this often.
const ASK_INTERVAL: Duration = Duration::from_secs(3);
/// Paths kept to one peer.
const MAX_PATHS: usize = 32;
/// Everybody registers and everybody who trusts connects within this.
const BEGINNING: Duration = Duration::from_secs(30);

/// How large a swarm is.
#[derive(Clone, Copy)]
struct Scale {
    agents: usize,
    servers: usize,
    /// Pairs that trust each other, for every agent.
    pairs_per_agent: usize,
    duration: Duration,
    /// Between two looks at how large tables are.
    period: Duration,
    /// Pairs asked at a time.
    asks: usize,
}

#[test]
fn forty_agents_are_reached_for_ten_minutes() {
    let (agents, duration, period) = (40, MINUTE * 10, MINUTE * 2);
    Swarm::run(Scale { agents, servers: 2, pairs_per_agent: 2, duration, period, asks: 2 });
}

#[test]
#[ignore = "two minutes in release: scripts/swarm"]
fn two_hundred_agents_are_reached_for_an_hour() {
    let (agents, duration, period) = (200, MINUTE * 60, MINUTE * 10);
    Swarm::run(Scale { agents, servers: 3, pairs_per_agent: 2, duration, period, asks: 5 });
}

/// The agents and what is known about them from outside.
struct Swarm {
    scale: Scale,
    world: World,
    rng: SimRng,
    sites: Vec<Site>,
    /// The site of each agent.
    places: Vec<usize>,
    /// Since when each agent runs; none while it does not.
    runs_since: Vec<Option<Duration>>,
    /// What happened to each agent last, and when.
    disturbed: Vec<Option<(Duration, Churn)>>,
    /// Who is started again, and when.
    returns: Vec<(Duration, usize)>,
    /// Who trusts each other.
    pairs: Vec<(usize, usize)>,
    asks: Vec<Ask>,
    outcome: Outcome,
}

/// A program that sends a packet until it arrives.
struct Ask {
    from: usize,
    to: usize,
    packet: Vec<u8>,
    since: Duration,
    sent: Duration,
}

/// What came of it.
#[derive(Default)]
struct Outcome {
    /// How long each took.
    took: Vec<Duration>,
    /// Somebody was killed, or the asked one's NAT rebooted, before the packet arrived.
    void: usize,
    /// Who did not get through, and how.
    failures: Vec<String>,
    events: BTreeMap<Churn, usize>,
    sizes: Vec<Sizes>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Churn {
    Killed,
    Moved,
    NatRebooted,
}

impl Swarm {
    fn run(scale: Scale) {
        let replay = Replay::seed_or(1);
        println!("seed {}", replay.seed());
        let mut swarm = Self::new(scale, replay.rng());
        swarm.trust_each_other();
        let end = swarm.world.elapsed() + scale.duration;
        let mut next_look = swarm.world.elapsed() + scale.period;
        let mut next_asks = swarm.world.elapsed();
        while swarm.world.elapsed() < end {
            swarm.churn();
            if swarm.world.elapsed() >= next_asks {
                next_asks += ASK_INTERVAL;
                swarm.begin_asks();
            }
            swarm.ask_again();
            swarm.listen(SECOND);
            if swarm.world.elapsed() >= next_look {
                next_look += scale.period;
                let sizes = swarm.sizes();
                swarm.outcome.sizes.push(sizes);
            }
        }
        println!("{}", swarm.outcome);
        swarm.outcome.check(&scale);
    }

    fn new(scale: Scale, mut rng: SimRng) -> Self {
        let mut world = World::with_rng(rng.fork());
        let public =
            world.net.add_site(&SiteOptions { has_v6: true, ..SiteOptions::new(NatKind::None, access(MS * 5)) });
        for _ in 0..scale.servers {
            world.add_server(&public, ServerOptions::default());
        }
        // Some homes are empty, some have several agents.
        let sites: Vec<Site> = (0..scale.agents)
            .map(|_| {
                let kind = NatKind::ALL[rng.below(NatKind::ALL.len() as u64) as usize];
                let delay = MS * 5 + rng.duration(MS * 45);
                let has_v6 = rng.chance(0.3);
                world.net.add_site(&SiteOptions { has_v6, ..SiteOptions::new(kind, access(delay)) })
            })
            .collect();
        let mut swarm = Self {
            scale,
            world,
            rng,
            sites,
            places: Vec::new(),
            runs_since: Vec::new(),
            disturbed: Vec::new(),
            returns: Vec::new(),
            pairs: Vec::new(),
            asks: Vec::new(),
            outcome: Outcome::default(),
        };
        (0..scale.agents).for_each(|_| swarm.add_agent());
        swarm
    }

    /// An agent somewhere, with one server or two.
    fn add_agent(&mut self) {
        let place = self.rng.below(self.sites.len() as u64) as usize;
        let first = self.rng.below(self.scale.servers as u64) as usize;
        let second = (first + 1) % self.scale.servers;
        let chosen = if self.rng.chance(0.5) { vec![first] } else { vec![first, second] };
        let rendezvous = chosen.into_iter().map(|server| self.world.servers[server].reference()).collect();
        self.world.add_host_at(&self.sites[place], HostOptions { rendezvous, ..HostOptions::default() });
        self.places.push(place);
        self.runs_since.push(Some(self.world.elapsed()));
        self.disturbed.push(None);
    }

    /// A random graph, of requests and approvals that pass through the servers.
    fn trust_each_other(&mut self) {
        let mut pairs = BTreeSet::new();
        while pairs.len() < self.scale.agents * self.scale.pairs_per_agent {
            let [a, b] = [(); 2].map(|()| self.rng.below(self.scale.agents as u64) as usize);
            if a != b {
                pairs.insert((a.min(b), a.max(b)));
            }
        }
        self.pairs = pairs.into_iter().collect();
        self.world.advance(SECOND * 5);
        for (a, b) in self.pairs.clone() {
            let now = self.world.now();
            let peer = self.world.hosts[b].node.ticket(now).unwrap().to_string();
            let body = TrustRequestBody { peer, reason: None, ports: None, ttl_s: None };
            self.world.command(a, Command::TrustRequest(body)).unwrap();
            // As people do: not all at once.
            self.world.advance(MS * 100);
        }
        self.world.advance(BEGINNING);
        for (a, b) in self.pairs.clone() {
            let id = self.world.hosts[a].node.id();
            assert_eq!(self.world.trust_state(b, a), TrustState::Pending, "{a} asked {b}");
            self.world.command(b, Command::TrustApprove(id.to_string())).unwrap();
        }
        self.world.advance(BEGINNING);
        for (a, b) in &self.pairs {
            assert_eq!(self.world.trust_state(*a, *b), TrustState::Trusted, "{a} and {b}");
        }
    }

    /// What a second brings.
    fn churn(&mut self) {
        let now = self.world.elapsed();
        let (due, later) = self.returns.iter().partition(|(at, _)| *at <= now);
        self.returns = later;
        let due: Vec<(Duration, usize)> = due;
        for (_, agent) in due {
            self.world.restart(agent);
            self.runs_since[agent] = Some(self.world.elapsed());
        }
        for agent in 0..self.scale.agents {
            if self.rng.chance(CHURN_PER_MINUTE / 60.0) && self.runs_since[agent].is_some() {
                self.disturb(agent);
            }
        }
    }

    fn disturb(&mut self, agent: usize) {
        let boxes = self.sites[self.places[agent]].boxes.clone();
        let churn = match self.rng.below(3) {
            0 => Churn::Killed,
            1 if !boxes.is_empty() => Churn::NatRebooted,
            _ => Churn::Moved,
        };
        match churn {
            Churn::Killed => {
                self.world.kill(agent);
                self.runs_since[agent] = None;
                let back = self.world.elapsed() + self.rng.duration(LONGEST_ABSENCE);
                self.returns.push((back, agent));
            }
            Churn::Moved => {
                self.places[agent] = self.rng.below(self.sites.len() as u64) as usize;
                self.world.move_host(agent, &self.sites[self.places[agent]]);
            }
            Churn::NatRebooted => {
                let nat = boxes[self.rng.below(boxes.len() as u64) as usize];
                self.world.net.reboot(nat, None);
            }
        }
        let place = self.places[agent];
        for other in 0..self.scale.agents {
            let is_shared = churn == Churn::NatRebooted && self.places[other] == place;
            if other == agent || is_shared {
                self.disturbed[other] = Some((self.world.elapsed(), churn));
            }
        }
        let before = std::mem::take(&mut self.asks);
        let (void, kept) = before.into_iter().partition(|ask| {
            let is_gone = |agent: usize| self.runs_since[agent].is_none();
            is_gone(ask.from) || is_gone(ask.to) || self.is_forgotten(ask.to)
        });
        self.asks = kept;
        let void: Vec<Ask> = void;
        self.outcome.void += void.len();
        *self.outcome.events.entry(churn).or_default() += 1;
    }

    fn begin_asks(&mut self) {
        let now = self.world.elapsed();
        for _ in 0..self.scale.asks {
            let (a, b) = self.pairs[self.rng.below(self.pairs.len() as u64) as usize];
            let (from, to) = if self.rng.chance(0.5) { (a, b) } else { (b, a) };
            if self.is_settled(from) && self.is_settled(to) && !self.is_forgotten(to) {
                let [source, destination] = [from, to].map(|host| IpAddr::V6(self.world.hosts[host].node.ipv6()));
                let packet = packet::udp(source, destination, 1000, 2000, &self.rng.bytes::<16>());
                self.world.send(from, &packet);
                self.asks.push(Ask { from, to, packet, since: now, sent: now });
            }
        }
    }

    fn is_settled(&self, agent: usize) -> bool {
        self.runs_since[agent].is_some_and(|at| self.world.elapsed() - at >= SETTLED_AFTER)
    }

    /// Whether its NAT lets nothing in, and it cannot know.
    fn is_forgotten(&self, agent: usize) -> bool {
        let lately = |at: Duration| self.world.elapsed() - at < NAT_NOTICED_AFTER;
        self.disturbed[agent].is_some_and(|(at, churn)| churn == Churn::NatRebooted && lately(at))
    }

    fn ask_again(&mut self) {
        let now = self.world.elapsed();
        for ask in &mut self.asks {
            if now >= ask.sent + ASK_AGAIN {
                ask.sent = now;
                self.world.send(ask.from, &ask.packet);
            }
        }
    }

    /// Lets time pass and notes which packets came out.
    fn listen(&mut self, duration: Duration) {
        let Self { world, asks, outcome, .. } = self;
        let _ = world.advance_until(duration, |world| {
            let now = world.elapsed();
            asks.retain(|ask| {
                let arrived = world.hosts[ask.to].delivered().contains(&ask.packet);
                if arrived {
                    outcome.took.push(now - ask.since);
                }
                !arrived
            });
            false
        });
        for host in &mut world.hosts {
            host.take_delivered();
        }
        self.give_up();
    }

    fn give_up(&mut self) {
        let (now, at) = (self.world.now(), self.world.elapsed());
        let (failed, waiting) = std::mem::take(&mut self.asks).into_iter().partition(|ask| at - ask.since >= BOUND);
        let failed: Vec<Ask> = failed;
        self.asks = waiting;
        for Ask { from, to, since, .. } in failed {
            let id = self.world.hosts[to].node.id();
            let status = self.world.hosts[from].node.peer_statuses(now).into_iter().find(|peer| peer.id == id);
            let last = [from, to].map(|agent| self.disturbed[agent]);
            self.outcome.failures.push(format!("{from} asked {to} at {since:?}, after {last:?}: {status:?}"));
        }
    }

    fn sizes(&self) -> Sizes {
        let running = self.world.hosts.iter().filter(|host| host.is_alive());
        let nodes: Vec<NodeTableSizes> = running.map(|host| host.node.table_sizes()).collect();
        let servers = self.world.servers.iter().map(|host| host.server.table_sizes()).collect();
        Sizes { pairs: self.pairs.len(), nodes, servers }
    }
}

/// A link with faults.
fn access(delay: Duration) -> LinkConfig {
    LinkConfig { loss: Loss::Independent(0.005), jitter: MS * 3, ..LinkConfig::with_delay(delay) }
}

/// How large all tables were at one time.
struct Sizes {
    /// Pairs that trust each other.
    pairs: usize,
    nodes: Vec<NodeTableSizes>,
    servers: Vec<ServerTableSizes>,
}

impl Sizes {
    /// What must hold at any time.
    fn check(&self) {
        for node in &self.nodes {
            assert!(node.links == node.peers && node.indices == node.links + node.servers, "{node:?}");
            assert!(node.addresses <= MAX_ADDRESSES * node.peers && node.most_paths <= MAX_PATHS, "{node:?}");
            assert!(node.relays <= self.servers.len() * node.peers && node.servers <= self.servers.len(), "{node:?}");
            // Of each peer: session, paths, candidates, hello. Of each server one, and of the agent three.
            assert!(node.timers <= 4 * node.peers + node.servers + 3, "{node:?}");
            assert!(node.waiting_packets <= WAITING_PACKETS * node.peers && node.callers == 0, "{node:?}");
        }
        for server in &self.servers {
            // Two in each direction.
            assert!(server.channels <= 4 * self.pairs && server.introductions == 0, "{server:?}");
            assert!(server.clients <= server.records && server.records <= 2 * self.nodes.len() + 10, "{server:?}");
        }
    }

    /// The mean over agents, or over servers, by name.
    fn means(&self) -> [(&'static str, f64); 14] {
        let node = |of: fn(&NodeTableSizes) -> usize| mean(self.nodes.iter().map(of));
        let server = |of: fn(&ServerTableSizes) -> usize| mean(self.servers.iter().map(of));
        [
            ("peers", node(|sizes| sizes.peers)),
            ("links", node(|sizes| sizes.links)),
            ("servers", node(|sizes| sizes.servers)),
            ("indices", node(|sizes| sizes.indices)),
            ("timers", node(|sizes| sizes.timers)),
            ("addresses", node(|sizes| sizes.addresses)),
            ("paths", node(|sizes| sizes.paths)),
            ("relays", node(|sizes| sizes.relays)),
            ("waiting packets", node(|sizes| sizes.waiting_packets)),
            ("clients", server(|sizes| sizes.clients)),
            ("records", server(|sizes| sizes.records)),
            ("introductions", server(|sizes| sizes.introductions)),
            ("channels", server(|sizes| sizes.channels)),
            ("networks", node(|sizes| sizes.networks)),
        ]
    }
}

fn mean(values: impl ExactSizeIterator<Item = usize>) -> f64 {
    let count = values.len().max(1);
    values.sum::<usize>() as f64 / count as f64
}

impl Outcome {
    fn check(&self, scale: &Scale) {
        assert!(self.failures.is_empty(), "{} did not get through:\n{}", self.failures.len(), self.failures.join("\n"));
        let asked = (scale.duration.as_secs() / ASK_INTERVAL.as_secs()) as usize * scale.asks;
        assert!(self.took.len() > asked / 2, "only {} of {asked} were asked at all", self.took.len());
        for sizes in &self.sizes {
            sizes.check();
        }
        let [first, .., last] = self.sizes.as_slice() else { panic!("tables are looked at twice at least") };
        for ((table, before), (_, after)) in first.means().into_iter().zip(last.means()) {
            // What is remembered of networks and places fills up to its limit, and stays there.
            let is_memory = ["addresses", "paths"].contains(&table);
            assert!(is_memory || after <= before * 1.5 + 1.0, "{table} grew from {before} to {after}");
        }
        assert!(self.percentile(95) <= SECOND, "one in twenty takes {:?} or longer", self.percentile(95));
    }

    fn percentile(&self, percent: usize) -> Duration {
        let mut sorted = self.took.clone();
        sorted.sort();
        sorted.get((sorted.len() * percent / 100).min(sorted.len().saturating_sub(1))).copied().unwrap_or_default()
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:?}; {} got through, {} void, {} failed",
            self.events,
            self.took.len(),
            self.void,
            self.failures.len()
        )?;
        for percent in [50, 90, 95, 99, 100] {
            writeln!(f, "{percent:>4} % within {:?}", self.percentile(percent))?;
        }
        let columns: Vec<_> = self.sizes.iter().map(Sizes::means).collect();
        for row in 0..columns.first().map_or(0, |first| first.len()) {
            write!(f, "{:>16}", columns[0][row].0)?;
            columns.iter().try_for_each(|column| write!(f, "{:>9.2}", column[row].1))?;
            writeln!(f)?;
        }
        Ok(())
    }
}
