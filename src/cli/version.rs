//! `agentnet version`

use std::io::Write;

use serde::Serialize;

use super::output::{Failure, Output};

/// Print the version
#[derive(Debug, clap::Args)]
pub(super) struct Args {}

#[derive(Serialize)]
struct Version {
    version: &'static str,
}

pub(super) fn run(_: &Args, out: &mut Output) -> Result<(), Failure> {
    let document = Version { version: env!("CARGO_PKG_VERSION") };
    out.result(&document, |page| writeln!(page, "agentnet {}", document.version))
}
