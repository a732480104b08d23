//! ifconfig(8), route(8) and netstat(1), by absolute path. They exist on every macOS, and spare us the layouts
//! of ioctl and routing-socket structures that differ between releases.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::process::Command;

use ipnet::{IpNet, Ipv4Net};
use nix::net::if_::if_nametoindex;
use tokio::sync::mpsc;

use super::events;
use crate::network::{Configured, HostLayout, InterfaceConfig, Link, MAIN_TABLE, NetworkError, NetworkEvent, Route};

const IFCONFIG: &str = "/sbin/ifconfig";
const ROUTE: &str = "/sbin/route";
const NETSTAT: &str = "/usr/sbin/netstat";

/// A handle to the host's network configuration.
#[derive(Clone, Debug)]
pub struct Network {
    _private: (),
}

impl Network {
    /// A handle; there is nothing to open.
    ///
    /// # Errors
    /// None on this system.
    pub fn new() -> io::Result<Self> {
        Ok(Self { _private: () })
    }

    /// Reads links, addresses and routes. They are read one after the other, not as of one instant.
    ///
    /// # Errors
    /// See [`NetworkError`].
    pub async fn layout(&self) -> Result<HostLayout, NetworkError> {
        in_background(|| read_layout().map_err(NetworkError::Refused)).await
    }

    /// Sets MTU, addresses and routes and brings the interface up. Doing it again is harmless. What the host
    /// refuses is in the result; see [`Configured`]. There are no tables: `config.table` is ignored.
    ///
    /// # Errors
    /// The interface itself cannot be set up; then nothing else was tried.
    pub async fn configure(&self, ifindex: u32, config: &InterfaceConfig) -> Result<Configured, NetworkError> {
        let config = config.clone();
        in_background(move || configure(ifindex, &config)).await
    }

    /// Takes back what [`Network::configure`] did with the same arguments and switches the interface off.
    /// What is gone already, the interface included, is no error.
    ///
    /// # Errors
    /// The first refusal; everything else was tried nevertheless.
    pub async fn deconfigure(&self, ifindex: u32, config: &InterfaceConfig) -> Result<(), NetworkError> {
        let config = config.clone();
        in_background(move || deconfigure(ifindex, &config)).await
    }

    /// Does nothing: there are no rules on this system.
    ///
    /// # Errors
    /// None on this system.
    #[expect(clippy::unused_async, reason = "the same signature on every system")]
    pub async fn remove_stale_rules(&self) -> Result<usize, NetworkError> {
        Ok(0)
    }

    /// Subscribes to changes of the host from now on. The queue is bounded, see
    /// [`crate::network::EVENT_QUEUE`]; dropping the receiver ends the subscription.
    ///
    /// Must be called within a tokio runtime with I/O and time enabled.
    ///
    /// # Errors
    /// The host has no routing socket, or too many files are open.
    pub fn events(&self) -> io::Result<mpsc::Receiver<NetworkEvent>> {
        events::subscribe(self.clone())
    }
}

/// Programs are waited for on a thread that may block.
async fn in_background<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, NetworkError> + Send + 'static,
) -> Result<T, NetworkError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(NetworkError::Refused(io::Error::other(error))),
    }
}

fn configure(ifindex: u32, config: &InterfaceConfig) -> Result<Configured, NetworkError> {
    if !nix::unistd::geteuid().is_root() {
        return Err(NetworkError::Permission);
    }
    let name = name_of(ifindex)?;
    let mtu = config.mtu.to_string();
    run(IFCONFIG, &[&name, "mtu", &mtu, "up"]).map_err(NetworkError::Refused)?;
    let mut done = Configured::default();
    for &address in &config.addresses {
        if let Err(error) = change_address(&name, address, "alias") {
            done.addresses_failed.push((address, error));
        }
    }
    for &destination in &config.routes {
        if let Err(error) = add_route(ifindex, &name, destination) {
            done.routes_failed.push((destination, error));
        }
    }
    Ok(done)
}

