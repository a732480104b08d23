//! `agentnet reload`

use std::io::{self, Write};

use super::Global;
use super::client::{Client, block_on};
use super::output::{Failure, Output, Page};
use crate::api::Reloaded;

/// Have the agent read its configuration again, and apply what can change while it runs
#[derive(Debug, clap::Args)]
#[command(
    after_help = "It reads the file and the environment it was started with; its flags stay. Name, rendezvous servers\n\
                  and log level change at once; for the rest it says that it needs a restart.\n\
                  SIGHUP does the same: systemctl reload agentnet."
)]
pub(super) struct Args {}

pub(super) fn run(_: &Args, global: &Global, out: &mut Output) -> Result<(), Failure> {
    let client = Client::new(global)?;
    let reloaded: Reloaded = block_on(client.post("/v1/reload", &serde_json::json!({})))?;
    out.result(&reloaded, |page| show(page, &reloaded))
}

fn show(page: &mut Page, reloaded: &Reloaded) -> io::Result<()> {
    let Reloaded { applied, needs_restart } = reloaded;
    match applied.is_empty() {
        true if needs_restart.is_empty() => writeln!(page, "Nothing has changed.")?,
        true => {}
        false => writeln!(page, "Applied: {}.", applied.join(", "))?,
    }
    if !needs_restart.is_empty() {
        writeln!(page, "Needs a restart: {}.", needs_restart.join(", "))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::output::testing::rendered;
    use super::*;

    #[test]
    fn what_changed_and_what_did_not_is_told() {
        let told = |applied: &[&str], rest: &[&str]| {
            let words = |list: &[&str]| list.iter().map(ToString::to_string).collect();
            rendered(|page| show(page, &Reloaded { applied: words(applied), needs_restart: words(rest) }))
        };
        assert_eq!(told(&[], &[]), "Nothing has changed.\n");
        assert_eq!(told(&["name"], &[]), "Applied: name.\n");
        assert_eq!(told(&[], &["port", "mtu"]), "Needs a restart: port, mtu.\n");
        assert_eq!(told(&["name", "log_level"], &["port"]), "Applied: name, log_level.\nNeeds a restart: port.\n");
    }
}
