//! Cutting what the device hands over into packets as they travel.
//!
//! ```text
//!  1. what does the device's header ask for? nothing: the packet goes as it is
//!  2. its claims are compared with the packet; the lengths of headers come from the packet only. TCP is cut smaller
//!     than asked for where the path takes less
//!  3. what all segments share is summed once: pseudo header, ports, options, most of the IPv4 header
//!  4. per segment: copy the headers and its share of the payload, sum the payload, set what differs
//! ```
//!
//! | of a super-packet | in segment `i` |
//! |---|---|
//! | IPv4 total length, IPv6 payload length | its own |
//! | IPv4 identification | `+ i`, wrapping |
//! | IPv4 header checksum | its own |
//! | IPv4 options, IPv6 extension headers, TCP options | the same |
//! | TCP sequence number | `+ i * gso_size`, wrapping |
//! | TCP FIN and PSH | in the last only |
//! | TCP CWR | in the first only (RFC 3168, section 6.1.2: once per reduction of the window) |
//! | TCP URG and urgent pointer | as far as what is urgent is still to come (RFC 9293, section 3.1), `- i * gso_size` |
//! | UDP length | its own |
//! | TCP and UDP checksum | its own, complete |
//!
//! This is what Linux does to the same packet for a device without offloads (`tcp_gso_segment` in
//! net/ipv4/tcp_offload.c, `__udp_gso_segment` in net/ipv4/udp_offload.c, `inet_gso_segment` in net/ipv4/af_inet.c), but
//! for the urgent pointer: Linux repeats it, which moves it on, and cuts such packets only when it sends them again.
//! The device's header is that of virtio 1.2, section 5.1.6.

use std::net::IpAddr;
use std::ops::Range;

use agentnet_platform::batch::{MAX_PACKET, VnetHeader};
use smoltcp::wire::{Ipv4Packet, Ipv6Packet, TcpPacket, UdpPacket};

use crate::wire::checksum::{combine, sum};
use crate::wire::ip::{PROTOCOL_TCP, PROTOCOL_UDP};
use crate::wire::{Fragment, IpView};

/// Least payload of a TCP segment, in bytes. Linux never asks for less: an MSS of at least 48 (`TCP_MIN_SND_MSS`) less
/// 40 bytes of options (`TCP_MIN_GSO_SIZE` in include/net/tcp.h).
const MIN_TCP_GSO_SIZE: usize = 8;

/// Most datagrams in one UDP super-packet: what Linux allows a program (`UDP_MAX_SEGMENTS` in include/linux/udp.h,
/// 64 in older kernels). Of what it forwards it merges at most 64 (`UDP_GRO_CNT_MAX`).
const MAX_DATAGRAMS: usize = 128;

/// Most bytes of headers that are repeated in every segment: 100 of IPv6 and TCP with all options, and 156 of
/// extension headers. With [`MIN_TCP_GSO_SIZE`] it keeps the segments of one packet together under 33 times its size.
const MAX_REPEATED_HEADERS: usize = 256;

/// Longest segment in bytes, that of an IPv4 packet (RFC 791, section 3.1: 16 bit total length). It rules out 65,535 as
/// payload, which inside Linux means segments of different lengths (`GSO_BY_FRAGS`).
const MAX_SEGMENT: usize = 65_535;

/// IPv4 header without options, in bytes.
const IPV4_HEADER_LEN: usize = smoltcp::wire::IPV4_HEADER_LEN;
/// IPv6 header without extension headers, in bytes.
const IPV6_HEADER_LEN: usize = smoltcp::wire::IPV6_HEADER_LEN;
/// UDP header, in bytes.
const UDP_HEADER_LEN: usize = smoltcp::wire::UDP_HEADER_LEN;
/// Where TCP's checksum is, in bytes from the start of its header (RFC 9293, section 3.1).
const TCP_CHECKSUM_OFFSET: usize = 16;
/// Where UDP's checksum is, in bytes from the start of its header (RFC 768).
const UDP_CHECKSUM_OFFSET: usize = 6;

