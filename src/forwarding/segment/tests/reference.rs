//! What must come out, written by code that shares nothing with segment.rs but its table of rules.

use std::net::{Ipv4Addr, Ipv6Addr};

use agentnet_platform::batch::VnetHeader;

const SOURCE_V4: Ipv4Addr = Ipv4Addr::new(100, 80, 1, 2);
const DESTINATION_V4: Ipv4Addr = Ipv4Addr::new(100, 99, 254, 255);
const SOURCE_V6: Ipv6Addr = Ipv6Addr::new(0xfd61, 1, 2, 3, 0xffff, 5, 6, 7);
const DESTINATION_V6: Ipv6Addr = Ipv6Addr::new(0xfd61, 0xffff, 0, 0, 1, 0, 0xfffe, 9);

pub(in crate::forwarding) const FIN: u8 = 0x01;
pub(in crate::forwarding) const SYN: u8 = 0x02;
pub(in crate::forwarding) const RST: u8 = 0x04;
pub(in crate::forwarding) const PSH: u8 = 0x08;
pub(in crate::forwarding) const ACK: u8 = 0x10;
pub(in crate::forwarding) const URG: u8 = 0x20;
pub(in crate::forwarding) const ECE: u8 = 0x40;
pub(in crate::forwarding) const CWR: u8 = 0x80;

/// A packet as a program means it. [`Spec::build`] writes it, field by field, with its checksum or only the sum of its
/// pseudo header; the segments that must come out are further specs.
#[derive(Debug, Clone)]
pub(in crate::forwarding) struct Spec {
    pub(in crate::forwarding) ipv4: bool,
    pub(in crate::forwarding) tcp: bool,
    /// IPv4 options, or the IPv6 extension headers (the first is a hop-by-hop header, the others destination options).
    pub(in crate::forwarding) extra: Vec<u8>,
    pub(in crate::forwarding) ident: u16,
    pub(in crate::forwarding) sequence: u32,
    pub(in crate::forwarding) flags: u8,
    pub(in crate::forwarding) tcp_options: Vec<u8>,
    pub(in crate::forwarding) payload: Vec<u8>,
}

#[derive(Clone, Copy, PartialEq)]
pub(in crate::forwarding) enum Sum {
    Complete,
    Partial,
}

impl Spec {
    pub(in crate::forwarding) fn new(ipv4: bool, tcp: bool, payload_len: usize) -> Self {
        let payload = (0..payload_len).map(|at| (at * 7 + at / 251) as u8).collect();
        let (extra, tcp_options) = (Vec::new(), Vec::new());
        Self { ipv4, tcp, extra, ident: 0xfffe, sequence: 0xffff_ff00, flags: ACK, tcp_options, payload }
    }

    pub(in crate::forwarding) fn l4_offset(&self) -> usize {
        if self.ipv4 { 20 + self.extra.len() } else { 40 + self.extra.len() }
    }

    pub(in crate::forwarding) fn header_len(&self) -> usize {
        self.l4_offset() + if self.tcp { 20 + self.tcp_options.len() } else { 8 }
    }

