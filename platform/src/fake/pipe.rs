use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use super::extra::Extra;
use super::udp::{MAX_SEGMENTS, Stored, receive, source_for};
use super::{QUEUE, lock};
use crate::udp::{DatagramSocket, LocalEnd, RecvBatch, SendBatch, SendReport, SocketId};
use crate::wait::Waker;

/// A datagram as it left a [`PipeSocket`]; trains are cut apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SentDatagram {
    /// Where to.
    pub destination: SocketAddr,
    /// From which local address, if the sender chose one.
    pub src_ip: Option<IpAddr>,
    /// From which port: that of the main socket or of an extra one.
    pub src_port: u16,
    /// The payload.
    pub bytes: Vec<u8>,
}

/// A socket whose network is the [`PipeHandle`] made with it: that one carries every datagram, when and where it likes.
pub struct PipeSocket {
    shared: Arc<Shared>,
}

/// The network's side of a [`PipeSocket`]. Clones are the same network.
#[derive(Clone)]
pub struct PipeHandle {
    shared: Arc<Shared>,
}

struct Shared {
    port: u16,
    extra: Mutex<Extra>,
    addresses: Mutex<Vec<IpAddr>>,
    sent: Mutex<VecDeque<SentDatagram>>,
    inbox: Mutex<VecDeque<Stored>>,
    readable: Waker,
    lost: AtomicU64,
}

/// A socket that has all of `addresses` on one port, and its network.
///
/// # Errors
/// Too many open files.
pub fn pipe_socket(addresses: &[IpAddr], port: u16) -> io::Result<(PipeSocket, PipeHandle)> {
    let shared = Arc::new(Shared {
        port,
        extra: Mutex::default(),
        addresses: Mutex::new(addresses.to_vec()),
        sent: Mutex::default(),
        inbox: Mutex::default(),
        readable: Waker::new()?,
        lost: AtomicU64::new(0),
    });
    let handle = PipeHandle { shared: Arc::clone(&shared) };
    Ok((PipeSocket { shared }, handle))
}

impl PipeHandle {
    /// What the socket sent since the last call, in order.
    #[must_use]
    pub fn take_sent(&self) -> Vec<SentDatagram> {
        std::mem::take(&mut *lock(&self.shared.sent)).into()
    }

    /// A datagram arrives. False when it is lost: no socket is at that port, or the receive queue is full.
    pub fn inject(&self, source: SocketAddr, destination: SocketAddr, bytes: &[u8]) -> bool {
        let Some(socket) = lock(&self.shared.extra).at(destination.port(), self.shared.port) else { return false };
        let mut inbox = lock(&self.shared.inbox);
        if inbox.len() >= QUEUE {
            self.shared.lost.fetch_add(1, Ordering::Relaxed);
            return false;
        }
        inbox.push_back(Stored { source, destination_ip: destination.ip(), socket, bytes: bytes.to_vec() });
        self.shared.readable.wake();
        true
    }

    /// Datagrams lost because a queue was full, in either direction.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.shared.lost.load(Ordering::Relaxed)
    }

    /// From now on the socket has these addresses, as when interfaces come and go. What has arrived stays.
    pub fn set_addresses(&self, addresses: &[IpAddr]) {
        *lock(&self.shared.addresses) = addresses.to_vec();
    }
}

impl Shared {
    /// Takes one datagram to send. A full network loses it silently, as a wire does.
    fn send(&self, bytes: &[u8], destination: SocketAddr, (src_ip, src_port): (Option<IpAddr>, u16)) {
        let mut sent = lock(&self.sent);
        if sent.len() >= QUEUE {
            self.lost.fetch_add(1, Ordering::Relaxed);
            return;
        }
        sent.push_back(SentDatagram { destination, src_ip, src_port, bytes: bytes.to_vec() });
    }

    fn check(&self, destination: SocketAddr, local: LocalEnd) -> io::Result<(Option<IpAddr>, u16)> {
        let ports = (&*lock(&self.extra), self.port);
        let (_, port) = source_for(&lock(&self.addresses), ports, destination, local)?;
        // One of the other family is no choice; a kernel takes no notice of it.
        Ok((local.ip.filter(|ip| ip.is_ipv4() == destination.is_ipv4()), port))
    }
}

