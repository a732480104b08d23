//! The command line: one file per command, `output` for everything printed, `client` for the control socket.
//!
//! - Results go to standard output, errors and notes to standard error.
//! - With `--json`, standard output carries exactly one JSON document (streams: one a line) and nothing else. When the
//!   command fails, that document is the error document; standard error stays empty.
//! - The exit status is that of the error's code, see [`crate::api::ExitStatus`].
#![allow(clippy::disallowed_methods, reason = "this is the shell: environment, clocks and threads belong here")]

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use self::output::{Failure, Output};
use crate::api::ExitStatus;

mod bugreport;
mod client;
mod completion;
mod config;
mod daemon;
mod down;
mod human;
mod id;
mod load;
mod man;
mod metrics;
mod netcheck;
mod output;
mod peers;
mod ping;
mod reload;
mod rendezvous;
mod screen;
mod service;
mod status;
mod ticket;
mod trust;
mod up;
mod usage;
mod version;
mod why;

/// Every AI agent its own address on one private network, wherever it runs.
#[derive(Debug, Parser)]
#[command(
    name = "agentnet",
    version,
    arg_required_else_help = true,
    disable_help_subcommand = true,
    max_term_width = 100,
    after_help = "PEER is an agent id, the first 6 or more characters of one, a name, an overlay IP or a ticket.\n\
                  Exit status: 0 done, 1 failed, 2 wrong usage, 3 no agent runs, 4 no permission, 5 not found,\n\
                  6 timed out, 7 refused by trust or policy."
)]
pub(crate) struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// What every command accepts.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct Global {
    /// State directory [default: /var/lib/agentnet; environment: AGENTNET_STATE_DIR]
    #[arg(long, global = true, value_name = "DIR", help_heading = "Global options")]
    state_dir: Option<PathBuf>,
    /// Control socket [default: /run/agentnet/agentnet.sock, or DIR/agentnet.sock; environment: AGENTNET_SOCKET]
    #[arg(long, global = true, value_name = "PATH", help_heading = "Global options")]
    socket: Option<PathBuf>,
    /// Print JSON
    #[arg(long, global = true, help_heading = "Global options")]
    json: bool,
    /// Print results and errors only, no notes and no progress
    #[arg(long, short, global = true, help_heading = "Global options")]
    quiet: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    Up(up::Args),
    Down(down::Args),
    Daemon(daemon::Args),
    Rendezvous(rendezvous::Args),
    Id(id::Args),
    Status(status::Args),
    Ping(ping::Args),
    Why(why::Args),
    Netcheck(netcheck::Args),
    Ticket(ticket::Args),
    Trust(trust::Args),
    Peers(peers::Args),
    Config(config::Args),
    Reload(reload::Args),
    Metrics(metrics::Args),
    Bugreport(bugreport::Args),
    Completion(completion::Args),
    #[command(hide = true)]
    Man(man::Args),
    Version(version::Args),
}

/// Runs the program: parses `arguments` (the first is the program's name), does what they say, returns the exit status.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let cli = match Cli::try_parse_from(&arguments) {
        Ok(cli) => cli,
        Err(error) => return exit_code(usage::report(&error, &arguments)),
    };
    let mut out = Output::standard(cli.global.json, cli.global.quiet);
    let result = run(&cli.command, &cli.global, &mut out).and_then(|()| out.flush());
    exit_code(match result {
        Ok(()) => ExitStatus::Done,
        Err(failure) => out.report(&failure),
    })
}

/// The command line as it is defined: documentation is compared with it.
#[must_use]
pub fn definition() -> clap::Command {
    Cli::command()
}

fn run(command: &Command, global: &Global, out: &mut Output) -> Result<(), Failure> {
    match command {
        Command::Up(args) => up::run(args, global, out),
        Command::Down(args) => down::run(args, global, out),
        Command::Daemon(args) => daemon::run(args, global),
        Command::Rendezvous(args) => rendezvous::run(args, global, out),
        Command::Id(args) => id::run(args, global, out),
        Command::Status(args) => status::run(args, global, out),
        Command::Ping(args) => ping::run(args, global, out),
        Command::Why(args) => why::run(args, global, out),
        Command::Netcheck(args) => netcheck::run(args, global, out),
        Command::Ticket(args) => ticket::run(args, global, out),
        Command::Trust(args) => trust::run(args, global, out),
        Command::Peers(args) => peers::run(args, global, out),
        Command::Config(args) => config::run(args, global, out),
        Command::Reload(args) => reload::run(args, global, out),
        Command::Bugreport(args) => bugreport::run(args, global, out),
        Command::Metrics(args) => metrics::run(args, global, out),
        Command::Completion(args) => completion::run(args, out),
        Command::Man(args) => man::run(args, out),
        Command::Version(args) => version::run(args, out),
    }
}

fn exit_code(status: ExitStatus) -> ExitCode {
    ExitCode::from(status as u8)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_definition_is_consistent() {
        super::definition().debug_assert();
    }
}
