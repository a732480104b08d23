use super::*;
use crate::identity::test_rng::TestRng;

fn rng(seed: u8) -> TestRng {
    TestRng::new(seed.into())
}

const LEN: usize = 2048;

struct Pair {
    a: Tunnel,
    b: Tunnel,
    keys: Keys,
}

struct Keys {
    a: TunnelSecret,
    b: TunnelSecret,
}

fn at(seconds: u64) -> Time {
    Time::from_origin(Duration::from_secs(seconds))
}

fn index(seed: u8) -> TunnelIndex {
    IndexTable::new().allocate(seed, &mut rng(seed))
}

fn pair() -> Pair {
    let keys = Keys { a: TunnelSecret::generate(&mut rng(1)), b: TunnelSecret::generate(&mut rng(2)) };
    let a = Tunnel::new(&keys.a, &keys.b.public(), index(1), at(0), None);
    let b = Tunnel::new(&keys.b, &keys.a.public(), index(2), at(0), None);
    Pair { a, b, keys }
}

/// A minimal IPv6 packet with this many bytes of payload.
fn packet(payload: u8) -> Vec<u8> {
    let mut packet = vec![0; 40 + usize::from(payload)];
    packet[0] = 0x60;
    packet[5] = payload;
    packet
}

fn connect(pair: &mut Pair, now: Time) -> Initiation {
    let mut out = [0; LEN];
    let initiation = pair.a.initiate(now).unwrap();
    let responded = pair.b.respond(now, &initiation, &mut out).unwrap();
    let response = out[..responded.len].to_vec();
    let len = pair.a.complete(now, &response, &mut out).unwrap();
    let keepalive = out[..len].to_vec();
    let opened = pair.b.open(now, &keepalive, &mut out).unwrap();
    assert_eq!(opened, Opened { len: 0, session_confirmed: true, newest: true });
    initiation
}

fn carry(from: &mut Tunnel, to: &mut Tunnel, now: Time, packet: &[u8]) -> Vec<u8> {
    let (mut sealed, mut opened) = ([0; LEN], [0; LEN]);
    let len = from.seal(now, packet, &mut sealed).unwrap();
    let len = to.open(now, &sealed[..len], &mut opened).unwrap().len;
    opened[..len].to_vec()
}

#[test]
fn a_session_carries_packets_both_ways() {
    let mut pair = pair();
    assert!(!pair.a.has_session(at(0)));
    connect(&mut pair, at(0));
    assert!(pair.a.has_session(at(0)) && pair.b.has_session(at(0)));
    for payload in [0, 1, 15, 16, 255] {
        let packet = packet(payload);
        assert_eq!(carry(&mut pair.a, &mut pair.b, at(1), &packet), packet);
        assert_eq!(carry(&mut pair.b, &mut pair.a, at(1), &packet), packet);
    }
}

#[test]
fn the_responder_waits_until_the_initiator_has_the_session() {
    let mut pair = pair();
    let mut out = [0; LEN];
    let initiation = pair.a.initiate(at(0)).unwrap();
    pair.b.respond(at(0), &initiation, &mut out).unwrap();
    assert_eq!(pair.b.seal(at(0), &packet(1), &mut out), Err(SealError::NoSession));
}

#[test]
fn short_buffers_are_an_error_not_a_panic() {
    let mut pair = pair();
    connect(&mut pair, at(0));
    let mut out = [0; LEN];
    let len = pair.a.seal(at(0), &packet(200), &mut out).unwrap();
    let datagram = out[..len].to_vec();
    for room in [0, 1, 100, len - 1] {
        let mut short = vec![0; room];
        assert_eq!(pair.b.open(at(0), &datagram, &mut short), Err(OpenError::ShortBuffer), "{room}");
    }
    let mut short = [0; CONTROL_OUTPUT_LEN - 1];
    let initiation = [0; WIREGUARD_INITIATION_LEN];
    assert_eq!(pair.a.seal(at(0), &packet(200), &mut [0; 271]), Err(SealError::ShortBuffer));
    assert_eq!(pair.a.seal(at(0), &[], &mut short), Err(SealError::ShortBuffer));
    assert_eq!(pair.a.respond(at(0), &initiation, &mut short), Err(OpenError::ShortBuffer));
    assert_eq!(pair.a.complete(at(0), &[], &mut short), Err(OpenError::ShortBuffer));
    assert_eq!(pair.a.refresh(at(9), &mut short), Err(OpenError::ShortBuffer));
    assert!(pair.b.open(at(0), &datagram, &mut out).is_ok());
}

