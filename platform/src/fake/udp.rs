use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex};

use super::extra::Extra;
use super::{QUEUE, lock};
use crate::udp::{DatagramSocket, LocalEnd, RecvBatch, SendBatch, SendReport, SocketId};
use crate::wait::Waker;

/// As in a kernel: `UDP_MAX_SEGMENTS` and `UDP_GRO_CNT_MAX`.
pub(super) const MAX_SEGMENTS: usize = 64;

/// Decides whether a datagram (source, destination, payload) is lost.
type DropRule = Box<dyn FnMut(SocketAddr, SocketAddr, &[u8]) -> bool + Send>;

/// A network of sockets in one process. Clones are the same network. It has no clock: a datagram is delivered,
/// or lost, while it is sent.
#[derive(Clone, Default)]
pub struct FakeNet {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    sockets: Mutex<HashMap<SocketAddr, (Arc<Inbox>, SocketId)>>,
    drop_rule: Mutex<Option<DropRule>>,
    longest_whole: Mutex<Option<usize>>,
}

struct Inbox {
    datagrams: Mutex<VecDeque<Stored>>,
    readable: Waker,
}

/// A datagram that waits to be received.
pub(super) struct Stored {
    pub(super) source: SocketAddr,
    pub(super) destination_ip: IpAddr,
    pub(super) socket: SocketId,
    pub(super) bytes: Vec<u8>,
}

/// A socket of a [`FakeNet`]; dropping it frees its addresses.
pub struct FakeSocket {
    net: FakeNet,
    addresses: Vec<IpAddr>,
    port: u16,
    inbox: Arc<Inbox>,
    extra: Mutex<Extra>,
}

impl FakeNet {
    /// A network without sockets.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A socket that has all of `addresses` on one port. It sends from the first of the destination's family
    /// unless told otherwise.
    ///
    /// # Errors
    /// [`io::ErrorKind::AddrInUse`]; too many open files.
    pub fn socket(&self, addresses: &[IpAddr], port: u16) -> io::Result<FakeSocket> {
        let inbox = Arc::new(Inbox { datagrams: Mutex::default(), readable: Waker::new()? });
        let mut sockets = lock(&self.shared.sockets);
        let wanted = addresses.iter().map(|&ip| SocketAddr::new(ip, port));
        if wanted.clone().any(|address| sockets.contains_key(&address)) {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        sockets.extend(wanted.map(|address| (address, (Arc::clone(&inbox), SocketId::MAIN))));
        Ok(FakeSocket { net: self.clone(), addresses: addresses.to_vec(), port, inbox, extra: Mutex::default() })
    }

    /// From now on `rule` says which datagrams (source, destination, payload) are lost.
    pub fn set_drop_rule(&self, rule: impl FnMut(SocketAddr, SocketAddr, &[u8]) -> bool + Send + 'static) {
        *lock(&self.shared.drop_rule) = Some(Box::new(rule));
    }

    /// From now on nothing is lost but what nobody receives.
    pub fn clear_drop_rule(&self) {
        *lock(&self.shared.drop_rule) = None;
    }

    /// From now on datagrams of more than `len` bytes of payload are lost without a word, unless they may be
    /// fragmented.
    pub fn lose_above(&self, len: usize) {
        *lock(&self.shared.longest_whole) = Some(len);
    }

    fn deliver(&self, source: SocketAddr, destination: SocketAddr, bytes: &[u8], fragmentable: bool) {
        let is_lost = lock(&self.shared.drop_rule).as_mut().is_some_and(|rule| rule(source, destination, bytes));
        let is_too_big = lock(&self.shared.longest_whole).is_some_and(|len| bytes.len() > len);
        if is_lost || (is_too_big && !fragmentable) {
            return;
        }
        let Some((inbox, socket)) = lock(&self.shared.sockets).get(&destination).cloned() else {
            return;
        };
        let mut datagrams = lock(&inbox.datagrams);
        if datagrams.len() < QUEUE {
            datagrams.push_back(Stored { source, destination_ip: destination.ip(), socket, bytes: bytes.to_vec() });
            inbox.readable.wake();
        }
    }
}

impl FakeSocket {
    /// The addresses of this socket.
    #[must_use]
    pub fn addresses(&self) -> Vec<SocketAddr> {
        let with_port = |&ip| SocketAddr::new(ip, self.port);
        self.addresses.iter().map(with_port).collect()
    }

