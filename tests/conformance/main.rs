//! Conformance: what this program derives, writes and reads against committed vectors, so that a change of any byte
//! on the wire or of any text form shows up here. Another implementation can use the same files.
//!
//! Bytes are lower-case hexadecimal. Every agent in the vectors is made from a seed of 32 equal bytes, and its tunnel
//! secret is the same 32 bytes.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::convert::Infallible;
use std::fs;
use std::path::PathBuf;

use agentnet::identity::{
    AgentId, AgentRecord, IdentityKey, SignedRecord, Ticket, TunnelSecret, VersionRange, key_file, overlay_ipv6,
    preferred_ipv4,
};
use agentnet::wire::control::{Candidate, CandidateKind, IntroducedStatus, Mapping, RelayRefusal};
use agentnet::wire::{
    BindingRequest, BindingResponse, Change, ControlMessage, ControlPacket, DatagramKind, GoodbyeReason, Hello,
    Introduction, PathMessage, RELAY_PREFIX_LEN, RecordAnswer, RecordRequest, RelayChannel, RelayFrame,
    RendezvousMessage, ServerAddresses, TrustRequest, classify, respond,
};
use serde_json::{Value, json};

/// Makes the content of a file of vectors anew.
type Generate = fn() -> Value;

const FILES: [(&str, Generate); 10] = [
    ("identity", identity_vectors),
    ("record", record_vectors),
    ("ticket", ticket_vectors),
    ("introduction", introduction_vectors),
    ("control", control_vectors),
    ("classify", classify_vectors),
    ("stun", stun_vectors),
    ("relay", relay_vectors),
    ("rendezvous", rendezvous_vectors),
    ("control_body", control_body_vectors),
];

#[test]
fn everything_written_equals_the_vectors() {
    for (name, generate) in FILES {
        assert_eq!(generate(), load(name), "{name}.json");
    }
}

#[test]
fn ids_and_addresses_read_back() {
    for case in cases("identity") {
        let id: AgentId = text(&case, "id").parse().unwrap();
        assert_eq!(hex(id.as_bytes()), text(&case, "public_key"));
        assert_eq!(AgentId::from_did_key(text(&case, "did_key")), Ok(id));
        assert_eq!(overlay_ipv6(&id).to_string(), text(&case, "ipv6"));
        for (range, alias) in case["ipv4"].as_object().unwrap() {
            assert_eq!(preferred_ipv4(&id, range.parse().unwrap()).to_string(), alias.as_str().unwrap());
        }
        let key = key_file::parse(text(&case, "key_file")).unwrap();
        assert_eq!(hex(key.seed().as_slice()), text(&case, "seed"));
    }
}

#[test]
fn records_read_back() {
    for case in cases("record") {
        let record = SignedRecord::decode(&bytes(&case, "bytes")).unwrap();
        assert_eq!(record.id().to_string(), text(&case["fields"], "id"));
        assert_eq!(serde_json::to_value(record.record()).unwrap(), case["fields"]);
    }
}

#[test]
fn tickets_read_back() {
    for case in cases("ticket") {
        let ticket: Ticket = text(&case, "ticket").parse().unwrap();
        assert_eq!(hex(ticket.record().as_bytes()), text(&case, "record"));
        assert_eq!(json!(ticket.addresses()), case["addresses"]);
    }
}

#[test]
fn introductions_open_with_the_fixed_key() {
    for case in cases("introduction") {
        let recipient: AgentId = text(&case, "recipient").parse().unwrap();
        let secret = TunnelSecret::from_bytes(bytes(&case, "tunnel_secret").try_into().unwrap());
        let opened = Introduction::open(&bytes(&case, "datagram"), &secret, &recipient).unwrap();
        assert_eq!(hex(opened.record.as_bytes()), text(&case, "record"));
        assert_eq!(json!(opened.candidates), case["candidates"]);
        assert_eq!(hex(&opened.nonce), text(&case, "nonce"));
        assert_eq!(json!(opened.time_ms), case["time_ms"]);
        assert_eq!(opened.reason, text(&case, "reason"));
        assert_eq!(json!(opened.request), case["request"]);
        assert_eq!(json!(opened.initiation.map(|bytes| hex(&bytes))), case["initiation"]);
    }
}

