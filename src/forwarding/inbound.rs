//! From the network to the device. The numbers are those of [the flow](super).

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use agentnet_platform::batch::PacketBatch;
use agentnet_platform::udp::RecvBatch;

use super::coalesce::{Coalescer, Offloads};
use super::session_lock::SessionLock;
use super::{Fib, FibPeer, Notice, NoticeSink, PeerPath, StrangerDatagram};
use crate::identity::TunnelPublic;
use crate::metrics::Counters;
use crate::policy::{Direction, Protocol, Verdict};
use crate::time::Time;
use crate::tunnel::{HandshakeFilter, OpenError, message_receiver};
use crate::wire::CONTROL_NEXT_HEADER;
use crate::wire::classify::{DatagramKind, classify};
use crate::wire::control::is_control_len;
use crate::wire::introduction::MAX_INTRODUCTION_LEN;
use crate::wire::ip::{self, IpView, rewrite_ipv4};
use crate::wire::mss::{clamp_mss, is_tcp_syn};
use crate::wire::relay::RelayFrame;

/// The inbound half of the data plane. One packet thread uses it at a time.
#[derive(Debug)]
pub struct Inbound {
    counters: Arc<Counters>,
    filter: HandshakeFilter,
    coalescer: Coalescer,
}

/// The peer of the current run of datagrams, with its sessions.
struct Run<'a> {
    /// What they all carry.
    receiver_index: u32,
    peer: &'a Arc<FibPeer>,
    sessions: SessionLock<'a>,
    /// Where the last packet of data came from; at first the primary path.
    data_from: Option<PeerPath>,
    /// The same for control messages.
    control_from: Option<PeerPath>,
}

/// Where an opened packet goes.
enum Onward {
    /// To programs, with these IPv4 source and destination instead of the peer's.
    Device(Option<(Ipv4Addr, Ipv4Addr)>),
    Control,
    Dropped,
}

impl Inbound {
    /// A data plane that counts here, of the agent with this tunnel key, for a device with these offloads.
    #[must_use]
    pub fn new(counters: Arc<Counters>, own_key: &TunnelPublic, offloads: Offloads) -> Self {
        Self { counters, filter: HandshakeFilter::new(own_key), coalescer: Coalescer::new(offloads) }
    }

    /// Takes a received batch through steps 2 to 9. Afterwards `packets` is to be written to the device. It must have
    /// room for everything received.
    pub fn process(
        &mut self,
        now: Time,
        fib: &Fib,
        received: &mut RecvBatch,
        packets: &mut PacketBatch,
        notices: &mut dyn NoticeSink,
    ) {
        let mut run: Option<Run<'_>> = None;
        for datagram in received.datagrams() {
            self.counters.rx_datagrams.increment();
            let (endpoint, local_ip, socket) = (datagram.source, datagram.destination_ip, datagram.socket);
            let path = PeerPath { endpoint, local_ip, socket, relay: None };
            if fib.is_overlay(path.endpoint.ip()) {
                self.counters.drop_in_overlay.increment();
                continue;
            }
            // 2. classify
            let Some((kind, path, data)) = self.unwrap_relayed(fib, classify(datagram.data), path, datagram.data)
            else {
                continue;
            };
            let DatagramKind::WireguardData { receiver_index } = kind else {
                self.hand_over(fib, kind, path, data, notices);
                continue;
            };
            // 3. receiver index -> peer
            if run.as_ref().is_none_or(|run| run.receiver_index != receiver_index) {
                let Some(peer) = fib.tunnel(receiver_index) else {
                    self.counters.drop_in_unknown_index.increment();
                    continue;
                };
                drop(run.take());
                let primary = peer.shared.path.load().as_ref().map(|path| **path);
                let sessions = peer.shared.tunnel.for_run();
                run = Some(Run { receiver_index, peer, sessions, data_from: primary, control_from: primary });
            }
            let Some(run) = &mut run else { continue };
            // 4. open straight into the device's buffer
            let out = self.coalescer.space(packets);
            match self.receive(now, fib, run, path, data, out, notices) {
                // 9. what continues the packet before becomes one with it
                Some(len) => self.coalescer.take(packets, len),
                None => self.coalescer.leave(packets),
            }
        }
        self.coalescer.finish(packets);
    }

