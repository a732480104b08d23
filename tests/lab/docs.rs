//! The commands of the documentation do what the documentation says: every one is typed, in its order, and succeeds.
//!
//! ```text
//!   server 203.0.113.1   second 203.0.113.2        two public hosts
//!   alice, behind a NAT  bob, behind another       two homes; lines without a host are alice's
//! ```
//!
//! The hosts are those of `internet`, with an `/etc`, `/home`, `/run` and `/var/lib` of their own, as after the package was
//! installed and never used. In [`FROM_NOTHING`] no agent runs; readers of other documents have one each, alice and bob,
//! that trust each other. Lines with `$` are typed by a user without rights, whose `sudo` works.
//!
//! `REF` and `TICKET` are what the last server and the last `agentnet ticket` printed; a ticket in a document is cut short
//! by three dots. What is not run here, and why, is in `ELSEWHERE` of `tests/docs/commands.rs`. With `AGENTNET_LAB_SHOW=1`
//! everything that is printed is shown, for the documents.

use std::cell::RefCell;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::{Duration, Instant};

use agentnet::identity::{IdentityKey, key_file};

use crate::harness::{Finished, Host, Internet, Nat, PATIENT, PROGRAM, Place, Program, SOON, run, setting, wait_for};

#[allow(dead_code, reason = "tests/docs.rs uses the rest")]
#[path = "../docs/commands.rs"]
mod commands;

use commands::{Command as Line, Document, documents, simple_commands};

/// Documents that begin before there is an agent.
const FROM_NOTHING: &[&str] = &["README.md", "docs/guide.md"];
/// How long a command may go on failing: a reader types more slowly than the agents work.
const TRIES_FOR: Duration = Duration::from_secs(10);
const TRY_AGAIN: Duration = Duration::from_millis(100);
/// A command that ends by itself does so within this, seconds.
const ENDS_WITHIN: [&str; 2] = ["timeout", "20"];

/// User and group of who types after `$`, and the group that may change the agent.
const READER: &str = "54322";
const GROUP: &str = "54321";

/// Makes a host's files its own, then stays for as long as they are needed. `$KEYS` has the identities.
const PREPARE: &str = r#"set -eu
mount --make-rprivate /
mount -t tmpfs tmpfs /mnt
mkdir /mnt/upper /mnt/work
mount -t overlay -o lowerdir=/etc,upperdir=/mnt/upper,workdir=/mnt/work overlay /etc
rm -rf /etc/agentnet
for directory in /home /run /var/lib; do mount -t tmpfs -o mode=755 tmpfs "$directory"; done
sed -i '/^agentnet:/d; /^reader:/d' /etc/group /etc/passwd
printf 'agentnet:x:%s:\nreader:x:%s:\n' "$GROUP" "$READER" >>/etc/group
printf 'reader:x:%s:%s::/home/reader:/bin/sh\n' "$READER" "$READER" >>/etc/passwd
install -d -m 700 /var/lib/agentnet
install -m 600 "$KEYS/agent" /var/lib/agentnet/identity.key
install -d -o "$READER" -g "$READER" /home/reader
install -d -m 700 -o "$READER" -g "$READER" /home/reader/rendezvous
install -m 600 -o "$READER" -g "$READER" "$KEYS/server" /home/reader/rendezvous/identity.key
nft 'add table inet filter; add chain inet filter input { type filter hook input priority filter; }'
echo ready
exec sleep 3600
"#;

#[test]
fn every_command_of_the_documentation_works() {
    let begin = Instant::now();
    let mut failed = Vec::new();
    for document in documents().iter().filter(|document| !document.commands().is_empty()) {
        failed.extend(type_everything(document));
    }
    eprintln!("all commands of the documentation: {:.1} s", begin.elapsed().as_secs_f64());
    assert!(failed.is_empty(), "{} commands failed:\n{}", failed.len(), failed.join("\n"));
}

fn type_everything(document: &Document) -> Vec<String> {
    let internet = Internet::new();
    let (server, second) = (internet.public_host(None), internet.public_host(None));
    let behind_nat = || internet.host_behind(Nat::PortRestricted, None);
    let (alice, bob) = (behind_nat(), behind_nat());
    let places = [("alice", &alice), ("bob", &bob), ("server", &server), ("second", &second)];
    let reader = Reader::new(&internet, places);
    if !FROM_NOTHING.contains(&document.name.as_str()) {
        reader.has_agents();
    }
    let mut failed = Vec::new();
    for line in document.commands() {
        if let Some((entry, _)) = line.elsewhere() {
            eprintln!("{}: not run here, as {}: {}", line.place, entry.why, line.text);
        } else if let Err(finished) = reader.types(&line) {
            eprintln!("{}: {}\n{finished}", line.place, line.text);
            failed.push(format!("{}: {}\n{finished}", line.place, line.text));
        }
    }
    failed
}

/// Somebody with a terminal on every host.
struct Reader<'lab> {
    terminals: Vec<Terminal<'lab>>,
    path: String,
    /// Programs that go on.
    running: RefCell<Vec<Program>>,
    reference: RefCell<String>,
    ticket: RefCell<String>,
}

struct Terminal<'lab> {
    name: &'static str,
    host: &'lab Host,
    /// Keeps the host's files.
    files: Program,
}

