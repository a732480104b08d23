//! The kernel's sockets behind [`DatagramSocket`].

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, poll};
use quinn_udp::{UdpSockRef, UdpSocketState};
use socket2::{Domain, Protocol, Socket, Type};

use super::extra::ExtraSockets;
use super::{
    DatagramSocket, LocalEnd, RecvBatch, SendBatch, SendReport, SocketId, TooBig, Transmit, UdpError, UdpOptions,
};
use crate::os::socket::{allow_fragments, forbid_fragments, force_recv_buffer, force_send_buffer};
use crate::wait::Ready;

/// Tries to find a port that is free in both families, when the choice is the system's.
const PORT_TRIES: usize = 16;

/// How long one `send_batch` may wait for room in the send buffers. Longer, and one slow interface stops the
/// thread; shorter, and a burst is lost that the device would have drained.
const SEND_PATIENCE: Duration = Duration::from_millis(50);

/// How often, while it waits, it does what else there is to do.
const SEND_NAP: u8 = 1;

/// Trains that a receive asks for at least: one more than the single packet of a quiet host, which shows that it was all.
const LEAST_EXPECTED: usize = 2;

/// Queued errors swallowed by one receive before looking again later.
const MAX_QUEUED_ERRORS: usize = 64;

/// An IPv4 and an IPv6 socket on all addresses and one port number, or one of them where the host has only one; and
/// extra ones.
pub struct UdpSockets {
    v4: Option<Bound>,
    v6: Option<Bound>,
    extra: Arc<ExtraSockets>,
    /// Receives what comes in at the extra ones; a twin leaves that to the first.
    receives_extra: bool,
    options: UdpOptions,
    port: u16,
    /// Where the next receive looks first, so that a flood in one place cannot silence the others.
    first: AtomicUsize,
}

pub(super) struct Bound {
    pub(super) socket: Socket,
    state: UdpSocketState,
    /// Kept here because quinn-udp gives up segmentation for good after one EINVAL, which the kernel also
    /// returns for a stale source address or a segment above the route's MTU.
    max_gso_segments: AtomicUsize,
    /// Held while a datagram is sent that may be fragmented: that is a property of the socket, and the probes that
    /// other threads send with `send_to` must not have it. None of the calls made meanwhile blocks.
    fragments: Mutex<()>,
    /// Trains that the next receive asks for: a system call is prepared for each, and mostly only few are waiting.
    expected: AtomicUsize,
}

impl UdpSockets {
    /// Binds `0.0.0.0:port` and `[::]:port`, the latter for IPv6 only. A family the host does not have is
    /// left out.
    ///
    /// # Errors
    /// See [`UdpError`]. A port that is taken in one family is an error even if the other is free.
    pub fn bind(options: &UdpOptions) -> Result<Self, UdpError> {
        Self::bind_on(&[Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()], options)
    }

    /// The same on these addresses instead of all, the first of each family. A family without one is left out, and so
    /// is an address this host does not have.
    ///
    /// # Errors
    /// As [`UdpSockets::bind`].
    pub fn bind_on(ips: &[IpAddr], options: &UdpOptions) -> Result<Self, UdpError> {
        let tries = if options.port == 0 { PORT_TRIES } else { 1 };
        let mut result = Err(UdpError::NoFamily);
        for _ in 0..tries {
            result = Self::bind_once(ips, options);
            if !matches!(result, Err(UdpError::PortInUse(_))) {
                break;
            }
        }
        result
    }

    /// The room that the system gave, bytes of the smallest receive and send buffer. It may be less than what was asked
    /// for, and more where the system counts its own overhead. 0 where it does not say.
    #[must_use]
    pub fn buffers(&self) -> (usize, usize) {
        let bound = || [&self.v4, &self.v6].into_iter().flatten();
        let least = |sizes: &mut dyn Iterator<Item = io::Result<usize>>| {
            sizes.map(Result::unwrap_or_default).min().unwrap_or_default()
        };
        let receive = least(&mut bound().map(|bound| bound.socket.recv_buffer_size()));
        let send = least(&mut bound().map(|bound| bound.socket.send_buffer_size()));
        (receive, send)
    }

