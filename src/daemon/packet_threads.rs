//! The threads that carry packets, two for each queue of the device. Each sleeps in poll(2) until there is something to do.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Builder, JoinHandle, yield_now};
use std::time::Duration;

use agentnet_platform::batch::PacketBatch;
use agentnet_platform::clock::boot_time;
use agentnet_platform::tun::{PacketDevice, TunQueue};
use agentnet_platform::udp::{DatagramSocket, RecvBatch, SendBatch, UdpSockets};
use agentnet_platform::wait::{Ready, Waker, wait_readable};
use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::sync::mpsc;

use crate::forwarding::{
    Fib, HeldTurns, Inbound, Notice, NoticeSink, OUT_BATCH_BYTES, OUT_BATCH_PACKETS, Offloads, Outbound, SEND_BYTES,
    StrangerDatagram, Turns,
};
use crate::identity::TunnelPublic;
use crate::metrics::Counters;
use crate::time::Time;

/// Notices that may wait for the control plane. One per packet without a session, at most 64 per peer.
pub(super) const NOTICE_QUEUE: usize = 1024;
/// Datagrams of strangers that may wait: one second of what the rate limits let through.
pub(super) const STRANGER_QUEUE: usize = 128;
/// Trains of one received batch: half a megabyte of full ones, half a millisecond's work. What the first packet of a batch
/// draws must not wait longer.
const IN_BATCH_TRAINS: usize = 8;
/// Packets of one received batch: trains of at most 64.
const IN_BATCH_PACKETS: usize = IN_BATCH_TRAINS * 64;
/// Bytes of one received batch, opened: trains of 64 KiB, with the headroom of all packets.
const IN_BATCH_BYTES: usize = IN_BATCH_TRAINS * 65_536 + IN_BATCH_PACKETS * 32 + 65_536;
/// ICMP errors that one batch can cause, bytes: 16 of 1,280.
const REPLY_BYTES: usize = 32 * 1024;

/// Waiting at the device so much is left to the second thread, bytes: more than one packet of 64 KiB, or a full batch of
/// short ones.
const HANDED_OVER_FROM: usize = 80 * 1024;
/// What a packet counts for beyond its length, bytes: a short one takes as long to seal as this.
const PACKET_WEIGHT: usize = 1_400;
/// The second thread keeps the device for so long without a packet.
const LINGER: Duration = Duration::from_millis(10);
/// A thread carries for so long before it lets others have the processor. It would keep it until a tick of the kernel finds
/// that it had its share, 4 ms at 250 ticks a second, while everybody else on the way of a packet waits.
const SHIFT: Duration = Duration::from_millis(1);
/// It keeps the processor so many times as long as it was away. The kernel takes a yield for a share given away, and beside
/// a program that never rests little would be left (measured: half the throughput without this, 93 % with it).
const KEPT_AFTER: u32 = 4;

/// What packet threads share with the control plane.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) fib: Arc<ArcSwap<Fib>>,
    /// Where the control plane sends; those of the first queue.
    pub(super) socket: Arc<UdpSockets>,
    pub(super) own_key: TunnelPublic,
    /// What the device takes in one piece.
    pub(super) offloads: Offloads,
    pub(super) counters: Arc<Counters>,
    pub(super) notices: mpsc::Sender<Notice>,
    pub(super) strangers: mpsc::Sender<StrangerDatagram>,
    /// Where several queues carry packets to the same peers; none with one.
    pub(super) turns: Option<Arc<Turns>>,
    /// Told once, by whichever thread ends, why.
    pub(super) ended: mpsc::Sender<String>,
}

/// The running threads.
pub(super) struct PacketThreads {
    stop: Stop,
    handles: Vec<JoinHandle<()>>,
}

impl PacketThreads {
    /// Starts two for the first queue, and two for each of `twins`; `queue` gives the device's queue of a number. The
    /// queues share the sessions, and take turns with each peer. The kernel keeps all packets of a flow in one, on both sides;
    /// when the first answer of a flow comes by another one, its packets go there from then on.
    pub(super) fn start(
        shared: &Shared,
        twins: &[Arc<UdpSockets>],
        queue: impl Fn(usize) -> TunQueue,
    ) -> io::Result<Self> {
        let mut threads = Self { stop: Stop { flag: Arc::default(), waker: Waker::new()? }, handles: Vec::new() };
        for (number, socket) in [&shared.socket].into_iter().chain(twins).enumerate() {
            let shared = Shared { socket: Arc::clone(socket), ..shared.clone() };
            if let Err(error) = threads.start_queue(&shared, number, || queue(number)) {
                threads.stop();
                return Err(error);
            }
        }
        Ok(threads)
    }