#[test]
fn control_messages_read_back() {
    for case in cases("control") {
        let packet = bytes(&case, "packet");
        let parsed = ControlPacket::parse(&packet).unwrap();
        assert_eq!(parsed.source.to_string(), text(&case, "source"));
        assert_eq!(parsed.destination.to_string(), text(&case, "destination"));
        assert_eq!(message_name(&parsed.message), text(&case, "message"));
        assert_eq!(parsed.emit(), packet);
    }
}

#[test]
fn datagrams_are_classified() {
    for case in cases("classify") {
        let kind = classify(&bytes(&case, "datagram"));
        assert_eq!(format!("{kind:?}"), text(&case, "kind"));
    }
}

#[test]
fn stun_answers_read_back() {
    for case in cases("stun") {
        let request = bytes(&case, "request");
        let transaction = request[8..20].try_into().unwrap();
        let response = BindingResponse::parse(&bytes(&case, "answer"), &transaction).unwrap();
        let expected = &case["response"];
        match response {
            BindingResponse::Success { mapped, origin, other } => {
                assert_eq!(json!({ "mapped": mapped, "origin": origin, "other": other }), *expected);
            }
            BindingResponse::Error { code, unknown } => {
                assert_eq!(json!({ "code": code, "unknown": unknown }), *expected);
            }
        }
    }
}

#[test]
fn relay_frames_read_back() {
    for case in cases("relay") {
        let datagram = bytes(&case, "datagram");
        let frame = RelayFrame::parse(&datagram).unwrap();
        assert_eq!(frame.channel.number().to_string(), text(&case, "channel"));
        assert_eq!(hex(frame.payload), text(&case, "payload"));
    }
}

#[test]
fn record_frames_read_back() {
    for case in cases("rendezvous") {
        let request = RecordRequest::parse(&bytes(&case, "request")).unwrap();
        let datagram = bytes(&case, "answer");
        let answer = RecordAnswer::parse(&datagram).unwrap();
        assert_eq!(answer.transaction, request.transaction);
        assert_eq!(hex(answer.record().unwrap().as_bytes()), text(&case, "record"));
    }
}

#[test]
fn control_bodies_read_back() {
    for case in cases("control_body") {
        let (message_type, body) = (case["type"].as_u64().unwrap() as u8, bytes(&case, "body"));
        let (encoded, debug) = if message_type < 32 {
            let message = RendezvousMessage::decode(message_type, &body).unwrap();
            (message.encode(), format!("{message:?}"))
        } else {
            let message = PathMessage::decode(message_type, &body).unwrap();
            (message.encode(), format!("{message:?}"))
        };
        assert_eq!(encoded, (message_type, body));
        assert!(debug.starts_with(text(&case, "message")), "{debug}");
    }
}

#[test]
#[ignore = "rewrites the vectors"]
fn rewrite_the_vectors() {
    for (name, generate) in FILES {
        let content = serde_json::to_string_pretty(&generate()).unwrap();
        fs::write(path(name), content + "\n").unwrap();
    }
}

fn identity_vectors() -> Value {
    let case = |seed: u8| {
        let key = IdentityKey::from_seed([seed; 32]);
        let id = key.id();
        let alias = |range: &str| preferred_ipv4(&id, range.parse().unwrap()).to_string();
        json!({
            "seed": hex(&[seed; 32]),
            "public_key": hex(id.as_bytes()),
            "id": id.to_string(),
            "did_key": id.to_did_key(),
            "ipv6": overlay_ipv6(&id).to_string(),
            "ipv4": {
                "100.64.0.0/10": alias("100.64.0.0/10"),
                "10.99.0.0/16": alias("10.99.0.0/16"),
                "192.168.7.0/27": alias("192.168.7.0/27"),
            },
            "tunnel_public": hex(TunnelSecret::from_bytes([seed; 32]).public().as_bytes()),
            "signature_of_hello": hex(&key.sign("agentnet conformance v1", b"hello")),
            "key_file": key_file::emit(&key).as_str(),
        })
    };
    json!([case(1), case(2), case(0xff)])
}