/// One packet from the device as the packets that are to be sent for it.
///
/// Make one per packet with [`Segments::new`]. If it [is whole](Segments::is_whole), send the view's packet itself;
/// otherwise [write](Segments::write) each segment, in any order. Nothing is allocated, and nothing panics whatever
/// the device says.
#[derive(Debug, Clone, Copy)]
pub struct Segments<'a> {
    packet: &'a [u8],
    l4_offset: usize,
    partial_checksum: bool,
    work: Work,
}

/// Why a packet from the device cannot be sent: the kernel, or a privileged program through it, made a packet that
/// contradicts its device header. The last two are mistakes of the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SegmentError {
    /// A segmentation type that is unknown or was not asked for, or ECN with one that is not TCP's.
    #[error("segmentation type {0:#04x} is unknown")]
    GsoType(u8),
    /// The segmentation type or the checksum request is for another protocol or IP version than the packet's.
    #[error("the offload is not one of the packet's protocol and IP version")]
    Protocol,
    /// A fragment cannot be cut, and has no checksum of its own.
    #[error("a fragment cannot be cut or get a checksum")]
    Fragment,
    /// The TCP or UDP header is cut off, or a length in it is not the packet's.
    #[error("the TCP or UDP header is cut off or contradicts the packet's length")]
    L4Length,
    /// More bytes of headers than are repeated in every segment.
    #[error("{0} bytes of headers, more than {MAX_REPEATED_HEADERS}, would be repeated")]
    HeaderLength(usize),
    /// No payload per segment, less than Linux asks for, or more than a packet holds.
    #[error("packets are not cut into {0} bytes of payload")]
    GsoSize(u16),
    /// More UDP datagrams in one packet than Linux allows.
    #[error("{0} datagrams in one packet, more than {MAX_DATAGRAMS}")]
    DatagramCount(usize),
    /// SYN or RST in a TCP packet of several segments: each is about one place in the stream.
    #[error("a TCP packet with SYN or RST cannot be cut")]
    TcpFlags,
    /// The checksum to complete is not that of the packet's TCP or UDP header.
    #[error("the checksum to complete is not that of the packet's TCP or UDP header")]
    ChecksumPosition,
    /// The packet has checksums, and one is wrong: pieces would have right ones, and hide it from the receiver.
    #[error("a packet with a wrong checksum is not cut")]
    Checksum,
    /// A super-packet with IPv4 options or IPv6 extension headers, but without the sum of its pseudo header: it may be
    /// source routed, and its final destination is then not known.
    #[error("a packet with options or extension headers lacks the sum of its pseudo header")]
    NoPseudoHeader,
    /// There is no segment of this number.
    #[error("there is no segment {0}")]
    NoSuchSegment(usize),
    /// The segment needs this many bytes, more than there are.
    #[error("a segment of {0} bytes does not fit")]
    Room(usize),
}

/// What is to be done with the packet.
#[derive(Debug, Clone, Copy)]
enum Work {
    Nothing,
    /// Replace the sum of the pseudo header, in the checksum field, by the checksum.
    Complete(L4),
    Cut(Cut),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum L4 {
    Tcp,
    Udp,
}

/// What all segments of a super-packet share.
#[derive(Debug, Clone, Copy)]
struct Cut {
    l4: L4,
    is_ipv4: bool,
    /// Where the payload begins, in the packet and in every segment.
    header_len: usize,
    /// Payload of every segment but the last.
    gso_size: usize,
    /// How many segments, at least one.
    count: usize,
    /// The sum of the IPv4 header without total length, identification and checksum.
    ipv4_sum: u16,
    /// The sum of pseudo header and L4 header without lengths, sequence number, flags, urgent pointer and checksum.
    l4_sum: u16,
}

impl<'a> Segments<'a> {
    /// No packet has more segments than this.
    pub const MAX_COUNT: usize = MAX_PACKET.div_ceil(MIN_TCP_GSO_SIZE);

