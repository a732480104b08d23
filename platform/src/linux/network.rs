//! rtnetlink(7).

use std::io;
use std::net::IpAddr;

use futures_util::{Stream, StreamExt};
use ipnet::IpNet;
use nix::errno::Errno;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use rtnetlink::packet_route::link::{AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute, LinkFlags, LinkMessage};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteProtocol, RouteScope, RouteType, RouteVia,
};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use rtnetlink::{AddressMessageBuilder, Handle, IpVersion, LinkUnspec, RouteMessageBuilder};
use tokio::sync::mpsc;

use super::events;
use crate::network::{
    Configured, HostLayout, InterfaceConfig, Link, MAIN_TABLE, NetworkError, NetworkEvent, ROUTE_PROTOCOL, Route,
};

/// Where our rules stand: before the main table's (32,766), after anything an administrator puts first.
const RULE_PRIORITY: u32 = 26_000;

/// A handle to the host's network configuration. Clones share one netlink socket, which belongs to the network
/// namespace of the thread that made it.
#[derive(Clone, Debug)]
pub struct Network {
    handle: Handle,
}

impl Network {
    /// Opens the netlink socket. Must be called within a tokio runtime with I/O enabled; the socket's task runs
    /// there until the last clone is gone.
    ///
    /// # Errors
    /// The host has no netlink, or too many files are open.
    pub fn new() -> io::Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    /// Reads links, addresses and routes. They are read one after the other, not as of one instant.
    ///
    /// # Errors
    /// See [`NetworkError`].
    pub async fn layout(&self) -> Result<HostLayout, NetworkError> {
        let links = collect(self.handle.link().get().execute()).await?;
        let addresses = collect(self.handle.address().get().execute()).await?;
        let mut routes = Vec::new();
        for message in self.routes().await? {
            routes.extend(route_of(&message));
        }
        Ok(HostLayout {
            links: links.iter().map(link_of).collect(),
            addresses: addresses.iter().filter_map(address_of).collect(),
            routes,
        })
    }

    /// Sets MTU, addresses, routes and rules and brings the interface up, without a link-local address of its
    /// own. Doing it again is harmless. What the host refuses is in the result; see [`Configured`].
    ///
    /// An IPv6 address can take the kernel some milliseconds more until packets to it are accepted:
    /// [`NetworkEvent::AddressAdded`] says when.
    ///
    /// # Errors
    /// The interface itself cannot be set up; then nothing else was tried.
    pub async fn configure(&self, ifindex: u32, config: &InterfaceConfig) -> Result<Configured, NetworkError> {
        self.set_link_up(ifindex, config.mtu).await?;
        let mut done = Configured::default();
        for &address in &config.addresses {
            if let Err(error) = self.add_address(ifindex, address).await {
                done.ipv6_disabled |= is_ipv6_disabled(address, &error);
                done.addresses_failed.push((address, error));
            }
        }
        let table = config.table.unwrap_or(MAIN_TABLE);
        for &destination in &config.routes {
            if let Err(error) = self.add_route(ifindex, destination, table).await {
                done.ipv6_disabled |= is_ipv6_disabled(destination, &error);
                done.routes_failed.push((destination, error));
            }
        }
        // After the routes: a rule whose table is empty looks stale to `remove_stale_rules`.
        if let Some(table) = config.table {
            for &address in ipv6_of(config) {
                let is_refused = done.addresses_failed.iter().any(|(refused, _)| *refused == address);
                if is_refused {
                    continue;
                }
                if let Err(error) = self.add_rule(address, table).await {
                    done.rules_failed.push((address, error));
                }
            }
        }
        Ok(done)
    }

