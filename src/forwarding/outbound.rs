//! From the device to the network. The numbers are those of [the flow](super).

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use agentnet_platform::batch::{MAX_PACKET, PacketBatch, VnetHeader};
use agentnet_platform::udp::{SendBatch, SendReport, TooBig};

use super::fit::Fit;
use super::fragment::Fragments;
use super::segment::Segments;
use super::session_lock::SessionLock;
use super::turns::HeldTurns;
use super::{Fib, FibPeer, Notice, NoticeSink, PeerPath, WAITING_PACKETS};
use crate::metrics::Counters;
use crate::policy::{Direction, Verdict};
use crate::time::Time;
use crate::tunnel::{CONTROL_OUTPUT_LEN, sealed_len};
use crate::wire::relay::RELAY_PREFIX_LEN;
use crate::wire::{CONTROL_NEXT_HEADER, IpView, LEAST_PATH_MTU, UnreachableReason, clamp_mss, is_tcp_syn, unreachable};

/// ICMP errors to local programs: at most this many at once, then one per [`ERROR_INTERVAL`] (RFC 4443, section 2.4 f).
const ERROR_BURST: u32 = 16;
/// See [`ERROR_BURST`].
const ERROR_INTERVAL: Duration = Duration::from_millis(50);

/// The control plane is told again of datagrams that this host does not take after this.
const TOO_BIG_INTERVAL: Duration = Duration::from_millis(100);

/// The outbound half of the data plane. One packet thread uses it at a time.
#[derive(Debug)]
pub struct Outbound {
    counters: Arc<Counters>,
    /// Where a segment is put together.
    segment: Box<[u8]>,
    /// Where a fragment is.
    fragment: Box<[u8]>,
    /// Of the next IPv6 packet that is fragmented. Within a session nobody else guesses it.
    identification: u32,
    errors_left: u32,
    errors_refilled: Time,
    /// What the control plane was last told about datagrams that are too big, and when.
    too_big_told: Option<(TooBig, Time)>,
}

/// How a packet is sent.
struct Sending<'a> {
    segments: Segments<'a>,
    /// What the path takes, bytes.
    path_mtu: u16,
    /// It leaves in fragments.
    in_fragments: bool,
    /// It opens a TCP connection.
    opens_tcp: bool,
}

/// The peer of the current run of packets, with its sessions.
struct Run<'a> {
    peer: &'a Arc<FibPeer>,
    sessions: SessionLock<'a>,
    path: Option<Arc<PeerPath>>,
    has_session: bool,
}

impl Outbound {
    /// A data plane that counts here.
    #[must_use]
    pub fn new(counters: Arc<Counters>) -> Self {
        Self::of_queue(counters, 0)
    }

    /// That of one queue of several, 16 at most: their packets never have the same identification.
    #[must_use]
    pub fn of_queue(counters: Arc<Counters>, number: usize) -> Self {
        Self {
            counters,
            segment: vec![0; MAX_PACKET].into_boxed_slice(),
            fragment: vec![0; MAX_PACKET].into_boxed_slice(),
            identification: (number as u32) << 28,
            errors_left: ERROR_BURST,
            errors_refilled: Time::ZERO,
            too_big_told: None,
        }
    }

    /// Takes packets of a batch read from the device, from number `first` on, through steps 2 to 6, until `send` is
    /// full; returns the number of the first packet that is left. Afterwards `send` is to be sent, and `replies`, ICMP
    /// errors for local programs, to be written to the device. `turns` are to be kept until `send` is sent. With an empty
    /// `send` and no turn it always gets further.
    #[expect(clippy::too_many_arguments, reason = "the state of one batch, spelled out")]
    pub fn process(
        &mut self,
        now: Time,
        fib: &Fib,
        packets: &PacketBatch,
        first: usize,
        send: &mut SendBatch,
        replies: &mut PacketBatch,
        turns: &mut HeldTurns<'_>,
        notices: &mut dyn NoticeSink,
    ) -> usize {
        let mut run: Option<Run<'_>> = None;
        let mut last: Option<(IpAddr, &Arc<FibPeer>)> = None;
        for number in first..packets.len() {
            let Some((header, packet)) = packets.get(number) else { break };
            let Some((view, segments)) = self.parse(fib, header, packet) else { continue };
            // 3. destination -> peer
            let known = last.filter(|(destination, _)| *destination == view.destination).map(|(_, peer)| peer);
            let Some(peer) = known.or_else(|| fib.route(view.destination)) else {
                self.counters.drop_out_no_route.increment();
                self.tell_program(now, fib, &view, UnreachableReason::NoRoute, replies);
                continue;
            };
            last = Some((view.destination, peer));
            // 4. policy
            if peer.check_policy(now, Direction::Out, &view) == Verdict::Refuse {
                self.counters.drop_out_policy.increment();
                self.tell_program(now, fib, &view, UnreachableReason::AdminProhibited, replies);
                continue;
            }
            // 5. longer than the path takes?
            let Some(sending) = self.fit(now, fib, segments, &view, peer.shared.path_mtu(), replies) else { continue };
            // One more for a handshake or keepalive that is due.
            let longest = RELAY_PREFIX_LEN + sealed_len(sending.segments.max_len());
            if !send.fits(sending.most_datagrams() + 1, longest) {
                if !send.is_empty() {
                    return number;
                }
                self.counters.drop_out_malformed.increment();
                continue;
            }
            // 6. segment and seal
            if run.as_ref().is_none_or(|run| !Arc::ptr_eq(run.peer, peer)) {
                drop(run.take());
                if !turns.take(&peer.id) {
                    if !send.is_empty() {
                        return number;
                    }
                    turns.give_back();
                    turns.take(&peer.id);
                }
                run = Some(Run::begin(now, peer, send, notices));
            }
            if let Some(run) = &mut run {
                self.send_segments(now, run, view.packet, &sending, send, notices);
            }
        }
        packets.len()
    }