    /// Compares what the device says about a packet with the packet.
    ///
    /// `hdr_len` is a hint and not looked at (virtio 1.2, section 5.1.6.2), nor are unknown flags (5.1.6.2.2). Bytes
    /// after the packet's total length are not in `view` and have no part in anything.
    ///
    /// # Errors
    /// See [`SegmentError`]; the packet is then to be dropped.
    pub fn new(header: VnetHeader, view: &IpView<'a>) -> Result<Self, SegmentError> {
        let partial_checksum = header.flags & VnetHeader::NEEDS_CSUM != 0;
        let work = match (header.gso_type, partial_checksum) {
            (VnetHeader::GSO_NONE, false) => Work::Nothing,
            (VnetHeader::GSO_NONE, true) => {
                let l4 = L4::of(view)?;
                l4.header_len(view)?;
                l4.check_position(header, view)?;
                Work::Complete(l4)
            }
            (gso_type, _) => {
                let l4 = L4::of_gso_type(gso_type, view)?;
                if partial_checksum {
                    l4.check_position(header, view)?;
                }
                Work::Cut(Cut::new(l4, header.gso_size, partial_checksum, view)?)
            }
        };
        Ok(Self { packet: view.packet, l4_offset: view.l4_offset, partial_checksum, work })
    }

    /// The same TCP packet in segments of at most `max_len` bytes, IP header included.
    ///
    /// # Errors
    /// [`SegmentError::Protocol`] for what is not TCP, [`SegmentError::Checksum`] for what is damaged, and the reasons why
    /// a packet of TCP cannot be cut, or not into pieces as small.
    pub fn limited(&self, view: &IpView<'a>, max_len: usize) -> Result<Self, SegmentError> {
        let L4::Tcp = L4::of(view)? else { return Err(SegmentError::Protocol) };
        if self.is_whole() && !is_checked(view)? {
            return Err(SegmentError::Checksum);
        }
        let header_len = view.l4_offset + L4::Tcp.header_len(view)?;
        let asked = if let Work::Cut(cut) = &self.work { cut.gso_size } else { usize::MAX };
        let gso_size = max_len.saturating_sub(header_len).min(asked);
        let gso_size = u16::try_from(gso_size).unwrap_or(u16::MAX);
        Ok(Self { work: Work::Cut(Cut::new(L4::Tcp, gso_size, self.partial_checksum, view)?), ..*self })
    }

    /// Whether the only segment is the packet as it is, which then need not be copied.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        matches!(self.work, Work::Nothing)
    }

    /// How many segments there are: from 1 to [`Segments::MAX_COUNT`], of UDP to 128.
    #[must_use]
    pub fn count(&self) -> usize {
        match &self.work {
            Work::Nothing | Work::Complete(_) => 1,
            Work::Cut(cut) => cut.count,
        }
    }

    /// Bytes of the longest segment, IP header included. Every segment but the last has this length.
    #[must_use]
    pub fn max_len(&self) -> usize {
        match &self.work {
            Work::Nothing | Work::Complete(_) => self.packet.len(),
            Work::Cut(cut) => self.packet.len().min(cut.header_len + cut.gso_size),
        }
    }

    /// Writes segment `index`, from its IP header on, to the start of `out` and returns its length in bytes.
    ///
    /// # Errors
    /// [`SegmentError::NoSuchSegment`] from [`Segments::count`] on, and [`SegmentError::Room`] where `out` is shorter
    /// than the segment; [`Segments::max_len`] bytes are always enough.
    pub fn write(&self, index: usize, out: &mut [u8]) -> Result<usize, SegmentError> {
        if index >= self.count() {
            return Err(SegmentError::NoSuchSegment(index));
        }
        match &self.work {
            Work::Cut(cut) => cut.write(self.packet, self.l4_offset, index, out),
            Work::Nothing => Ok(self.copy_packet(out)?.len()),
            Work::Complete(protocol) => {
                let segment = self.copy_packet(out)?;
                let len = segment.len();
                if let Some(l4) = segment.get_mut(self.l4_offset..) {
                    // The field takes part in the sum: it holds that of the pseudo header.
                    protocol.set_checksum(l4, !sum(l4));
                }
                Ok(len)
            }
        }
    }

