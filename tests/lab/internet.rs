//! The lab's internet: every kind of NAT behaves as its name says, every link as it was set, before agents meet them.

use std::net::{IpAddr, Ipv4Addr};
use std::process::Command;
use std::time::Duration;

use crate::harness::{Host, Internet, Link, Nat, PATIENT, Place, Program, SOON, Shape, median, run, wait_until};

/// Ports of the reflectors.
const PORTS: [u16; 2] = [7000, 7001];
/// What may be between the two directions of the machine's timers and schedules and what was asked for.
const ACCURACY_MS: f64 = 2.0;

/// An internet with two public hosts that tell callers how they look.
struct Scene {
    _reflectors: [Program; 2],
    one: Place,
    other: Place,
    internet: Internet,
}

/// How one local port looks to four others.
struct Mapping {
    local: u16,
    addresses: Vec<IpAddr>,
    ports: Vec<u16>,
}

#[test]
fn no_nat() {
    let scene = Scene::new();
    let place = scene.internet.host_behind(Nat::None, None);
    for ipv6 in [false, true] {
        let mapping = scene.mapping(&place.host, ipv6);
        assert_eq!(mapping.ports, [mapping.local; 4]);
        let own = if ipv6 { IpAddr::from(place.host.ipv6) } else { place.host.ipv4.into() };
        assert_eq!(mapping.addresses, [own; 4]);
        assert_eq!(scene.filtering(&place.host, ipv6), "address port same");
    }
    scene.carries_tcp(&place.host, false);
}

#[test]
fn full_cone() {
    Scene::new().cone(Nat::FullCone, "address port same");
}

#[test]
fn address_restricted() {
    Scene::new().cone(Nat::AddressRestricted, "port same");
}

#[test]
fn port_restricted() {
    Scene::new().cone(Nat::PortRestricted, "same");
}

#[test]
fn symmetric_random() {
    let scene = Scene::new();
    let place = scene.internet.host_behind(Nat::SymmetricRandom, None);
    let ports = scene.symmetric(&place);
    assert!(!ports.windows(2).all(|two| two[0].abs_diff(two[1]) < 256), "{ports:?} are close to each other");
}

#[test]
fn symmetric_sequential() {
    let scene = Scene::new();
    let place = scene.internet.host_behind(Nat::SymmetricSequential, None);
    let ports = scene.symmetric(&place);
    assert!(ports.windows(2).all(|two| two[1] == two[0] + 1), "{ports:?} are not one after the other");
}

#[test]
fn double_nat() {
    let scene = Scene::new();
    let place = scene.internet.double_nat_host(Nat::PortRestricted, Nat::FullCone, None);
    let inner = place.router().external_ipv4();
    assert!(inner.octets()[..2] == [100, 64], "{inner} is not a carrier's");
    let mapping = scene.mapping(&place.host, false);
    assert_eq!(mapping.addresses, [IpAddr::from(place.carrier().external_ipv4()); 4]);
    assert_eq!(mapping.ports, [mapping.ports[0]; 4]);
    assert_eq!(scene.filtering(&place.host, false), "same", "the stricter of the two");
    // A neighbour in the carrier's network, with no home router in between: the carrier alone lets everything in.
    let neighbour = scene.internet.host_at(place.carrier());
    assert_eq!(scene.filtering(&neighbour, false), "address port same");
    scene.carries_tcp(&place.host, false);
}

#[test]
fn ipv6_firewall() {
    let scene = Scene::new();
    let place = scene.internet.host_behind(Nat::Ipv6Firewall, None);
    let mapping = scene.mapping(&place.host, true);
    assert_eq!((mapping.addresses, mapping.ports), (vec![place.host.ipv6.into(); 4], vec![mapping.local; 4]));
    assert_eq!(scene.filtering(&place.host, true), "same");
    assert_eq!(scene.one.host.ping(place.host.ipv6.into(), 1), 0, "an echo that nobody asked for came in");
    assert!(!place.host.run("ip route get 203.0.113.1").status.success(), "there is IPv4");
    scene.carries_tcp(&place.host, true);
}

