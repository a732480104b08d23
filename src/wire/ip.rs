//! The IP packets of programs: a checked view, and the rewriting of IPv4 addresses.
//!
//! | bytes (IPv4, RFC 791) | field | bytes (IPv6, RFC 8200) | field |
//! |---|---|---|---|
//! | 0 | version 4, header length in words | 0 | version 6 |
//! | 2..4 | total length | 4..6 | length after the header |
//! | 6..8 | flags, fragment offset | 6 | next header |
//! | 9 | protocol | 8..24 | source |
//! | 10..12 | header checksum | 24..40 | destination |
//! | 12..16 | source | 40.. | extension headers, then the protocol |
//! | 16..20 | destination | | |
//!
//! Checksum fields that cover the addresses (pseudo header, RFC 9293, section 3.1): TCP at 16,
//! UDP, UDP-Lite and DCCP at 6, each from the start of the protocol's header.

use std::net::{IpAddr, Ipv4Addr};

use smoltcp::wire::{IpVersion, Ipv4Packet, Ipv6Packet};

pub use super::icmp::{UnreachableReason, unreachable};
use super::incremental_checksum::SumChange;

/// Protocol number of ICMP (RFC 792).
pub const PROTOCOL_ICMP: u8 = 1;
/// Protocol number of TCP (RFC 9293).
pub const PROTOCOL_TCP: u8 = 6;
/// Protocol number of UDP (RFC 768).
pub const PROTOCOL_UDP: u8 = 17;
/// Protocol number of ICMPv6 (RFC 4443).
pub const PROTOCOL_ICMPV6: u8 = 58;

const PROTOCOL_DCCP: u8 = 33;
const PROTOCOL_UDP_LITE: u8 = 136;

const TCP_HEADER_LEN: usize = 20;
const UDP_HEADER_LEN: usize = 8;
const ICMP_HEADER_LEN: usize = 8;
const IPV4_HEADER_LEN: usize = smoltcp::wire::IPV4_HEADER_LEN;
const IPV6_HEADER_LEN: usize = smoltcp::wire::IPV6_HEADER_LEN;

/// IPv6 extension headers walked before a packet is refused. RFC 8200, section 4.1 lists seven in
/// its recommended order.
const MAX_EXTENSION_HEADERS: usize = 8;

/// Which part of a fragmented packet this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fragment {
    /// Not fragmented.
    Whole,
    /// The first of several; holds the protocol's header.
    First,
    /// A later one; what follows the IP header is not a protocol header.
    Later,
}

/// Source and destination port of TCP or UDP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ports {
    /// The sender's port.
    pub source: u16,
    /// The receiver's port.
    pub destination: u16,
}

/// An IPv4 or IPv6 packet whose headers were checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IpView<'a> {
    /// The packet without bytes after its total length.
    pub packet: &'a [u8],
    /// Source address.
    pub source: IpAddr,
    /// Destination address, of the same family.
    pub destination: IpAddr,
    /// Protocol after all IPv6 extension headers. In a later fragment: what the fragment header
    /// names, which can be a further extension header.
    pub protocol: u8,
    /// Where that protocol's header begins, at most the length of the packet.
    pub l4_offset: usize,
    /// Which part of a fragmented packet this is.
    pub fragment: Fragment,
    /// Ports of TCP and UDP, where the packet holds the whole fixed header (20 and 8 bytes), so
    /// that no filter decides by ports that a later fragment could overwrite.
    pub ports: Option<Ports>,
}

/// Why bytes are not an IP packet, or not one that can be rewritten.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IpError {
    /// The first four bits are neither 4 nor 6, or there are none.
    #[error("neither IPv4 nor IPv6")]
    Version,
    /// Shorter than its headers or its total length say, or a length that cannot be.
    #[error("the packet is cut off or its lengths contradict each other")]
    Length,
    /// More IPv6 extension headers than are walked.
    #[error("more than {MAX_EXTENSION_HEADERS} IPv6 extension headers")]
    ExtensionHeaders,
    /// IPv6 where IPv4 is needed.
    #[error("not an IPv4 packet")]
    NotIpv4,
}

