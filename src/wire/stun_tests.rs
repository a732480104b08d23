//! The vectors of RFC 5769, the server against the client, and what must be dropped.

use super::*;
use crate::wire::{DatagramKind, classify};
use proptest::prelude::*;

const TRANSACTION: Transaction = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12];
/// Transaction id of RFC 5769, sections 2.1 to 2.3.
const SAMPLE: Transaction = [0xb7, 0xe7, 0xa7, 0x01, 0xbc, 0x34, 0xd6, 0x86, 0xfa, 0x87, 0xdf, 0xae];

/// RFC 5769, section 2.1.
const SAMPLE_REQUEST: &str = "000100582112a442b7e7a701bc34d686fa87dfae802200105354554e207465737420636c69656e7400240004\
    6e0001ff80290008932ff9b151263b36000600096576746a3a68367659202020000800149aeaa70cbfd8cb56781ef2b5b2d3f249c1b571a2\
    80280004e57a3bcf";
/// RFC 5769, section 2.2.
const SAMPLE_IPV4: &str = "0101003c2112a442b7e7a701bc34d686fa87dfae8022000b7465737420766563746f7220002000080001a147\
    e112a643000800142b91f599fd9e90c38c7489f92af9ba53f06be7d780280004c07d4c96";
/// RFC 5769, section 2.3.
const SAMPLE_IPV6: &str = "010100482112a442b7e7a701bc34d686fa87dfae8022000b7465737420766563746f7220002000140002a147\
    0113a9faa5d3f179bc25f4b5bed2b9d900080014a382954e4be67bf11784c97c8292c275bfe3ed4180280004c8fb0b4c";
/// RFC 5769, section 2.4.
const SAMPLE_LONG_TERM: &str = "000100602112a44278ad3433c6ad72c029da412e00060012e3839ee38388e383aae38383e382afe382b9\
    00000015001c662f2f3439396b39353464364f4c33346f4c394653547679363473410014000b6578616d706c652e6f72670000080014\
    f67024656dd64a3e02b8e0712e85c9a28ca89666";

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn server(primary: &str, ip: Option<&str>, port: Option<u16>) -> ServerAddresses {
    ServerAddresses::new(address(primary), ip.map(|ip| ip.parse().unwrap()), port).unwrap()
}

fn full_server() -> ServerAddresses {
    server("192.0.2.1:3478", Some("192.0.2.2"), Some(3479))
}

fn request(ip: bool, port: bool) -> Vec<u8> {
    BindingRequest { transaction: TRANSACTION, change: Change { ip, port }, fingerprint: false }.emit()
}

/// A request with these attributes, with right lengths.
fn raw(message_type: u16, attributes: &[(u16, &[u8])]) -> Vec<u8> {
    let mut body = vec![];
    for (attribute_type, value) in attributes {
        body.extend_from_slice(&attribute_type.to_be_bytes());
        body.extend_from_slice(&(value.len() as u16).to_be_bytes());
        body.extend_from_slice(value);
        body.resize(body.len().next_multiple_of(4), 0xaa);
    }
    let mut datagram = message_type.to_be_bytes().to_vec();
    datagram.extend_from_slice(&(body.len() as u16).to_be_bytes());
    datagram.extend_from_slice(&STUN_MAGIC_COOKIE);
    datagram.extend_from_slice(&TRANSACTION);
    [datagram, body].concat()
}

fn ask(datagram: &[u8], server: &ServerAddresses) -> Result<Answer, StunError> {
    respond(datagram, address("198.51.100.7:40000"), server.iter().next().unwrap(), server)
}

fn refused(datagram: &[u8], server: &ServerAddresses) -> Vec<u16> {
    let answer = ask(datagram, server).unwrap();
    match BindingResponse::parse(&answer.datagram, &TRANSACTION).unwrap() {
        BindingResponse::Error { code: UNKNOWN_ATTRIBUTE, unknown } => unknown,
        other => panic!("{other:?}"),
    }
}