fn deconfigure(ifindex: u32, config: &InterfaceConfig) -> Result<(), NetworkError> {
    let name = match name_of(ifindex) {
        Err(NetworkError::NoSuchLink(_)) => return Ok(()),
        name => name?,
    };
    let mut results = Vec::new();
    let routes = read_layout().map_err(NetworkError::Refused)?.routes;
    for destination in config.routes.iter().map(IpNet::trunc) {
        // Deleting goes by destination alone; another interface's route must stay.
        let is_ours = |route: &Route| route.destination == destination && route.ifindex == Some(ifindex);
        if routes.iter().any(is_ours) {
            results.push(change_route("delete", &name, destination));
        }
    }
    for &address in &config.addresses {
        results.push(change_address(&name, address, "-alias"));
    }
    results.push(run(IFCONFIG, &[&name, "down"]).map(drop));
    match results.into_iter().filter_map(Result::err).find(|error| !is_gone(error)) {
        None => Ok(()),
        Some(error) => Err(NetworkError::Refused(error)),
    }
}

fn change_address(name: &str, address: IpNet, action: &str) -> io::Result<()> {
    let ip = address.addr().to_string();
    let prefix_len = address.prefix_len().to_string();
    match address {
        IpNet::V6(_) if action == "alias" => run(IFCONFIG, &[name, "inet6", &ip, "prefixlen", &prefix_len, "alias"])?,
        IpNet::V6(_) => run(IFCONFIG, &[name, "inet6", &ip, action])?,
        // A point-to-point interface wants the other end's address; its own does.
        IpNet::V4(net) if action == "alias" => {
            let mask = net.netmask().to_string();
            run(IFCONFIG, &[name, "inet", &ip, &ip, "netmask", &mask, "alias"])?
        }
        IpNet::V4(_) => run(IFCONFIG, &[name, "inet", &ip, action])?,
    };
    Ok(())
}

fn add_route(ifindex: u32, name: &str, destination: IpNet) -> io::Result<()> {
    let destination = destination.trunc();
    let mut routes = read_layout()?.routes.into_iter();
    match routes.find(|route| route.destination == destination) {
        Some(route) if route.ifindex == Some(ifindex) => Ok(()),
        Some(_) => Err(io::ErrorKind::AlreadyExists.into()),
        None => change_route("add", name, destination),
    }
}

fn change_route(action: &str, name: &str, destination: IpNet) -> io::Result<()> {
    let family = if destination.addr().is_ipv6() { "-inet6" } else { "-inet" };
    let prefix = destination.to_string();
    let said = run(ROUTE, &["-n", action, family, "-net", &prefix, "-interface", name])?;
    // Older releases complain and yet exit with success.
    if said.contains("File exists") {
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    if said.contains("not in table") {
        return Err(io::ErrorKind::NotFound.into());
    }
    Ok(())
}

fn name_of(ifindex: u32) -> Result<String, NetworkError> {
    let links = nix::net::if_::if_nameindex().map_err(|errno| NetworkError::Refused(errno.into()))?;
    links
        .iter()
        .find(|link| link.index() == ifindex)
        .map(|link| link.name().to_string_lossy().into_owned())
        .ok_or(NetworkError::NoSuchLink(ifindex))
}

/// Runs a program to its end and returns all it says; its complaint is the error.
fn run(program: &str, arguments: &[&str]) -> io::Result<String> {
    let output = Command::new(program).args(arguments).env("LC_ALL", "C").output()?;
    let mut said = String::from_utf8_lossy(&output.stdout).into_owned();
    said.push_str(&String::from_utf8_lossy(&output.stderr));
    if output.status.success() {
        return Ok(said);
    }
    let kind = if said.contains("File exists") {
        io::ErrorKind::AlreadyExists
    } else if said.contains("not in table")
        || said.contains("does not exist")
        || said.contains("Can't assign requested address")
    {
        io::ErrorKind::NotFound
    } else {
        io::ErrorKind::Other
    };
    Err(io::Error::new(kind, said.trim().to_owned()))
}

fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
}

fn read_layout() -> io::Result<HostLayout> {
    let mut layout = parse_ifconfig(&run(IFCONFIG, &["-a"])?, index_of);
    for family in ["inet", "inet6"] {
        let table = run(NETSTAT, &["-rn", "-f", family])?;
        layout.routes.extend(table.lines().filter_map(|line| parse_route(line, family == "inet6", index_of)));
    }
    Ok(layout)
}

fn index_of(name: &str) -> Option<u32> {
    if_nametoindex(name).ok()
}

