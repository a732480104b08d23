//! Transfers complete over every underlay from 1,280 to 9,000 bytes, though nobody on the way says "too big".
//!
//! ```text
//!   host a ---- router ==== core ---- host b
//!          1500        MTU       1500           at 9000: 9000 everywhere
//!                       under test; ICMP errors are dropped by router and core
//! ```

use std::net::IpAddr;
use std::time::Duration;

use crate::harness::{Agent, Internet, Nat, PATIENT, Place, Shape, run, trust, wait_for};
use crate::traffic::{same_content, serve, write_random};

/// The MTU an interface has over links of 1,500 bytes and more.
const INTERFACE_MTU: u64 = 1420;
/// What a session over UDP over IPv4 adds, bytes; IPv6 adds 20 more.
const OVERHEAD: u64 = 20 + 8 + 32;
/// How near a search comes.
const NEAR: u64 = 16;
const FILE_LEN: u64 = 10 << 20;

#[test]
fn ipv4_1280() {
    Scene::new(Nat::PortRestricted, 1280).carries_everything();
}

#[test]
#[ignore = "the rest of the row: scripts/matrix mtu"]
fn ipv4_1340() {
    Scene::new(Nat::PortRestricted, 1340).carries_everything();
}

#[test]
#[ignore = "the rest of the row: scripts/matrix mtu"]
fn ipv4_1400() {
    Scene::new(Nat::PortRestricted, 1400).carries_everything();
}

#[test]
#[ignore = "the rest of the row: scripts/matrix mtu"]
fn ipv4_1500() {
    Scene::new(Nat::PortRestricted, 1500).carries_everything();
}

#[test]
#[ignore = "the rest of the row: scripts/matrix mtu"]
fn ipv4_9000() {
    Scene::new(Nat::PortRestricted, 9000).carries_everything();
}

#[test]
#[ignore = "the rest of the row: scripts/matrix mtu"]
fn ipv6_1280() {
    Scene::new(Nat::Ipv6Firewall, 1280).carries_everything();
}

#[test]
#[ignore = "the rest of the row: scripts/matrix mtu"]
fn ipv6_1340() {
    Scene::new(Nat::Ipv6Firewall, 1340).carries_everything();
}

#[test]
#[ignore = "the rest of the row: scripts/matrix mtu"]
fn ipv6_1400() {
    Scene::new(Nat::Ipv6Firewall, 1400).carries_everything();
}

#[test]
#[ignore = "the rest of the row: scripts/matrix mtu"]
fn ipv6_1500() {
    Scene::new(Nat::Ipv6Firewall, 1500).carries_everything();
}

#[test]
#[ignore = "the rest of the row: scripts/matrix mtu"]
fn ipv6_9000() {
    Scene::new(Nat::Ipv6Firewall, 9000).carries_everything();
}

#[test]
#[ignore = "the rest of the row: scripts/matrix mtu"]
fn a_link_of_the_host_itself() {
    let scene = Scene::new(Nat::PortRestricted, 1500);
    scene.near.set_mtu(1280);
    scene.with_agents(|scene, a, b| {
        assert_eq!(a.json(&["status"])["interface"]["mtu"], 1280);
        scene.transfer(a, b, b.ipv6().into());
        scene.transfer(b, a, a.ipv6().into());
    });
}

#[test]
#[ignore = "half a minute: scripts/matrix mtu"]
fn an_underlay_that_narrows_under_way() {
    Scene::new(Nat::PortRestricted, 1500).with_agents(|scene, a, b| {
        scene.transfer(a, b, b.ipv6().into());
        scene.near.router().set_mtu(1280);
        scene.transfer(a, b, b.ipv6().into());
        scene.transfer(b, a, a.ipv6().into());
    });
}

#[test]
#[ignore = "the rest of the row: scripts/matrix mtu"]
fn a_lossy_narrow_link() {
    // Frames of the link carry at most 1,280 bytes, and every fiftieth is lost.
    let shape = Shape { loss: 0.02, drop_over: Some(1280), ..Shape::delay(5) };
    let scene = Scene::with_access(Nat::PortRestricted, 1500, Some(shape));
    scene.with_agents(|scene, a, b| {
        scene.transfer(a, b, b.ipv6().into());
        scene.transfer(b, a, a.ipv6().into());
    });
}

