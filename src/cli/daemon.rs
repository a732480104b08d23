//! `agentnet daemon`

use std::io::Write;

use tracing_subscriber::EnvFilter;

use super::Global;
use super::load::AgentArgs;
use super::output::Failure;
use crate::api::{Error, ErrorCode, StartReport};
use crate::config::{Config, LogFormat};

/// Run the agent in the foreground, for services and containers
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Report readiness to the process that started this one, and leave its terminal
    #[arg(long, hide = true)]
    background: bool,
    #[command(flatten)]
    pub(super) agent: AgentArgs,
}

pub(super) fn run(args: &Args, global: &Global) -> Result<(), Failure> {
    let result = start(args, global);
    if let (Err(error), true) = (&result, args.background) {
        tell_starter(error);
    }
    Ok(result?)
}

fn start(args: &Args, global: &Global) -> Result<(), Error> {
    let config = args.agent.load(global)?;
    initialise_log(&config)?;
    crate::daemon::run(config, args.background)
}

/// Hands an error to `agentnet up`. Once the agent is ready nobody listens any more, and the writing fails unnoticed.
fn tell_starter(error: &Error) {
    let Ok(mut line) = serde_json::to_vec(&StartReport::Error(error.clone())) else { return };
    line.push(b'\n');
    let mut out = std::io::stdout();
    let _ = out.write_all(&line).and_then(|()| out.flush());
}

/// Sends the log to standard error.
pub(super) fn initialise_log(config: &Config) -> Result<(), Error> {
    let failed =
        |why: String| Error::new(ErrorCode::Internal, format!("the log cannot be set up: {why}"), "report this");
    let filter =
        EnvFilter::builder().parse(filter_text(&config.log_level.value)).map_err(|error| failed(error.to_string()))?;
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        // A log that cannot be written, on a full disk for one, is not worth a panic.
        .log_internal_errors(false);
    match config.log_format.value {
        LogFormat::Text => {
            let colour = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
                && std::io::IsTerminal::is_terminal(&std::io::stderr());
            log.with_ansi(colour).try_init()
        }
        LogFormat::Json => log.json().try_init(),
    }
    .map_err(|error| failed(error.to_string()))
}

/// The session library calls every peer that does not answer an error. The agent has its own words for that.
fn filter_text(configured: &str) -> String {
    format!("boringtun=off,{configured}")
}
