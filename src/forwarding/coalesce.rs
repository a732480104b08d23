//! Putting together what arrives in pieces: consecutive packets of one flow become one packet for the device.
//!
//! ```text
//!  1. a packet is opened right behind the one before, so that its headers lie over the end of that one; those bytes are
//!     kept aside
//!  2. does it continue the packet before? then the bytes are put back, over its headers, and its payload is in place
//!  3. if it does not, it moves to a place of its own
//!  4. when nothing more can be added, lengths and the sum of the pseudo header are set, and the device's header says
//!     how the whole is to be seen
//! ```
//!
//! A packet continues the one before only if cutting the result gives back both, byte for byte: the same headers but for
//! what counts (IPv4 identification, TCP sequence number), the same length of payload, correct checksums. A shorter one,
//! or one with PSH or FIN, is the last. Nothing is added across a gap, a repetition or another flow's packet, and nothing
//! waits: what is there at the end of a batch goes to the device. It is the reverse of
//! [`Segments`](super::Segments), and what Linux does on receipt (`tcp_gro_receive` in net/ipv4/tcp_offload.c,
//! `udp_gro_receive_segment` in net/ipv4/udp_offload.c). The device's header is that of virtio 1.2, section 5.1.6.

use agentnet_platform::batch::{PacketBatch, VnetHeader};
use smoltcp::wire::{IPV4_HEADER_LEN, IPV6_HEADER_LEN};

use crate::wire::checksum::{combine, sum};
use crate::wire::ip::{PROTOCOL_TCP, PROTOCOL_UDP};

/// Most bytes of headers of a packet that is put together: IPv6, and TCP with all options.
const MAX_HEADERS: usize = IPV6_HEADER_LEN + 60;
/// Longest packet that is made, in bytes: that of IPv4 (RFC 791, section 3.1: 16 bit total length).
const MAX_LEN: usize = 65_535;
/// Most datagrams in one UDP packet: what every kernel with this offload takes (`UDP_MAX_SEGMENTS`, 64 before 6.9).
const MAX_DATAGRAMS: usize = 64;
/// TCP header without options, in bytes.
const TCP_HEADER_LEN: usize = 20;
/// UDP header, in bytes.
const UDP_HEADER_LEN: usize = smoltcp::wire::UDP_HEADER_LEN;
/// IPv4 flags and fragment offset: all of it but "don't fragment" (RFC 791, section 3.1).
const FRAGMENT_BITS: u16 = 0xbfff;
/// Its "don't fragment".
const DONT_FRAGMENT: u16 = 0x4000;

/// TCP flags (RFC 9293, section 3.1).
mod flag {
    pub(super) const FIN: u8 = 0x01;
    pub(super) const PSH: u8 = 0x08;
    pub(super) const ACK: u8 = 0x10;
    pub(super) const ECE: u8 = 0x40;
    /// Differ between the last packet and the others.
    pub(super) const LAST: u8 = FIN | PSH;
}

/// What the device takes in one piece.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Offloads {
    /// TCP over IPv4 and IPv6.
    pub tcp: bool,
    /// UDP over IPv4 and IPv6.
    pub udp: bool,
}

/// Puts the packets of one batch together. One packet thread uses it at a time.
///
/// For each packet: open it in [`space`](Self::space), then [`take`](Self::take) it or [`leave`](Self::leave) it; at the
/// end of the batch [`finish`](Self::finish).
#[derive(Debug)]
pub struct Coalescer {
    offloads: Offloads,
    /// The last packet of the batch, while it can grow.
    tail: Option<Tail>,
    /// The end of the tail while a packet is opened over it.
    covered: [u8; MAX_HEADERS],
}

/// A packet that others may be added to.
#[derive(Debug, Clone, Copy)]
struct Tail {
    /// Of the first of the packets it is made of. All but the last are like it.
    shape: Shape,
    /// How many packets it is made of.
    count: usize,
    /// Of the last packet added, those of [`flag::LAST`].
    last_flags: u8,
}

/// Where things are in a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Shape {
    l4: L4,
    is_ipv4: bool,
    l4_offset: usize,
    header_len: usize,
    payload_len: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum L4 {
    Tcp,
    Udp,
}