    fn source_for(&self, destination: SocketAddr, local: LocalEnd) -> io::Result<SocketAddr> {
        let (ip, port) = source_for(&self.addresses, (&lock(&self.extra), self.port), destination, local)?;
        Ok(SocketAddr::new(ip, port))
    }

    /// Where an extra socket at this port receives.
    fn v4_at(&self, port: u16) -> impl Iterator<Item = SocketAddr> {
        self.addresses.iter().filter(|ip| ip.is_ipv4()).map(move |ip| SocketAddr::new(*ip, port))
    }
}

impl Drop for FakeSocket {
    fn drop(&mut self) {
        let mut sockets = lock(&self.net.shared.sockets);
        let ports: Vec<u16> = lock(&self.extra).ports().collect();
        for address in ports.into_iter().flat_map(|port| self.v4_at(port)).chain(self.addresses()) {
            sockets.remove(&address);
        }
    }
}

impl DatagramSocket for FakeSocket {
    fn recv_batch(&self, batch: &mut RecvBatch) -> io::Result<usize> {
        let mut datagrams = lock(&self.inbox.datagrams);
        receive(&mut datagrams, batch);
        if datagrams.is_empty() {
            self.inbox.readable.drain();
        }
        Ok(batch.len())
    }

    fn send_batch(&self, batch: &SendBatch) -> SendReport {
        let mut report = SendReport::default();
        for transmit in batch.transmits() {
            match self.source_for(transmit.destination, transmit.local) {
                Ok(source) => {
                    for datagram in transmit.data.chunks(transmit.segment) {
                        self.net.deliver(source, transmit.destination, datagram, transmit.fragmentable);
                    }
                    report.sent_datagrams += transmit.count;
                }
                Err(error) => report.failed(&transmit, error),
            }
        }
        report
    }

    fn send_to(&self, bytes: &[u8], destination: SocketAddr, local: impl Into<LocalEnd>) -> io::Result<()> {
        let source = self.source_for(destination, local.into())?;
        self.net.deliver(source, destination, bytes, false);
        Ok(())
    }

    fn open_extra(&self) -> io::Result<SocketId> {
        let (id, port) = lock(&self.extra).open(self.port)?;
        let opened = self.v4_at(port).map(|address| (address, (Arc::clone(&self.inbox), id)));
        lock(&self.net.shared.sockets).extend(opened);
        Ok(id)
    }

    fn close_extra(&self, socket: SocketId) {
        let Some(port) = lock(&self.extra).close(socket) else { return };
        let mut sockets = lock(&self.net.shared.sockets);
        for address in self.v4_at(port) {
            sockets.remove(&address);
        }
    }

    fn port(&self) -> u16 {
        self.port
    }

    fn has_v4(&self) -> bool {
        self.addresses.iter().any(IpAddr::is_ipv4)
    }

    fn has_v6(&self) -> bool {
        self.addresses.iter().any(IpAddr::is_ipv6)
    }

    fn max_gso_segments(&self) -> usize {
        MAX_SEGMENTS
    }

    fn fds(&self) -> Vec<BorrowedFd<'_>> {
        vec![self.inbox.readable.as_fd()]
    }
}

/// The address and port a socket with `addresses`, a main port and extra ones sends from: the address asked for if it has
/// the destination's family, else the first that has.
pub(super) fn source_for(
    addresses: &[IpAddr],
    (extra, main): (&Extra, u16),
    destination: SocketAddr,
    local: LocalEnd,
) -> io::Result<(IpAddr, u16)> {
    let port = extra.port(local.socket, main)?;
    let unreachable = || io::Error::from_raw_os_error(libc::ENETUNREACH);
    if !local.socket.is_main() && destination.is_ipv6() {
        return Err(unreachable());
    }
    match local.ip.filter(|ip| ip.is_ipv4() == destination.is_ipv4()) {
        Some(ip) if addresses.contains(&ip) => Ok((ip, port)),
        Some(_) => Err(io::Error::from_raw_os_error(libc::EINVAL)),
        None => {
            let first = addresses.iter().copied().find(|ip| ip.is_ipv4() == destination.is_ipv4());
            Ok((first.ok_or_else(unreachable)?, port))
        }
    }
}

