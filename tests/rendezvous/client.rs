//! A client of the server: a socket, a session, and nothing else.

use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use agentnet::identity::{AgentId, AgentRecord, IdentityKey, SignedRecord, TunnelSecret, VersionRange, overlay_ipv6};
use agentnet::time::Time;
use agentnet::tunnel::{CONTROL_OUTPUT_LEN, IndexTable, Tunnel, sealed_len};
use agentnet::wire::GoodbyeReason;
use agentnet::wire::control::{ControlMessage, ControlPacket, RendezvousMessage};
use rand_core::UnwrapErr;

use crate::process::Server;

const PATIENCE: Duration = Duration::from_secs(20);
/// In 2096: records are valid for as long as the test can possibly run.
const EXPIRES: u64 = 4_000_000_000;

pub(crate) struct Client {
    key: IdentityKey,
    secret: TunnelSecret,
    socket: UdpSocket,
    began: Instant,
    session: Option<Session>,
}

struct Session {
    tunnel: Tunnel,
    server: AgentId,
    address: SocketAddr,
}

impl Client {
    /// A new agent with a session.
    pub(crate) fn connected(server: &Server) -> Self {
        let mut rng = UnwrapErr(getrandom::SysRng);
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut client = Self {
            key: IdentityKey::generate(&mut rng),
            secret: TunnelSecret::generate(&mut rng),
            socket,
            began: Instant::now(),
            session: None,
        };
        client.connect(server);
        client
    }

    /// A new agent that is registered.
    pub(crate) fn registered(server: &Server) -> Self {
        let mut client = Self::connected(server);
        assert!(matches!(client.register(), RendezvousMessage::Registered { .. }));
        client
    }

    /// Learns the server's record and makes a session with it.
    pub(crate) fn connect(&mut self, server: &Server) {
        let record = server.record();
        let index = IndexTable::new().allocate((), &mut UnwrapErr(getrandom::SysRng));
        let mut tunnel = Tunnel::new(&self.secret, &record.record().tunnel_key, index, self.now(), None);
        let initiation = tunnel.initiate(self.now()).unwrap();
        self.socket.send_to(&initiation, server.address).unwrap();
        let response = self.receive();
        let mut keepalive = [0; CONTROL_OUTPUT_LEN];
        let len = tunnel.complete(self.now(), &response, &mut keepalive).unwrap();
        self.socket.send_to(&keepalive[..len], server.address).unwrap();
        self.session = Some(Session { tunnel, server: record.id(), address: server.address });
    }

    /// Says goodbye; the agent itself lives on.
    pub(crate) fn leave(mut self) -> Self {
        self.say_control(&ControlMessage::Goodbye { reason: GoodbyeReason::Shutdown });
        self.session = None;
        self
    }

    pub(crate) fn id(&self) -> AgentId {
        self.key.id()
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.socket.local_addr().unwrap()
    }

    pub(crate) fn record(&self) -> SignedRecord {
        let record = AgentRecord {
            id: self.id(),
            sequence: 1,
            expires: EXPIRES,
            tunnel_key: self.secret.public(),
            rendezvous: Vec::new(),
            name: None,
            capabilities: Vec::new(),
            versions: VersionRange { min: 1, max: 1 },
        };
        SignedRecord::sign(&self.key, record).unwrap()
    }

    pub(crate) fn register(&mut self) -> RendezvousMessage {
        let record = self.record();
        self.ask(RendezvousMessage::Register { record })
    }

    /// Says something and returns what comes back.
    pub(crate) fn ask(&mut self, message: RendezvousMessage) -> RendezvousMessage {
        self.say(message);
        match self.hear() {
            ControlMessage::Rendezvous(answer) => answer,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn say(&mut self, message: RendezvousMessage) {
        self.say_control(&ControlMessage::Rendezvous(message));
    }

    /// The next message of the server. One that asks whether the client is here is answered.
    pub(crate) fn hear(&mut self) -> ControlMessage {
        loop {
            match self.hear_any() {
                ControlMessage::Ping { token } => self.say_control(&ControlMessage::Pong { token }),
                ControlMessage::Clock { .. } => {}
                message => return message,
            }
        }
    }

    fn hear_any(&mut self) -> ControlMessage {
        let datagram = self.receive();
        let now = self.now();
        let own = overlay_ipv6(&self.id());
        let session = self.session.as_mut().unwrap();
        let mut packet = vec![0; datagram.len()];
        let opened = session.tunnel.open(now, &datagram, &mut packet).unwrap();
        let packet = ControlPacket::parse(&packet[..opened.len]).unwrap();
        assert_eq!((packet.source, packet.destination), (overlay_ipv6(&session.server), own));
        packet.message
    }

    /// Sends a datagram as it is.
    pub(crate) fn send(&self, datagram: &[u8]) {
        self.socket.send_to(datagram, self.session.as_ref().unwrap().address).unwrap();
    }

    /// The next datagram as it is.
    pub(crate) fn receive(&self) -> Vec<u8> {
        let mut buffer = vec![0; 2048];
        let len = self.socket.recv(&mut buffer).expect("nothing came");
        buffer.truncate(len);
        buffer
    }

    fn say_control(&mut self, message: &ControlMessage) {
        let now = self.now();
        let own = overlay_ipv6(&self.id());
        let session = self.session.as_mut().unwrap();
        let packet = message.emit(own, overlay_ipv6(&session.server));
        let mut datagram = vec![0; sealed_len(packet.len())];
        let len = session.tunnel.seal(now, &packet, &mut datagram).unwrap();
        self.socket.send_to(&datagram[..len], session.address).unwrap();
    }

    fn now(&self) -> Time {
        Time::from_origin(self.began.elapsed())
    }
}