impl DatagramSocket for PipeSocket {
    fn recv_batch(&self, batch: &mut RecvBatch) -> io::Result<usize> {
        let mut inbox = lock(&self.shared.inbox);
        receive(&mut inbox, batch);
        if inbox.is_empty() {
            self.shared.readable.drain();
        }
        Ok(batch.len())
    }

    fn send_batch(&self, batch: &SendBatch) -> SendReport {
        let mut report = SendReport::default();
        for transmit in batch.transmits() {
            match self.shared.check(transmit.destination, transmit.local) {
                Ok(source) => {
                    for datagram in transmit.data.chunks(transmit.segment) {
                        self.shared.send(datagram, transmit.destination, source);
                    }
                    report.sent_datagrams += transmit.count;
                }
                Err(error) => report.failed(&transmit, error),
            }
        }
        report
    }

    fn send_to(&self, bytes: &[u8], destination: SocketAddr, local: impl Into<LocalEnd>) -> io::Result<()> {
        let source = self.shared.check(destination, local.into())?;
        self.shared.send(bytes, destination, source);
        Ok(())
    }

    fn open_extra(&self) -> io::Result<SocketId> {
        Ok(lock(&self.shared.extra).open(self.shared.port)?.0)
    }

    fn close_extra(&self, socket: SocketId) {
        if lock(&self.shared.extra).close(socket).is_some() {
            lock(&self.shared.inbox).retain(|stored| stored.socket != socket);
        }
    }

    fn port(&self) -> u16 {
        self.shared.port
    }

    fn has_v4(&self) -> bool {
        lock(&self.shared.addresses).iter().any(IpAddr::is_ipv4)
    }

    fn has_v6(&self) -> bool {
        lock(&self.shared.addresses).iter().any(IpAddr::is_ipv6)
    }

    fn max_gso_segments(&self) -> usize {
        MAX_SEGMENTS
    }

    fn fds(&self) -> Vec<BorrowedFd<'_>> {
        vec![self.shared.readable.as_fd()]
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::wait::wait_readable;

    fn v4(last: u8) -> IpAddr {
        [10, 0, 0, last].into()
    }

    fn far() -> SocketAddr {
        SocketAddr::new(v4(9), 7)
    }

    #[test]
    fn trains_leave_cut_apart_and_in_order() {
        let (socket, network) = pipe_socket(&[v4(1), v4(2)], 5).unwrap();
        let mut out = SendBatch::new(4_096, socket.max_gso_segments());
        for fill in 0..3u8 {
            let len = if fill == 2 { 50 } else { 100 };
            assert!(out.push_with(far(), Some(v4(2)), len, |space| {
                space.fill(fill);
                space.len()
            }));
        }
        assert_eq!(out.transmits().count(), 1, "one train");
        assert_eq!(socket.send_batch(&out).sent_datagrams, 3);
        socket.send_to(b"last", far(), None).unwrap();
        let sent = network.take_sent();
        let expected = [vec![0; 100], vec![1; 100], vec![2; 50], b"last".to_vec()];
        assert_eq!(sent.iter().map(|datagram| datagram.bytes.clone()).collect::<Vec<_>>(), expected);
        assert_eq!(sent.iter().map(|datagram| datagram.src_ip).collect::<Vec<_>>()[2..], [Some(v4(2)), None]);
        assert!(sent.iter().all(|datagram| datagram.destination == far()));
        assert!(network.take_sent().is_empty());
    }

    #[test]
    fn injected_datagrams_are_readable_until_received_and_merge_per_flow() {
        let (socket, network) = pipe_socket(&[v4(1), v4(2)], 5).unwrap();
        let waker = Waker::new().unwrap();
        let is_readable = || wait_readable(&socket.fds(), &waker, Some(Duration::ZERO)).unwrap().is_readable(0);
        assert!(!is_readable());
        for (to, bytes) in [(1, b"aa"), (1, b"bb"), (2, b"cc")] {
            assert!(network.inject(far(), SocketAddr::new(v4(to), 5), bytes));
        }
        assert!(is_readable());
        let mut arrived = RecvBatch::new();
        assert_eq!(socket.recv_batch(&mut arrived).unwrap(), 2);
        let all: Vec<_> = arrived.datagrams().map(|d| (d.source, d.destination_ip, d.data.to_vec())).collect();
        let expected = [(1, b"aa"), (1, b"bb"), (2, b"cc")].map(|(to, b)| (far(), Some(v4(to)), b.to_vec()));
        assert_eq!(all, expected);
        assert!(!is_readable());
    }