    /// Steps 4 to 8 for one datagram. Returns the length of the packet in `out` that goes to the device.
    #[expect(clippy::too_many_arguments, reason = "the state of one batch, spelled out")]
    fn receive(
        &self,
        now: Time,
        fib: &Fib,
        run: &mut Run<'_>,
        path: PeerPath,
        datagram: &[u8],
        out: &mut [u8],
        notices: &mut dyn NoticeSink,
    ) -> Option<usize> {
        let opened = match run.sessions.tunnel().open(now, datagram, out) {
            Ok(opened) => opened,
            Err(error) => {
                self.count_unopened(error);
                return None;
            }
        };
        if opened.session_confirmed {
            run.peer.shared.set_confirmed();
        }
        self.tell_control_plane(run, notices);
        let Some(packet) = out.get_mut(..opened.len).filter(|packet| !packet.is_empty()) else {
            heard(now, run, path, true, notices);
            return None;
        };
        let Ok(view) = IpView::parse(&*packet) else {
            self.counters.drop_in_malformed.increment();
            return None;
        };
        let (len, opens_tcp) = (view.total_len(), is_tcp_syn(&view));
        let onward = self.admit(now, fib, run.peer, &view);
        heard(now, run, path, !matches!(onward, Onward::Control), notices);
        match onward {
            // 5. control messages leave for the control plane
            Onward::Control => {
                let (peer, packet, newest) = (run.peer.id, view.packet.to_vec(), opened.newest);
                let taken = run.peer.shared.control.take(now);
                if !taken || !notices.notice(Notice::Control { peer, packet, newest, path }) {
                    self.counters.drop_notices.increment();
                }
                None
            }
            Onward::Device(aliases) => {
                if let Some((source, destination)) = aliases
                    && rewrite_ipv4(packet, source, destination, false).is_err()
                {
                    self.counters.drop_in_malformed.increment();
                    return None;
                }
                // 8. TCP that begins: what is sent back must pass the path
                if opens_tcp {
                    clamp_mss(packet, run.peer.shared.path_mtu());
                }
                self.counters.opened(len as u64, path.relay.is_some());
                run.peer.shared.counters.rx_bytes.fetch_add(len as u64, Ordering::Relaxed);
                Some(len)
            }
            Onward::Dropped => None,
        }
    }

    fn count_unopened(&self, error: OpenError) {
        match error {
            OpenError::ShortBuffer => self.counters.drop_in_interface.increment(),
            OpenError::NotIp => self.counters.drop_in_malformed.increment(),
            _ => self.counters.drop_in_unauthenticated.increment(),
        }
    }

    /// Steps 5 to 7: decides where an authenticated packet goes.
    fn admit(&self, now: Time, fib: &Fib, peer: &FibPeer, view: &IpView<'_>) -> Onward {
        let dropped = |counter: &crate::metrics::Counter| {
            counter.increment();
            Onward::Dropped
        };
        let is_control = view.protocol == CONTROL_NEXT_HEADER && view.source.is_ipv6();
        if is_control && view.source == IpAddr::V6(peer.ipv6) && view.destination == IpAddr::V6(fib.own_ipv6) {
            if !is_control_len(view.packet) {
                return dropped(&self.counters.drop_control_invalid);
            }
            return Onward::Control;
        }
        // 6. both consented? source and destination right?
        if !peer.trusted {
            return dropped(&self.counters.drop_in_untrusted);
        }
        let (source, destination) = match (view.source, peer.ipv4) {
            (IpAddr::V6(_), _) => (IpAddr::V6(peer.ipv6), IpAddr::V6(fib.own_ipv6)),
            (IpAddr::V4(_), Some(ipv4)) => (IpAddr::V4(ipv4.peer_there), IpAddr::V4(ipv4.own_there)),
            (IpAddr::V4(_), None) => return dropped(&self.counters.drop_in_source),
        };
        if view.source != source || is_control {
            return dropped(&self.counters.drop_in_source);
        }
        if view.destination != destination {
            return dropped(&self.counters.drop_in_destination);
        }
        // 7. policy; IPv4 aliases
        if peer.check_policy(now, Direction::In, view) == Verdict::Refuse {
            return dropped(&self.counters.drop_in_policy);
        }
        let aliases = peer.ipv4.filter(|ipv4| view.source.is_ipv4() && ipv4.differ());
        Onward::Device(aliases.map(|ipv4| (ipv4.peer_here, ipv4.own_here)))
    }

    fn tell_control_plane(&self, run: &Run<'_>, notices: &mut dyn NoticeSink) {
        let peer = run.peer.id;
        if run.peer.shared.take_confirmed() && !notices.notice(Notice::SessionConfirmed { peer }) {
            run.peer.shared.set_confirmed();
        }
        if run.peer.shared.mark_active() && !notices.notice(Notice::Active { peer }) {
            run.peer.shared.clear_active();
        }
    }