impl<'a> IpView<'a> {
    /// Checks the headers of a packet. Checksums are not looked at.
    ///
    /// # Errors
    /// See [`IpError`].
    pub fn parse(packet: &'a [u8]) -> Result<Self, IpError> {
        // The version is read first: smoltcp's function for it needs one byte.
        let version = match packet {
            [] => return Err(IpError::Version),
            _ => IpVersion::of_packet(packet).map_err(|_| IpError::Version)?,
        };
        let mut view = match version {
            IpVersion::Ipv4 => Self::parse_ipv4(packet)?,
            IpVersion::Ipv6 => Self::parse_ipv6(packet)?,
        };
        view.ports = view.find_ports();
        Ok(view)
    }

    /// The protocol's header and content (in a later fragment, content only).
    pub fn l4(&self) -> &'a [u8] {
        self.packet.get(self.l4_offset..).unwrap_or_default()
    }

    /// Length in bytes from the IP header on.
    pub fn total_len(&self) -> usize {
        self.packet.len()
    }

    /// Whether it is an ICMP or ICMPv6 error, or a redirect, or too short to tell: nothing that an
    /// ICMP error may answer (RFC 1122, section 3.2.2; RFC 4443, section 2.4 e).
    pub fn is_icmp_error(&self) -> bool {
        if self.fragment == Fragment::Later {
            return false;
        }
        match (self.protocol, self.source, self.l4().first()) {
            (PROTOCOL_ICMP, IpAddr::V4(_), message_type) => {
                message_type.is_none_or(|&message_type| is_icmpv4_error(message_type))
            }
            (PROTOCOL_ICMPV6, IpAddr::V6(_), message_type) => {
                message_type.is_none_or(|&message_type| message_type < 128 || message_type == 137)
            }
            _ => false,
        }
    }

    fn parse_ipv4(packet: &'a [u8]) -> Result<Self, IpError> {
        let header = Ipv4Packet::new_checked(packet).map_err(|_| IpError::Length)?;
        let fragment = match (header.frag_offset(), header.more_frags()) {
            (0, false) => Fragment::Whole,
            (0, true) => Fragment::First,
            _ => Fragment::Later,
        };
        Ok(Self {
            packet: packet.get(..usize::from(header.total_len())).ok_or(IpError::Length)?,
            source: header.src_addr().into(),
            destination: header.dst_addr().into(),
            protocol: header.next_header().into(),
            l4_offset: usize::from(header.header_len()),
            fragment,
            ports: None,
        })
    }

    fn parse_ipv6(packet: &'a [u8]) -> Result<Self, IpError> {
        let header = Ipv6Packet::new_checked(packet).map_err(|_| IpError::Length)?;
        let packet = packet.get(..header.total_len()).ok_or(IpError::Length)?;
        let end = walk_extension_headers(packet, header.next_header().into())?;
        Ok(Self {
            packet,
            source: header.src_addr().into(),
            destination: header.dst_addr().into(),
            protocol: end.protocol,
            l4_offset: end.offset,
            fragment: end.fragment,
            ports: None,
        })
    }

    fn find_ports(&self) -> Option<Ports> {
        let fixed_header = match self.protocol {
            PROTOCOL_TCP => TCP_HEADER_LEN,
            PROTOCOL_UDP => UDP_HEADER_LEN,
            _ => return None,
        };
        match self.l4() {
            &[a, b, c, d, ref rest @ ..] if self.fragment != Fragment::Later && rest.len() + 4 >= fixed_header => {
                Some(Ports { source: u16::from_be_bytes([a, b]), destination: u16::from_be_bytes([c, d]) })
            }
            _ => None,
        }
    }
}

fn is_icmpv4_error(message_type: u8) -> bool {
    // Destination unreachable, source quench, redirect, time exceeded, parameter problem.
    matches!(message_type, 3 | 4 | 5 | 11 | 12)
}