#[test]
fn unasked_packets_do_not_spoil_a_mapping() {
    let scene = Scene::new();
    let place = scene.internet.host_behind(Nat::PortRestricted, None);
    let look = scene.where_is(&place.host, 5000);
    // The other reflector knocks before the host has ever called it.
    let knock = format!(
        "import socket;socket.socket(socket.AF_INET,socket.SOCK_DGRAM).sendto(b'tell {look} x',('{}',{}))",
        scene.other.host.ipv4, PORTS[0]
    );
    run(scene.one.host.command("python3").args(["-c", &knock]), SOON).ok();
    let arguments = format!("where {} {} 5000", scene.other.host.ipv4, PORTS[0]);
    assert_eq!(place.host.call("nat_probe.py", &arguments).ok().trim(), look);
}

#[test]
fn mappings_end_when_idle_and_at_a_reboot() {
    let scene = Scene::new();
    for nat in [Nat::FullCone, Nat::PortRestricted] {
        let place = scene.internet.host_behind(nat, None);
        let router = place.router();
        router.set_udp_timeout(Duration::from_secs(1));
        assert_eq!(scene.idle(&place.host, 0.2), "works", "{nat:?}");
        assert_eq!(scene.idle(&place.host, 1.5), "gone", "{nat:?}");
        router.set_udp_timeout(Duration::from_secs(60));
        let before = scene.where_is(&place.host, 5000);
        assert_eq!(scene.where_is(&place.host, 5000), before);
        router.reboot();
        let after = scene.where_is(&place.host, 5000);
        assert_ne!(after, before);
        let external = router.external_ipv4();
        assert!(after.starts_with(&format!("{external} ")));
        router.reboot_with_new_address();
        assert_ne!(router.external_ipv4(), external);
        assert!(scene.where_is(&place.host, 5000).starts_with(&format!("{} ", router.external_ipv4())));
    }
}

#[test]
fn hosts_move_between_routers() {
    let scene = Scene::new();
    let place = scene.internet.host_behind(Nat::PortRestricted, None);
    let elsewhere = scene.internet.router(Nat::SymmetricSequential, None);
    let sixth = scene.internet.router(Nat::Ipv6Firewall, None);
    assert!(scene.where_is(&place.host, 5000).starts_with(&place.router().external_ipv4().to_string()));
    elsewhere.attach(&place.host);
    assert!(scene.where_is(&place.host, 5000).starts_with(&elsewhere.external_ipv4().to_string()));
    let (ipv4, ipv6) = sixth.attach(&place.host);
    assert_eq!(ipv4, Ipv4Addr::UNSPECIFIED);
    assert!(scene.mapping(&place.host, true).addresses.iter().all(|seen| *seen == IpAddr::from(ipv6)));
}

#[test]
#[ignore = "measures the link itself: run it by hand where nothing else runs"]
fn a_link_takes_its_time() {
    let internet = Internet::new();
    let near = internet.host_behind(Nat::PortRestricted, Some(Shape::delay(10)));
    let far = internet.public_host(Some(Shape::delay(10)));
    let address = far.host.ipv4;
    near.host.wait_until_reaches(address.into());
    let times = round_trips(&near.host, address, 40);
    let middle = median(&times);
    eprintln!("link of 4 x 10 ms: median {middle:.2} ms, most {:.2} ms", times.iter().copied().fold(0.0, f64::max));
    assert!((middle - 40.0).abs() < ACCURACY_MS, "{middle} ms, not 40");
    near.link().set(Shape { jitter: Duration::from_millis(8), ..Shape::delay(20) });
    let times = round_trips(&near.host, address, 40);
    let spread = times.iter().copied().fold(0.0, f64::max) - times.iter().copied().fold(f64::MAX, f64::min);
    assert!((55.0..65.0).contains(&median(&times)) && spread > 5.0, "60 ms with jitter: {times:?}");
    near.link().set_each(Shape::delay(30), Shape::CLEAR);
    let middle = median(&round_trips(&near.host, address, 40));
    assert!((middle - 50.0).abs() < ACCURACY_MS, "{middle} ms, not 50");
}