    #[test]
    fn addresses_come_and_go() {
        let (socket, network) = pipe_socket(&[v4(1)], 5).unwrap();
        let to_v6 = SocketAddr::new("fd00::9".parse().unwrap(), 7);
        let failure = |to, from| socket.send_to(b"x", to, from).unwrap_err().kind();
        assert!(socket.has_v4() && !socket.has_v6());
        assert_eq!(failure(to_v6, None), io::ErrorKind::NetworkUnreachable);
        assert_eq!(failure(far(), Some(v4(2))), io::ErrorKind::InvalidInput);
        network.set_addresses(&["fd00::1".parse().unwrap()]);
        assert!(!socket.has_v4() && socket.has_v6());
        assert_eq!(failure(far(), None), io::ErrorKind::NetworkUnreachable);
        socket.send_to(b"x", to_v6, None).unwrap();

        let mut out = SendBatch::new(64, 1);
        assert!(out.push_with(far(), None, 1, |_| 1) && out.push_with(to_v6, None, 1, |_| 1));
        let report = socket.send_batch(&out);
        assert_eq!((report.sent_datagrams, report.dropped, report.unreachable), (1, 1, 1));
        assert_eq!(network.take_sent().len(), 2);
    }

    #[test]
    fn extra_sockets_have_ports_of_their_own() {
        let (socket, network) = pipe_socket(&[v4(1), "fd00::1".parse().unwrap()], 5).unwrap();
        let ids = [socket.open_extra().unwrap(), socket.open_extra().unwrap()];
        assert!(ids[0] != ids[1] && !ids[0].is_main());
        for local in [SocketId::MAIN, ids[0], ids[1]] {
            socket.send_to(b"x", far(), (local, None)).unwrap();
        }
        let to_v6 = SocketAddr::new("fd00::9".parse().unwrap(), 7);
        let refused = socket.send_to(b"x", to_v6, (ids[0], None)).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::NetworkUnreachable);
        let ports: Vec<u16> = network.take_sent().iter().map(|datagram| datagram.src_port).collect();
        assert_eq!(ports[0], 5);
        assert!(network.inject(far(), SocketAddr::new(v4(1), ports[1]), b"a"));
        assert!(network.inject(far(), SocketAddr::new(v4(1), ports[2]), b"b"));
        socket.close_extra(ids[0]);
        let mut arrived = RecvBatch::new();
        socket.recv_batch(&mut arrived).unwrap();
        assert_eq!(arrived.datagrams().map(|d| (d.socket, d.data[0])).collect::<Vec<_>>(), [(ids[1], b'b')]);
        assert!(!network.inject(far(), SocketAddr::new(v4(1), ports[1]), b"x"), "it is closed");
        let refused = socket.send_to(b"x", far(), (ids[0], None)).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::NotConnected);
        socket.close_extra(SocketId::MAIN);
        socket.send_to(b"x", far(), None).unwrap();
    }

    #[test]
    fn full_queues_lose_what_comes() {
        let (socket, network) = pipe_socket(&[v4(1)], 5).unwrap();
        let kept = (0..QUEUE + 3).filter(|_| network.inject(far(), SocketAddr::new(v4(1), 5), b"x")).count();
        assert_eq!(kept, QUEUE);
        for _ in 0..QUEUE + 3 {
            socket.send_to(b"x", far(), None).unwrap();
        }
        assert_eq!(network.take_sent().len(), QUEUE);
        assert_eq!(network.lost(), 6);
        assert!(socket.recv_batch(&mut RecvBatch::new()).unwrap() > 0);
        assert!(network.inject(far(), SocketAddr::new(v4(1), 5), b"x"), "there is room again");
    }
}
