//! Two agents that trust each other, and their servers: where most scenarios begin.
//!
//! ```text
//!   a ── site ── core ── site ── b
//!                 └── site ── servers
//! ```

use std::collections::BTreeSet;
use std::time::Duration;

use agentnet::api::{PathKind, PeerStatus, Why};

use crate::net::{LinkConfig, NatKind, SimRng, Site, SiteOptions};
use crate::{HostOptions, ServerOptions, World, packet};

/// Each way of everybody to the core: a round trip between any two sites is four of it.
pub const ACCESS: Duration = Duration::from_millis(10);
/// A round trip between any two sites.
pub const ROUND_TRIP: Duration = Duration::from_millis(40);
/// How often [`Pair::talk`] sends a packet each way.
pub const PING_INTERVAL: Duration = Duration::from_millis(10);
/// How long registering takes at most.
const REGISTER_LIMIT: Duration = Duration::from_secs(5);
/// Longer than a session lives without traffic (180 s).
const SILENCE: Duration = Duration::from_secs(200);
/// Pairs differ by up to this much in where between two registrations they are.
const SILENCE_SPREAD: Duration = Duration::from_secs(20);
/// How long [`Pair::talking`] talks at least.
const TALK: Duration = Duration::from_secs(5);
/// Pairs differ by up to this much.
const TALK_SPREAD: Duration = Duration::from_secs(2);
/// Ports of the packets of [`Pair::talk`].
const PING_PORTS: (u16, u16) = (1001, 2001);

/// Two agents, their servers and what they said to each other.
pub struct Pair {
    /// Everything.
    pub world: World,
    /// The two, by number.
    pub agents: [usize; 2],
    /// Where they are, or were first.
    pub sites: [Site; 2],
    /// Of the packets sent so far, by sender.
    pings: [Pings; 2],
    rng: SimRng,
}

/// Numbered packets in one direction.
#[derive(Clone, Debug, Default)]
struct Pings {
    sent: u64,
    /// Which came out at the other side, and when.
    arrived: Vec<(Duration, u64)>,
}

/// A site of this kind, 10 ms from the core.
pub fn home(kind: NatKind) -> SiteOptions {
    SiteOptions::new(kind, LinkConfig::with_delay(ACCESS))
}

/// The same with a little jitter, so that runs differ.
pub fn jittery_home(kind: NatKind) -> SiteOptions {
    SiteOptions::new(kind, LinkConfig { jitter: ACCESS / 5, ..LinkConfig::with_delay(ACCESS) })
}

impl Pair {
    /// Two agents at these sites, registered at each of so many servers, that trust each other.
    ///
    /// # Panics
    /// When they cannot register, or do not come to trust each other.
    pub fn new(rng: SimRng, sites: [SiteOptions; 2], servers: usize) -> Self {
        let mut pair = Self::strangers(rng, sites, servers);
        let [a, b] = pair.agents;
        pair.world.trust(a, b);
        pair
    }

    fn strangers(mut rng: SimRng, sites: [SiteOptions; 2], servers: usize) -> Self {
        let mut world = World::with_rng(rng.fork());
        let has_v6 = sites.iter().any(|site| site.has_v6);
        let public = world.net.add_site(&SiteOptions { has_v6, ..home(NatKind::None) });
        for _ in 0..servers {
            world.add_server(&public, ServerOptions::default());
        }
        let sites = sites.map(|options| world.net.add_site(&options));
        let agents = sites.each_ref().map(|site| add_agent(&mut world, site));
        let mut pair = Self { world, agents, sites, pings: Default::default(), rng };
        pair.world.advance_until(REGISTER_LIMIT, |world| agents.iter().all(|agent| is_registered(world, *agent)));
        assert!(agents.iter().all(|agent| is_registered(&pair.world, *agent)), "both are registered everywhere");
        // What the STUN servers have to say is known by then.
        pair.world.advance(REGISTER_LIMIT);
        pair
    }

    /// Two agents at such homes that have talked for some seconds and have a direct path, at a random moment.
    ///
    /// # Panics
    /// When they have none.
    pub fn talking(rng: SimRng, sites: [SiteOptions; 2], servers: usize) -> Self {
        let mut pair = Self::new(rng, sites, servers);
        let longer = pair.rng.duration(TALK_SPREAD);
        pair.talk(TALK + longer);
        assert!(pair.is_direct(), "{:?}", pair.why());
        pair
    }