    /// Step 2: the packet, if it is one, and this agent's.
    fn parse<'a>(&self, fib: &Fib, header: VnetHeader, packet: &'a [u8]) -> Option<(IpView<'a>, Segments<'a>)> {
        let parsed = IpView::parse(packet).ok().and_then(|view| {
            let segments = Segments::new(header, &view).ok()?;
            Some((view, segments))
        });
        let Some((view, segments)) = parsed else {
            self.counters.drop_out_malformed.increment();
            return None;
        };
        if !fib.is_own(view.source) {
            self.counters.drop_out_source.increment();
            return None;
        }
        // The peer would take it for this agent's own word.
        if view.protocol == CONTROL_NEXT_HEADER {
            self.counters.drop_out_control.increment();
            return None;
        }
        Some((view, segments))
    }

    /// Takes note of what became of a batch.
    pub fn batch_sent(&mut self, now: Time, report: &SendReport, notices: &mut dyn NoticeSink) {
        self.counters.tx_datagrams.add(report.sent_datagrams as u64);
        self.counters.drop_out_send.add(report.dropped as u64);
        let Some(too_big) = report.shortest_too_big else { return };
        let told = self.too_big_told.is_some_and(|(last, at)| last == too_big && now.since(at) < TOO_BIG_INTERVAL);
        if !told && notices.notice(Notice::TooBig { endpoint: too_big.destination, len: too_big.len }) {
            self.too_big_told = Some((too_big, now));
        }
    }

    /// How a packet is sent on a path that takes `path_mtu` bytes; none if it cannot be, and the program knows.
    fn fit<'a>(
        &mut self,
        now: Time,
        fib: &Fib,
        segments: Segments<'a>,
        view: &IpView<'a>,
        path_mtu: u16,
        replies: &mut PacketBatch,
    ) -> Option<Sending<'a>> {
        let opens_tcp = is_tcp_syn(view);
        match Fit::of(segments, view, path_mtu) {
            Fit::Whole(segments) => Some(Sending { segments, path_mtu, in_fragments: false, opens_tcp }),
            Fit::InFragments(segments) => Some(Sending { segments, path_mtu, in_fragments: true, opens_tcp }),
            Fit::TooBig(mtu) => {
                self.counters.drop_out_too_big.increment();
                self.tell_program(now, fib, view, UnreachableReason::PacketTooBig { mtu }, replies);
                None
            }
        }
    }

    fn send_segments(
        &mut self,
        now: Time,
        run: &mut Run<'_>,
        packet: &[u8],
        sending: &Sending<'_>,
        send: &mut SendBatch,
        notices: &mut dyn NoticeSink,
    ) {
        let path = run.path.clone().filter(|_| run.has_session);
        let (mut count, mut bytes, mut longest) = (0, 0, 0);
        for index in 0..sending.segments.count() {
            // Most packets travel as they are. The others are put together here first: their checksum covers all of
            // them, and the session library copies anyway.
            let segment = if sending.segments.is_whole() && !sending.opens_tcp {
                packet
            } else {
                let Ok(len) = sending.segments.write(index, &mut self.segment) else { break };
                let Some(segment) = self.segment.get_mut(..len) else { break };
                if sending.opens_tcp {
                    clamp_mss(segment, sending.path_mtu);
                }
                segment
            };
            let Some(path) = &path else {
                Self::wait_for_session(&self.counters, run.peer, segment, notices);
                continue;
            };
            let pushed = if !sending.in_fragments {
                run.seal_into(now, path, segment, false, send)
            } else if path.is_fragmentable() {
                run.seal_into(now, path, segment, true, send)
            } else {
                self.identification = self.identification.wrapping_add(1);
                let fragments = Fragments::new(segment, sending.path_mtu.into(), self.identification);
                fragments.is_some_and(|fragments| run.seal_fragments(now, path, &fragments, &mut self.fragment, send))
            };
            if !pushed {
                self.counters.drop_out_send.increment();
                continue;
            }
            count += 1;
            bytes += segment.len() as u64;
            longest = segment.len().max(longest);
        }
        if longest > LEAST_PATH_MTU && !sending.in_fragments {
            run.peer.shared.mark_long_sent();
        }
        self.counters.sealed(count, bytes, path.is_some_and(|path| path.relay.is_some()));
        run.peer.shared.counters.tx_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    fn wait_for_session(counters: &Counters, peer: &FibPeer, packet: &[u8], notices: &mut dyn NoticeSink) {
        if !peer.shared.enter_queue(WAITING_PACKETS) {
            counters.drop_out_no_session.increment();
        } else if !notices.notice(Notice::NeedSession { peer: peer.id, packet: packet.to_vec() }) {
            peer.shared.leave_queue(1);
            counters.drop_notices.increment();
        }
    }

    /// A program that talks to nobody learns it at once, not by a timeout.
    fn tell_program(
        &mut self,
        now: Time,
        fib: &Fib,
        view: &IpView<'_>,
        why: UnreachableReason,
        replies: &mut PacketBatch,
    ) {
        let refill = now.since(self.errors_refilled).as_millis() / ERROR_INTERVAL.as_millis();
        if refill > 0 {
            self.errors_left =
                ERROR_BURST.min(self.errors_left.saturating_add(u32::try_from(refill).unwrap_or(ERROR_BURST)));
            self.errors_refilled = now;
        }
        if self.errors_left == 0 {
            return;
        }
        let Some(error) = unreachable(view.packet, why, fib.error_source(view.destination)) else { return };
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
        let mut sessions = shared.tunnel.for_run();
        if let Some(path) = &path {
            let mut begun = false;
            // Without room, which the size of the batch rules out, the next batch refreshes.
            let room = path.prefix_len() + CONTROL_OUTPUT_LEN;
            let _ = send.push_with(path.endpoint, path.local(), room, |out| {
                path.frame(out, |out| {
                    let refreshed = sessions.tunnel().refresh(now, out).unwrap_or_default();
                    begun = refreshed.initiation;
                    refreshed.len
                })
            });
            if begun {
                notices.notice(Notice::HandshakeBegun { peer: peer.id });
            }
        }
        let has_session = sessions.tunnel().has_session(now);
        if has_session && shared.mark_active() && !notices.notice(Notice::Active { peer: peer.id }) {
            // Unsaid, so that the next packet says it again.
            shared.clear_active();
        }
        Self { peer, sessions, path, has_session }
    }

    /// Seals a packet straight into the send buffer; false when there is no room, or no session any more.
    fn seal_into(
        &mut self,
        now: Time,
        path: &PeerPath,
        packet: &[u8],
        fragmentable: bool,
        send: &mut SendBatch,
    ) -> bool {
        let tunnel = self.sessions.tunnel();
        let room = path.prefix_len() + sealed_len(packet.len());
        let mut sealed = false;
        let seal = |out: &mut [u8]| {
            path.frame(out, |out| {
                let len = tunnel.seal(now, packet, out);
                sealed = len.is_ok();
                len.unwrap_or(0)
            })
        };
        let pushed = match fragmentable {
            false => send.push_with(path.endpoint, path.local(), room, seal),
            true => send.push_fragmentable(path.endpoint, path.local(), room, seal),
        };
        pushed && sealed
    }

    fn seal_fragments(
        &mut self,
        now: Time,
        path: &PeerPath,
        fragments: &Fragments<'_>,
        room: &mut [u8],
        send: &mut SendBatch,
    ) -> bool {
        (0..fragments.count()).all(|index| {
            let fragment = fragments.write(index, room).and_then(|len| room.get(..len));
            fragment.is_some_and(|fragment| self.seal_into(now, path, fragment, false, send))
        })
    }
}

impl Sending<'_> {
    /// An upper bound for the datagrams it takes.
    fn most_datagrams(&self) -> usize {
        let fragments = match self.in_fragments {
            false => 1,
            // IPv6 header, fragment header, and up to 7 bytes that do not fill a unit.
            true => self.segments.max_len().div_ceil(usize::from(self.path_mtu).saturating_sub(40 + 8 + 7).max(1)),
        };
        self.segments.count().saturating_mul(fragments)
    }
}
