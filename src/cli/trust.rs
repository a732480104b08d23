//! `agentnet trust`

use std::io::{self, Write};

use super::client::{Client, block_on};
use super::output::{Failure, Output, Page, clean};
use super::{Global, human};
use crate::api::{Identity, PeerBody, TrustEntry, TrustList, TrustRequestBody, TrustState};

/// Longest reason in characters, as an introduction carries it.
const MAX_REASON: usize = 140;

/// Ask for trust, give it, and take it back
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Ask an agent for trust, and give it from this side
    Request(RequestArgs),
    /// List the requests that wait for a decision
    Pending,
    /// Grant a request
    Approve(PeerArgs),
    /// Refuse a request
    Reject(PeerArgs),
    /// Take trust back
    Revoke(PeerArgs),
    /// List every relation
    List,
}

#[derive(Debug, clap::Args)]
struct PeerArgs {
    /// Agent id or prefix, name, overlay IP or ticket
    #[arg(value_name = "PEER")]
    peer: String,
}

#[derive(Debug, clap::Args)]
struct RequestArgs {
    #[command(flatten)]
    peer: PeerArgs,
    /// Why, in at most 140 characters; shown to the other side
    #[arg(long, value_name = "TEXT", value_parser = parse_reason)]
    reason: Option<String>,
    /// What may be reached once trusted, for example tcp/22,tcp/8000-8100,udp/53 [default: everything]
    #[arg(long, value_name = "SPEC")]
    ports: Option<String>,
    /// How long trust lasts, for example 30m, 12h, 7d [default: until it is taken back]
    #[arg(long, value_name = "DURATION", value_parser = human::parse_duration)]
    ttl: Option<u64>,
}

pub(super) fn run(args: &Args, global: &Global, out: &mut Output) -> Result<(), Failure> {
    let client = Client::new(global)?;
    block_on(async {
        match &args.action {
            Action::Request(request) => self::request(&client, request, out).await,
            Action::Pending => {
                let list: TrustList = client.get("/v1/trust/pending").await?;
                out.result(&list, |page| show_pending(page, &list))
            }
            Action::Approve(peer) => decide(&client, "approve", peer, out).await,
            Action::Reject(peer) => decide(&client, "reject", peer, out).await,
            Action::Revoke(peer) => decide(&client, "revoke", peer, out).await,
            Action::List => {
                let list: TrustList = client.get("/v1/trust/list").await?;
                out.result(&list, |page| show_list(page, &list))
            }
        }
    })
}

async fn request(client: &Client, args: &RequestArgs, out: &mut Output) -> Result<(), Failure> {
    let body = TrustRequestBody {
        peer: args.peer.peer.trim().to_owned(),
        reason: args.reason.clone(),
        ports: args.ports.clone(),
        ttl_s: args.ttl,
    };
    let this: Identity = client.get("/v1/id").await?;
    let entry: TrustEntry = client.post("/v1/trust/request", &body).await?;
    out.result(&entry, |page| show_change(page, &entry))?;
    if entry.trust == TrustState::Requested {
        out.note(&format!("On the other host: agentnet trust approve {}", this.id.short()));
    }
    Ok(())
}

async fn decide(client: &Client, action: &str, args: &PeerArgs, out: &mut Output) -> Result<(), Failure> {
    let body = PeerBody { peer: args.peer.trim().to_owned() };
    let entry: TrustEntry = client.post(&format!("/v1/trust/{action}"), &body).await?;
    out.result(&entry, |page| show_change(page, &entry))
}

fn parse_reason(text: &str) -> Result<String, String> {
    if text.chars().count() > MAX_REASON {
        return Err(format!("a reason has at most {MAX_REASON} characters"));
    }
    if text.chars().any(char::is_control) {
        return Err("a reason is one line without control characters".to_owned());
    }
    Ok(text.to_owned())
}

fn who(entry: &TrustEntry) -> String {
    match &entry.name {
        Some(name) => format!("{} ({})", clean(name), entry.id.short()),
        None => entry.id.short(),
    }
}

/// Where a relation stands now, and what happens next.
fn show_change(page: &mut Page, entry: &TrustEntry) -> io::Result<()> {
    let who = who(entry);
    match entry.trust {
        TrustState::Trusted => {
            writeln!(page, "{who} is trusted. Reach it at:")?;
            page.field("ipv6", &entry.ipv6.to_string())?;
            page.field("ipv4", &entry.ipv4.map_or_else(String::new, |ipv4| ipv4.to_string()))?;
            page.field("ports", entry.ports.as_deref().unwrap_or_default())?;
            page.field(
                "until",
                &entry.expires_s.map_or_else(String::new, |s| format!("{} from now", human::duration(s))),
            )
        }
        TrustState::Requested => {
            writeln!(page, "{who} is trusted from this side, and asked to do the same. It connects once it agrees.")
        }
        TrustState::Pending => writeln!(page, "{who} asked for trust and waits for a decision here."),
        TrustState::Rejected => writeln!(page, "{who} was refused. It is not told; it cannot reach this agent."),
        TrustState::Revoked => {
            writeln!(page, "{who} is no longer trusted. Its connections through the overlay end now.")
        }
        TrustState::None => writeln!(page, "{who} has no relation with this agent."),
    }
}

