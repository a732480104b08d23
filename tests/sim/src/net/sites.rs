//! The seven kinds of NAT of the matrix, as places where hosts can be, with addresses handed out by themselves.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::firewall::FirewallConfig;
use super::internet::{BoxConfig, BoxId, HostId, InterfaceId, Internet, Segment};
use super::link::LinkConfig;
use super::nat::NatConfig;

/// What is between a host and the core.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NatKind {
    /// Nothing.
    None,
    /// [`NatConfig::full_cone`].
    FullCone,
    /// [`NatConfig::address_restricted`].
    AddressRestricted,
    /// [`NatConfig::port_restricted`].
    PortRestricted,
    /// [`NatConfig::symmetric_random`].
    SymmetricRandom,
    /// [`NatConfig::symmetric_sequential`].
    SymmetricSequential,
    /// [`NatConfig::port_restricted`] at home, behind [`NatConfig::carrier`].
    Double,
}

impl NatKind {
    /// All of them, in the order of the matrix.
    pub const ALL: [Self; 7] = [
        Self::None,
        Self::FullCone,
        Self::AddressRestricted,
        Self::PortRestricted,
        Self::SymmetricRandom,
        Self::SymmetricSequential,
        Self::Double,
    ];

    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::FullCone => "full cone",
            Self::AddressRestricted => "address-restricted",
            Self::PortRestricted => "port-restricted",
            Self::SymmetricRandom => "symmetric random",
            Self::SymmetricSequential => "symmetric sequential",
            Self::Double => "double",
        }
    }

    /// The NAT next to the host.
    pub fn home(self) -> Option<NatConfig> {
        match self {
            Self::None => None,
            Self::FullCone => Some(NatConfig::full_cone()),
            Self::AddressRestricted => Some(NatConfig::address_restricted()),
            Self::PortRestricted | Self::Double => Some(NatConfig::port_restricted()),
            Self::SymmetricRandom => Some(NatConfig::symmetric_random()),
            Self::SymmetricSequential => Some(NatConfig::symmetric_sequential()),
        }
    }
}

/// How to make a site.
#[derive(Clone, Debug)]
pub struct SiteOptions {
    /// The NATs from the core inwards. None: hosts are attached to the core.
    pub nats: Vec<NatConfig>,
    /// Where the outermost NAT (without NATs: the hosts) is attached: the core, or the inside of another site's box.
    pub segment: Segment,
    /// Whether hosts have public IPv6 addresses, which the innermost box filters as [`FirewallConfig::default`] does.
    pub has_v6: bool,
    /// The links, both ways, that join the site to the segment; all others of the site add nothing.
    pub access: LinkConfig,
}

impl SiteOptions {
    /// A site of this kind at the core, IPv4 only.
    pub fn new(kind: NatKind, access: LinkConfig) -> Self {
        let carrier = (kind == NatKind::Double).then(NatConfig::carrier);
        Self { nats: carrier.into_iter().chain(kind.home()).collect(), segment: Segment::Core, has_v6: false, access }
    }
}

/// A place for hosts.
#[derive(Clone, Debug)]
pub struct Site {
    /// Where hosts are attached.
    pub segment: Segment,
    /// The boxes from the core inwards.
    pub boxes: Vec<BoxId>,
    has_v6: bool,
    host_link: LinkConfig,
}

/// Who got which address. Sites at the core have 203.0.x.x, boxes inside other boxes 100.64.x.x (RFC 6598), hosts behind
/// boxes 192.168.1.x in every home, and 2001:db8:box:: for IPv6 (box 0 stands for the core). None is used twice within a
/// segment.
#[derive(Default)]
pub(super) struct AddressPlan {
    used_by_boxes: u16,
    used_at: BTreeMap<Segment, u16>,
}

