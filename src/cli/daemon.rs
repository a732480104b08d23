//! `agentnet daemon`

use std::io::Write;

use super::Global;
use super::load::AgentArgs;
use super::output::Failure;
use crate::api::{Error, StartReport};
use crate::daemon::{Log, Surroundings};

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
    let state_dir = args.background.then_some(config.state_dir.value.as_path());
    let log = Log::start(&config.log_level.value, config.log_format.value, state_dir)?;
    let (agent, global, file) = (args.agent.clone(), global.clone(), args.agent.named_file());
    let load = Box::new(move || agent.load(&global));
    crate::daemon::run(config, Surroundings { load, file, log }, args.background)
}

/// Hands an error to `agentnet up`. Once the agent is ready nobody listens any more, and the writing fails unnoticed.
fn tell_starter(error: &Error) {
    let Ok(mut line) = serde_json::to_vec(&StartReport::Error(error.clone())) else { return };
    line.push(b'\n');
    let mut out = std::io::stdout();
    let _ = out.write_all(&line).and_then(|()| out.flush());
}
