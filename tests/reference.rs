//! `docs/reference.md` says what the program does: its tables are made from the program's own.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use agentnet::api::ErrorCode;
use agentnet::config::Key;
use agentnet::metrics::{Counters, Family, ServerCounters, agent_families, server_families};

/// The tables begin and end with these lines.
const MARKS: (&str, &str) = ("<!-- made by tests/reference.rs -->", "<!-- end -->");

fn file() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/reference.md")
}

fn tables() -> Vec<String> {
    let mut errors = String::from("| code | exit status | meaning |\n|---|---|---|\n");
    for code in ErrorCode::ALL {
        writeln!(errors, "| `{code}` | {} | {} |", code.exit_status() as u8, code.explanation().trim()).unwrap();
    }
    let mut settings = String::from("| key | flag | environment | meaning |\n|---|---|---|---|\n");
    for key in Key::ALL {
        let flag = key.flag().map_or_else(String::new, |flag| format!("`{flag}`"));
        writeln!(settings, "| `{}` | {flag} | `{}` | {} |", key.name(), key.variable(), key.explanation()).unwrap();
    }
    let mut drops = String::from("| reason | meaning |\n|---|---|\n");
    for (name, explanation, _) in Counters::default().iter() {
        if let Some(reason) = name.strip_prefix("drop_") {
            writeln!(drops, "| `{reason}` | {explanation} |").unwrap();
        }
    }
    let mut server = String::from("| counter | meaning |\n|---|---|\n");
    for (name, explanation, _) in ServerCounters::default().iter() {
        writeln!(server, "| `{name}` | {explanation} |").unwrap();
    }
    let metrics = [families(&agent_families()), families(&server_families())];
    [errors, settings, drops, server].into_iter().chain(metrics).collect()
}

fn families(families: &[Family]) -> String {
    let mut table = String::from("| metric | type | labels | meaning |\n|---|---|---|---|\n");
    for Family { name, kind, labels, help } in families {
        writeln!(table, "| `{name}` | {} | {labels} | {help} |", kind.as_str()).unwrap();
    }
    table
}

/// The file with its tables replaced by those of the program.
fn expected(current: &str) -> String {
    let mut result = String::new();
    let mut parts = current.split(MARKS.0);
    result.push_str(parts.next().unwrap());
    for (part, table) in parts.zip(tables()) {
        let (_, after) = part.split_once(MARKS.1).unwrap();
        write!(result, "{}\n{table}{}{after}", MARKS.0, MARKS.1).unwrap();
    }
    result
}

#[test]
fn the_reference_has_every_code_setting_and_counter() {
    let current = fs::read_to_string(file()).unwrap();
    assert_eq!(current.matches(MARKS.0).count(), tables().len());
    let hint = "run: cargo test --test reference -- --ignored";
    assert!(expected(&current) == current, "docs/reference.md is not what the program says; {hint}");
}

#[test]
#[ignore = "rewrites the tables of docs/reference.md"]
fn rewrite_the_reference() {
    let current = fs::read_to_string(file()).unwrap();
    fs::write(file(), expected(&current)).unwrap();
}
