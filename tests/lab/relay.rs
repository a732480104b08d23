//! What the relay costs, what it learns, and whom it serves when one wants everything.
//!
//! ```text
//!   agent a ─ NAT ─┐                  ┌─ NAT ─ agent b
//!                  ├── the internet ──┤                   plain wires: the processors are what limits
//!   agent c ─ NAT ─┘        │         └─ NAT ─ agent d
//!                         server
//! ```
//!
//! A pair is kept on the relay by losing UDP between its two external addresses.

use std::path::Path;
use std::slice;
use std::time::Duration;

use agentnet::identity::{AgentId, key_file};
use redb::{Database, ReadableDatabase, TableDefinition};

use crate::harness::{
    Agent, Capture, Echoes, Host, Internet, Load, Nat, PATIENT, Place, Program, Server, median, observe, setting,
    trust, wait_until,
};
use crate::traffic::{same_content, serve};

/// The aim, 0.6, is read from what an optimised build prints: `scripts/matrix relay`.
const LEAST_RATIO: f64 = 0.2;
/// What a modest pair may lose while another floods the relay.
const MOST_LOST: f64 = 0.05;
/// How often a marker is repeated, and its length: each packet of a transfer holds it many times.
const MARKERS: usize = 32_768;
const MARKER_LEN: usize = 32;
/// Slow enough to look into memory several times while the transfer runs.
const RATE: &str = "250K";

#[test]
#[ignore = "a figure of optimised programs: scripts/matrix relay"]
fn throughput_is_near_that_of_the_direct_path() {
    let internet = Internet::new();
    let core = internet.public_host(None);
    let sites = [two_sites(&internet), two_sites(&internet)];
    keep_apart(&internet, &[&sites[1]]);
    let server = Server::started(&core.host);
    let pairs = sites.each_ref().map(|sites| trusting(sites, &server));
    let kinds = ["direct", "relayed"];
    let seconds = setting("AGENTNET_LAB_SECONDS", 2);
    let mut rates = [Vec::new(), Vec::new()];
    for _ in 0..setting("AGENTNET_LAB_RUNS", 3) {
        for (([a, b], kind), rates) in pairs.iter().zip(kinds).zip(&mut rates) {
            wait_until_both_are(a, b, kind);
            rates.push(Load::start(a, b, &format!("-t {seconds}")).finish());
            assert!(a.path_kind(b) == kind && b.path_kind(a) == kind, "no longer {kind}");
        }
    }
    let [direct, relayed] = rates.each_ref().map(|rates| median(rates));
    let ratio = relayed / direct;
    eprintln!("direct {:.0?} Mbit/s, relayed {:.0?} Mbit/s", rates[0], rates[1]);
    eprintln!("medians {direct:.0} and {relayed:.0} Mbit/s: {:.0} % (aim, optimised: 60)", ratio * 100.0);
    assert!(ratio > LEAST_RATIO, "over the relay there is {ratio:.2} of the direct throughput");
}

#[test]
fn neither_plaintext_nor_keys_are_in_the_relay() {
    let internet = Internet::new();
    let core = internet.public_host(None);
    let sites = two_sites(&internet);
    keep_apart(&internet, &[&sites]);
    let server = Server::started(&core.host);
    let [a, b] = trusting(&sites, &server);
    wait_until_both_are(&a, &b, "relayed");
    let marker = random_marker();
    let (file, received) = (internet.directory().join("file"), internet.directory().join("received"));
    std::fs::write(&file, marker.repeat(MARKERS)).unwrap();
    let mut secrets = vec![marker.to_vec()];
    secrets.extend([&a, &b].into_iter().flat_map(secret_keys));
    // What the server has to know shows that the search finds what is there.
    let known = a.id().parse::<AgentId>().unwrap().as_bytes().to_vec();
    let in_server = || count(&core.host, &server.pid().to_string(), &[&secrets[..], slice::from_ref(&known)].concat());

    let at_server = Capture::start_whole(&core.host, "eth0");
    let at_reader = Capture::start_whole(a.host(), &a.interface());
    let (url, _serving) = serve(&b, b.ipv6().into(), internet.directory());
    let mut curl = a.host().command("curl");
    let mut curl = Program::spawn(curl.args(["-sSf", "--limit-rate", RATE, "-o"]).arg(&received).arg(url));
    let mut looks = 0;
    while curl.is_running() {
        let counts = in_server();
        let (public, secret) = counts.split_last().unwrap();
        assert!(*public > 0, "the search does not even find the id of a client in the server's memory");
        assert!(secret.iter().all(|count| *count == 0), "in the server's memory, marker and keys: {secret:?}");
        looks += 1;
    }
    curl.finish(PATIENT).ok();
    assert!(same_content(&file, &received), "the transfer was damaged");
    assert!(looks > 1, "the server's memory was not looked into while the transfer ran");
    assert!(a.path_kind(&b) == "relayed" && b.path_kind(&a) == "relayed");
    for (agent, own) in [(&a, [1, 2]), (&b, [3, 4])] {
        let counts = count(agent.host(), &agent.pid().to_string(), &secrets);
        assert!(own.iter().all(|key| counts[*key] > 0), "the search does not find an agent's own keys: {counts:?}");
        assert!(counts[0] > 0, "the search does not find plaintext where it passed: {counts:?}");
    }
    let [at_server, at_reader] = [at_server, at_reader].map(Capture::stop);
    let on_wire = |file: &Path| count(&core.host, &file.display().to_string(), &secrets);
    let length = std::fs::metadata(at_server.file()).unwrap().len();
    let plain = on_wire(at_reader.file())[0];
    eprintln!("{looks} looks into the server; {plain} markers read in clear, none in {length} bytes at the server");
    // Of what the interface is given in one piece, the recording has the beginning.
    assert!(plain > MARKERS / 10, "{plain} markers were recorded where the transfer is in clear");
    assert!(length > 2 * (MARKERS * MARKER_LEN) as u64, "{length} bytes: the transfer was not recorded at the server");
    assert_eq!(on_wire(at_server.file()), vec![0; secrets.len()], "on the server's link, marker and keys");
}

