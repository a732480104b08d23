//! `agentnet peers`

use std::io::{self, Write};

use super::client::{Client, block_on};
use super::output::{Failure, Output, Page};
use super::{Global, human};
use crate::api::{KnownPeer, Peers};

/// List every agent known, trusted or not
#[derive(Debug, clap::Args)]
pub(super) struct Args {}

pub(super) fn run(_: &Args, global: &Global, out: &mut Output) -> Result<(), Failure> {
    let client = Client::new(global)?;
    let peers: Peers = block_on(client.get("/v1/peers"))?;
    out.result(&peers, |page| show(page, &peers))
}

fn show(page: &mut Page, peers: &Peers) -> io::Result<()> {
    if peers.peers.is_empty() {
        return writeln!(page, "No agent is known yet. Hand out `agentnet ticket`, or use one.");
    }
    let rows = peers.peers.iter().map(row).collect();
    page.table(&["NAME", "ID", "IPV6", "IPV4", "TRUST", "SOURCE", "RECORD", "ADDRESSES"], rows)
}

fn row(peer: &KnownPeer) -> Vec<String> {
    let record = match peer.record_expires_s {
        0 => "expired".to_owned(),
        seconds => format!("{} old, {} left", human::duration(peer.record_age_s), human::duration(seconds)),
    };
    let addresses: Vec<String> = peer.addresses.iter().map(ToString::to_string).collect();
    vec![
        human::optional(peer.name.clone(), |name| name),
        peer.id.short(),
        peer.ipv6.to_string(),
        human::optional(peer.ipv4, |ipv4| ipv4.to_string()),
        peer.trust.as_str().to_owned(),
        peer.source.clone(),
        record,
        if addresses.is_empty() { "-".to_owned() } else { addresses.join(" ") },
    ]
}

#[cfg(test)]
mod tests {
    use super::super::output::testing::rendered;
    use super::*;

    const PEERS: &str = r#"{"peers":[
        {"id":"47pjoycnsrfmxikm95jh13y88e8qnhzu5kungjpxyepgt7a8krpy","name":"build-7","ipv6":"fd61:6e74::7",
         "ipv4":"100.64.0.20","trust":"trusted","source":"ticket","record_age_s":75,"record_expires_s":7200,
         "addresses":["192.0.2.1:41641","[2001:db8::1]:41641"]},
        {"id":"47pjoycnsrfmxikm95jh13y88e8qnhzu5kungjpxyepgt7a8krpy","name":null,"ipv6":"fd61:6e74::8","ipv4":null,
         "trust":"none","source":"session","record_age_s":9,"record_expires_s":0,"addresses":[]}]}"#;

    #[test]
    fn everything_known_is_in_the_table() {
        let peers: Peers = serde_json::from_str(PEERS).unwrap();
        let text = rendered(|page| show(page, &peers));
        insta::assert_snapshot!(text, @r#"
        NAME     ID          IPV6          IPV4         TRUST    SOURCE   RECORD                    ADDRESSES
        build-7  47pjoycnsr  fd61:6e74::7  100.64.0.20  trusted  ticket   1 min 15 s old, 2 h left  192.0.2.1:41641 [2001:db8::1]:41641
        -        47pjoycnsr  fd61:6e74::8  -            none     session  expired                   -
        "#);
    }

    #[test]
    fn nobody_known_says_what_to_do() {
        let text = rendered(|page| show(page, &Peers { peers: Vec::new() }));
        assert_eq!(text, "No agent is known yet. Hand out `agentnet ticket`, or use one.\n");
    }
}
