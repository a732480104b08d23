//! Where datagrams wait to leave.

use std::net::SocketAddr;

use super::LocalEnd;

/// Payload of one `UDP_SEGMENT` transmit: 65,535 less the UDP header (8) and the larger IP header (40).
pub(crate) const MAX_TRANSMIT: usize = 65_535 - 8 - 40;

/// Transmits of a batch: a bound for the list beside the slab, far above what a slab of full-size packets needs.
const MAX_TRANSMITS: usize = 1_024;

/// Datagrams to send, in one slab. Consecutive datagrams to one destination with one length become one transmit,
/// which the kernel cuts apart (`UDP_SEGMENT`); the last of them may be shorter.
pub struct SendBatch {
    slab: Vec<u8>,
    transmits: Vec<Entry>,
    max_segments: usize,
    used: usize,
    datagrams: usize,
}

struct Entry {
    destination: SocketAddr,
    local: LocalEnd,
    start: usize,
    len: usize,
    segment: usize,
    count: usize,
    fragmentable: bool,
}

/// One system call's worth of a [`SendBatch`].
#[derive(Clone, Copy)]
pub(crate) struct Transmit<'a> {
    pub(crate) destination: SocketAddr,
    pub(crate) local: LocalEnd,
    pub(crate) data: &'a [u8],
    /// Bytes of each datagram but the last.
    pub(crate) segment: usize,
    pub(crate) count: usize,
    /// Routers may fragment it; then it is one datagram.
    pub(crate) fragmentable: bool,
}

impl SendBatch {
    /// A batch of at most `bytes` bytes of payload whose transmits have at most `max_gso_segments` datagrams
    /// (see [`crate::udp::DatagramSocket::max_gso_segments`]; 0 counts as 1).
    #[must_use]
    pub fn new(bytes: usize, max_gso_segments: usize) -> Self {
        Self {
            slab: vec![0; bytes],
            transmits: Vec::with_capacity(MAX_TRANSMITS),
            max_segments: max_gso_segments.max(1),
            used: 0,
            datagrams: 0,
        }
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.transmits.clear();
        self.used = 0;
        self.datagrams = 0;
    }

    /// How many datagrams it holds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.datagrams
    }

    /// Whether it holds nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.datagrams == 0
    }

    /// Whether this many datagrams of at most `max_len` bytes each can be pushed without sending first.
    #[must_use]
    pub fn fits(&self, datagrams: usize, max_len: usize) -> bool {
        let bytes = datagrams.saturating_mul(max_len).saturating_add(self.used);
        bytes <= self.slab.len() && self.transmits.len().saturating_add(datagrams) <= MAX_TRANSMITS
    }

    /// Appends a datagram for `destination`, from this local end. `fill` gets exactly `max_len` bytes to
    /// write into and returns how many of them are the datagram; 0 pushes nothing. The bytes it gets are not
    /// cleared.
    ///
    /// Returns false, without calling `fill`, when there is no room: send, clear, push again. A `max_len` above
    /// the size of an empty batch never fits.
    ///
    /// # Panics
    /// When `fill` claims more than `max_len` bytes.
    #[must_use]
    pub fn push_with(
        &mut self,
        destination: SocketAddr,
        local: impl Into<LocalEnd>,
        max_len: usize,
        fill: impl FnOnce(&mut [u8]) -> usize,
    ) -> bool {
        self.push(destination, local.into(), false, max_len, fill)
    }

    /// The same for a datagram that routers may fragment, as far as it is of IPv4; nobody on the way fragments IPv6. It
    /// costs system calls of its own: for the rare one that the path does not take whole and whose content cannot be
    /// sent in smaller pieces.
    ///
    /// # Panics
    /// When `fill` claims more than `max_len` bytes.
    #[must_use]
    pub fn push_fragmentable(
        &mut self,
        destination: SocketAddr,
        local: impl Into<LocalEnd>,
        max_len: usize,
        fill: impl FnOnce(&mut [u8]) -> usize,
    ) -> bool {
        self.push(destination, local.into(), true, max_len, fill)
    }

    fn push(
        &mut self,
        destination: SocketAddr,
        local: LocalEnd,
        fragmentable: bool,
        max_len: usize,
        fill: impl FnOnce(&mut [u8]) -> usize,
    ) -> bool {
        if self.transmits.len() >= MAX_TRANSMITS {
            return false;
        }
        let start = self.used;
        let Some(space) = start.checked_add(max_len).and_then(|end| self.slab.get_mut(start..end)) else {
            return false;
        };
        let len = fill(space);
        assert!(len <= max_len, "a datagram of {len} bytes in a space of {max_len}");
        if len == 0 {
            return true;
        }
        self.used += len;
        self.datagrams += 1;
        let max_segments = self.max_segments;
        match self.transmits.last_mut() {
            Some(last) if !fragmentable && last.takes(destination, local, len, max_segments) => {
                last.len += len;
                last.count += 1;
            }
            _ => self.transmits.push(Entry { destination, local, start, len, segment: len, count: 1, fragmentable }),
        }
        true
    }

    pub(crate) fn transmits(&self) -> impl Iterator<Item = Transmit<'_>> {
        self.transmits.iter().map(|entry| Transmit {
            destination: entry.destination,
            local: entry.local,
            data: &self.slab[entry.start..entry.start + entry.len],
            segment: entry.segment,
            count: entry.count,
            fragmentable: entry.fragmentable,
        })
    }
}

