//! Segmentation, coalescing and checksums change nothing: what leaves the device of one agent enters that of the other.
//!
//! ```text
//!   host a ── device ── agent ══ plain, or a link that delays, loses and reorders ══ agent ── device ── host b
//!               │                                                                               │
//!       what is sent, cut as                          =                          what is received, cut as
//!       the kernel asks for                                                      the agent asks for
//! ```
//!
//! Offloads are as they are by default, and what enters shows that they took place: packets longer than the MTU. Host b
//! has another range for IPv4 aliases, so that all IPv4 is rewritten.

use std::net::IpAddr;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harness::{
    Agent, Host, Internet, Lab, PATIENT, Program, SOON, Shape, observe, run, script, setting, trust, unix_seconds,
    wait_until,
};

/// Where host b has its aliases.
const OTHER_RANGE: [&str; 2] = ["--ipv4-range", "10.210.0.0/15"];
/// What the devices carry in one piece without offloads, bytes.
const MTU: u64 = 1420;
/// Bytes of the transfer that is part of every run, and of that of `scripts/matrix offload`.
const SHORT: u64 = 100_000_000;
const LONG: u64 = 1_000_000_000;
/// Flows of datagrams at once.
const FLOWS: u16 = 3;
/// What the kernel counts as [`DAMAGE`], too: the answer to a SYN that is sent again because its acknowledgement was lost.
const SYN_AGAIN: (&str, &str) = ("TcpInErrs", "TcpExtTCPSYNChallenge");
/// What the kernel counts when it is given something damaged.
const DAMAGE: [&str; 9] = [
    "TcpInErrs",
    "TcpInCsumErrors",
    "UdpInCsumErrors",
    "Udp6InCsumErrors",
    "IpInHdrErrors",
    "IpExtInCsumErrors",
    "Ip6InHdrErrors",
    "Ip6InTruncatedPkts",
    "Icmp6InCsumErrors",
];

#[test]
fn a_transfer_arrives_unchanged() {
    transfer(SHORT);
}

#[test]
#[ignore = "long, and with a figure of optimised programs: scripts/matrix offload"]
fn a_gigabyte_arrives_unchanged() {
    transfer(LONG);
}

#[test]
fn streams_enter_as_they_left() {
    let lab = Lab::two_hosts();
    let scene = Scene::on(lab.a(), lab.b());
    scene.mark_congestion();
    let counts = scene.compare(Order::SomeLost, || {
        for (number, way) in scene.ways().iter().enumerate() {
            way.streams(6, 1_500_000, &format!("{}-{number}", seed()));
        }
    });
    let answers = counts.iter().filter_map(|count| count["sent_ecn"].as_u64()).sum::<u64>();
    assert!(answers > 0, "no packet that was to be cut said that the window was reduced: {counts:?}");
    assert!(counts.iter().all(|count| count["sent_cut"] != 0), "nothing was to be cut: {counts:?}");
    assert!(counts.iter().all(|count| count["received_cut"] != 0), "nothing was put together: {counts:?}");
    scene.assert_undamaged();
}

#[test]
fn flows_keep_their_order_in_several_queues() {
    const QUEUES: usize = 3;
    let lab = Lab::two_hosts();
    let configuration = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&configuration, format!("queues = {QUEUES}")).unwrap();
    let scene = Scene::with(lab.a(), lab.b(), &["--config", configuration.path().to_str().unwrap()]);
    for side in &scene.both {
        assert_eq!(side.carrying_threads(), 2 * QUEUES);
    }
    scene.compare(Order::Flows, || {
        for (number, way) in scene.ways().iter().enumerate() {
            let seed = format!("{}-{number}", seed());
            way.streams(8, 500_000, &seed);
            let [sent, received] = way.datagrams(20, &seed, 5.0, Order::Any);
            assert_eq!(received, sent, "datagrams to {} are missing", way.address);
        }
    });
    scene.assert_undamaged();
}

#[test]
fn datagrams_enter_as_they_left() {
    let lab = Lab::two_hosts();
    let scene = Scene::on(lab.a(), lab.b());
    let counts = scene.compare(Order::Same, || {
        for (number, way) in scene.ways().iter().enumerate() {
            let [sent, received] = way.datagrams(60, &format!("{}-{number}", seed()), 5.0, Order::Same);
            assert_eq!(received, sent, "datagrams to {} are missing", way.address);
        }
    });
    assert!(counts.iter().all(|count| count["sent_cut"] != 0), "nothing was to be cut: {counts:?}");
    assert!(counts.iter().all(|count| count["received_cut"] != 0), "nothing was put together: {counts:?}");
    scene.assert_undamaged();
}

