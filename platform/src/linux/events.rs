//! Netlink's multicast groups, translated and freed of repetition.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::IpAddr;

use futures_util::StreamExt;
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use rtnetlink::packet_route::link::LinkMessage;
use rtnetlink::packet_route::route::{RouteMessage, RouteType};
use tokio::sync::mpsc;

use super::network::{address_of, is_link_up, table_of_route};
use crate::network::{EventSender, MAIN_TABLE, NetworkEvent};

const GROUPS: [MulticastGroup; 5] = [
    MulticastGroup::Link,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
];

pub(super) fn subscribe() -> io::Result<mpsc::Receiver<NetworkEvent>> {
    let (connection, handle, mut messages) = rtnetlink::new_multicast_connection(&GROUPS)?;
    let connection = tokio::spawn(connection);
    let (mut sender, receiver) = EventSender::new();
    tokio::spawn(async move {
        // The connection ends with its last handle.
        let _handle = handle;
        let mut translator = Translator::default();
        loop {
            let message = tokio::select! {
                message = messages.next() => message,
                () = sender.closed() => break,
            };
            let Some((message, _)) = message else { break };
            if let Some(event) = translator.translate(message) {
                sender.send(event);
            }
        }
        connection.abort();
    });
    Ok(receiver)
}

/// Remembers what was said, because the kernel repeats itself: a link's message comes with every attribute that
/// changes, an IPv6 address's with every router advertisement. Both tables are as long as the host's own.
#[derive(Default)]
struct Translator {
    links: HashMap<u32, bool>,
    addresses: HashSet<(u32, IpAddr)>,
}

impl Translator {
    fn translate(&mut self, message: NetlinkMessage<RouteNetlinkMessage>) -> Option<NetworkEvent> {
        let message = match message.payload {
            NetlinkPayload::InnerMessage(message) => message,
            NetlinkPayload::Overrun(_) => return Some(self.lost()),
            _ => return None,
        };
        match message {
            RouteNetlinkMessage::NewLink(link) => self.link_changed(&link),
            RouteNetlinkMessage::DelLink(link) => self.link_removed(&link),
            RouteNetlinkMessage::NewAddress(address) => self.address_changed(&address),
            RouteNetlinkMessage::DelAddress(address) => self.address_removed(&address),
            RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route) => {
                is_default_route(&route).then_some(NetworkEvent::DefaultRouteChanged)
            }
            _ => None,
        }
    }

    /// What happened meanwhile is unknown, so nothing may be taken for a repetition.
    fn lost(&mut self) -> NetworkEvent {
        self.links.clear();
        self.addresses.clear();
        NetworkEvent::Lagged
    }

    fn link_changed(&mut self, link: &LinkMessage) -> Option<NetworkEvent> {
        let (index, up) = (link.header.index, is_link_up(link));
        let is_news = self.links.insert(index, up) != Some(up);
        is_news.then_some(NetworkEvent::LinkChanged { index, up })
    }

    fn link_removed(&mut self, link: &LinkMessage) -> Option<NetworkEvent> {
        let index = link.header.index;
        self.addresses.retain(|(of, _)| *of != index);
        // A link that was down is not missed.
        let was_down = self.links.remove(&index) == Some(false);
        (!was_down).then_some(NetworkEvent::LinkChanged { index, up: false })
    }

    fn address_changed(&mut self, message: &AddressMessage) -> Option<NetworkEvent> {
        let (index, net) = address_of(message)?;
        if !is_usable(message) {
            return None;
        }
        let is_news = self.addresses.insert((index, net.addr()));
        is_news.then_some(NetworkEvent::AddressAdded(net.addr()))
    }

    fn address_removed(&mut self, message: &AddressMessage) -> Option<NetworkEvent> {
        let (index, net) = address_of(message)?;
        self.addresses.remove(&(index, net.addr()));
        Some(NetworkEvent::AddressRemoved(net.addr()))
    }
}

/// While duplicates are looked for (RFC 4862) an address cannot be sent from; another message follows.
fn is_usable(message: &AddressMessage) -> bool {
    let flags = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Flags(flags) => Some(*flags),
        _ => None,
    });
    let Some(flags) = flags else { return true };
    let is_tentative = flags.contains(AddressFlags::Tentative) && !flags.contains(AddressFlags::Optimistic);
    !is_tentative && !flags.contains(AddressFlags::Dadfailed)
}

fn is_default_route(route: &RouteMessage) -> bool {
    route.header.destination_prefix_length == 0
        && route.header.kind == RouteType::Unicast
        && table_of_route(route) == MAIN_TABLE
}
