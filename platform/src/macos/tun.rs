//! TUN through a utun control socket. Each packet follows 4 bytes with its address family, big endian.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::net::if_::if_nametoindex;
use nix::unistd;

use crate::batch::{PacketBatch, VnetHeader};
use crate::tun::{PacketDevice, TunError, TunOptions, WriteReport, is_valid_name};

/// The address family before each packet, in bytes.
const FAMILY_LEN: usize = 4;

/// A TUN interface. It exists as long as this value or one of its queues does.
pub struct Tun {
    fd: Arc<OwnedFd>,
    name: String,
    index: u32,
}

impl Tun {
    /// Creates the interface. It is down and has no address; see [`crate::network::Network::configure`].
    ///
    /// # Errors
    /// See [`TunError`].
    pub fn open(options: &TunOptions) -> Result<Self, TunError> {
        let mut configuration = tun::configure();
        if let Some(name) = &options.name {
            let number = name.strip_prefix("utun");
            // The driver counts units from one in 32 bits, so the last number has no unit.
            let is_number =
                number.and_then(|digits| digits.parse::<u32>().ok()).is_some_and(|number| number < u32::MAX);
            let is_canonical = number.is_some_and(|digits| {
                digits.bytes().all(|byte| byte.is_ascii_digit()) && (digits == "0" || !digits.starts_with('0'))
            });
            if !is_valid_name(name) || !is_number || !is_canonical {
                return Err(TunError::InvalidName(name.clone()));
            }
            if if_nametoindex(name.as_str()).is_ok() {
                return Err(TunError::NameTaken(name.clone()));
            }
            configuration.tun_name(name);
        }
        configuration.mtu(options.mtu).platform_config(|platform| {
            platform.enable_routing(false);
        });
        let device = tun::create(&configuration).map_err(|error| classify(error, options))?;
        device.set_nonblock().map_err(TunError::Other)?;
        let name = tun::AbstractDevice::tun_name(&device).map_err(|error| TunError::Other(error.into()))?;
        // SAFETY: `into_raw_fd` gives up the only owner of an open descriptor; nobody else closes it.
        let fd = unsafe { OwnedFd::from_raw_fd(device.into_raw_fd()) };
        fcntl(&fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).map_err(|errno| TunError::Other(errno.into()))?;
        let index = if_nametoindex(name.as_str()).map_err(|errno| TunError::Other(errno.into()))?;
        Ok(Self { fd: Arc::new(fd), name, index })
    }

    /// The interface's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The interface's index.
    #[must_use]
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Whether packets with [`VnetHeader::GSO_UDP_L4`] may be written and will be read: never here.
    #[must_use]
    pub fn udp_offload(&self) -> bool {
        false
    }

    /// Whether packets of the TCP segmentation types may be written and will be read: never here.
    #[must_use]
    pub fn tcp_offload(&self) -> bool {
        false
    }

    /// How many queues there are: 1.
    #[must_use]
    pub fn queue_count(&self) -> usize {
        1
    }

    /// The queue. Every call gives the same one: packets are read by whoever comes first.
    #[must_use]
    pub fn queue(&self, _number: usize) -> TunQueue {
        TunQueue { fd: Arc::clone(&self.fd) }
    }
}

/// One queue of a [`Tun`].
pub struct TunQueue {
    fd: Arc<OwnedFd>,
}

impl PacketDevice for TunQueue {
    fn read_batch(&mut self, batch: &mut PacketBatch) -> io::Result<usize> {
        if batch.is_empty() && !batch.has_room_for_any_packet() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut count = 0;
        while batch.has_room_for_any_packet() {
            let space = batch.free_space_with_header(FAMILY_LEN);
            match unistd::read(&*self.fd, space) {
                Ok(len) if len > FAMILY_LEN => {
                    batch.commit(VnetHeader::default(), len - FAMILY_LEN);
                    count += 1;
                }
                // A control socket that is closed by the kernel reads as empty for ever.
                Ok(0) if count == 0 => return Err(io::ErrorKind::NotConnected.into()),
                Ok(0) => break,
                Ok(_) | Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => break,
                // What was read so far must not be lost; the error comes back on the next call.
                Err(_) if count > 0 => break,
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(count)
    }

    fn write_batch(&mut self, batch: &mut PacketBatch) -> io::Result<WriteReport> {
        let mut report = WriteReport::default();
        for index in 0..batch.len() {
            let Some((header, bytes)) = batch.packet_with_header(index, FAMILY_LEN) else {
                break;
            };
            let family = match bytes.get(FAMILY_LEN).map(|byte| byte >> 4) {
                // The driver segments nothing and completes no checksum.
                _ if header != VnetHeader::default() => None,
                Some(4) => Some(libc::AF_INET),
                Some(6) => Some(libc::AF_INET6),
                _ => None,
            };
            let Some(family) = family else {
                report.dropped += 1;
                continue;
            };
            if let Some(space) = bytes.first_chunk_mut::<FAMILY_LEN>() {
                *space = family.to_be_bytes();
            }
            match write_retrying(self.fd.as_fd(), bytes) {
                Ok(()) => report.written += 1,
                Err(errno @ (Errno::EBADF | Errno::ENODEV | Errno::ENXIO | Errno::ENOTCONN)) => {
                    return Err(errno.into());
                }
                Err(_) => report.dropped += 1,
            }
        }
        Ok(report)
    }

    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn write_retrying(fd: BorrowedFd<'_>, bytes: &[u8]) -> Result<(), Errno> {
    loop {
        match unistd::write(fd, bytes) {
            Ok(_) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

fn classify(error: tun::Error, options: &TunOptions) -> TunError {
    let error = io::Error::from(error);
    match (error.raw_os_error().map(Errno::from_raw), &options.name) {
        (Some(Errno::EBUSY), Some(name)) => TunError::NameTaken(name.clone()),
        (Some(Errno::ENOENT | Errno::ENODEV | Errno::ENXIO), _) => TunError::NoDevice,
        (Some(Errno::EPERM | Errno::EACCES), _) => TunError::Permission,
        _ => TunError::Other(error),
    }
}
