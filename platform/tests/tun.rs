//! The TUN device against a real kernel, in a namespace of its own.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod namespace;

use std::fs::File;
use std::io::{Error, ErrorKind};
use std::net::{Ipv6Addr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use agentnet_platform::batch::{PacketBatch, VnetHeader};
use agentnet_platform::network::{InterfaceConfig, Network, NetworkEvent};
use agentnet_platform::tun::{PacketDevice, Tun, TunError, TunOptions, TunQueue, WriteReport};
use agentnet_platform::wait::{Waker, wait_readable};
use namespace::Namespace;

const MTU: u16 = 1_280;
const OURS: Ipv6Addr = Ipv6Addr::new(0xfd61, 0x6e74, 0, 0, 0, 0, 0, 1);
const THEIRS: Ipv6Addr = Ipv6Addr::new(0xfd61, 0x6e74, 0, 0, 0, 0, 0, 2);
const PATIENCE: Duration = Duration::from_secs(5);

fn options(name: Option<&str>) -> TunOptions {
    TunOptions { name: name.map(str::to_owned), mtu: MTU, queues: 1 }
}

async fn configured(name: &str) -> Tun {
    configure(Tun::open(&options(Some(name))).unwrap()).await
}

async fn configure(tun: Tun) -> Tun {
    let config = InterfaceConfig {
        mtu: MTU.into(),
        addresses: vec!["fd61:6e74::1/128".parse().unwrap()],
        routes: vec!["fd61:6e74::/32".parse().unwrap()],
        table: None,
    };
    let network = Network::new().unwrap();
    let mut events = network.events().unwrap();
    let done = network.configure(tun.index(), &config).await.unwrap();
    assert!(done.is_complete(), "{done:?}");
    // The kernel puts an IPv6 address to use some time after it has taken it.
    let usable = async { while events.recv().await != Some(NetworkEvent::AddressAdded(OURS.into())) {} };
    tokio::time::timeout(PATIENCE, usable).await.unwrap();
    tun
}

/// An IPv6 UDP packet from `THEIRS` port 4000 to `OURS`, checksum complete.
fn udp_packet(port: u16, payload: &[u8]) -> Vec<u8> {
    let udp_len = u16::try_from(8 + payload.len()).unwrap();
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend(udp_len.to_be_bytes());
    packet.extend([17, 64]);
    packet.extend(THEIRS.octets());
    packet.extend(OURS.octets());
    packet.extend(4_000u16.to_be_bytes());
    packet.extend(port.to_be_bytes());
    packet.extend(udp_len.to_be_bytes());
    packet.extend([0, 0]);
    packet.extend(payload);
    let mut sum = u32::from(udp_len) + 17;
    for pair in packet[8..].chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let checksum = !u16::try_from(sum).unwrap();
    packet[46..48].copy_from_slice(&checksum.to_be_bytes());
    packet
}

fn write(queue: &mut TunQueue, packets: &[Vec<u8>]) -> WriteReport {
    let mut batch = PacketBatch::new(1 << 20, 64);
    for packet in packets {
        batch.free_space()[..packet.len()].copy_from_slice(packet);
        batch.commit(VnetHeader::default(), packet.len());
    }
    queue.write_batch(&mut batch).unwrap()
}

/// Reads until a UDP packet comes: the kernel may send its own multicast reports first.
fn read_udp(queue: &mut TunQueue) -> (VnetHeader, Vec<u8>) {
    let waker = Waker::new().unwrap();
    let mut batch = PacketBatch::new(1 << 20, 64);
    loop {
        batch.clear();
        let ready = wait_readable(&[queue.as_fd()], &waker, Some(PATIENCE)).unwrap();
        assert!(!ready.is_timeout(), "no packet came out of the device");
        queue.read_batch(&mut batch).unwrap();
        let udp = batch.iter().find(|(_, packet)| packet.get(6) == Some(&17));
        if let Some((header, packet)) = udp {
            return (header, packet.to_vec());
        }
    }
}

#[test]
fn packets_pass_both_ways() {
    let namespace = Namespace::new();
    namespace.enter_async(|| async {
        let tun = configured("both").await;
        let mut queue = tun.queue(0);
        let socket = UdpSocket::bind((OURS, 0)).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();

        let port = socket.local_addr().unwrap().port();
        let report = write(&mut queue, &[udp_packet(port, b"inward")]);
        assert_eq!(report, WriteReport { written: 1, dropped: 0 });
        let mut buffer = [0; 64];
        let (len, from) = socket.recv_from(&mut buffer).unwrap();
        assert_eq!((&buffer[..len], from), (&b"inward"[..], (THEIRS, 4_000).into()));

        socket.send_to(b"outward", (THEIRS, 4_000)).unwrap();
        let (header, packet) = read_udp(&mut queue);
        assert_eq!(packet.len(), 48 + 7);
        assert_eq!(packet[8..24], OURS.octets());
        assert_eq!(&packet[48..], b"outward");
        // The offload is on: the kernel leaves the checksum to us, 6 bytes into the UDP header.
        assert_eq!(header.flags, VnetHeader::NEEDS_CSUM);
        assert_eq!((header.csum_start, header.csum_offset), (40, 6));
    });
}

#[test]
fn a_refused_packet_does_not_hold_up_the_rest() {
    let namespace = Namespace::new();
    namespace.enter_async(|| async {
        let tun = configured("refuse").await;
        let mut queue = tun.queue(0);
        let socket = UdpSocket::bind((OURS, 0)).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let port = socket.local_addr().unwrap().port();
        let garbage = vec![0xff; 60];
        let packets = [udp_packet(port, b"one"), garbage, udp_packet(port, b"two")];
        let report = write(&mut queue, &packets);
        assert_eq!(report, WriteReport { written: 2, dropped: 1 });
        let mut buffer = [0; 64];
        for expected in [b"one", b"two"] {
            let len = socket.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..len], expected);
        }
    });
}

