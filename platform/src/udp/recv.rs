//! Where datagrams arrive.

use std::io::IoSliceMut;
use std::net::{IpAddr, SocketAddr};

use quinn_udp::RecvMeta;

use super::SocketId;

/// Buffers of a batch. `quinn_udp::BATCH_SIZE` on Linux; more than that on macOS, where it is 1.
pub(crate) const SLOTS: usize = 32;

/// Bytes of a buffer: the longest train the kernel merges (`UDP_GRO`) and the longest datagram there is.
pub(crate) const SLOT_BYTES: usize = 65_536;

/// Received datagrams. Allocated once (64 KiB of address space for each train; pages nothing arrives in stay untouched).
pub struct RecvBatch {
    slab: Vec<u8>,
    slots: usize,
    metas: [RecvMeta; SLOTS],
    sockets: [SocketId; SLOTS],
    len: usize,
}

/// One datagram.
#[derive(Debug)]
pub struct Datagram<'a> {
    /// Who sent it. Never an IPv4-mapped IPv6 address.
    pub source: SocketAddr,
    /// The local address it was sent to.
    pub destination_ip: Option<IpAddr>,
    /// The socket it came to.
    pub socket: SocketId,
    /// Its payload.
    pub data: &'a mut [u8],
}

/// Datagrams of one sender that the kernel merged: all `stride` bytes long, only the last may be shorter.
#[derive(Debug)]
pub struct Train<'a> {
    /// Who sent it. Never an IPv4-mapped IPv6 address.
    pub source: SocketAddr,
    /// The local address it was sent to.
    pub destination_ip: Option<IpAddr>,
    /// The socket it came to.
    pub socket: SocketId,
    /// Bytes of each datagram but the last. At least 1.
    pub stride: usize,
    /// The datagrams' payloads back to back. Empty for an empty datagram.
    pub data: &'a mut [u8],
}

impl Default for RecvBatch {
    fn default() -> Self {
        Self::new()
    }
}

impl RecvBatch {
    /// An empty batch, of as many trains as one system call brings.
    #[must_use]
    pub fn new() -> Self {
        Self::of_trains(SLOTS)
    }

    /// An empty batch of at most `trains` trains; more than 32 count as 32.
    #[must_use]
    pub fn of_trains(trains: usize) -> Self {
        let slots = trains.min(SLOTS);
        Self {
            slab: vec![0; slots * SLOT_BYTES],
            slots,
            metas: [RecvMeta::default(); SLOTS],
            sockets: [SocketId::MAIN; SLOTS],
            len: 0,
        }
    }

    /// Forgets everything received.
    pub fn clear(&mut self) {
        self.len = 0;
    }

