use super::*;
use crate::identity::record::tests::{key, record};
use crate::identity::test_rng::TestRng;
use crate::identity::{TunnelPublic, TunnelSecret};
use crate::tunnel::{CONTROL_OUTPUT_LEN, Initiation, Tunnel, sealed_len};
use crate::wire::control::{ControlMessage, ControlPacket, IntroducedStatus, RelayRefusal, RendezvousMessage};
use crate::wire::{
    BindingRequest, BindingResponse, Change as StunChange, RELAY_PREFIX_LEN, RecordAnswer, RecordRequest, RelayChannel,
};

mod crowding;
mod forged_sources;
mod hostile;
mod limits;
mod service;

const SERVER: u8 = 200;
const PUBLIC: &str = "203.0.113.1:41641";

/// A server, its clock and what it sent.
struct Bench {
    server: Server,
    counters: Arc<ServerCounters>,
    now: Now,
    changes: Vec<Change>,
}

/// An agent that talks to it.
struct Agent {
    number: u8,
    secret: TunnelSecret,
    sequence: u64,
    tunnel: Tunnel,
    address: SocketAddr,
}

/// What arrived somewhere.
type Sent = (SocketAddr, Local, Vec<u8>);

fn primary() -> Local {
    Local { port: Port::Primary, ip: "203.0.113.1".parse().ok() }
}

fn address(host: u8) -> SocketAddr {
    // A network each, so that the limits per network are met only where they are meant.
    SocketAddr::from(([192, 0, host, 1], 1000 + u16::from(host)))
}

/// An address in the network of `address(host)`.
fn neighbour(host: u8, number: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, host, number], 1000))
}

fn tunnel_secret(number: u8) -> TunnelSecret {
    TunnelSecret::from_bytes([number; 32])
}

fn ipv6(number: u8) -> Ipv6Addr {
    overlay_ipv6(&key(number).id())
}

fn config(limits: Limits) -> ServerConfig {
    ServerConfig {
        identity: key(SERVER),
        tunnel_secret: tunnel_secret(SERVER),
        public: vec![PUBLIC.parse().unwrap()],
        alternate_port: true,
        relay: true,
        relay_rate: None,
        limits,
        restored: Restored::default(),
        counters: Arc::default(),
        rng: Box::new(TestRng::new(7)),
    }
}

impl Bench {
    fn new() -> Self {
        Self::with(config(Limits::default()))
    }

    fn with(config: ServerConfig) -> Self {
        let now = Now { time: Time::from_origin(Duration::from_secs(1000)), unix_ms: 1_800_000_000_000 };
        let counters = Arc::clone(&config.counters);
        let mut bench = Self { server: Server::new(now, config).unwrap(), counters, now, changes: Vec::new() };
        assert_eq!(bench.drain(), []);
        bench
    }

    fn pass_time(&mut self, seconds: u64) {
        self.now.time = self.now.time + Duration::from_secs(seconds);
        self.now.unix_ms += 1000 * seconds;
    }

    fn timeout(&mut self) -> Vec<Sent> {
        self.server.handle_timeout(self.now);
        self.drain()
    }

    /// Gives the server a datagram and returns what it sends.
    fn put(&mut self, source: SocketAddr, datagram: &[u8]) -> Vec<Sent> {
        self.put_at(source, primary(), datagram)
    }

    fn put_at(&mut self, source: SocketAddr, local: Local, datagram: &[u8]) -> Vec<Sent> {
        self.server.handle_datagram(self.now, source, local, datagram);
        self.drain()
    }

    fn drain(&mut self) -> Vec<Sent> {
        let mut sent = Vec::new();
        while let Some(output) = self.server.poll_output() {
            match output {
                Output::Transmit { destination, from, datagram } => sent.push((destination, from, datagram)),
                Output::Store(change) => self.changes.push(change),
            }
        }
        sent
    }