#[test]
fn odd_packets_enter_as_they_left() {
    let lab = Lab::two_hosts();
    let scene = Scene::on(lab.a(), lab.b());
    let counts = scene.compare(Order::Same, || {
        for (number, way) in scene.ways().iter().enumerate() {
            let (host, port) = (way.from.agent.host(), way.to.agent.host().fresh_port());
            let (device, source) = (way.from.agent.interface(), way.from.own_like(way.address));
            let words = format!("{device} {source} {} {port} {}-{number}", way.address, seed());
            let sent = host.call("odd_packets.py", &words).ok();
            eprintln!("seed {}-{number} to {}: {} odd packets", seed(), way.address, sent.trim());
        }
    });
    assert!(counts.iter().all(|count| count["received_cut"] != 0), "nothing was put together: {counts:?}");
    scene.both.iter().for_each(Side::assert_nothing_refused);
}

#[test]
#[ignore = "half a minute: scripts/matrix offload"]
fn a_bad_link_loses_and_reorders_and_changes_nothing() {
    let internet = Internet::new();
    let near = internet.public_host(Some(Shape::delay(3)));
    let far = internet.public_host(None);
    let scene = Scene::on(&near.host, &far.host);
    let lossy = Shape { loss: 0.02, jitter: Duration::from_millis(2), ..Shape::delay(3) };
    let reordering = Shape { reorder: 0.05, ..lossy };
    for (shape, order) in [(lossy, Order::SomeLost), (reordering, Order::Any)] {
        near.link().set(shape);
        scene.compare(order, || {
            for (number, way) in scene.ways().iter().enumerate() {
                let seed = format!("{}-{number}", seed());
                let [sent, received] = way.datagrams(40, &seed, 0.05, order);
                assert!(received * 2 > sent, "{received} of {sent} datagrams to {} came", way.address);
                way.streams(3, 300_000, &seed);
            }
        });
    }
    let [up, down] = near.link().counts();
    assert!(up.lost > 0 && down.lost > 0 && up.held_back > 0 && down.held_back > 0, "{up:?} {down:?}");
    scene.assert_undamaged();
}

fn transfer(bytes: u64) {
    let lab = Lab::two_hosts();
    let scene = Scene::on(lab.a(), lab.b());
    for way in &scene.ways()[..2] {
        let counted = || [way.from.device_counts("tx"), way.to.device_counts("rx")];
        let (before, start) = (counted(), Instant::now());
        way.streams(1, bytes, &seed().to_string());
        let took = start.elapsed().as_secs_f64();
        let after = counted();
        let [left, entered] = [0, 1].map(|at| {
            let [packets, bytes] = [0, 1].map(|of| after[at][of] - before[at][of]);
            bytes / packets.max(1)
        });
        let again: u64 = scene.both.iter().map(|side| side.kernel_count("TcpRetransSegs")).sum();
        eprintln!(
            "{bytes} bytes to {} in {took:.1} s, {:.0} Mbit/s: {left} bytes in a packet that left, {entered} in one \
             that entered, {again} segments sent again so far",
            way.address,
            bytes as f64 * 8e-6 / took
        );
        assert!(left > 2 * MTU, "{left} bytes in a packet that left: nothing was to be cut");
        assert!(entered > 2 * MTU, "{entered} bytes in a packet that entered: nothing was put together");
    }
    scene.assert_undamaged();
}

/// What is the same on both sides.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Order {
    /// All packets, and their order.
    Same,
    /// The order, but some packets do not arrive.
    SomeLost,
    /// The order of each flow; of TCP, nothing arrives that was not sent, or twice.
    Flows,
    /// Nothing arrives that was not sent, or twice.
    Any,
}

impl Order {
    fn word(self) -> &'static str {
        match self {
            Self::Same => "in_order",
            Self::SomeLost => "some_lost",
            Self::Flows => "flows",
            Self::Any => "reordered",
        }
    }
}

/// Two agents that trust each other, on a path whose MTU is known. It is the only one: at a change of paths packets may
/// overtake others.
struct Scene<'lab> {
    both: [Side<'lab>; 2],
}

/// An agent, and what its host calls it and its peer: IPv6, IPv4.
struct Side<'lab> {
    agent: Agent<'lab>,
    own: [IpAddr; 2],
    peer: [IpAddr; 2],
}