fn record_vectors() -> Value {
    let case = |record: &SignedRecord| json!({ "fields": record.record(), "bytes": hex(record.as_bytes()) });
    json!([case(&small_record(1)), case(&full_record(2))])
}

fn ticket_vectors() -> Value {
    let case = |record: SignedRecord, addresses: &[&str]| {
        let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
        let ticket = Ticket::new(record, addresses).unwrap();
        json!({
            "record": hex(ticket.record().as_bytes()),
            "addresses": ticket.addresses(),
            "ticket": ticket.to_string(),
        })
    };
    json!([case(small_record(1), &[]), case(full_record(2), &["192.0.2.1:4500", "[2001:db8::1]:65535"])])
}

fn introduction_vectors() -> Value {
    let case = |introduction: &Introduction, seed: u64| {
        let tunnel = TunnelSecret::from_bytes([2; 32]);
        let sender = IdentityKey::from_seed([1; 32]);
        let datagram = introduction.seal(&sender, &tunnel.public(), &mut CountingRng(seed)).unwrap();
        json!({
            "recipient": introduction.recipient.to_string(),
            "tunnel_secret": hex(tunnel.to_bytes().as_slice()),
            "record": hex(introduction.record.as_bytes()),
            "candidates": introduction.candidates,
            "nonce": hex(&introduction.nonce),
            "time_ms": introduction.time_ms,
            "reason": introduction.reason,
            "request": introduction.request,
            "initiation": introduction.initiation.map(|bytes| hex(&bytes)),
            "datagram": hex(&datagram),
        })
    };
    let smallest = Introduction {
        recipient: IdentityKey::from_seed([2; 32]).id(),
        record: small_record(1),
        candidates: vec![],
        nonce: [7; 16],
        time_ms: 0,
        reason: String::new(),
        request: TrustRequest::default(),
        initiation: None,
    };
    let full = Introduction {
        candidates: vec!["192.0.2.1:4500".parse().unwrap(), "[2001:db8::1]:4500".parse().unwrap()],
        time_ms: 1_800_000_000_000,
        reason: "Wöchentlicher Bericht".to_owned(),
        request: TrustRequest { ports: Some("tcp/443".to_owned()), ttl_s: Some(86_400) },
        initiation: Some([9; 148]),
        ..smallest.clone()
    };
    json!([case(&smallest, 1), case(&full, 2)])
}

fn control_vectors() -> Value {
    let (source, destination) = (overlay(1), overlay(2));
    let hello = Hello {
        record: small_record(1),
        consent: true,
        alias_self: Some([100, 64, 1, 2].into()),
        alias_peer: None,
        versions: VersionRange { min: 1, max: 1 },
    };
    let messages = [
        ControlMessage::Hello(hello),
        ControlMessage::HelloAck { record_sequence: 300, consent: false },
        ControlMessage::Ping { token: u64::MAX },
        ControlMessage::Pong { token: 0 },
        ControlMessage::Goodbye { reason: GoodbyeReason::Shutdown },
        ControlMessage::Goodbye { reason: GoodbyeReason::ConsentWithdrawn },
        ControlMessage::Clock { unix_ms: 1_800_000_000_000 },
    ];
    let cases = messages.iter().map(|message| {
        json!({
            "source": source.to_string(),
            "destination": destination.to_string(),
            "message": message_name(message),
            "packet": hex(&message.emit(source, destination)),
        })
    });
    cases.collect()
}

fn classify_vectors() -> Value {
    let wireguard = |message_type: u8, length: usize| {
        let mut datagram = vec![0x11; length];
        datagram[..4].copy_from_slice(&[message_type, 0, 0, 0]);
        datagram
    };
    let datagrams = [
        // A STUN binding request without attributes, as in RFC 8489, section 5.
        unhex("000100002112a442000102030405060708090a0b"),
        wireguard(1, 148),
        wireguard(2, 92),
        wireguard(3, 64),
        wireguard(4, 32),
        unhex("61676e0101000000"),
        unhex("61676e0201000000"),
        unhex("61676e0301000000"),
        vec![],
    ];
    let case = |datagram: &Vec<u8>| {
        let kind: DatagramKind = classify(datagram);
        json!({ "datagram": hex(datagram), "kind": format!("{kind:?}") })
    };
    datagrams.iter().map(case).collect()
}

