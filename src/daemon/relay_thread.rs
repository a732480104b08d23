//! The thread that is the rendezvous server. It sleeps in poll(2) until there is something to do.
//!
//! 1. A round of datagrams is received from each port.
//! 2. Where a round came back full, its relay frames are weighed first, so that each client gets its fair share.
//! 3. Relay frames go straight into the send buffer; everything else goes through the server, whose answers follow.
//! 4. The send buffer goes out. Frames of one train that go to one place stay a train (`UDP_SEGMENT`).
//! 5. What is to be kept is handed to the main thread, at most every second.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use agentnet_platform::udp::{DatagramSocket, RecvBatch, SendBatch, UdpSockets};
use agentnet_platform::wait::{Waker, wait_readable};
use tokio::sync::mpsc;

use super::now;
use super::service_manager::ServiceManager;
use super::store::Changes;
use crate::metrics::ServerCounters;
use crate::rendezvous::{Change, Local, Output, Port, Server};
use crate::time::{Now, Time};
use crate::wire::{DatagramKind, classify};

/// What one receive round can bring: 32 trains of 64 KiB.
const SEND_BYTES: usize = 32 * 65_536;
/// Changes are handed to the disk this often.
const STORE_INTERVAL: Duration = Duration::from_secs(1);

/// The server's ports.
pub(super) struct Sockets {
    pub(super) primary: UdpSockets,
    /// For STUN only; the port above the primary one.
    pub(super) alternate: Option<UdpSockets>,
}

/// The running thread.
pub(super) struct RelayThread {
    stop: Stop,
    handle: JoinHandle<(Changes, io::Result<()>)>,
}

/// How the thread is stopped: the flag is seen between rounds, the waker ends its sleep.
#[derive(Clone)]
struct Stop {
    flag: Arc<AtomicBool>,
    waker: Waker,
}

impl RelayThread {
    /// Starts it. `changes` is closed when it ends.
    pub(super) fn start(
        server: Server,
        sockets: Sockets,
        counters: Arc<ServerCounters>,
        changes: mpsc::Sender<Changes>,
        service_manager: ServiceManager,
    ) -> io::Result<Self> {
        let stop = Stop { flag: Arc::default(), waker: Waker::new()? };
        let until = stop.clone();
        let mut relay = Relay {
            send: SendBatch::new(SEND_BYTES, sockets.primary.max_gso_segments()),
            server,
            sockets,
            counters,
            changes: Changes::default(),
            store: changes,
            store_at: None,
            service_manager,
        };
        let handle = Builder::new().name("agentnet-relay".to_owned()).spawn(move || {
            let result = relay.run(&until);
            (relay.changes, result)
        })?;
        Ok(Self { stop, handle })
    }

    /// Asks it to end after this round.
    pub(super) fn stop(&self) {
        self.stop.flag.store(true, Ordering::Relaxed);
        self.stop.waker.wake();
    }

    /// Waits for its end: what is still to be stored, and why it ended.
    pub(super) fn join(self) -> io::Result<(Changes, io::Result<()>)> {
        self.handle.join().map_err(|_| io::Error::other("a defect ended its thread"))
    }
}

/// What the thread owns.
struct Relay {
    server: Server,
    sockets: Sockets,
    counters: Arc<ServerCounters>,
    send: SendBatch,
    changes: Changes,
    store: mpsc::Sender<Changes>,
    /// When the changes are to be handed on; `None` while there are none.
    store_at: Option<Time>,
    /// Is told from here that the work goes on, as this is where it is done.
    service_manager: ServiceManager,
}

impl Relay {
    fn run(&mut self, stop: &Stop) -> io::Result<()> {
        let (mut primary, mut alternate) = (RecvBatch::new(), RecvBatch::new());
        self.drain(now());
        self.service_manager.ready(now().time, "serving");
        while !stop.flag.load(Ordering::Relaxed) {
            let mut received = self.sockets.primary.recv_batch(&mut primary)?;
            if let Some(socket) = &self.sockets.alternate {
                received += socket.recv_batch(&mut alternate)?;
            }
            let now = now();
            self.service_manager.alive(now.time);
            if received == 0 && !self.is_due(now.time) {
                self.sleep(stop, now.time)?;
                continue;
            }
            self.serve_primary(now, &mut primary);
            self.serve_alternate(now, &mut alternate);
            if self.server.poll_timeout() <= now.time {
                self.server.handle_timeout(now);
            }
            self.drain(now);
            self.flush();
            self.hand_on_changes(now.time);
        }
        self.service_manager.stopping();
        Ok(())
    }