    fn bind_once(ips: &[IpAddr], options: &UdpOptions) -> Result<Self, UdpError> {
        let mut port = options.port;
        let first = |wanted: bool, v4: bool| ips.iter().copied().find(|ip| wanted && ip.is_ipv4() == v4);
        let v4 = bind_family(first(options.v4, true), &mut port, options)?;
        let v6 = bind_family(first(options.v6, false), &mut port, options)?;
        if v4.is_none() && v6.is_none() {
            return Err(UdpError::NoFamily);
        }
        let extra = Arc::new(ExtraSockets::new().map_err(UdpError::Other)?);
        let (receives_extra, options) = (true, options.clone());
        Ok(Self { v4, v6, extra, receives_extra, options, port, first: AtomicUsize::new(0) })
    }

    /// Another pair on the same port. The kernel gives all datagrams of one flow (addresses and ports) to one pair; the
    /// extra sockets are common to all, and received from by this one only.
    ///
    /// # Errors
    /// What the kernel says when it cannot bind another one.
    pub fn twin(&self) -> io::Result<Self> {
        let twin = |bound: &Option<Bound>| bound.as_ref().map(|bound| bound.twin(&self.options)).transpose();
        Ok(Self {
            v4: twin(&self.v4)?,
            v6: twin(&self.v6)?,
            extra: Arc::clone(&self.extra),
            receives_extra: false,
            options: self.options.clone(),
            port: self.port,
            first: AtomicUsize::new(0),
        })
    }

    /// Lets `send` have the socket that a datagram leaves by.
    fn with_bound<T>(
        &self,
        local: LocalEnd,
        destination: &SocketAddr,
        send: impl FnOnce(&Bound) -> io::Result<T>,
    ) -> io::Result<T> {
        let main = match destination {
            SocketAddr::V4(_) => self.v4.as_ref(),
            SocketAddr::V6(_) => self.v6.as_ref(),
        };
        if local.socket.is_main() {
            return send(main.ok_or_else(unreachable)?);
        }
        let extra: Arc<Bound> = self.extra.get(local.socket).ok_or(io::ErrorKind::NotConnected)?;
        if destination.is_ipv6() { Err(unreachable()) } else { send(&extra) }
    }

    /// Receives where `wanted` says so of the index in [`DatagramSocket::fds`].
    fn receive_where(&self, batch: &mut RecvBatch, wanted: impl Fn(usize) -> bool) -> io::Result<usize> {
        batch.clear();
        let main = [&self.v4, &self.v6].into_iter().flatten();
        let places = main.clone().count() + usize::from(self.receives_extra);
        let first = self.first.fetch_add(1, Ordering::Relaxed);
        for index in (0..places).map(|turn| first.wrapping_add(turn) % places).filter(|index| wanted(*index)) {
            let received = match main.clone().nth(index) {
                Some(bound) => bound.receive(SocketId::MAIN, batch),
                // They come first once in so many calls, each time with another one of them at the head.
                None => self.receive_extra(first / places, batch),
            };
            match received {
                Ok(()) => {}
                // What was received so far must not be lost; the error comes back on the next call.
                Err(_) if !batch.is_empty() => break,
                Err(error) => return Err(error),
            }
        }
        Ok(batch.len())
    }

    fn receive_extra(&self, first: usize, batch: &mut RecvBatch) -> io::Result<()> {
        let mut result = Ok(());
        self.extra.ready(first, |id, bound| {
            // One that fails is of no more use, and would never rest.
            if let Err(error) = bound.receive(id, batch) {
                tracing::debug!(socket = id.number(), %error, "an extra socket is closed");
                result = Err(id);
            }
        })?;
        if let Err(id) = result {
            self.extra.close(id);
        }
        Ok(())
    }
}

