//! The UDP sockets against a real kernel, in a namespace of its own.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod namespace;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use agentnet_platform::udp::{
    DatagramSocket, MAX_EXTRA_SOCKETS, RecvBatch, SendBatch, SocketId, TooBig, UdpError, UdpOptions, UdpSockets,
};
use agentnet_platform::wait::{Waker, wait_readable};
use namespace::Namespace;

const PATIENCE: Duration = Duration::from_secs(5);

fn options(port: u16) -> UdpOptions {
    UdpOptions { port, v4: true, v6: true, recv_buffer: 4 << 20, send_buffer: 4 << 20 }
}

struct Received {
    source: SocketAddr,
    destination_ip: Option<IpAddr>,
    socket: SocketId,
    data: Vec<u8>,
}

/// Receives until `count` datagrams have come.
fn receive(sockets: &UdpSockets, count: usize) -> Vec<Received> {
    let waker = Waker::new().unwrap();
    let mut batch = RecvBatch::new();
    let mut all = Vec::new();
    while all.len() < count {
        let ready = wait_readable(&sockets.fds(), &waker, Some(PATIENCE)).unwrap();
        assert!(!ready.is_timeout(), "only {} of {count} datagrams came", all.len());
        sockets.recv_batch(&mut batch).unwrap();
        all.extend(batch.datagrams().map(|datagram| Received {
            source: datagram.source,
            destination_ip: datagram.destination_ip,
            socket: datagram.socket,
            data: datagram.data.to_vec(),
        }));
    }
    all
}

fn push(batch: &mut SendBatch, destination: SocketAddr, data: &[u8]) {
    assert!(batch.push_with(destination, None, data.len(), |space| {
        space.copy_from_slice(data);
        data.len()
    }));
}

#[test]
fn both_families_share_one_port_and_say_who_sent_what_where() {
    Namespace::new().enter(|| {
        let a = UdpSockets::bind(&options(0)).unwrap();
        let b = UdpSockets::bind(&options(0)).unwrap();
        assert!(a.has_v4() && a.has_v6());
        assert_ne!(a.port(), 0);
        for ip in [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()] {
            b.send_to(b"hello", SocketAddr::new(ip, a.port()), None).unwrap();
            let received = receive(&a, 1);
            assert_eq!(received[0].source, SocketAddr::new(ip, b.port()));
            assert_eq!(received[0].destination_ip, Some(ip));
            assert_eq!(received[0].data, b"hello");
        }
    });
}

#[test]
fn the_source_address_can_be_chosen() {
    Namespace::new().enter(|| {
        let a = UdpSockets::bind(&options(0)).unwrap();
        let b = UdpSockets::bind(&options(0)).unwrap();
        let chosen = Ipv4Addr::new(127, 0, 0, 77);
        let to = SocketAddr::from((Ipv4Addr::LOCALHOST, a.port()));
        b.send_to(b"x", to, Some(chosen.into())).unwrap();
        // The other family's is ignored, not an error.
        b.send_to(b"x", to, Some(Ipv6Addr::LOCALHOST.into())).unwrap();
        let received = receive(&a, 2);
        assert_eq!(received[0].source, (chosen, b.port()).into());
        assert_eq!(received[1].source.ip(), Ipv4Addr::LOCALHOST);
    });
}

#[test]
fn ten_segments_leave_in_one_transmit_and_arrive_as_ten_datagrams() {
    Namespace::new().enter(|| {
        let a = UdpSockets::bind(&options(0)).unwrap();
        let b = UdpSockets::bind(&options(0)).unwrap();
        assert!(b.max_gso_segments() >= 10, "this kernel has no UDP_SEGMENT (Linux 4.18)");
        for ip in [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()] {
            let to = SocketAddr::new(ip, a.port());
            let mut batch = SendBatch::new(64 << 10, b.max_gso_segments());
            for fill in 0..10u8 {
                let len = if fill == 9 { 700 } else { 1_200 };
                push(&mut batch, to, &vec![fill; len]);
            }
            let report = b.send_batch(&batch);
            assert_eq!((report.sent_datagrams, report.dropped), (10, 0), "{report:?}");
            // One system call: the loopback device does not split, so it arrives as one train.
            let mut arrived = RecvBatch::new();
            assert_eq!(a.recv_batch(&mut arrived).unwrap(), 1);
            let shapes: Vec<_> = arrived.datagrams().map(|d| (d.data[0], d.data.len())).collect();
            assert_eq!(shapes.len(), 10);
            assert_eq!((shapes[0], shapes[8], shapes[9]), ((0, 1_200), (8, 1_200), (9, 700)));
        }
    });
}