#[test]
fn replayed_and_forged_data_is_refused() {
    let mut pair = pair();
    connect(&mut pair, at(0));
    let (mut sealed, mut out) = ([0; LEN], [0; LEN]);
    let len = pair.a.seal(at(0), &packet(9), &mut sealed).unwrap();
    assert!(pair.b.open(at(0), &sealed[..len], &mut out).is_ok());
    assert_eq!(pair.b.open(at(0), &sealed[..len], &mut out), Err(OpenError::Unauthenticated));
    for byte in [4, 8, 20, len - 1] {
        let mut forged = sealed[..len].to_vec();
        forged[byte] ^= 1;
        assert_eq!(pair.b.open(at(0), &forged, &mut out), Err(OpenError::Unauthenticated), "byte {byte}");
    }
}

#[test]
fn what_is_no_ip_packet_does_not_come_out() {
    let mut pair = pair();
    connect(&mut pair, at(0));
    let (mut sealed, mut out) = ([0; LEN], [0; LEN]);
    let len = pair.a.seal(at(0), &[0x20; 60], &mut sealed).unwrap();
    assert_eq!(pair.b.open(at(0), &sealed[..len], &mut out), Err(OpenError::NotIp));
}

#[test]
fn a_copy_of_an_initiation_gets_the_same_answer() {
    let mut pair = pair();
    let initiation = pair.a.initiate(at(0)).unwrap();
    let (mut first, mut again) = ([0; LEN], [0; LEN]);
    assert!(pair.b.respond(at(0), &initiation, &mut first).unwrap().fresh);
    let repeated = pair.b.respond(at(1), &initiation, &mut again).unwrap();
    assert_eq!(repeated, Responded { len: WIREGUARD_RESPONSE_LEN, fresh: false });
    assert_eq!(first[..repeated.len], again[..repeated.len]);
    // The answer still works, and later the copy is what it is: a replay.
    assert!(pair.a.complete(at(1), &again[..repeated.len], &mut first).is_ok());
    assert_eq!(pair.b.respond(at(6), &initiation, &mut again), Err(OpenError::Stale));
}

#[test]
fn the_number_of_answered_copies_is_limited() {
    let mut pair = pair();
    let initiation = pair.a.initiate(at(0)).unwrap();
    let mut out = [0; LEN];
    let answered = (0..100).filter(|_| pair.b.respond(at(0), &initiation, &mut out).is_ok()).count();
    assert_eq!(answered, 1 + usize::from(RESPONSE_REPEAT_LIMIT));
}

#[test]
fn a_recorded_initiation_is_worthless_after_a_restart() {
    let mut pair = pair();
    let recorded = connect(&mut pair, at(0));
    let mut out = [0; LEN];
    let restarted = |last| Tunnel::new(&pair.keys.b, &pair.keys.a.public(), index(3), at(10), last);

    let mut forgetful = restarted(None);
    assert!(forgetful.respond(at(10), &recorded, &mut out).is_ok(), "this is the trap");
    let mut mindful = restarted(Some(&recorded));
    assert_eq!(mindful.respond(at(10), &recorded, &mut out), Err(OpenError::Stale));
    assert!(!mindful.has_session(at(10)));

    // A new one is answered as ever.
    let fresh = Tunnel::new(&pair.keys.a, &pair.keys.b.public(), index(4), at(10), None).initiate(at(10)).unwrap();
    assert!(mindful.respond(at(10), &fresh, &mut out).unwrap().fresh);
}

#[test]
fn an_initiation_is_sent_again_and_then_replaced() {
    let mut pair = pair();
    let first = pair.a.initiate(at(0)).unwrap();
    assert_eq!(pair.a.initiate(at(0)), None, "one handshake at a time");
    let mut out = [0; LEN];
    let mut copies = 0;
    let mut now = loop {
        let now = pair.a.next_timeout().unwrap();
        let refreshed = pair.a.refresh(now, &mut out).unwrap();
        assert!(refreshed.initiation);
        if out[..refreshed.len] != first {
            break now;
        }
        copies += 1;
    };
    assert_eq!((copies, now), (5, at(5)));
    while !pair.a.refresh(now, &mut out).unwrap().gave_up {
        now = pair.a.next_timeout().unwrap();
    }
    assert_eq!(now, at(90));
    assert!(!pair.a.is_handshaking());
    assert!(pair.a.initiate(now).is_some(), "given up is not for ever");
}

