//! Somebody who speaks the protocol and means no good: an agent or a server of which a test moves every limb.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use agentnet::api::{TrustRequestBody, TrustState};
use agentnet::identity::{
    AgentId, AgentRecord, IdentityKey, RendezvousRef, SignedRecord, Ticket, TunnelPublic, TunnelSecret, VersionRange,
    overlay_ipv6,
};
use agentnet::node::Command;
use agentnet::tunnel::{CONTROL_OUTPUT_LEN, IndexTable, Initiation, Tunnel, claimed_key, sealed_len};
use agentnet::wire::control::{ControlMessage, ControlPacket, Hello, RendezvousMessage};
use agentnet::wire::{DatagramKind, Introduction, RecordRequest, TrustRequest, classify};
use agentnet_sim::net::{HostId, SimRng};
use agentnet_sim::{PORT, World};

/// How long its records are valid, seconds.
const RECORD_LIFE_S: u64 = 80 * 24 * 3600;

pub(crate) struct Puppet {
    pub(crate) rng: SimRng,
    key: IdentityKey,
    secret: TunnelSecret,
    at: HostId,
    address: SocketAddr,
    sequence: u64,
    indices: IndexTable<()>,
    sessions: Vec<Session>,
    /// Bytes that reached it.
    pub(crate) received: usize,
    /// Bytes it sent.
    pub(crate) sent: usize,
}

/// With one victim.
struct Session {
    key: TunnelPublic,
    id: AgentId,
    tunnel: Tunnel,
    endpoint: SocketAddr,
}

/// What was said to a puppet, and by whom.
pub(crate) struct Heard {
    pub(crate) from: AgentId,
    pub(crate) message: ControlMessage,
}

impl Puppet {
    pub(crate) fn new(world: &mut World, seed: u64) -> Self {
        let at = world.add_listener();
        let ip = world.net.addresses(at).into_iter().find(IpAddr::is_ipv4).unwrap();
        Self { at, address: SocketAddr::new(ip, PORT), ..Self::unborn(SimRng::from_seed(seed)) }
    }

    /// One that is nowhere: good for making messages.
    pub(crate) fn unborn(mut rng: SimRng) -> Self {
        Self {
            key: IdentityKey::from_seed(rng.bytes()),
            secret: TunnelSecret::from_bytes(rng.bytes()),
            rng,
            at: HostId(usize::MAX),
            address: SocketAddr::from(([0, 0, 0, 0], 0)),
            sequence: 1,
            indices: IndexTable::new(),
            sessions: Vec::new(),
            received: 0,
            sent: 0,
        }
    }