impl Coalescer {
    /// For a device with these offloads.
    #[must_use]
    pub fn new(offloads: Offloads) -> Self {
        Self { offloads, tail: None, covered: [0; MAX_HEADERS] }
    }

    /// Where the next packet is to be opened. Afterwards [`take`](Self::take) or [`leave`](Self::leave) is called.
    pub fn space<'a>(&mut self, packets: &'a mut PacketBatch) -> &'a mut [u8] {
        let Some(tail) = &self.tail else { return packets.free_space() };
        let overlap = tail.shape.header_len;
        let space = packets.space_over_last(overlap);
        copy_start(&mut self.covered, space, overlap);
        space
    }

    /// Nothing came of the packet that was opened.
    pub fn leave(&mut self, packets: &mut PacketBatch) {
        if let Some(tail) = &self.tail {
            let overlap = tail.shape.header_len;
            copy_start(packets.space_over_last(overlap), &self.covered, overlap);
        }
    }

    /// The packet that was opened, of `len` bytes, goes to the device. It is a valid IP packet of that length.
    pub fn take(&mut self, packets: &mut PacketBatch, len: usize) {
        let Some(tail) = &mut self.tail else {
            packets.commit(VnetHeader::default(), len);
            return self.begin(packets);
        };
        let overlap = tail.shape.header_len;
        let mut headers = [0; MAX_HEADERS];
        let space = packets.space_over_last(overlap);
        copy_start(&mut headers, space, overlap);
        copy_start(space, &self.covered, overlap);
        let headers = headers.get(..overlap.min(len)).unwrap_or_default();
        let payload_len = len - headers.len();
        let (before, behind) = packets.last_and_behind();
        match tail.continued_by(before, headers, behind.get(..payload_len).unwrap_or_default()) {
            Some(last_flags) => {
                packets.grow_last(payload_len);
                tail.count += 1;
                tail.last_flags = last_flags;
                if last_flags != 0 || payload_len < tail.shape.payload_len {
                    self.finish(packets);
                }
            }
            None => {
                if !packets.commit_behind_last(headers, payload_len) {
                    return self.finish(packets);
                }
                self.seal(packets, 1);
                self.begin(packets);
            }
        }
    }

    /// The batch is complete.
    pub fn finish(&mut self, packets: &mut PacketBatch) {
        self.seal(packets, 0);
    }

    /// The tail, so many packets before the last, gets no more.
    fn seal(&mut self, packets: &mut PacketBatch, from_end: usize) {
        let number = packets.len().checked_sub(1 + from_end);
        if let (Some(tail), Some(number)) = (self.tail.take(), number)
            && tail.count > 1
            && let Some((header, packet)) = packets.packet_mut(number)
        {
            *header = tail.seal(packet);
        }
    }

    /// The last packet is new: can others be added to it?
    fn begin(&mut self, packets: &PacketBatch) {
        let last = packets.len().checked_sub(1).and_then(|last| packets.get(last));
        let Some((_, packet)) = last else { return };
        self.tail = Shape::of(packet)
            .filter(|shape| if shape.l4 == L4::Tcp { self.offloads.tcp } else { self.offloads.udp })
            .filter(|shape| shape.payload_len > 0 && shape.flags(packet) & flag::LAST == 0)
            .map(|shape| Tail { shape, count: 1, last_flags: 0 });
    }
}

impl Tail {
    /// Whether a packet of these headers and this payload is the next after `before`, which is what there is so far;
    /// if so, those of its flags that the whole gets.
    fn continued_by(&self, before: &[u8], headers: &[u8], payload: &[u8]) -> Option<u8> {
        let Shape { l4, payload_len, header_len, .. } = self.shape;
        let most = if l4 == L4::Udp { MAX_DATAGRAMS } else { usize::MAX };
        let fits =
            (1..=payload_len).contains(&payload.len()) && before.len() + payload.len() <= MAX_LEN && self.count < most;
        // One that ends sooner or later than its headers say is another shape, and one with other options too.
        if !fits || Shape::of_parts(headers, headers.len() + payload.len())?.with_payload(payload_len) != self.shape {
            return None;
        }
        let first = before.get(..header_len)?;
        let same_ip =
            if self.shape.is_ipv4 { same_ipv4(first, headers, self.count, l4) } else { same_ipv6(first, headers) };
        if !same_ip {
            return None;
        }
        let (first_l4, l4_header) = (first.get(self.shape.l4_offset..)?, headers.get(self.shape.l4_offset..)?);
        let flags = match l4 {
            L4::Tcp => same_tcp(first_l4, l4_header, before.len() - header_len)?,
            L4::Udp => (first_l4.get(..4) == l4_header.get(..4)).then_some(0)?,
        };
        // A wrong checksum is for the receiver to see, and there would be one for all of it.
        let is_right = |headers: &[u8], payload: &[u8]| self.shape.is_checked(headers, payload);
        let first_is_right = self.count > 1 || is_right(first, before.get(header_len..)?);
        (first_is_right && is_right(headers, payload)).then_some(flags)
    }