#[test]
fn rfc_5769_responses() {
    for (sample, mapped) in
        [(SAMPLE_IPV4, "192.0.2.1:32853"), (SAMPLE_IPV6, "[2001:db8:1234:5678:11:2233:4455:6677]:32853")]
    {
        let datagram = unhex(sample);
        let expected = BindingResponse::Success { mapped: address(mapped), origin: None, other: None };
        assert_eq!(BindingResponse::parse(&datagram, &SAMPLE), Ok(expected));
        assert_eq!(BindingResponse::parse(&datagram, &TRANSACTION), Err(StunError::OtherTransaction));
        // The fingerprint covers everything before it, padding and message integrity included.
        for position in 8..datagram.len() - FINGERPRINT_LEN {
            let mut changed = datagram.clone();
            changed[position] ^= 1;
            assert!(BindingResponse::parse(&changed, &SAMPLE).is_err(), "byte {position}");
        }
    }
}

#[test]
fn rfc_5769_requests() {
    // ICE's PRIORITY is nothing a basic server knows; USERNAME and integrity it ignores.
    let answer = ask(&unhex(SAMPLE_REQUEST), &full_server()).unwrap();
    let parsed = BindingResponse::parse(&answer.datagram, &SAMPLE);
    assert_eq!(parsed, Ok(BindingResponse::Error { code: 420, unknown: vec![0x0024] }));
    assert_eq!(answer.datagram[answer.datagram.len() - 8..][..4], [0x80, 0x28, 0, 4]);

    let datagram = unhex(SAMPLE_LONG_TERM);
    let answer = ask(&datagram, &full_server()).unwrap();
    let parsed = BindingResponse::parse(&answer.datagram, datagram[8..20].try_into().unwrap());
    assert!(matches!(parsed, Ok(BindingResponse::Success { .. })));
}

#[test]
fn requests_are_exactly_these_bytes() {
    assert_eq!(request(false, false), unhex("000100002112a4420102030405060708090a0b0c"));
    assert_eq!(request(true, true)[20..], [0, 3, 0, 4, 0, 0, 0, 6]);
    assert_eq!(request(true, false)[20..], [0, 3, 0, 4, 0, 0, 0, 4]);
    assert_eq!(request(false, true)[20..], [0, 3, 0, 4, 0, 0, 0, 2]);
    let plain = BindingRequest { transaction: TRANSACTION, change: Change::default(), fingerprint: true }.emit();
    assert_eq!((plain.len(), &plain[20..24]), (28, [0x80, 0x28, 0, 4].as_slice()));
    for datagram in [request(false, false), request(true, true), plain] {
        assert_eq!(classify(&datagram), DatagramKind::Stun);
    }
}

#[test]
fn answers_leave_from_the_address_that_was_asked_for() {
    let all = ["192.0.2.1:3478", "192.0.2.1:3479", "192.0.2.2:3478", "192.0.2.2:3479"].map(address);
    let server = full_server();
    assert!(server.iter().eq(all));
    let source = address("198.51.100.7:40000");
    for (index, at) in all.into_iter().enumerate() {
        for (ip, port) in [(false, false), (false, true), (true, false), (true, true)] {
            let answer = respond(&request(ip, port), source, at, &server).unwrap();
            let expected = all[index ^ usize::from(ip) << 1 ^ usize::from(port)];
            assert_eq!((answer.from, answer.to), (expected, source));
            let success =
                BindingResponse::Success { mapped: source, origin: Some(expected), other: Some(all[index ^ 3]) };
            assert_eq!(BindingResponse::parse(&answer.datagram, &TRANSACTION), Ok(success));
        }
    }
}

