//! A rendezvous server as a process on 127.0.0.1, and clients made of nothing but the session and the wire.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests have clocks and threads, and fail by panicking"
)]

mod client;
mod process;

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use agentnet::wire::control::{ControlMessage, IntroducedStatus, RelayRefusal, RendezvousMessage};
use agentnet::wire::{BindingRequest, BindingResponse, Change, FRAME_INTRODUCTION, RelayChannel, frame_header};
use client::Client;
use process::Server;

fn sealed(content: u8) -> Vec<u8> {
    [frame_header(FRAME_INTRODUCTION).as_slice(), &[content; 1000]].concat()
}

/// A relay frame whose payload looks like WireGuard data and holds a number.
fn frame(channel: RelayChannel, number: u32) -> Vec<u8> {
    let mut frame = vec![0; 16 + 1200];
    channel.emit(frame.first_chunk_mut().unwrap());
    frame[16] = 4;
    frame[20..24].copy_from_slice(&number.to_le_bytes());
    frame
}

#[test]
fn clients_register_look_each_other_up_and_are_introduced() {
    let server = Server::start();
    let (mut one, mut other) = (Client::connected(&server), Client::connected(&server));
    for client in [&mut one, &mut other] {
        let observed = client.address();
        let registered = RendezvousMessage::Registered { observed, expires_s: 60, relay: true };
        assert_eq!(client.register(), registered);
    }
    let id = other.id();
    assert_eq!(
        one.ask(RendezvousMessage::Lookup { id }),
        RendezvousMessage::LookupResult { id, record: Some(other.record()) }
    );
    one.say(RendezvousMessage::Introduce { recipient: id, sealed: sealed(1) });
    let status = IntroducedStatus::Delivered;
    assert_eq!(one.hear(), ControlMessage::Rendezvous(RendezvousMessage::Introduced { recipient: id, status }));
    let introduction = RendezvousMessage::Introduction { sealed: sealed(1), observed: one.address() };
    assert_eq!(other.hear(), ControlMessage::Rendezvous(introduction));
}

#[test]
fn a_thousand_frames_are_relayed_both_ways_unchanged() {
    let server = Server::start();
    let (mut one, other) = (Client::registered(&server), Client::registered(&server));
    let (peer, channel) = (other.id(), RelayChannel::new(0x1234_5678_9abc_def0));
    let first = frame(channel, 7)[16..].to_vec();
    one.say(RendezvousMessage::RelayOpen { peer, channel, first: first[..148].to_vec() });
    let opened = RendezvousMessage::RelayOpened { peer, channel, outcome: Ok(()) };
    assert_eq!(one.hear(), ControlMessage::Rendezvous(opened));
    assert_eq!(other.receive(), frame(channel, 7)[..16 + 148]);
    for (from, to) in [(&one, &other), (&other, &one)] {
        // In bursts that fit the default receive buffer of a socket.
        for burst in (0..1000u32).step_by(50) {
            (burst..burst + 50).for_each(|number| from.send(&frame(channel, number)));
            for number in burst..burst + 50 {
                assert_eq!(to.receive(), frame(channel, number), "frame {number}");
            }
        }
    }
    // A stranger that learned the channel gains nothing.
    let stranger = UdpSocket::bind("127.0.0.1:0").unwrap();
    stranger.send_to(&frame(channel, 1), server.address).unwrap();
    one.send(&frame(channel, 2));
    assert_eq!(other.receive(), frame(channel, 2));
}