    /// What a restart would find.
    fn restored(&self) -> Restored {
        let mut restored = Restored::default();
        for change in &self.changes {
            match change {
                Change::Sequence(sequence) => restored.sequence = *sequence,
                Change::Record(id, record) => {
                    restored.records.retain(|other| other.id() != *id);
                    restored.records.extend(record.clone());
                }
                Change::Introduction(number, stored) => {
                    restored.introductions.retain(|other| other.number != *number);
                    restored.introductions.extend(stored.as_deref().cloned());
                }
            }
        }
        restored
    }

    /// Everything a stranger must not be able to move.
    fn tables(&self) -> (usize, usize, usize) {
        (self.server.clients.len(), self.server.channels.len(), self.changes.len())
    }
}

impl Agent {
    fn new(number: u8) -> Self {
        Self::with_key(number, tunnel_secret(number), 1)
    }

    fn with_key(number: u8, secret: TunnelSecret, sequence: u64) -> Self {
        let tunnel = new_tunnel(&secret, number);
        Self { number, secret, sequence, tunnel, address: address(number) }
    }

    fn registered(number: u8, bench: &mut Bench) -> Self {
        Self::registered_at(number, address(number), bench)
    }

    fn registered_at(number: u8, address: SocketAddr, bench: &mut Bench) -> Self {
        let mut agent = Self { address, ..Self::new(number) };
        agent.connect(bench);
        let answers = agent.register(bench);
        assert!(matches!(answers[0], RendezvousMessage::Registered { .. }), "{answers:?}");
        agent
    }

    fn id(&self) -> AgentId {
        key(self.number).id()
    }

    fn record(&self) -> SignedRecord {
        let tunnel_key = self.secret.public();
        let own = AgentRecord { tunnel_key, sequence: self.sequence, ..record(self.number) };
        SignedRecord::sign(&key(self.number), own).unwrap()
    }

    fn initiation(&mut self, bench: &Bench) -> Initiation {
        self.tunnel = new_tunnel(&self.secret, self.number);
        self.tunnel.initiate(bench.now.time).unwrap()
    }

    /// A handshake, up to the keepalive that confirms it.
    fn connect(&mut self, bench: &mut Bench) {
        let initiation = self.initiation(bench);
        let sent = bench.put(self.address, &initiation);
        assert_eq!(sent.len(), 1, "no response");
        let keepalive = self.complete(bench, &sent[0].2);
        assert_eq!(bench.put(self.address, &keepalive), []);
    }

    fn complete(&mut self, bench: &Bench, response: &[u8]) -> Vec<u8> {
        let mut keepalive = vec![0; CONTROL_OUTPUT_LEN];
        let len = self.tunnel.complete(bench.now.time, response, &mut keepalive).unwrap();
        keepalive.truncate(len);
        keepalive
    }

    fn seal(&mut self, bench: &Bench, packet: &[u8]) -> Vec<u8> {
        let mut datagram = vec![0; sealed_len(packet.len())];
        let len = self.tunnel.seal(bench.now.time, packet, &mut datagram).unwrap();
        datagram.truncate(len);
        datagram
    }

    fn sealed_message(&mut self, bench: &Bench, message: RendezvousMessage) -> Vec<u8> {
        let packet = ControlMessage::Rendezvous(message).emit(ipv6(self.number), ipv6(SERVER));
        self.seal(bench, &packet)
    }

    fn open(&mut self, bench: &Bench, datagram: &[u8]) -> ControlMessage {
        let mut packet = vec![0; datagram.len()];
        let opened = self.tunnel.open(bench.now.time, datagram, &mut packet).unwrap();
        let packet = ControlPacket::parse(&packet[..opened.len]).unwrap();
        assert_eq!((packet.source, packet.destination), (ipv6(SERVER), ipv6(self.number)));
        packet.message
    }

    fn open_all(&mut self, bench: &Bench, sent: &[Sent]) -> Vec<RendezvousMessage> {
        let own: Vec<&Sent> = sent.iter().filter(|(to, ..)| *to == self.address).collect();
        let messages = own.iter().map(|(_, _, datagram)| self.open(bench, datagram));
        messages
            .filter_map(|message| match message {
                ControlMessage::Rendezvous(message) => Some(message),
                ControlMessage::Clock { .. } => None,
                other => panic!("{other:?}"),
            })
            .collect()
    }

