//! `agentnet man`: for those who make packages, so hidden from the help.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::{Command, CommandFactory};
use clap_mangen::Man;
use serde::Serialize;

use super::Cli;
use super::output::{Failure, Output};
use crate::api::{Error, ErrorCode};

/// Write a manual page for every command
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// An existing directory that they are written to
    #[arg(value_name = "DIR")]
    directory: PathBuf,
}

#[derive(Serialize)]
struct Written {
    /// The files, without their directory.
    pages: Vec<String>,
}

/// A manual page.
struct Page {
    file: String,
    text: Vec<u8>,
}

pub(super) fn run(args: &Args, out: &mut Output) -> Result<(), Failure> {
    let mut command = Cli::command();
    command.build();
    let mut all = Vec::new();
    pages(&command, &mut all).map_err(|error| unwritable(&args.directory, &error))?;
    for page in &all {
        let path = args.directory.join(&page.file);
        fs::write(&path, &page.text).map_err(|error| unwritable(&path, &error))?;
    }
    let written = Written { pages: all.into_iter().map(|page| page.file).collect() };
    out.result(&written, |text| written.pages.iter().try_for_each(|page| writeln!(text, "{page}")))
}

/// The page of a command and those of the commands below it.
fn pages(command: &Command, all: &mut Vec<Page>) -> io::Result<()> {
    let man =
        Man::new(command.clone()).manual("agentnet manual").source(concat!("agentnet ", env!("CARGO_PKG_VERSION")));
    let mut text = Vec::new();
    man.render(&mut text)?;
    all.push(Page { file: man.get_filename(), text });
    command.get_subcommands().filter(|below| !below.is_hide_set()).try_for_each(|below| pages(below, all))
}

fn unwritable(path: &Path, error: &io::Error) -> Error {
    let code = match error.kind() {
        io::ErrorKind::StorageFull => ErrorCode::DiskFull,
        io::ErrorKind::PermissionDenied => ErrorCode::NotPermitted,
        _ => ErrorCode::Usage,
    };
    Error::new(code, format!("{}: {error}", path.display()), "name a directory that exists and can be written")
}
