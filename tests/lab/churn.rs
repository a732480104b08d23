//! Peers come and go at the side of an agent that stays, and of its rendezvous server: what the two hold on to does not
//! grow.
//!
//! ```text
//!   host a   the agent that stays               host c   three guests that come back, from another address each time
//!   host b   the rendezvous server              host d   strangers that are refused
//! ```

use std::io::{Read, Write};
use std::net::{Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use crate::harness::{Agent, Lab, PATIENT, Server, setting, signal, wait_until, wait_until_asked, wait_until_trust};
use crate::idle::own_memory_kib;

const GUESTS: usize = 3;
/// A stranger comes each so many rounds.
const STRANGER_EVERY: u64 = 4;
/// So many there are: each is remembered, and makes every list that is asked for longer.
const STRANGERS: usize = 8;
/// Connections of each kind in a round.
const CONNECTIONS: usize = 4;
/// Local programs of each kind in a round.
const CLIENTS: usize = 8;
/// Rounds that every run of the tests makes.
const FEW: u64 = 2;
/// What the middle of the last third may be above that of the second, KiB: with what is free and not given back yet it goes
/// up and down by half as much.
const MOST_GROWTH: u64 = 512;

#[test]
fn a_few_guests_leave_nothing_behind() {
    churn(|rounds, _| rounds < FEW);
}

#[test]
#[ignore = "takes half an hour: scripts/matrix endure"]
fn half_an_hour_of_guests() {
    let time = Duration::from_secs(60 * setting("AGENTNET_LAB_MINUTES", 30));
    let samples = churn(|rounds, began| rounds < 12 || began.elapsed() < time);
    let third = samples.len() / 3;
    for (who, of) in [("agent", 0), ("server", 1)] {
        let middle = |part: usize| {
            let mut kib: Vec<u64> = samples[part * third..(part + 1) * third].iter().map(|it| it[of].kib).collect();
            kib.sort_unstable();
            kib[kib.len() / 2]
        };
        let thirds = [0, 1, 2].map(middle);
        eprintln!("{who}: {thirds:?} KiB of memory, the middles of the thirds");
        assert!(thirds[2] <= thirds[1] + MOST_GROWTH, "{who}: {thirds:?} KiB of memory, and growing");
    }
}

/// What a process holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Held {
    descriptors: usize,
    threads: usize,
    kib: u64,
}

impl Held {
    fn by(pid: u32) -> Self {
        let count = |what: &str| std::fs::read_dir(format!("/proc/{pid}/{what}")).unwrap().count();
        Self { descriptors: count("fd"), threads: count("task"), kib: own_memory_kib(pid) }
    }

    fn is_as(self, other: Self) -> bool {
        (self.descriptors, self.threads) == (other.descriptors, other.threads)
    }
}

/// Rounds as long as `goes_on`. What agent and server held after each of them, at rest; descriptors and threads are those
/// of before the first.
fn churn(goes_on: impl Fn(u64, Instant) -> bool) -> Vec<[Held; 2]> {
    let lab = Lab::hosts(4);
    let server = Server::started(lab.b());
    let a = Agent::registered(lab.a(), &[&server]);
    let mut guests: Vec<Agent<'_>> = (0..GUESTS).map(|_| Agent::registered(lab.c(), &[&server])).collect();
    guests.iter().for_each(Agent::down);
    let mut strangers: Vec<Agent<'_>> = Vec::new();
    let pids = [a.pid(), server.pid()];
    let first = pids.map(Held::by);
    eprintln!("before: {first:?}");
    let (began, mut samples, mut address) = (Instant::now(), Vec::new(), lab.c().ipv4.to_string());
    for round in 0.. {
        if !goes_on(round, began) {
            break;
        }
        let guest = &mut guests[round as usize % GUESTS];
        visit(&a, guest, round, &mut address);
        if round % STRANGER_EVERY == 0 {
            let number = (round / STRANGER_EVERY) as usize % STRANGERS;
            if number == strangers.len() {
                strangers.push(Agent::registered(lab.d(), &[&server]));
                be_refused(&a, &strangers[number]);
            } else {
                strangers[number].up();
                be_ignored(&a, &strangers[number]);
            }
        }
        disturb(&a);
        wait_until("everything is given back", PATIENT, || {
            pids.iter().zip(&first).all(|(pid, first)| Held::by(*pid).is_as(*first))
        });
        samples.push(pids.map(Held::by));
        if round % 10 == 0 {
            eprintln!("{round}, {:.0} s: {:?}", began.elapsed().as_secs_f64(), pids.map(Held::by));
        }
    }
    let last = samples.last().unwrap();
    eprintln!("{} rounds in {:.0} s: {last:?}", samples.len(), began.elapsed().as_secs_f64());
    samples
}