    pub(in crate::forwarding) fn build(&self, which: Sum) -> Vec<u8> {
        let mut l4: Vec<u8> = [0x30, 0x39, 0xff, 0xfe].to_vec();
        let l4_len = (self.header_len() - self.l4_offset() + self.payload.len()) as u16;
        if self.tcp {
            l4.extend(self.sequence.to_be_bytes());
            l4.extend([0xa1, 0xb2, 0xc3, 0xd4]);
            l4.extend([((20 + self.tcp_options.len()) / 4 * 16) as u8, self.flags, 0x12, 0x34, 0, 0, 0, 0]);
            l4.extend(&self.tcp_options);
        } else {
            l4.extend(l4_len.to_be_bytes());
            l4.extend([0, 0]);
        }
        l4.extend(&self.payload);

        let protocol = if self.tcp { 6 } else { 17 };
        let mut pseudo = Vec::new();
        if self.ipv4 {
            pseudo.extend(SOURCE_V4.octets());
            pseudo.extend(DESTINATION_V4.octets());
        } else {
            pseudo.extend(SOURCE_V6.octets());
            pseudo.extend(DESTINATION_V6.octets());
        }
        pseudo.extend([0, protocol]);
        pseudo.extend(l4_len.to_be_bytes());
        let checksum = match which {
            Sum::Partial => naive_sum(&pseudo),
            Sum::Complete => match !naive_sum(&[pseudo, l4.clone()].concat()) {
                0 if !self.tcp => 0xffff,
                checksum => checksum,
            },
        };
        let at = if self.tcp { 16 } else { 6 };
        l4[at..at + 2].copy_from_slice(&checksum.to_be_bytes());

        let mut packet = Vec::new();
        if self.ipv4 {
            packet.extend([0x40 | (5 + self.extra.len() / 4) as u8, 0xb9]);
            packet.extend(((self.l4_offset() + l4.len()) as u16).to_be_bytes());
            packet.extend(self.ident.to_be_bytes());
            packet.extend([0x40, 0, 64, protocol, 0, 0]);
            packet.extend(SOURCE_V4.octets());
            packet.extend(DESTINATION_V4.octets());
            packet.extend(&self.extra);
            let checksum = !naive_sum(&packet);
            packet[10..12].copy_from_slice(&checksum.to_be_bytes());
        } else {
            packet.extend([0x6b, 0x91, 0x23, 0x45]);
            packet.extend(((self.extra.len() + l4.len()) as u16).to_be_bytes());
            packet.extend([if self.extra.is_empty() { protocol } else { 0 }, 64]);
            packet.extend(SOURCE_V6.octets());
            packet.extend(DESTINATION_V6.octets());
            packet.extend(&self.extra);
            if let Some(last) = self.extra.len().checked_sub(8) {
                packet[40 + last] = protocol;
            }
        }
        packet.extend(l4);
        packet
    }

    /// The device header of Linux for this packet.
    pub(in crate::forwarding) fn device_header(&self, gso_size: u16) -> VnetHeader {
        let gso_type = match (gso_size, self.tcp, self.ipv4) {
            (0, ..) => VnetHeader::GSO_NONE,
            (_, false, _) => VnetHeader::GSO_UDP_L4,
            (_, true, true) => VnetHeader::GSO_TCPV4,
            (_, true, false) => VnetHeader::GSO_TCPV6,
        };
        VnetHeader {
            flags: VnetHeader::NEEDS_CSUM,
            gso_type,
            hdr_len: 0,
            gso_size,
            csum_start: self.l4_offset() as u16,
            csum_offset: if self.tcp { 16 } else { 6 },
        }
    }

    /// What must come out, by the words of the table at the top of segment.rs.
    pub(in crate::forwarding) fn cut(&self, gso_size: usize) -> Vec<Self> {
        let mut segments = Vec::new();
        let mut rest = &self.payload[..];
        loop {
            let (share, after) = rest.split_at(rest.len().min(gso_size));
            let mut segment = Self { payload: share.to_vec(), ..self.clone() };
            segment.ident = (usize::from(self.ident) + segments.len()) as u16;
            segment.sequence = (u64::from(self.sequence) + (self.payload.len() - rest.len()) as u64) as u32;
            if !segments.is_empty() {
                segment.flags &= !CWR;
            }
            if !after.is_empty() {
                segment.flags &= !(FIN | PSH);
            }
            segments.push(segment);
            rest = after;
            if rest.is_empty() {
                return segments;
            }
        }
    }
}

/// Sum of 16 bit words, one at a time.
pub(in crate::forwarding) fn naive_sum(bytes: &[u8]) -> u16 {
    let mut sum = 0u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) * 256 + u32::from(*pair.get(1).unwrap_or(&0));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}
