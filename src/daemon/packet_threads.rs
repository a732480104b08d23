//! The two threads that carry packets. Each sleeps in poll(2) until there is something to do.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Builder, JoinHandle};

use agentnet_platform::batch::PacketBatch;
use agentnet_platform::clock::boot_time;
use agentnet_platform::tun::{PacketDevice, TunQueue};
use agentnet_platform::udp::{DatagramSocket, RecvBatch, SendBatch, UdpSockets};
use agentnet_platform::wait::{Waker, wait_readable};
use arc_swap::ArcSwap;
use tokio::sync::mpsc;

use crate::forwarding::{
    Fib, Inbound, Notice, NoticeSink, OUT_BATCH_BYTES, OUT_BATCH_PACKETS, Offloads, Outbound, SEND_BYTES,
    StrangerDatagram,
};
use crate::identity::TunnelPublic;
use crate::metrics::Counters;
use crate::time::Time;

/// Notices that may wait for the control plane. One per packet without a session, at most 64 per peer.
pub(super) const NOTICE_QUEUE: usize = 1024;
/// Datagrams of strangers that may wait: one second of what the rate limits let through.
pub(super) const STRANGER_QUEUE: usize = 128;
/// Bytes of one received batch, opened: 32 trains of 64 KiB, with the headroom of 2,048 packets.
const IN_BATCH_BYTES: usize = 32 * 65_536 + IN_BATCH_PACKETS * 32 + 65_536;
/// Packets of one received batch: 32 trains of at most 64.
const IN_BATCH_PACKETS: usize = 32 * 64;
/// ICMP errors that one batch can cause, bytes: 16 of 1,280.
const REPLY_BYTES: usize = 32 * 1024;

/// What packet threads share with the control plane.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) fib: Arc<ArcSwap<Fib>>,
    pub(super) socket: Arc<UdpSockets>,
    pub(super) own_key: TunnelPublic,
    /// What the device takes in one piece.
    pub(super) offloads: Offloads,
    pub(super) counters: Arc<Counters>,
    pub(super) notices: mpsc::Sender<Notice>,
    pub(super) strangers: mpsc::Sender<StrangerDatagram>,
    /// Told once, by whichever thread ends, why.
    pub(super) ended: mpsc::Sender<String>,
}

/// The running threads.
pub(super) struct PacketThreads {
    stop: Stop,
    handles: Vec<JoinHandle<()>>,
}

impl PacketThreads {
    pub(super) fn start(shared: &Shared, outbound: TunQueue, inbound: TunQueue) -> io::Result<Self> {
        let stop = Stop { flag: Arc::default(), waker: Waker::new()? };
        let mut threads = Self { stop: stop.clone(), handles: Vec::new() };
        let (context, until) = (shared.clone(), stop.clone());
        threads.spawn("agentnet-out", shared, move || run_outbound(&context, outbound, &until))?;
        let context = shared.clone();
        threads.spawn("agentnet-in", shared, move || run_inbound(&context, inbound, &stop))?;
        Ok(threads)
    }

    fn spawn(
        &mut self,
        name: &str,
        shared: &Shared,
        run: impl FnOnce() -> io::Result<()> + Send + 'static,
    ) -> io::Result<()> {
        let report = Report { thread: name.to_owned(), ended: shared.ended.clone() };
        let handle = Builder::new().name(name.to_owned()).spawn(move || {
            if let Err(error) = run() {
                report.tell(&error.to_string());
            }
        })?;
        self.handles.push(handle);
        Ok(())
    }

    /// Stops both and waits for them.
    pub(super) fn stop(self) {
        self.stop.flag.store(true, Ordering::Relaxed);
        self.stop.waker.wake();
        for handle in self.handles {
            // A panic was reported by the thread itself.
            let _ = handle.join();
        }
    }
}

/// How threads are stopped: the flag is seen between batches, the waker ends their sleep.
#[derive(Clone)]
struct Stop {
    flag: Arc<AtomicBool>,
    waker: Waker,
}

impl Stop {
    fn is_asked(&self) -> bool {
        self.flag.load(Ordering::Relaxed)
    }
}

/// Tells the control plane that a thread ended on its own; in a panic too.
struct Report {
    thread: String,
    ended: mpsc::Sender<String>,
}

impl Report {
    fn tell(&self, why: &str) {
        let _ = self.ended.try_send(format!("{}: {why}", self.thread));
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.tell("a defect ended this thread");
        }
    }
}

fn run_outbound(shared: &Shared, mut device: TunQueue, stop: &Stop) -> io::Result<()> {
    let mut outbound = Outbound::new(Arc::clone(&shared.counters));
    let mut packets = PacketBatch::new(OUT_BATCH_BYTES, OUT_BATCH_PACKETS);
    let mut send = SendBatch::new(SEND_BYTES, shared.socket.max_gso_segments());
    let mut replies = PacketBatch::new(REPLY_BYTES, OUT_BATCH_PACKETS);
    let mut sink = Sink::new(shared);
    while !stop.is_asked() {
        packets.clear();
        if device.read_batch(&mut packets)? == 0 {
            wait_readable(&[device.as_fd()], &stop.waker, None)?;
            continue;
        }
        let mut next = 0;
        while next < packets.len() {
            send.clear();
            replies.clear();
            let (fib, replies) = (shared.fib.load(), &mut replies);
            next = outbound.process(clock(), &fib, &packets, next, &mut send, replies, &mut sink);
            if !send.is_empty() {
                let report = shared.socket.send_batch(&send);
                outbound.batch_sent(clock(), &report, &mut sink);
            }
            if !replies.is_empty() {
                device.write_batch(replies)?;
            }
        }
    }
    Ok(())
}

fn run_inbound(shared: &Shared, mut device: TunQueue, stop: &Stop) -> io::Result<()> {
    let mut inbound = Inbound::new(Arc::clone(&shared.counters), &shared.own_key, shared.offloads);
    let mut received = RecvBatch::new();
    let mut packets = PacketBatch::new(IN_BATCH_BYTES, IN_BATCH_PACKETS);
    let mut sink = Sink::new(shared);
    let fds = shared.socket.fds();
    while !stop.is_asked() {
        // The wait says which socket to look at; with one that is readable it costs less than looking at the others.
        let ready = wait_readable(&fds, &stop.waker, None)?;
        if shared.socket.recv_ready(ready, &mut received)? == 0 {
            continue;
        }
        packets.clear();
        inbound.process(clock(), &shared.fib.load(), &mut received, &mut packets, &mut sink);
        if !packets.is_empty() {
            let report = device.write_batch(&mut packets)?;
            shared.counters.drop_in_interface.add(report.dropped as u64);
        }
    }
    Ok(())
}

fn clock() -> Time {
    Time::from_origin(boot_time())
}

/// The two queues to the control plane.
struct Sink {
    notices: mpsc::Sender<Notice>,
    strangers: mpsc::Sender<StrangerDatagram>,
}

impl Sink {
    fn new(shared: &Shared) -> Self {
        Self { notices: shared.notices.clone(), strangers: shared.strangers.clone() }
    }
}

impl NoticeSink for Sink {
    fn notice(&mut self, notice: Notice) -> bool {
        self.notices.try_send(notice).is_ok()
    }

    fn stranger(&mut self, datagram: StrangerDatagram) -> bool {
        self.strangers.try_send(datagram).is_ok()
    }
}
