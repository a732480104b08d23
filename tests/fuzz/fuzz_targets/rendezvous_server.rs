//! A rendezvous server: whatever strangers send, and whatever a client says inside its session, nothing panics and the
//! limits hold. The input is a list of acts: a byte that names one, a length, and so many bytes.
#![no_main]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use agentnet::identity::{AgentRecord, IdentityKey, SignedRecord, TunnelSecret, VersionRange, overlay_ipv6};
use agentnet::rendezvous::{Limits, Local, Output, Port, Restored, Server, ServerConfig};
use agentnet::time::{Now, Time};
use agentnet::tunnel::{CONTROL_OUTPUT_LEN, IndexTable, Tunnel, sealed_len};
use agentnet::wire::control::{ControlMessage, RendezvousMessage};
use libfuzzer_sys::fuzz_target;
use rand_core::{TryCryptoRng, TryRng};

const LIMITS: Limits = Limits { clients: 3, records: 4, introductions: 2, channels: 2, channels_per_client: 1 };
const EXPIRES: u64 = 2_000_000_000;

/// The same numbers every time.
struct Counting(u32);

impl TryRng for Counting {
    type Error = std::convert::Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Self::Error> {
        self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        Ok(self.0)
    }

    fn try_next_u64(&mut self) -> Result<u64, Self::Error> {
        Ok(u64::from(self.try_next_u32()?))
    }

    fn try_fill_bytes(&mut self, target: &mut [u8]) -> Result<(), Self::Error> {
        for byte in target {
            *byte = self.try_next_u32()? as u8;
        }
        Ok(())
    }
}

impl TryCryptoRng for Counting {}

fuzz_target!(|input: &[u8]| {
    let mut now = Now { time: Time::ZERO, unix_ms: 1_800_000_000_000 };
    let mut server = server(now);
    let server_key = TunnelSecret::from_bytes([9; 32]).public();
    let server_ipv6 = overlay_ipv6(&server.id());
    let own_ipv6 = overlay_ipv6(&IdentityKey::from_seed([1; 32]).id());
    let index = IndexTable::new().allocate((), &mut Counting(5));
    let mut tunnel = Tunnel::new(&TunnelSecret::from_bytes([1; 32]), &server_key, index, now.time, None);
    connect(&mut server, &mut tunnel, now);
    let mut say = |server: &mut Server, now: Now, packet: &[u8]| {
        let mut datagram = vec![0; sealed_len(packet.len())];
        if let Ok(len) = tunnel.seal(now.time, packet, &mut datagram) {
            put(server, now, 1, Port::Primary, &datagram[..len]);
        }
    };
    let register = ControlMessage::Rendezvous(RendezvousMessage::Register { record: record() });
    say(&mut server, now, &register.emit(own_ipv6, server_ipv6));
    let mut rest = input;
    while let [act, length, after @ ..] = rest {
        let (bytes, after) = after.split_at(after.len().min(usize::from(*length)));
        rest = after;
        match act % 5 {
            0 => put(&mut server, now, act / 5 % 4, Port::Primary, bytes),
            1 => put(&mut server, now, act / 5 % 4, Port::Alternate, bytes),
            2 => say(&mut server, now, bytes),
            3 => {
                // A control packet with any type and body.
                let mut packet = ControlMessage::Ping { token: 0 }.emit(own_ipv6, server_ipv6);
                packet.truncate(41);
                packet.extend_from_slice(bytes);
                packet[4..6].copy_from_slice(&u16::try_from(1 + bytes.len()).unwrap_or(0).to_be_bytes());
                say(&mut server, now, &packet);
            }
            _ => {
                let seconds = u64::from(*length);
                now.time = now.time + Duration::from_secs(seconds);
                now.unix_ms += seconds * 1000;
                server.handle_timeout(now);
                drain(&mut server);
                assert!(server.poll_timeout() > now.time);
            }
        }
    }
});

fn server(now: Now) -> Server {
    let config = ServerConfig {
        identity: IdentityKey::from_seed([9; 32]),
        tunnel_secret: TunnelSecret::from_bytes([9; 32]),
        public: vec![SocketAddr::from(([203, 0, 113, 1], 41641))],
        alternate_port: true,
        relay: true,
        relay_rate: Some(100_000),
        limits: LIMITS,
        restored: Restored::default(),
        counters: Arc::default(),
        rng: Box::new(Counting(1)),
    };
    Server::new(now, config).expect("the record fits")
}

fn record() -> SignedRecord {
    let key = IdentityKey::from_seed([1; 32]);
    let record = AgentRecord {
        id: key.id(),
        sequence: 1,
        expires: EXPIRES,
        tunnel_key: TunnelSecret::from_bytes([1; 32]).public(),
        rendezvous: Vec::new(),
        name: None,
        capabilities: Vec::new(),
        versions: VersionRange { min: 1, max: 1 },
    };
    SignedRecord::sign(&key, record).expect("the record fits")
}

fn connect(server: &mut Server, tunnel: &mut Tunnel, now: Now) {
    let initiation = tunnel.initiate(now.time).expect("nothing is out");
    server.handle_datagram(now, source(1), local(Port::Primary), &initiation);
    let mut keepalive = [0; CONTROL_OUTPUT_LEN];
    let mut len = 0;
    while let Some(output) = server.poll_output() {
        if let Output::Transmit { datagram, .. } = output {
            len = tunnel.complete(now.time, &datagram, &mut keepalive).expect("it answers this initiation");
        }
    }
    put(server, now, 1, Port::Primary, &keepalive[..len]);
}

/// Whoever sends something gets no more datagrams than an answer, and what waited for it.
fn put(server: &mut Server, now: Now, from: u8, port: Port, datagram: &[u8]) {
    server.handle_datagram(now, source(from), local(port), datagram);
    assert!(drain(server) <= 6);
}

fn drain(server: &mut Server) -> usize {
    std::iter::from_fn(|| server.poll_output()).filter(|output| matches!(output, Output::Transmit { .. })).count()
}

fn source(number: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, number, 1], 1000))
}

fn local(port: Port) -> Local {
    Local { port, ip: None }
}
