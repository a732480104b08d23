//! What is printed when the command line is not understood, or asks for help.

use std::ffi::OsString;

use clap::error::ErrorKind;

use super::output::Output;
use crate::api::{Error, ErrorCode, ExitStatus};

/// Prints what clap has to say: help to standard output, errors to standard error or, with `--json`, as a document.
pub(super) fn report(error: &clap::Error, arguments: &[OsString]) -> ExitStatus {
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        // Nothing is left to do when the reader of the help is gone.
        let _ = error.print();
        return ExitStatus::Done;
    }
    if asks_for_json(arguments) {
        return Output::standard(true, false).report(&document(error).into());
    }
    let _ = error.print();
    ExitStatus::Usage
}

/// Whether `--json` is given. Looked for by hand, as the command line did not parse.
fn asks_for_json(arguments: &[OsString]) -> bool {
    arguments.iter().take_while(|argument| *argument != "--").any(|argument| argument == "--json")
}

fn document(error: &clap::Error) -> Error {
    const HELP: &str = "try `agentnet --help`";
    let text = error.render().to_string();
    let paragraphs = text.split("\n\n").map(str::trim);
    let mut message = String::new();
    let mut hints = Vec::new();
    for paragraph in paragraphs {
        if let Some(rest) = paragraph.strip_prefix("error: ") {
            message = one_line(rest);
        } else if paragraph.starts_with("tip: ") {
            hints.extend(paragraph.lines().filter_map(|line| line.trim().strip_prefix("tip: ")).map(str::to_owned));
        } else if let Some(usage) = paragraph.strip_prefix("Usage: ") {
            hints.push(format!("usage: {}", one_line(usage)));
        }
    }
    let hint = if hints.is_empty() { HELP.to_owned() } else { hints.join("; ") };
    Error::new(ErrorCode::Usage, message, hint)
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
