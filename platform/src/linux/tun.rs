//! TUN through `/dev/net/tun`, with `IFF_VNET_HDR` and segmentation offload.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::net::if_::if_nametoindex;
use nix::sys::stat::Mode;
use nix::unistd::{self, geteuid};

use crate::batch::{PacketBatch, VnetHeader};
use crate::tun::{MAX_QUEUES, PacketDevice, TunError, TunOptions, WriteReport, is_valid_name};

const DEVICE: &str = "/dev/net/tun";
/// The kernel replaces `%d` by the first number that makes the name free.
const NAME_PATTERN: &str = "agentnet%d";

/// `TUN_F_*` of linux/if_tun.h: what the reader of the descriptor can take.
mod offload {
    pub(super) const CSUM: u32 = 0x01;
    pub(super) const TSO4: u32 = 0x02;
    pub(super) const TSO6: u32 = 0x04;
    pub(super) const TSO_ECN: u32 = 0x08;
    pub(super) const USO4: u32 = 0x20;
    pub(super) const USO6: u32 = 0x40;
    pub(super) const TCP: u32 = CSUM | TSO4 | TSO6 | TSO_ECN;
    pub(super) const TCP_AND_UDP: u32 = TCP | USO4 | USO6;
}

// TUNSETOFFLOAD of linux/if_tun.h: _IOW('T', 208, unsigned int), the flags passed by value.
nix::ioctl_write_int!(tun_set_offload, b'T', 208);
// TUNSETIFF of linux/if_tun.h: _IOW('T', 202, int), with a pointer to a `struct ifreq`.
nix::ioctl_write_ptr_bad!(tun_set_interface, 0x4004_54ca, libc::ifreq);
// TUNSETPERSIST of linux/if_tun.h: _IOW('T', 203, int), a flag passed by value.
nix::ioctl_write_int!(tun_set_persist, b'T', 203);
// TUNSETOWNER of linux/if_tun.h: _IOW('T', 204, int), the user passed by value.
nix::ioctl_write_int!(tun_set_owner, b'T', 204);
// TUNSETVNETHDRSZ of linux/if_tun.h: _IOW('T', 216, int), with a pointer to the length.
nix::ioctl_write_ptr!(tun_set_header_len, b'T', 216, libc::c_int);
// TUNSETSTEERINGEBPF of linux/if_tun.h: _IOR('T', 224, int), with a pointer to a program's descriptor, -1 for none.
nix::ioctl_read!(tun_set_steering, b'T', 224, libc::c_int);
// TUNSETFILTEREBPF of linux/if_tun.h: _IOR('T', 225, int), likewise.
nix::ioctl_read!(tun_set_filter, b'T', 225, libc::c_int);

/// A TUN interface. It exists as long as this value or one of its queues does: the device is not persistent.
pub struct Tun {
    queues: Vec<Arc<OwnedFd>>,
    name: String,
    index: u32,
    udp_offload: bool,
}