    fn copy_packet<'o>(&self, out: &'o mut [u8]) -> Result<&'o mut [u8], SegmentError> {
        let len = self.packet.len();
        let segment = out.get_mut(..len).ok_or(SegmentError::Room(len))?;
        segment.copy_from_slice(self.packet);
        Ok(segment)
    }
}

impl L4 {
    fn of(view: &IpView<'_>) -> Result<Self, SegmentError> {
        match (view.fragment, view.protocol) {
            (Fragment::First | Fragment::Later, _) => Err(SegmentError::Fragment),
            (Fragment::Whole, PROTOCOL_TCP) => Ok(Self::Tcp),
            (Fragment::Whole, PROTOCOL_UDP) => Ok(Self::Udp),
            (Fragment::Whole, _) => Err(SegmentError::Protocol),
        }
    }

    fn of_gso_type(gso_type: u8, view: &IpView<'_>) -> Result<Self, SegmentError> {
        let (wanted, is_ipv4) = match (gso_type & !VnetHeader::ECN, gso_type & VnetHeader::ECN) {
            (VnetHeader::GSO_TCPV4, _) => (Self::Tcp, true),
            (VnetHeader::GSO_TCPV6, _) => (Self::Tcp, false),
            (VnetHeader::GSO_UDP_L4, 0) => (Self::Udp, view.source.is_ipv4()),
            _ => return Err(SegmentError::GsoType(gso_type)),
        };
        let l4 = Self::of(view)?;
        if l4 == wanted && is_ipv4 == view.source.is_ipv4() { Ok(l4) } else { Err(SegmentError::Protocol) }
    }

    /// The length of this protocol's header in the packet, which holds all of it.
    fn header_len(self, view: &IpView<'_>) -> Result<usize, SegmentError> {
        match self {
            Self::Tcp => {
                let tcp = TcpPacket::new_checked(view.l4()).map_err(|_| SegmentError::L4Length)?;
                Ok(usize::from(tcp.header_len()))
            }
            Self::Udp => {
                let udp = UdpPacket::new_checked(view.l4()).map_err(|_| SegmentError::L4Length)?;
                // In a longer packet the rest would belong to no datagram.
                let is_all = usize::from(udp.len()) == view.l4().len();
                if is_all { Ok(UDP_HEADER_LEN) } else { Err(SegmentError::L4Length) }
            }
        }
    }

    /// The checksum goes where the protocol has it and nowhere else, so that no address or port changes after the
    /// checks that follow.
    fn check_position(self, header: VnetHeader, view: &IpView<'_>) -> Result<(), SegmentError> {
        let claimed = (usize::from(header.csum_start), usize::from(header.csum_offset));
        if claimed == (view.l4_offset, self.checksum_offset()) { Ok(()) } else { Err(SegmentError::ChecksumPosition) }
    }

    /// The sum of its header without what differs between segments: sequence number, flags and urgent pointer, or
    /// length; checksum.
    fn shared_header_sum(self, header: &[u8]) -> u16 {
        match self {
            Self::Tcp => sum_around(header, &[4..8, 12..14, 16..20]),
            Self::Udp => sum(header.get(..4).unwrap_or_default()),
        }
    }

    fn checksum_offset(self) -> usize {
        match self {
            Self::Tcp => TCP_CHECKSUM_OFFSET,
            Self::Udp => UDP_CHECKSUM_OFFSET,
        }
    }