#[test]
fn what_a_server_cannot_change_is_refused() {
    let single = server("192.0.2.1:3478", None, None);
    let ports = server("192.0.2.1:3478", None, Some(3479));
    for (ip, port) in [(true, false), (false, true), (true, true)] {
        assert_eq!(refused(&request(ip, port), &single), [CHANGE_REQUEST]);
    }
    assert_eq!(refused(&request(true, false), &ports), [CHANGE_REQUEST]);
    assert_eq!(ask(&request(false, true), &ports).unwrap().from, address("192.0.2.1:3479"));
    let other =
        |server| match BindingResponse::parse(&ask(&request(false, false), server).unwrap().datagram, &TRANSACTION) {
            Ok(BindingResponse::Success { other, .. }) => other,
            unexpected => panic!("{unexpected:?}"),
        };
    assert_eq!(other(&single), None);
    assert_eq!(other(&ports), Some(address("192.0.2.1:3479")));
}

#[test]
fn unknown_attributes_are_listed_once() {
    let server = full_server();
    // PADDING and RESPONSE-PORT of RFC 5780 are not offered.
    let datagram = raw(1, &[(0x0026, &[0; 8]), (0x7fff, b"x"), (0x0027, &[0; 4]), (0x0026, &[]), (0x8000, &[1; 5])]);
    assert_eq!(refused(&datagram, &server), [0x0026, 0x7fff, 0x0027]);
    assert!(ask(&raw(1, &[(0xffff, b"optional"), (0x0006, b"\xff\xfe")]), &server).is_ok());
    // What follows message integrity does not count, whatever it is.
    assert!(ask(&raw(1, &[(0x0008, &[0; 20]), (0x7fff, &[]), (0x0003, &[0; 9])]), &server).is_ok());
    // Of two with one type the first counts.
    let datagram = raw(1, &[(0x0003, &[0, 0, 0, 2]), (0x0003, &[0, 0, 0, 4])]);
    assert_eq!(ask(&datagram, &server).unwrap().from, address("192.0.2.1:3479"));
    let datagram = raw(0x0101, &[(0x0020, &[0, 1, 0, 0, 1, 1, 1, 1]), (0x0024, &[])]);
    assert_eq!(BindingResponse::parse(&datagram, &TRANSACTION), Err(StunError::UnknownAttribute(0x0024)));
}

#[test]
fn broken_requests_are_dropped() {
    let server = full_server();
    let drop = |datagram: &[u8]| ask(datagram, &server).unwrap_err();
    let good = request(false, false);
    for position in [4, 5, 6, 7] {
        let mut changed = good.clone();
        changed[position] ^= 1;
        assert_eq!(drop(&changed), StunError::NotStun);
    }
    assert_eq!(drop(&good[..19]), StunError::NotStun);
    assert_eq!(drop(&[good.as_slice(), &[0; 4]].concat()), StunError::NotStun);
    let mut unaligned = [good.as_slice(), &[0; 2]].concat();
    unaligned[3] = 2;
    assert_eq!(drop(&unaligned), StunError::NotStun);
    let mut not_zero = good.clone();
    not_zero[0] = 0x40;
    assert_eq!(drop(&not_zero), StunError::NotStun);
    // Indication, both responses, another method.
    for message_type in [0x0011, 0x0101, 0x0111, 0x0002, 0x0003] {
        assert_eq!(drop(&raw(message_type, &[])), StunError::UnexpectedType(message_type));
    }
    assert_eq!(drop(&raw(1, &[(0x0003, &[0; 3])])), StunError::Malformed);
    assert_eq!(drop(&raw(1, &[(0x0003, &[0; 8])])), StunError::Malformed);
    let mut overrun = raw(1, &[(0x8000, &[0; 4])]);
    overrun[23] = 5;
    assert_eq!(drop(&overrun), StunError::Malformed);
    assert_eq!(drop(&raw(1, &[(0x8000, &[0; 528])])), StunError::TooLong(552));
    assert!(ask(&raw(1, &[(0x8000, &[0; 524])]), &server).is_ok());
    let fingerprint = BindingRequest { transaction: TRANSACTION, change: Change::default(), fingerprint: true }.emit();
    let mut not_last = [fingerprint.as_slice(), &[0x80, 0, 0, 0]].concat();
    not_last[3] += 4;
    assert_eq!(drop(&not_last), StunError::Fingerprint);
    assert_eq!(drop(&raw(1, &[(0x8028, &[0; 8])])), StunError::Fingerprint);
}

