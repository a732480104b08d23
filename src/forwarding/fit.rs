//! What becomes of a packet that is longer than its path takes.
//!
//! | packet | becomes |
//! |---|---|
//! | TCP | cut into segments that fit: a stream does not care |
//! | IPv6 over 1,280 bytes | an error for the program: too big (RFC 4443, section 3.2) |
//! | IPv4 with DF | an error for the program: fragmentation needed (RFC 1191, section 4) |
//! | IPv6 of up to 1,280 bytes, which every link must take (RFC 8200, section 5) | fragments |
//! | IPv4 without DF | fragments |
//!
//! Fragments are made outside the session where that works, which keeps the packet whole for the peer's policy: routers
//! fragment IPv4 datagrams. Nobody fragments IPv6 datagrams that the sender's link takes, and a relay passes them on
//! whole: there the packet itself is cut, as its sender may, and the peer's host puts it together.

use std::net::IpAddr;

use smoltcp::wire::Ipv4Packet;

use super::segment::Segments;
use crate::wire::IpView;

/// What IPv6 asks of every link, bytes (RFC 8200, section 5).
const LEAST_IPV6_MTU: u16 = 1280;

/// How a packet travels.
#[derive(Debug, Clone, Copy)]
pub(super) enum Fit<'a> {
    /// In datagrams that pass whole.
    Whole(Segments<'a>),
    /// In fragments, inside or outside the session.
    InFragments(Segments<'a>),
    /// Not at all: the program is to send no more than this, in bytes of the whole packet.
    TooBig(u16),
}

impl<'a> Fit<'a> {
    /// How a packet travels on a path that takes `path_mtu` bytes.
    pub(super) fn of(segments: Segments<'a>, view: &IpView<'a>, path_mtu: u16) -> Self {
        let len = segments.max_len();
        if len <= usize::from(path_mtu) {
            return Self::Whole(segments);
        }
        // What is TCP and still cannot be cut, such as a SYN full of data, is treated as what cannot be.
        if let Ok(cut) = segments.limited(view, usize::from(path_mtu)) {
            return Self::Whole(cut);
        }
        match view.source {
            IpAddr::V6(_) if len > usize::from(LEAST_IPV6_MTU) => Self::TooBig(path_mtu.max(LEAST_IPV6_MTU)),
            IpAddr::V4(_) if Ipv4Packet::new_unchecked(view.packet).dont_frag() => Self::TooBig(path_mtu),
            _ => Self::InFragments(segments),
        }
    }
}