impl Internet {
    /// A place for hosts.
    pub fn add_site(&mut self, options: &SiteOptions) -> Site {
        let (mut segment, mut boxes) = (options.segment, Vec::new());
        let count = options.nats.len();
        for (depth, nat) in options.nats.iter().enumerate() {
            let external = self.plan.external(segment);
            let firewall = (options.has_v6 && depth + 1 == count).then(FirewallConfig::default);
            let link = if depth == 0 { options.access.clone() } else { LinkConfig::default() };
            let id = self.add_box(segment, BoxConfig { nat: Some((nat.clone(), external)), firewall }, link);
            boxes.push(id);
            segment = Segment::Behind(id);
        }
        let host_link = if count == 0 { options.access.clone() } else { LinkConfig::default() };
        Site { segment, boxes, has_v6: options.has_v6, host_link }
    }

    /// A host with one interface at a site.
    pub fn add_host_at(&mut self, site: &Site) -> HostId {
        let host = self.add_host();
        self.add_interface_at(host, site);
        host
    }

    /// One more interface of a host, at a site.
    pub fn add_interface_at(&mut self, host: HostId, site: &Site) -> InterfaceId {
        let addresses = self.fresh_addresses(host, site);
        self.add_interface(host, site.segment, &addresses, site.host_link.clone())
    }

    /// The interface leaves where it is, or comes back, and is at a site now, with new addresses and the site's link.
    pub fn move_to(&mut self, interface: InterfaceId, site: &Site) {
        let addresses = self.fresh_addresses(self.interfaces[interface.0].host, site);
        let state = &mut self.interfaces[interface.0];
        state.up.config = site.host_link.clone();
        state.down.config = site.host_link.clone();
        self.bring_up(interface, site.segment, &addresses);
    }

    /// An external address nobody had before, for a reboot of a box at this segment.
    pub fn fresh_external(&mut self, segment: Segment) -> Ipv4Addr {
        self.plan.external(segment)
    }

    /// Homes share addresses, but no host has one twice: a source address says which interface is meant.
    fn fresh_addresses(&mut self, host: HostId, site: &Site) -> Vec<IpAddr> {
        let own = self.hosts[host.0].interfaces.iter().flat_map(|id| &self.interfaces[id.0].addresses);
        let own: Vec<_> = own.copied().collect();
        loop {
            let (v4, v6) = self.plan.host(site.segment);
            if !own.contains(&IpAddr::V4(v4)) {
                let v6 = site.has_v6.then_some(IpAddr::V6(v6));
                return v6.into_iter().chain([IpAddr::V4(v4)]).collect();
            }
        }
    }
}

impl AddressPlan {
    /// From the upper half of each range; hosts have the lower.
    fn external(&mut self, segment: Segment) -> Ipv4Addr {
        self.used_by_boxes += 1;
        assert!(self.used_by_boxes < 0x8000, "too many boxes");
        let [high, low] = (0x8000 | self.used_by_boxes).to_be_bytes();
        match segment {
            Segment::Core => Ipv4Addr::new(203, 0, high, low),
            Segment::Behind(_) => Ipv4Addr::new(100, 64, high, low),
        }
    }

    fn host(&mut self, segment: Segment) -> (Ipv4Addr, Ipv6Addr) {
        let used = self.used_at.entry(segment).or_default();
        *used += 1;
        assert!(*used < 0x8000, "too many addresses at {segment:?}");
        let [high, low] = used.to_be_bytes();
        match segment {
            Segment::Core => (Ipv4Addr::new(203, 0, high, low), v6(0, *used)),
            // 192.168.1.x first, as homes have it; hosts that come and go use up more.
            Segment::Behind(id) => (Ipv4Addr::new(192, 168, high + 1, low), v6(id.0 + 1, *used)),
        }
    }
}

fn v6(site: usize, host: u16) -> Ipv6Addr {
    let site = u16::try_from(site).expect("fewer than 65,535 boxes");
    Ipv6Addr::new(0x2001, 0xdb8, site, 0, 0, 0, 0, host)
}