    fn is_due(&self, now: Time) -> bool {
        self.next_timeout() <= now
    }

    fn next_timeout(&self) -> Time {
        let others = [self.store_at, self.service_manager.due()].into_iter().flatten();
        others.fold(self.server.poll_timeout(), Time::min)
    }

    fn sleep(&self, stop: &Stop, now: Time) -> io::Result<()> {
        let mut fds = self.sockets.primary.fds();
        fds.extend(self.sockets.alternate.iter().flat_map(DatagramSocket::fds));
        wait_readable(&fds, &stop.waker, Some(self.next_timeout().since(now))).map(drop)
    }

    fn serve_primary(&mut self, now: Now, round: &mut RecvBatch) {
        self.server.begin_round();
        if round.is_full() {
            for datagram in round.datagrams() {
                self.server.weigh(datagram.source, datagram.data);
            }
            self.server.limit_round();
        }
        for datagram in round.datagrams() {
            self.counters.rx_datagrams.increment();
            if classify(datagram.data) == DatagramKind::Relay {
                if let Some(route) = self.server.relay(now.time, datagram.source, datagram.data) {
                    self.push(route.destination, route.local_ip, datagram.data);
                }
            } else {
                let local = Local { port: Port::Primary, ip: datagram.destination_ip };
                self.server.handle_datagram(now, datagram.source, local, datagram.data);
                self.drain(now);
            }
        }
    }

    fn serve_alternate(&mut self, now: Now, round: &mut RecvBatch) {
        for datagram in round.datagrams() {
            self.counters.rx_datagrams.increment();
            let local = Local { port: Port::Alternate, ip: datagram.destination_ip };
            self.server.handle_datagram(now, datagram.source, local, datagram.data);
        }
        round.clear();
    }

    /// Carries out what the server wants done.
    fn drain(&mut self, now: Now) {
        while let Some(output) = self.server.poll_output() {
            match output {
                Output::Transmit { destination, from, datagram } if from.port == Port::Primary => {
                    self.push(destination, from.ip, &datagram);
                }
                Output::Transmit { destination, from, datagram } => {
                    let socket = self.sockets.alternate.as_ref();
                    match socket.map(|socket| socket.send_to(&datagram, destination, from.ip)) {
                        Some(Ok(())) => self.counters.tx_datagrams.increment(),
                        _ => self.counters.drop_send.increment(),
                    }
                }
                Output::Store(change) => {
                    self.store_at.get_or_insert(now.time + STORE_INTERVAL);
                    self.note(change);
                }
            }
        }
    }

    /// Puts a datagram into the send buffer. It is copied because the receive buffer is cut into trains by source, and
    /// what leaves is cut by destination.
    fn push(&mut self, destination: SocketAddr, local_ip: Option<IpAddr>, datagram: &[u8]) {
        let copy = |space: &mut [u8]| {
            space.copy_from_slice(datagram);
            datagram.len()
        };
        if self.send.push_with(destination, local_ip, datagram.len(), copy) {
            return;
        }
        self.flush();
        if !self.send.push_with(destination, local_ip, datagram.len(), copy) {
            self.counters.drop_send.increment();
        }
    }

    fn flush(&mut self) {
        if self.send.is_empty() {
            return;
        }
        let report = self.sockets.primary.send_batch(&self.send);
        self.counters.tx_datagrams.add(report.sent_datagrams as u64);
        self.counters.drop_send.add(report.dropped as u64);
        self.send.clear();
    }

    fn note(&mut self, change: Change) {
        match change {
            Change::Sequence(sequence) => self.changes.sequence(sequence),
            Change::Record(id, record) => self.changes.record(id, record.as_ref()),
            Change::Introduction(number, stored) => self.changes.introduction(number, stored.as_deref()),
        }
    }

    fn hand_on_changes(&mut self, now: Time) {
        if self.store_at.is_none_or(|at| at > now) {
            return;
        }
        // While the disk is busy they wait here, each row once.
        match self.store.try_send(std::mem::take(&mut self.changes)) {
            Ok(()) => self.store_at = None,
            Err(mpsc::error::TrySendError::Full(changes) | mpsc::error::TrySendError::Closed(changes)) => {
                self.changes = changes;
                self.store_at = Some(now + STORE_INTERVAL);
            }
        }
    }
}
