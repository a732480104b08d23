use std::collections::BTreeMap;
use std::io;

use crate::udp::{MAX_EXTRA_SOCKETS, SocketId, next_free};

/// First port of extra sockets: that of the dynamic range (RFC 6335, section 6).
const FIRST_PORT: u16 = 49_152;

/// The extra sockets of a fake: each is a port.
#[derive(Default)]
pub(super) struct Extra {
    ports: BTreeMap<SocketId, u16>,
    last: SocketId,
}

impl Extra {
    /// One more, on a port that this fake has not had for as long as possible, and that is not `main`.
    pub(super) fn open(&mut self, main: u16) -> io::Result<(SocketId, u16)> {
        if self.ports.len() >= MAX_EXTRA_SOCKETS {
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        let port = |id: SocketId| FIRST_PORT | id.number();
        let is_taken = |id| port(id) == main || self.ports.values().any(|taken| *taken == port(id));
        let id = next_free(self.last, is_taken);
        self.last = id;
        self.ports.insert(id, port(id));
        Ok((id, port(id)))
    }

    /// Returns the port it had.
    pub(super) fn close(&mut self, id: SocketId) -> Option<u16> {
        self.ports.remove(&id)
    }

    /// The port of a socket; `main` for the main one.
    pub(super) fn port(&self, id: SocketId, main: u16) -> io::Result<u16> {
        if id.is_main() { Ok(main) } else { self.ports.get(&id).copied().ok_or(io::ErrorKind::NotConnected.into()) }
    }

    /// The socket at a port.
    pub(super) fn at(&self, port: u16, main: u16) -> Option<SocketId> {
        if port == main {
            return Some(SocketId::MAIN);
        }
        self.ports.iter().find(|(_, taken)| **taken == port).map(|(id, _)| *id)
    }

    pub(super) fn ports(&self) -> impl Iterator<Item = u16> {
        self.ports.values().copied()
    }
}