#[test]
fn a_device_that_is_down_drops_and_one_that_is_gone_fails() {
    let namespace = Namespace::new();
    namespace.enter(|| {
        let tun = Tun::open(&options(Some("switched-off"))).unwrap();
        let mut queue = tun.queue(0);
        let report = write(&mut queue, &[udp_packet(9, b"x")]);
        assert_eq!(report, WriteReport { written: 0, dropped: 1 });
        namespace.ip(&["link", "del", "switched-off"]);
        let mut batch = PacketBatch::new(1 << 20, 64);
        assert!(queue.read_batch(&mut batch).is_err());
        batch.free_space()[0] = 0x60;
        batch.commit(VnetHeader::default(), 1);
        assert!(queue.write_batch(&mut batch).is_err());
    });
}

#[test]
fn segmentation_offload_hands_over_more_than_an_mtu() {
    let namespace = Namespace::new();
    namespace.enter_async(|| async {
        let tun = configured("gso").await;
        assert!(tun.tcp_offload());
        if !tun.udp_offload() {
            panic!("this kernel has no UDP segmentation offload for TUN (Linux 6.2), nothing is tested");
        }
        let mut queue = tun.queue(0);
        let payload: Vec<u8> = (0..2_500u32).map(|n| n.to_le_bytes()[0]).collect();
        let socket = UdpSocket::bind((OURS, 0)).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let port = socket.local_addr().unwrap().port();

        // One packet of three datagrams, its checksum left to the kernel.
        let mut packet = udp_packet(port, &payload);
        let mut sum = u32::from(u16::from_be_bytes([packet[4], packet[5]])) + 17;
        for pair in packet[8..40].chunks(2) {
            sum += u32::from(u16::from_be_bytes([pair[0], pair[1]]));
        }
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        packet[46..48].copy_from_slice(&u16::try_from(sum).unwrap().to_be_bytes());
        let header = VnetHeader {
            flags: VnetHeader::NEEDS_CSUM,
            gso_type: VnetHeader::GSO_UDP_L4,
            hdr_len: 48,
            gso_size: 1_000,
            csum_start: 40,
            csum_offset: 6,
        };
        let mut batch = PacketBatch::new(1 << 20, 64);
        batch.free_space()[..packet.len()].copy_from_slice(&packet);
        batch.commit(header, packet.len());
        assert_eq!(queue.write_batch(&mut batch).unwrap().written, 1);
        let mut buffer = [0; 4_000];
        for expected in payload.chunks(1_000) {
            let len = socket.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..len], expected);
        }
    });
}