/// From a host to another, which it knows by this address.
struct Way<'scene, 'lab> {
    from: &'scene Side<'lab>,
    to: &'scene Side<'lab>,
    address: IpAddr,
}

impl<'lab> Scene<'lab> {
    fn on(a: &'lab Host, b: &'lab Host) -> Self {
        Self::with(a, b, &[])
    }

    /// With these flags more.
    fn with(a: &'lab Host, b: &'lab Host, flags: &[&str]) -> Self {
        let _ = [a, b].map(|host| host.ok("ip -6 addr flush dev eth0"));
        let (mut a, mut b) = (Agent::new(a), Agent::new(b));
        b.flags.extend(OTHER_RANGE.map(Into::into));
        for agent in [&mut a, &mut b] {
            agent.flags.extend(flags.iter().map(|flag| (*flag).into()));
            agent.up();
        }
        trust(&a, &b);
        for (one, other) in [(&a, &b), (&b, &a)] {
            one.host().wait_until_reaches(other.ipv6().into());
            wait_until("the path's MTU is known", PATIENT, || {
                one.peer(&other.id()).is_some_and(|peer| peer["path"]["mtu"] == MTU)
            });
        }
        let [of_b, of_a] = [a.addresses_of(&b), b.addresses_of(&a)];
        assert!(of_b[1] != IpAddr::from(b.ipv4()) && of_a[1] != IpAddr::from(a.ipv4()), "no IPv4 is rewritten");
        let both = [(a, of_b), (b, of_a)].map(|(agent, peer)| {
            let own = [agent.ipv6().into(), agent.ipv4().into()];
            Side { agent, own, peer }
        });
        Self { both }
    }

    /// From a to b by IPv6 and IPv4, and back.
    fn ways(&self) -> [Way<'_, 'lab>; 4] {
        let [a, b] = &self.both;
        [(a, b, 0), (a, b, 1), (b, a, 0), (b, a, 1)].map(|(from, to, at)| Way { from, to, address: from.peer[at] })
    }

    /// Records both devices while `traffic` runs, and compares what left one with what entered the other. Returns what
    /// each recording counted.
    fn compare(&self, order: Order, traffic: impl FnOnce()) -> [Value; 2] {
        let directory = tempfile::tempdir().unwrap();
        let file = |side: usize, kind: &str| directory.path().join(format!("{side}{kind}"));
        let recordings = [0, 1].map(|side| self.both[side].record(&file(side, "")));
        traffic();
        // Until what the last packets made the other host answer has arrived.
        observe(Duration::from_millis(500));
        let counts = recordings.map(|recording| {
            let said = recording.interrupt_within(PATIENT).ok();
            serde_json::from_str(said.trim_start_matches("ready\n")).unwrap()
        });
        for (from, to) in [(0, 1), (1, 0)] {
            let mut compare = std::process::Command::new("/usr/bin/python3");
            compare.arg(script("device_packets.py")).arg("compare");
            compare.args([file(from, ".sent"), file(to, ".received")]).arg(order.word());
            let said = run(&mut compare, PATIENT * 2).ok();
            eprintln!("packets that left host {} and entered host {}: {}", from, to, said.trim());
        }
        eprintln!("seen by the devices: {} {}", counts[0], counts[1]);
        counts
    }

    /// Has TCP negotiate ECN, and some packets say that they met congestion before they leave.
    fn mark_congestion(&self) {
        let rule = |family: &str| format!("{family} ecn ect0 numgen random mod 10 0 {family} ecn set ce");
        for side in &self.both {
            let rules = format!(
                "table inet congestion {{ chain output {{ type filter hook output priority 0; {}; {}; }}; }}",
                rule("ip"),
                rule("ip6")
            );
            let line = format!("echo 1 >/proc/sys/net/ipv4/tcp_ecn && echo '{rules}' | nft -f -");
            side.agent.host().shell(&line).ok();
        }
    }

    fn assert_undamaged(&self) {
        for side in &self.both {
            for name in DAMAGE {
                let harmless = if name == SYN_AGAIN.0 { side.kernel_count(SYN_AGAIN.1) } else { 0 };
                let damaged = side.kernel_count(name).saturating_sub(harmless);
                assert_eq!(damaged, 0, "{name} on host {}, {harmless} harmless ones left out", side.agent.host().name);
            }
            side.assert_nothing_refused();
        }
    }
}