impl DatagramSocket for UdpSockets {
    fn recv_batch(&self, batch: &mut RecvBatch) -> io::Result<usize> {
        self.receive_where(batch, |_| true)
    }

    fn recv_ready(&self, ready: Ready, batch: &mut RecvBatch) -> io::Result<usize> {
        self.receive_where(batch, |index| ready.is_readable(index))
    }

    fn send_batch(&self, batch: &SendBatch) -> SendReport {
        self.send_batch_while(batch, &mut || {})
    }

    fn send_batch_while(&self, batch: &SendBatch, meanwhile: &mut dyn FnMut()) -> SendReport {
        let mut report = SendReport::default();
        let mut patience = Patience { deadline: None, meanwhile };
        for transmit in batch.transmits() {
            let sent = self.with_bound(transmit.local, &transmit.destination, |bound| {
                bound.send(transmit, &mut patience, &mut report);
                Ok(())
            });
            if let Err(error) = sent {
                report.failed(&transmit, error);
            }
        }
        report
    }

    fn send_to(&self, bytes: &[u8], destination: SocketAddr, local: impl Into<LocalEnd>) -> io::Result<()> {
        let local = local.into();
        let (segment, count, fragmentable) = (bytes.len(), 1, false);
        let transmit = Transmit { destination, local, data: bytes, segment, count, fragmentable };
        self.with_bound(local, &destination, |bound| {
            let _whole = bound.lock_fragments();
            bound.send_once(&transmit)
        })
    }

    fn open_extra(&self) -> io::Result<SocketId> {
        let (bound, _) = open((Ipv4Addr::UNSPECIFIED, 0).into(), &self.options)?;
        self.extra.insert(bound)
    }

    fn close_extra(&self, socket: SocketId) {
        self.extra.close(socket);
    }

    fn port(&self) -> u16 {
        self.port
    }

    fn has_v4(&self) -> bool {
        self.v4.is_some()
    }

    fn has_v6(&self) -> bool {
        self.v6.is_some()
    }

    fn max_gso_segments(&self) -> usize {
        let segments = [&self.v4, &self.v6].into_iter().flatten();
        segments.map(|bound| bound.max_gso_segments.load(Ordering::Relaxed)).min().unwrap_or(1)
    }

    fn fds(&self) -> Vec<BorrowedFd<'_>> {
        let bound = [&self.v4, &self.v6].into_iter().flatten();
        let extra = self.receives_extra.then(|| self.extra.as_fd());
        bound.map(|bound| bound.socket.as_fd()).chain(extra).collect()
    }
}

impl Bound {
    /// Another one on the same address. This one was bound without being shared: had another program had the port, that
    /// would have been an error.
    fn twin(&self, options: &UdpOptions) -> io::Result<Self> {
        let address = self.socket.local_addr()?.as_socket().ok_or(io::ErrorKind::InvalidData)?;
        self.socket.set_reuse_port(true)?;
        let socket = new_socket(address)?;
        socket.set_reuse_port(true)?;
        let (twin, _) = bind(socket, address, options)?;
        Ok(twin)
    }

