//! Stand-ins without a kernel, to drive a data plane in tests: a TUN device, a datagram network, and a socket whose
//! network the test plays itself.

mod extra;
mod pipe;
mod tun;
mod udp;
#[cfg(feature = "virtual-wall-clock")]
mod wall_clock;

pub use pipe::{PipeHandle, PipeSocket, SentDatagram, pipe_socket};
pub use tun::{FakePacket, FakeTun, FakeTunHandle, tun_pair};
pub use udp::{FakeNet, FakeSocket};
#[cfg(feature = "virtual-wall-clock")]
pub use wall_clock::set_wall_clock;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Packets and datagrams that may wait in one place; what comes then is lost, as in a kernel.
pub const QUEUE: usize = 4_096;

/// A test that panicked elsewhere has its own report; the data is plain and still good.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
