//! Many agents on one host, for what only numbers show: the library's own control and data planes, a UDP socket each,
//! driven by one thread of this process. They keep nothing on disk and have no device: what is for programs is echoed
//! if it is UDP.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use agentnet::forwarding::{Fib, HeldTurns, Inbound, Notice, NoticeSink, Offloads, Outbound, StrangerDatagram};
use agentnet::identity::{DEFAULT_IPV4_RANGE, IdentityKey, Ticket, TunnelSecret};
use agentnet::metrics::Counters;
use agentnet::node::{Input, Node, NodeConfig, Output, RecordSource, StoredPeer};
use agentnet::time::{Now, Time};
use agentnet::trust::{Grant, Relation};
use agentnet_platform::batch::PacketBatch;
use agentnet_platform::clock::boot_time;
use agentnet_platform::process::raise_open_files_limit;
use agentnet_platform::udp::{DatagramSocket, RecvBatch, SendBatch, UdpOptions, UdpSockets};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use redb::{Database, TableDefinition};

use super::{Agent, Host, unix_seconds};

/// As much as arrives in one batch, opened.
const IN_BYTES: usize = 4 << 20;
/// As many packets as arrive in one batch.
const IN_PACKETS: usize = 2_048;
/// Descriptors of one agent: its socket, and the set that waits for its further sockets.
const DESCRIPTORS: u64 = 4;
/// The thread looks this often whether it is to end, milliseconds.
const LONGEST_WAIT: u16 = 50;
/// Protocol number (RFC 768).
const UDP: u8 = 17;

/// The running agents. They end when this is dropped.
pub(crate) struct Crowd {
    /// As the agent they trust would have stored them.
    rows: Vec<StoredPeer>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Crowd {
    /// So many agents on `host`, which trust the agent of this ticket and are trusted by it once
    /// [`stored_by`](Self::stored_by) was called.
    pub(crate) fn start(host: &Host, count: usize, trusted: &Ticket) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (until, trusted, ip) = (Arc::clone(&stop), row(trusted), IpAddr::V4(host.ipv4));
        let (made, rows) = mpsc::channel();
        let thread = host.spawn_thread(move || {
            raise_open_files_limit(1024 + count as u64 * DESCRIPTORS).unwrap();
            let mut members: Vec<Member> = (0..count).map(|_| Member::new(ip, trusted.clone())).collect();
            let rows = members.iter_mut().map(|member| row(&member.node.ticket(now()).unwrap())).collect::<Vec<_>>();
            made.send(rows).unwrap();
            run(&mut members, &until);
        });
        Self { rows: rows.recv().unwrap(), stop, thread: Some(thread) }
    }

    /// Has an agent that is not up trust all of them.
    pub(crate) fn stored_by(&self, agent: &Agent<'_>) {
        let database = Database::open(agent.directory().join("state.redb")).unwrap();
        let transaction = database.begin_write().unwrap();
        let mut table = transaction.open_table(TableDefinition::<&[u8], &[u8]>::new("peers")).unwrap();
        for row in &self.rows {
            table.insert(row.id().as_bytes().as_slice(), row.encode().as_slice()).unwrap();
        }
        drop(table);
        transaction.commit().unwrap();
    }

    /// Where programs reach them.
    pub(crate) fn addresses(&self) -> Vec<Ipv6Addr> {
        self.rows.iter().map(|row| agentnet::identity::overlay_ipv6(&row.id())).collect()
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic was reported by the thread itself, and what it was to answer stayed unanswered.
            let _ = thread.join();
        }
    }
}

/// What is kept of a trusted agent.
fn row(ticket: &Ticket) -> StoredPeer {
    let mut relation = Relation::default();
    relation.request(now().unix_s(), Grant::default());
    relation.consent_received(now().unix_s(), true);
    StoredPeer {
        record: ticket.record().clone(),
        record_source: RecordSource::Ticket,
        record_received: now().unix_s(),
        relation,
        addresses: ticket.addresses().to_vec(),
        alias: None,
        their_aliases: None,
        last_initiation: None,
        last_introduction_ms: 0,
        proved_key: None,
    }
}

/// One agent.
struct Member {
    node: Node,
    socket: Arc<UdpSockets>,
    fib: Arc<Fib>,
    inbound: Inbound,
    queue: Queue,
}

/// What the data plane tells the control plane.
#[derive(Default)]
struct Queue(VecDeque<Input>);

impl NoticeSink for Queue {
    fn notice(&mut self, notice: Notice) -> bool {
        self.0.push_back(Input::Notice(notice));
        true
    }

    fn stranger(&mut self, datagram: StrangerDatagram) -> bool {
        self.0.push_back(Input::Stranger(datagram));
        true
    }
}

/// Room for packets on their way through an agent. All share it.
struct Buffers {
    received: RecvBatch,
    packets: PacketBatch,
    outbound: Outbound,
    send: SendBatch,
    replies: PacketBatch,
}