    /// Writes a checksum into a header. One of zero would mean none in UDP, and is sent as its other form (RFC 768).
    fn set_checksum(self, l4: &mut [u8], checksum: u16) {
        let checksum = if self == Self::Udp && checksum == 0 { 0xffff } else { checksum };
        if let Some(field) = l4.get_mut(self.checksum_offset()..).and_then(<[u8]>::first_chunk_mut) {
            *field = checksum.to_be_bytes();
        }
    }
}

impl Cut {
    fn new(l4: L4, gso_size: u16, partial_checksum: bool, view: &IpView<'_>) -> Result<Self, SegmentError> {
        let l4_header_len = l4.header_len(view)?;
        let header_len = view.l4_offset + l4_header_len;
        if header_len > MAX_REPEATED_HEADERS {
            return Err(SegmentError::HeaderLength(header_len));
        }
        let least = if l4 == L4::Tcp { MIN_TCP_GSO_SIZE } else { 1 };
        let payload_len = view.packet.len().saturating_sub(header_len);
        let bad_size = SegmentError::GsoSize(gso_size);
        let gso_size = usize::from(gso_size);
        if gso_size < least || header_len + gso_size > MAX_SEGMENT {
            return Err(bad_size);
        }
        // A packet that needs no cutting is one segment: forwarded ones can be that small.
        let count = payload_len.div_ceil(gso_size).max(1);
        if l4 == L4::Udp && count > MAX_DATAGRAMS {
            return Err(SegmentError::DatagramCount(count));
        }
        if l4 == L4::Tcp && count > 1 {
            let tcp = TcpPacket::new_unchecked(view.l4());
            if tcp.syn() || tcp.rst() {
                return Err(SegmentError::TcpFlags);
            }
        }
        let ip_header = view.packet.get(..view.l4_offset).unwrap_or_default();
        let l4_header = view.l4().get(..l4_header_len).unwrap_or_default();
        let is_ipv4 = view.source.is_ipv4();
        Ok(Self {
            l4,
            is_ipv4,
            header_len,
            gso_size,
            count,
            ipv4_sum: if is_ipv4 { sum_around(ip_header, &[2..6, 10..12]) } else { 0 },
            l4_sum: combine(&[pseudo_header_sum(l4, partial_checksum, view)?, l4.shared_header_sum(l4_header)]),
        })
    }

    fn write(&self, packet: &[u8], l4_offset: usize, index: usize, out: &mut [u8]) -> Result<usize, SegmentError> {
        let start = self.header_len + index * self.gso_size;
        let end = packet.len().min(start + self.gso_size);
        let (Some(headers), Some(payload)) = (packet.get(..self.header_len), packet.get(start..end)) else {
            return Err(SegmentError::NoSuchSegment(index));
        };
        let len = headers.len() + payload.len();
        let segment = out.get_mut(..len).ok_or(SegmentError::Room(len))?;
        if let Some((headers_out, payload_out)) = segment.split_at_mut_checked(self.header_len) {
            // The payload is copied because in the packet it does not follow headers of its own.
            headers_out.copy_from_slice(headers);
            payload_out.copy_from_slice(payload);
            if let Some((ip, l4)) = headers_out.split_at_mut_checked(l4_offset) {
                self.finish_ip(ip, len, index);
                self.finish_l4(l4, payload_out, index);
            }
        }
        Ok(len)
    }

    /// `len` is at most that of the packet, which fits its 16 bit field; so do the values cut to 16 bits below.
    fn finish_ip(&self, ip: &mut [u8], len: usize, index: usize) {
        if !self.is_ipv4 {
            Ipv6Packet::new_unchecked(ip).set_payload_len((len - IPV6_HEADER_LEN) as u16);
            return;
        }
        let mut ip = Ipv4Packet::new_unchecked(ip);
        let ident = ip.ident().wrapping_add(index as u16);
        ip.set_total_len(len as u16);
        ip.set_ident(ident);
        ip.set_checksum(!combine(&[self.ipv4_sum, len as u16, ident]));
    }

