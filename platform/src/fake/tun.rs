use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex};

use super::{QUEUE, lock};
use crate::batch::{PacketBatch, VnetHeader};
use crate::tun::{PacketDevice, WriteReport};
use crate::wait::Waker;

/// A packet as a device sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FakePacket {
    /// Its offload header.
    pub header: VnetHeader,
    /// The IP packet.
    pub bytes: Vec<u8>,
}

/// A device whose host is the [`FakeTunHandle`] made with it.
pub struct FakeTun {
    shared: Arc<Shared>,
}

/// The host's side of a [`FakeTun`]. Clones are the same host.
#[derive(Clone)]
pub struct FakeTunHandle {
    shared: Arc<Shared>,
}

struct Shared {
    queues: Mutex<Queues>,
    readable: Waker,
}

#[derive(Default)]
struct Queues {
    to_read: VecDeque<FakePacket>,
    written: Vec<FakePacket>,
}

/// A device and its host.
///
/// # Errors
/// Too many open files.
pub fn tun_pair() -> io::Result<(FakeTun, FakeTunHandle)> {
    let shared = Arc::new(Shared { queues: Mutex::default(), readable: Waker::new()? });
    let handle = FakeTunHandle { shared: Arc::clone(&shared) };
    Ok((FakeTun { shared }, handle))
}

impl FakeTunHandle {
    /// The host sends a packet into the device. False when the queue is full and the packet lost.
    pub fn inject(&self, header: VnetHeader, bytes: &[u8]) -> bool {
        let mut queues = lock(&self.shared.queues);
        if queues.to_read.len() >= QUEUE {
            return false;
        }
        queues.to_read.push_back(FakePacket { header, bytes: bytes.to_vec() });
        self.shared.readable.wake();
        true
    }

    /// The packets the device handed to the host since the last call.
    #[must_use]
    pub fn take_written(&self) -> Vec<FakePacket> {
        std::mem::take(&mut lock(&self.shared.queues).written)
    }
}

impl PacketDevice for FakeTun {
    fn read_batch(&mut self, batch: &mut PacketBatch) -> io::Result<usize> {
        if batch.is_empty() && !batch.has_room_for_any_packet() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut queues = lock(&self.shared.queues);
        let mut count = 0;
        while batch.has_room_for_any_packet() {
            let Some(packet) = queues.to_read.pop_front() else {
                break;
            };
            let space = batch.free_space();
            // A kernel cuts what does not fit, too.
            let len = packet.bytes.len().min(space.len());
            space[..len].copy_from_slice(&packet.bytes[..len]);
            batch.commit(packet.header, len);
            count += 1;
        }
        if queues.to_read.is_empty() {
            self.shared.readable.drain();
        }
        Ok(count)
    }

    fn write_batch(&mut self, batch: &mut PacketBatch) -> io::Result<WriteReport> {
        let mut queues = lock(&self.shared.queues);
        let mut report = WriteReport::default();
        for (header, bytes) in batch.iter() {
            let is_ip = matches!(bytes.first().map(|byte| byte >> 4), Some(4 | 6));
            if !is_ip || queues.written.len() >= QUEUE {
                report.dropped += 1;
                continue;
            }
            queues.written.push(FakePacket { header, bytes: bytes.to_vec() });
            report.written += 1;
        }
        Ok(report)
    }

    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.readable.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::batch::{HEADROOM, MAX_PACKET};
    use crate::wait::{Ready, wait_readable};

    fn poll(tun: &FakeTun, waker: &Waker) -> Ready {
        wait_readable(&[tun.as_fd()], waker, Some(Duration::ZERO)).unwrap()
    }

    #[test]
    fn injected_packets_are_readable_until_read() {
        let (mut tun, host) = tun_pair().unwrap();
        let waker = Waker::new().unwrap();
        let mut batch = PacketBatch::new(2 * MAX_PACKET, 8);
        assert!(poll(&tun, &waker).is_timeout());
        let header = VnetHeader { gso_size: 9, ..VnetHeader::default() };
        assert!(host.inject(header, b"E-one"));
        assert!(host.inject(VnetHeader::default(), b"E-two"));
        assert!(poll(&tun, &waker).is_readable(0));
        assert_eq!(tun.read_batch(&mut batch).unwrap(), 2);
        assert_eq!(batch.get(0), Some((header, &b"E-one"[..])));
        assert!(poll(&tun, &waker).is_timeout());
        assert_eq!(tun.read_batch(&mut batch).unwrap(), 0);
    }

    #[test]
    fn what_a_small_batch_leaves_stays_readable() {
        let (mut tun, host) = tun_pair().unwrap();
        let waker = Waker::new().unwrap();
        let mut batch = PacketBatch::new(2 * MAX_PACKET, 1);
        host.inject(VnetHeader::default(), b"E");
        host.inject(VnetHeader::default(), b"E");
        assert_eq!(tun.read_batch(&mut batch).unwrap(), 1);
        assert!(poll(&tun, &waker).is_readable(0));

        let mut too_small = PacketBatch::new(HEADROOM + MAX_PACKET - 1, 1);
        let error = tun.read_batch(&mut too_small).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn written_packets_reach_the_host_and_what_is_not_ip_is_dropped() {
        let (mut tun, host) = tun_pair().unwrap();
        let mut batch = PacketBatch::new(1_024, 8);
        for bytes in [&b"E4"[..], b"??", b"`6"] {
            batch.free_space()[..2].copy_from_slice(bytes);
            batch.commit(VnetHeader::default(), 2);
        }
        let report = tun.write_batch(&mut batch).unwrap();
        assert_eq!((report.written, report.dropped), (2, 1));
        let written: Vec<_> = host.take_written().into_iter().map(|p| p.bytes).collect();
        assert_eq!(written, [b"E4".to_vec(), b"`6".to_vec()]);
        assert!(host.take_written().is_empty());
    }
}