    /// Nobody says anything for so long that there is no session any more. Both stay registered.
    ///
    /// # Panics
    /// When there still is one.
    pub fn fall_silent(&mut self) {
        let silence = SILENCE + self.rng.duration(SILENCE_SPREAD);
        self.world.advance(silence);
        let end = self.world.elapsed() + SILENCE;
        // A session that is renewed at the last moment lives on as long again.
        while self.kinds() != [PathKind::None; 2] {
            assert!(self.world.elapsed() < end, "sessions end in silence");
            self.world.advance_to_next(end);
        }
    }

    /// What each says of the other.
    pub fn statuses(&self) -> [PeerStatus; 2] {
        let [a, b] = self.agents;
        [(a, b), (b, a)].map(|(agent, other)| {
            let id = self.world.hosts[other].node.id();
            let statuses = self.world.hosts[agent].node.peer_statuses(self.world.now());
            statuses.into_iter().find(|peer| peer.id == id).expect("they know each other")
        })
    }

    /// What kind each one's primary path is.
    pub fn kinds(&self) -> [PathKind; 2] {
        self.statuses().map(|status| status.path.kind)
    }

    /// Whether both have a direct path.
    pub fn is_direct(&self) -> bool {
        self.kinds() == [PathKind::Direct; 2]
    }

    /// Why the first reaches the second as it does.
    pub fn why(&self) -> Why {
        let [a, b] = self.agents.map(|agent| &self.world.hosts[agent].node);
        a.why(self.world.now(), &b.id().to_string()).expect("it is known")
    }

    /// Probes sent by both since they exist.
    pub fn probes(&self) -> u64 {
        self.agents.iter().map(|agent| self.world.hosts[*agent].counters.probes.get()).sum()
    }

    /// A packet each way every [`PING_INTERVAL`] for so long.
    pub fn talk(&mut self, duration: Duration) {
        let end = self.world.elapsed() + duration;
        while self.world.elapsed() < end {
            for side in 0..2 {
                self.ping(side);
            }
            self.listen(PING_INTERVAL);
        }
    }

    /// A program of one side (0 or 1) sends the next packet.
    pub fn ping(&mut self, side: usize) {
        let (from, to) = (self.agents[side], self.agents[1 - side]);
        let [source, destination] = [from, to].map(|agent| self.world.hosts[agent].node.ipv6().into());
        let number = self.pings[side].sent;
        self.pings[side].sent += 1;
        let packet = packet::udp(source, destination, PING_PORTS.0, PING_PORTS.1, &number.to_be_bytes());
        self.world.send(from, &packet);
    }

    /// Lets time pass, and notes what arrives.
    pub fn listen(&mut self, duration: Duration) {
        let Self { world, agents, pings, .. } = self;
        world.advance_until(duration, |world| {
            for side in 0..2 {
                let arrived = world.hosts[agents[1 - side]].take_delivered();
                let numbers = arrived.iter().filter_map(|packet| number_of(packet));
                pings[side].arrived.extend(numbers.map(|number| (world.elapsed(), number)));
            }
            false
        });
    }

    /// The longest time since then in which nothing arrived at one of the two. Without trouble it is
    /// [`PING_INTERVAL`].
    pub fn longest_gap(&self, since: Duration) -> Duration {
        let gap = |pings: &Pings| {
            let times = pings.arrived.iter().map(|(at, _)| *at).filter(|at| *at > since);
            let times: Vec<_> = [since].into_iter().chain(times).chain([self.world.elapsed()]).collect();
            times.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
        };
        self.pings.iter().map(gap).max().unwrap_or_default()
    }

    /// How many packets did not come out, and how many came out more than once.
    pub fn lost_and_repeated(&self) -> (u64, u64) {
        let of = |pings: &Pings| {
            let different: BTreeSet<u64> = pings.arrived.iter().map(|(_, number)| *number).collect();
            let (all, different) = (pings.arrived.len() as u64, different.len() as u64);
            (pings.sent - different, all - different)
        };
        let [a, b] = self.pings.each_ref().map(of);
        (a.0 + b.0, a.1 + b.1)
    }
}

/// An agent at a site that uses all servers there are.
pub fn add_agent(world: &mut World, site: &Site) -> usize {
    let rendezvous = world.servers.iter().map(|server| server.reference()).collect();
    world.add_host_at(site, HostOptions { rendezvous, ..HostOptions::default() })
}

/// Whether an agent is connected to each of its servers.
pub fn is_registered(world: &World, agent: usize) -> bool {
    world.hosts[agent].node.rendezvous_statuses().iter().all(|status| status.state == "connected")
}

fn number_of(packet: &[u8]) -> Option<u64> {
    const UDP: usize = 40;
    let port = packet.get(UDP + 2..UDP + 4)?;
    let number = packet.get(UDP + 8..)?.try_into().ok()?;
    (port == PING_PORTS.1.to_be_bytes()).then(|| u64::from_be_bytes(number))
}
