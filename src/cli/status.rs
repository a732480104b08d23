//! `agentnet status`

use std::io::{self, Write};
use std::task::Poll;
use std::time::Duration;

use agentnet_platform::process::suspend;
use nix::sys::signal::Signal;
use owo_colors::Style;
use tokio::signal::unix::{SignalKind, signal};

use super::client::{Client, block_on};
use super::output::{Failure, Output, Page, clean};
use super::{Global, human};
use crate::api::{PathKind, PeerStatus, Status, display_addresses};

/// Time between two looks of `--watch`.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// Columns that a narrow terminal does without, the first of them first.
const NARROW: [&str; 7] = ["IPV6", "RECEIVED", "SENT", "HANDSHAKE", "ID", "IPV4", "RTT"];

/// Show this agent, its peers with their paths, and what is wrong
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Show it again every second; with --json one document a line
    #[arg(long)]
    watch: bool,
}

pub(super) fn run(args: &Args, global: &Global, out: &mut Output) -> Result<(), Failure> {
    let client = Client::new(global)?;
    block_on(async {
        let status: Status = client.get("/v1/status").await?;
        if !args.watch {
            return out.result(&status, |page| show(page, &status));
        }
        let watched = tokio::select! {
            result = watch(&client, out, status) => result,
            // Asked to end: the terminal is given back as it was.
            () = interrupted() => Ok(()),
        };
        out.leave_screen();
        watched
    })
}

async fn watch(client: &Client, out: &mut Output, mut status: Status) -> Result<(), Failure> {
    let mut suspended = signal(SignalKind::from_raw(Signal::SIGTSTP as i32)).ok();
    loop {
        if out.json {
            out.document(&status)?;
        } else {
            out.redraw(|page| show(page, &status))?;
        }
        let next = async {
            tokio::time::sleep(WATCH_INTERVAL).await;
            client.get("/v1/status").await
        };
        status = tokio::select! {
            next = next => next?,
            // Ctrl-Z: the shell that goes on meanwhile finds its own screen.
            () = received(&mut suspended) => {
                out.leave_screen();
                let _ = suspend();
                client.get("/v1/status").await?
            }
        };
    }
}

/// Ends when the signal comes; never where it cannot be had.
async fn received(signal: &mut Option<tokio::signal::unix::Signal>) {
    let arrived = match signal {
        Some(signal) => signal.recv().await,
        None => None,
    };
    if arrived.is_none() {
        std::future::pending::<()>().await;
    }
}

/// Ends when a signal asks to; never where signals cannot be had.
async fn interrupted() {
    let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
    let mut signals: Vec<_> = kinds.into_iter().filter_map(|kind| signal(kind).ok()).collect();
    std::future::poll_fn(|cx| match signals.iter_mut().any(|signal| signal.poll_recv(cx).is_ready()) {
        true => Poll::Ready(()),
        false => Poll::Pending,
    })
    .await;
}

fn show(page: &mut Page, status: &Status) -> io::Result<()> {
    show_self(page, status)?;
    for server in &status.rendezvous {
        let rtt = server.rtt_ms.map_or_else(String::new, |ms| format!(", {}", human::round_trip(ms)));
        page.field("rendezvous", &format!("{} {} {}{rtt}", server.id.short(), server.address, server.state))?;
    }
    if !status.drops.is_empty() {
        let drops: Vec<String> = status.drops.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
        page.field("drops", &drops.join(", "))?;
    }
    writeln!(page)?;
    if status.peers.is_empty() {
        writeln!(page, "No peers yet. Hand out `agentnet ticket`, or ask with `agentnet trust request TICKET`.")?;
    } else {
        let rows = status.peers.iter().map(peer_row).collect();
        let header = ["PEER", "ID", "IPV6", "IPV4", "TRUST", "PATH", "RTT", "HANDSHAKE", "SENT", "RECEIVED"];
        page.fitting_table(&header, rows, &NARROW)?;
    }
    show_health(page, status)
}

fn show_self(page: &mut Page, status: &Status) -> io::Result<()> {
    let this = &status.this;
    let title = this.name.clone().unwrap_or_else(|| this.id.short());
    let title = page.styled(&clean(&title), Style::new().bold());
    writeln!(
        page,
        "{title}  up {}, version {}, process {}",
        human::duration(this.uptime_s),
        clean(&this.version),
        this.pid
    )?;
    page.field("id", &this.id.to_string())?;
    let addresses: Vec<String> = display_addresses(this.ipv6, this.ipv4).iter().map(ToString::to_string).collect();
    page.field("addresses", &addresses.join(", "))?;
    let interface = &status.interface;
    page.field(
        "interface",
        &format!(
            "{}, MTU {}, UDP port {}, sent {} ({} packets), received {} ({} packets)",
            interface.name,
            interface.mtu,
            this.port,
            human::bytes(interface.tx_bytes),
            interface.tx_packets,
            human::bytes(interface.rx_bytes),
            interface.rx_packets,
        ),
    )
}