    /// Takes back what [`Network::configure`] did with the same arguments and switches the interface off.
    /// What is gone already, the interface included, is no error.
    ///
    /// # Errors
    /// The first refusal; everything else was tried nevertheless.
    pub async fn deconfigure(&self, ifindex: u32, config: &InterfaceConfig) -> Result<(), NetworkError> {
        let mut results = Vec::new();
        if let Some(table) = config.table {
            for address in ipv6_of(config) {
                let rule = rule_message(*address, table);
                results.push(self.handle.rule().del(rule).execute().await);
            }
        }
        let table = config.table.unwrap_or(MAIN_TABLE);
        for &destination in &config.routes {
            let route = route_message(ifindex, destination, table);
            results.push(self.handle.route().del(route).execute().await);
        }
        for &address in &config.addresses {
            let address = address_message(ifindex, address);
            results.push(self.handle.address().del(address).execute().await);
        }
        let down = LinkUnspec::new_with_index(ifindex).down();
        results.push(self.handle.link().change(down.build()).execute().await);

        let refusals = results.into_iter().filter_map(Result::err).map(into_io);
        match refusals.into_iter().find(|error| !is_gone(error)) {
            None => Ok(()),
            Some(error) => Err(into_network_error(ifindex, error)),
        }
    }

    /// Removes rules of ours whose table has no routes: a process that was killed leaves them, while the kernel
    /// removes its interface and routes. Returns how many there were.
    ///
    /// # Errors
    /// See [`NetworkError`].
    pub async fn remove_stale_rules(&self) -> Result<usize, NetworkError> {
        let mut rules = collect(self.handle.rule().get(IpVersion::V4).execute()).await?;
        rules.extend(collect(self.handle.rule().get(IpVersion::V6).execute()).await?);
        rules.retain(is_our_rule);
        let routes = self.routes().await?;
        let mut removed = 0;
        for rule in rules {
            let table = table_of_rule(&rule);
            if routes.iter().any(|route| table_of_route(route) == table) {
                continue;
            }
            match self.handle.rule().del(rule).execute().await.map_err(into_io) {
                Ok(()) => removed += 1,
                Err(error) if is_gone(&error) => {}
                Err(error) => return Err(into_network_error(0, error)),
            }
        }
        Ok(removed)
    }

    /// Subscribes to changes of the host from now on. The queue is bounded, see
    /// [`crate::network::EVENT_QUEUE`]; dropping the receiver ends the subscription.
    ///
    /// Must be called within a tokio runtime with I/O enabled, in the network namespace of interest.
    ///
    /// # Errors
    /// The host has no netlink, or too many files are open.
    pub fn events(&self) -> io::Result<mpsc::Receiver<NetworkEvent>> {
        events::subscribe()
    }

    async fn set_link_up(&self, ifindex: u32, mtu: u32) -> Result<(), NetworkError> {
        // First, because the kernel makes a link-local address while the link goes up. On a host without IPv6
        // there is neither the attribute nor the address.
        let gen_mode = LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(
            In6AddrGenMode::None,
        )])]);
        let no_link_local = LinkUnspec::new_with_index(ifindex).append_extra_attribute(gen_mode);
        if let Err(error) = self.handle.link().change(no_link_local.build()).execute().await {
            tracing::debug!(ifindex, %error, "cannot switch off link-local addresses");
        }
        let queue = LinkAttribute::TxQueueLen(crate::network::INTERFACE_QUEUE);
        let longer = LinkUnspec::new_with_index(ifindex).append_extra_attribute(queue);
        if let Err(error) = self.handle.link().change(longer.build()).execute().await {
            tracing::debug!(ifindex, %error, "the interface keeps its usual queue");
        }
        let up = LinkUnspec::new_with_index(ifindex).mtu(mtu).up();
        let result = self.handle.link().change(up.build()).execute().await;
        result.map_err(|error| into_network_error(ifindex, into_io(error)))
    }

    async fn add_address(&self, ifindex: u32, address: IpNet) -> io::Result<()> {
        let mut request = self.handle.address().add(ifindex, address.addr(), address.prefix_len()).replace();
        // A derived address cannot collide, so there is no reason to wait for the detection of duplicates.
        request.message_mut().header.flags |= AddressHeaderFlags::Nodad;
        request.execute().await.map_err(into_io)
    }

    async fn add_route(&self, ifindex: u32, destination: IpNet, table: u32) -> io::Result<()> {
        let message = route_message(ifindex, destination, table);
        match self.handle.route().add(message).execute().await.map_err(into_io) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let is_same = |route: Route| {
                    route.destination == destination.trunc() && route.table == table && route.ifindex == Some(ifindex)
                };
                let routes = self.routes().await.map_err(io::Error::other)?;
                let is_ours = routes.iter().filter_map(route_of).any(is_same);
                if is_ours { Ok(()) } else { Err(error) }
            }
            result => result,
        }
    }

    async fn add_rule(&self, address: IpNet, table: u32) -> io::Result<()> {
        let mut request = self.handle.rule().add();
        *request.message_mut() = rule_message(address, table);
        match request.execute().await.map_err(into_io) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            result => result,
        }
    }

    async fn routes(&self) -> Result<Vec<RouteMessage>, NetworkError> {
        let v4 = RouteMessageBuilder::<std::net::Ipv4Addr>::new().build();
        let v6 = RouteMessageBuilder::<std::net::Ipv6Addr>::new().build();
        let mut routes = collect(self.handle.route().get(v4).execute()).await?;
        routes.extend(collect(self.handle.route().get(v6).execute()).await?);
        Ok(routes)
    }
}

