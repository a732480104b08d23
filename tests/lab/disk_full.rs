//! A state directory on a disk that is full, and one that cannot be written: it is told, nothing is lost, and what was
//! decided meanwhile is stored as soon as there is room.
//!
//! The disk is in memory and in the view of the file system of one thread and its children: it goes with them.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;

use agentnet::identity::{AgentRecord, IdentityKey, SignedRecord, Ticket, TunnelSecret};
use agentnet::node::VERSIONS;
use nix::sched::{CloneFlags, unshare};
use serde_json::Value;

use crate::harness::{
    Agent, Finished, Lab, PATIENT, SOON, error_code, run, signal, trust, unix_seconds, wait_until, wait_until_asked,
    wait_until_trust,
};

/// Room for the state of an agent, its log, and what fills the rest.
const DISK: &str = "size=8m,mode=755";

/// A small disk of this thread.
struct Disk {
    root: PathBuf,
}

impl Disk {
    /// Runs `test` on a thread with such a disk.
    fn with(lab: &Lab, test: impl FnOnce(&Self) + Send) {
        let root = lab.directory().join("disk");
        fs::create_dir(&root).unwrap();
        let on_disk = || {
            unshare(CloneFlags::CLONE_NEWNS).unwrap();
            let mount = |words: &[&str]| drop(run(Command::new("mount").args(words), SOON).ok());
            mount(&["--make-rprivate", "/"]);
            mount(&["-t", "tmpfs", "-o", DISK, "tmpfs", root.to_str().unwrap()]);
            let disk = Self { root };
            fs::create_dir(disk.root.join("agents")).unwrap();
            test(&disk);
        };
        let failed = std::thread::scope(|scope| scope.spawn(on_disk).join());
        failed.unwrap_or_else(|why| std::panic::resume_unwind(why));
    }

    /// An agent with its state there.
    fn agent<'lab>(&self, lab: &'lab Lab) -> Agent<'lab> {
        Agent::with_directory(lab.a(), tempfile::tempdir_in(self.root.join("agents")).unwrap())
    }

    /// Leaves so many pages free, of 4 KiB.
    fn leave(&self, pages: usize) {
        self.make_room();
        let mut file = OpenOptions::new().create(true).append(true).open(self.filler()).unwrap();
        let mut bytes = 0;
        while file.write_all(&[1; 4096]).is_ok() {
            bytes += 4096;
        }
        file.set_len(bytes - 4096 * pages as u64).unwrap();
    }

    fn make_room(&self) {
        let _ = fs::remove_file(self.filler());
    }

    fn filler(&self) -> PathBuf {
        self.root.join("filler")
    }

    fn remount(&self, how: &str) {
        run(Command::new("mount").args(["-o", &format!("remount,{how}")]).arg(&self.root), SOON).ok();
    }
}

fn codes(agent: &Agent<'_>) -> Vec<Value> {
    agent.health().iter().map(|entry| entry["code"].clone()).collect()
}

#[test]
fn a_first_start_without_room() {
    let lab = Lab::two_hosts();
    Disk::with(&lab, |disk| {
        let mut starts = 0;
        for pages in [0, 1, 2, 3, 8, 64] {
            let mut agent = disk.agent(&lab);
            disk.leave(pages);
            let first = agent.try_up();
            let identity = fs::read(agent.directory().join("identity.key")).ok();
            match first {
                Ok(()) => {
                    starts += 1;
                    agent.down();
                }
                Err(finished) => {
                    assert_eq!((finished.code(), error_code(&finished).as_str()), (1, "disk_full"), "{pages} pages");
                    agent.assert_only_state_left(&[], &format!("by a start with {pages} pages"));
                }
            }
            disk.make_room();
            agent.up();
            let kept = fs::read(agent.directory().join("identity.key")).unwrap();
            assert!(identity.is_none_or(|identity| identity == kept), "another identity with {pages} pages");
            agent.down();
        }
        assert!((1..5).contains(&starts), "{starts} starts with too little room");
    });
}

