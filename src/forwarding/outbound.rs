//! From the device to the network. The numbers are those of [the flow](super).

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use agentnet_platform::batch::{MAX_PACKET, PacketBatch, VnetHeader};
use agentnet_platform::udp::SendBatch;
use parking_lot::MutexGuard;

use super::segment::Segments;
use super::{Fib, FibPeer, Notice, NoticeSink, PeerPath, WAITING_PACKETS};
use crate::metrics::Counters;
use crate::policy::{Direction, Verdict};
use crate::time::Time;
use crate::tunnel::{CONTROL_OUTPUT_LEN, Tunnel, sealed_len};
use crate::wire::CONTROL_NEXT_HEADER;
use crate::wire::relay::RELAY_PREFIX_LEN;
use crate::wire::{IpView, UnreachableReason, unreachable};

/// ICMP errors to local programs: at most this many at once, then one per [`ERROR_INTERVAL`] (RFC 4443, section 2.4 f).
const ERROR_BURST: u32 = 16;
/// See [`ERROR_BURST`].
const ERROR_INTERVAL: Duration = Duration::from_millis(50);

/// The outbound half of the data plane. One packet thread owns it.
#[derive(Debug)]
pub struct Outbound {
    counters: Arc<Counters>,
    /// Where a segment is put together.
    segment: Box<[u8]>,
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
        Self {
            counters,
            segment: vec![0; MAX_PACKET].into_boxed_slice(),
            errors_left: ERROR_BURST,
            errors_refilled: Time::ZERO,
        }
    }

    /// Takes packets of a batch read from the device, from number `first` on, through steps 2 to 5, until `send` is
    /// full; returns the number of the first packet that is left. Afterwards `send` is to be sent, and `replies`, ICMP
    /// errors for local programs, to be written to the device. With an empty `send` it always gets further.
    #[expect(clippy::too_many_arguments, reason = "the state of one batch, spelled out")]
    pub fn process(
        &mut self,
        now: Time,
        fib: &Fib,
        packets: &PacketBatch,
        first: usize,
        send: &mut SendBatch,
        replies: &mut PacketBatch,
        notices: &mut dyn NoticeSink,
    ) -> usize {
        let mut run: Option<Run<'_>> = None;
        for number in first..packets.len() {
            let Some((header, packet)) = packets.get(number) else { break };
            // 2. parse; the source must be this agent
            let Ok(view) = IpView::parse(packet) else {
                self.counters.drop_out_malformed.increment();
                continue;
            };
            let Ok(segments) = Segments::new(header, &view) else {
                self.counters.drop_out_malformed.increment();
                continue;
            };
            // One more for a handshake or keepalive that is due.
            if !send.fits(segments.count() + 1, RELAY_PREFIX_LEN + sealed_len(segments.max_len())) {
                if !send.is_empty() {
                    return number;
                }
                self.counters.drop_out_malformed.increment();
                continue;
            }
            if !fib.is_own(view.source) {
                self.counters.drop_out_source.increment();
                continue;
            }
            // The peer would take it for this agent's own word.
            if view.protocol == CONTROL_NEXT_HEADER {
                self.counters.drop_out_control.increment();
                continue;
            }
            // 3. destination -> peer
            let Some(peer) = fib.route(view.destination) else {
                self.counters.drop_out_no_route.increment();
                self.tell_program(now, fib, view.packet, UnreachableReason::NoRoute, replies);
                continue;
            };
            // 4. policy
            if peer.check_policy(now, Direction::Out, &view) == Verdict::Refuse {
                self.counters.drop_out_policy.increment();
                self.tell_program(now, fib, view.packet, UnreachableReason::AdminProhibited, replies);
                continue;
            }
            // 5. segment and seal
            if run.as_ref().is_none_or(|run| !Arc::ptr_eq(run.peer, peer)) {
                drop(run.take());
                run = Some(Run::begin(now, peer, send, notices));
            }
            if let Some(run) = &mut run {
                self.send_segments(now, run, view.packet, &segments, send, notices);
            }
        }
        packets.len()
    }

    fn send_segments(
        &mut self,
        now: Time,
        run: &mut Run<'_>,
        packet: &[u8],
        segments: &Segments<'_>,
        send: &mut SendBatch,
        notices: &mut dyn NoticeSink,
    ) {
        let path = run.path.clone().filter(|_| run.has_session);
        let (mut count, mut bytes) = (0, 0);
        for index in 0..segments.count() {
            // Most packets travel as they are. The others are put together here first: their checksum covers all of
            // them, and the session library copies anyway.
            let segment = if segments.is_whole() {
                packet
            } else {
                let Ok(len) = segments.write(index, &mut self.segment) else { break };
                &self.segment[..len]
            };
            let Some(path) = &path else {
                self.wait_for_session(run.peer, segment, notices);
                continue;
            };
            let tunnel = &mut run.tunnel;
            let room = path.prefix_len() + sealed_len(segment.len());
            let seal = |out: &mut [u8]| path.frame(out, |out| tunnel.seal(now, segment, out).unwrap_or(0));
            if !send.push_with(path.endpoint, path.local(), room, seal) {
                self.counters.drop_out_send.increment();
                continue;
            }
            count += 1;
            bytes += segment.len() as u64;
        }
        self.counters.tx_packets.add(count);
        self.counters.tx_bytes.add(bytes);
        run.peer.shared.counters.tx_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    fn wait_for_session(&self, peer: &FibPeer, packet: &[u8], notices: &mut dyn NoticeSink) {
        if !peer.shared.enter_queue(WAITING_PACKETS) {
            self.counters.drop_out_no_session.increment();
        } else if !notices.notice(Notice::NeedSession { peer: peer.id, packet: packet.to_vec() }) {
            peer.shared.leave_queue(1);
            self.counters.drop_notices.increment();
        }
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
            let room = path.prefix_len() + CONTROL_OUTPUT_LEN;
            let _ = send.push_with(path.endpoint, path.local(), room, |out| {
                path.frame(out, |out| {
                    let refreshed = tunnel.refresh(now, out).unwrap_or_default();
                    begun = refreshed.initiation;
                    refreshed.len
                })
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
