//! `agentnet metrics`

use std::io::Write;

use serde::Serialize;

use super::Global;
use super::client::{Client, block_on};
use super::output::{Failure, Output};

/// Print what the agent counts, as Prometheus reads it
#[derive(Debug, clap::Args)]
#[command(after_help = "--metrics-listen of `up` serves the same over HTTP.")]
pub(super) struct Args {}

/// With `--json`, one document as everywhere.
#[derive(Serialize)]
struct Metrics {
    /// Text exposition format 0.0.4.
    text: String,
}

pub(super) fn run(_: &Args, global: &Global, out: &mut Output) -> Result<(), Failure> {
    let client = Client::new(global)?;
    let metrics = Metrics { text: block_on(client.get_text("/v1/metrics"))? };
    out.result(&metrics, |page| page.write_all(metrics.text.as_bytes()))
}
