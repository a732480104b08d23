//! Unmodified traffic between two agents: ICMP, UDP, full-size packets, HTTP, and TCP that never stalls.

use std::net::IpAddr;
use std::time::Duration;

use serde_json::Value;

use crate::harness::{Agent, Capture, Finished, Host, Lab, PATIENT, Pair, SOON, run, setting, wait_until};

/// Sizes of UDP payloads: around the usual boundaries, and beyond the interface MTU (the kernel fragments those).
const SIZES: &str = "1 2 63 64 65 511 512 513 1023 1024 1199 1200 1201 1231 1232 1233 1280 1372 1400 1472 3000 8000";

/// Fragments on the wire, of either version.
const FRAGMENTS: &str = "(ip[6:2] & 0x3fff != 0) or (ip6 and ip6[6] == 44)";

#[test]
fn ping_both_ways() {
    let lab = Lab::two_hosts();
    let pair = Pair::trusted(&lab);
    for (one, other) in both_ways(&pair) {
        for address in one.addresses_of(other) {
            one.host().wait_until_reaches(address);
            assert_eq!(one.host().ping(address, 20), 20, "echoes from {address}");
        }
    }
}

#[test]
fn udp_of_every_size_both_ways() {
    let lab = Lab::two_hosts();
    let pair = Pair::trusted(&lab);
    for (one, other) in both_ways(&pair) {
        for address in one.addresses_of(other) {
            let port = other.host().fresh_port();
            let listen = if address.is_ipv6() { IpAddr::from(other.ipv6()) } else { other.ipv4().into() };
            let _echo = other.host().serve("udp_echo.py", &format!("{listen} {port}"));
            one.host().call("udp_call.py", &format!("{address} {port} {SIZES}")).ok();
        }
    }
}

#[test]
fn full_size_packets_are_not_fragmented_on_the_wire() {
    let lab = Lab::two_hosts();
    let pair = Pair::trusted(&lab);
    let mtu = pair.a.json(&["status"])["interface"]["mtu"].as_u64().unwrap();
    assert!(mtu >= 1280, "IPv6 needs an MTU of 1280, the interface has {mtu}");
    for address in pair.a.addresses_of(&pair.b) {
        lab.a().wait_until_reaches(address);
        let payload = mtu - if address.is_ipv6() { 48 } else { 28 };
        let capture = Capture::start(lab.a(), "eth0");
        let echo = |size: u64| lab.a().run(&format!("ping -n -M do -c 5 -i 0.1 -W 2 -s {size} {address}"));
        let said = echo(payload).ok();
        assert!(said.contains(" 5 received"), "{said}");
        let whole = format!("udp and src host {} or src host {}", lab.a().ipv6, lab.a().ipv4);
        wait_until("full-size packets are recorded", SOON, || capture.count(&whole) >= 5);
        let recording = capture.stop();
        recording.assert_none(FRAGMENTS);
        assert!(recording.count(&format!("udp and greater {mtu}")) >= 10, "no full-size datagram was recorded");
        assert!(!echo(payload + 1).status.success(), "a packet larger than the MTU left unfragmented");
    }
}

#[test]
fn http_arrives_unchanged() {
    let lab = Lab::two_hosts();
    let pair = Pair::trusted(&lab);
    let folder = lab.directory();
    write_random(&folder.join("file"), 20_000_000);
    for address in pair.a.addresses_of(&pair.b) {
        let (url, _server) = serve(&pair.b, address, folder);
        let received = folder.join("received");
        let mut curl = lab.a().command("curl");
        run(curl.args(["-sSf", "--max-time", "60", &url, "-o"]).arg(&received), PATIENT * 2).ok();
        assert!(same_content(&folder.join("file"), &received), "the file arrived changed from {url}");
    }
}

#[test]
fn tcp_never_stalls() {
    let lab = Lab::two_hosts();
    let pair = Pair::trusted(&lab);
    let seconds = setting("AGENTNET_LAB_SECONDS", 5);
    for address in pair.a.addresses_of(&pair.b) {
        for direction in ["", "--reverse"] {
            let port = lab.b().fresh_port();
            let mut server = lab.b().spawn(&format!("iperf3 --forceflush -s -1 -p {port}"));
            server.wait_for_text("Server listening");
            let words = format!("iperf3 -J -c {address} -p {port} -t {seconds} -i 1 {direction}");
            let finished = lab.a().run_within(PATIENT + Duration::from_secs(seconds), &words);
            assert_steady(finished, address, seconds);
        }
    }
}

fn assert_steady(finished: Finished, address: IpAddr, seconds: u64) {
    let report: Value = serde_json::from_str(&finished.ok()).unwrap();
    let intervals = report["intervals"].as_array().unwrap();
    assert!(intervals.len() as u64 >= seconds, "{} intervals in {seconds} s", intervals.len());
    for interval in intervals {
        // The last interval may be a few milliseconds long and empty.
        let length = interval["sum"]["seconds"].as_f64().unwrap();
        let bytes = interval["sum"]["bytes"].as_u64().unwrap();
        assert!(bytes > 0 || length < 0.5, "a stalled second to {address}: {}", interval["sum"]);
    }
    let rate = report["end"]["sum_received"]["bits_per_second"].as_f64().unwrap();
    eprintln!("tcp over {address}: {:.0} Mbit/s for {seconds} s", rate / 1e6);
}

fn both_ways<'p, 'lab>(pair: &'p Pair<'lab>) -> [(&'p Agent<'lab>, &'p Agent<'lab>); 2] {
    [(&pair.a, &pair.b), (&pair.b, &pair.a)]
}

/// Serves `folder` on the overlay address of `agent` that has the version of `address`; returns where its file is.
pub(crate) fn serve(agent: &Agent<'_>, address: IpAddr, folder: &std::path::Path) -> (String, crate::harness::Program) {
    let host: &Host = agent.host();
    let port = host.fresh_port();
    let (listen, shown) = match address {
        IpAddr::V4(address) => (agent.ipv4().into(), address.to_string()),
        IpAddr::V6(address) => (agent.ipv6().into(), format!("[{address}]")),
    };
    (format!("http://{shown}:{port}/file"), host.serve_files(listen, port, folder))
}

/// Makes a file of `length` bytes that do not compress.
pub(crate) fn write_random(path: &std::path::Path, length: u64) {
    use std::io::Read;
    let mut source = std::fs::File::open("/dev/urandom").unwrap().take(length);
    std::io::copy(&mut source, &mut std::fs::File::create(path).unwrap()).unwrap();
}

/// Whether two files are equal.
pub(crate) fn same_content(one: &std::path::Path, other: &std::path::Path) -> bool {
    std::fs::read(one).unwrap() == std::fs::read(other).unwrap()
}
