//! `agentnet id`

use super::client::{Client, block_on};
use super::output::{Failure, Output};
use super::{Global, human};
use crate::api::Identity;

/// Print who this agent is
#[derive(Debug, clap::Args)]
pub(super) struct Args {}

pub(super) fn run(_: &Args, global: &Global, out: &mut Output) -> Result<(), Failure> {
    let client = Client::new(global)?;
    let identity: Identity = block_on(client.get("/v1/id"))?;
    out.result(&identity, |page| {
        page.field("id", &identity.id.to_string())?;
        page.field("name", identity.name.as_deref().unwrap_or_default())?;
        page.field("ipv6", &identity.ipv6.to_string())?;
        page.field("ipv4", &human::optional(identity.ipv4, |ipv4| ipv4.to_string()))?;
        page.field("did", &identity.did)?;
        page.field("ref", identity.reference.as_deref().unwrap_or_default())
    })
}
