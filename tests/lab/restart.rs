//! A killed daemon, started again, takes up what was running.

use std::net::IpAddr;
use std::path::Path;

use crate::harness::{
    Agent, Lab, PATIENT, Pair, Program, answers, median, setting, unix_seconds, wait_for, wait_until,
};
use crate::traffic::{same_content, serve, write_random};

/// The file of one transfer, and how fast it is fetched: the transfer must outlast the outage.
const LENGTH: u64 = 40_000_000;
const RATE: &str = "8M";
/// The outage begins when this much has arrived.
const UNDER_WAY: u64 = LENGTH / 8;
/// How soon the tunnel must carry packets again, seconds after the start of the new daemon.
const BACK_WITHIN: f64 = 2.0;

#[test]
fn a_tcp_connection_outlives_its_daemon() {
    let lab = Lab::two_hosts();
    let Pair { mut a, mut b } = Pair::trusted(&lab);
    write_random(&lab.directory().join("file"), LENGTH);
    let runs = setting("AGENTNET_LAB_RUNS", 3);
    let mut outages = Vec::new();
    for number in 0..runs {
        let address = a.addresses_of(&b)[usize::try_from(number % 2).unwrap()];
        let (url, _server) = serve(&b, address, lab.directory());
        let received = lab.directory().join("received");
        let transfer = fetch(&a, &url, &received);
        // Each end in turn.
        let outage = if number % 4 < 2 { restart(&mut b, &a, &received) } else { restart(&mut a, &b, &received) };
        eprintln!("run {number}, {address}: first packet {outage:.3} s after the start of the new daemon");
        outages.push(outage);
        let connections = transfer.finish(PATIENT * 2).ok();
        assert_eq!(connections, "1", "connections the transfer took");
        assert!(same_content(&lab.directory().join("file"), &received), "the transfer was damaged");
        std::fs::remove_file(received).unwrap();
    }
    let median = median(&outages);
    eprintln!("median of {runs}: {median:.3} s, all: {outages:.3?}");
    assert!(median < BACK_WITHIN, "the tunnel took {median:.3} s (median of {runs}) to come back");
}

fn fetch(agent: &Agent<'_>, url: &str, received: &Path) -> Program {
    let mut curl = agent.host().command("curl");
    curl.args(["-sSf", "--max-time", "100", "--limit-rate", RATE, "-w", "%{num_connects}", "-o"]);
    let transfer = Program::spawn(curl.arg(received).arg(url));
    wait_until("the transfer is under way", PATIENT, || arrived(received) >= UNDER_WAY);
    transfer
}

/// Kills and starts `victim` while `witness` sends it echo requests; returns seconds from start to the first answer.
fn restart(victim: &mut Agent<'_>, witness: &Agent<'_>, received: &Path) -> f64 {
    let address: IpAddr = victim.ipv6().into();
    victim.kill9();
    assert!(arrived(received) < LENGTH, "the transfer ended before the daemon was killed");
    let echoes = witness.host().spawn(&format!("ping -n -D -i 0.01 {address}"));
    let start = unix_seconds();
    victim.up();
    let first = wait_for("an echo after the restart", PATIENT, || answers(&echoes).into_iter().find(|at| *at > start));
    echoes.interrupt();
    first - start
}

fn arrived(file: &Path) -> u64 {
    std::fs::metadata(file).map_or(0, |metadata| metadata.len())
}