/// A dump. A family the host does not have is an empty one.
async fn collect<T>(messages: impl Stream<Item = Result<T, rtnetlink::Error>>) -> Result<Vec<T>, NetworkError> {
    let mut messages = std::pin::pin!(messages);
    let mut all = Vec::new();
    while let Some(message) = messages.next().await {
        match message.map_err(into_io) {
            Ok(message) => all.push(message),
            Err(error) if is_no_family(&error) => break,
            Err(error) => return Err(into_network_error(0, error)),
        }
    }
    Ok(all)
}

fn ipv6_of(config: &InterfaceConfig) -> impl Iterator<Item = &IpNet> {
    config.addresses.iter().filter(|address| address.addr().is_ipv6())
}

fn address_message(ifindex: u32, address: IpNet) -> AddressMessage {
    match address {
        IpNet::V4(net) => AddressMessageBuilder::<std::net::Ipv4Addr>::new()
            .index(ifindex)
            .address(net.addr(), net.prefix_len())
            .build(),
        IpNet::V6(net) => AddressMessageBuilder::<std::net::Ipv6Addr>::new()
            .index(ifindex)
            .address(net.addr(), net.prefix_len())
            .build(),
    }
}

fn route_message(ifindex: u32, destination: IpNet, table: u32) -> RouteMessage {
    let protocol = RouteProtocol::from(ROUTE_PROTOCOL);
    match destination.trunc() {
        IpNet::V4(net) => RouteMessageBuilder::<std::net::Ipv4Addr>::new()
            .destination_prefix(net.addr(), net.prefix_len())
            .scope(RouteScope::Link)
            .output_interface(ifindex)
            .protocol(protocol)
            .table_id(table)
            .build(),
        IpNet::V6(net) => RouteMessageBuilder::<std::net::Ipv6Addr>::new()
            .destination_prefix(net.addr(), net.prefix_len())
            .output_interface(ifindex)
            .protocol(protocol)
            .table_id(table)
            .build(),
    }
}

/// `from ADDRESS lookup TABLE`, marked as ours.
fn rule_message(address: IpNet, table: u32) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = match address {
        IpNet::V4(_) => AddressFamily::Inet,
        IpNet::V6(_) => AddressFamily::Inet6,
    };
    message.header.src_len = address.prefix_len();
    message.header.action = RuleAction::ToTable;
    message.attributes = vec![
        RuleAttribute::Source(address.addr()),
        // The attribute overrides the header's 8 bits.
        RuleAttribute::Table(table),
        RuleAttribute::Priority(RULE_PRIORITY),
        RuleAttribute::Protocol(RouteProtocol::from(ROUTE_PROTOCOL)),
    ];
    message
}

fn is_our_rule(rule: &RuleMessage) -> bool {
    let ours = RuleAttribute::Protocol(RouteProtocol::from(ROUTE_PROTOCOL));
    rule.attributes.contains(&ours)
}

fn table_of_rule(rule: &RuleMessage) -> u32 {
    let table = rule.attributes.iter().find_map(|attribute| match attribute {
        RuleAttribute::Table(table) => Some(*table),
        _ => None,
    });
    table.unwrap_or_else(|| rule.header.table.into())
}