#[test]
fn a_session_is_not_used_for_sending_beyond_its_life() {
    let mut pair = pair();
    connect(&mut pair, at(0));
    let mut out = [0; LEN];
    assert!(pair.a.seal(at(179), &packet(1), &mut out).is_ok());
    assert_eq!(pair.a.seal(at(180), &packet(1), &mut out), Err(SealError::NoSession));
}

#[test]
fn with_the_last_session_every_key_is_erased_and_what_was_accepted_stays_known() {
    let mut pair = pair();
    let accepted = connect(&mut pair, at(0));
    let mut out = [0; LEN];
    for tunnel in [&mut pair.a, &mut pair.b] {
        while let Some(due) = tunnel.next_timeout().filter(|due| *due < at(180)) {
            assert!(!tunnel.refresh(due, &mut out).unwrap().erased, "{due:?}");
        }
        assert!(tunnel.tunn.is_some());
        assert_eq!(tunnel.refresh(at(180), &mut out), Ok(Refreshed { erased: true, ..Refreshed::default() }));
        assert!(tunnel.tunn.is_none());
        assert_eq!(tunnel.next_timeout(), None);
    }
    assert_eq!(pair.b.respond(at(200), &accepted, &mut out), Err(OpenError::Stale));
    connect(&mut pair, at(200));
    assert_eq!(carry(&mut pair.a, &mut pair.b, at(201), &packet(3)), packet(3));
}

#[test]
fn a_session_that_the_peer_has_only_begun_outlives_the_one_before() {
    let mut pair = pair();
    connect(&mut pair, at(0));
    let (mut response, mut out) = ([0; LEN], [0; LEN]);
    let initiation = pair.a.initiate(at(170)).unwrap();
    let len = pair.b.respond(at(170), &initiation, &mut response).unwrap().len;
    assert!(!pair.b.refresh(at(180), &mut out).unwrap().erased);
    assert_eq!(pair.b.next_timeout(), Some(at(350)));
    let len = pair.a.complete(at(181), &response[..len], &mut out).unwrap();
    let keepalive = out[..len].to_vec();
    assert!(pair.b.open(at(181), &keepalive, &mut out).unwrap().session_confirmed);
    assert_eq!(carry(&mut pair.b, &mut pair.a, at(181), &packet(3)), packet(3));
}

#[test]
fn what_a_forged_initiation_leaves_is_dropped() {
    let mut pair = pair();
    let mut out = [0; LEN];
    let stranger = TunnelSecret::generate(&mut rng(7));
    let forged = Tunnel::new(&stranger, &pair.keys.b.public(), index(7), at(0), None).initiate(at(0)).unwrap();
    assert!(pair.b.tunn.is_none(), "nothing is kept of a peer that never came");
    assert!(pair.b.respond(at(1), &forged, &mut out).is_err());
    assert_eq!(pair.b.next_timeout(), Some(at(181)));
    assert!(pair.b.refresh(at(181), &mut out).unwrap().erased);
    assert!(pair.b.tunn.is_none());
}

#[test]
fn a_handshake_that_nobody_answers_leaves_nothing() {
    let mut pair = pair();
    let mut out = [0; LEN];
    pair.a.initiate(at(0)).unwrap();
    while let Some(due) = pair.a.next_timeout() {
        pair.a.refresh(due, &mut out).unwrap();
        assert!(due <= at(90));
    }
    assert!(pair.a.tunn.is_none());
}

#[test]
fn handshakes_that_come_to_nothing_do_not_lock_the_peer_out() {
    let mut pair = pair();
    let mut out = [0; LEN];
    // Made by somebody who knows both public keys and neither secret: right key, wrong timestamp.
    let stranger = TunnelSecret::generate(&mut rng(7));
    for number in 0..50 {
        let initiation = Tunnel::new(&stranger, &pair.keys.b.public(), index(7), at(0), None).initiate(at(0)).unwrap();
        assert!(pair.b.respond(at(0), &initiation, &mut out).is_err(), "{number}");
    }
    for number in 0..50 {
        let initiation = Tunnel::new(&pair.keys.a, &pair.keys.b.public(), index(1), at(0), None).initiate(at(0));
        assert!(pair.b.respond(at(0), &initiation.unwrap(), &mut out).is_ok(), "{number}");
    }
    connect(&mut pair, at(0));
}