/// `en0: flags=8863<UP,…,RUNNING,…> mtu 1500`, then indented lines `inet A [--> B] netmask 0x…` and
/// `inet6 A%en0 prefixlen N …` and `status: inactive`.
fn parse_ifconfig(text: &str, index_of: impl Fn(&str) -> Option<u32>) -> HostLayout {
    let mut layout = HostLayout::default();
    let mut current = None;
    for line in text.lines() {
        if !line.starts_with(char::is_whitespace) {
            current = parse_link(line, &index_of);
            layout.links.extend(current.clone());
            continue;
        }
        let Some(link) = &current else { continue };
        let words: Vec<&str> = line.split_whitespace().collect();
        if let Some(net) = parse_address(&words) {
            layout.addresses.push((link.index, net));
        }
        if words.as_slice() == ["status:", "inactive"]
            && let Some(last) = layout.links.last_mut()
        {
            last.up = false;
        }
    }
    layout
}

fn parse_link(line: &str, index_of: impl Fn(&str) -> Option<u32>) -> Option<Link> {
    let (name, rest) = line.split_once(": flags=")?;
    let flags = rest.split_once('<')?.1.split_once('>')?.0;
    let has = |flag| flags.split(',').any(|set| set == flag);
    Some(Link {
        name: name.to_owned(),
        index: index_of(name)?,
        mtu: word_after(&rest.split_whitespace().collect::<Vec<_>>(), "mtu")?.parse().ok()?,
        up: has("UP") && has("RUNNING"),
        loopback: has("LOOPBACK"),
    })
}

fn parse_address(words: &[&str]) -> Option<IpNet> {
    match words {
        ["inet", ip, ..] => {
            let digits = word_after(words, "netmask")?.strip_prefix("0x")?;
            let mask = Ipv4Addr::from(u32::from_str_radix(digits, 16).ok()?);
            let net = Ipv4Net::with_netmask(ip.parse().ok()?, mask).ok()?;
            Some(net.into())
        }
        ["inet6", ip, ..] => {
            let prefix_len = word_after(words, "prefixlen")?.parse().ok()?;
            IpNet::new(without_zone(ip).parse().ok()?, prefix_len).ok()
        }
        _ => None,
    }
}

/// `Destination Gateway Flags Netif [Expire]`. Addresses of the host itself (flag L), multicast (m), broadcast
/// (b) and cloned entries (W) are no routes of anybody's making.
fn parse_route(line: &str, is_v6: bool, index_of: impl Fn(&str) -> Option<u32>) -> Option<Route> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let [destination, gateway, flags, interface, ..] = words.as_slice() else {
        return None;
    };
    if !flags.starts_with('U') || flags.contains(['L', 'm', 'b', 'W']) {
        return None;
    }
    let is_dropping = flags.contains(['R', 'B']);
    Some(Route {
        destination: if is_v6 { parse_v6_destination(destination)? } else { parse_v4_destination(destination)?.into() },
        ifindex: if is_dropping { None } else { Some(index_of(interface)?) },
        table: MAIN_TABLE,
        protocol: 0,
        gateway: without_zone(gateway).parse::<IpAddr>().ok(),
    })
}

fn parse_v6_destination(text: &str) -> Option<IpNet> {
    let (address, prefix_len) = match text.split_once('/') {
        Some((address, prefix_len)) => (address, prefix_len.parse().ok()?),
        None if text == "default" => ("::", 0),
        None => (text, 128),
    };
    IpNet::new(without_zone(address).parse().ok()?, prefix_len).ok()
}

/// Trailing zero octets are left out: `127` is 127.0.0.0/8, `169.254` is 169.254.0.0/16, `10.8/13` says it.
fn parse_v4_destination(text: &str) -> Option<Ipv4Net> {
    if text == "default" {
        return Some(Ipv4Net::default());
    }
    let (address, prefix_len) = match text.split_once('/') {
        Some((address, prefix_len)) => (address, Some(prefix_len.parse().ok()?)),
        None => (text, None),
    };
    let mut octets = [0; 4];
    let mut count = 0;
    for word in address.split('.') {
        *octets.get_mut(count)? = word.parse().ok()?;
        count += 1;
    }
    let implied = u8::try_from(count * 8).ok()?;
    Ipv4Net::new(octets.into(), prefix_len.unwrap_or(implied)).ok()
}

