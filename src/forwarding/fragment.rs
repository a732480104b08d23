//! Fragments of a packet that must pass a path that does not take it whole.
//!
//! | bytes | IPv6 fragment header (RFC 8200, section 4.5), after the IPv6 header |
//! |---|---|
//! | 0 | next header |
//! | 2..4 | offset in units of 8 bytes, upper 13 bits; more fragments, lowest bit |
//! | 4..8 | identification |
//!
//! IPv4 has the same in bytes 4..8 of its header (RFC 791, section 3.1): identification, u16; flags; offset, lower 13
//! bits. A packet that is a fragment already is cut further, as a router does. Options and other extension headers do
//! not occur where this is needed, and are not cut.

use smoltcp::wire::{IPV4_HEADER_LEN, IPV6_HEADER_LEN, Ipv4Packet, Ipv6Packet};

use crate::wire::IpView;

const FRAGMENT_HEADER_LEN: usize = 8;
const NEXT_HEADER_FRAGMENT: u8 = 44;
/// Extension headers that every fragment would repeat: hop-by-hop, routing, destination options.
const REPEATED_HEADERS: [u8; 3] = [0, 43, 60];
/// Offsets count in this many bytes.
const UNIT: usize = 8;

/// A packet in fragments.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fragments<'a> {
    is_ipv4: bool,
    header: &'a [u8],
    content: &'a [u8],
    /// Content of every fragment but the last, bytes.
    piece: usize,
    /// Of the content's begin, in units.
    offset: usize,
    /// More fragments follow those made here.
    more: bool,
    /// Of IPv6.
    next_header: u8,
    identification: u32,
}

impl<'a> Fragments<'a> {
    /// A packet in fragments of at most `max_len` bytes; `None` if it cannot be cut. An IPv6 packet that is no fragment
    /// yet gets this identification.
    pub(super) fn new(packet: &'a [u8], max_len: usize, identification: u32) -> Option<Self> {
        let view = IpView::parse(packet).ok()?;
        let mut fragments = match view.source.is_ipv4() {
            true => Self::of_ipv4(view.packet)?,
            false => Self::of_ipv6(view.packet, identification)?,
        };
        let repeated = fragments.header_len();
        fragments.piece = max_len.checked_sub(repeated)? / UNIT * UNIT;
        (fragments.piece > 0).then_some(fragments)
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.content.len().div_ceil(self.piece).max(1)
    }

    /// Writes fragment `index` to the start of `out` and returns its length; `None` if there is none, or no room.
    pub(super) fn write(&self, index: usize, out: &mut [u8]) -> Option<usize> {
        let start = index.checked_mul(self.piece)?;
        let content = self.content.get(start..self.content.len().min(start + self.piece))?;
        let len = self.header_len() + content.len();
        let (header, rest) = out.get_mut(..len)?.split_at_mut_checked(self.header.len())?;
        header.copy_from_slice(self.header);
        let more = self.more || index + 1 < self.count();
        let offset = u16::try_from(self.offset + start / UNIT).ok()?;
        let total = u16::try_from(len).ok()?;
        if self.is_ipv4 {
            let mut ip = Ipv4Packet::new_unchecked(header);
            ip.set_total_len(total);
            ip.set_more_frags(more);
            ip.set_frag_offset(offset.checked_mul(UNIT as u16)?);
            ip.fill_checksum();
            rest.copy_from_slice(content);
        } else {
            let mut ip = Ipv6Packet::new_unchecked(header);
            ip.set_payload_len(total.checked_sub(IPV6_HEADER_LEN as u16)?);
            ip.set_next_header(NEXT_HEADER_FRAGMENT.into());
            let (fragment, body) = rest.split_first_chunk_mut::<FRAGMENT_HEADER_LEN>()?;
            let [high, low] = ((offset << 3) | u16::from(more)).to_be_bytes();
            let [a, b, c, d] = self.identification.to_be_bytes();
            *fragment = [self.next_header, 0, high, low, a, b, c, d];
            body.copy_from_slice(content);
        }
        Some(len)
    }

    fn of_ipv4(packet: &'a [u8]) -> Option<Self> {
        let (header, content) = packet.split_at_checked(IPV4_HEADER_LEN)?;
        let ip = Ipv4Packet::new_unchecked(header);
        let whole = usize::from(ip.header_len()) == IPV4_HEADER_LEN && !ip.dont_frag();
        whole.then(|| Self {
            is_ipv4: true,
            header,
            content,
            piece: 0,
            offset: usize::from(ip.frag_offset()) / UNIT,
            more: ip.more_frags(),
            next_header: 0,
            identification: 0,
        })
    }

    fn of_ipv6(packet: &'a [u8], identification: u32) -> Option<Self> {
        let (header, content) = packet.split_at_checked(IPV6_HEADER_LEN)?;
        let next_header: u8 = Ipv6Packet::new_unchecked(header).next_header().into();
        let whole =
            Self { is_ipv4: false, header, content, piece: 0, offset: 0, more: false, next_header, identification };
        if next_header != NEXT_HEADER_FRAGMENT {
            return (!REPEATED_HEADERS.contains(&next_header)).then_some(whole);
        }
        let ([next_header, _, high, low, a, b, c, d], content) = content.split_first_chunk::<FRAGMENT_HEADER_LEN>()?;
        let field = u16::from_be_bytes([*high, *low]);
        Some(Self {
            content,
            offset: usize::from(field >> 3),
            more: field & 1 != 0,
            next_header: *next_header,
            identification: u32::from_be_bytes([*a, *b, *c, *d]),
            ..whole
        })
    }