    /// How many trains it holds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether every buffer is taken.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.len >= self.slots
    }

    /// The trains, in order of arrival per socket.
    pub fn trains(&mut self) -> impl Iterator<Item = Train<'_>> {
        let slots = self.slab.chunks_exact_mut(SLOT_BYTES).zip(&self.metas).zip(&self.sockets);
        slots.take(self.len).map(|((slot, meta), socket)| Train {
            source: canonical(meta.addr),
            destination_ip: meta.dst_ip.map(|ip| ip.to_canonical()),
            socket: *socket,
            stride: meta.stride.max(1),
            data: &mut slot[..meta.len.min(SLOT_BYTES)],
        })
    }

    /// The datagrams one by one. Empty ones are left out: nothing is told apart by an empty datagram.
    pub fn datagrams(&mut self) -> impl Iterator<Item = Datagram<'_>> {
        self.trains().flat_map(|train| {
            let Train { source, destination_ip, socket, stride, data } = train;
            data.chunks_mut(stride).map(move |data| Datagram { source, destination_ip, socket, data })
        })
    }

    /// Lets `receive` fill the free buffers from this socket; it returns how many it filled.
    pub(crate) fn fill<E>(
        &mut self,
        socket: SocketId,
        receive: impl FnOnce(&mut [IoSliceMut<'_>], &mut [RecvMeta]) -> Result<usize, E>,
    ) -> Result<usize, E> {
        let mut slots = self.slab.chunks_exact_mut(SLOT_BYTES).skip(self.len);
        let mut buffers: [IoSliceMut<'_>; SLOTS] =
            std::array::from_fn(|_| IoSliceMut::new(slots.next().unwrap_or_default()));
        let free = self.slots - self.len;
        let filled = receive(&mut buffers[..free], &mut self.metas[self.len..])?.min(free);
        self.sockets[self.len..self.len + filled].fill(socket);
        self.len += filled;
        Ok(filled)
    }

    /// Appends a train made elsewhere, as it came to this socket and address; whether there was room.
    pub(crate) fn push_copy(
        &mut self,
        source: SocketAddr,
        (socket, destination_ip): (SocketId, IpAddr),
        stride: usize,
        data: &[u8],
    ) -> bool {
        let Some(slot) = self.slab.chunks_exact_mut(SLOT_BYTES).nth(self.len) else {
            return false;
        };
        let (Some(space), Some(meta), Some(of)) =
            (slot.get_mut(..data.len()), self.metas.get_mut(self.len), self.sockets.get_mut(self.len))
        else {
            return false;
        };
        space.copy_from_slice(data);
        *meta = RecvMeta::default();
        meta.addr = source;
        meta.len = data.len();
        meta.stride = stride;
        meta.dst_ip = Some(destination_ip);
        *of = socket;
        self.len += 1;
        true
    }
}

fn canonical(address: SocketAddr) -> SocketAddr {
    match address {
        // Only a mapped address changes: building a new one loses the scope of a link-local address.
        SocketAddr::V6(v6) => match v6.ip().to_ipv4_mapped() {
            Some(ip) => SocketAddr::from((ip, v6.port())),
            None => address,
        },
        SocketAddr::V4(_) => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn local() -> (SocketId, IpAddr) {
        (SocketId::MAIN, IpAddr::from([10, 0, 0, 1]))
    }

    #[test]
    fn a_train_is_cut_at_its_stride() {
        let source: SocketAddr = "10.0.0.2:7".parse().unwrap();
        let mut batch = RecvBatch::new();
        assert!(batch.push_copy(source, local(), 4, b"aaaabbbbcc"));
        assert!(batch.push_copy(source, local(), 3, b"ddd"));
        let pieces: Vec<_> = batch.datagrams().map(|d| d.data.to_vec()).collect();
        assert_eq!(pieces, [&b"aaaa"[..], b"bbbb", b"cc", b"ddd"]);
        assert_eq!(batch.trains().count(), 2);
        batch.clear();
        assert_eq!(batch.datagrams().count(), 0);
    }

    #[test]
    fn an_empty_datagram_is_a_train_without_datagrams() {
        let mut batch = RecvBatch::new();
        assert!(batch.push_copy("10.0.0.2:7".parse().unwrap(), local(), 0, b""));
        assert_eq!(batch.trains().count(), 1);
        assert_eq!(batch.datagrams().count(), 0);
    }

    #[test]
    fn mapped_addresses_never_appear_and_scopes_stay() {
        let mut batch = RecvBatch::new();
        let scoped = std::net::SocketAddrV6::new("fe80::1".parse().unwrap(), 9, 0, 3);
        batch.push_copy("[::ffff:10.0.0.2]:7".parse().unwrap(), local(), 1, b"x");
        batch.push_copy(scoped.into(), local(), 1, b"x");
        let sources: Vec<_> = batch.trains().map(|train| train.source).collect();
        assert_eq!(sources, ["10.0.0.2:7".parse().unwrap(), SocketAddr::from(scoped)]);
    }

    #[test]
    fn a_full_batch_takes_no_more() {
        let mut batch = RecvBatch::new();
        let source: SocketAddr = "10.0.0.2:7".parse().unwrap();
        for _ in 0..SLOTS {
            assert!(batch.push_copy(source, local(), 1, b"x"));
        }
        assert!(!batch.push_copy(source, local(), 1, b"x"));
        let offered = batch.fill(SocketId::MAIN, |buffers, _| Ok::<_, ()>(buffers.len()));
        assert_eq!(offered, Ok(0));
    }
}