impl Side<'_> {
    /// Its own address of the version of this one.
    fn own_like(&self, address: IpAddr) -> IpAddr {
        self.own[usize::from(address.is_ipv4())]
    }

    fn carrying_threads(&self) -> usize {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.agent.pid())).unwrap();
        let names = tasks.map(|task| std::fs::read_to_string(task.unwrap().path().join("comm")).unwrap());
        names.filter(|name| name.starts_with("agentnet-in") || name.starts_with("agentnet-out")).count()
    }

    /// The agent took all that the device gave, and the device all that the agent gave.
    fn assert_nothing_refused(&self) {
        for why in ["malformed", "interface"] {
            let drops = &self.agent.json(&["status"])["drops"];
            assert_eq!(self.agent.drops(why), 0, "{why} on host {}: {drops}", self.agent.host().name);
        }
    }

    fn record(&self, file: &std::path::Path) -> Program {
        let ([own6, own4], [peer6, peer4]) = (self.own, self.peer);
        let words = format!("record {} {} {own6} {peer6} {own4} {peer4}", self.agent.interface(), file.display());
        self.agent.host().serve("device_packets.py", &words)
    }

    /// Packets and bytes of the device, `tx` or `rx` from the host's point of view.
    fn device_counts(&self, direction: &str) -> [u64; 2] {
        ["packets", "bytes"].map(|what| {
            let file = format!("/sys/class/net/{}/statistics/{direction}_{what}", self.agent.interface());
            self.agent.host().ok(&format!("cat {file}")).trim().parse().unwrap()
        })
    }

    /// What the host's kernel counted since there is the host, by the name that `nstat` has for it.
    fn kernel_count(&self, name: &str) -> u64 {
        let counts: Value = serde_json::from_str(&self.agent.host().ok("nstat -asz -j")).unwrap();
        counts["kernel"][name].as_u64().unwrap_or_else(|| panic!("the kernel does not count {name}"))
    }
}

impl Way<'_, '_> {
    /// Sends so many streams at once; both ends have seen the same.
    fn streams(&self, count: usize, bytes: u64, seed: &str) {
        let host = self.to.agent.host();
        let (listen, port) = (self.to.own_like(self.address), host.fresh_port());
        let receiver = host.serve("streams.py", &format!("receive {listen} {port} {count}"));
        let words = format!("send {} {port} {count} {bytes} {seed}", self.address);
        let sent = self.from.agent.host().call_within(PATIENT * 5, "streams.py", &words).ok();
        let received = receiver.finish(SOON).ok();
        assert_eq!(
            received.trim_start_matches("ready\n"),
            sent,
            "seed {seed}, to {}: changed on the way",
            self.address
        );
        let whole = |line: &&str| line.split(' ').nth(1) == Some(&bytes.to_string());
        assert_eq!(sent.lines().filter(whole).count(), count, "{sent}");
        let hash = sent.lines().next().and_then(|line| line.split(' ').nth(2)).unwrap();
        eprintln!("seed {seed}, to {}: {count} streams of {bytes} bytes, SHA-256 {hash}", self.address);
    }

    /// Sends datagrams, and waits after each round for those that are missing; returns how many were sent and received.
    fn datagrams(&self, rounds: u32, seed: &str, patience: f64, order: Order) -> [u64; 2] {
        let host = self.to.agent.host();
        let (listen, port) = (self.to.own_like(self.address), host.fresh_port());
        // One for each flow, and one for questions.
        (0..FLOWS).for_each(|_| _ = host.fresh_port());
        let words = format!("{port} {FLOWS} {rounds} {seed}");
        let order = if order == Order::Any { order.word() } else { "" };
        let receiver = host.serve("datagrams.py", &format!("receive {listen} {words} {order}"));
        let sender = self.from.agent.host().call("datagrams.py", &format!("send {} {words} {patience}", self.address));
        let said = receiver.finish(SOON).ok();
        sender.ok();
        let numbers: Vec<u64> = said.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        eprintln!("seed {seed}, to {}: datagrams sent, received, bytes: {numbers:?}", self.address);
        [numbers[0], numbers[1]]
    }
}

/// What all random traffic of this process begins with.
fn seed() -> u64 {
    static SEED: OnceLock<u64> = OnceLock::new();
    *SEED.get_or_init(|| setting("AGENTNET_LAB_SEED", (unix_seconds() * 1e3) as u64))
}