#[test]
fn broken_responses_are_dropped() {
    let parse = |attributes: &[(u16, &[u8])]| BindingResponse::parse(&raw(0x0101, attributes), &TRANSACTION);
    assert_eq!(parse(&[]), Err(StunError::Malformed));
    // A family that does not exist, a value too long for its family, and an address nobody can have.
    assert_eq!(parse(&[(0x0020, &[0, 3, 0, 0, 1, 1, 1, 1])]), Err(StunError::Malformed));
    assert_eq!(parse(&[(0x0020, &[0, 1, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0])]), Err(StunError::Malformed));
    assert_eq!(parse(&[(0x0020, &[0, 1, 0x21, 0x12, 1, 1, 1, 1])]), Err(StunError::Malformed));
    let mapped: (u16, &[u8]) = (0x0020, &[0, 1, 0, 0, 1, 1, 1, 1]);
    assert!(parse(&[mapped]).is_ok());
    assert_eq!(parse(&[mapped, (0x802c, &[0, 1, 0, 9, 0, 0, 0, 0])]), Err(StunError::Malformed));
    let error = |attributes: &[(u16, &[u8])]| BindingResponse::parse(&raw(0x0111, attributes), &TRANSACTION);
    assert_eq!(error(&[mapped]), Err(StunError::Malformed));
    assert_eq!(error(&[(0x0009, &[0, 0, 2, 0])]), Err(StunError::Malformed));
    assert_eq!(error(&[(0x0009, &[0, 0, 5, 0])]), Ok(BindingResponse::Error { code: 500, unknown: vec![] }));
    assert!(matches!(BindingResponse::parse(&vec![0; 2000], &TRANSACTION), Err(StunError::NotStun)));
    let long = raw(0x0101, &[(0x8000, &[0; 1212])]);
    assert_eq!(BindingResponse::parse(&long, &TRANSACTION), Err(StunError::TooLong(1236)));
}

#[test]
fn sources_and_addresses_that_are_not_served() {
    let server = full_server();
    let respond = |source, at| respond(&request(false, false), address(source), address(at), &server);
    for (source, at) in [
        ("0.0.0.0:1", "192.0.2.1:3478"),
        ("224.0.0.1:1", "192.0.2.1:3478"),
        ("255.255.255.255:1", "192.0.2.1:3478"),
        ("198.51.100.7:0", "192.0.2.1:3478"),
        ("[2001:db8::1]:1", "192.0.2.1:3478"),
        ("198.51.100.7:1", "192.0.2.3:3478"),
    ] {
        assert_eq!(respond(source, at), Err(StunError::NotServed), "{source} {at}");
    }
    // A socket for both families shows IPv4 like this; the client must read its IPv4 address.
    let answer = respond("[::ffff:198.51.100.7]:1", "[::ffff:192.0.2.1]:3478").unwrap();
    assert_eq!(answer.to, address("[::ffff:198.51.100.7]:1"));
    let parsed = BindingResponse::parse(&answer.datagram, &TRANSACTION).unwrap();
    assert!(matches!(parsed, BindingResponse::Success { mapped, .. } if mapped == address("198.51.100.7:1")));
}

