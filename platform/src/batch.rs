//! One contiguous slab of packets, with room before each for the device's own header.

/// Bytes before each packet that the platform may fill with its device header, so that header and packet
/// are one contiguous read or write.
pub const HEADROOM: usize = 16;

/// The longest packet a device hands over: an IPv4 packet, or an IPv6 packet with its header, as the kernel
/// segments them for offload (`GSO_MAX_SIZE` of a TUN device is 65,536).
pub const MAX_PACKET: usize = 65_536;

/// Packets start at multiples of this, which keeps IP headers aligned for the checksum loops.
const ALIGNMENT: usize = 16;

/// `struct virtio_net_hdr` (virtio 1.2, 5.1.6), fields in host order.
///
/// On the wire it is 10 bytes, native endian as the kernel gives it to a TUN descriptor:
///
/// | bytes | field |
/// |---|---|
/// | 0 | flags |
/// | 1 | gso_type |
/// | 2..4 | hdr_len |
/// | 4..6 | gso_size |
/// | 6..8 | csum_start |
/// | 8..10 | csum_offset |
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct VnetHeader {
    /// [`VnetHeader::NEEDS_CSUM`] or 0.
    pub flags: u8,
    /// One of the `GSO_` constants, possibly with [`VnetHeader::ECN`].
    pub gso_type: u8,
    /// Length of the headers that every segment repeats, in bytes.
    pub hdr_len: u16,
    /// Payload of one segment, in bytes.
    pub gso_size: u16,
    /// Where the checksum begins, in bytes from the start of the packet.
    pub csum_start: u16,
    /// Where the checksum is stored, in bytes from `csum_start`.
    pub csum_offset: u16,
}

impl VnetHeader {
    /// Bytes on the wire.
    pub const LEN: usize = 10;
    /// Flag: the checksum field holds only the pseudo header's sum; whoever sends it on completes it.
    pub const NEEDS_CSUM: u8 = 1;
    /// Flag: the kernel has already verified the checksum.
    pub const DATA_VALID: u8 = 2;
    /// One packet, nothing to segment.
    pub const GSO_NONE: u8 = 0;
    /// TCP over IPv4, to be segmented.
    pub const GSO_TCPV4: u8 = 1;
    /// TCP over IPv6, to be segmented.
    pub const GSO_TCPV6: u8 = 4;
    /// UDP, to be split into datagrams of `gso_size` bytes.
    pub const GSO_UDP_L4: u8 = 5;
    /// Added to a TCP type: the first segment has the CWR flag set (RFC 3168).
    pub const ECN: u8 = 0x80;

    /// Reads the header from the first bytes of `bytes`; `None` when there are fewer than [`VnetHeader::LEN`].
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; Self::LEN] = bytes.first_chunk()?;
        let field = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        Some(Self {
            flags: bytes[0],
            gso_type: bytes[1],
            hdr_len: field(2),
            gso_size: field(4),
            csum_start: field(6),
            csum_offset: field(8),
        })
    }

    /// Writes the header into `bytes`.
    pub fn emit(&self, bytes: &mut [u8; Self::LEN]) {
        bytes[0] = self.flags;
        bytes[1] = self.gso_type;
        bytes[2..4].copy_from_slice(&self.hdr_len.to_ne_bytes());
        bytes[4..6].copy_from_slice(&self.gso_size.to_ne_bytes());
        bytes[6..8].copy_from_slice(&self.csum_start.to_ne_bytes());
        bytes[8..10].copy_from_slice(&self.csum_offset.to_ne_bytes());
    }
}

/// A bounded list of packets in one allocation that never grows.
///
/// Fill it with [`PacketBatch::free_space`] then [`PacketBatch::commit`], once per packet; empty it with
/// [`PacketBatch::clear`].
pub struct PacketBatch {
    slab: Vec<u8>,
    packets: Vec<Packet>,
    max_packets: usize,
    /// Where the next packet's headroom begins.
    used: usize,
}

#[derive(Clone, Copy)]
struct Packet {
    header: VnetHeader,
    start: usize,
    len: usize,
}

impl PacketBatch {
    /// A batch of at most `max_packets` packets that take at most `bytes` bytes together, [`HEADROOM`] and
    /// alignment included. A batch that a device reads into needs `HEADROOM + MAX_PACKET` bytes at least.
    #[must_use]
    pub fn new(bytes: usize, max_packets: usize) -> Self {
        Self {
            // Zeroed memory is mapped lazily: pages no packet reaches cost nothing.
            slab: vec![0; bytes],
            packets: Vec::with_capacity(max_packets),
            max_packets,
            used: 0,
        }
    }