    fn receive(&self, id: SocketId, batch: &mut RecvBatch) -> io::Result<()> {
        let (mut queued_errors, mut total) = (0, 0);
        let mut expected = self.expected.load(Ordering::Relaxed);
        loop {
            let mut offered = 0;
            let result = batch.fill(id, |buffers, metas| {
                offered = buffers.len().min(quinn_udp::BATCH_SIZE).min(expected);
                match (buffers.get_mut(..offered), metas.get_mut(..offered)) {
                    (Some(buffers), Some(metas)) if offered > 0 => {
                        self.state.recv(UdpSockRef::from(&self.socket), buffers, metas)
                    }
                    _ => Ok(0),
                }
            });
            match result {
                // Fewer than asked for: nothing more is waiting. Or there is no more room.
                Ok(received) if received < offered || offered == 0 => {
                    self.expected.store((total + received + 1).max(LEAST_EXPECTED), Ordering::Relaxed);
                    return Ok(());
                }
                Ok(received) => {
                    total += received;
                    expected = quinn_udp::BATCH_SIZE;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if is_queued_error(&error) && queued_errors < MAX_QUEUED_ERRORS => {
                    queued_errors += 1;
                }
                Err(error) if is_queued_error(&error) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    fn send(&self, transmit: Transmit<'_>, patience: &mut Patience<'_>, report: &mut SendReport) {
        if transmit.count == 1 {
            let sent = match transmit.fragmentable && transmit.destination.is_ipv4() {
                true => self.send_fragmentable(&transmit),
                false => self.send_patiently(&transmit, patience),
            };
            match sent {
                Ok(()) => report.sent_datagrams += 1,
                Err(error) => report.failed(&transmit, error),
            }
            return;
        }
        let mut offload_refused = false;
        if transmit.count <= self.max_gso_segments.load(Ordering::Relaxed) {
            match self.send_patiently(&transmit, patience) {
                Ok(()) => {
                    report.sent_datagrams += transmit.count;
                    return;
                }
                Err(error) if !may_be_about_segments(&error) => {
                    report.failed(&transmit, error);
                    return;
                }
                Err(_) => offload_refused = true,
            }
        }
        let sent_before = report.sent_datagrams;
        for data in transmit.data.chunks(transmit.segment) {
            let single = Transmit { data, segment: data.len(), count: 1, ..transmit };
            self.send(single, patience, report);
        }
        // The same bytes went out one by one, so it was the segmentation that the device cannot do.
        if offload_refused && report.sent_datagrams == sent_before + transmit.count {
            self.max_gso_segments.store(1, Ordering::Relaxed);
            tracing::debug!("segmentation offload refused by the host, sending datagrams singly");
        }
    }

    fn send_patiently(&self, transmit: &Transmit<'_>, patience: &mut Patience<'_>) -> io::Result<()> {
        loop {
            match self.send_once(transmit) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if !patience.wait_writable(self.socket.as_fd()) {
                        return Err(error);
                    }
                }
                result => return result,
            }
        }
    }

    /// Lets routers fragment this one datagram. Does not wait for room: what is worth that has a shorter way to say it.
    fn send_fragmentable(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let _alone = self.lock_fragments();
        let sent = allow_fragments(&self.socket).and_then(|()| self.send_once(transmit));
        forbid_fragments(&self.socket)?;
        sent
    }

    fn lock_fragments(&self) -> MutexGuard<'_, ()> {
        self.fragments.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send_once(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let transmit = quinn_udp::Transmit {
            destination: transmit.destination,
            ecn: None,
            contents: transmit.data,
            segment_size: (transmit.count > 1).then_some(transmit.segment),
            // The other family's control message would make the kernel refuse the datagram.
            src_ip: transmit.local.ip.filter(|ip| ip.is_ipv4() == transmit.destination.is_ipv4()),
        };
        self.state.try_send(UdpSockRef::from(&self.socket), &transmit)
    }
}

impl SendReport {
    pub(crate) fn failed(&mut self, transmit: &Transmit<'_>, error: io::Error) {
        self.dropped += transmit.count;
        match error.raw_os_error().map(Errno::from_raw) {
            Some(
                Errno::ENETUNREACH | Errno::EHOSTUNREACH | Errno::ENETDOWN | Errno::EHOSTDOWN | Errno::EADDRNOTAVAIL,
            ) => self.unreachable += transmit.count,
            Some(Errno::EMSGSIZE) => {
                self.too_big += transmit.count;
                let refused = TooBig { destination: transmit.destination, len: transmit.segment };
                if self.shortest_too_big.is_none_or(|shortest| refused.len < shortest.len) {
                    self.shortest_too_big = Some(refused);
                }
            }
            _ => {}
        }
        self.last_error = Some(error);
        self.last_failed = Some(transmit.destination);
    }
}

/// The time one batch may still wait for send buffers. It starts to run with the first wait.
struct Patience<'a> {
    deadline: Option<Instant>,
    /// What else the thread has to do.
    meanwhile: &'a mut dyn FnMut(),
}

impl Patience<'_> {
    /// Waits until `fd` is writable; false when time is up.
    fn wait_writable(&mut self, fd: BorrowedFd<'_>) -> bool {
        loop {
            let now = Instant::now();
            if now >= *self.deadline.get_or_insert(now + SEND_PATIENCE) {
                return false;
            }
            let mut fds = [PollFd::new(fd, PollFlags::POLLOUT)];
            match poll(&mut fds, SEND_NAP) {
                Ok(0) => (self.meanwhile)(),
                Ok(_) => return true,
                // Looking again is right, and bounded by the deadline.
                Err(errno) => return errno == Errno::EINTR,
            }
        }
    }
}