#[test]
fn a_failing_destination_stops_nobody_and_does_not_end_segmentation() {
    let namespace = Namespace::new();
    namespace.add_link("small");
    namespace.ip(&["link", "set", "small", "mtu", "1280"]);
    namespace.ip(&["addr", "add", "10.9.0.1/24", "dev", "small"]);
    namespace.enter(|| {
        let a = UdpSockets::bind(&options(0)).unwrap();
        let b = UdpSockets::bind(&options(0)).unwrap();
        let good = SocketAddr::from((Ipv4Addr::LOCALHOST, a.port()));
        let no_route: SocketAddr = "192.0.2.1:9".parse().unwrap();
        let small_mtu: SocketAddr = "10.9.0.2:9".parse().unwrap();
        let before = b.max_gso_segments();
        let mut batch = SendBatch::new(64 << 10, before);
        for destination in [no_route, good, small_mtu, good] {
            push(&mut batch, destination, &[1; 1_400]);
            push(&mut batch, destination, &[2; 1_400]);
        }
        let report = b.send_batch(&batch);
        assert_eq!(report.sent_datagrams, 4, "{report:?}");
        assert_eq!((report.dropped, report.unreachable, report.too_big), (4, 2, 2), "{report:?}");
        assert_eq!(report.last_failed, Some(small_mtu));
        assert_eq!(report.shortest_too_big, Some(TooBig { destination: small_mtu, len: 1_400 }));
        assert!(report.last_error.is_some());
        assert_eq!(b.max_gso_segments(), before);
        assert_eq!(receive(&a, 4).len(), 4);
    });
}

#[test]
fn only_what_may_be_fragmented_is() {
    let namespace = Namespace::new();
    namespace.add_link("small");
    namespace.ip(&["link", "set", "small", "mtu", "1280"]);
    namespace.ip(&["addr", "add", "10.9.0.1/24", "dev", "small"]);
    namespace.enter(|| {
        let a = UdpSockets::bind(&options(0)).unwrap();
        let b = UdpSockets::bind(&options(0)).unwrap();
        let destination: SocketAddr = "10.9.0.2:9".parse().unwrap();
        let mut batch = SendBatch::new(64 << 10, b.max_gso_segments());
        for _ in 0..2 {
            push(&mut batch, destination, &[1; 1_400]);
            assert!(batch.push_fragmentable(destination, None, 1_400, |space| space.len()));
        }
        let report = b.send_batch(&batch);
        assert_eq!((report.sent_datagrams, report.too_big), (2, 2), "{report:?}");
        let error = b.send_to(&[1; 1_400], destination, None).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EMSGSIZE), "whole again: {error}");
        // Where it arrives it is whole, and the next one of that length leaves whole too.
        for ip in [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()] {
            let to = SocketAddr::new(ip, a.port());
            let mut batch = SendBatch::new(64 << 10, b.max_gso_segments());
            assert!(batch.push_fragmentable(to, None, 1_400, |space| {
                space.fill(5);
                space.len()
            }));
            push(&mut batch, to, &[6; 1_400]);
            assert_eq!(b.send_batch(&batch).sent_datagrams, 2);
            let received = receive(&a, 2);
            assert_eq!((&received[0].data[..], &received[1].data[..]), (&[5; 1_400][..], &[6; 1_400][..]));
        }
    });
}

#[test]
fn a_port_that_is_taken_in_one_family_is_an_error() {
    Namespace::new().enter(|| {
        let other = UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).unwrap();
        let port = other.local_addr().unwrap().port();
        let v4_only = UdpOptions { v6: false, ..options(port) };
        let sockets = UdpSockets::bind(&v4_only).unwrap();
        assert!(sockets.has_v4() && !sockets.has_v6());
        let to_v6 = SocketAddr::from((Ipv6Addr::LOCALHOST, 9));
        let error = sockets.send_to(b"x", to_v6, None).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::NetworkUnreachable);
        drop(sockets);
        let error = UdpSockets::bind(&options(port)).err().unwrap();
        assert!(matches!(error, UdpError::PortInUse(taken) if taken == port), "{error:?}");
    });
}

