//! What people see, in a real terminal (tmux). `AGENTNET_LAB_SCREENS=FILE` writes the screens down.

use std::fmt::Write as _;
use std::process::Command;

use crate::harness::{Agent, Host, Lab, Pair, SOON, run, wait_for, wait_until};

/// A terminal on a host, with a shell in it. It ends with the test.
struct Terminal<'lab> {
    host: &'lab Host,
    socket: String,
}

impl<'lab> Terminal<'lab> {
    /// So many columns and rows; the shell has these variables and no others but PATH.
    fn new(host: &'lab Host, columns: u16, rows: u16, variables: &[&str]) -> Self {
        let terminal = Self { host, socket: format!("{}-{columns}x{rows}", host.namespace()) };
        let (columns, rows) = (columns.to_string(), rows.to_string());
        let shell = format!("env -i PATH=$PATH TERM=screen PS1='$ ' {} sh", variables.join(" "));
        terminal.tmux(&["-f", "/dev/null", "new-session", "-d", "-x", &columns, "-y", &rows, &shell]);
        terminal
    }

    fn tmux(&self, words: &[&str]) -> String {
        // Only the shell inside is on the host; what is typed and seen goes over tmux's own socket.
        let mut command = self.host.command("tmux");
        command.env_remove("TMUX").env("LANG", "C.UTF-8").arg("-u").args(["-L", &self.socket]).args(words);
        run(&mut command, SOON).ok()
    }

    fn keys(&self, keys: &[&str]) {
        self.tmux(&[&["send-keys"], keys].concat());
    }

    /// Types a command of the agent.
    fn command(&self, agent: &Agent<'_>, words: &str) {
        let program = agent.command(&[]);
        let program: Vec<String> = program.get_args().skip(3).map(|word| word.to_str().unwrap().to_owned()).collect();
        self.keys(&["-l", &format!("agentnet() {{ {} \"$@\"; }}; clear", program.join(" "))]);
        self.keys(&["Enter"]);
        self.keys(&["-l", &format!("agentnet {words}")]);
        self.keys(&["Enter"]);
    }

    fn screen(&self) -> String {
        self.tmux(&["capture-pane", "-p"])
    }

    /// Waits until all of these are on the screen, and returns it.
    fn wait_for(&self, parts: &[&str]) -> String {
        wait_for(&format!("{parts:?} on the screen; it shows\n{}", self.screen()), SOON, || {
            let screen = self.screen();
            parts.iter().all(|part| screen.contains(part)).then_some(screen)
        })
    }

    /// Cursor, alternate screen, wrapping.
    fn modes(&self) -> String {
        self.tmux(&["display-message", "-p", "#{cursor_flag} #{alternate_on} #{wrap_flag}"]).trim().to_owned()
    }
}

impl Drop for Terminal<'_> {
    fn drop(&mut self) {
        let mut command = Command::new("tmux");
        let _ = command.env_remove("TMUX").args(["-L", &self.socket, "kill-server"]).output();
    }
}

fn named_pair(lab: &Lab) -> Pair<'_> {
    let [a, b] = [(lab.a(), "build-7"), (lab.b(), "data-2")].map(|(host, name)| {
        let mut agent = Agent::new(host);
        agent.flags = vec!["--name".into(), name.into()];
        agent.up();
        agent
    });
    crate::harness::trust(&a, &b);
    assert_eq!(lab.a().ping(b.ipv6().into(), 1), 1);
    wait_until("the path is direct", SOON, || a.path_kind(&b) == "direct");
    Pair { a, b }
}

#[test]
fn every_screen() {
    let lab = Lab::two_hosts();
    let Pair { a, b: _b } = named_pair(&lab);
    let terminal = Terminal::new(lab.a(), 170, 30, &["LANG=C.UTF-8", "NO_COLOR=1"]);
    let mut text =
        String::from("# Screens\n\nAs they look in a terminal; made by `AGENTNET_LAB_SCREENS=docs/screens.md`, ");
    text.push_str("`cargo test --test lab screens::every_screen`.\n");
    for (words, parts) in [
        ("status", &["build-7", "data-2", "direct ", "RECEIVED", "$ "][..]),
        ("ping data-2 -c 3", &["pong from data-2", "3 sent, 3 received", "$ "]),
        ("why data-2", &["reached directly", "✓", "$ "]),
        ("netcheck", &["rendezvous", "$ "]),
        ("status --watch", &["build-7", "data-2", "RECEIVED"]),
    ] {
        terminal.command(&a, words);
        let screen = terminal.wait_for(parts);
        let shown = screen.trim_end().trim_end_matches('$').trim_end();
        let shown = shown.split_once(&format!("$ agentnet {words}\n")).map_or(shown, |(_, after)| after);
        write!(text, "\n## `agentnet {words}`\n\n```text\n{}\n```\n", shown.trim_end()).unwrap();
    }
    if let Ok(path) = std::env::var("AGENTNET_LAB_SCREENS") {
        std::fs::write(path, text).unwrap();
    }
}