    fn header_len(&self) -> usize {
        self.header.len() + if self.is_ipv4 { 0 } else { FRAGMENT_HEADER_LEN }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Fragment;
    use proptest::prelude::*;

    fn packet(ipv4: bool, content: &[u8]) -> Vec<u8> {
        let len = u16::try_from(content.len()).unwrap();
        let mut packet = if ipv4 {
            let mut packet = vec![0x45, 0, 0, 0, 7, 7, 0, 0, 64, 17, 0, 0, 100, 64, 0, 1, 100, 64, 0, 2];
            packet[2..4].copy_from_slice(&(len + 20).to_be_bytes());
            Ipv4Packet::new_unchecked(packet.as_mut_slice()).fill_checksum();
            packet
        } else {
            let mut packet = vec![0; 40];
            (packet[0], packet[6], packet[7], packet[8], packet[24]) = (0x60, 17, 64, 0xfd, 0xfd);
            packet[4..6].copy_from_slice(&len.to_be_bytes());
            packet
        };
        packet.extend(content);
        packet
    }

    fn cut(packet: &[u8], max_len: usize) -> Vec<Vec<u8>> {
        let fragments = Fragments::new(packet, max_len, 9).unwrap();
        let write = |index| {
            let mut out = vec![0; max_len];
            let len = fragments.write(index, &mut out).unwrap();
            out[..len].to_vec()
        };
        (0..fragments.count()).map(write).collect()
    }

    /// What smoltcp, which knows nothing of this file, reads: offset in bytes, more, content.
    fn read(fragment: &[u8]) -> (usize, bool, Vec<u8>) {
        let view = IpView::parse(fragment).unwrap();
        if view.source.is_ipv4() {
            let ip = Ipv4Packet::new_checked(fragment).unwrap();
            assert!(ip.verify_checksum());
            return (usize::from(ip.frag_offset()), ip.more_frags(), ip.payload().to_vec());
        }
        let header = smoltcp::wire::Ipv6FragmentHeader::new_checked(&fragment[42..]).unwrap();
        assert_eq!(fragment[40], 17, "the protocol moves into the fragment header");
        assert_eq!(header.ident(), 9);
        (usize::from(header.frag_offset()) * 8, header.more_frags(), fragment[48..].to_vec())
    }

    fn assemble(fragments: &[Vec<u8>], len: usize) -> Vec<u8> {
        let mut content = vec![0; len];
        let mut last = 0;
        for (offset, more, piece) in fragments.iter().map(|fragment| read(fragment)) {
            content[offset..offset + piece.len()].copy_from_slice(&piece);
            last += usize::from(!more);
        }
        assert_eq!(last, 1, "one fragment is the last");
        content
    }

    #[test]
    fn a_packet_of_1280_bytes_becomes_two() {
        for ipv4 in [true, false] {
            let content: Vec<u8> = (0..1_240u32).map(|number| number as u8).collect();
            let fragments = cut(&packet(ipv4, &content), 1_200);
            assert_eq!(fragments.len(), 2);
            assert_eq!(assemble(&fragments, content.len()), content);
            let kinds = [0, 1].map(|number| IpView::parse(&fragments[number]).unwrap().fragment);
            assert_eq!(kinds, [Fragment::First, Fragment::Later]);
        }
    }

    #[test]
    fn what_cannot_be_cut_is_refused() {
        let mut df = packet(true, &[0; 1_300]);
        Ipv4Packet::new_unchecked(df.as_mut_slice()).set_dont_frag(true);
        let mut options = packet(true, &[0; 1_300]);
        options[0] = 0x46;
        let mut hop_by_hop = packet(false, &[0; 1_240]);
        hop_by_hop[6] = 0;
        for packet in [&df[..], &options, &hop_by_hop, &[0x60; 3], &[]] {
            assert!(Fragments::new(packet, 1_200, 9).is_none());
        }
        assert!(Fragments::new(&packet(true, &[0; 100]), 27, 9).is_none(), "no room for content");
    }

    proptest! {
        #[test]
        fn fragments_of_fragments_make_the_packet(
            ipv4: bool, content in proptest::collection::vec(any::<u8>(), 8..3000), first in 100usize..1400,
            second in 80usize..1400,
        ) {
            let once = cut(&packet(ipv4, &content), first);
            prop_assert!(once.iter().all(|fragment| fragment.len() <= first));
            prop_assert_eq!(assemble(&once, content.len()), content.clone());
            let twice: Vec<Vec<u8>> = once.iter().flat_map(|fragment| cut(fragment, second)).collect();
            prop_assert!(twice.iter().all(|fragment| fragment.len() <= second));
            prop_assert_eq!(assemble(&twice, content.len()), content);
        }

        #[test]
        fn arbitrary_bytes_never_panic(mut bytes: Vec<u8>, version in prop_oneof![Just(0x45u8), Just(0x60)], max: u16) {
            if let Some(first) = bytes.first_mut() {
                *first = version;
            }
            if let Some(fragments) = Fragments::new(&bytes, max.into(), 1) {
                for index in 0..fragments.count().min(64) {
                    fragments.write(index, &mut [0; 2048]);
                }
            }
        }
    }
}
