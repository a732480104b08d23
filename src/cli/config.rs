//! `agentnet config`

use std::io::{self, Write};
use std::path::PathBuf;

use serde::Serialize;

use super::Global;
use super::client::{Client, block_on};
use super::load::{AgentArgs, FileArgs};
use super::output::{Failure, Output, Page};
use crate::api::ConfigDocument;
use crate::config::{Config, DEFAULT_FILE, Key, Origin};

/// Show or check the configuration
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Show every setting that `up` would use with the same flags, and where it came from
    Show(Box<ShowArgs>),
    /// Check a configuration file
    Check(CheckArgs),
}

#[derive(Debug, clap::Args)]
struct ShowArgs {
    /// Show what the running agent uses instead
    #[arg(long, conflicts_with_all = ["name", "tun", "port", "rendezvous", "discovery", "ipv4_range", "config"])]
    running: bool,
    #[command(flatten)]
    agent: AgentArgs,
}

#[derive(Debug, clap::Args)]
struct CheckArgs {
    /// The file [default: /etc/agentnet/agentnet.toml; environment: AGENTNET_CONFIG]
    #[arg(value_name = "FILE", conflicts_with = "config")]
    path: Option<PathBuf>,
    #[command(flatten)]
    file: FileArgs,
}

/// What `config check` prints when nothing is wrong.
#[derive(Serialize)]
struct Checked {
    /// The file; absent when there is none.
    file: Option<String>,
    valid: bool,
}

pub(super) fn run(args: &Args, global: &Global, out: &mut Output) -> Result<(), Failure> {
    match &args.action {
        Action::Show(args) if args.running => {
            let client = Client::new(global)?;
            let document: ConfigDocument = block_on(client.get("/v1/config"))?;
            out.result(&document, |page| {
                let rows = document.settings.iter();
                let rows = rows.map(|setting| row(&setting.key, &setting.value, setting.origin.clone()));
                page.table(&HEADER, rows.collect())
            })
        }
        Action::Show(args) => {
            let config = args.agent.load(global)?;
            out.result(&config.document(), |page| show(page, &config))
        }
        Action::Check(args) => check(args, out),
    }
}

/// Flags and environment stay aside: the question is whether the file is right.
fn check(args: &CheckArgs, out: &mut Output) -> Result<(), Failure> {
    let file = match &args.path {
        Some(path) => FileArgs::named(Some(path.clone())),
        None => args.file.clone(),
    };
    let read = file.read()?;
    Config::from_settings(&read.settings)?;
    let checked = Checked { file: read.path.map(|path| path.display().to_string()), valid: true };
    out.result(&checked, |page| match &checked.file {
        Some(file) => writeln!(page, "{file} is valid."),
        None => writeln!(page, "{DEFAULT_FILE} does not exist; defaults are used."),
    })
}

const HEADER: [&str; 3] = ["SETTING", "VALUE", "FROM"];

fn show(page: &mut Page, config: &Config) -> io::Result<()> {
    let rows = Key::ALL.iter().map(|key| {
        let origin = config.origin(*key);
        let from = match origin {
            Origin::File { .. } | Origin::Default | Origin::State => origin.to_string(),
            Origin::Environment(variable) => (*variable).to_owned(),
            Origin::Flag(flag) => (*flag).to_owned(),
        };
        row(key.name(), &config.value_text(*key), from)
    });
    page.table(&HEADER, rows.collect())
}

fn row(key: &str, value: &str, from: String) -> Vec<String> {
    let value = if value.is_empty() { "-" } else { value };
    vec![key.to_owned(), value.to_owned(), from]
}