#[test]
fn a_narrow_plain_terminal_is_neither_wrapped_nor_left_changed() {
    let lab = Lab::two_hosts();
    let Pair { a, b } = named_pair(&lab);
    let terminal = Terminal::new(lab.a(), 50, 12, &["LANG=C"]);
    terminal.keys(&["-l", "echo what stood here before"]);
    terminal.keys(&["Enter"]);
    terminal.command(&a, "status --watch");
    let screen = terminal.wait_for(&["build-7", "data-2", "direct "]);
    assert!(screen.is_ascii(), "{screen}");
    assert!(screen.lines().all(|line| line.len() <= 50), "{screen}");
    assert!(screen.lines().any(|line| line.ends_with('>')), "nothing was cut: {screen}");
    let first = screen.lines().next().unwrap();
    assert!(first.starts_with("build-7  up "), "not drawn in place: {screen}");
    assert_eq!(terminal.modes(), "0 1 0");
    // In place: what is said of a peer that is gone replaces what was said.
    b.down();
    wait_until("the screen follows", SOON, || !terminal.screen().contains("direct "));
    assert_eq!(terminal.screen().matches("build-7").count(), 1, "{}", terminal.screen());
    terminal.keys(&["C-c"]);
    let left = terminal.wait_for(&["$ "]);
    assert_eq!(terminal.modes(), "1 0 1", "{left}");
    assert!(!left.contains("data-2"), "something of the page is left: {left}");
}

#[test]
fn a_watch_that_is_suspended_leaves_the_screen_and_comes_back() {
    let lab = Lab::two_hosts();
    let Pair { a, b: _b } = named_pair(&lab);
    let terminal = Terminal::new(lab.a(), 100, 20, &["LANG=C.UTF-8"]);
    terminal.keys(&["-l", "set -m; echo what stood here before"]);
    terminal.keys(&["Enter"]);
    terminal.command(&a, "status --watch");
    terminal.wait_for(&["build-7", "data-2"]);
    assert_eq!(terminal.modes(), "0 1 0");
    // The second time as good as the first.
    for _ in 0..2 {
        terminal.keys(&["C-z"]);
        let shell = terminal.wait_for(&["Stopped", "$ "]);
        assert_eq!(terminal.modes(), "1 0 1", "{shell}");
        assert!(!shell.contains("data-2"), "something of the page is left: {shell}");
        terminal.keys(&["-l", "fg"]);
        terminal.keys(&["Enter"]);
        let screen = terminal.wait_for(&["build-7", "data-2"]);
        assert!(screen.lines().next().unwrap().starts_with("build-7  up "), "not drawn in place: {screen}");
        assert_eq!(terminal.modes(), "0 1 0");
    }
    terminal.keys(&["C-c"]);
    terminal.wait_for(&["$ "]);
    assert_eq!(terminal.modes(), "1 0 1");
}

#[test]
fn without_a_terminal_pages_follow_each_other_and_documents_fill_a_line() {
    let lab = Lab::two_hosts();
    let Pair { a, .. } = named_pair(&lab);
    let program = a.command(&[]);
    let words: Vec<&str> = program.get_args().skip(3).map(|word| word.to_str().unwrap()).collect();
    let watched = |flags: &str| {
        let line = format!("timeout 3 {} {flags} status --watch", words.join(" "));
        lab.a().shell(&line).stdout
    };
    let text = watched("");
    assert!(text.matches("build-7  up ").count() >= 2 && !text.contains('\u{1b}'), "{text}");
    let documents = watched("--json");
    assert!(documents.lines().count() >= 2, "{documents}");
    for line in documents.lines() {
        serde_json::from_str::<serde_json::Value>(line).unwrap();
    }
}