#[test]
fn a_name_that_exists_is_left_alone() {
    let namespace = Namespace::new();
    namespace.enter(|| {
        let first = Tun::open(&options(Some("twice"))).unwrap();
        assert_eq!(first.name(), "twice");
        let error = Tun::open(&options(Some("twice"))).err().unwrap();
        assert!(matches!(&error, TunError::NameTaken(name) if name == "twice"), "{error:?}");

        // Attaching to somebody's persistent device would succeed.
        namespace.ip(&["tuntap", "add", "dev", "keep", "mode", "tun", "vnet_hdr"]);
        let error = Tun::open(&options(Some("keep"))).err().unwrap();
        assert!(matches!(error, TunError::NameTaken(_)), "{error:?}");
        namespace.add_link("wire");
        let error = Tun::open(&options(Some("wire"))).err().unwrap();
        assert!(matches!(error, TunError::NameTaken(_)), "{error:?}");
    });
}

#[test]
fn odd_names_are_refused_before_the_kernel_sees_them() {
    let namespace = Namespace::new();
    namespace.enter(|| {
        for name in ["", "agentnet%d", "a/b", "0123456789abcdef", "a\0b", ".."] {
            let error = Tun::open(&options(Some(name))).err().unwrap();
            assert!(matches!(error, TunError::InvalidName(_)), "{name:?}: {error:?}");
        }
    });
}

#[test]
fn without_a_name_the_first_free_one_is_taken_and_given_back() {
    let namespace = Namespace::new();
    namespace.enter(|| {
        let first = Tun::open(&options(None)).unwrap();
        let second = Tun::open(&options(None)).unwrap();
        assert_eq!((first.name(), second.name()), ("agentnet0", "agentnet1"));
        assert_ne!(first.index(), second.index());
        let shown = namespace.ip(&["link", "show", "agentnet0"]);
        assert!(shown.contains("mtu 1280"), "{shown}");

        let queue = first.queue(0);
        drop(first);
        assert!(matches!(Tun::open(&options(Some("agentnet0"))), Err(TunError::NameTaken(_))));
        drop(queue);
        assert_eq!(Tun::open(&options(None)).unwrap().name(), "agentnet0");
    });
}

#[test]
fn each_flow_has_one_of_several_queues() {
    let namespace = Namespace::new();
    namespace.enter_async(|| async {
        let wanted = TunOptions { queues: 3, ..options(None) };
        let tun = configure(Tun::open(&wanted).unwrap()).await;
        assert_eq!((tun.name(), tun.queue_count()), ("agentnet0", 3));
        let mut queues = [0, 1, 2].map(|number| tun.queue(number));
        let mut batch = PacketBatch::new(1 << 20, 64);
        let mut seen = [0; 3];
        for flow in 0..64 {
            let socket = UdpSocket::bind((OURS, 0)).unwrap();
            for _ in 0..3 {
                socket.send_to(b"outward", (THEIRS, 4_000 + flow)).unwrap();
            }
            let counts = queues.each_mut().map(|queue| {
                batch.clear();
                queue.read_batch(&mut batch).unwrap();
                batch.iter().filter(|(_, packet)| packet.get(6) == Some(&17)).count()
            });
            let queue = counts.iter().position(|count| *count == 3).unwrap_or_else(|| panic!("{counts:?}"));
            assert_eq!(counts.iter().sum::<usize>(), 3, "{counts:?}");
            seen[queue] += 1;
        }
        assert!(seen.iter().all(|flows| *flows > 0), "a queue gets nothing: {seen:?}");
        // All lead to the same interface.
        let socket = UdpSocket::bind((OURS, 0)).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let port = socket.local_addr().unwrap().port();
        for queue in &mut queues {
            assert_eq!(write(queue, &[udp_packet(port, b"inward")]), WriteReport { written: 1, dropped: 0 });
            assert_eq!(socket.recv(&mut [0; 64]).unwrap(), 6);
        }
    });
}

const NOBODY: u32 = 65_534;

/// Makes the calling thread alone this user, unlike the C library's call.
fn become_user(user: u32) {
    // SAFETY: plain numbers.
    assert_eq!(unsafe { libc::syscall(libc::SYS_setresuid, u32::MAX, user, u32::MAX) }, 0);
}

/// Asks for a queue of the interface.
fn attach(file: &File, name: &str) -> Result<(), ErrorKind> {
    const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
    ask(file, TUNSETIFF, name, libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE)
}

