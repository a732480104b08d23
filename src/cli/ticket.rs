//! `agentnet ticket`

use std::io::Write;

use super::Global;
use super::client::{Client, block_on};
use super::output::{Failure, Output, clean};
use crate::api::TicketDocument;

/// Print one line to hand to another agent
#[derive(Debug, clap::Args)]
pub(super) struct Args {}

pub(super) fn run(_: &Args, global: &Global, out: &mut Output) -> Result<(), Failure> {
    let client = Client::new(global)?;
    let document: TicketDocument = block_on(client.get("/v1/ticket"))?;
    out.result(&document, |page| writeln!(page, "{}", clean(&document.ticket)))?;
    // In a pipe the ticket is all that is wanted.
    if out.terminal {
        out.note("On the other host: agentnet trust request TICKET");
    }
    Ok(())
}
