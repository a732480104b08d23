use super::*;

fn request() -> Request {
    Request { reason: "tests".into(), received: 0, from: None }
}

#[test]
fn both_must_say_yes() {
    let mut relation = Relation::default();
    assert_eq!(relation.state(0), TrustState::None);
    relation.introduction_received(1, request(), Grant::default());
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
    relation.introduction_received(1, request(), Grant::default());
    relation.reject(2);
    relation.introduction_received(3, request(), Grant::default());
    assert_eq!(relation.state(3), TrustState::Rejected);
    relation.approve(4);
    relation.revoke(5);
    relation.introduction_received(6, request(), Grant::default());
    assert_eq!(relation.state(6), TrustState::Revoked);
    assert!(!relation.admits_session(6));
}

#[test]
fn a_later_request_cannot_widen_what_was_agreed() {
    let narrow = Grant { ports: Some("tcp/22".into()), ttl_s: Some(10) };
    let mut relation = Relation::default();
    relation.introduction_received(1, request(), narrow.clone());
    relation.introduction_received(1, request(), Grant::default());
    assert_eq!(relation.grant, narrow, "what was shown is what is approved");
    relation.approve(2);
    relation.introduction_received(3, request(), Grant::default());
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

#[test]
fn the_other_side_cannot_move_the_end() {
    let mut relation = Relation::default();
    relation.introduction_received(1, request(), Grant { ports: None, ttl_s: Some(60) });
    relation.approve(100);
    assert_eq!(relation.expires(), Some(160));
    relation.consent_received(150, false);
    relation.consent_received(151, true);
    relation.introduction_received(155, request(), Grant { ports: None, ttl_s: Some(9999) });
    assert_eq!(relation.expires(), Some(160));
    assert_eq!(relation.state(160), TrustState::None);
    // Withdrawing does not stop the clock either.
    relation.consent_received(159, false);
    assert!(!relation.admits_session(160));
}

#[test]
fn a_request_after_the_end_waits_for_a_new_decision() {
    let mut relation = Relation::default();
    relation.introduction_received(1, request(), Grant { ports: None, ttl_s: Some(60) });
    relation.approve(100);
    relation.introduction_received(200, request(), Grant { ports: Some("tcp/1".into()), ttl_s: None });
    assert_eq!(relation.state(200), TrustState::Pending);
    assert_eq!(relation.grant.ports.as_deref(), Some("tcp/1"));
    relation.approve(201);
    assert_eq!((relation.state(300), relation.expires()), (TrustState::Trusted, None));
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