    fn start_queue(&mut self, shared: &Shared, number: usize, queue: impl Fn() -> TunQueue) -> io::Result<()> {
        let carrier = Arc::new(Carrier::new(shared, number, &queue)?);
        let (helper, device, stop) = (Arc::clone(&carrier), queue(), self.stop.clone());
        self.spawn(&format!("agentnet-out{number}"), shared, move || helper.help(&device, &stop))?;
        let (socket, device, stop) = (Arc::clone(&shared.socket), queue(), self.stop.clone());
        self.spawn(&format!("agentnet-in{number}"), shared, move || carrier.run(&socket, &device, &stop))
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

    /// Stops all and waits for them.
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

/// One direction: its work, and whether the thread that has it is at it. The other thread, which is awake, may do it
/// meanwhile: what a packet draws at once, an echo or an acknowledgement, then leaves without waiting for anybody. To wake
/// a thread takes longer than to carry a packet: 45 us on an idle processor, and on a busy one its turn may come
/// milliseconds later (measured). Packets keep their order all the same: they are read and passed on under one lock.
struct Direction<W> {
    work: Mutex<W>,
    awake: AtomicBool,
}

impl<W> Direction<W> {
    fn new(work: W) -> Self {
        Self { work: Mutex::new(work), awake: AtomicBool::new(false) }
    }

    /// Sleeps until one of `fds` is readable, or for so long.
    fn wait(&self, fds: &[BorrowedFd<'_>], stop: &Stop, most: Option<Duration>) -> io::Result<Ready> {
        self.awake.store(false, Ordering::Relaxed);
        let ready = wait_readable(fds, &stop.waker, most);
        self.awake.store(true, Ordering::Relaxed);
        ready
    }

    /// Lets others have the processor when it is time to. The other thread may do the work meanwhile.
    fn give_way(&self, courtesy: &mut Courtesy) {
        let now = clock();
        if now < courtesy.next {
            return;
        }
        self.awake.store(false, Ordering::Relaxed);
        yield_now();
        self.awake.store(true, Ordering::Relaxed);
        courtesy.back(now, clock());
    }

    /// Lets `carry` do the work if nobody is at it.
    fn meanwhile<T>(&self, carry: impl FnOnce(&mut W) -> io::Result<T>) -> io::Result<()> {
        if self.awake.load(Ordering::Relaxed) {
            return Ok(());
        }
        self.work.try_lock().map_or(Ok(()), |mut work| carry(&mut work).map(drop))
    }
}

/// When a thread lets others have the processor next.
#[derive(Default)]
struct Courtesy {
    next: Time,
}

impl Courtesy {
    fn back(&mut self, left: Time, now: Time) {
        let away = now.since(left);
        self.next = now + SHIFT.max(away * KEPT_AFTER);
    }
}

/// Both directions, and who has the device.
///
/// One thread carries everything as long as there is little: then nobody has to be woken but itself. Where packets queue
/// at the device it hands that over to the second thread, which gives it back when there has been nothing for a while.
struct Carrier {
    outgoing: Direction<Outgoing>,
    incoming: Direction<Incoming>,
    /// The second thread has the device.
    handed_over: AtomicBool,
    /// Wakes the second thread when it has.
    handed: Waker,
    /// Wakes the first one when it has the device again.
    returned: Waker,
}

impl Carrier {
    fn new(shared: &Shared, number: usize, queue: impl Fn() -> TunQueue) -> io::Result<Self> {
        Ok(Self {
            outgoing: Direction::new(Outgoing::new(shared, number, queue())),
            incoming: Direction::new(Incoming::new(shared, queue())),
            handed_over: AtomicBool::new(false),
            handed: Waker::new()?,
            returned: Waker::new()?,
        })
    }

    /// The first thread: the sockets, and the device as long as there is little.
    fn run(&self, socket: &UdpSockets, device: &TunQueue, stop: &Stop) -> io::Result<()> {
        let mut fds = socket.fds();
        let (returned, device_at) = (fds.len(), fds.len() + 1);
        fds.extend([self.returned.as_fd(), device.as_fd()]);
        let mut courtesy = Courtesy::default();
        while !stop.is_asked() {
            let wanted = if self.handed_over.load(Ordering::Relaxed) { device_at } else { device_at + 1 };
            let ready = self.incoming.wait(fds.get(..wanted).unwrap_or(&fds), stop, None)?;
            if ready.is_readable(returned) {
                self.returned.drain();
            }
            // What is readable is known; asking the other sockets too would cost a system call each.
            if (0..returned).any(|index| ready.is_readable(index)) {
                self.incoming.work.lock().carry(Some(ready))?;
                // Whoever was woken may wait for this processor.
                self.incoming.give_way(&mut courtesy);
            }
            if self.handed_over.load(Ordering::Relaxed) {
                self.outgoing.meanwhile(|outgoing| outgoing.carry(&mut || self.receive()))?;
            } else if self.outgoing.work.lock().carry(&mut || self.receive())? >= HANDED_OVER_FROM {
                self.handed_over.store(true, Ordering::Relaxed);
                self.handed.wake();
            }
        }
        Ok(())
    }

    /// Receives while something else has to wait, unless somebody is at it. An error comes back on the next call.
    fn receive(&self) {
        if let Some(mut incoming) = self.incoming.work.try_lock() {
            let _ = incoming.carry(None);
        }
    }

    /// The second thread: the device when there is much.
    fn help(&self, device: &TunQueue, stop: &Stop) -> io::Result<()> {
        let mut courtesy = Courtesy::default();
        while !stop.is_asked() {
            wait_readable(&[self.handed.as_fd()], &stop.waker, None)?;
            self.handed.drain();
            while !stop.is_asked() {
                while !stop.is_asked() && self.outgoing.work.lock().carry(&mut || self.receive())? > 0 {
                    self.incoming.meanwhile(|incoming| incoming.carry(None))?;
                    self.outgoing.give_way(&mut courtesy);
                }
                if self.outgoing.wait(&[device.as_fd()], stop, Some(LINGER))?.is_timeout() {
                    break;
                }
            }
            // Until this thread wakes to the next call, the other one carries meanwhile.
            self.outgoing.awake.store(false, Ordering::Relaxed);
            self.handed_over.store(false, Ordering::Relaxed);
            self.returned.wake();
        }
        Ok(())
    }
}

/// From the device to the network.
struct Outgoing {
    shared: Shared,
    device: TunQueue,
    outbound: Outbound,
    packets: PacketBatch,
    send: SendBatch,
    replies: PacketBatch,
    sink: Sink,
}

/// From the network to the device.
struct Incoming {
    shared: Shared,
    device: TunQueue,
    inbound: Inbound,
    received: RecvBatch,
    packets: PacketBatch,
    sink: Sink,
}

impl Outgoing {
    fn new(shared: &Shared, number: usize, device: TunQueue) -> Self {
        Self {
            shared: shared.clone(),
            device,
            outbound: Outbound::of_queue(Arc::clone(&shared.counters), number),
            packets: PacketBatch::new(OUT_BATCH_BYTES, OUT_BATCH_PACKETS),
            send: SendBatch::new(SEND_BYTES, shared.socket.max_gso_segments()),
            replies: PacketBatch::new(REPLY_BYTES, OUT_BATCH_PACKETS),
            sink: Sink::new(shared),
        }
    }

    /// Carries one batch; does what else there is to do while the send buffers are full. Returns how many bytes it had, 0
    /// when there was none.
    fn carry(&mut self, meanwhile: &mut dyn FnMut()) -> io::Result<usize> {
        self.packets.clear();
        if self.device.read_batch(&mut self.packets)? == 0 {
            return Ok(0);
        }
        let mut next = 0;
        while next < self.packets.len() {
            self.send.clear();
            self.replies.clear();
            let mut turns = HeldTurns::new(self.shared.turns.as_deref(), &mut *meanwhile);
            let (fib, out, replies) = (self.shared.fib.load(), &mut self.send, &mut self.replies);
            let sink = &mut self.sink;
            next = self.outbound.process(clock(), &fib, &self.packets, next, out, replies, &mut turns, sink);
            if !self.send.is_empty() {
                let report = self.shared.socket.send_batch_while(&self.send, &mut || turns.meanwhile());
                self.outbound.batch_sent(clock(), &report, &mut self.sink);
            }
            drop(turns);
            if !self.replies.is_empty() {
                self.device.write_batch(&mut self.replies)?;
            }
        }
        Ok(self.packets.iter().map(|(_, packet)| packet.len() + PACKET_WEIGHT).sum())
    }
}

impl Incoming {
    fn new(shared: &Shared, device: TunQueue) -> Self {
        Self {
            shared: shared.clone(),
            device,
            inbound: Inbound::new(Arc::clone(&shared.counters), &shared.own_key, shared.offloads),
            received: RecvBatch::of_trains(IN_BATCH_TRAINS),
            packets: PacketBatch::new(IN_BATCH_BYTES, IN_BATCH_PACKETS),
            sink: Sink::new(shared),
        }
    }

    /// Carries one batch, from the sockets that are known to be readable or from all.
    fn carry(&mut self, ready: Option<Ready>) -> io::Result<()> {
        let socket = &self.shared.socket;
        let received = match ready {
            Some(ready) => socket.recv_ready(ready, &mut self.received)?,
            None => socket.recv_batch(&mut self.received)?,
        };
        if received == 0 {
            return Ok(());
        }
        self.packets.clear();
        let (fib, packets) = (self.shared.fib.load(), &mut self.packets);
        self.inbound.process(clock(), &fib, &mut self.received, packets, &mut self.sink);
        if !packets.is_empty() {
            let report = self.device.write_batch(packets)?;
            self.shared.counters.drop_in_interface.add(report.dropped as u64);
        }
        Ok(())
    }
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