#[test]
#[ignore = "measures the link itself: run it by hand where nothing else runs"]
fn a_link_loses_and_reorders() {
    let internet = Internet::new();
    let (near, far) = (internet.public_host(Some(Shape::CLEAR)), internet.public_host(None));
    near.host.wait_until_reaches(far.host.ipv4.into());
    let flood = |extra: &str| near.host.run(&format!("ping -n -q -i 0.002 -W 1 {extra} {}", far.host.ipv4)).stdout;
    let link: &Link = near.link();
    link.set_each(Shape { loss: 0.2, ..Shape::CLEAR }, Shape::CLEAR);
    let before = link.counts();
    flood("-c 1000");
    let after = link.counts();
    let (lost, passed) = (after[0].lost - before[0].lost, after[0].passed - before[0].passed);
    // Five standard deviations of 1000 draws at 0.2 are 63.
    assert!((137..=263).contains(&lost) && lost + passed >= 1000, "lost {lost} of 1000, passed {passed}");
    assert_eq!(after[1].lost, before[1].lost, "only one direction loses");
    // Echoes that are overtaken come back with a sequence number below one seen before.
    link.set_each(Shape { reorder: 0.1, reorder_by: Duration::from_millis(50), ..Shape::delay(2) }, Shape::CLEAR);
    let said = near.host.run(&format!("ping -n -i 0.002 -c 500 -W 1 {}", far.host.ipv4)).stdout;
    let sequence = |line: &str| line.split("icmp_seq=").nth(1)?.split(' ').next()?.parse::<u32>().ok();
    let order: Vec<u32> = said.lines().filter_map(sequence).collect();
    let overtaken = order.windows(2).filter(|two| two[1] < two[0]).count();
    let held_back = link.counts()[0].held_back;
    assert!(overtaken > 10 && order.len() == 500 && held_back > 10, "{overtaken} of {} overtaken", order.len());
    link.set(Shape::DEAD);
    assert_eq!(near.host.ping(far.host.ipv4.into(), 2), 0);
    link.set(Shape::CLEAR);
    assert_eq!(near.host.ping(far.host.ipv4.into(), 2), 2, "alive again at once");
}

#[test]
fn a_link_is_narrow() {
    let internet = Internet::new();
    let near = internet.host_behind(Nat::PortRestricted, Some(Shape::CLEAR));
    let far = internet.public_host(None);
    let address = far.host.ipv4;
    near.host.wait_until_reaches(address.into());
    let whole = |bytes: u16| {
        near.host.ok("ip route flush cache");
        near.host.run(&format!("ping -n -c 1 -W 1 -M do -s {} {address}", bytes - 28))
    };
    let is_refused = |bytes: u16, said: &str| {
        let ping = whole(bytes);
        !ping.status.success() && ping.stdout.contains(said)
    };
    let vanishes = |bytes: u16| {
        let ping = whole(bytes);
        !ping.status.success() && !(ping.stdout + &ping.stderr).contains("mtu")
    };
    let passes = |bytes: u16| whole(bytes).status.success();
    assert!(passes(1500));
    near.link().set(Shape { drop_over: Some(1400), ..Shape::CLEAR });
    assert!(passes(1400) && vanishes(1401));
    assert!(near.link().counts()[0].too_big > 0);
    near.link().set(Shape::CLEAR);
    // The router says so, the core says so, and neither.
    near.router().set_mtu(1340);
    assert!(passes(1340) && is_refused(1341, "mtu = 1340"));
    near.router().set_mtu(1500);
    far.set_mtu(1280);
    assert!(passes(1280) && is_refused(1281, "mtu = 1280"));
    internet.drop_icmp_errors();
    assert!(passes(1280) && vanishes(1281));
    far.set_mtu(1500);
    near.router().set_mtu(1340);
    near.router().drop_icmp_errors();
    assert!(passes(1340) && vanishes(1341));
    near.set_mtu(9000);
    far.set_mtu(9000);
    assert!(passes(9000));
}