#[test]
fn packets_of_an_older_session_are_told_from_those_of_the_newest() {
    let mut pair = pair();
    connect(&mut pair, at(0));
    let (mut old, mut out) = ([0; LEN], [0; LEN]);
    let len = pair.a.seal(at(1), &packet(1), &mut old).unwrap();
    connect(&mut pair, at(2));
    assert!(!pair.b.open(at(8), &old[..len], &mut out).unwrap().newest);
    let len = pair.a.seal(at(8), &packet(1), &mut old).unwrap();
    assert!(pair.b.open(at(8), &old[..len], &mut out).unwrap().newest);
}

#[test]
fn both_may_begin_at_once() {
    let mut pair = pair();
    let (mut to_a, mut to_b, mut out) = ([0; LEN], [0; LEN], [0; LEN]);
    let (from_a, from_b) = (pair.a.initiate(at(0)).unwrap(), pair.b.initiate(at(0)).unwrap());
    let a_len = pair.a.respond(at(0), &from_b, &mut to_b).unwrap().len;
    let b_len = pair.b.respond(at(0), &from_a, &mut to_a).unwrap().len;
    let keepalive = pair.a.complete(at(0), &to_a[..b_len], &mut out).unwrap();
    let keepalive_a = out[..keepalive].to_vec();
    let keepalive = pair.b.complete(at(0), &to_b[..a_len], &mut out).unwrap();
    let keepalive_b = out[..keepalive].to_vec();
    pair.b.open(at(0), &keepalive_a, &mut out).unwrap();
    pair.a.open(at(0), &keepalive_b, &mut out).unwrap();
    assert_eq!(carry(&mut pair.a, &mut pair.b, at(0), &packet(3)), packet(3));
    assert_eq!(carry(&mut pair.b, &mut pair.a, at(0), &packet(3)), packet(3));
}

#[test]
fn only_the_holder_of_the_key_is_answered() {
    let mut pair = pair();
    let stranger = TunnelSecret::generate(&mut rng(7));
    let initiation = Tunnel::new(&stranger, &pair.keys.b.public(), index(7), at(0), None).initiate(at(0)).unwrap();
    assert_eq!(claimed_key(&pair.keys.b, &initiation), Some(stranger.public()));
    assert_eq!(claimed_key(&pair.keys.a, &initiation), None);
    assert_eq!(pair.b.respond(at(0), &initiation, &mut [0; LEN]), Err(OpenError::Unauthenticated));
}

#[test]
fn garbage_is_refused_everywhere() {
    let mut pair = pair();
    let mut out = [0; LEN];
    assert_eq!(pair.b.respond(at(0), &[1; WIREGUARD_INITIATION_LEN], &mut out), Err(OpenError::Unauthenticated));
    assert_eq!(pair.b.complete(at(0), &[2; 92], &mut out), Err(OpenError::Unauthenticated));
    assert_eq!(pair.b.take_cookie(&[3; 64]), Err(OpenError::Unauthenticated));
    let mut data = [9; 32];
    data[..4].copy_from_slice(&[4, 0, 0, 0]);
    assert_eq!(pair.b.open(at(0), &data, &mut out), Err(OpenError::Unauthenticated));
    assert_eq!(claimed_key(&pair.keys.a, &[1; WIREGUARD_INITIATION_LEN]), None);
    assert_eq!(message_receiver(&[2, 0, 0]), None);
    assert_eq!(pair.b.open(at(0), &[], &mut out), Err(OpenError::Unauthenticated));
    let initiation = pair.a.initiate(at(0)).unwrap();
    assert_eq!(pair.b.open(at(0), &initiation, &mut out), Err(OpenError::Unauthenticated));
    assert_eq!(pair.b.complete(at(0), &initiation, &mut out), Err(OpenError::Unauthenticated));
    assert!(pair.b.respond(at(0), &initiation, &mut out).is_ok(), "and it is not used up by that");
}

#[test]
fn indices_are_random_unique_and_below_24_bits() {
    let mut table = IndexTable::new();
    let mut rng = TestRng::new(9);
    let indices: Vec<_> = (0..10_000u32).map(|owner| table.allocate(owner, &mut rng)).collect();
    let distinct: std::collections::HashSet<_> = indices.iter().collect();
    assert_eq!(distinct.len(), indices.len());
    assert!(indices.iter().all(|index| index.value() < 1 << 24));
    assert!(indices.iter().any(|index| index.value() >= 1 << 23));
    let on_the_wire = indices[77].value() << 8 | 0xab;
    assert_eq!(table.owner(TunnelIndex::of_receiver(on_the_wire)), Some(77));
    table.release(indices[77]);
    assert_eq!(table.owner(indices[77]), None);
}