/// Where the walk over extension headers ended.
struct ExtensionEnd {
    protocol: u8,
    offset: usize,
    fragment: Fragment,
}

fn walk_extension_headers(packet: &[u8], first: u8) -> Result<ExtensionEnd, IpError> {
    let mut end = ExtensionEnd { protocol: first, offset: IPV6_HEADER_LEN, fragment: Fragment::Whole };
    for _ in 0..=MAX_EXTENSION_HEADERS {
        let header = packet.get(end.offset..).ok_or(IpError::Length)?;
        let length = match (end.protocol, header) {
            // Hop-by-hop, routing, destination options (RFC 8200), mobility, HIP, shim6.
            (0 | 43 | 60 | 135 | 139 | 140, &[_, units, ..]) => (usize::from(units) + 1) * 8,
            // Authentication header (RFC 4302, section 2.2).
            (51, &[_, units, ..]) => (usize::from(units) + 2) * 4,
            // Fragment header (RFC 8200, section 4.5).
            (44, &[_, _, high, low, _, _, _, _, ..]) => {
                let field = u16::from_be_bytes([high, low]);
                match (field >> 3, field & 1) {
                    (0, 0) => {}
                    (0, _) => end.fragment = Fragment::First,
                    _ => end.fragment = Fragment::Later,
                }
                8
            }
            (0 | 43 | 60 | 135 | 139 | 140 | 51 | 44, _) => return Err(IpError::Length),
            _ => return Ok(end),
        };
        end.protocol = header.first().copied().ok_or(IpError::Length)?;
        end.offset += length;
        if end.offset > packet.len() {
            return Err(IpError::Length);
        }
        if end.fragment == Fragment::Later {
            return Ok(end);
        }
    }
    Err(IpError::ExtensionHeaders)
}

/// Gives an IPv4 packet other addresses and updates every checksum that covers them: the header's,
/// and in whole packets and first fragments that of TCP, UDP, UDP-Lite and DCCP. An ICMP error also
/// gets them in the packet it quotes, where source and destination are the other way round.
///
/// `partial_checksum`: the protocol's checksum field holds the pseudo header's sum only, to be
/// completed later (`VIRTIO_NET_HDR_F_NEEDS_CSUM`).
///
/// Checksums that were right stay right and wrong ones wrong, as nothing is summed anew.
///
/// # Errors
/// The errors of [`IpView::parse`], or [`IpError::NotIpv4`]; the packet is then unchanged.
pub fn rewrite_ipv4(
    packet: &mut [u8],
    new_source: Ipv4Addr,
    new_destination: Ipv4Addr,
    partial_checksum: bool,
) -> Result<(), IpError> {
    let view = IpView::parse(packet)?;
    let (IpAddr::V4(old_source), IpAddr::V4(old_destination)) = (view.source, view.destination) else {
        return Err(IpError::NotIpv4);
    };
    let rewrite = Rewrite { old_source, old_destination, new_source, new_destination };
    let (total_len, l4_offset) = (view.total_len(), view.l4_offset);
    let (protocol, fragment) = (view.protocol, view.fragment);
    let (header, l4) =
        packet.get_mut(..total_len).and_then(|packet| packet.split_at_mut_checked(l4_offset)).ok_or(IpError::Length)?;
    let change = rewrite.apply(header);
    if fragment == Fragment::Later {
        return Ok(());
    }
    if protocol == PROTOCOL_ICMP {
        rewrite_icmp_error(l4, &rewrite.seen_by_the_receiver(), partial_checksum);
    } else {
        update_l4_checksum(l4, protocol, change, partial_checksum);
    }
    Ok(())
}

/// Which address becomes which.
struct Rewrite {
    old_source: Ipv4Addr,
    old_destination: Ipv4Addr,
    new_source: Ipv4Addr,
    new_destination: Ipv4Addr,
}