    /// Takes a WireGuard datagram out of the frame in which a relay of this agent passed it on. What is in a frame of
    /// anybody else's, or is no WireGuard datagram, is dropped.
    fn unwrap_relayed<'a>(
        &self,
        fib: &Fib,
        kind: DatagramKind,
        path: PeerPath,
        data: &'a [u8],
    ) -> Option<(DatagramKind, PeerPath, &'a [u8])> {
        if kind != DatagramKind::Relay {
            return Some((kind, path, data));
        }
        let frame = RelayFrame::parse(data).ok().filter(|_| fib.is_relay(path.endpoint));
        let passed_on = frame.and_then(|frame| {
            let kind = classify(frame.payload);
            let path = PeerPath { relay: Some(frame.channel), ..path };
            kind.is_wireguard().then_some((kind, path, frame.payload))
        });
        if passed_on.is_none() {
            self.counters.drop_in_relay.increment();
        }
        passed_on
    }

    /// Everything but data goes to the control plane, as far as it is worth a place in its queues.
    fn hand_over(&self, fib: &Fib, kind: DatagramKind, path: PeerPath, data: &[u8], notices: &mut dyn NoticeSink) {
        let datagram = || StrangerDatagram { path, data: data.to_vec() };
        let taken = match kind {
            DatagramKind::WireguardResponse if !self.filter.is_for_us(data) => {
                return self.counters.drop_handshake_invalid.increment();
            }
            DatagramKind::WireguardResponse | DatagramKind::WireguardCookie => {
                if message_receiver(data).and_then(|index| fib.tunnel(index)).is_none() {
                    return self.counters.drop_in_unknown_index.increment();
                }
                notices.notice(Notice::HandshakeAnswer(datagram()))
            }
            DatagramKind::WireguardInitiation => {
                // Costs one hash, and keeps out whoever does not even know this agent's key.
                if !self.filter.is_for_us(data) {
                    return self.counters.drop_handshake_invalid.increment();
                }
                notices.stranger(datagram())
            }
            DatagramKind::Introduction if data.len() <= MAX_INTRODUCTION_LEN => notices.stranger(datagram()),
            DatagramKind::Introduction => return self.counters.drop_introduction_invalid.increment(),
            DatagramKind::RecordAnswer => notices.stranger(datagram()),
            DatagramKind::Stun if fib.is_stun_source(path.endpoint) => notices.stranger(datagram()),
            DatagramKind::Stun => return self.counters.drop_in_stun.increment(),
            DatagramKind::Relay
            | DatagramKind::RecordRequest
            | DatagramKind::Unknown
            | DatagramKind::WireguardData { .. } => {
                return self.counters.drop_in_unknown_kind.increment();
            }
        };
        if !taken {
            self.counters.drop_notices.increment();
        }
    }
}

/// Tells the control plane of packets that came another way than the primary path, once per run of each kind, and not
/// at any rate: a peer can send from as many ports as it likes.
fn heard(now: Time, run: &mut Run<'_>, path: PeerPath, data: bool, notices: &mut dyn NoticeSink) {
    let last = if data { &mut run.data_from } else { &mut run.control_from };
    if !last.is_some_and(|last| last.is_same_way(&path)) && run.peer.shared.heard_elsewhere.take(now) {
        *last = Some(path);
        notices.notice(Notice::HeardElsewhere { peer: run.peer.id, path, data });
    }
}

impl FibPeer {
    /// Whether the grant lets the packet pass. ICMP always does: errors and echo belong to every flow.
    pub(super) fn check_policy(&self, now: Time, direction: Direction, view: &IpView<'_>) -> Verdict {
        let Some(flows) = &self.flows else { return Verdict::Pass };
        let protocol = match view.protocol {
            ip::PROTOCOL_TCP => Protocol::Tcp,
            ip::PROTOCOL_UDP => Protocol::Udp,
            ip::PROTOCOL_ICMP | ip::PROTOCOL_ICMPV6 => return Verdict::Pass,
            _ => return Verdict::Refuse,
        };
        // Ports are absent in all fragments but the first; a grant that names ports cannot cover those.
        let Some(ports) = view.ports else { return Verdict::Refuse };
        flows.lock().check(now, direction, view.source.is_ipv6(), protocol, (ports.source, ports.destination))
    }
}
