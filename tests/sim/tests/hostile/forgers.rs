//! Clients of a rendezvous server that put a victim's address on what they send.

use std::net::{IpAddr, SocketAddr};

use agentnet::identity::{AgentId, AgentRecord, IdentityKey, SignedRecord, TunnelSecret, VersionRange, overlay_ipv6};
use agentnet::rendezvous::{Local, Port};
use agentnet::tunnel::{CONTROL_OUTPUT_LEN, IndexTable, Tunnel, sealed_len};
use agentnet::wire::control::{ControlMessage, ControlPacket, RendezvousMessage};
use agentnet::wire::{RELAY_PREFIX_LEN, RelayChannel};
use agentnet_sim::net::{HostId, SimRng};
use agentnet_sim::{PORT, ServerOptions, World};

use super::{MS, SECOND};

/// All that one victim may be sent for one forged packet: four Pings.
const MOST_BYTES: usize = 4 * 84;

/// A client of the first server, made by hand.
struct Client {
    key: IdentityKey,
    secret: TunnelSecret,
    tunnel: Tunnel,
    at: HostId,
}

impl Client {
    fn new(world: &mut World, seed: u64) -> Self {
        let mut rng = SimRng::from_seed(seed);
        let (key, secret) = (IdentityKey::from_seed(rng.bytes()), TunnelSecret::from_bytes(rng.bytes()));
        let index = IndexTable::new().allocate((), &mut rng);
        let server = world.servers[0].server.record().record().tunnel_key;
        let tunnel = Tunnel::new(&secret, &server, index, world.now().time, None);
        Self { key, secret, tunnel, at: world.add_listener() }
    }

    fn id(&self) -> AgentId {
        self.key.id()
    }

    fn connects(&mut self, world: &mut World) {
        let initiation = self.tunnel.initiate(world.now().time).unwrap();
        world.outsider_sends(self.at, server_address(world), &initiation);
        world.advance(MS);
        let response = world.take_received(self.at).remove(0).bytes;
        self.tunnel.complete(world.now().time, &response, &mut [0; CONTROL_OUTPUT_LEN]).unwrap();
    }

    fn seal(&mut self, world: &World, message: RendezvousMessage) -> Vec<u8> {
        let to = overlay_ipv6(&world.servers[0].server.id());
        self.seal_packet(world, &ControlMessage::Rendezvous(message).emit(overlay_ipv6(&self.id()), to))
    }

    fn seal_packet(&mut self, world: &World, packet: &[u8]) -> Vec<u8> {
        let mut datagram = vec![0; sealed_len(packet.len())];
        let len = self.tunnel.seal(world.now().time, packet, &mut datagram).unwrap();
        datagram.truncate(len);
        datagram
    }

    fn registration(&mut self, world: &World) -> RendezvousMessage {
        let record = AgentRecord {
            id: self.id(),
            sequence: 1,
            expires: world.now().unix_s() + 3600,
            tunnel_key: self.secret.public(),
            rendezvous: Vec::new(),
            name: None,
            capabilities: Vec::new(),
            versions: VersionRange { min: 1, max: 1 },
        };
        RendezvousMessage::Register { record: SignedRecord::sign(&self.key, record).unwrap() }
    }

    /// Says something and does what an honest client does about the answers; returns them.
    fn says(&mut self, world: &mut World, message: RendezvousMessage) -> Vec<ControlMessage> {
        let datagram = self.seal(world, message);
        world.outsider_sends(self.at, server_address(world), &datagram);
        world.advance(MS);
        let mut heard = Vec::new();
        for delivery in world.take_received(self.at) {
            let mut packet = vec![0; delivery.bytes.len()];
            let Ok(opened) = self.tunnel.open(world.now().time, &delivery.bytes, &mut packet) else { continue };
            let packet = ControlPacket::parse(&packet[..opened.len]).unwrap();
            if let ControlMessage::Ping { token } = packet.message {
                let pong = ControlMessage::Pong { token }.emit(packet.destination, packet.source);
                let pong = self.seal_packet(world, &pong);
                world.outsider_sends(self.at, server_address(world), &pong);
            }
            heard.push(packet.message);
        }
        world.advance(MS);
        heard
    }

    fn registers(&mut self, world: &mut World) {
        let registration = self.registration(world);
        let heard = self.says(world, registration);
        let is_registered = |message: &ControlMessage| {
            matches!(message, ControlMessage::Rendezvous(RendezvousMessage::Registered { .. }))
        };
        assert!(heard.iter().any(is_registered), "{heard:?}");
    }

    fn opens(&mut self, world: &mut World, peer: AgentId, channel: RelayChannel) -> bool {
        let heard = self.says(world, RendezvousMessage::RelayOpen { peer, channel, first: Vec::new() });
        let is_open = |message: &ControlMessage| {
            matches!(message, ControlMessage::Rendezvous(RendezvousMessage::RelayOpened { outcome: Ok(()), .. }))
        };
        heard.iter().any(is_open)
    }
}