impl<'lab> Reader<'lab> {
    fn new(internet: &Internet, places: [(&'static str, &'lab Place); 4]) -> Self {
        let programs = internet.directory();
        let executable = |name: &str| {
            std::fs::set_permissions(programs.join(name), std::fs::Permissions::from_mode(0o755)).unwrap();
        };
        // The build directory may be closed to other users.
        std::fs::copy(PROGRAM, programs.join("agentnet")).unwrap();
        std::fs::write(programs.join("sudo"), "#!/bin/sh\nexec \"$@\"\n").unwrap();
        executable("agentnet");
        executable("sudo");
        let terminals = places.into_iter().enumerate().map(|(number, (name, place))| {
            let seed = u8::try_from(number + 1).unwrap();
            Terminal { name, host: &place.host, files: own_files(internet, &place.host, seed) }
        });
        Self {
            terminals: terminals.collect(),
            path: format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", programs.display()),
            running: RefCell::default(),
            reference: RefCell::default(),
            ticket: RefCell::default(),
        }
    }

    /// Alice and bob have an agent each, and trust each other.
    fn has_agents(&self) {
        for (host, root, text) in [
            ("server", false, "agentnet --state-dir rendezvous rendezvous --listen 203.0.113.1:41641"),
            ("alice", true, "agentnet up --name alice --rendezvous REF"),
            ("bob", true, "agentnet up --name bob --rendezvous REF"),
            ("bob", false, "agentnet ticket"),
            ("alice", true, "agentnet trust request TICKET"),
            ("bob", true, "agentnet trust approve alice"),
            ("alice", false, "agentnet ping bob --count 1"),
        ] {
            let line = Line { place: "before".into(), host: host.into(), root, text: text.into() };
            self.types(&line).unwrap_or_else(|finished| panic!("{finished}"));
        }
    }

    /// Types a line, again for as long as it fails and may still come to succeed.
    fn types(&self, line: &Line) -> Result<(), Finished> {
        let words = simple_commands(&line.text).into_iter().next().unwrap_or_default();
        if let Some(sign) = goes_on(&words) {
            let mut program = Program::spawn(&mut self.shell(line, &[]));
            program.wait_for_text(sign);
            if sign == "@" {
                *self.reference.borrow_mut() = program.stdout().lines().next().unwrap_or_default().to_owned();
            }
            self.running.borrow_mut().push(program);
            return Ok(());
        }
        let begin = Instant::now();
        loop {
            let finished = run(&mut self.shell(line, &ENDS_WITHIN), PATIENT);
            if finished.status.success() {
                if setting("AGENTNET_LAB_SHOW", 0) != 0 {
                    eprintln!("{}: {}\n{}{}", line.place, line.text, finished.stdout, finished.stderr);
                }
                if words.iter().any(|word| word == "ticket") {
                    *self.ticket.borrow_mut() = finished.stdout.trim().to_owned();
                }
                return Ok(());
            }
            if begin.elapsed() >= TRIES_FOR {
                return Err(finished);
            }
            std::thread::sleep(TRY_AGAIN);
        }
    }

    fn shell(&self, line: &Line, wrapper: &[&str]) -> Command {
        let name = if line.host.is_empty() { "alice" } else { &line.host };
        let terminal = self.terminals.iter().find(|terminal| terminal.name == name);
        let terminal = terminal.unwrap_or_else(|| panic!("{}: there is no host {name}", line.place));
        let typed = line.text.split(' ').map(|word| self.meant(word)).collect::<Vec<_>>().join(" ");
        let mut command = terminal.host.command("nsenter");
        command.args(["--mount", "--target", &terminal.files.pid().to_string()]);
        if !line.root && !line.text.contains("sudo ") {
            command.args(["setpriv", "--reuid", READER, "--regid", READER, "--init-groups"]);
        }
        command.args(wrapper).args(["bash", "-c", &format!("set -eo pipefail; cd ~; {typed}")]);
        command.env("PATH", &self.path).env("HOME", "/home/reader").env("USER", "reader");
        // Routers of the lab are asked for ports only where that is what is looked at.
        command.env("NO_COLOR", "1").env("PYTHONUNBUFFERED", "1").env("AGENTNET_PORT_MAPPING", "off");
        command
    }

    /// What a placeholder stands for.
    fn meant(&self, word: &str) -> String {
        let is_cut_ticket = word.starts_with("agentnet1") && word.ends_with("...");
        match word {
            "REF" => self.reference.borrow().clone(),
            "TICKET" => self.ticket.borrow().clone(),
            _ if is_cut_ticket => self.ticket.borrow().clone(),
            _ => word.to_owned(),
        }
    }
}

/// The files that a host does not share, until the program is dropped.
fn own_files(internet: &Internet, host: &Host, seed: u8) -> Program {
    let keys = internet.directory().join(format!("keys-{seed}"));
    std::fs::create_dir(&keys).unwrap();
    let key = key_file::emit(&IdentityKey::from_seed([seed; 32]));
    for name in ["agent", "server"] {
        std::fs::write(keys.join(name), key.as_bytes()).unwrap();
    }
    let mut command = host.command("unshare");
    command.args(["--mount", "sh", "-c", PREPARE]).env("KEYS", &keys);
    command.env("READER", READER).env("GROUP", GROUP);
    let program = Program::spawn(&mut command);
    wait_for("the host has files of its own", SOON, || {
        assert!(program.stderr().is_empty(), "{}", program.stderr());
        program.stdout().contains("ready").then_some(())
    });
    program
}

/// What a program that does not end by itself says when it is ready.
fn goes_on(words: &[String]) -> Option<&'static str> {
    let has = |word: &str| words.iter().any(|other| other == word);
    match words.first()?.as_str() {
        "agentnet" if has("rendezvous") => Some("@"),
        "agentnet" if has("daemon") => Some("agent started"),
        "agentnet" if has("--watch") => Some("version"),
        "python3" if has("http.server") => Some("Serving HTTP"),
        _ => None,
    }
}