    fn finish_l4(&self, header: &mut [u8], payload: &[u8], index: usize) {
        let len = (header.len() + payload.len()) as u16;
        let own_sum = match self.l4 {
            L4::Tcp => self.finish_tcp(header, index),
            L4::Udp => {
                UdpPacket::new_unchecked(&mut *header).set_len(len);
                len
            }
        };
        self.l4.set_checksum(header, !combine(&[self.l4_sum, len, own_sum, sum(payload)]));
    }

    /// Returns the sum of what is this segment's own.
    fn finish_tcp(&self, header: &mut [u8], index: usize) -> u16 {
        let mut tcp = TcpPacket::new_unchecked(&mut *header);
        let sequence = tcp.seq_number() + index * self.gso_size;
        tcp.set_seq_number(sequence);
        if index > 0 {
            tcp.set_cwr(false);
        }
        if index + 1 < self.count {
            tcp.set_fin(false);
            tcp.set_psh(false);
        }
        if tcp.urg() && index > 0 {
            let left = usize::from(tcp.urgent_at()).saturating_sub(index * self.gso_size);
            tcp.set_urg(left > 0);
            tcp.set_urgent_at(left as u16);
        }
        combine(&[4..8, 12..14, 18..20].map(|own| sum(header.get(own).unwrap_or_default())))
    }
}

/// Whether the checksums of a TCP packet that has all of them are right.
fn is_checked(view: &IpView<'_>) -> Result<bool, SegmentError> {
    let ip_header = view.packet.get(..view.l4_offset).unwrap_or_default();
    let is_ip_right = view.source.is_ipv6() || sum(ip_header) == 0xffff;
    let pseudo = pseudo_header_sum(L4::Tcp, false, view)?;
    Ok(is_ip_right && combine(&[pseudo, view.l4().len() as u16, sum(view.l4())]) == 0xffff)
}

/// The sum of a packet's pseudo header without its length.
///
/// Taken from the addresses, as network cards do that recompute it. Only behind IPv4 options or IPv6 extension headers
/// it is what the kernel left in the checksum field: there can be a source route, and then the pseudo header has the
/// final destination and the IP header does not (RFC 8200, section 8.1).
fn pseudo_header_sum(l4: L4, partial_checksum: bool, view: &IpView<'_>) -> Result<u16, SegmentError> {
    let protocol = u16::from(view.protocol);
    match (view.source, view.destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) if view.l4_offset == IPV4_HEADER_LEN => {
            Ok(combine(&[sum(&source.octets()), sum(&destination.octets()), protocol]))
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) if view.l4_offset == IPV6_HEADER_LEN => {
            Ok(combine(&[sum(&source.octets()), sum(&destination.octets()), protocol]))
        }
        _ if partial_checksum => {
            let field = view.l4().get(l4.checksum_offset()..).and_then(<[u8]>::first_chunk);
            let with_len = u16::from_be_bytes(*field.ok_or(SegmentError::L4Length)?);
            // Subtraction is adding the complement (RFC 1071, section 1).
            Ok(combine(&[with_len, !(view.l4().len() as u16)]))
        }
        _ => Err(SegmentError::NoPseudoHeader),
    }
}

/// The sum of a header without some ranges of it, which are in order and even.
fn sum_around(header: &[u8], left_out: &[Range<usize>]) -> u16 {
    let starts = std::iter::once(0).chain(left_out.iter().map(|range| range.end));
    let ends = left_out.iter().map(|range| range.start).chain(std::iter::once(header.len()));
    starts.zip(ends).fold(0, |total, (start, end)| combine(&[total, sum(header.get(start..end).unwrap_or_default())]))
}

#[cfg(test)]
pub(super) mod tests;