#[test]
fn decisions_and_traffic_while_the_disk_is_full() {
    let lab = Lab::hosts(3);
    let [b, c] = [lab.b(), lab.c()].map(Agent::started);
    Disk::with(&lab, |disk| {
        let mut strangers = (0..1000).map(ticket_of_a_stranger);
        let mut a = disk.agent(&lab);
        a.up();
        trust(&a, &b);
        lab.a().wait_until_reaches(b.ipv6().into());
        let known = (a.id(), a.port(), a.ipv4(), a.alias_of(&b));
        disk.leave(0);
        assert_refused(&ask_until_refused(&a, &mut strangers));
        assert!(codes(&a).contains(&"state_not_saved".into()), "{:?}", codes(&a));
        assert_eq!(lab.a().ping(b.ipv6().into(), 20), 20, "traffic stopped");
        // A crash now loses what was refused, and nothing else.
        a.kill9();
        if let Err(finished) = a.try_up() {
            assert_eq!(error_code(&finished), "disk_full", "{finished}");
            disk.make_room();
            a.up();
        }
        assert_eq!((a.id(), a.port(), a.ipv4(), a.alias_of(&b)), known);
        assert_eq!(a.trust_state(&b.id()), "trusted");
        lab.a().wait_until_reaches(b.ipv6().into());
        // What is decided while there is no room is in force, and stored when there is.
        disk.leave(0);
        ask_until_refused(&a, &mut strangers);
        assert_refused(&a.run_json(&["trust", "request", &c.ticket()]));
        assert_eq!(a.trust_state(&c.id()), "requested");
        disk.make_room();
        wait_until("the state is on disk", PATIENT, || !codes(&a).contains(&"state_not_saved".into()));
        a.kill9();
        a.up();
        assert_eq!(a.trust_state(&c.id()), "requested");
        wait_until_asked(&c, &a);
        c.json(&["trust", "approve", &a.id()]);
        wait_until_trust(&a, &c, "trusted");
        a.kill9();
        a.up();
        for peer in [&b, &c] {
            assert_eq!(a.trust_state(&peer.id()), "trusted");
            lab.a().wait_until_reaches(peer.ipv6().into());
        }
    });
}

fn assert_refused(finished: &Finished) {
    assert_eq!((finished.code(), error_code(finished).as_str()), (1, "disk_full"), "{finished}");
    assert!(finished.stdout.contains("it is in force"), "{finished}");
}

/// The file of the state has some room of its own.
fn ask_until_refused(agent: &Agent<'_>, strangers: &mut impl Iterator<Item = String>) -> Finished {
    let mut asked = strangers.map(|ticket| agent.run_json(&["trust", "request", &ticket]));
    asked.find(|finished| !finished.status.success()).expect("every change was taken by a full disk")
}

/// Of an agent that is nowhere.
fn ticket_of_a_stranger(number: u16) -> String {
    let seed = std::array::from_fn(|at| number.to_le_bytes()[at % 2]);
    let identity = IdentityKey::from_seed(seed);
    let record = AgentRecord {
        id: identity.id(),
        sequence: 1,
        expires: unix_seconds() as u64 + 3600,
        tunnel_key: TunnelSecret::from_bytes(seed).public(),
        rendezvous: Vec::new(),
        name: None,
        capabilities: Vec::new(),
        versions: VERSIONS,
    };
    let record = SignedRecord::sign(&identity, record).unwrap();
    Ticket::new(record, vec!["10.77.0.250:9".parse().unwrap()]).unwrap().to_string()
}

#[test]
fn a_log_without_room_goes_on_when_there_is_some() {
    let lab = Lab::two_hosts();
    Disk::with(&lab, |disk| {
        let mut agent = disk.agent(&lab);
        agent.up();
        disk.leave(0);
        let log = agent.directory().join("agentnet.log");
        let length = || log.metadata().unwrap().len();
        // A page may be half full.
        let speak = || {
            for name in ["debug", "info"] {
                agent.run(&["reload"]).ok();
                signal("HUP", agent.pid());
                agent.run(&["trust", "list"]).ok();
                lab.a().ok(&format!("ip addr add 10.88.{}.1/32 dev lo", name.len()));
                lab.a().ok(&format!("ip addr del 10.88.{}.1/32 dev lo", name.len()));
            }
        };
        wait_until("the log is full", PATIENT, || {
            let before = length();
            (0..4).for_each(|_| speak());
            length() == before
        });
        agent.json(&["status"]);
        disk.make_room();
        let before = length();
        wait_until("the log goes on", SOON, || {
            speak();
            length() > before
        });
        agent.down();
    });
}

#[test]
fn a_disk_that_cannot_be_written() {
    let lab = Lab::two_hosts();
    Disk::with(&lab, |disk| {
        let mut agent = disk.agent(&lab);
        disk.remount("ro");
        let finished = agent.try_up().unwrap_err();
        assert_eq!((finished.code(), error_code(&finished).as_str()), (1, "state_dir_unusable"));
        disk.remount("rw");
        agent.up();
        let id = agent.id();
        agent.down();
        disk.remount("ro");
        let finished = agent.try_up().unwrap_err();
        assert_eq!((finished.code(), error_code(&finished).as_str()), (1, "state_dir_unusable"));
        assert!(File::open(agent.directory().join("identity.key")).is_ok());
        disk.remount("rw");
        agent.up();
        assert_eq!(agent.id(), id);
        agent.down();
    });
}
