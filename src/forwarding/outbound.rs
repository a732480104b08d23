//! From the device to the network. The numbers are those of [the flow](super).

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use agentnet_platform::batch::{PacketBatch, VnetHeader};
use agentnet_platform::udp::SendBatch;
use parking_lot::MutexGuard;

use super::{Fib, FibPeer, Notice, NoticeSink, PeerPath, WAITING_PACKETS};
use crate::metrics::Counters;
use crate::policy::{Direction, Verdict};
use crate::time::Time;
use crate::tunnel::{CONTROL_OUTPUT_LEN, Tunnel};
use crate::wire::WIREGUARD_OVERHEAD;
use crate::wire::{IpView, UnreachableReason, unreachable};

/// ICMP errors to local programs: at most this many at once, then one per [`ERROR_INTERVAL`] (RFC 4443, section 2.4 f).
const ERROR_BURST: u32 = 16;
/// See [`ERROR_BURST`].
const ERROR_INTERVAL: Duration = Duration::from_millis(50);

/// The outbound half of the data plane. One packet thread owns it.
#[derive(Debug)]
pub struct Outbound {
    counters: Arc<Counters>,
    errors_left: u32,
    errors_refilled: Time,
}

/// The peer of the current run of packets, with its session locked.
struct Run<'a> {
    peer: &'a Arc<FibPeer>,
    tunnel: MutexGuard<'a, Tunnel>,
    path: Option<Arc<PeerPath>>,
    has_session: bool,
}

impl Outbound {
    /// A data plane that counts here.
    #[must_use]
    pub fn new(counters: Arc<Counters>) -> Self {
        Self { counters, errors_left: ERROR_BURST, errors_refilled: Time::ZERO }
    }

    /// Takes a batch read from the device through steps 2 to 5. Afterwards `send` is to be sent, and `replies`, ICMP
    /// errors for local programs, to be written to the device. `send` must have room for the whole batch sealed.
    pub fn process(
        &mut self,
        now: Time,
        fib: &Fib,
        packets: &PacketBatch,
        send: &mut SendBatch,
        replies: &mut PacketBatch,
        notices: &mut dyn NoticeSink,
    ) {
        let mut run: Option<Run<'_>> = None;
        for (_, packet) in packets.iter() {
            // 2. parse; the source must be this agent
            let Ok(view) = IpView::parse(packet) else {
                self.counters.drop_out_malformed.increment();
                continue;
            };
            let packet = view.packet;
            if !fib.is_own(view.source) {
                self.counters.drop_out_source.increment();
                continue;
            }
            // 3. destination -> peer
            let Some(peer) = fib.route(view.destination) else {
                self.counters.drop_out_no_route.increment();
                self.tell_program(now, fib, packet, UnreachableReason::NoRoute, replies);
                continue;
            };
            // 4. policy
            if peer.check_policy(now, Direction::Out, &view) == Verdict::Refuse {
                self.counters.drop_out_policy.increment();
                self.tell_program(now, fib, packet, UnreachableReason::AdminProhibited, replies);
                continue;
            }
            // 5. seal
            if run.as_ref().is_none_or(|run| !Arc::ptr_eq(run.peer, peer)) {
                drop(run.take());
                run = Some(Run::begin(now, peer, send, notices));
            }
            if let Some(run) = &mut run {
                self.seal(now, run, packet, send, notices);
            }
        }
    }

    fn seal(&self, now: Time, run: &mut Run<'_>, packet: &[u8], send: &mut SendBatch, notices: &mut dyn NoticeSink) {
        let shared = &run.peer.shared;
        let path = run.path.as_ref().filter(|_| run.has_session);
        let Some(path) = path else {
            if !shared.enter_queue(WAITING_PACKETS) {
                self.counters.drop_out_no_session.increment();
            } else if !notices.notice(Notice::NeedSession { peer: run.peer.id, packet: packet.to_vec() }) {
                shared.leave_queue(1);
                self.counters.drop_notices.increment();
            }
            return;
        };
        let room = (packet.len() + WIREGUARD_OVERHEAD).max(CONTROL_OUTPUT_LEN);
        let tunnel = &mut run.tunnel;
        let sent = send.push_with(path.endpoint, path.local_ip, room, |out| tunnel.seal(now, packet, out).unwrap_or(0));
        if !sent {
            self.counters.drop_out_send.increment();
            return;
        }
        let len = packet.len() as u64;
        self.counters.tx_packets.increment();
        self.counters.tx_bytes.add(len);
        shared.counters.tx_bytes.fetch_add(len, Ordering::Relaxed);
    }

    /// A program that talks to nobody learns it at once, not by a timeout.
    fn tell_program(&mut self, now: Time, fib: &Fib, packet: &[u8], why: UnreachableReason, replies: &mut PacketBatch) {
        let refill = now.since(self.errors_refilled).as_millis() / ERROR_INTERVAL.as_millis();
        if refill > 0 {
            self.errors_left =
                ERROR_BURST.min(self.errors_left.saturating_add(u32::try_from(refill).unwrap_or(ERROR_BURST)));
            self.errors_refilled = now;
        }
        if self.errors_left == 0 {
            return;
        }
        let Some(error) = fib.source_towards(packet).and_then(|source| unreachable(packet, why, source)) else {
            return;
        };
        if let Some(room) = replies.free_space().get_mut(..error.len()) {
            self.errors_left -= 1;
            room.copy_from_slice(&error);
            replies.commit(VnetHeader::default(), error.len());
        }
    }
}

impl<'a> Run<'a> {
    fn begin(now: Time, peer: &'a Arc<FibPeer>, send: &mut SendBatch, notices: &mut dyn NoticeSink) -> Self {
        let shared = &peer.shared;
        let path = shared.path.load_full();
        let mut tunnel = shared.tunnel.lock();
        if let Some(path) = &path {
            let mut begun = false;
            // Without room, which the size of the batch rules out, the next batch refreshes.
            let _ = send.push_with(path.endpoint, path.local_ip, CONTROL_OUTPUT_LEN, |out| {
                let refreshed = tunnel.refresh(now, out).unwrap_or_default();
                begun = refreshed.initiation;
                refreshed.len
            });
            if begun {
                notices.notice(Notice::HandshakeBegun { peer: peer.id });
            }
        }
        let has_session = tunnel.has_session(now);
        if has_session && shared.mark_active() && !notices.notice(Notice::Active { peer: peer.id }) {
            // Unsaid, so that the next packet says it again.
            shared.clear_active();
        }
        Self { peer, tunnel, path, has_session }
    }
}
