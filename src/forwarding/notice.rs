//! What packet threads tell the control plane.

use std::net::SocketAddr;

use super::PeerPath;
use crate::identity::AgentId;

/// Something happened to a peer with a tunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// A packet for the peer found no session, or no path. It has a place in the peer's queue.
    NeedSession {
        /// The peer.
        peer: AgentId,
        /// The IP packet.
        packet: Vec<u8>,
    },
    /// First packet of a period, either way.
    Active {
        /// The peer.
        peer: AgentId,
    },
    /// The session's own timers began a handshake.
    HandshakeBegun {
        /// The peer.
        peer: AgentId,
    },
    /// A session in which this agent responded can be used. Said again until it is taken.
    SessionConfirmed {
        /// The peer.
        peer: AgentId,
    },
    /// An answer to a handshake this agent began: a response or a cookie reply.
    HandshakeAnswer(StrangerDatagram),
    /// An authenticated packet came another way than the primary path.
    HeardElsewhere {
        /// The peer.
        peer: AgentId,
        /// How it came.
        path: PeerPath,
        /// It was data: the peer has left the primary path. Probes go everywhere.
        data: bool,
    },
    /// This host does not take datagrams this long for this transport address.
    TooBig {
        /// Where they were to go.
        endpoint: SocketAddr,
        /// Length of the shortest one, bytes of UDP payload.
        len: usize,
    },
    /// An in-tunnel control message, as a whole IPv6 packet.
    Control {
        /// The peer it is authenticated to come from.
        peer: AgentId,
        /// The packet.
        packet: Vec<u8>,
        /// It came in the newest session with that peer.
        newest: bool,
        /// The path it came by.
        path: PeerPath,
    },
}

/// A datagram that no session has authenticated: a handshake message or an introduction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StrangerDatagram {
    /// How it came.
    pub path: PeerPath,
    /// The datagram.
    pub data: Vec<u8>,
}

/// The way from a packet thread to the control plane. Must not block. What strangers send must not take the place of
/// what peers cause: two bounded queues.
pub trait NoticeSink {
    /// Takes a notice; false when the queue is full.
    fn notice(&mut self, notice: Notice) -> bool;
    /// Takes a datagram; false when the queue is full.
    fn stranger(&mut self, datagram: StrangerDatagram) -> bool;
}
