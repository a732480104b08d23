//! The documentation, as far as that can be told without running it: commands that do not parse, links that lead
//! nowhere, constants that are others. `tests/lab/docs.rs` runs the commands.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::collections::BTreeMap;

use agentnet::identity::{address, record, ticket};
use agentnet::wire::{self, control, introduction, relay, rendezvous, stun};
use agentnet::{cli, node, path, rendezvous as server, tunnel};
use clap::error::ErrorKind;

#[path = "docs/commands.rs"]
mod commands;

use commands::{Document, ELSEWHERE, documents, prompt, root, simple_commands};

/// What a fenced block may be.
const LANGUAGES: &[&str] = &["console", "text", "toml", "json"];

/// What begins like this between backticks is a file or a folder of the repository.
const FOLDERS: &[&str] = &["docs/", "packaging/", "platform/", "scripts/", "src/", "tests/"];

#[test]
fn lines_of_shell_are_taken_apart() {
    let of = |line: &str| simple_commands(line).iter().map(|words| words.join(" ")).collect::<Vec<_>>();
    assert_eq!(of("sudo A_B=1 agentnet up --name 'a b'"), ["agentnet up --name a b"]);
    assert_eq!(of("a \"$(b | c)\" d|e && f >g; h"), ["a $(b | c) d", "e", "f", "h"]);
    assert_eq!(prompt("alice$ agentnet id"), Some(("alice", false, "agentnet id")));
    assert_eq!(prompt("# id"), Some(("", true, "id")));
    assert_eq!((prompt("pong from bob"), prompt("  id  x")), (None, None));
    let document =
        Document { name: "a.md".into(), text: "x\n```console\n$ one \\\n    two\nsaid\nbob# three\n```\n".into() };
    let found: Vec<_> =
        document.commands().into_iter().map(|command| (command.place, command.root, command.text)).collect();
    assert_eq!(found, [("a.md:3".into(), false, "one two".into()), ("a.md:6".into(), true, "three".into())]);
}

#[test]
fn every_block_says_what_it_is() {
    for document in documents() {
        for (line, language, lines) in document.blocks() {
            let place = format!("{}:{line}", document.name);
            assert!(LANGUAGES.contains(&language), "{place}: a block is one of {LANGUAGES:?}, not {language:?}");
            let hidden = lines
                .iter()
                .find(|line| language != "console" && (prompt(line).is_some() || line.trim().starts_with("agentnet ")));
            assert_eq!(hidden, None, "{place}: commands stand in blocks marked console");
        }
        let outside = without_blocks(&document);
        let indented = outside.windows(2).find(|pair| pair[0].1.is_empty() && pair[1].1.starts_with("    "));
        assert!(indented.is_none(), "{}: {indented:?} is indented code: put it into a fenced block", document.name);
    }
}

#[test]
fn every_agentnet_line_parses() {
    for document in documents() {
        for command in document.commands() {
            for words in simple_commands(&command.text) {
                for words in within(&words) {
                    let parsed = parse(&words, &[]);
                    assert_eq!(parsed, Ok(()), "{}: {}", command.place, command.text);
                }
            }
        }
        // Between backticks, forms are shown: values may be placeholders, and arguments may be left out.
        let forms = [
            ErrorKind::MissingRequiredArgument,
            ErrorKind::MissingSubcommand,
            ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand,
            ErrorKind::ValueValidation,
        ];
        // Labels of the protocol look alike.
        let prose = document.prose();
        for span in prose.split('`').skip(1).step_by(2).filter(|span| !span.ends_with(" v1")) {
            for words in simple_commands(span).iter().filter(|words| words.len() > 1 && words[0] == "agentnet") {
                assert_eq!(parse(words, &forms), Ok(()), "{}: `{span}`", document.name);
            }
        }
    }
}