impl Entry {
    fn takes(&self, destination: SocketAddr, local: LocalEnd, len: usize, max_segments: usize) -> bool {
        let is_last_full = self.len == self.segment * self.count;
        self.destination == destination
            && self.local == local
            && !self.fragmentable
            && is_last_full
            && len <= self.segment
            && self.count < max_segments
            && self.len + len <= MAX_TRANSMIT
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::udp::SocketId;

    const SEGMENTS: usize = 64;

    fn a() -> SocketAddr {
        "10.0.0.1:1".parse().unwrap()
    }

    fn b() -> SocketAddr {
        "10.0.0.2:1".parse().unwrap()
    }

    fn push(batch: &mut SendBatch, to: SocketAddr, len: usize) -> bool {
        batch.push_with(to, None, len, |space| space.len())
    }

    fn shape(batch: &SendBatch) -> Vec<(usize, usize, usize)> {
        batch.transmits().map(|t| (t.data.len(), t.segment, t.count)).collect()
    }

    #[test]
    fn equal_lengths_to_one_destination_merge_and_a_shorter_one_ends_the_train() {
        let mut batch = SendBatch::new(10_000, SEGMENTS);
        for len in [100, 100, 40, 40, 100] {
            assert!(push(&mut batch, a(), len));
        }
        assert_eq!(shape(&batch), [(240, 100, 3), (40, 40, 1), (100, 100, 1)]);
        assert_eq!(batch.len(), 5);
    }

    #[test]
    fn destinations_and_sources_do_not_mix() {
        let mut batch = SendBatch::new(10_000, SEGMENTS);
        push(&mut batch, a(), 10);
        push(&mut batch, b(), 10);
        assert!(batch.push_with(b(), Some([10, 0, 0, 9].into()), 10, |space| space.len()));
        assert!(batch.push_with(b(), (SocketId::new(1), None), 10, |space| space.len()));
        assert_eq!(batch.transmits().count(), 4);
    }

    #[test]
    fn what_may_be_fragmented_travels_alone() {
        let mut batch = SendBatch::new(10_000, SEGMENTS);
        push(&mut batch, a(), 100);
        assert!(batch.push_fragmentable(a(), None, 100, |space| space.len()));
        assert!(batch.push_fragmentable(a(), None, 100, |space| space.len()));
        push(&mut batch, a(), 100);
        assert_eq!(shape(&batch), [(100, 100, 1); 4]);
        let flags: Vec<_> = batch.transmits().map(|transmit| transmit.fragmentable).collect();
        assert_eq!(flags, [false, true, true, false]);
    }

    #[test]
    fn trains_stop_at_the_segment_and_byte_limits() {
        let mut batch = SendBatch::new(1 << 20, 4);
        for _ in 0..6 {
            push(&mut batch, a(), 10);
        }
        assert_eq!(shape(&batch), [(40, 10, 4), (20, 10, 2)]);

        let mut batch = SendBatch::new(1 << 20, SEGMENTS);
        for _ in 0..4 {
            push(&mut batch, a(), 30_000);
        }
        assert_eq!(shape(&batch), [(60_000, 30_000, 2), (60_000, 30_000, 2)]);
    }

    #[test]
    fn no_room_is_said_before_filling_and_nothing_filled_is_nothing_pushed() {
        let mut batch = SendBatch::new(100, SEGMENTS);
        assert!(batch.push_with(a(), None, 100, |_| 0));
        assert!(batch.is_empty());
        assert!(push(&mut batch, a(), 60));
        assert!(!batch.push_with(a(), None, 41, |_| panic!("no room to fill")));
        assert!(!batch.push_with(a(), None, usize::MAX, |_| panic!("no room to fill")));
        assert!(push(&mut batch, a(), 40));
        batch.clear();
        assert!(batch.is_empty());
        assert!(push(&mut batch, a(), 100));
    }

    #[test]
    fn what_fits_can_be_pushed() {
        let mut batch = SendBatch::new(1000, 8);
        assert!(batch.fits(10, 100) && !batch.fits(11, 100) && !batch.fits(1, 1001));
        assert!(push(&mut batch, a(), 100));
        assert!(batch.fits(9, 100) && !batch.fits(10, 100) && !batch.fits(usize::MAX, usize::MAX));
        assert!(!SendBatch::new(100_000, 1).fits(MAX_TRANSMITS + 1, 1));
    }

    #[test]
    fn the_list_of_transmits_is_bounded() {
        let mut batch = SendBatch::new(1 << 20, 1);
        for _ in 0..MAX_TRANSMITS {
            assert!(push(&mut batch, a(), 1));
        }
        assert!(!push(&mut batch, a(), 1));
    }
}