/// Puts a queue aside: it is not counted, and can be had back.
fn put_aside(file: &File) {
    const TUNSETQUEUE: libc::c_ulong = 0x4004_54d9;
    const IFF_DETACH_QUEUE: libc::c_int = 0x0400;
    ask(file, TUNSETQUEUE, "", IFF_DETACH_QUEUE).unwrap();
}

fn ask(file: &File, what: libc::c_ulong, name: &str, flags: libc::c_int) -> Result<(), ErrorKind> {
    let mut request = libc::ifreq {
        ifr_name: [0; libc::IFNAMSIZ],
        ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: flags as libc::c_short },
    };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    // SAFETY: the request is a whole `ifreq` that outlives the call.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), what, &raw mut request) };
    if result == 0 { Ok(()) } else { Err(Error::last_os_error().kind()) }
}

fn open_device() -> File {
    File::options().read(true).write(true).open("/dev/net/tun").unwrap()
}

#[test]
fn nobody_else_can_have_a_queue() {
    let namespace = Namespace::new();
    namespace.enter(|| {
        let tun = Tun::open(&TunOptions { queues: 2, ..options(None) }).unwrap();
        // Opened before: on many hosts everybody may.
        let [stranger, root] = [open_device(), open_device()];
        become_user(NOBODY);
        let refused = attach(&stranger, tun.name());
        become_user(0);
        assert_eq!(refused, Err(ErrorKind::PermissionDenied));
        assert_eq!(attach(&root, tun.name()), Ok(()), "the refusal had another reason");
    });
}

/// Opens an interface of two queues, fifty times, while a stranger tries to have one before it has an owner. What the
/// stranger does with it says whether it is kept until the interface was judged, by `judge`, who is told whether there
/// was one meanwhile. Returns how many there were.
#[expect(clippy::disallowed_methods, reason = "two threads, and time between them, are what is tested")]
fn beside_a_stranger(stranger: fn(&File) -> bool, judge: fn(&Result<Tun, TunError>, bool) -> bool) -> usize {
    let namespace = Namespace::new();
    let (had, round, done) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicBool::new(false));
    namespace.enter(|| {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut file = open_device();
                become_user(NOBODY);
                while !done.load(Ordering::Relaxed) {
                    if attach(&file, "agentnet0").is_ok() {
                        let is_kept = stranger(&file);
                        had.fetch_add(1, Ordering::SeqCst);
                        let during = round.load(Ordering::SeqCst);
                        while is_kept && round.load(Ordering::SeqCst) == during && !done.load(Ordering::Relaxed) {
                            std::thread::sleep(Duration::from_millis(1));
                        }
                        become_user(0);
                        file = open_device();
                        become_user(NOBODY);
                    }
                }
            });
            let is_right = (0..50).all(|_| {
                let before = had.load(Ordering::SeqCst);
                let opened = Tun::open(&TunOptions { queues: 2, ..options(Some("agentnet0")) });
                std::thread::sleep(Duration::from_millis(1));
                let is_right = judge(&opened, had.load(Ordering::SeqCst) != before);
                drop(opened);
                round.fetch_add(1, Ordering::SeqCst);
                is_right
            });
            done.store(true, Ordering::Relaxed);
            assert!(is_right, "a stranger has a queue of an interface that is used");
        });
    });
    had.into_inner()
}

#[test]
fn whoever_had_a_queue_before_the_interface_had_an_owner_spoils_it() {
    let put_aside = |file: &File| {
        put_aside(file);
        true
    };
    let had = beside_a_stranger(put_aside, |opened, was_there| opened.is_err() || !was_there);
    eprintln!("strangers had {had} queues");
}

#[test]
fn whoever_made_himself_the_owner_meanwhile_is_not() {
    let own = |file: &File| {
        const TUNSETOWNER: libc::c_ulong = 0x4004_54cc;
        for _ in 0..20 {
            // SAFETY: it takes its argument by value.
            unsafe { libc::ioctl(file.as_raw_fd(), TUNSETOWNER, libc::c_ulong::from(NOBODY)) };
        }
        false
    };
    let had = beside_a_stranger(own, |opened, _| {
        if opened.is_err() {
            return true;
        }
        let file = open_device();
        become_user(NOBODY);
        let refused = attach(&file, "agentnet0");
        become_user(0);
        refused == Err(ErrorKind::PermissionDenied)
    });
    eprintln!("strangers had {had} queues");
}