#[test]
fn what_is_named_is_there() {
    let all: Vec<_> = documents().iter().flat_map(Document::commands).collect();
    assert!(all.len() > 20, "{} commands", all.len());
    for command in &all {
        if let Some((entry, words)) = command.elsewhere() {
            assert_eq!((entry.check)(&words), Ok(()), "{}: {}", command.place, command.text);
        }
    }
    for entry in ELSEWHERE {
        let used =
            all.iter().any(|command| command.elsewhere().is_some_and(|(other, _)| other.program == entry.program));
        assert!(used, "no document has a command with {}, which is not run because {}", entry.program, entry.why);
    }
    for document in documents() {
        let prose = document.prose();
        for span in prose.split('`').skip(1).step_by(2) {
            let name = span.split(' ').next().unwrap();
            let is_named = FOLDERS.iter().any(|folder| name.starts_with(folder));
            assert!(!is_named || root().join(name).exists(), "{}: there is no {name}", document.name);
        }
    }
}

#[test]
fn links_lead_somewhere() {
    for document in documents() {
        let folder = root().join(&document.name);
        let folder = folder.parent().unwrap();
        for target in links(&document) {
            let (file, anchor) = target.split_once('#').unwrap_or((target.as_str(), ""));
            let path = if file.is_empty() { root().join(&document.name) } else { folder.join(file) };
            assert!(path.exists(), "{}: {target} leads nowhere", document.name);
            if !anchor.is_empty() {
                let text = std::fs::read_to_string(&path).unwrap();
                let headings = text.lines().filter(|line| line.starts_with('#')).map(anchor_of);
                assert!(headings.into_iter().any(|heading| heading == anchor), "{}: no {target}", document.name);
            }
        }
    }
}

#[test]
fn the_guide_has_every_reason_and_warning() {
    let guide = std::fs::read_to_string(root().join("docs/guide.md")).unwrap();
    // Whatever looks like a code in the one file, and what health entries are made with in the others.
    let makers: &[(&str, &[&str])] = &[
        ("src/node/report.rs", &[""]),
        ("src/daemon/start.rs", &["entry(", "incomplete("]),
        ("src/node/health.rs", &["entry("]),
        ("src/daemon/host_health.rs", &["code: "]),
        ("src/daemon/event_loop.rs", &["code: "]),
        ("src/daemon/state_dir.rs", &["code: "]),
    ];
    for (file, before) in makers {
        let text = std::fs::read_to_string(root().join(file)).unwrap();
        let parts: Vec<&str> = text.split('"').collect();
        let codes: Vec<&str> = parts
            .windows(2)
            .step_by(2)
            .filter(|pair| {
                before.iter().any(|before| pair[0].trim_end_matches([' ', '\n']).ends_with(before.trim_end()))
            })
            .map(|pair| pair[1])
            .filter(|text| {
                text.contains('_') && text.chars().all(|c| c == '_' || c.is_ascii_lowercase() || c.is_ascii_digit())
            })
            .collect();
        assert!(!codes.is_empty(), "no code was found in {file}");
        let missing: Vec<&&str> = codes.iter().filter(|code| !guide.contains(&format!("`{code}`"))).collect();
        assert!(missing.is_empty(), "docs/guide.md does not say what to do about {missing:?} of {file}");
    }
}