#[test]
fn any_port_is_found_although_ipv6_has_taken_most() {
    let namespace = Namespace::new();
    namespace.sysctl("net.ipv4.ip_local_port_range=40000 40003");
    namespace.enter(|| {
        // Bound to one address: on all of them they would block IPv4 as well.
        let loopback = |port| UdpSocket::bind((Ipv6Addr::LOCALHOST, port)).unwrap();
        let held = [40_000, 40_001, 40_002].map(loopback);
        let mut found = 0;
        for _ in 0..8 {
            // Sixteen tries of four ports: one in a hundred fails, eight in a row do not.
            if let Ok(sockets) = UdpSockets::bind(&options(0)) {
                assert_eq!(sockets.port(), 40_003);
                found += 1;
            }
        }
        assert!(found > 0);
        drop(held);
    });
}

#[test]
fn nothing_wanted_is_an_error() {
    let none = UdpOptions { v4: false, v6: false, ..options(0) };
    assert!(matches!(UdpSockets::bind(&none), Err(UdpError::NoFamily)));
}

#[test]
fn a_closed_port_at_the_other_end_does_not_disturb_receiving() {
    Namespace::new().enter(|| {
        let a = UdpSockets::bind(&options(0)).unwrap();
        let closed = SocketAddr::from((Ipv4Addr::LOCALHOST, 9));
        for _ in 0..3 {
            let _ = a.send_to(b"x", closed, None);
        }
        assert_eq!(a.recv_batch(&mut RecvBatch::new()).unwrap(), 0);
        a.send_to(b"x", (Ipv4Addr::LOCALHOST, a.port()).into(), None).unwrap();
        assert_eq!(receive(&a, 1).len(), 1);
    });
}

#[test]
fn a_flood_on_one_family_does_not_silence_the_other() {
    Namespace::new().enter(|| {
        let a = UdpSockets::bind(&options(0)).unwrap();
        let b = UdpSockets::bind(&options(0)).unwrap();
        let flooded = SocketAddr::from((Ipv4Addr::LOCALHOST, a.port()));
        for len in 1..=200 {
            b.send_to(&vec![0; len], flooded, None).unwrap();
        }
        b.send_to(b"quiet", (Ipv6Addr::LOCALHOST, a.port()).into(), None).unwrap();
        let mut batch = RecvBatch::new();
        let heard = (0..2).any(|_| {
            a.recv_batch(&mut batch).unwrap();
            batch.datagrams().any(|datagram| datagram.source.is_ipv6())
        });
        assert!(heard);
    });
}

#[test]
fn ipv6_switched_off_leaves_ipv4() {
    let namespace = Namespace::new();
    namespace.sysctl("net.ipv6.conf.all.disable_ipv6=1");
    namespace.enter(|| {
        let a = UdpSockets::bind(&options(0)).unwrap();
        assert!(a.has_v4());
        let mut batch = SendBatch::new(1_024, 1);
        push(&mut batch, "[2001:db8::1]:9".parse().unwrap(), b"x");
        push(&mut batch, (Ipv4Addr::LOCALHOST, a.port()).into(), b"y");
        let report = a.send_batch(&batch);
        assert_eq!((report.sent_datagrams, report.unreachable), (1, 1), "{report:?}");
        assert_eq!(receive(&a, 1)[0].data, b"y");
    });
}