impl Tun {
    /// Creates the interface. It is down and has no address; see [`crate::network::Network::configure`].
    ///
    /// # Errors
    /// See [`TunError`].
    pub fn open(options: &TunOptions) -> Result<Self, TunError> {
        if let Some(name) = &options.name {
            if !is_valid_name(name) {
                return Err(TunError::InvalidName(name.clone()));
            }
            // TUNSETIFF would attach to a persistent device that belongs to someone else.
            if if_nametoindex(name.as_str()).is_ok() {
                return Err(TunError::NameTaken(name.clone()));
            }
        }
        let (queues, name) = match options.queues.clamp(1, MAX_QUEUES) {
            1 => open_single(options)?,
            count => open_queues(options, count)?,
        };
        let other = |errno: Errno| TunError::Other(errno.into());
        let index = if_nametoindex(name.as_str()).map_err(other)?;
        let mut udp_offload = true;
        for fd in &queues {
            udp_offload &= enable_offload(fd).map_err(other)?;
        }
        Ok(Self { queues: queues.into_iter().map(Arc::new).collect(), name, index, udp_offload })
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

    /// Whether packets with [`VnetHeader::GSO_UDP_L4`] may be written and will be read (Linux 6.2 and later).
    #[must_use]
    pub fn udp_offload(&self) -> bool {
        self.udp_offload
    }

    /// Whether packets of the TCP segmentation types may be written and will be read.
    #[must_use]
    pub fn tcp_offload(&self) -> bool {
        true
    }

    /// How many queues there are, 1 at least.
    #[must_use]
    pub fn queue_count(&self) -> usize {
        self.queues.len()
    }

    /// The queue of this number, modulo how many there are. Every call gives the same one: packets are read by whoever
    /// comes first.
    #[must_use]
    pub fn queue(&self, number: usize) -> TunQueue {
        TunQueue { fd: Arc::clone(&self.queues[number % self.queues.len()]) }
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
            let space = batch.free_space_with_header(VnetHeader::LEN);
            match unistd::read(&*self.fd, space) {
                Ok(len) => {
                    let Some(header) = VnetHeader::parse(&space[..len]) else {
                        continue;
                    };
                    batch.commit(header, len - VnetHeader::LEN);
                    count += 1;
                }
                Err(Errno::EINTR) => {}
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
            let Some((header, bytes)) = batch.packet_with_header(index, VnetHeader::LEN) else {
                break;
            };
            if let Some(space) = bytes.first_chunk_mut() {
                header.emit(space);
            }
            match write_retrying(self.fd.as_fd(), bytes) {
                Ok(()) => report.written += 1,
                // EBADFD: the interface was deleted.
                Err(errno @ (Errno::EBADFD | Errno::EBADF | Errno::ENODEV)) => {
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

fn open_single(options: &TunOptions) -> Result<(Vec<OwnedFd>, String), TunError> {
    let mut configuration = tun::configure();
    configuration.tun_name(options.name.as_deref().unwrap_or(NAME_PATTERN)).mtu(options.mtu).platform_config(
        |platform| {
            platform.vnet_hdr(true);
        },
    );
    let device = tun::create(&configuration).map_err(|error| classify(error.into(), options))?;
    device.set_nonblock().map_err(TunError::Other)?;
    let name = tun::AbstractDevice::tun_name(&device).map_err(|error| TunError::Other(error.into()))?;
    // SAFETY: `into_raw_fd` gives up the only owner of an open descriptor; nobody else closes it.
    let fd = unsafe { OwnedFd::from_raw_fd(device.into_raw_fd()) };
    Ok((vec![fd], name))
}

/// Queues that the kernel gives one device, at most, those included that are put aside (`MAX_TAP_QUEUES`).
const MOST_KERNEL_QUEUES: usize = 256;

/// A device with several queues, which the library does not make. The MTU is left to whoever configures the interface.
fn open_queues(options: &TunOptions, count: usize) -> Result<(Vec<OwnedFd>, String), TunError> {
    let refused = |errno: Errno| classify(errno.into(), options);
    let queue = |name: &str, exclusive| {
        let fd = open(DEVICE, OFlag::O_RDWR | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK, Mode::empty())?;
        attach(&fd, name, exclusive).map(|name| (fd, name))
    };
    let pattern = options.name.as_deref().unwrap_or(NAME_PATTERN);
    let (first, name) = queue(pattern, libc::IFF_TUN_EXCL).map_err(refused)?;
    // A device that belongs to nobody takes queues of everybody who may open /dev/net/tun.
    own(&first).map_err(refused)?;
    // Somebody may have taken a queue before it had an owner, and have it back later: such ones are counted nowhere, but
    // they leave less room for others.
    let mut queues = vec![first];
    while queues.len() <= MOST_KERNEL_QUEUES {
        match queue(&name, 0) {
            Ok((fd, _)) => queues.push(fd),
            Err(Errno::E2BIG) => break,
            Err(errno) => return Err(refused(errno)),
        }
    }
    if queues.len() != MOST_KERNEL_QUEUES {
        return Err(TunError::SharedQueues);
    }
    // Whoever was there meanwhile could set these, too. Now nobody is.
    if let Some(first) = queues.first() {
        own(first).and_then(|()| reset(first)).map_err(refused)?;
    }
    queues.truncate(count);
    Ok((queues, name))
}

/// Gives the device to this process's user: nobody else may have a queue of it.
fn own(fd: &OwnedFd) -> Result<(), Errno> {
    // SAFETY: TUNSETOWNER takes its argument by value and touches no memory of ours.
    unsafe { tun_set_owner(fd.as_raw_fd(), geteuid().as_raw().into()) }.map(drop)
}

/// The device as the kernel makes it: gone with its last queue, headers of the usual length, no programs.
fn reset(fd: &OwnedFd) -> Result<(), Errno> {
    let (len, mut none) = (VnetHeader::LEN as libc::c_int, -1);
    // SAFETY: TUNSETPERSIST takes its argument by value; the others read an integer that outlives the call.
    unsafe {
        tun_set_persist(fd.as_raw_fd(), 0)?;
        tun_set_header_len(fd.as_raw_fd(), &raw const len)?;
        tun_set_steering(fd.as_raw_fd(), &raw mut none)?;
        tun_set_filter(fd.as_raw_fd(), &raw mut none)?;
    }
    Ok(())
}

/// Makes `fd` a queue of the device of this name; with `IFF_TUN_EXCL` it must not be there, and is made. Returns the name.
fn attach(fd: &OwnedFd, name: &str, exclusive: libc::c_int) -> Result<String, Errno> {
    let flags = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE | exclusive;
    let mut request = libc::ifreq {
        ifr_name: [0; libc::IFNAMSIZ],
        ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: flags as libc::c_short },
    };
    // The last byte stays zero.
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes().take(libc::IFNAMSIZ - 1)) {
        *to = from as libc::c_char;
    }
    // SAFETY: the request is a whole `ifreq` that outlives the call; the kernel writes the name into it. The pointer is
    // derived from a mutable reference.
    unsafe { tun_set_interface(fd.as_raw_fd(), &raw mut request)? };
    Ok(request.ifr_name.iter().take_while(|byte| **byte != 0).map(|byte| char::from(*byte as u8)).collect())
}

/// Turns on the most the kernel knows; returns whether that includes UDP.
fn enable_offload(fd: &OwnedFd) -> Result<bool, Errno> {
    let set = |flags: u32| {
        // SAFETY: TUNSETOFFLOAD takes its argument by value and touches no memory of ours.
        unsafe { tun_set_offload(fd.as_raw_fd(), libc::c_ulong::from(flags)) }
    };
    match set(offload::TCP_AND_UDP) {
        Ok(_) => Ok(true),
        // Kernels before 6.2 refuse the UDP flags.
        Err(Errno::EINVAL) => set(offload::TCP).map(|_| false),
        Err(errno) => Err(errno),
    }
}

fn classify(error: io::Error, options: &TunOptions) -> TunError {
    let errno = error.raw_os_error().map(Errno::from_raw);
    match (errno, &options.name) {
        (Some(Errno::EBUSY | Errno::EEXIST), Some(name)) => TunError::NameTaken(name.clone()),
        // An interface of another kind appeared between the check and the creation.
        (Some(Errno::EINVAL), Some(name)) if if_nametoindex(name.as_str()).is_ok() => TunError::NameTaken(name.clone()),
        (Some(Errno::ENOENT | Errno::ENODEV | Errno::ENXIO), _) => TunError::NoDevice,
        (Some(Errno::EPERM | Errno::EACCES), _) => TunError::Permission,
        _ => TunError::Other(error),
    }
}