    /// Forgets all packets.
    pub fn clear(&mut self) {
        self.packets.clear();
        self.used = 0;
    }

    /// How many packets it holds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.packets.len()
    }

    /// Whether it holds no packet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.packets.is_empty()
    }

    /// Whether no further packet fits, not even one of one byte.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.packets.len() >= self.max_packets || self.used + HEADROOM >= self.slab.len()
    }

    /// Where the next packet's bytes may be written; empty when the batch is full.
    pub fn free_space(&mut self) -> &mut [u8] {
        self.free_space_with_header(0)
    }

    /// Appends the first `len` bytes of [`PacketBatch::free_space`] as a packet.
    ///
    /// # Panics
    /// When `len` is more than the free space: the caller wrote somewhere else.
    pub fn commit(&mut self, header: VnetHeader, len: usize) {
        assert!(len <= self.free_space().len(), "a packet of {len} bytes was not written into the free space");
        let start = self.used + HEADROOM;
        self.packets.push(Packet { header, start, len });
        self.used = (start + len).next_multiple_of(ALIGNMENT);
    }

    /// The packets in order.
    pub fn iter(&self) -> impl Iterator<Item = (VnetHeader, &[u8])> {
        self.packets.iter().map(|packet| (packet.header, &self.slab[packet.start..packet.start + packet.len]))
    }

    /// Packet number `index`.
    #[must_use]
    pub fn get(&self, index: usize) -> Option<(VnetHeader, &[u8])> {
        let packet = *self.packets.get(index)?;
        Some((packet.header, self.slab.get(packet.start..packet.start + packet.len)?))
    }

    /// Packet number `index`, its bytes writable.
    pub fn get_mut(&mut self, index: usize) -> Option<(VnetHeader, &mut [u8])> {
        let packet = *self.packets.get(index)?;
        let bytes = self.slab.get_mut(packet.start..packet.start + packet.len)?;
        Some((packet.header, bytes))
    }

    /// Packet number `index`, with its device header.
    pub fn packet_mut(&mut self, index: usize) -> Option<(&mut VnetHeader, &mut [u8])> {
        let packet = self.packets.get_mut(index)?;
        let bytes = self.slab.get_mut(packet.start..packet.start + packet.len)?;
        Some((&mut packet.header, bytes))
    }

    /// The last `overlap` bytes of the last packet (all of it, if it has fewer) and everything behind it. Empty when there
    /// is no packet.
    pub fn space_over_last(&mut self, overlap: usize) -> &mut [u8] {
        let Some(last) = self.packets.last() else { return &mut [] };
        let start = last.start + last.len - overlap.min(last.len);
        self.slab.get_mut(start..).unwrap_or_default()
    }

    /// The last packet, and everything behind it. Both empty when there is no packet.
    #[must_use]
    pub fn last_and_behind(&self) -> (&[u8], &[u8]) {
        let Some(last) = self.packets.last() else { return (&[], &[]) };
        let (before, behind) = self.slab.split_at(last.start + last.len);
        (before.get(last.start..).unwrap_or_default(), behind)
    }

    /// Adds the `len` bytes behind the last packet to it.
    ///
    /// # Panics
    /// When there are fewer, or no packet: the caller wrote somewhere else.
    pub fn grow_last(&mut self, len: usize) {
        assert!(len <= self.last_and_behind().1.len(), "{len} bytes were not written behind the last packet");
        let Some(last) = self.packets.last_mut() else { return };
        last.len += len;
        self.used = (last.start + last.len).next_multiple_of(ALIGNMENT);
    }

    /// Appends a packet that begins with `headers` and goes on with the `len` bytes behind the last packet, which are
    /// moved to where it begins. A packet that does not fit is dropped; returns whether it did.
    pub fn commit_behind_last(&mut self, headers: &[u8], len: usize) -> bool {
        let from = self.packets.last().map_or(0, |last| last.start + last.len);
        let total = headers.len() + len;
        if self.free_space().len() < total {
            return false;
        }
        let start = self.used + HEADROOM;
        self.slab.copy_within(from..from + len, start + headers.len());
        self.slab[start..start + headers.len()].copy_from_slice(headers);
        self.commit(VnetHeader::default(), total);
        true
    }

    /// Whether a device may read once more: a slot is free and the longest packet fits, because a TUN
    /// descriptor cuts what does not fit without a word.
    pub(crate) fn has_room_for_any_packet(&mut self) -> bool {
        self.free_space().len() >= MAX_PACKET
    }

    /// The free space with `header_len` (at most [`HEADROOM`]) bytes of headroom before it; empty when full.
    pub(crate) fn free_space_with_header(&mut self, header_len: usize) -> &mut [u8] {
        debug_assert!(header_len <= HEADROOM);
        if self.is_full() {
            return &mut [];
        }
        &mut self.slab[self.used + HEADROOM - header_len..]
    }

    /// Packet number `index` with `header_len` (at most [`HEADROOM`]) bytes of headroom before it.
    pub(crate) fn packet_with_header(&mut self, index: usize, header_len: usize) -> Option<(VnetHeader, &mut [u8])> {
        debug_assert!(header_len <= HEADROOM);
        let packet = *self.packets.get(index)?;
        let bytes = self.slab.get_mut(packet.start - header_len..packet.start + packet.len)?;
        Some((packet.header, bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn push(batch: &mut PacketBatch, bytes: &[u8]) {
        batch.free_space()[..bytes.len()].copy_from_slice(bytes);
        batch.commit(VnetHeader::default(), bytes.len());
    }

    #[test]
    fn vnet_header_round_trips_in_the_kernels_layout() {
        let header = VnetHeader {
            flags: VnetHeader::NEEDS_CSUM,
            gso_type: VnetHeader::GSO_TCPV6 | VnetHeader::ECN,
            hdr_len: 60,
            gso_size: 1_380,
            csum_start: 40,
            csum_offset: 16,
        };
        let mut wire = [0; VnetHeader::LEN];
        header.emit(&mut wire);
        assert_eq!(wire[0], 1);
        assert_eq!(wire[1], 0x84);
        assert_eq!(wire[4..6], 1_380u16.to_ne_bytes());
        assert_eq!(VnetHeader::parse(&wire), Some(header));
        assert_eq!(VnetHeader::parse(&wire[..9]), None);
    }

    #[test]
    fn packets_come_back_in_order_and_apart() {
        let mut batch = PacketBatch::new(1_024, 8);
        push(&mut batch, b"one");
        push(&mut batch, b"second");
        batch.get_mut(0).unwrap().1[0] = b'O';
        let packets: Vec<_> = batch.iter().map(|(_, bytes)| bytes.to_vec()).collect();
        assert_eq!(packets, [b"One".to_vec(), b"second".to_vec()]);
        assert!(batch.get(2).is_none());
        batch.clear();
        assert!(batch.is_empty());
        assert_eq!(batch.iter().count(), 0);
    }

    #[test]
    fn headroom_belongs_to_the_packet_after_it() {
        let mut batch = PacketBatch::new(1_024, 8);
        push(&mut batch, b"one");
        push(&mut batch, b"two");
        let (_, bytes) = batch.packet_with_header(1, HEADROOM).unwrap();
        assert_eq!(bytes.len(), HEADROOM + 3);
        bytes[..HEADROOM].fill(0xff);
        assert_eq!(batch.get(0).unwrap().1, b"one");
        assert_eq!(batch.get(1).unwrap().1, b"two");
    }

    #[test]
    fn a_full_batch_has_no_free_space() {
        let mut by_count = PacketBatch::new(1_024, 1);
        push(&mut by_count, b"x");
        assert!(by_count.is_full());
        assert!(by_count.free_space().is_empty());

        let mut by_bytes = PacketBatch::new(HEADROOM + 4, 8);
        assert_eq!(by_bytes.free_space().len(), 4);
        push(&mut by_bytes, b"1234");
        assert!(by_bytes.is_full());
        assert!(by_bytes.free_space().is_empty());
    }

    #[test]
    fn a_device_reads_only_where_the_longest_packet_fits() {
        let mut batch = PacketBatch::new(HEADROOM + MAX_PACKET + 8, 8);
        assert!(batch.has_room_for_any_packet());
        push(&mut batch, b"x");
        assert!(!batch.has_room_for_any_packet());
        assert!(!batch.is_full());
    }

    #[test]
    #[should_panic(expected = "not written into the free space")]
    fn committing_more_than_the_free_space_is_refused() {
        let mut batch = PacketBatch::new(64, 8);
        batch.commit(VnetHeader::default(), 49);
    }
}