/// `fe80::1%lo0` without its zone.
fn without_zone(address: &str) -> &str {
    address.split_once('%').map_or(address, |(address, _)| address)
}

fn word_after<'a>(words: &[&'a str], key: &str) -> Option<&'a str> {
    let at = words.iter().position(|word| *word == key)?;
    words.get(at + 1).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    const IFCONFIG_TEXT: &str = "\
lo0: flags=8049<UP,LOOPBACK,RUNNING,MULTICAST> mtu 16384
\toptions=1203<RXCSUM,TXCSUM,TXSTATUS,SW_TIMESTAMP>
\tinet 127.0.0.1 netmask 0xff000000
\tinet6 ::1 prefixlen 128
\tinet6 fe80::1%lo0 prefixlen 64 scopeid 0x1
en0: flags=8863<UP,BROADCAST,SMART,RUNNING,SIMPLEX,MULTICAST> mtu 1500
\tether 00:00:5e:00:53:01
\tinet 192.0.2.7 netmask 0xffffff00 broadcast 192.0.2.255
\tstatus: inactive
utun4: flags=8051<UP,POINTOPOINT,RUNNING,MULTICAST> mtu 1280
\tinet 100.64.0.1 --> 100.64.0.1 netmask 0xffffffff
";

    fn index(name: &str) -> Option<u32> {
        ["lo0", "en0", "utun4"].iter().position(|known| *known == name).map(|at| at as u32 + 1)
    }

    #[test]
    fn ifconfig_lists_links_and_addresses() {
        let layout = parse_ifconfig(IFCONFIG_TEXT, index);
        let links: Vec<_> = layout.links.iter().map(|l| (l.name.as_str(), l.index, l.mtu, l.up, l.loopback)).collect();
        assert_eq!(
            links,
            [("lo0", 1, 16_384, true, true), ("en0", 2, 1_500, false, false), ("utun4", 3, 1_280, true, false)]
        );
        let addresses: Vec<_> = layout.addresses.iter().map(|(index, net)| (*index, net.to_string())).collect();
        let expected =
            [(1, "127.0.0.1/8"), (1, "::1/128"), (1, "fe80::1/64"), (2, "192.0.2.7/24"), (3, "100.64.0.1/32")];
        assert_eq!(addresses, expected.map(|(index, net)| (index, net.to_owned())));
    }

    #[test]
    fn netstat_lists_routes() {
        let v4 = |line| parse_route(line, false, index).map(|r| (r.destination.to_string(), r.ifindex));
        let some = |net: &str, index| Some((net.to_owned(), index));
        assert_eq!(v4("default 192.0.2.1 UGScg en0"), some("0.0.0.0/0", Some(2)));
        assert_eq!(v4("127 127.0.0.1 UCS lo0"), some("127.0.0.0/8", Some(1)));
        assert_eq!(v4("169.254 link#2 UCS en0 !"), some("169.254.0.0/16", Some(2)));
        assert_eq!(v4("100.64/10 utun4 USc utun4"), some("100.64.0.0/10", Some(3)));
        assert_eq!(v4("192.0.2.7/32 link#2 UCS en0 !"), some("192.0.2.7/32", Some(2)));
        assert_eq!(v4("10 127.0.0.1 UGSR lo0"), some("10.0.0.0/8", None));
        for no_route in [
            "Destination Gateway Flags Netif Expire",
            "Internet:",
            "",
            "192.0.2.9 0:0:5e:0:53:2 UHLWIi en0 1172",
            "224.0.0/4 link#2 UmCS en0 !",
            "1.2.3.4.5 x U en0",
        ] {
            assert_eq!(v4(no_route), None, "{no_route}");
        }
        let v6 = parse_route("default fe80::1%en0 UGcg en0", true, index).unwrap();
        assert_eq!((v6.destination.to_string(), v6.gateway), ("::/0".to_owned(), "fe80::1".parse().ok()));
        let v6 = parse_route("fd61:6e74::/32 utun4 USc utun4", true, index).unwrap();
        assert_eq!((v6.destination.to_string(), v6.gateway), ("fd61:6e74::/32".to_owned(), None));
    }
}