#[test]
fn a_greedy_pair_does_not_starve_a_modest_one() {
    let internet = Internet::new();
    let core = internet.public_host(None);
    let sites = [two_sites(&internet), two_sites(&internet)];
    keep_apart(&internet, &[&sites[0], &sites[1]]);
    let mut server = Server::started(&core.host);
    let [[a, b], [c, d]] = sites.each_ref().map(|sites| trusting(sites, &server));
    wait_until_both_are(&a, &b, "relayed");
    wait_until_both_are(&c, &d, "relayed");
    let seconds = setting("AGENTNET_LAB_SECONDS", 5);
    for (what, words) in [("TCP", "-P 4"), ("UDP", "-u -b 0 -l 1200")] {
        let load = Load::start(&c, &d, &format!("{words} -t {seconds}"));
        let echoes = Echoes::start(a.host(), b.ipv6());
        observe(Duration::from_secs(seconds));
        let (sent, lost) = echoes.sent_and_lost();
        let gap = echoes.longest_gap(0.0);
        drop(echoes);
        assert_eq!(c.path_kind(&d), "relayed");
        let flood = load.finish();
        let fraction = lost as f64 / sent.max(1) as f64;
        eprintln!(
            "beside {what} at {:.0} Mbit/s: {lost} of {sent} echoes lost ({:.1} %), longest gap {:.0} ms",
            flood,
            fraction * 100.0,
            gap * 1e3
        );
        assert!(sent as u64 > seconds * 50, "{sent} echoes in {seconds} s");
        assert!(fraction < MOST_LOST, "{lost} of {sent} echoes were lost");
    }
    eprintln!("the server counted {}", server.stop().join(", "));
}

fn two_sites(internet: &Internet) -> [Place; 2] {
    [0, 1].map(|_| internet.host_behind(Nat::PortRestricted, None))
}

/// From now on these pairs have no direct path, and no other does not.
fn keep_apart(internet: &Internet, pairs: &[&[Place; 2]]) {
    let ways = pairs.iter().flat_map(|pair| {
        let [one, other] = pair.each_ref().map(|place| place.router().external_ipv4());
        [(one, other), (other, one)]
    });
    internet.lose_udp(&ways.collect::<Vec<_>>());
}

fn trusting<'lab>(sites: &'lab [Place; 2], server: &Server<'_>) -> [Agent<'lab>; 2] {
    let [a, b] = sites.each_ref().map(|place| Agent::registered(&place.host, &[server]));
    trust(&a, &b);
    a.host().wait_until_reaches(b.ipv6().into());
    [a, b]
}

fn wait_until_both_are(one: &Agent<'_>, other: &Agent<'_>, kind: &str) {
    let what = format!("both call the path {kind}");
    wait_until(&what, PATIENT, || one.path_kind(other) == kind && other.path_kind(one) == kind);
}

/// Identity seed and tunnel key of an agent, from its files.
fn secret_keys(agent: &Agent<'_>) -> [Vec<u8>; 2] {
    let identity = std::fs::read(agent.directory().join("identity.key")).unwrap();
    let seed = key_file::parse(identity).unwrap().seed().to_vec();
    // The agent has its own copy locked.
    let copy = agent.directory().join("copy.redb");
    std::fs::copy(agent.directory().join("state.redb"), &copy).unwrap();
    let values = TableDefinition::<&str, &[u8]>::new("values");
    let database = Database::open(&copy).unwrap();
    let table = database.begin_read().unwrap().open_table(values).unwrap();
    let tunnel = table.get("tunnel_key").unwrap().expect("the state has a tunnel key").value().to_vec();
    assert_eq!(tunnel.len(), 32);
    [seed, tunnel]
}

/// How often each of `needles` is in a file, or in the memory of a process.
fn count(host: &Host, place: &str, needles: &[Vec<u8>]) -> Vec<usize> {
    let hex = |bytes: &Vec<u8>| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let words: Vec<String> = needles.iter().map(hex).collect();
    let said = host.call("find_bytes.py", &format!("{place} {}", words.join(" "))).ok();
    said.split_whitespace().map(|word| word.parse().unwrap()).collect()
}

fn random_marker() -> [u8; MARKER_LEN] {
    use std::io::Read;
    let mut marker = [0; MARKER_LEN];
    std::fs::File::open("/dev/urandom").unwrap().read_exact(&mut marker).unwrap();
    marker
}
