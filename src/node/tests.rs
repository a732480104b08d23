use super::*;
use crate::identity::test_rng::TestRng;
use crate::node::peer::RecordSource;
use crate::node::resolve::Among;
use crate::trust::{Grant, Relation, Request, Theirs};

/// A row as it may be stored of the agent with this key.
pub(crate) fn stored_for_tests(key: &IdentityKey) -> StoredPeer {
    let record = AgentRecord {
        id: key.id(),
        sequence: 7,
        expires: 2_000_000_000,
        tunnel_key: TunnelSecret::from_bytes(*key.seed()).public(),
        rendezvous: Vec::new(),
        name: Some("stored".parse().unwrap()),
        capabilities: Vec::new(),
        versions: VERSIONS,
    };
    let mut relation = Relation::default();
    let request = Request { reason: "why not".into(), received: 6, from: "192.0.2.1:9".parse().ok() };
    relation.introduction_received(6, request, Grant { ports: Some("tcp/22".into()), ttl_s: Some(9) });
    StoredPeer {
        record: SignedRecord::sign(key, record).unwrap(),
        record_source: RecordSource::Introduction,
        record_received: 6,
        relation,
        addresses: vec!["192.0.2.1:9".parse().unwrap(), "[2001:db8::1]:9".parse().unwrap()],
        alias: Some(Ipv4Addr::new(100, 64, 0, 99)),
        their_aliases: None,
        last_initiation: Some([3; 148]),
        last_introduction_ms: 5,
        proved_key: None,
    }
}

pub(super) fn node(peers: Vec<StoredPeer>) -> Node {
    let config = NodeConfig {
        identity: IdentityKey::from_seed([9; 32]),
        tunnel_secret: TunnelSecret::from_bytes([9; 32]),
        record_sequence: 0,
        name: None,
        ipv4_range: Some(crate::identity::DEFAULT_IPV4_RANGE),
        port: 4000,
        mtu: 1420,
        local_addresses: vec!["192.0.2.200".parse().unwrap()],
        rendezvous: Vec::new(),
        peers,
        counters: Arc::default(),
        rng: Box::new(TestRng::new(9)),
    };
    Node::new(now(), config).unwrap()
}

pub(super) fn now() -> Now {
    Now { time: Time::ZERO, unix_ms: 1_800_000_000_000 }
}

fn peers(n: u8) -> Vec<StoredPeer> {
    (1..=n).map(|seed| stored_for_tests(&IdentityKey::from_seed([seed; 32]))).collect()
}

#[test]
fn a_row_reads_back_as_it_was_written() {
    let row = &peers(1)[0];
    assert_eq!(&StoredPeer::decode(&row.encode()).unwrap(), row);
}

#[test]
fn what_is_on_disk_as_it_is_is_not_written_again_at_a_start() {
    let written = |mut node: Node| {
        let outputs = std::iter::from_fn(move || node.poll_output());
        outputs.filter(|output| matches!(output, Output::Store(..))).count()
    };
    assert_eq!(written(node(peers(1))), 0);
    // Both rows name the same alias.
    assert_eq!(written(node(peers(2))), 1);
}

#[test]
fn damaged_rows_are_refused_and_never_panic() {
    let bytes = peers(1)[0].encode();
    assert!(matches!(StoredPeer::decode(&[]), Err(StoredError::Damaged)));
    assert!(matches!(StoredPeer::decode(&[2]), Err(StoredError::Version(2))));
    for len in 0..bytes.len() {
        assert!(StoredPeer::decode(&bytes[..len]).is_err(), "cut at {len}");
    }
    for position in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[position] ^= 0x55;
        let _ = StoredPeer::decode(&damaged);
    }
}

#[test]
fn peers_are_found_by_every_form_of_their_name() {
    let mut node = node(peers(1));
    let id = IdentityKey::from_seed([1; 32]).id();
    let ipv6 = overlay_ipv6(&id).to_string();
    for text in [id.to_string(), id.short(), "stored".into(), ipv6, format!(" {id} ")] {
        assert_eq!(node.resolve(&text, Among::All).unwrap(), id, "{text}");
    }
    use crate::api::ErrorCode;
    let ticket = node.ticket(now()).unwrap().to_string();
    let code = |text: &str| node.resolve(text, Among::All).unwrap_err().code;
    assert_eq!(code("nobody"), ErrorCode::PeerNotFound);
    assert_eq!(code(&id.to_string()[..5]), ErrorCode::PeerNotFound);
    assert_eq!(code(&node.id().to_string()), ErrorCode::PeerIsSelf);
    assert_eq!(code(&node.ipv6().to_string()), ErrorCode::PeerIsSelf);
    assert_eq!(code(&node.ipv4().unwrap().to_string()), ErrorCode::PeerIsSelf);
    assert_eq!(code(&ticket), ErrorCode::PeerIsSelf);
    assert_eq!(code(&ticket[..ticket.len() - 3]), ErrorCode::TicketInvalid);
}

