//! `agentnet completion`

use std::io::Write;

use clap::CommandFactory;
use clap_complete::Shell;
use serde::Serialize;

use super::Cli;
use super::output::{Failure, Output};

/// Print a completion script for a shell
#[derive(Debug, clap::Args)]
#[command(after_help = "For bash: agentnet completion bash > /etc/bash_completion.d/agentnet")]
pub(super) struct Args {
    /// The shell
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

#[derive(Serialize)]
struct Completion {
    shell: String,
    script: String,
}

pub(super) fn run(args: &Args, out: &mut Output) -> Result<(), Failure> {
    // Into memory first: the generator panics when its writer fails.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "agentnet", &mut script);
    let document = Completion { shell: args.shell.to_string(), script: String::from_utf8_lossy(&script).into_owned() };
    out.result(&document, |page| page.write_all(&script))
}