    /// Answers the Pings among what was sent; returns the rest, and what the answers brought.
    fn prove(&mut self, bench: &mut Bench, sent: Vec<Sent>) -> Vec<RendezvousMessage> {
        let mut said = Vec::new();
        let mut brought = Vec::new();
        let own = self.address;
        for (_, _, datagram) in sent.into_iter().filter(|(to, ..)| *to == own) {
            match self.open(bench, &datagram) {
                ControlMessage::Rendezvous(message) => said.push(message),
                ControlMessage::Ping { token } => brought.extend(self.pong(bench, token)),
                ControlMessage::Clock { .. } => {}
                other => panic!("{other:?}"),
            }
        }
        said.extend(self.open_all(bench, &brought));
        said
    }

    /// Says that this token was received.
    fn pong(&mut self, bench: &mut Bench, token: u64) -> Vec<Sent> {
        let pong = self.seal(bench, &ControlMessage::Pong { token }.emit(ipv6(self.number), ipv6(SERVER)));
        bench.put(self.address, &pong)
    }

    /// Says something; returns what was answered to it.
    fn ask(&mut self, bench: &mut Bench, message: RendezvousMessage) -> Vec<RendezvousMessage> {
        let datagram = self.sealed_message(bench, message);
        let sent = bench.put(self.address, &datagram);
        self.prove(bench, sent)
    }

    fn register(&mut self, bench: &mut Bench) -> Vec<RendezvousMessage> {
        let record = self.record();
        self.ask(bench, RendezvousMessage::Register { record })
    }

    fn introduce(&mut self, bench: &mut Bench, recipient: u8, content: u8) -> (Vec<RendezvousMessage>, Vec<Sent>) {
        let message = RendezvousMessage::Introduce { recipient: key(recipient).id(), sealed: sealed(content) };
        let datagram = self.sealed_message(bench, message);
        let sent = bench.put(self.address, &datagram);
        (self.open_all(bench, &sent), sent)
    }

    /// Introduces itself so many times at once; returns how often that was sent on or kept.
    fn introduce_often(&mut self, bench: &mut Bench, recipient: u8, count: usize) -> usize {
        let taken = (0..count).filter(|_| match self.introduce(bench, recipient, 1).0[..] {
            [RendezvousMessage::Introduced { status, .. }] => status != IntroducedStatus::Full,
            ref other => panic!("{other:?}"),
        });
        taken.count()
    }

    fn open_channel(&mut self, bench: &mut Bench, peer: u8, number: u64) -> Result<(), RelayRefusal> {
        let (peer, channel) = (key(peer).id(), RelayChannel::new(number));
        let answers = self.ask(bench, RendezvousMessage::RelayOpen { peer, channel, first: Vec::new() });
        match answers.as_slice() {
            [RendezvousMessage::RelayOpened { outcome, .. }] => *outcome,
            other => panic!("{other:?}"),
        }
    }
}

fn new_tunnel(secret: &TunnelSecret, seed: u8) -> Tunnel {
    let index = crate::tunnel::IndexTable::new().allocate(seed, &mut TestRng::new(seed.into()));
    let server: TunnelPublic = tunnel_secret(SERVER).public();
    Tunnel::new(secret, &server, index, Time::ZERO, None)
}

/// Something with the first bytes of an introduction.
fn sealed(content: u8) -> Vec<u8> {
    let mut sealed = crate::wire::frame_header(crate::wire::FRAME_INTRODUCTION).to_vec();
    sealed.extend_from_slice(&[content; 80]);
    sealed
}

/// A relay frame with a payload of this length that looks like WireGuard data.
fn relay_frame(number: u64, payload_len: usize) -> Vec<u8> {
    let mut frame = vec![0; RELAY_PREFIX_LEN + payload_len];
    RelayChannel::new(number).emit(frame.first_chunk_mut().unwrap());
    frame[RELAY_PREFIX_LEN] = 4;
    frame
}
