use super::*;
use crate::forwarding::PeerPath;
use crate::identity::{IdentityKey, SignedRecord, TunnelSecret};
use crate::node::VERSIONS;
use crate::time::Time;
use crate::wire::control::ControlMessage;

const NOW_S: u64 = 1_800_000_000;

fn now() -> Now {
    Now { time: Time::ZERO, unix_ms: NOW_S * 1000 }
}

fn codes(facts: &Facts) -> Vec<String> {
    facts.entries().into_iter().map(|entry| entry.code).collect()
}

fn record(made: u64) -> AgentRecord {
    let key = IdentityKey::from_seed([1; 32]);
    AgentRecord {
        id: key.id(),
        sequence: made,
        expires: made + RECORD_LIFETIME.as_secs(),
        tunnel_key: TunnelSecret::from_bytes([1; 32]).public(),
        rendezvous: Vec::new(),
        name: None,
        capabilities: Vec::new(),
        versions: VERSIONS,
    }
}

#[test]
fn nothing_known_is_nothing_wrong() {
    assert!(Facts::default().entries().is_empty());
    let fine = Facts { udp: Some(true), direct: 1, relayed: vec!["one".into()], ..Facts::default() };
    assert!(fine.entries().is_empty(), "{:?}", fine.entries());
}

#[test]
fn each_cause_has_its_code() {
    let one = |facts: Facts| codes(&facts).join(" ");
    assert_eq!(one(Facts { udp: Some(false), ..Facts::default() }), "no_udp");
    let lost_servers = vec!["192.0.2.1:1".into()];
    assert_eq!(one(Facts { lost_servers: lost_servers.clone(), ..Facts::default() }), "rendezvous_unreachable");
    // What follows from the other is not said as well.
    assert_eq!(one(Facts { udp: Some(false), lost_servers, ..Facts::default() }), "no_udp");
    assert_eq!(one(Facts { is_hard_nat: true, ..Facts::default() }), "hard_nat");
    assert_eq!(one(Facts { relayed: vec!["one".into()], ..Facts::default() }), "relay_only");
    assert_eq!(one(Facts { clock_behind_s: 400, ..Facts::default() }), "clock_skew");
    assert_eq!(one(Facts { narrow: vec![("one".into(), 1200)], ..Facts::default() }), "path_mtu_small");
}

#[test]
fn every_entry_says_what_to_do_and_names_are_few() {
    let names = |n: usize| (1..=n).map(|n| format!("peer-{n}")).collect::<Vec<_>>();
    let facts = Facts {
        udp: Some(true),
        is_hard_nat: true,
        port: 4711,
        lost_servers: vec!["192.0.2.1:1".into()],
        clock_behind_s: -90_000,
        direct: 0,
        relayed: names(5),
        narrow: vec![("one".into(), 1200), ("two".into(), 1180)],
    };
    let entries = facts.entries();
    assert_eq!(entries.len(), 5);
    assert!(entries.iter().all(|entry| !entry.hint.is_empty()));
    let text: String = entries.iter().map(|entry| format!("{}\n{}\n", entry.message, entry.hint)).collect();
    for part in ["peer-1, peer-2, peer-3 and 2 more", "90000 s or more ahead of", "1180 bytes", "4711", "192.0.2.1:1"] {
        assert!(text.contains(part), "no {part} in {text}");
    }
}

#[test]
fn a_record_from_the_future_tells_that_this_clock_is_behind() {
    assert_eq!(behind_s(now(), &record(NOW_S + 3600)), 3600);
    assert_eq!(behind_s(now(), &record(NOW_S + CLOCK_TOLERANCE_S)), 0);
    assert_eq!(behind_s(now(), &record(NOW_S - 3600)), 0);
    // Of an agent that counts its records otherwise, or lets them live longer.
    assert_eq!(behind_s(now(), &AgentRecord { sequence: 7, ..record(NOW_S + 3600) }), 0);
    assert_eq!(behind_s(now(), &AgentRecord { sequence: u64::MAX, ..record(NOW_S) }), 0);
}

#[test]
fn only_what_a_trusted_peer_said_in_a_session_counts() {
    let key = IdentityKey::from_seed([1; 32]);
    let mut stored = crate::node::stored_for_tests(&key);
    stored.record = SignedRecord::sign(&key, record(NOW_S + 7200)).unwrap();
    stored.relation.grant.ttl_s = None;
    stored.relation.approve(6);
    for (source, codes_wanted) in [(RecordSource::Session, "clock_skew"), (RecordSource::Introduction, "")] {
        stored.record_source = source;
        let node = crate::node::tests::node(vec![stored.clone()]);
        let codes: Vec<String> = node.health(now()).into_iter().map(|entry| entry.code).collect();
        assert_eq!(codes.join(" "), codes_wanted, "{source:?}");
    }
}

#[test]
fn clocks_that_are_told_show_at_once_which_way_this_one_is_off() {
    let rows = (1..=3).map(|seed| {
        let mut stored = crate::node::stored_for_tests(&IdentityKey::from_seed([seed; 32]));
        stored.relation.grant.ttl_s = None;
        stored.relation.approve(6);
        stored
    });
    let mut node = crate::node::tests::node(rows.collect());
    let ids: Vec<_> = node.peers.keys().copied().collect();
    // What is said of this clock after the peers, one after the other, have told theirs.
    let mut said = |clocks: &[u64], now: Now| {
        for (id, clock_s) in ids.iter().zip(clocks) {
            let told = ControlMessage::Clock { unix_ms: clock_s * 1000 }.emit(node.peers[id].ipv6, node.ipv6);
            node.handle_control(now, *id, &told, true, &PeerPath::direct("192.0.2.1:9".parse().unwrap()));
        }
        let entries = node.health(now).into_iter().filter(|entry| entry.code == "clock_skew");
        entries.map(|entry| entry.message).collect::<Vec<_>>().join("\n")
    };
    assert_eq!(said(&[NOW_S, NOW_S + 1, NOW_S - 1], now()), "");
    assert!(said(&[NOW_S + 400; 3], now()).contains("400 s or more behind"));
    assert!(said(&[NOW_S - 400; 3], now()).contains("400 s or more ahead of"));
    assert_eq!(said(&[NOW_S - CLOCK_TOLERANCE_S; 3], now()), "");
    // One of three is wrong itself.
    assert_eq!(said(&[NOW_S, NOW_S, NOW_S + 90_000], now()), "");
    assert!(said(&[NOW_S - 3600, NOW_S, NOW_S - 3600], now()).contains("3600 s or more ahead of"));
    // This clock was set meanwhile, and the others went on.
    let later = Now { time: Time::ZERO + Duration::from_secs(60), unix_ms: (NOW_S - 3600 + 60) * 1000 };
    assert!(said(&[NOW_S - 3600; 3], now()).contains("ahead of"));
    assert_eq!(said(&[], later), "");
}