#[test]
fn extra_sockets_send_and_receive_beside_the_main_ones() {
    Namespace::new().enter(|| {
        let a = UdpSockets::bind(&options(0)).unwrap();
        let b = UdpSockets::bind(&options(0)).unwrap();
        let ids: Vec<SocketId> = (0..256).map(|_| a.open_extra().unwrap()).collect();
        let to = SocketAddr::from((Ipv4Addr::LOCALHOST, b.port()));
        for id in &ids {
            a.send_to(&id.number().to_be_bytes(), to, (*id, None)).unwrap();
        }
        // Each answer goes where the datagram came from, and arrives at the socket that sent it.
        for received in receive(&b, ids.len()) {
            assert_ne!(received.source.port(), a.port());
            b.send_to(&received.data, received.source, None).unwrap();
        }
        b.send_to(&[0, 0], (Ipv4Addr::LOCALHOST, a.port()).into(), None).unwrap();
        let mut heard: Vec<u16> = Vec::new();
        for received in receive(&a, ids.len() + 1) {
            assert_eq!(received.data, received.socket.number().to_be_bytes());
            heard.push(received.socket.number());
        }
        heard.sort_unstable();
        let expected: Vec<u16> = [0].into_iter().chain(ids.iter().map(|id| id.number())).collect();
        assert_eq!(heard, expected);
    });
}

#[test]
fn a_flood_at_one_extra_socket_leaves_the_others_their_turn() {
    Namespace::new().enter(|| {
        let a = UdpSockets::bind(&options(0)).unwrap();
        let b = UdpSockets::bind(&options(0)).unwrap();
        let ids = [(); 2].map(|()| a.open_extra().unwrap());
        let to = SocketAddr::from((Ipv4Addr::LOCALHOST, b.port()));
        let ports = ids.map(|id| {
            a.send_to(&[0], to, (id, None)).unwrap();
            receive(&b, 1)[0].source
        });
        for (flooded, quiet) in [(0, 1), (1, 0)] {
            for _ in 0..200 {
                b.send_to(&[1], ports[flooded], None).unwrap();
            }
            b.send_to(&[2], ports[quiet], None).unwrap();
            let mut batch = RecvBatch::of_trains(8);
            let mut turns = 0;
            let mut heard = false;
            while a.recv_batch(&mut batch).unwrap() > 0 {
                heard |= batch.trains().any(|train| train.socket == ids[quiet]);
                turns += u32::from(!heard);
            }
            assert!(heard && turns < 8, "{turns} batches of the flood came first");
        }
    });
}

#[test]
fn batches_leave_from_extra_sockets_too() {
    Namespace::new().enter(|| {
        let a = UdpSockets::bind(&options(0)).unwrap();
        let b = UdpSockets::bind(&options(0)).unwrap();
        let id = a.open_extra().unwrap();
        let to = SocketAddr::from((Ipv4Addr::LOCALHOST, b.port()));
        let mut batch = SendBatch::new(64 << 10, a.max_gso_segments());
        for local in [id, id, SocketId::MAIN, SocketId::new(999)] {
            assert!(batch.push_with(to, (local, None), 100, |space| space.len()));
        }
        assert!(batch.push_with((Ipv6Addr::LOCALHOST, b.port()).into(), (id, None), 100, |space| space.len()));
        let report = a.send_batch(&batch);
        assert_eq!((report.sent_datagrams, report.dropped, report.unreachable), (3, 2, 1), "{report:?}");
        let from_main = receive(&b, 3).iter().filter(|received| received.source.port() == a.port()).count();
        assert_eq!(from_main, 1);
    });
}

#[test]
fn a_thread_asleep_hears_a_socket_opened_after_it_fell_asleep() {
    Namespace::new().enter(|| {
        let a = UdpSockets::bind(&options(0)).unwrap();
        let b = UdpSockets::bind(&options(0)).unwrap();
        let waker = Waker::new().unwrap();
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| wait_readable(&a.fds(), &waker, Some(PATIENCE)).unwrap());
            // The wait may or may not have begun: either way it must end.
            let id = a.open_extra().unwrap();
            let to = SocketAddr::from((Ipv4Addr::LOCALHOST, b.port()));
            a.send_to(b"x", to, (id, None)).unwrap();
            let source = receive(&b, 1)[0].source;
            b.send_to(b"y", source, None).unwrap();
            assert!(!waiter.join().unwrap().is_timeout());
            assert_eq!(receive(&a, 1)[0].socket, id);
        });
    });
}