#[test]
fn server_addresses_make_sense() {
    let new = |ip: Option<&str>, port| {
        ServerAddresses::new(address("192.0.2.1:3478"), ip.map(|ip| ip.parse().unwrap()), port)
    };
    assert_eq!(new(Some("2001:db8::1"), None), None);
    assert_eq!(new(Some("192.0.2.1"), None), None);
    assert_eq!(new(Some("0.0.0.0"), None), None);
    assert_eq!(new(None, Some(3478)), None);
    assert_eq!(new(None, Some(0)), None);
    assert!(new(Some("192.0.2.2"), None).is_some());
    assert_eq!(ServerAddresses::new(address("[::]:3478"), None, None), None);
}

#[test]
fn the_longest_answers() {
    let server = server("[2001:db8::1]:3478", Some("2001:db8::2"), Some(3479));
    let at = server.iter().next().unwrap();
    let answer = respond(&request(false, false), address("[2001:db8::7]:1"), at, &server).unwrap();
    assert_eq!(answer.datagram.len(), 20 + MAX_GROWTH);
    let attributes: Vec<(u16, &[u8])> = (0x1000..0x1000 + 132).map(|number| (number, [].as_slice())).collect();
    let datagram = raw(1, &attributes);
    assert_eq!(datagram.len(), MAX_REQUEST_LEN);
    let answer = respond(&datagram, address("[2001:db8::7]:1"), at, &server).unwrap();
    assert_eq!(answer.datagram.len(), MAX_ANSWER_LEN - FINGERPRINT_LEN);
}

fn any_address() -> impl Strategy<Value = SocketAddr> {
    (any::<IpAddr>(), 1u16..).prop_map(|(ip, port)| canonical(SocketAddr::new(ip, port)))
}

proptest! {
    #[test]
    fn a_client_reads_what_the_server_says(
        transaction: Transaction, ip: bool, port: bool, fingerprint: bool, source in any_address(), several: bool,
    ) {
        prop_assume!(is_usable_address(&source));
        let server = match (source.is_ipv4(), several) {
            (true, true) => full_server(),
            (true, false) => server("192.0.2.1:3478", None, None),
            (false, true) => server("[2001:db8::1]:3478", Some("2001:db8::2"), Some(3479)),
            (false, false) => server("[2001:db8::1]:3478", None, None),
        };
        let at = server.iter().next().unwrap();
        let request = BindingRequest { transaction, change: Change { ip, port }, fingerprint }.emit();
        let answer = respond(&request, source, at, &server).unwrap();
        prop_assert!(answer.datagram.len() <= request.len() + MAX_GROWTH);
        prop_assert_eq!(classify(&answer.datagram), DatagramKind::Stun);
        let response = BindingResponse::parse(&answer.datagram, &transaction).unwrap();
        if several || !(ip || port) {
            let other = several.then(|| server.iter().last()).flatten();
            prop_assert_eq!(response, BindingResponse::Success { mapped: source, origin: Some(answer.from), other });
        } else {
            prop_assert_eq!(response, BindingResponse::Error { code: 420, unknown: vec![CHANGE_REQUEST] });
        }
    }

    #[test]
    fn any_attributes_never_panic_and_never_amplify(
        message_type in proptest::sample::select(vec![0x0001u16, 0x0101, 0x0111]),
        attributes in proptest::collection::vec((
            prop_oneof![0u16..0x30, 0x8020u16..0x8030, any::<u16>()],
            proptest::collection::vec(any::<u8>(), 0..24),
        ), 0..12),
    ) {
        let attributes: Vec<_> = attributes.iter().map(|(number, value)| (*number, value.as_slice())).collect();
        let datagram = raw(message_type, &attributes);
        let _ = BindingResponse::parse(&datagram, &TRANSACTION);
        if let Ok(answer) = ask(&datagram, &full_server()) {
            prop_assert!(answer.datagram.len() <= (datagram.len() + MAX_GROWTH).min(MAX_ANSWER_LEN));
            prop_assert!(BindingResponse::parse(&answer.datagram, &TRANSACTION).is_ok());
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
        let _ = ask(&bytes, &full_server());
        let _ = BindingResponse::parse(&bytes, &TRANSACTION);
    }
}