fn stun_vectors() -> Value {
    let case = |request: BindingRequest, source: &str, server: &ServerAddresses| {
        let at = server.iter().next().unwrap();
        let datagram = request.emit();
        let answer = respond(&datagram, source.parse().unwrap(), at, server).unwrap();
        let response = match BindingResponse::parse(&answer.datagram, &request.transaction).unwrap() {
            BindingResponse::Success { mapped, origin, other } => {
                json!({ "mapped": mapped, "origin": origin, "other": other })
            }
            BindingResponse::Error { code, unknown } => json!({ "code": code, "unknown": unknown }),
        };
        json!({
            "change_ip": request.change.ip,
            "change_port": request.change.port,
            "fingerprint": request.fingerprint,
            "request": hex(&datagram),
            "source": source,
            "at": at,
            "from": answer.from,
            "answer": hex(&answer.datagram),
            "response": response,
        })
    };
    let server = |primary: &str, alternate: Option<&str>| {
        let alternate_ip = alternate.map(|ip| ip.parse().unwrap());
        ServerAddresses::new(primary.parse().unwrap(), alternate_ip, alternate.map(|_| 3479)).unwrap()
    };
    let plain = BindingRequest {
        transaction: std::array::from_fn(|at| at as u8),
        change: Change::default(),
        fingerprint: false,
    };
    let both = BindingRequest { change: Change { ip: true, port: true }, fingerprint: true, ..plain };
    let (single, full) = (server("192.0.2.1:3478", None), server("192.0.2.1:3478", Some("192.0.2.2")));
    let full6 = server("[2001:db8::1]:3478", Some("2001:db8::2"));
    json!([
        case(plain, "198.51.100.7:40000", &single),
        case(plain, "198.51.100.7:40000", &full),
        case(both, "198.51.100.7:40000", &full),
        case(both, "198.51.100.7:40000", &single),
        case(both, "[2001:db8::7]:40000", &full6),
    ])
}

fn relay_vectors() -> Value {
    let case = |channel: u64, payload: &[u8]| {
        let mut datagram = vec![0; RELAY_PREFIX_LEN];
        datagram.extend_from_slice(payload);
        RelayChannel::new(channel).emit(datagram.first_chunk_mut().unwrap());
        // As text: not every reader of JSON keeps 64 bits.
        json!({ "channel": channel.to_string(), "payload": hex(payload), "datagram": hex(&datagram) })
    };
    let mut keepalive = [0x11; 32];
    keepalive[..4].copy_from_slice(&[4, 0, 0, 0]);
    json!([case(0x0102_0304_0506_0708, &keepalive), case(u64::MAX, &[0; 64])])
}

fn rendezvous_vectors() -> Value {
    let case = |transaction: [u8; 16], record: &SignedRecord| {
        let request = RecordRequest { transaction };
        json!({
            "request": hex(&request.emit()),
            "record": hex(record.as_bytes()),
            "answer": hex(&request.answer(record)),
        })
    };
    json!([case([7; 16], &small_record(1)), case(std::array::from_fn(|at| at as u8), &full_record(2))])
}

