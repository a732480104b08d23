use super::*;

fn request(time_ms: u64) -> Request {
    Request { reason: "tests".into(), time_ms, received: 0, from: None }
}

#[test]
fn both_must_say_yes() {
    let mut relation = Relation::default();
    assert_eq!(relation.state(0), TrustState::None);
    assert!(relation.introduction_received(1, request(1), Grant::default()));
    assert_eq!(relation.state(1), TrustState::Pending);
    assert!(!relation.admits_session(1));
    relation.approve(2);
    assert_eq!(relation.state(2), TrustState::Trusted);

    let mut relation = Relation::default();
    relation.request(1, Grant::default());
    assert_eq!(relation.state(1), TrustState::Requested);
    assert!(relation.admits_session(1));
    assert!(relation.consent_received(2, true));
    assert_eq!(relation.state(2), TrustState::Trusted);
    assert!(relation.consent_received(3, false));
    assert_eq!(relation.state(3), TrustState::Requested);
}

#[test]
fn a_no_stands_against_new_requests() {
    let mut relation = Relation::default();
    relation.introduction_received(1, request(1), Grant::default());
    relation.reject(2);
    assert!(!relation.introduction_received(3, request(3), Grant::default()));
    assert_eq!(relation.state(3), TrustState::Rejected);
    relation.approve(4);
    relation.revoke(5);
    assert!(!relation.introduction_received(6, request(6), Grant::default()));
    assert_eq!(relation.state(6), TrustState::Revoked);
    assert!(!relation.admits_session(6));
}

#[test]
fn a_replayed_introduction_changes_nothing() {
    let mut relation = Relation::default();
    assert!(relation.introduction_received(1, request(9), Grant::default()));
    assert!(!relation.introduction_received(2, request(9), Grant::default()));
    assert!(!relation.introduction_received(2, request(8), Grant::default()));
    assert!(relation.introduction_received(2, request(10), Grant::default()));
}

#[test]
fn a_later_request_cannot_widen_what_was_agreed() {
    let narrow = Grant { ports: Some("tcp/22".into()), ttl_s: Some(10) };
    let mut relation = Relation::default();
    relation.introduction_received(1, request(1), narrow.clone());
    relation.approve(2);
    relation.introduction_received(3, request(3), Grant::default());
    assert_eq!(relation.grant, narrow);
    assert_eq!(relation.expires(), Some(12));
}

#[test]
fn trust_runs_out_and_survives_a_clock_that_jumps_ahead() {
    let mut relation = Relation::default();
    relation.request(100, Grant { ports: None, ttl_s: Some(60) });
    relation.consent_received(110, true);
    assert_eq!(relation.state(169), TrustState::Trusted);
    assert_eq!(relation.state(170), TrustState::None);
    assert!(!relation.admits_session(170));
    assert_eq!(relation.state(120), TrustState::Trusted);
    relation.request(200, Grant::default());
    assert_eq!(relation.state(200), TrustState::Requested);
}

mod pending_requests {
    use super::super::pending::*;
    use crate::identity::IdentityKey;
    use std::net::SocketAddr;

    fn waiting(n: usize, source: &str) -> Vec<(crate::identity::AgentId, Option<SocketAddr>, u64)> {
        let source: SocketAddr = source.parse().unwrap();
        (0..n)
            .map(|i| {
                let mut seed = [0; 32];
                seed[..8].copy_from_slice(&(i as u64).to_le_bytes());
                (IdentityKey::from_seed(seed).id(), Some(source), 1000 + i as u64)
            })
            .collect()
    }

    #[test]
    fn a_flood_pushes_out_its_own() {
        let flood = waiting(MAX_PENDING, "192.0.2.1:1");
        assert_eq!(admit(&flood[1..], "192.0.2.9:1".parse().ok()), Admission::Admit);
        assert_eq!(admit(&flood, "192.0.2.9:1".parse().ok()), Admission::Refuse);
        assert_eq!(admit(&flood, "198.51.100.1:1".parse().ok()), Admission::Replace(flood[0].0));
    }
}
