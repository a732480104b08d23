//! The way datagrams take between this host and a peer.

use std::net::{IpAddr, SocketAddr};

use agentnet_platform::udp::LocalEnd;

use crate::path::SocketId;
use crate::wire::relay::{RELAY_PREFIX_LEN, RelayChannel};

/// The way a datagram takes, or took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerPath {
    /// The transport address at its other end: the peer's, or that of a relay.
    pub endpoint: SocketAddr,
    /// The local address the other end knows this agent by, where one was seen.
    pub local_ip: Option<IpAddr>,
    /// The local socket.
    pub socket: SocketId,
    /// The channel, where a relay is in between.
    pub relay: Option<RelayChannel>,
}

impl PeerPath {
    /// Straight to a transport address, from the main socket and whichever local address the host chooses.
    #[must_use]
    pub fn direct(endpoint: SocketAddr) -> Self {
        Self { endpoint, local_ip: None, socket: SocketId::MAIN, relay: None }
    }

    /// Whether datagrams on the other path take this way too. Which local address they use does not matter.
    #[must_use]
    pub fn is_same_way(&self, other: &Self) -> bool {
        (self.endpoint, self.socket, self.relay) == (other.endpoint, other.socket, other.relay)
    }

    /// This host's end of it.
    #[must_use]
    pub fn local(&self) -> LocalEnd {
        LocalEnd { socket: self.socket, ip: self.local_ip }
    }

    /// Whether routers can fragment datagrams on this path.
    #[must_use]
    pub fn is_fragmentable(&self) -> bool {
        self.relay.is_none() && self.endpoint.is_ipv4()
    }

    /// Bytes that come before each datagram on this path.
    #[must_use]
    pub fn prefix_len(&self) -> usize {
        if self.relay.is_some() { RELAY_PREFIX_LEN } else { 0 }
    }

    /// Lets `fill` write a datagram into `out`, behind what this path needs before it. Returns the length of both, or 0
    /// when `fill` wrote nothing.
    pub fn frame(&self, out: &mut [u8], fill: impl FnOnce(&mut [u8]) -> usize) -> usize {
        let Some(channel) = self.relay else { return fill(out) };
        let Some((prefix, body)) = out.split_first_chunk_mut::<RELAY_PREFIX_LEN>() else { return 0 };
        match fill(body) {
            0 => 0,
            len => {
                channel.emit(prefix);
                RELAY_PREFIX_LEN + len
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::path::SocketId;
    use crate::wire::relay::RelayFrame;

    fn relayed(channel: u64) -> PeerPath {
        let endpoint = "192.0.2.1:1".parse().unwrap();
        PeerPath { relay: Some(RelayChannel::new(channel)), ..PeerPath::direct(endpoint) }
    }

    #[test]
    fn a_relay_needs_its_prefix() {
        let mut out = [7; 64];
        let fill = |out: &mut [u8]| {
            out[..32].fill(9);
            32
        };
        assert_eq!(relayed(5).frame(&mut out, fill), 48);
        let frame = RelayFrame::parse(&out[..48]).unwrap();
        assert_eq!((frame.channel, frame.payload), (RelayChannel::new(5), [9; 32].as_slice()));
        assert_eq!(PeerPath::direct(relayed(5).endpoint).frame(&mut out, fill), 32);
        assert_eq!(relayed(5).frame(&mut out, |_| 0), 0);
        assert_eq!(relayed(5).frame(&mut out[..15], |_| panic!("no room")), 0);
    }

    #[test]
    fn channel_and_socket_are_part_of_the_way_and_the_local_address_is_not() {
        let path = relayed(5);
        assert!(!path.is_same_way(&PeerPath { socket: SocketId::new(1), ..path }));
        assert!(path.is_same_way(&PeerPath { local_ip: Some([192, 0, 2, 9].into()), ..path }));
        assert!(!path.is_same_way(&relayed(6)) && !path.is_same_way(&PeerPath::direct(path.endpoint)));
    }
}