/// Moves what waits into `batch`, as far as it has room.
pub(super) fn receive(datagrams: &mut VecDeque<Stored>, batch: &mut RecvBatch) {
    batch.clear();
    let mut train = Vec::new();
    while let Some(first) = datagrams.pop_front() {
        let stride = first.bytes.len();
        train.clear();
        train.extend_from_slice(&first.bytes);
        let mut count = 1;
        // Merged as UDP_GRO does: same flow, same length, the last may be shorter.
        while let Some(next) = datagrams.front() {
            let is_same_flow =
                (next.source, next.socket, next.destination_ip) == (first.source, first.socket, first.destination_ip);
            let fits = count < MAX_SEGMENTS && train.len() + next.bytes.len() <= usize::from(u16::MAX);
            let is_last_full = train.len() == stride * count;
            let continues = !next.bytes.is_empty() && next.bytes.len() <= stride;
            if !(is_same_flow && fits && is_last_full && continues) {
                break;
            }
            train.extend_from_slice(&next.bytes);
            count += 1;
            datagrams.pop_front();
        }
        // Longer than a datagram can be: lost, as it would be on a wire.
        let _ = batch.push_copy(first.source, (first.socket, first.destination_ip), stride, &train);
        if batch.is_full() {
            break;
        }
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

    fn v6() -> IpAddr {
        "fd00::1".parse().unwrap()
    }

    #[test]
    fn a_train_arrives_as_a_train_from_the_first_address_of_the_family() {
        let net = FakeNet::new();
        let a = net.socket(&[v6(), v4(1), v4(2)], 5).unwrap();
        let b = net.socket(&[v4(3)], 6).unwrap();
        let mut out = SendBatch::new(4_096, a.max_gso_segments());
        for fill in 0..10u8 {
            let len = if fill == 9 { 50 } else { 100 };
            assert!(out.push_with(b.addresses()[0], None, len, |space| {
                space.fill(fill);
                space.len()
            }));
        }
        assert_eq!(a.send_batch(&out).sent_datagrams, 10);
        let mut arrived = RecvBatch::new();
        assert_eq!(b.recv_batch(&mut arrived).unwrap(), 1);
        let lens: Vec<_> = arrived.datagrams().map(|d| (d.data[0], d.data.len())).collect();
        assert_eq!(lens.len(), 10);
        assert_eq!((lens[0], lens[9]), ((0, 100), (9, 50)));
        let train = arrived.trains().next().unwrap();
        assert_eq!(train.source, SocketAddr::new(v4(1), 5));
        assert_eq!(train.destination_ip, Some(v4(3)));
    }

    #[test]
    fn readable_from_arrival_until_received() {
        let net = FakeNet::new();
        let a = net.socket(&[v4(1)], 5).unwrap();
        let b = net.socket(&[v4(2)], 5).unwrap();
        let waker = Waker::new().unwrap();
        let is_readable = || {
            let zero = Some(Duration::ZERO);
            wait_readable(&b.fds(), &waker, zero).unwrap().is_readable(0)
        };
        assert!(!is_readable());
        a.send_to(b"x", b.addresses()[0], None).unwrap();
        assert!(is_readable());
        b.recv_batch(&mut RecvBatch::new()).unwrap();
        assert!(!is_readable());
    }

    #[test]
    fn the_drop_rule_decides() {
        let net = FakeNet::new();
        let a = net.socket(&[v4(1)], 5).unwrap();
        let b = net.socket(&[v4(2)], 5).unwrap();
        net.set_drop_rule(|_, _, bytes| bytes == b"lost");
        for bytes in [&b"lost"[..], b"kept"] {
            a.send_to(bytes, b.addresses()[0], None).unwrap();
        }
        net.clear_drop_rule();
        a.send_to(b"lost", b.addresses()[0], None).unwrap();
        let mut arrived = RecvBatch::new();
        b.recv_batch(&mut arrived).unwrap();
        let all: Vec<_> = arrived.datagrams().map(|d| d.data.to_vec()).collect();
        assert_eq!(all, [b"kept".to_vec(), b"lost".to_vec()]);
    }

    #[test]
    fn what_is_too_big_arrives_only_in_fragments() {
        let net = FakeNet::new();
        let a = net.socket(&[v4(1)], 5).unwrap();
        let b = net.socket(&[v4(2)], 5).unwrap();
        net.lose_above(100);
        let mut out = SendBatch::new(1_024, a.max_gso_segments());
        for len in [100, 101] {
            assert!(out.push_with(b.addresses()[0], None, len, |space| space.len()));
        }
        assert!(out.push_fragmentable(b.addresses()[0], None, 102, |space| space.len()));
        a.send_batch(&out);
        a.send_to(&[0; 103], b.addresses()[0], None).unwrap();
        let mut arrived = RecvBatch::new();
        b.recv_batch(&mut arrived).unwrap();
        let lens: Vec<_> = arrived.datagrams().map(|d| d.data.len()).collect();
        assert_eq!(lens, [100, 102]);
    }

    #[test]
    fn failures_look_like_the_kernels() {
        let net = FakeNet::new();
        let a = net.socket(&[v4(1)], 5).unwrap();
        assert_eq!(net.socket(&[v4(1)], 5).err().unwrap().kind(), io::ErrorKind::AddrInUse);
        let to_v6 = SocketAddr::new(v6(), 5);
        let error = a.send_to(b"x", to_v6, None).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NetworkUnreachable);
        let error = a.send_to(b"x", SocketAddr::new(v4(2), 5), Some(v4(9))).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);

        let mut out = SendBatch::new(64, 1);
        assert!(out.push_with(to_v6, None, 1, |_| 1));
        assert!(out.push_with(SocketAddr::new(v4(2), 5), None, 1, |_| 1));
        let report = a.send_batch(&out);
        assert_eq!((report.sent_datagrams, report.dropped, report.unreachable), (1, 1, 1));
        drop(a);
        assert!(net.socket(&[v4(1)], 5).is_ok());
    }

    #[test]
    fn extra_sockets_come_and_go() {
        let net = FakeNet::new();
        let a = net.socket(&[v4(1), v6()], 5).unwrap();
        let b = net.socket(&[v4(2)], 5).unwrap();
        let id = a.open_extra().unwrap();
        a.send_to(b"hello", b.addresses()[0], (id, None)).unwrap();
        let mut arrived = RecvBatch::new();
        b.recv_batch(&mut arrived).unwrap();
        let from = arrived.datagrams().next().unwrap().source;
        assert_ne!(from.port(), 5);
        b.send_to(b"back", from, None).unwrap();
        a.recv_batch(&mut arrived).unwrap();
        assert_eq!(arrived.datagrams().next().unwrap().socket, id);
        a.close_extra(id);
        b.send_to(b"late", from, None).unwrap();
        assert_eq!(a.recv_batch(&mut arrived).unwrap(), 0);
        let opened = (0..600).filter(|_| a.open_extra().is_ok()).count();
        assert_eq!(opened, crate::udp::MAX_EXTRA_SOCKETS);
        drop(a);
        assert_eq!(lock(&net.shared.sockets).len(), 1, "nothing is left of it");
    }

    #[test]
    fn more_than_a_batch_comes_in_the_next_one() {
        let net = FakeNet::new();
        let a = net.socket(&[v4(1)], 5).unwrap();
        let b = net.socket(&[v4(2)], 5).unwrap();
        // Growing lengths do not merge.
        for len in 1..=40 {
            a.send_to(&vec![0; len], b.addresses()[0], None).unwrap();
        }
        let mut arrived = RecvBatch::new();
        assert_eq!(b.recv_batch(&mut arrived).unwrap(), 32);
        assert_eq!(b.recv_batch(&mut arrived).unwrap(), 8);
        assert_eq!(arrived.datagrams().last().unwrap().data.len(), 40);
        assert_eq!(b.recv_batch(&mut arrived).unwrap(), 0);
    }
}