impl Member {
    fn new(ip: IpAddr, trusted: StoredPeer) -> Self {
        let options = UdpOptions { port: 0, v4: true, v6: false, recv_buffer: 0, send_buffer: 0 };
        let socket = Arc::new(UdpSockets::bind(&options).unwrap());
        let (mut rng, counters) = (rand_core::UnwrapErr(getrandom::SysRng), Arc::<Counters>::default());
        let config = NodeConfig {
            identity: IdentityKey::generate(&mut rng),
            tunnel_secret: TunnelSecret::generate(&mut rng),
            record_sequence: 0,
            name: None,
            ipv4_range: Some(DEFAULT_IPV4_RANGE),
            port: socket.port(),
            mtu: 1420,
            local_addresses: vec![ip],
            rendezvous: Vec::new(),
            peers: vec![trusted],
            counters: Arc::clone(&counters),
            rng: Box::new(rng),
        };
        let node = Node::new(now(), config).unwrap();
        let fib = Arc::new(Fib::new(node.ipv6(), None, None, []));
        let inbound = Inbound::new(counters, &node.tunnel_key(), Offloads::default());
        let mut member = Self { node, socket, fib, inbound, queue: Queue::default() };
        member.drain();
        member
    }

    fn receive(&mut self, buffers: &mut Buffers) {
        let Buffers { received, packets, outbound, send, replies } = buffers;
        while self.socket.recv_batch(received).unwrap() > 0 {
            packets.clear();
            self.inbound.process(now().time, &self.fib, received, packets, &mut self.queue);
            for number in 0..packets.len() {
                turn_round(packets.get_mut(number).unwrap().1);
            }
            let mut next = 0;
            while next < packets.len() {
                send.clear();
                replies.clear();
                next = outbound.process(
                    now().time,
                    &self.fib,
                    packets,
                    next,
                    send,
                    replies,
                    &mut HeldTurns::default(),
                    &mut self.queue,
                );
                self.socket.send_batch(send);
            }
            self.drain();
        }
    }

    fn time_out(&mut self) {
        self.node.handle_input(now(), Input::Timeout);
        self.drain();
    }

    fn drain(&mut self) {
        loop {
            while let Some(output) = self.node.poll_output() {
                match output {
                    Output::Transmit { destination, local_ip, datagram, .. } => {
                        // What the kernel refuses is lost, as on any network.
                        let _ = self.socket.send_to(&datagram, destination, local_ip);
                    }
                    Output::Fib(fib) => self.fib = fib,
                    _ => {}
                }
            }
            let Some(input) = self.queue.0.pop_front() else { return };
            self.node.handle_input(now(), input);
        }
    }
}

/// Makes a UDP packet an answer to itself; its checksum stays right. Others go nowhere: their source is another agent.
fn turn_round(packet: &mut [u8]) {
    if packet.len() >= 48 && packet[0] >> 4 == 6 && packet[6] == UDP {
        let (source, destination) = packet[8..40].split_at_mut(16);
        source.swap_with_slice(destination);
        let (from, to) = packet[40..44].split_at_mut(2);
        from.swap_with_slice(to);
    }
}

fn run(members: &mut [Member], stop: &AtomicBool) {
    let mut buffers = Buffers {
        received: RecvBatch::new(),
        packets: PacketBatch::new(IN_BYTES, IN_PACKETS),
        outbound: Outbound::new(Arc::default()),
        send: SendBatch::new(IN_BYTES, 1),
        replies: PacketBatch::new(IN_BYTES, IN_PACKETS),
    };
    let sockets: Vec<_> = members.iter().map(|member| Arc::clone(&member.socket)).collect();
    let mut waited: Vec<_> = sockets.iter().map(|socket| PollFd::new(socket.fds()[0], PollFlags::POLLIN)).collect();
    while !stop.load(Ordering::Relaxed) {
        let next = members.iter().filter_map(|member| member.node.poll_timeout()).map(|(at, _)| at).min();
        let wait = next.map_or(Duration::MAX, |at| at.since(now().time)).as_micros().div_ceil(1000);
        let wait = u16::try_from(wait).unwrap_or(LONGEST_WAIT).min(LONGEST_WAIT);
        poll(&mut waited, PollTimeout::from(wait)).unwrap();
        for (member, waited) in members.iter_mut().zip(&waited) {
            if waited.any() == Some(true) {
                member.receive(&mut buffers);
            }
            if member.node.poll_timeout().is_some_and(|(at, _)| at <= now().time) {
                member.time_out();
            }
        }
    }
}

fn now() -> Now {
    Now { time: Time::from_origin(boot_time()), unix_ms: (unix_seconds() * 1e3) as u64 }
}

/// The ticket of an agent that is up, with the address its host has on the lab's link alone.
pub(crate) fn ticket_of(agent: &Agent<'_>) -> Ticket {
    let ticket: Ticket = agent.ticket().parse().unwrap();
    Ticket::new(ticket.record().clone(), vec![SocketAddr::new(agent.host().ipv4.into(), agent.port())]).unwrap()
}