fn peer_row(peer: &PeerStatus) -> Vec<String> {
    let path = &peer.path;
    let way = match path.kind {
        PathKind::Direct => format!("direct {}", human::optional(path.endpoint, |endpoint| endpoint.to_string())),
        PathKind::Relayed => format!("relayed {}", human::optional(path.via, |via| via.short())),
        PathKind::None => "-".to_owned(),
    };
    vec![
        human::optional(peer.name.clone(), |name| name),
        peer.id.short(),
        peer.ipv6.to_string(),
        human::optional(peer.ipv4, |ipv4| ipv4.to_string()),
        peer.trust.as_str().to_owned(),
        way,
        human::optional(path.rtt_ms, human::round_trip),
        human::optional(peer.last_handshake_s, |seconds| format!("{} ago", human::span(seconds))),
        human::bytes(peer.tx_bytes),
        human::bytes(peer.rx_bytes),
    ]
}

fn show_health(page: &mut Page, status: &Status) -> io::Result<()> {
    if status.health.is_empty() {
        return Ok(());
    }
    writeln!(page)?;
    let title = page.styled("Health", Style::new().yellow().bold());
    writeln!(page, "{title}")?;
    show_health_entries(page, &status.health)
}

/// What is wrong, each with its hint.
pub(super) fn show_health_entries(page: &mut Page, health: &[crate::api::HealthEntry]) -> io::Result<()> {
    for entry in health {
        let mark = page.styled("!", Style::new().yellow().bold());
        writeln!(page, "  {mark} {} ({})", clean(&entry.message), clean(&entry.code))?;
        if !entry.hint.is_empty() {
            writeln!(page, "    {}", clean(&entry.hint))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::output::testing::rendered;
    use super::*;

    const STATUS: &str = r#"{
        "self":{"id":"47pjoycnsrfmxikm95jh13y88e8qnhzu5kungjpxyepgt7a8krpy","name":"build-7","ipv6":"fd61:6e74::1",
                "ipv4":"100.64.0.17","version":"0.1.0","uptime_s":11520,"pid":4711,"port":41641},
        "interface":{"name":"agentnet0","mtu":1420,"tx_packets":12,"rx_packets":9,"tx_bytes":1536,"rx_bytes":900},
        "rendezvous":[],
        "peers":[
          {"id":"47pjoycnsrfmxikm95jh13y88e8qnhzu5kungjpxyepgt7a8krpy","name":"data-2","ipv6":"fd61:6e74::2",
           "ipv4":"100.64.0.18","trust":"trusted",
           "path":{"kind":"direct","endpoint":"192.0.2.1:41641","via":null,"rtt_ms":0.42,"since_s":3.0,"mtu":1420},
           "last_handshake_s":12.5,"tx_bytes":1536,"rx_bytes":900,"time_to_direct_ms":80.0},
          {"id":"47pjoycnsrfmxikm95jh13y88e8qnhzu5kungjpxyepgt7a8krpy","name":null,"ipv6":"fd61:6e74::3","ipv4":null,
           "trust":"requested",
           "path":{"kind":"none","endpoint":null,"via":null,"rtt_ms":null,"since_s":null,"mtu":0},
           "last_handshake_s":null,"tx_bytes":0,"rx_bytes":0,"time_to_direct_ms":null}],
        "health":[{"code":"no_ipv6","message":"IPv6 is off","hint":"set net.ipv6.conf.all.disable_ipv6=0"}],
        "drops":{"no_route":2,"policy":1}}"#;

    #[test]
    fn a_whole_status_on_one_page() {
        let status: Status = serde_json::from_str(STATUS).unwrap();
        insta::assert_snapshot!(rendered(|page| show(page, &status)), @r#"
        build-7  up 3 h 12 min, version 0.1.0, process 4711
          id         47pjoycnsrfmxikm95jh13y88e8qnhzu5kungjpxyepgt7a8krpy
          addresses  fd61:6e74::1, 100.64.0.17
          interface  agentnet0, MTU 1420, UDP port 41641, sent 1.5 KiB (12 packets), received 900 B (9 packets)
          drops      no_route 2, policy 1

        PEER    ID          IPV6          IPV4         TRUST      PATH                    RTT      HANDSHAKE  SENT     RECEIVED
        data-2  47pjoycnsr  fd61:6e74::2  100.64.0.18  trusted    direct 192.0.2.1:41641  0.42 ms  12 s ago   1.5 KiB  900 B
        -       47pjoycnsr  fd61:6e74::3  -            requested  -                       -        -          0 B      0 B

        Health
          ! IPv6 is off (no_ipv6)
            set net.ipv6.conf.all.disable_ipv6=0
        "#);
    }

    #[test]
    fn a_lonely_healthy_agent_says_what_to_do() {
        let mut status: Status = serde_json::from_str(STATUS).unwrap();
        status.peers.clear();
        status.health.clear();
        status.drops.clear();
        let text = rendered(|page| show(page, &status));
        assert!(
            text.ends_with(
                "\n\nNo peers yet. Hand out `agentnet ticket`, or ask with `agentnet trust request TICKET`.\n"
            ),
            "{text}"
        );
        assert!(!text.contains("drops"), "{text}");
    }
}