#[test]
fn the_protocol_has_the_programs_constants() {
    let text = std::fs::read_to_string(root().join("docs/protocol.md")).unwrap();
    let (_, section) = text.split_once("\n## Sizes and limits\n").unwrap();
    let section = section.split("\n## ").next().unwrap();
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` | "));
    let value = |text: &str| text.split(' ').next().unwrap().replace(',', "").parse::<u64>().unwrap();
    let written: BTreeMap<&str, u64> = rows.map(|(name, text)| (name, value(text))).collect();
    assert_eq!(written, constants().into_iter().collect());
}

fn constants() -> Vec<(&'static str, u64)> {
    vec![
        ("MAX_RECORD_LEN", record::MAX_RECORD_LEN as u64),
        ("MAX_RENDEZVOUS", record::MAX_RENDEZVOUS as u64),
        ("MAX_NAME_LEN", record::MAX_NAME_LEN as u64),
        ("MAX_HOST_PORT_LEN", record::MAX_HOST_PORT_LEN as u64),
        ("MAX_CAPABILITIES", record::MAX_CAPABILITIES as u64),
        ("MAX_CAPABILITY_LEN", record::MAX_CAPABILITY_LEN as u64),
        ("MAX_TICKET_ADDRESSES", ticket::MAX_TICKET_ADDRESSES as u64),
        ("MAX_TICKET_LEN", ticket::MAX_TICKET_LEN as u64),
        ("RESERVED_ALIASES", address::RESERVED_ALIASES),
        ("MAX_INTRODUCTION_LEN", introduction::MAX_INTRODUCTION_LEN as u64),
        ("MAX_CANDIDATES", introduction::MAX_CANDIDATES as u64),
        ("MAX_REASON_CHARS", introduction::MAX_REASON_CHARS as u64),
        ("MAX_REASON_LEN", introduction::MAX_REASON_LEN as u64),
        ("MAX_PORTS_LEN", introduction::MAX_PORTS_LEN as u64),
        ("MAX_CONTROL_LEN", control::MAX_CONTROL_LEN as u64),
        ("LEAST_PATH_MTU", wire::LEAST_PATH_MTU as u64),
        ("MAX_SEALED_LEN", control::MAX_SEALED_LEN as u64),
        ("MAX_FIRST_LEN", control::MAX_FIRST_LEN as u64),
        ("MAX_PATH_CANDIDATES", control::MAX_PATH_CANDIDATES as u64),
        ("MIN_PROBE_LEN", control::MIN_PROBE_LEN.into()),
        ("MAX_PROBE_LEN", control::MAX_PROBE_LEN.into()),
        ("RELAY_PREFIX_LEN", relay::RELAY_PREFIX_LEN as u64),
        ("MIN_RELAY_PAYLOAD", relay::MIN_RELAY_PAYLOAD as u64),
        ("RECORD_REQUEST_LEN", rendezvous::RECORD_REQUEST_LEN as u64),
        ("MAX_REQUEST_LEN", stun::MAX_REQUEST_LEN as u64),
        ("MAX_GROWTH", stun::MAX_GROWTH as u64),
        ("RECORD_LIFETIME", node::RECORD_LIFETIME.as_secs()),
        ("RESPONSE_REPEAT", tunnel::RESPONSE_REPEAT.as_secs()),
        ("REGISTRATION_S", server::REGISTRATION_S.into()),
        ("INTRODUCTION_LIFETIME", server::INTRODUCTION_LIFETIME.as_secs()),
        ("HARD_SOCKETS", path::HARD_SOCKETS.into()),
    ]
}

/// The agentnet command lines in a simple command: itself, or what a container is told to run.
fn within(words: &[String]) -> Vec<Vec<String>> {
    let begins: Vec<usize> = match words[0].as_str() {
        "agentnet" => vec![0],
        // `podman exec NAME agentnet ...`
        "podman" if words[1] == "exec" => vec![3],
        _ => Vec::new(),
    };
    begins.into_iter().map(|begin| words[begin..].to_vec()).collect()
}

fn parse(words: &[String], allowed: &[ErrorKind]) -> Result<(), String> {
    // A placeholder for any command.
    if words.iter().any(|word| word == "COMMAND") {
        return Ok(());
    }
    let answers = [ErrorKind::DisplayHelp, ErrorKind::DisplayVersion];
    match cli::definition().try_get_matches_from(words) {
        Err(error) if !answers.contains(&error.kind()) && !allowed.contains(&error.kind()) => Err(error.to_string()),
        _ => Ok(()),
    }
}

/// Numbered lines outside of fenced blocks.
fn without_blocks(document: &Document) -> Vec<(usize, &str)> {
    let mut inside = false;
    let lines = document.text.lines().enumerate().filter(|(_, line)| {
        inside ^= line.starts_with("```");
        !inside && !line.starts_with("```")
    });
    lines.map(|(number, line)| (number + 1, line)).collect()
}

/// Relative links.
fn links(document: &Document) -> Vec<String> {
    let prose = document.prose();
    let targets = prose.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    targets.filter(|target| !target.contains("://")).map(str::to_owned).collect()
}

/// As GitHub makes it of a heading.
fn anchor_of(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = text.chars().filter(|character| character.is_alphanumeric() || matches!(character, ' ' | '-' | '_'));
    kept.map(|character| if character == ' ' { '-' } else { character }).collect()
}