#[test]
#[ignore = "measures the link itself: run it by hand where nothing else runs"]
fn a_link_has_a_rate() {
    let internet = Internet::new();
    let (near, far) = (internet.public_host(Some(Shape::CLEAR)), internet.public_host(None));
    near.host.wait_until_reaches(far.host.ipv4.into());
    let mut server = far.host.spawn("iperf3 -s --forceflush");
    server.wait_for_text("listening");
    let megabits = || {
        let said = near.host.run_within(PATIENT, &format!("iperf3 -J -t 2 -O 1 -c {}", far.host.ipv4)).ok();
        let report: serde_json::Value = serde_json::from_str(&said).unwrap();
        report["end"]["sum_received"]["bits_per_second"].as_f64().unwrap() / 1e6
    };
    let unlimited = megabits();
    near.link().set(Shape { rate: Some(20_000_000), ..Shape::CLEAR });
    let limited = megabits();
    eprintln!("link: {unlimited:.0} Mbit/s unlimited, {limited:.1} Mbit/s at a rate of 20");
    assert!(unlimited > 200.0, "{unlimited} Mbit/s");
    assert!((16.0..20.0).contains(&limited), "{limited} Mbit/s at a rate of 20");
}

#[test]
fn there_is_no_way_out_of_the_internet() {
    let internet = Internet::new();
    let place = internet.host_behind(Nat::None, None);
    for address in ["192.0.2.1", "8.8.8.8", "2001:db8:ffff::1", "2606:4700::1"] {
        assert_eq!(place.host.ping(address.parse().unwrap(), 1), 0, "{address} answers");
    }
}

#[test]
fn nothing_is_left_of_an_internet_even_after_a_panic() {
    let mut names = Vec::new();
    let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let internet = Internet::new();
        let place = internet.double_nat_host(Nat::FullCone, Nat::PortRestricted, Some(Shape::delay(1)));
        let prefix = place.host.namespace().rsplit_once('-').unwrap().0.to_owned();
        names.push(prefix.clone());
        assert_eq!(namespaces(&prefix), 4, "host, home router, carrier's router and core");
        assert_eq!(links(&prefix), 1);
        panic!("on purpose");
    }));
    assert!(ended.unwrap_err().is::<&str>(), "an assertion failed before the panic on purpose");
    let prefix = &names[0];
    wait_until("namespaces are gone", SOON, || namespaces(prefix) == 0);
    wait_until("links are gone", SOON, || links(prefix) == 0);
}

impl Scene {
    fn new() -> Self {
        let internet = Internet::new();
        let (one, other) = (internet.public_host(None), internet.public_host(None));
        let reflectors =
            [&one, &other].map(|place| place.host.serve("nat_reflect.py", &format!("{} {}", PORTS[0], PORTS[1])));
        Self { _reflectors: reflectors, one, other, internet }
    }

    fn targets(&self, ipv6: bool) -> String {
        let [one, other] = [&self.one, &self.other]
            .map(|place| if ipv6 { place.host.ipv6.to_string() } else { place.host.ipv4.to_string() });
        format!("{one} {other} {} {}", PORTS[0], PORTS[1])
    }

    fn mapping(&self, host: &Host, ipv6: bool) -> Mapping {
        let said = host.call("nat_probe.py", &format!("mapping {}", self.targets(ipv6))).ok();
        let mut lines = said.lines();
        let local = lines.next().unwrap().parse().unwrap();
        let (mut addresses, mut ports) = (Vec::new(), Vec::new());
        for (address, port) in lines.map(|line| line.split_once(' ').unwrap()) {
            addresses.push(address.parse::<IpAddr>().unwrap());
            ports.push(port.parse().unwrap());
        }
        assert_eq!(ports.len(), 4, "{said}");
        Mapping { local, addresses, ports }
    }