    pub(crate) fn id(&self) -> AgentId {
        self.key.id()
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn reference(&self) -> RendezvousRef {
        RendezvousRef { id: self.id(), address: self.address.to_string().parse().unwrap() }
    }

    /// A record of its own, newer than the one before.
    pub(crate) fn record(&mut self, world: &World) -> SignedRecord {
        self.sequence += 1;
        let record = AgentRecord {
            id: self.id(),
            sequence: self.sequence,
            expires: world.now().unix_s() + RECORD_LIFE_S,
            tunnel_key: self.secret.public(),
            rendezvous: Vec::new(),
            name: None,
            capabilities: Vec::new(),
            versions: VersionRange { min: 1, max: 1 },
        };
        SignedRecord::sign(&self.key, record).unwrap()
    }

    /// An introduction to an agent, sealed.
    pub(crate) fn introduction(&mut self, world: &World, victim: usize, candidates: Vec<SocketAddr>) -> Vec<u8> {
        let node = &world.hosts[victim].node;
        let introduction = Introduction {
            recipient: node.id(),
            record: self.record(world),
            candidates,
            nonce: self.rng.bytes(),
            time_ms: world.now().unix_ms,
            reason: "hello".into(),
            request: TrustRequest::default(),
            initiation: None,
        };
        introduction.seal(&self.key, &node.tunnel_key(), &mut self.rng).unwrap()
    }

    pub(crate) fn sends(&mut self, world: &mut World, to: SocketAddr, datagram: &[u8]) {
        self.sent += datagram.len();
        world.outsider_sends(self.at, to, datagram);
    }

    /// Says something inside a session, if there is one.
    pub(crate) fn says(&mut self, world: &mut World, victim: AgentId, message: &ControlMessage) {
        let packet = message.emit(overlay_ipv6(&self.id()), overlay_ipv6(&victim));
        let now = world.now().time;
        let Some(session) = self.sessions.iter_mut().find(|session| session.id == victim) else { return };
        let mut datagram = vec![0; sealed_len(packet.len())];
        let Ok(len) = session.tunnel.seal(now, &packet, &mut datagram) else { return };
        let endpoint = session.endpoint;
        self.sends(world, endpoint, &datagram[..len]);
    }

    /// Whether it has a session with this agent that carries something.
    pub(crate) fn has_session(&self, world: &World, victim: AgentId) -> bool {
        let mut sessions = self.sessions.iter();
        sessions.any(|session| session.id == victim && session.tunnel.has_session(world.now().time))
    }

    /// Where a victim's session comes from.
    pub(crate) fn endpoint(&self, victim: AgentId) -> Option<SocketAddr> {
        self.sessions.iter().find(|session| session.id == victim).map(|session| session.endpoint)
    }

    /// Takes what came without a word.
    pub(crate) fn swallows(&mut self, world: &mut World) {
        self.received += world.take_received(self.at).iter().map(|delivery| delivery.bytes.len()).sum::<usize>();
    }

    /// Does what everybody does: answers record requests and handshakes. Returns what was said to it.
    pub(crate) fn attends(&mut self, world: &mut World) -> Vec<Heard> {
        let mut heard = Vec::new();
        for delivery in world.take_received(self.at) {
            self.received += delivery.bytes.len();
            match classify(&delivery.bytes) {
                DatagramKind::RecordRequest => {
                    let Ok(request) = RecordRequest::parse(&delivery.bytes) else { continue };
                    let answer = request.answer(&self.record(world));
                    self.sends(world, delivery.source, &answer);
                }
                DatagramKind::WireguardInitiation => self.answer_handshake(world, delivery.source, &delivery.bytes),
                DatagramKind::WireguardData { .. } => {
                    heard.extend(self.open(world, delivery.source, &delivery.bytes));
                }
                _ => {}
            }
        }
        heard
    }

    fn answer_handshake(&mut self, world: &mut World, source: SocketAddr, datagram: &[u8]) {
        let now = world.now().time;
        let Ok(initiation) = Initiation::try_from(datagram) else { return };
        let Some(key) = claimed_key(&self.secret, &initiation) else { return };
        let Some(victim) = world.hosts.iter().find(|host| host.node.tunnel_key() == key) else { return };
        let id = victim.node.id();
        if !self.sessions.iter().any(|session| session.key == key) {
            let index = self.indices.allocate((), &mut self.rng);
            let tunnel = Tunnel::new(&self.secret, &key, index, now, None);
            self.sessions.push(Session { key, id, tunnel, endpoint: source });
        }
        let Some(session) = self.sessions.iter_mut().find(|session| session.key == key) else { return };
        let mut response = vec![0; CONTROL_OUTPUT_LEN];
        let _ = session.tunnel.refresh(now, &mut response);
        let Ok(responded) = session.tunnel.respond(now, &initiation, &mut response) else { return };
        session.endpoint = source;
        self.sends(world, source, &response[..responded.len]);
    }

    fn open(&mut self, world: &World, source: SocketAddr, datagram: &[u8]) -> Option<Heard> {
        let now = world.now().time;
        let mut packet = vec![0; datagram.len()];
        for session in &mut self.sessions {
            let Ok(opened) = session.tunnel.open(now, datagram, &mut packet) else { continue };
            session.endpoint = source;
            let message = ControlPacket::parse(&packet[..opened.len]).ok()?.message;
            return Some(Heard { from: session.id, message });
        }
        None
    }

    /// Wins the trust of an agent: asks, is approved, and says hello.
    pub(crate) fn wins_trust(&mut self, world: &mut World, victim: usize) {
        let (id, to) = (world.hosts[victim].node.id(), world.address(victim));
        let ticket = Ticket::new(self.record(world), vec![self.address]).unwrap().to_string();
        let body = TrustRequestBody { peer: ticket, reason: None, ports: None, ttl_s: None };
        world.command(victim, Command::TrustRequest(body)).unwrap();
        let introduction = self.introduction(world, victim, vec![self.address]);
        self.sends(world, to, &introduction);
        for _ in 0..50 {
            world.advance(Duration::from_millis(20));
            let heard = self.attends(world);
            if heard.iter().any(|heard| matches!(heard.message, ControlMessage::Hello(_))) {
                let hello = self.hello(world);
                self.says(world, id, &hello);
            }
        }
        let own = self.id();
        let list = world.hosts[victim].node.trust_list(world.now(), false);
        let trust = list.peers.iter().find(|peer| peer.id == own).map(|peer| peer.trust);
        assert_eq!(trust, Some(TrustState::Trusted));
        assert!(self.has_session(world, id));
    }

    /// A hello with a record that nobody saw before.
    pub(crate) fn hello(&mut self, world: &World) -> ControlMessage {
        ControlMessage::Hello(Hello {
            record: self.record(world),
            consent: true,
            alias_self: None,
            alias_peer: None,
            versions: VersionRange { min: 1, max: 1 },
        })
    }

    /// Answers registrations as a server does, with an address it makes up.
    pub(crate) fn registers(&mut self, world: &mut World, heard: &[Heard], observed: SocketAddr) {
        for Heard { from, message } in heard {
            let answer = match message {
                ControlMessage::Rendezvous(RendezvousMessage::Register { .. }) => {
                    RendezvousMessage::Registered { observed, expires_s: 60, relay: true }
                }
                ControlMessage::Rendezvous(RendezvousMessage::RelayOpen { peer, channel, .. }) => {
                    RendezvousMessage::RelayOpened { peer: *peer, channel: *channel, outcome: Ok(()) }
                }
                _ => continue,
            };
            self.says(world, *from, &ControlMessage::Rendezvous(answer));
        }
    }
}
