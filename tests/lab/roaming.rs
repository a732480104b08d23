//! Hosts that move, and NATs that forget: what runs goes on.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::time::Duration;

use crate::harness::{
    Agent, Internet, Nat, PATIENT, Place, Program, SOON, Server, Shape, answers, longest_gap, observe, setting, trust,
    unix_seconds, wait_until,
};
use crate::ssh_grpc::{client_options, make_keys, serve_ssh};

/// A quarter of a round trip of 40 ms.
const ACCESS: Shape = Shape { delay: Duration::from_millis(10), ..Shape::CLEAR };
/// What a gap may be on two noisy cores. The aim, a second for 95 of 100, is read from what is printed.
const LONGEST_GAP: f64 = 5.0;
/// Between two events: long enough for everything to settle, the conntrack of the lab's NATs too.
const SETTLE: Duration = Duration::from_secs(4);

/// A mobile host and one at home, with an SSH session and echoes between them.
struct Scene {
    /// Kept alive for as long as the echoes run.
    _server: Program,
    session: Program,
    echoes: Program,
}

#[test]
#[ignore = "a move like the one to IPv6: scripts/matrix events"]
fn a_host_moves_to_another_nat() {
    let internet = Internet::new();
    let (core, home, mobile) = places(&internet, Nat::PortRestricted);
    let other = internet.router(Nat::PortRestricted, Some(ACCESS));
    let server = Server::started(&core.host);
    let (a, b) = (Agent::registered(&mobile.host, &[&server]), Agent::registered(&home.host, &[&server]));
    let scene = Scene::new(&internet, &a, &b);
    let routers = [&other, mobile.router()];
    scene.measure("move to another NAT", |number| {
        routers[number % 2].attach(&mobile.host);
    });
}

#[test]
fn a_nat_reboots_with_new_ports() {
    let internet = Internet::new();
    let (core, home, mobile) = places(&internet, Nat::PortRestricted);
    let server = Server::started(&core.host);
    let (a, b) = (Agent::registered(&mobile.host, &[&server]), Agent::registered(&home.host, &[&server]));
    let scene = Scene::new(&internet, &a, &b);
    scene.measure("NAT reboot", |_| mobile.router().reboot());
}

#[test]
fn a_host_moves_from_ipv4_to_ipv6() {
    let internet = Internet::new();
    let core = internet.public_host(Some(ACCESS));
    let home = internet.public_host(Some(ACCESS));
    let mobile = internet.host_behind(Nat::PortRestricted, Some(ACCESS));
    let other = internet.router(Nat::Ipv6Firewall, Some(ACCESS));
    let server = Server::started(&core.host);
    let (a, b) = (Agent::registered(&mobile.host, &[&server]), Agent::registered(&home.host, &[&server]));
    let scene = Scene::new(&internet, &a, &b);
    let routers = [&other, mobile.router()];
    scene.measure("IPv4 to IPv6 and back", |number| {
        routers[number % 2].attach(&mobile.host);
    });
}

impl Scene {
    fn new(internet: &Internet, a: &Agent<'_>, b: &Agent<'_>) -> Self {
        trust(a, b);
        wait_until("the path is direct", PATIENT, || a.path_kind(b) == "direct" && b.path_kind(a) == "direct");
        let folder = internet.directory();
        make_keys(folder);
        let port = b.host().fresh_port();
        let server = serve_ssh(b.host(), folder, IpAddr::from(b.ipv6()), port);
        let ssh = format!("ssh {} -p {port} root@{}", client_options(folder), b.ipv6());
        let mut session = a.host().spawn(&format!("{ssh} while sleep 0.1; do date +tick.%s; done"));
        session.wait_for_text("tick");
        let mut echoes = a.host().spawn(&format!("ping -n -D -i 0.01 {}", b.ipv6()));
        echoes.wait_for_text("time=");
        Self { _server: server, session, echoes }
    }

    /// Lets `event` happen several times, and says how long nothing came back each time.
    fn measure(mut self, what: &str, mut event: impl FnMut(usize)) {
        let runs = usize::try_from(setting("AGENTNET_LAB_RUNS", 3)).unwrap();
        let mut gaps: Vec<f64> = Vec::new();
        for number in 0..runs {
            observe(SETTLE);
            let ticks = self.ticks();
            let start = unix_seconds();
            event(number);
            wait_until("echoes come back", PATIENT, || {
                answers(&self.echoes).last().is_some_and(|at| *at > start + 1.0)
            });
            gaps.push(longest_gap(&answers(&self.echoes), start));
            wait_until("the SSH session goes on", PATIENT, || self.ticks() > ticks + 10);
            assert!(self.session.is_running(), "the SSH session ended");
        }
        gaps.sort_by(f64::total_cmp);
        let at = |share: f64| gaps[((gaps.len() - 1) as f64 * share).round() as usize];
        let mut all = String::new();
        gaps.iter().for_each(|gap| write!(all, " {gap:.2}").unwrap());
        eprintln!("{what}: gap p50 {:.2} s, p95 {:.2} s, of{all}", at(0.5), at(0.95));
        assert!(at(1.0) < LONGEST_GAP, "{what}: nothing passed for {:.1} s", at(1.0));
        wait_until("the session still runs", SOON, || self.session.is_running());
    }

    fn ticks(&self) -> usize {
        self.session.stdout().lines().filter(|line| line.starts_with("tick")).count()
    }
}

fn places(internet: &Internet, nat: Nat) -> (Place, Place, Place) {
    let core = internet.public_host(Some(ACCESS));
    (core, internet.host_behind(nat, Some(ACCESS)), internet.host_behind(nat, Some(ACCESS)))
}