/// A guest comes, is trusted, talks, goes on after a restart or from another address, and is shown out.
fn visit(a: &Agent<'_>, guest: &mut Agent<'_>, round: u64, address: &mut String) {
    guest.up();
    guest.wait_until_registered(1);
    // Both ask, whoever took a yes back the last time.
    for (asking, asked) in [(guest as &Agent<'_>, a), (a, guest)] {
        asking.json(&["trust", "request", &asked.ticket()]);
    }
    wait_until_trust(guest, a, "trusted");
    wait_until_trust(a, guest, "trusted");
    guest.host().wait_until_reaches(a.ipv6().into());
    a.host().wait_until_reaches(a.alias_of(guest).into());
    connect(a, guest);
    if round % 4 < 2 {
        guest.kill9();
        guest.up();
    } else {
        let other = format!("10.77.0.{}", 100 + round % 100);
        guest.host().ok(&format!("ip addr del {address}/24 dev eth0"));
        guest.host().ok(&format!("ip addr add {other}/24 dev eth0"));
        *address = other;
    }
    a.host().wait_until_reaches(guest.ipv6().into());
    connect(guest, a);
    let (host, other) = if round.is_multiple_of(3) { (guest as &Agent<'_>, a) } else { (a, guest as &Agent<'_>) };
    host.json(&["trust", "revoke", &other.id()]);
    wait_until("the guest is out", PATIENT, || guest.trust_state(&a.id()) != "trusted");
    guest.down();
}

/// Connections that end well, are left half-way, and are cut.
fn connect(from: &Agent<'_>, to: &Agent<'_>) {
    let address = SocketAddr::from((to.ipv6(), to.host().fresh_port()));
    let listener = to.host().spawn_thread(move || TcpListener::bind(address).unwrap()).join().unwrap();
    let serving = std::thread::spawn(move || {
        for stream in listener.incoming().take(2 * CONNECTIONS) {
            let Ok(mut stream) = stream else { continue };
            let mut place = [0; 1000];
            if stream.read_exact(&mut place).is_ok() {
                let _ = stream.write_all(&place);
            }
        }
    });
    from.host().spawn_thread(move || talk(address)).join().unwrap();
    serving.join().unwrap();
}

fn talk(address: SocketAddr) {
    for _ in 0..CONNECTIONS {
        let mut stream = TcpStream::connect_timeout(&address, PATIENT).unwrap();
        stream.write_all(&[7; 1000]).unwrap();
        let mut place = [0; 1000];
        stream.read_exact(&mut place).unwrap();
        assert_eq!(place, [7; 1000]);
        let mut stream = TcpStream::connect_timeout(&address, PATIENT).unwrap();
        stream.write_all(&[7; 10]).unwrap();
        let _ = stream.shutdown(Shutdown::Both);
    }
}

/// Somebody asks, is told no, and is gone without a word.
fn be_refused(a: &Agent<'_>, stranger: &Agent<'_>) {
    stranger.json(&["trust", "request", &a.ticket()]);
    wait_until_asked(a, stranger);
    a.json(&["trust", "reject", &stranger.id()]);
    wait_until_trust(a, stranger, "rejected");
    stranger.kill9();
}

/// Who was told no asks again.
fn be_ignored(a: &Agent<'_>, stranger: &Agent<'_>) {
    stranger.wait_until_registered(1);
    stranger.json(&["trust", "request", &a.ticket()]);
    assert_eq!(a.trust_state(&stranger.id()), "rejected");
    stranger.kill9();
}

/// Local programs come and vanish at every point of a request, and the configuration is read again.
fn disturb(a: &Agent<'_>) {
    let request = "GET /v1/status HTTP/1.1\r\nHost: agentnet\r\n\r\n";
    for part in [0, 10, request.len() - 1, request.len()] {
        let mut clients = Vec::new();
        for _ in 0..CLIENTS {
            let mut client = UnixStream::connect(a.socket()).unwrap();
            client.write_all(&request.as_bytes()[..part]).unwrap();
            clients.push(client);
        }
    }
    // One that never gets its answer: the peer is nobody's.
    let nobody = Ipv6Addr::new(0xfd61, 0x6e74, 0, 0, 0, 0, 0, 1).to_string();
    a.run(&["ping", &nobody, "-c", "1", "--timeout", "1"]);
    a.json(&["reload"]);
    signal("HUP", a.pid());
    a.json(&["status"]);
}