/// Binds one family on `port` (0: any, then `port` becomes what was given). `None`: not wanted or not on this host.
fn bind_family(ip: Option<IpAddr>, port: &mut u16, options: &UdpOptions) -> Result<Option<Bound>, UdpError> {
    let Some(ip) = ip else { return Ok(None) };
    match open(SocketAddr::new(ip, *port), options) {
        Ok((bound, bound_port)) => {
            *port = bound_port;
            Ok(Some(bound))
        }
        Err(error) => match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::EAFNOSUPPORT | Errno::EPROTONOSUPPORT | Errno::EADDRNOTAVAIL) => Ok(None),
            Some(Errno::EADDRINUSE) => Err(UdpError::PortInUse(*port)),
            Some(Errno::EACCES | Errno::EPERM) => Err(UdpError::Permission(*port)),
            _ => Err(UdpError::Other(error)),
        },
    }
}

fn open(address: SocketAddr, options: &UdpOptions) -> io::Result<(Bound, u16)> {
    bind(new_socket(address)?, address, options)
}

fn new_socket(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    Ok(socket)
}

fn bind(socket: Socket, address: SocketAddr, options: &UdpOptions) -> io::Result<(Bound, u16)> {
    socket.bind(&address.into())?;
    let port = socket.local_addr()?.as_socket().map(|address| address.port()).ok_or(io::ErrorKind::InvalidData)?;
    let state = UdpSocketState::new(UdpSockRef::from(&socket))?;
    // Buffers are wishes: a host that refuses them still has a working socket.
    if options.recv_buffer > 0 && !force_recv_buffer(&socket, options.recv_buffer) {
        let _ = socket.set_recv_buffer_size(options.recv_buffer);
    }
    if options.send_buffer > 0 && !force_send_buffer(&socket, options.send_buffer) {
        let _ = state.set_send_buffer_size(UdpSockRef::from(&socket), options.send_buffer);
    }
    let max_gso_segments = AtomicUsize::new(state.max_gso_segments());
    let bound = Bound {
        socket,
        state,
        max_gso_segments,
        fragments: Mutex::new(()),
        expected: AtomicUsize::new(LEAST_EXPECTED),
    };
    Ok((bound, port))
}

/// Errors that a receive reports on behalf of an earlier send.
fn is_queued_error(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error().map(Errno::from_raw),
        Some(
            Errno::ECONNREFUSED
                | Errno::ECONNRESET
                | Errno::EHOSTUNREACH
                | Errno::ENETUNREACH
                | Errno::EHOSTDOWN
                | Errno::ENETDOWN
                | Errno::ENETRESET
                | Errno::EMSGSIZE
                | Errno::EPROTO
                | Errno::ENOPROTOOPT
                | Errno::ENOBUFS
                | Errno::ENOMEM
        )
    )
}

/// What the kernel says when a device or a route cannot take a segmented datagram.
fn may_be_about_segments(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error().map(Errno::from_raw),
        Some(Errno::EIO | Errno::EINVAL | Errno::EMSGSIZE | Errno::EOPNOTSUPP | Errno::ENOPROTOOPT)
    )
}

fn unreachable() -> io::Error {
    io::Error::from_raw_os_error(libc::ENETUNREACH)
}