/// An internet that says nothing, and two hosts.
struct Scene {
    near: Place,
    far: Place,
    underlay: u16,
    ipv6: bool,
    internet: Internet,
}

impl Scene {
    fn new(nat: Nat, underlay: u16) -> Self {
        Self::with_access(nat, underlay, None)
    }

    fn with_access(nat: Nat, underlay: u16, access: Option<Shape>) -> Self {
        let internet = Internet::new();
        let (near, far) = (internet.host_behind(nat, access), internet.public_host(None));
        if underlay > 1500 {
            near.set_mtu(underlay);
            far.set_mtu(underlay);
        }
        near.router().set_mtu(underlay);
        near.router().drop_icmp_errors();
        internet.drop_icmp_errors();
        Self { near, far, underlay, ipv6: nat.has_ipv6(), internet }
    }

    fn with_agents(&self, test: impl FnOnce(&Self, &Agent<'_>, &Agent<'_>)) {
        let (a, b) = (Agent::started(&self.near.host), Agent::started(&self.far.host));
        trust(&a, &b);
        test(self, &a, &b);
    }

    fn carries_everything(&self) {
        self.with_agents(|scene, a, b| {
            assert_eq!(a.json(&["status"])["interface"]["mtu"], INTERFACE_MTU);
            scene.transfer(a, b, b.ipv6().into());
            scene.transfer(b, a, b.alias_of(a).into());
            scene.finds_the_mtu(a, b);
            scene.tells_programs(a, b);
        });
    }

    /// `reader` gets a file from `server`, which it knows by this address.
    fn transfer(&self, reader: &Agent<'_>, server: &Agent<'_>, address: IpAddr) {
        let folder = self.internet.directory();
        write_random(&folder.join("file"), FILE_LEN);
        let (url, _server) = serve(server, address, folder);
        let received = folder.join("received");
        let mut curl = reader.host().command("curl");
        run(curl.args(["-sSf", "--max-time", "60", &url, "-o"]).arg(&received), PATIENT * 2).ok();
        assert!(same_content(&folder.join("file"), &received), "the file arrived changed from {url}");
    }

    fn finds_the_mtu(&self, a: &Agent<'_>, b: &Agent<'_>) {
        let overhead = OVERHEAD + if self.ipv6 { 20 } else { 0 };
        let fits = (u64::from(self.underlay) - overhead).min(INTERFACE_MTU);
        for (one, other) in [(a, b), (b, a)] {
            let what = format!("host {} finds a path MTU of {fits}", one.host().name);
            let mtu = wait_for(&what, Duration::from_secs(10), || {
                let path = one.peer(&other.id())?["path"].clone();
                let endpoint: std::net::SocketAddr = path["endpoint"].as_str()?.parse().ok()?;
                assert_eq!(endpoint.is_ipv6(), self.ipv6, "the path is not the one under test");
                path["mtu"].as_u64().filter(|mtu| (fits - NEAR..=fits).contains(mtu))
            });
            eprintln!("underlay {} {}: path MTU {mtu}", self.underlay, if self.ipv6 { "IPv6" } else { "IPv4" });
        }
    }

    /// Datagrams of every size pass, and what must not be fragmented is answered by "too big".
    fn tells_programs(&self, a: &Agent<'_>, b: &Agent<'_>) {
        for address in a.addresses_of(b) {
            let echo = |size: u64| a.host().run(&format!("ping -n -M do -c 2 -i 0.2 -W 2 -s {size} {address}"));
            let headers = if address.is_ipv6() { 48 } else { 28 };
            let said = echo(1184 - headers);
            assert!(said.status.success(), "{said}");
            let said = echo(INTERFACE_MTU - headers);
            let fits = a.peer(&b.id()).unwrap()["path"]["mtu"] == INTERFACE_MTU;
            assert_eq!(said.status.success(), fits, "{said}");
            let told = format!("{}{}", said.stdout, said.stderr);
            assert!(fits || told.contains("mtu"), "the program was not told: {said}");
            let said = a.host().run(&format!("ping -n -M dont -c 3 -i 0.2 -W 2 -s 1232 {address}"));
            assert!(said.status.success(), "a packet of 1,280 bytes does not pass: {said}");
        }
    }
}