impl Rewrite {
    /// The same for the packets that went in the other direction.
    fn seen_by_the_receiver(&self) -> Self {
        Self {
            old_source: self.old_destination,
            old_destination: self.old_source,
            new_source: self.new_destination,
            new_destination: self.new_source,
        }
    }

    /// Rewrites an IPv4 header of at least 20 bytes. An address that is not the old one stays: an
    /// ICMP error may quote a packet that was rewritten by others. Returns what changed for the
    /// pseudo header.
    fn apply(&self, header: &mut [u8]) -> SumChange {
        let mut header = Ipv4Packet::new_unchecked(header);
        let (source, destination) = (header.src_addr(), header.dst_addr());
        let mut change = SumChange::default();
        if source == self.old_source {
            change = change.replace(&source.octets(), &self.new_source.octets());
            header.set_src_addr(self.new_source);
        }
        if destination == self.old_destination {
            change = change.replace(&destination.octets(), &self.new_destination.octets());
            header.set_dst_addr(self.new_destination);
        }
        let checksum = header.checksum();
        header.set_checksum(change.apply(checksum));
        change
    }
}

/// Updates the checksum of a protocol that has a pseudo header, if it is there.
fn update_l4_checksum(l4: &mut [u8], protocol: u8, change: SumChange, partial: bool) {
    let offset = match protocol {
        PROTOCOL_TCP => 16,
        PROTOCOL_UDP | PROTOCOL_UDP_LITE | PROTOCOL_DCCP => 6,
        _ => return,
    };
    let Some(field) = l4.get_mut(offset..).and_then(<[u8]>::first_chunk_mut::<2>) else {
        return;
    };
    let old = u16::from_be_bytes(*field);
    let new = if partial {
        change.apply_to_sum(old)
    } else if protocol == PROTOCOL_UDP && old == 0 {
        // No checksum (RFC 768).
        0
    } else {
        match (protocol, change.apply(old)) {
            // Zero would mean no checksum (RFC 768; RFC 3828, section 3.1).
            (PROTOCOL_UDP | PROTOCOL_UDP_LITE, 0) => 0xffff,
            (_, new) => new,
        }
    };
    *field = new.to_be_bytes();
}

/// Rewrites the packet that an ICMP error quotes, and updates the error's checksum for it.
fn rewrite_icmp_error(icmp: &mut [u8], rewrite: &Rewrite, partial: bool) {
    let Some((icmp_header, quoted)) = icmp.split_first_chunk_mut::<ICMP_HEADER_LEN>() else {
        return;
    };
    let [message_type, _, high, low, ..] = *icmp_header;
    let header_len = match quoted.first() {
        Some(&first) if first >> 4 == 4 => usize::from(first & 0xf) * 4,
        _ => return,
    };
    if !is_icmpv4_error(message_type) || header_len < IPV4_HEADER_LEN {
        return;
    }
    // Every checksum field that can change lies in the header and the 20 bytes after it.
    let covered = quoted.len().min(header_len + TCP_HEADER_LEN) & !1;
    let mut before = [0; 60 + TCP_HEADER_LEN];
    let (Some(before), Some(window)) = (before.get_mut(..covered), quoted.get(..covered)) else {
        return;
    };
    before.copy_from_slice(window);

    let Some((header, quoted_l4)) = quoted.split_at_mut_checked(header_len) else {
        return;
    };
    let change = rewrite.apply(header);
    let header = Ipv4Packet::new_unchecked(&*header);
    if header.frag_offset() == 0 {
        update_l4_checksum(quoted_l4, header.next_header().into(), change, false);
    }
    if partial {
        // The field holds the sum of a pseudo header that ICMP does not have.
        return;
    }
    let Some(after) = quoted.get(..covered) else {
        return;
    };
    let checksum = SumChange::default().replace(before, after).apply(u16::from_be_bytes([high, low]));
    let [_, _, field_high, field_low, ..] = icmp_header;
    [*field_high, *field_low] = checksum.to_be_bytes();
}

#[cfg(test)]
#[path = "ip_tests.rs"]
mod tests;