#[test]
fn a_closed_extra_socket_is_silent_and_its_port_free() {
    Namespace::new().enter(|| {
        let a = UdpSockets::bind(&options(0)).unwrap();
        let b = UdpSockets::bind(&options(0)).unwrap();
        let id = a.open_extra().unwrap();
        let to = SocketAddr::from((Ipv4Addr::LOCALHOST, b.port()));
        a.send_to(b"x", to, (id, None)).unwrap();
        let source = receive(&b, 1)[0].source;
        b.send_to(b"late", source, None).unwrap();
        a.close_extra(id);
        a.close_extra(id);
        a.close_extra(SocketId::MAIN);
        let waker = Waker::new().unwrap();
        assert!(wait_readable(&a.fds(), &waker, Some(Duration::ZERO)).unwrap().is_timeout());
        assert_eq!(a.recv_batch(&mut RecvBatch::new()).unwrap(), 0);
        assert_eq!(a.send_to(b"x", to, (id, None)).unwrap_err().kind(), std::io::ErrorKind::NotConnected);
        // A program that another test starts at this moment has the socket too, until it runs.
        let is_free = || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, source.port())).is_ok();
        let wait = || wait_readable(&a.fds(), &waker, Some(Duration::from_millis(20))).unwrap().is_timeout();
        assert!((0..100).any(|_| is_free() || !wait()));
        a.send_to(b"still here", to, None).unwrap();
        assert_eq!(receive(&b, 1)[0].data, b"still here");
    });
}

#[test]
fn extra_sockets_are_limited_and_numbers_are_not_used_again_at_once() {
    Namespace::new().enter(|| {
        let _ = agentnet_platform::process::raise_open_files_limit(4096);
        let a = UdpSockets::bind(&options(0)).unwrap();
        let ids: Vec<SocketId> = (0..MAX_EXTRA_SOCKETS).map(|_| a.open_extra().unwrap()).collect();
        assert_eq!(a.open_extra().unwrap_err().kind(), std::io::ErrorKind::QuotaExceeded);
        a.close_extra(ids[3]);
        let next = a.open_extra().unwrap();
        assert!(!ids.contains(&next));
    });
}

#[test]
fn sockets_on_one_address_take_no_other() {
    let loopback: IpAddr = Ipv4Addr::LOCALHOST.into();
    let sockets = UdpSockets::bind_on(&[loopback], &options(0)).unwrap();
    assert!(sockets.has_v4() && !sockets.has_v6());
    // Another address of the host has the port to itself, and what it is sent does not come here.
    let other = UdpSocket::bind((Ipv4Addr::new(127, 0, 0, 2), sockets.port())).unwrap();
    other.send_to(b"elsewhere", other.local_addr().unwrap()).unwrap();
    other.send_to(b"here", (loopback, sockets.port())).unwrap();
    let received = receive(&sockets, 1);
    assert_eq!((received[0].data.as_slice(), received[0].destination_ip), (&b"here"[..], Some(loopback)));
    let foreign: IpAddr = Ipv4Addr::new(192, 0, 2, 1).into();
    assert!(matches!(UdpSockets::bind_on(&[foreign], &options(0)), Err(UdpError::NoFamily)));
}

#[test]
fn twins_share_the_port_and_nobody_else_does() {
    Namespace::new().enter(|| {
        let sockets = UdpSockets::bind(&options(0)).unwrap();
        let twin = sockets.twin().unwrap();
        assert_eq!(twin.port(), sockets.port());
        assert_eq!(twin.fds().len() + 1, sockets.fds().len(), "the extra sockets belong to one of them");
        assert!(matches!(UdpSockets::bind(&options(sockets.port())), Err(UdpError::PortInUse(_))));

        // Each flow stays with one of them: what a sender sends twice is where the first was.
        let mut seen = [0, 0];
        for _ in 0..64 {
            let sender = UdpSockets::bind(&options(0)).unwrap();
            let to = SocketAddr::from((Ipv4Addr::LOCALHOST, sockets.port()));
            for _ in 0..2 {
                sender.send_to(b"datagram", to, None).unwrap();
            }
            let counts = [&sockets, &twin].map(|one| {
                let mut batch = RecvBatch::new();
                one.recv_batch(&mut batch).unwrap()
            });
            assert!(counts == [2, 0] || counts == [0, 2], "{counts:?}");
            seen[usize::from(counts[1] > 0)] += 1;
        }
        assert!(seen.iter().all(|flows| *flows > 0), "one of them gets nothing: {seen:?}");
    });
}