#[test]
fn identity_records_and_introductions_survive_kill_9() {
    let mut server = Server::start();
    let (mut one, other) = (Client::registered(&server), Client::registered(&server));
    let recipient = other.id();
    let mut other = other.leave();
    one.say(RendezvousMessage::Introduce { recipient, sealed: sealed(9) });
    let status = IntroducedStatus::Stored;
    assert_eq!(one.hear(), ControlMessage::Rendezvous(RendezvousMessage::Introduced { recipient, status }));
    let sender = one.address();
    server.wait_until_stored();
    let before = server.record();
    server.kill_and_restart();
    let after = server.record();
    assert_eq!((after.id(), after.record().tunnel_key), (before.id(), before.record().tunnel_key));
    assert!(after.supersedes(&before));
    let mut asking = Client::registered(&server);
    assert_eq!(
        asking.ask(RendezvousMessage::Lookup { id: recipient }),
        RendezvousMessage::LookupResult { id: recipient, record: Some(other.record()) }
    );
    other.connect(&server);
    assert!(matches!(other.register(), RendezvousMessage::Registered { .. }));
    let introduction = RendezvousMessage::Introduction { sealed: sealed(9), observed: sender };
    assert_eq!(other.hear(), ControlMessage::Rendezvous(introduction));
}

#[test]
fn stun_answers_from_the_port_it_is_asked_to() {
    // The port above is somebody else's now and then.
    let answered = (0..5).any(|_| {
        let server = Server::start();
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let ask = |change| {
            let transaction = [8; 12];
            let request = BindingRequest { transaction, change, fingerprint: true }.emit();
            socket.send_to(&request, server.address).unwrap();
            let mut buffer = [0; 1500];
            let (len, from) = socket.recv_from(&mut buffer).unwrap();
            (from, BindingResponse::parse(&buffer[..len], &transaction).unwrap())
        };
        let (from, response) = ask(Change::default());
        let BindingResponse::Success { mapped, other, .. } = response else { panic!("{response:?}") };
        assert_eq!((from, mapped), (server.address, socket.local_addr().unwrap()));
        let Some(other) = other else { return false };
        assert_eq!(other.port(), server.address.port() + 1);
        assert_eq!(ask(Change { ip: false, port: true }).0, other);
        true
    });
    assert!(answered);
}

#[test]
fn a_server_without_a_relay_refuses_channels() {
    let server = Server::start_with(&["--relay", "off"]);
    let (mut one, other) = (Client::registered(&server), Client::registered(&server));
    let (peer, channel) = (other.id(), RelayChannel::new(1));
    assert_eq!(
        one.ask(RendezvousMessage::RelayOpen { peer, channel, first: Vec::new() }),
        RendezvousMessage::RelayOpened { peer, channel, outcome: Err(RelayRefusal::NotOffered) }
    );
}

#[test]
fn signals_stop_it_cleanly_and_errors_are_told() {
    let mut server = Server::start();
    let port = server.address.port();
    for (arguments, code) in [
        (vec![format!("--listen=127.0.0.1:{port}")], "port_in_use"),
        (vec!["--listen=192.0.2.1:4000".to_owned()], "address_unavailable"),
        (vec!["--listen=127.0.0.1:0".to_owned(), "--listen=127.0.0.2:0".to_owned()], "config_invalid"),
        (vec!["--listen=127.0.0.1:5000".to_owned(), "--listen=[::1]:5001".to_owned()], "config_invalid"),
        (vec!["--listen=127.0.0.1:0".to_owned(), "--public=[::1]:5".to_owned()], "config_invalid"),
    ] {
        assert_eq!(process::error_of(&arguments), code, "{arguments:?}");
    }
    assert_eq!(server.error_on_the_same_state(), "state_dir_in_use");
    assert_eq!(server.terminate(), Some(0));
    // What is asked of a server that is gone is not answered by its port.
    assert!(UdpSocket::bind(server.address).is_ok());
}

#[test]
fn sighup_ends_nothing_and_a_log_that_leaves_lines_out_says_so() {
    let mut server = Server::start();
    let said = |server: &Server| server.log().matches("nothing was read again").count();
    let until = Instant::now() + Duration::from_secs(40);
    // As many as one place may say at once, and more.
    while !server.log().contains("log lines were left out") {
        assert!(Instant::now() < until, "{}", server.log());
        server.hang_up();
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!((100..130).contains(&said(&server)), "{} lines", said(&server));
    assert_eq!(server.terminate(), Some(0));
    assert!(server.log().contains("drop_log_lines "), "{}", server.log());
}