#[test]
fn a_name_that_two_peers_have_is_ambiguous() {
    let node = node(peers(2));
    assert_eq!(node.resolve("stored", Among::All).unwrap_err().code, crate::api::ErrorCode::PeerAmbiguous);
}

#[test]
fn a_request_is_checked_before_anything_changes() {
    let mut node = node(Vec::new());
    let ticket = {
        let other = self::node(Vec::new());
        assert_eq!(other.id(), node.id());
        let key = IdentityKey::from_seed([1; 32]);
        let stored = stored_for_tests(&key);
        crate::identity::Ticket::new(stored.record, stored.addresses).unwrap().to_string()
    };
    let body = |ports: Option<&str>, reason: &str, ttl_s| crate::api::TrustRequestBody {
        peer: ticket.clone(),
        reason: Some(reason.into()),
        ports: ports.map(Into::into),
        ttl_s,
    };
    for bad in [
        body(Some("tcp"), "", None),
        body(None, &"x".repeat(141), None),
        body(None, "a\nb", None),
        body(None, "", Some(0)),
    ] {
        let error = node.command(now(), Command::TrustRequest(bad)).unwrap_err();
        assert_eq!(error.code, crate::api::ErrorCode::Usage, "{error}");
    }
    assert!(node.known_peers(now()).peers.is_empty());
    node.command(now(), Command::TrustRequest(body(Some("22"), "fine", Some(60)))).unwrap();
    let list = node.trust_list(now(), false);
    assert_eq!(list.peers[0].ports.as_deref(), Some("tcp/22"));
}

#[test]
fn only_what_was_asked_can_be_decided() {
    let mut node = node(peers(1));
    let code = |result: Result<Reply, crate::api::Error>| result.map(|_| ()).unwrap_err().code;
    use crate::api::ErrorCode;
    let id = IdentityKey::from_seed([1; 32]).id().to_string();
    assert_eq!(code(node.command(now(), Command::TrustRevoke(id))), ErrorCode::NoRequest);
    assert!(node.command(now(), Command::TrustApprove("stored".into())).is_ok());
    assert_eq!(code(node.command(now(), Command::TrustReject("stored".into()))), ErrorCode::NoRequest);
    assert!(node.command(now(), Command::TrustRevoke("stored".into())).is_ok());
    assert!(node.command(now(), Command::TrustRevoke("stored".into())).is_ok(), "twice is once");
    let ping = Command::Ping { token: 1, peer: "stored".into(), timeout: Duration::from_secs(1) };
    assert_eq!(code(node.command(now(), ping)), ErrorCode::NotTrusted);
}

#[test]
fn every_change_is_stored_before_anything_is_sent() {
    let mut node = node(peers(1));
    while node.poll_output().is_some() {}
    node.command(now(), Command::TrustApprove("stored".into())).unwrap();
    let outputs: Vec<_> = std::iter::from_fn(|| node.poll_output()).collect();
    let store = outputs.iter().position(
        |output| matches!(output, Output::Store(_, Some(row)) if row.relation.ours == crate::trust::Ours::Granted),
    );
    let transmit = outputs.iter().position(|output| matches!(output, Output::Transmit { .. }));
    assert!(store.unwrap() < transmit.unwrap());
    assert!(matches!(outputs.last(), Some(Output::Fib(_))));
}

#[test]
fn a_new_record_of_a_peer_with_another_tunnel_key_takes_over() {
    let key = IdentityKey::from_seed([1; 32]);
    let mut row = stored_for_tests(&key);
    row.relation.grant = Grant::default();
    row.relation.approve(6);
    let mut node = node(vec![row.clone()]);
    let mut record = row.record.record().clone();
    record.sequence += 1;
    record.tunnel_key = TunnelSecret::from_bytes([77; 32]).public();
    let new_key = record.tunnel_key;
    let signed = SignedRecord::sign(&key, record).unwrap();
    assert!(node.learn_record(now(), signed, RecordSource::Session));
    assert_eq!(node.by_tunnel_key.get(&new_key), Some(&key.id()));
    assert_eq!(node.by_tunnel_key.len(), 1);
    // The older one changes nothing.
    assert!(node.learn_record(now(), row.record, RecordSource::Ticket));
    assert_eq!(node.by_tunnel_key.get(&new_key), Some(&key.id()));
}

