//! The first packet after a restart waits for its session and is not lost: no TCP connection begins with a second SYN.

use std::time::Duration;

use crate::harness::{
    Agent, Capture, Internet, Nat, PATIENT, Place, Server, Shape, median, run, setting, trust, wait_until,
};
use crate::traffic::serve;

/// A quarter of a round trip of 40 ms.
const ACCESS: Option<Shape> = Some(Shape { delay: Duration::from_millis(10), ..Shape::CLEAR });
/// What the client asks for.
const CONTENT: &str = "small";
/// First packets of TCP connections. `tcp[...]` does not look into IPv6.
const SYN: &str = "((tcp[tcpflags] & (tcp-syn|tcp-ack) == tcp-syn) or (ip6[6] == 6 and ip6[53] & 0x12 == 0x02))";

/// What is cold before the client connects. The client always is: it was just started.
#[derive(Clone, Copy, Debug)]
enum Cold {
    /// The other side believes in the old session.
    Client,
    /// The other side was started anew, too.
    Both,
    /// So were the NATs: neither is where the other saw it last.
    BothAndTheirNats,
}

const KINDS: [Cold; 3] = [Cold::Client, Cold::Both, Cold::BothAndTheirNats];

#[test]
fn no_syn_is_sent_twice() {
    let internet = Internet::new();
    let core = internet.public_host(ACCESS);
    let places: [Place; 2] = [0, 1].map(|_| internet.host_behind(Nat::PortRestricted, ACCESS));
    let server = Server::started(&core.host);
    let [mut a, mut b] = places.each_ref().map(|place| Agent::registered(&place.host, &[&server]));
    trust(&a, &b);
    std::fs::write(internet.directory().join("file"), CONTENT).unwrap();
    let addresses = a.addresses_of(&b);
    // The interface goes and comes with the agent; a capture on all of them sees whatever is there.
    let capture = Capture::start(a.host(), "any");
    let mut connected = Vec::new();
    for (number, address) in (0..setting("AGENTNET_LAB_COLD_RUNS", 10)).zip(addresses.iter().cycle()) {
        let kind = KINDS[usize::try_from(number / 2).unwrap() % KINDS.len()];
        chill(kind, &mut a, &mut b, &places);
        let (url, _server) = serve(&b, *address, internet.directory());
        let port = url.rsplit(':').next().and_then(|rest| rest.split('/').next()).unwrap();
        a.up();
        let took = fetch(&a, &url);
        let syns = format!("dst port {port} and {SYN}");
        wait_until("the connection is recorded", PATIENT, || capture.count(&syns) > 0);
        let syns = capture.count(&syns);
        eprintln!("run {number}, {kind:?}, {address}: connected after {:.0} ms, {syns} SYN", took * 1000.0);
        assert_eq!(syns, 1, "SYNs of one connection; {kind:?}, {address}\n{}", b.log());
        connected.push(took);
    }
    let most = connected.iter().copied().fold(0.0, f64::max);
    eprintln!(
        "{} cold connections: p50 {:.0} ms, most {:.0} ms",
        connected.len(),
        median(&connected) * 1e3,
        most * 1e3
    );
    capture.stop();
}

/// Leaves the client down, and the other side up and registered.
fn chill(kind: Cold, client: &mut Agent<'_>, other: &mut Agent<'_>, places: &[Place]) {
    client.kill9();
    if matches!(kind, Cold::Client) {
        return;
    }
    other.kill9();
    if matches!(kind, Cold::BothAndTheirNats) {
        places.iter().for_each(|place| place.router().reboot());
    }
    other.up();
    other.wait_until_registered(1);
}

/// Fetches the file; returns how long the connection took to be there, in seconds.
fn fetch(client: &Agent<'_>, url: &str) -> f64 {
    let mut curl = client.host().command("curl");
    let said = run(curl.args(["-sSf", "--max-time", "30", "-w", "\n%{time_connect}", url]), PATIENT).ok();
    let (content, time) = said.split_once('\n').unwrap();
    assert_eq!(content, CONTENT);
    time.parse().unwrap()
}