    /// Makes one packet of what was put together; returns how the device is to see it.
    fn seal(&self, packet: &mut [u8]) -> VnetHeader {
        let Shape { l4, is_ipv4, l4_offset, header_len, payload_len } = self.shape;
        let len = packet.len();
        let pseudo = self.shape.pseudo_header_sum(packet, len - l4_offset);
        if let Some((ip, rest)) = packet.split_at_mut_checked(l4_offset) {
            match is_ipv4 {
                true => {
                    put(ip, 2, len as u16);
                    put(ip, 10, 0);
                    put(ip, 10, !sum(ip));
                }
                false => put(ip, 4, (len - IPV6_HEADER_LEN) as u16),
            }
            match l4 {
                L4::Tcp => {
                    if let Some(flags) = rest.get_mut(13) {
                        *flags |= self.last_flags;
                    }
                    put(rest, 16, pseudo);
                }
                L4::Udp => {
                    put(rest, 4, (len - l4_offset) as u16);
                    put(rest, 6, pseudo);
                }
            }
        }
        VnetHeader {
            flags: VnetHeader::NEEDS_CSUM,
            gso_type: match (l4, is_ipv4) {
                (L4::Tcp, true) => VnetHeader::GSO_TCPV4,
                (L4::Tcp, false) => VnetHeader::GSO_TCPV6,
                (L4::Udp, _) => VnetHeader::GSO_UDP_L4,
            },
            hdr_len: header_len as u16,
            gso_size: payload_len as u16,
            csum_start: l4_offset as u16,
            csum_offset: if l4 == L4::Tcp { 16 } else { 6 },
        }
    }
}

impl Shape {
    /// Of a packet that can be one of several put together.
    fn of(packet: &[u8]) -> Option<Self> {
        Self::of_parts(packet, packet.len())
    }

    /// Of a packet of `len` bytes whose headers are in `start`.
    fn of_parts(start: &[u8], len: usize) -> Option<Self> {
        let (is_ipv4, l4_offset, protocol) = match start.first()? >> 4 {
            // Without options.
            4 if *start.first()? == 0x45 && get(start, 6)? & FRAGMENT_BITS == 0 => {
                (usize::from(get(start, 2)?) == len).then_some((true, IPV4_HEADER_LEN, *start.get(9)?))?
            }
            6 => {
                let is_all = IPV6_HEADER_LEN + usize::from(get(start, 4)?) == len;
                is_all.then_some((false, IPV6_HEADER_LEN, *start.get(6)?))?
            }
            _ => return None,
        };
        let (l4, l4_header_len) = match protocol {
            PROTOCOL_TCP => (L4::Tcp, usize::from(*start.get(l4_offset + 12)? >> 4) * 4),
            PROTOCOL_UDP => {
                let is_all = usize::from(get(start, l4_offset + 4)?) == len - l4_offset;
                (is_all && get(start, l4_offset + 6)? != 0).then_some((L4::Udp, UDP_HEADER_LEN))?
            }
            _ => return None,
        };
        let header_len = l4_offset + l4_header_len;
        let least = if l4 == L4::Tcp { TCP_HEADER_LEN } else { UDP_HEADER_LEN };
        if l4_header_len < least || header_len > len {
            return None;
        }
        let shape = Self { l4, is_ipv4, l4_offset, header_len, payload_len: len - header_len };
        let is_usual = shape.flags(start) & !flag::LAST & !flag::ECE == flag::ACK && shape.is_plain(start);
        (l4 == L4::Udp || is_usual).then_some(shape)
    }