fn server_address(world: &World) -> SocketAddr {
    let ip = world.net.addresses(world.servers[0].at()).into_iter().find(IpAddr::is_ipv4).unwrap();
    SocketAddr::new(ip, PORT)
}

fn address_of(world: &World, host: HostId) -> SocketAddr {
    SocketAddr::new(world.net.addresses(host).into_iter().find(IpAddr::is_ipv4).unwrap(), PORT)
}

/// What a client whose network lets forged sources pass brings to the server.
fn arrives_from(world: &mut World, source: SocketAddr, datagram: &[u8]) {
    let local = Local { port: Port::Primary, ip: Some(server_address(world).ip()) };
    let now = world.now();
    world.servers[0].server.handle_datagram(now, source, local, datagram);
    world.settle();
}

fn frame(channel: RelayChannel) -> Vec<u8> {
    let mut frame = vec![0; RELAY_PREFIX_LEN + 1200];
    channel.emit(frame.first_chunk_mut().unwrap());
    frame[RELAY_PREFIX_LEN] = 4;
    frame
}

/// A server, an accomplice that is registered, a forger that has a session, and a victim.
fn cast() -> (World, Client, Client, HostId) {
    let mut world = World::new(0);
    let public = world.open_site(false);
    world.add_server(&public, ServerOptions::default());
    let [mut accomplice, mut forger] = [1, 2].map(|seed| Client::new(&mut world, seed));
    accomplice.connects(&mut world);
    accomplice.registers(&mut world);
    forger.connects(&mut world);
    let victim = world.add_listener();
    (world, accomplice, forger, victim)
}

/// The accomplice, who can forge nothing, sends a megabyte to the forger. Returns how many bytes reached him and, of no
/// frame, the victim.
fn pours(world: &mut World, accomplice: &Client, channel: RelayChannel, forger: HostId, victim: HostId) -> [usize; 2] {
    let frame = frame(channel);
    for _ in 0..100 {
        for _ in 0..10 {
            world.outsider_sends(accomplice.at, server_address(world), &frame);
        }
        world.advance(MS * 100);
    }
    [forger, victim].map(|at| {
        let deliveries = world.take_received(at);
        assert!(
            at == forger || deliveries.iter().all(|delivery| delivery.bytes != frame),
            "a frame reached the victim"
        );
        deliveries.iter().map(|delivery| delivery.bytes.len()).sum()
    })
}

#[test]
fn no_channel_leads_to_a_forged_source() {
    let (mut world, mut accomplice, mut forger, victim) = cast();
    let channel = RelayChannel::new(7);
    forger.registers(&mut world);
    assert!(accomplice.opens(&mut world, forger.id(), channel));
    let [to_forger, to_victim] = pours(&mut world, &accomplice, channel, forger.at, victim);
    assert!(to_forger > 1_000_000 && to_victim == 0, "{to_forger} and {to_victim} bytes");
    let keepalive = forger.seal_packet(&world, &[]);
    let at = address_of(&world, victim);
    arrives_from(&mut world, at, &keepalive);
    let [_, to_victim] = pours(&mut world, &accomplice, channel, forger.at, victim);
    assert!((1..=MOST_BYTES).contains(&to_victim), "{to_victim} bytes");
    // A packet from where he is, and the channel leads there again.
    world.advance(SECOND);
    forger.registers(&mut world);
    let [to_forger, to_victim] = pours(&mut world, &accomplice, channel, forger.at, victim);
    assert!(to_forger > 1_000_000 && to_victim == 0, "{to_forger} and {to_victim} bytes");
}

#[test]
fn nor_to_one_that_was_forged_from_the_beginning() {
    let (mut world, mut accomplice, mut forger, victim) = cast();
    let at = address_of(&world, victim);
    let registration = forger.registration(&world);
    let register = forger.seal(&world, registration);
    arrives_from(&mut world, at, &register);
    let channel = RelayChannel::new(7);
    assert!(!accomplice.opens(&mut world, forger.id(), channel));
    // The forger can still open one, with no way back to him.
    let open = RendezvousMessage::RelayOpen { peer: accomplice.id(), channel, first: Vec::new() };
    let open = forger.seal(&world, open);
    arrives_from(&mut world, at, &open);
    let answers: usize = register.len() + open.len();
    let [to_forger, to_victim] = pours(&mut world, &accomplice, channel, forger.at, victim);
    assert_eq!(to_forger, 0);
    // What it asked is answered, with no more than it sent.
    assert!(to_victim <= MOST_BYTES + answers, "{to_victim} bytes");
    assert!(world.servers[0].counters.drop_relay_unproved.get() > 0);
}