    fn filtering(&self, host: &Host, ipv6: bool) -> String {
        host.call("nat_probe.py", &format!("filtering {}", self.targets(ipv6))).ok().trim().to_owned()
    }

    fn where_is(&self, host: &Host, local: u16) -> String {
        let arguments = format!("where {} {} {local}", self.one.host.ipv4, PORTS[0]);
        host.call("nat_probe.py", &arguments).ok().trim().to_owned()
    }

    fn idle(&self, host: &Host, seconds: f64) -> String {
        let arguments = format!("idle {} {} {} {seconds}", self.one.host.ipv4, PORTS[0], PORTS[1]);
        host.call("nat_probe.py", &arguments).ok().trim().to_owned()
    }

    /// Endpoint-independent mapping with this filtering.
    fn cone(&self, nat: Nat, let_in: &str) {
        let place = self.internet.host_behind(nat, None);
        let external = IpAddr::from(place.router().external_ipv4());
        let neighbour = self.internet.host_at(place.router());
        let [mine, theirs] = [&place.host, &neighbour].map(|host| {
            let mapping = self.mapping(host, false);
            assert_eq!(mapping.addresses, [external; 4]);
            assert_eq!(mapping.ports, [mapping.ports[0]; 4], "one port for all");
            assert_ne!(mapping.ports[0], mapping.local, "the local port is kept");
            assert_eq!(self.filtering(host, false), let_in);
            mapping.ports[0]
        });
        assert_ne!(mine, theirs, "two hosts share a port");
        // One local port of two hosts does not become one external port.
        assert_ne!(self.where_is(&place.host, 5000), self.where_is(&neighbour, 5000));
        self.carries_tcp(&place.host, false);
    }

    /// Address and port-dependent mapping and filtering; returns the ports in the order they were given.
    fn symmetric(&self, place: &Place) -> Vec<u16> {
        let mapping = self.mapping(&place.host, false);
        assert_eq!(mapping.addresses, [IpAddr::from(place.router().external_ipv4()); 4]);
        let mut different = mapping.ports.clone();
        different.sort_unstable();
        different.dedup();
        assert_eq!(different.len(), 4, "{:?}", mapping.ports);
        assert_eq!(self.filtering(&place.host, false), "same");
        self.carries_tcp(&place.host, false);
        mapping.ports
    }

    fn carries_tcp(&self, host: &Host, ipv6: bool) {
        let address = if ipv6 { IpAddr::from(self.one.host.ipv6) } else { self.one.host.ipv4.into() };
        let port = self.one.host.fresh_port();
        std::fs::write(self.internet.directory().join("word"), "carried").unwrap();
        let _server = self.one.host.serve_files(address, port, self.internet.directory());
        let authority = std::net::SocketAddr::new(address, port);
        assert_eq!(host.ok(&format!("curl -sS --max-time 5 http://{authority}/word")), "carried");
    }
}

/// Round-trip times in milliseconds.
fn round_trips(host: &Host, address: Ipv4Addr, count: u32) -> Vec<f64> {
    let said = host.ok(&format!("ping -n -i 0.02 -c {count} {address}"));
    let time = |line: &str| line.split("time=").nth(1)?.split(' ').next()?.parse().ok();
    let times: Vec<f64> = said.lines().filter_map(time).collect();
    assert_eq!(times.len(), usize::try_from(count).unwrap(), "{said}");
    times
}

fn namespaces(prefix: &str) -> usize {
    let listed = run(Command::new("ip").args(["netns", "list"]), SOON).ok();
    listed.lines().filter(|line| line.starts_with(&format!("{prefix}-"))).count()
}

/// Link programs that carry something of this lab.
fn links(prefix: &str) -> usize {
    let mut listed = Command::new("ps");
    let listed = run(listed.args(["-eo", "args"]), SOON).ok();
    listed.lines().filter(|line| line.contains("link.py") && line.contains(&format!("{prefix}-"))).count()
}