#[test]
fn a_stranger_named_like_another_agent_takes_nothing() {
    let (victim, stranger) = (IdentityKey::from_seed([1; 32]), IdentityKey::from_seed([2; 32]));
    let mut trusted = stored_for_tests(&victim);
    trusted.relation.approve(6);
    let mut pending = stored_for_tests(&stranger);
    let mut record = pending.record.record().clone();
    // A short id is a well-formed name.
    record.name = Some(victim.id().short().parse().unwrap());
    pending.record = SignedRecord::sign(&stranger, record).unwrap();
    let node = node(vec![trusted, pending]);
    let short = victim.id().short();
    assert_eq!(node.resolve(&short, Among::Related).unwrap(), victim.id());
    assert_eq!(node.resolve(&short, Among::All).unwrap_err().code, crate::api::ErrorCode::PeerAmbiguous);
}

#[test]
fn nobody_takes_the_tunnel_key_of_another() {
    let (victim, thief) = (IdentityKey::from_seed([1; 32]), IdentityKey::from_seed([2; 32]));
    let mut rows = [stored_for_tests(&victim), stored_for_tests(&thief)];
    for row in &mut rows {
        row.relation.grant = Grant::default();
        row.relation.approve(6);
    }
    let key = rows[0].record.record().tunnel_key;
    let mut node = node(rows.to_vec());
    let steal = |node: &mut Node, sequence, key| {
        let mut record = rows[1].record.record().clone();
        (record.sequence, record.tunnel_key) = (sequence, key);
        let record = SignedRecord::sign(&thief, record).unwrap();
        node.learn_record(now(), record, RecordSource::Session);
    };
    // The victim said hello under its key at some time, and is away now.
    node.prove_key(victim.id(), key);
    node.unlink(victim.id());
    steal(&mut node, 100, key);
    assert_eq!(node.by_tunnel_key.get(&key), None);
    assert!(node.peers[&thief.id()].link.is_none());
    assert_eq!(node.why(now(), &thief.id().to_string()).unwrap().reason_code, "tunnel_key_taken");
    // Nor this agent's own.
    let own = node.tunnel_key();
    steal(&mut node, 101, own);
    assert_eq!(node.by_tunnel_key.get(&own), None);
}

/// What packet threads are told is what is known of each peer.
fn assert_snapshot(node: &Node) {
    let linked = node.peers.values().filter(|peer| peer.link.is_some());
    let sources: Vec<_> = linked.flat_map(|peer| peer.addresses.iter().map(SocketAddr::ip)).collect();
    assert!(sources.iter().all(|source| node.known_sources.contains(*source)), "{sources:?}");
    for peer in node.peers.values() {
        let route = |address: IpAddr| node.fib.route(address).map(|entry| entry.id);
        let routed = (peer.link.is_some() && peer.trusted).then_some(peer.id);
        assert_eq!(route(peer.ipv6.into()), routed);
        assert_eq!(peer.alias.and_then(|alias| route(alias.into())), routed);
        let Some(link) = &peer.link else { continue };
        let entry = node.fib.tunnel(link.index.value() << 8).unwrap();
        assert_eq!((entry.id, entry.trusted, entry.ipv4), (peer.id, peer.trusted, peer.ipv4));
        assert!(Arc::ptr_eq(&entry.shared, &link.shared));
    }
}

#[test]
fn the_snapshot_follows_every_change_of_a_peer() {
    let mut node = node(peers(3));
    let ids: Vec<_> = node.peers.keys().copied().collect();
    let source = "192.0.2.1".parse().unwrap();
    assert!(!node.known_sources.contains(source), "nobody may have a session yet");
    assert_snapshot(&node);
    for id in &ids {
        node.command(now(), Command::TrustApprove(id.to_string())).unwrap();
        assert_snapshot(&node);
    }
    let older = Arc::clone(&node.fib);
    let index = node.peers[&ids[0]].link.as_ref().unwrap().index.value() << 8;
    node.note_candidates(ids[0], ["198.51.100.7:9".parse().unwrap()]);
    assert_snapshot(&node);
    node.handle_control(
        now(),
        ids[0],
        &crate::wire::control::ControlMessage::Goodbye { reason: crate::wire::control::GoodbyeReason::Shutdown }
            .emit(node.peers[&ids[0]].ipv6, node.ipv6),
        true,
        &crate::forwarding::PeerPath::direct("192.0.2.1:9".parse().unwrap()),
    );
    assert_snapshot(&node);
    assert!(node.fib.tunnel(index).is_none() && older.tunnel(index).is_some());
    for id in &ids {
        node.command(now(), Command::TrustRevoke(id.to_string())).unwrap();
        assert_snapshot(&node);
    }
    assert!(!node.known_sources.contains(source));
    node.forget(ids[0]);
    assert_snapshot(&node);
}

#[test]
fn refusals_are_remembered_up_to_a_limit() {
    let mut node = node(peers(5));
    for (age, peer) in node.peers.values_mut().enumerate() {
        peer.relation.theirs = Theirs::Granted;
        peer.relation.reject(age as u64);
    }
    node.bound_refused();
    assert_eq!(node.peers.len(), 5);
}
