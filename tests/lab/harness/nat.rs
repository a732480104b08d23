//! Kinds of NAT, in the words of RFC 4787, as nftables rules.
//!
//! | kind | mapping | filtering | external port |
//! |---|---|---|---|
//! | `None` | none, hosts have public addresses | none | |
//! | `FullCone` | endpoint-independent | endpoint-independent | random |
//! | `AddressRestricted` | endpoint-independent | address-dependent | random |
//! | `PortRestricted` | endpoint-independent | address and port-dependent | random |
//! | `SymmetricRandom` | address and port-dependent | address and port-dependent | random |
//! | `SymmetricSequential` | address and port-dependent | address and port-dependent | next one up |
//! | `Ipv6Firewall` | none, hosts have public IPv6 addresses only | address and port-dependent | |
//!
//! Connection tracking by itself maps per connection. Endpoint-independent mapping is made by two tables: the port that
//! the first packet of a local endpoint was given is recorded after source NAT, every later connection of that
//! endpoint is given the recorded one, and from outside the port leads back to the endpoint. No kind keeps the local
//! port, and none turns packets around: a host does not reach its neighbour at the external address.

use std::time::Duration;

/// What stands between a site and the rest of the internet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Nat {
    /// A plain router: hosts have public addresses, everything passes.
    None,
    /// Endpoint-independent mapping and filtering.
    FullCone,
    /// Endpoint-independent mapping, address-dependent filtering.
    AddressRestricted,
    /// Endpoint-independent mapping, address and port-dependent filtering.
    PortRestricted,
    /// Address and port-dependent mapping, ports at random.
    SymmetricRandom,
    /// Address and port-dependent mapping, ports one after the other.
    SymmetricSequential,
    /// Public IPv6 addresses, nothing unasked comes in; no IPv4.
    Ipv6Firewall,
}

/// Ports of [`Nat::SymmetricSequential`] between two reboots. The next reboot starts with other ones.
const SEQUENCE: u16 = 8192;
/// First port of the first sequence, and how far apart sequences begin.
const SEQUENCE_FROM: u16 = 20_000;
const SEQUENCE_STEP: u16 = 9000;
/// Sequences that fit below 65536.
const SEQUENCES: u16 = 5;

impl Nat {
    /// Whether hosts behind it have an IPv4 address.
    pub(crate) fn has_ipv4(self) -> bool {
        self != Self::Ipv6Firewall
    }

    /// Whether hosts behind it have an IPv6 address.
    pub(crate) fn has_ipv6(self) -> bool {
        matches!(self, Self::None | Self::Ipv6Firewall)
    }

    /// Whether it changes addresses.
    pub(crate) fn translates(self) -> bool {
        !matches!(self, Self::None | Self::Ipv6Firewall)
    }

    /// The rules of a router with links `wan` and `lan`. `external` is its address on the `wan`, `udp_timeout` the
    /// life of an idle mapping in whole seconds, `reboots` how often it has started anew. Loading them again forgets
    /// all mappings except those that connection tracking still holds.
    pub(super) fn rules(self, external: &str, udp_timeout: Duration, reboots: u16) -> String {
        let [input, mapping, record] = match self {
            Self::None => return String::new(),
            Self::Ipv6Firewall => return filter(),
            Self::FullCone => [FROM_ANYWHERE, &mapped(external), RECORD],
            Self::AddressRestricted => [FROM_CONTACTED, &mapped(external), RECORD],
            Self::PortRestricted => ["", &mapped(external), RECORD],
            Self::SymmetricRandom => ["", "oifname wan masquerade random,fully-random", ""],
            Self::SymmetricSequential => ["", &sequence(external, reboots), ""],
        };
        let life = udp_timeout.as_secs();
        format!(
            "table ip nat\ndelete table ip nat\ntable ip nat {{
                map external {{
                    type ipv4_addr . inet_service : ipv4_addr . inet_service
                    flags dynamic, timeout; timeout {life}s; size 65535
                }}
                map internal {{
                    type inet_service : ipv4_addr . inet_service
                    flags dynamic, timeout; timeout {life}s; size 65535
                }}
                set contacted {{
                    type inet_service . ipv4_addr
                    flags dynamic, timeout; timeout {life}s; size 65535
                }}
                chain prerouting {{
                    type nat hook prerouting priority dstnat
                    {input}
                }}
                chain postrouting {{
                    type nat hook postrouting priority srcnat
                    {mapping}
                }}
                chain record {{
                    type filter hook postrouting priority srcnat + 10
                    {record}
                }}
            }}\n{}",
            filter()
        )
    }
}

/// Lets nothing in that was not asked for. What is not wanted must be dropped before connection tracking confirms it:
/// a tracked knock would take the very port that the host behind wants for its own packets to the one who knocked.
fn filter() -> String {
    "table inet firewall\ndelete table inet firewall\ntable inet firewall {
        chain input {
            type filter hook input priority filter
            meta l4proto { tcp, udp } ct state new drop
        }
        chain forward {
            type filter hook forward priority filter
            iifname wan ct status dnat accept
            iifname wan ct state new drop
        }
    }\n"
    .to_owned()
}

const FROM_ANYWHERE: &str = "iifname wan meta l4proto udp dnat ip to udp dport map @internal";
const FROM_CONTACTED: &str =
    "iifname wan meta l4proto udp udp dport . ip saddr @contacted dnat ip to udp dport map @internal";

/// The recorded port if there is one, any other if not.
fn mapped(external: &str) -> String {
    format!(
        "oifname wan ip saddr {external} accept
        oifname wan meta l4proto udp snat ip to ip saddr . udp sport map @external
        oifname wan masquerade random"
    )
}

/// Runs after source NAT: the packet has its external source, connection tracking knows the local one. A connection
/// from inside has it as its original source, one from outside as the source of replies.
const RECORD: &str = "oifname wan meta l4proto udp ct status snat ct direction original \
        update @external { ct original ip saddr . ct original proto-src : ip saddr . udp sport } \
        update @internal { udp sport : ct original ip saddr . ct original proto-src } \
        update @contacted { udp sport . ip daddr }
    oifname wan meta l4proto udp ct status dnat ct direction reply \
        update @external { ct reply ip saddr . ct reply proto-src : ip saddr . udp sport } \
        update @internal { udp sport : ct reply ip saddr . ct reply proto-src } \
        update @contacted { udp sport . ip daddr }";

/// A table and not `numgen … offset`: the kernel takes that sum in the wrong byte order, ports would be 256 apart.
fn sequence(external: &str, reboots: u16) -> String {
    let first = SEQUENCE_FROM + reboots % SEQUENCES * SEQUENCE_STEP;
    let ports: Vec<String> = (0..SEQUENCE).map(|number| format!("{number}: {}", first + number)).collect();
    format!(
        "oifname wan meta l4proto udp snat ip to {external} : numgen inc mod {SEQUENCE} map {{ {} }}
        oifname wan masquerade random",
        ports.join(", ")
    )
}