    fn with_payload(self, payload_len: usize) -> Self {
        Self { payload_len, ..self }
    }

    /// TCP flags; none for UDP.
    fn flags(&self, headers: &[u8]) -> u8 {
        let at = headers.get(self.l4_offset + 13).copied().unwrap_or_default();
        if self.l4 == L4::Tcp { at } else { 0 }
    }

    /// Of TCP: no reserved bits, no urgent pointer.
    fn is_plain(&self, headers: &[u8]) -> bool {
        let reserved = headers.get(self.l4_offset + 12).is_none_or(|byte| byte & 0x0f != 0);
        !reserved && get(headers, self.l4_offset + 18) == Some(0)
    }

    /// Whether the checksums of a packet are right.
    fn is_checked(&self, headers: &[u8], payload: &[u8]) -> bool {
        let (ip, l4) = headers.split_at(self.l4_offset.min(headers.len()));
        let len = l4.len() + payload.len();
        let is_ip_right = !self.is_ipv4 || sum(ip) == 0xffff;
        is_ip_right && combine(&[self.pseudo_header_sum(headers, len), sum(l4), sum(payload)]) == 0xffff
    }

    /// The sum of the pseudo header (RFC 9293, section 3.1; RFC 8200, section 8.1).
    fn pseudo_header_sum(&self, headers: &[u8], l4_len: usize) -> u16 {
        let addresses = if self.is_ipv4 { 12..20 } else { 8..40 };
        let protocol = if self.l4 == L4::Tcp { PROTOCOL_TCP } else { PROTOCOL_UDP };
        combine(&[sum(headers.get(addresses).unwrap_or_default()), u16::from(protocol), l4_len as u16])
    }
}

/// Whether an IPv4 header is that of packet `number` of those that begin with `first`.
fn same_ipv4(first: &[u8], header: &[u8], number: usize, l4: L4) -> bool {
    let same = |range: std::ops::Range<usize>| first.get(range.clone()) == header.get(range);
    let (Some(from), Some(identification)) = (get(first, 4), get(header, 4)) else { return false };
    let counts = identification == from.wrapping_add(number as u16);
    // What is never fragmented needs no identification (RFC 6864, section 4.1); some systems leave it at zero. TCP has
    // sequence numbers, too.
    let is_constant =
        l4 == L4::Tcp && identification == from && get(header, 6).is_some_and(|flags| flags & DONT_FRAGMENT != 0);
    same(0..2) && (counts || is_constant) && same(6..10) && same(12..IPV4_HEADER_LEN)
}

fn same_ipv6(first: &[u8], header: &[u8]) -> bool {
    first.get(..4) == header.get(..4) && first.get(6..IPV6_HEADER_LEN) == header.get(6..IPV6_HEADER_LEN)
}

/// Whether a TCP header follows `first` after `len` bytes of payload; if so, those of its flags that the whole gets.
fn same_tcp(first: &[u8], header: &[u8], len: usize) -> Option<u8> {
    let same = |range: std::ops::Range<usize>| first.get(range.clone()) == header.get(range);
    let sequence =
        |header: &[u8]| header.get(4..8).and_then(<[u8]>::first_chunk).map(|bytes| u32::from_be_bytes(*bytes));
    let follows = sequence(first)?.wrapping_add(len as u32) == sequence(header)?;
    let flags = *header.get(13)?;
    let same_flags = (first.get(13)? ^ flags) & !flag::LAST == 0;
    let same_rest = same(0..4) && same(8..13) && same(14..16) && first.get(18..) == header.get(18..);
    (follows && same_flags && same_rest).then_some(flags & flag::LAST)
}

fn get(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..).and_then(<[u8]>::first_chunk).map(|bytes| u16::from_be_bytes(*bytes))
}

fn put(bytes: &mut [u8], at: usize, value: u16) {
    if let Some(field) = bytes.get_mut(at..).and_then(<[u8]>::first_chunk_mut) {
        *field = value.to_be_bytes();
    }
}

fn copy_start(to: &mut [u8], from: &[u8], len: usize) {
    if let (Some(to), Some(from)) = (to.get_mut(..len), from.get(..len)) {
        to.copy_from_slice(from);
    }
}

#[cfg(test)]
mod tests;