fn control_body_vectors() -> Value {
    use RendezvousMessage as R;
    let id = IdentityKey::from_seed([2; 32]).id();
    let (v4, v6) = ("192.0.2.1:40000".parse().unwrap(), "[2001:db8::1]:1".parse().unwrap());
    let channel = RelayChannel::new(u64::MAX);
    let rendezvous = [
        R::Register { record: small_record(1) },
        R::Registered { observed: v4, expires_s: 300, relay: true },
        R::Lookup { id },
        R::LookupResult { id, record: Some(full_record(2)) },
        R::LookupResult { id, record: None },
        R::Introduce { recipient: id, sealed: vec![0x5e; 200] },
        R::Introduced { recipient: id, status: IntroducedStatus::Delivered },
        R::Introduced { recipient: id, status: IntroducedStatus::Full },
        R::Introduction { sealed: vec![0x5e; 3], observed: v6 },
        R::RelayOpen { peer: id, channel, first: vec![4; 148] },
        R::RelayOpened { peer: id, channel, outcome: Ok(()) },
        R::RelayOpened { peer: id, channel, outcome: Err(RelayRefusal::NotOffered) },
    ];
    let kinds = [
        CandidateKind::Host,
        CandidateKind::ServerReflexive,
        CandidateKind::PeerReflexive,
        CandidateKind::Relayed { server: id },
        CandidateKind::PortMapped,
    ];
    let candidates = kinds.map(|kind| Candidate { kind, address: v4 }).to_vec();
    let path = [
        PathMessage::Candidates { sequence: 300, candidates, mapping: Mapping::EndpointDependent { step: -2 } },
        PathMessage::Probe { token: 0x0102_0304_0506_0708, length: 64 },
        PathMessage::ProbeReply { token: u64::MAX, observed: v6, received: 1300 },
    ];
    let case = |name: String, (message_type, body): (u8, Vec<u8>)| {
        let name = name.split(' ').next().unwrap().to_owned();
        json!({ "message": name, "type": message_type, "body": hex(&body) })
    };
    let rendezvous = rendezvous.iter().map(|message| case(format!("{message:?}"), message.encode()));
    rendezvous.chain(path.iter().map(|message| case(format!("{message:?}"), message.encode()))).collect()
}

fn message_name(message: &ControlMessage) -> &'static str {
    match message {
        ControlMessage::Hello(_) => "hello",
        ControlMessage::HelloAck { .. } => "hello_ack",
        ControlMessage::Ping { .. } => "ping",
        ControlMessage::Pong { .. } => "pong",
        ControlMessage::Goodbye { .. } => "goodbye",
        ControlMessage::Clock { .. } => "clock",
        ControlMessage::Rendezvous(_) => "rendezvous",
        ControlMessage::Path(_) => "path",
    }
}

fn overlay(seed: u8) -> std::net::Ipv6Addr {
    overlay_ipv6(&IdentityKey::from_seed([seed; 32]).id())
}

fn small_record(seed: u8) -> SignedRecord {
    let key = IdentityKey::from_seed([seed; 32]);
    let record = AgentRecord {
        id: key.id(),
        sequence: 1,
        expires: 2_000_000_000,
        tunnel_key: TunnelSecret::from_bytes([seed; 32]).public(),
        rendezvous: vec![],
        name: None,
        capabilities: vec![],
        versions: VersionRange { min: 1, max: 1 },
    };
    SignedRecord::sign(&key, record).unwrap()
}

fn full_record(seed: u8) -> SignedRecord {
    let key = IdentityKey::from_seed([seed; 32]);
    let server = IdentityKey::from_seed([9; 32]).id();
    let record = AgentRecord {
        sequence: 1_800_000_000_000,
        rendezvous: vec![
            format!("{server}@rv.example.org:3478").parse().unwrap(),
            format!("{server}@[2001:db8::9]:443").parse().unwrap(),
        ],
        name: Some("report-bot".parse().unwrap()),
        capabilities: vec!["mcp".to_owned(), "a2a/0.3".to_owned()],
        versions: VersionRange { min: 1, max: 3 },
        ..small_record(seed).record().clone()
    };
    SignedRecord::sign(&key, record).unwrap()
}

/// Bytes that count up: sealing draws its ephemeral key from here, so that the vectors stay the same.
struct CountingRng(u64);

impl rand_core::TryRng for CountingRng {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        self.try_next_u64().map(|value| value as u32)
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        self.0 += 1;
        Ok(self.0)
    }

    fn try_fill_bytes(&mut self, target: &mut [u8]) -> Result<(), Infallible> {
        for byte in target {
            *byte = self.try_next_u64()? as u8;
        }
        Ok(())
    }
}

impl rand_core::TryCryptoRng for CountingRng {}

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/conformance/vectors/{name}.json"))
}

fn load(name: &str) -> Value {
    serde_json::from_str(&fs::read_to_string(path(name)).unwrap()).unwrap()
}

fn cases(name: &str) -> Vec<Value> {
    let cases = load(name).as_array().unwrap().clone();
    assert!(!cases.is_empty());
    cases
}

fn text<'a>(case: &'a Value, field: &str) -> &'a str {
    case[field].as_str().unwrap()
}

fn bytes(case: &Value, field: &str) -> Vec<u8> {
    unhex(text(case, field))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}