pub(super) fn table_of_route(route: &RouteMessage) -> u32 {
    let table = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    });
    table.unwrap_or_else(|| route.header.table.into())
}

pub(super) fn is_link_up(message: &LinkMessage) -> bool {
    // Not RUNNING, which the kernel sets up to a second after the carrier is there.
    message.header.flags.contains(LinkFlags::Up | LinkFlags::LowerUp)
}

fn link_of(message: &LinkMessage) -> Link {
    let mut link = Link {
        name: String::new(),
        index: message.header.index,
        mtu: 0,
        up: is_link_up(message),
        loopback: message.header.flags.contains(LinkFlags::Loopback),
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            _ => {}
        }
    }
    link
}

pub(super) fn address_of(message: &AddressMessage) -> Option<(u32, IpNet)> {
    let mut ip = None;
    for attribute in &message.attributes {
        match attribute {
            // On a point-to-point link IFA_ADDRESS is the other end, IFA_LOCAL is ours.
            AddressAttribute::Local(local) => ip = Some(*local),
            AddressAttribute::Address(address) => ip = ip.or(Some(*address)),
            _ => {}
        }
    }
    let net = IpNet::new(ip?, message.header.prefix_len).ok()?;
    Some((message.header.index, net))
}

fn route_of(message: &RouteMessage) -> Option<Route> {
    let header = &message.header;
    let unspecified: IpAddr = match header.address_family {
        AddressFamily::Inet => std::net::Ipv4Addr::UNSPECIFIED.into(),
        AddressFamily::Inet6 => std::net::Ipv6Addr::UNSPECIFIED.into(),
        _ => return None,
    };
    let derived = [RouteType::Local, RouteType::Broadcast, RouteType::Anycast, RouteType::Multicast];
    if derived.contains(&header.kind) || header.flags.contains(RouteFlags::Cloned) {
        return None;
    }
    let mut destination = unspecified;
    let (mut ifindex, mut gateway) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => destination = ip_of(address)?,
            RouteAttribute::Oif(index) => ifindex = Some(*index),
            RouteAttribute::Gateway(address) => gateway = ip_of(address),
            RouteAttribute::Via(RouteVia::Inet6(ip)) => gateway = Some((*ip).into()),
            RouteAttribute::MultiPath(hops) => {
                ifindex = ifindex.or(hops.first().map(|hop| hop.interface_index));
            }
            _ => {}
        }
    }
    Some(Route {
        destination: IpNet::new(destination, header.destination_prefix_length).ok()?,
        // IPv6 routes that drop packets are attached to the loopback interface.
        ifindex: ifindex.filter(|_| header.kind == RouteType::Unicast),
        table: table_of_route(message),
        protocol: header.protocol.into(),
        gateway,
    })
}

fn ip_of(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some((*ip).into()),
        RouteAddress::Inet6(ip) => Some((*ip).into()),
        _ => None,
    }
}

fn into_io(error: rtnetlink::Error) -> io::Error {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io(),
        error => io::Error::other(error),
    }
}

fn into_network_error(ifindex: u32, error: io::Error) -> NetworkError {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ENODEV) => NetworkError::NoSuchLink(ifindex),
        Some(Errno::EPERM) => NetworkError::Permission,
        _ => NetworkError::Refused(error),
    }
}

/// What the kernel says when the thing to delete is not there.
fn is_gone(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error().map(Errno::from_raw),
        Some(Errno::ENODEV | Errno::ENOENT | Errno::ESRCH | Errno::EADDRNOTAVAIL)
    ) || is_no_family(error)
}

fn is_no_family(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw);
    matches!(errno, Some(Errno::EAFNOSUPPORT | Errno::EOPNOTSUPP))
}

/// EACCES: the sysctl `disable_ipv6`; EINVAL on a route: its interface has no IPv6 at all.
fn is_ipv6_disabled(net: IpNet, error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw);
    net.addr().is_ipv6() && (errno == Some(Errno::EACCES) || is_no_family(error))
}