fn show_pending(page: &mut Page, list: &TrustList) -> io::Result<()> {
    if list.peers.is_empty() {
        return writeln!(page, "No request waits for a decision.");
    }
    let rows = list.peers.iter().map(|entry| {
        vec![
            human::optional(entry.name.clone(), |name| name),
            entry.id.short(),
            format!("{} ago", human::duration(entry.since_s)),
            human::optional(entry.from, |from| from.to_string()),
            entry.ports.clone().unwrap_or_else(|| "all".to_owned()),
            human::optional(entry.expires_s, human::duration),
            human::optional(entry.reason.clone(), |reason| reason),
        ]
    });
    page.table(&["NAME", "ID", "ASKED", "FROM", "PORTS", "FOR", "REASON"], rows.collect())?;
    writeln!(page, "\nDecide with `agentnet trust approve ID` or `agentnet trust reject ID`.")
}

fn show_list(page: &mut Page, list: &TrustList) -> io::Result<()> {
    if list.peers.is_empty() {
        return writeln!(page, "No relations yet. Ask with `agentnet trust request TICKET`.");
    }
    let rows = list.peers.iter().map(|entry| {
        vec![
            human::optional(entry.name.clone(), |name| name),
            entry.id.short(),
            entry.ipv6.to_string(),
            human::optional(entry.ipv4, |ipv4| ipv4.to_string()),
            entry.trust.as_str().to_owned(),
            human::duration(entry.since_s),
            entry.ports.clone().unwrap_or_else(|| "all".to_owned()),
            human::optional(entry.expires_s, human::duration),
        ]
    });
    page.table(&["NAME", "ID", "IPV6", "IPV4", "TRUST", "SINCE", "PORTS", "ENDS IN"], rows.collect())
}

#[cfg(test)]
mod tests {
    use super::super::output::testing::rendered;
    use super::*;

    const ENTRY: &str = r#"{"id":"47pjoycnsrfmxikm95jh13y88e8qnhzu5kungjpxyepgt7a8krpy","name":"one",
        "ipv6":"fd61:6e74::7","ipv4":"100.64.0.20","trust":"trusted","reason":"to \u001b[31mbuild","ports":"tcp/22",
        "expires_s":3600,"since_s":75,"from":"192.0.2.1:41641"}"#;

    fn entry() -> TrustEntry {
        serde_json::from_str(ENTRY).unwrap()
    }

    #[test]
    fn trust_says_where_the_peer_is() {
        insta::assert_snapshot!(rendered(|page| show_change(page, &entry())), @r#"
        one (47pjoycnsr) is trusted. Reach it at:
          ipv6       fd61:6e74::7
          ipv4       100.64.0.20
          ports      tcp/22
          until      1 h from now
        "#);
    }

    #[test]
    fn every_state_has_its_own_words() {
        let mut texts: Vec<String> = [
            TrustState::Trusted,
            TrustState::Requested,
            TrustState::Pending,
            TrustState::Rejected,
            TrustState::Revoked,
            TrustState::None,
        ]
        .map(|trust| rendered(|page| show_change(page, &TrustEntry { trust, ..entry() })))
        .into();
        assert!(texts.iter().all(|text| text.starts_with("one (47pjoycnsr) ")), "{texts:?}");
        texts.dedup();
        assert_eq!(texts.len(), 6);
    }

    #[test]
    fn lists_and_requests_as_tables() {
        let list = TrustList { peers: vec![entry()] };
        insta::assert_snapshot!(rendered(|page| show_pending(page, &list)), @r#"
        NAME  ID          ASKED           FROM             PORTS   FOR  REASON
        one   47pjoycnsr  1 min 15 s ago  192.0.2.1:41641  tcp/22  1 h  to �[31mbuild

        Decide with `agentnet trust approve ID` or `agentnet trust reject ID`.
        "#);
        insta::assert_snapshot!(rendered(|page| show_list(page, &list)), @r#"
        NAME  ID          IPV6          IPV4         TRUST    SINCE       PORTS   ENDS IN
        one   47pjoycnsr  fd61:6e74::7  100.64.0.20  trusted  1 min 15 s  tcp/22  1 h
        "#);
    }

    #[test]
    fn reasons_are_one_short_line() {
        assert!(parse_reason(&"ü".repeat(140)).is_ok());
        assert!(parse_reason(&"ü".repeat(141)).is_err());
        assert!(parse_reason("a\nb").is_err());
    }
}
