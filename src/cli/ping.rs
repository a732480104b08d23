//! `agentnet ping`
//!
//! With `--json`, each ping is a line `{"seq":N,…}` with either the reply or an `error`, and the last line is
//! `{"summary":{…}}`. A failure that ends the pinging is an error document in its place.

use std::io::{self, Write};
use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

use super::client::{Client, block_on};
use super::human;
use super::output::{Failure, Output, Page, clean};
use crate::api::{Error, ErrorCode, ExitStatus, PathKind, PathStatus, PingReply, PingRequest};

/// How many pings when no number is given.
const COUNT: u64 = 4;
/// The same with `--until-direct`.
const COUNT_UNTIL_DIRECT: u64 = 30;
/// Most pings taken: a day of them at the usual interval.
const MAX_COUNT: u64 = 86_400;
/// Longest time one ping may take; the agent takes no longer one.
const MAX_TIMEOUT: Duration = Duration::from_secs(60);
/// How much longer than the ping itself the agent's answer may take.
const ANSWER_MARGIN: Duration = Duration::from_secs(5);

/// Measure round trips to a peer over the overlay, with the path each took
///
/// Ends with status 6 when nothing answered or, with --until-direct, no answer came directly, and with status 7 when
/// there is no mutual trust.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Agent id or prefix, name, overlay IP or ticket
    #[arg(value_name = "PEER")]
    peer: String,
    /// How many pings [default: 4; with --until-direct at most 30]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=MAX_COUNT))]
    count: Option<u64>,
    /// Stop at the first reply that came directly
    #[arg(long)]
    until_direct: bool,
    /// Seconds to wait for each reply, at most 60
    #[arg(long, value_name = "S", default_value = "5", value_parser = parse_timeout)]
    timeout: Duration,
    /// Seconds from one ping to the next
    #[arg(short, long, value_name = "S", default_value = "1", value_parser = human::parse_seconds)]
    interval: Duration,
}

pub(super) fn run(args: &Args, global: &super::Global, out: &mut Output) -> Result<(), Failure> {
    let client = Client::new(global)?.with_timeout(args.timeout + ANSWER_MARGIN);
    let tally = block_on(async {
        let mut tally = Tally::new(&args.peer);
        tokio::select! {
            result = ping(args, &client, out, &mut tally) => result?,
            _ = tokio::signal::ctrl_c() => {}
        }
        Ok::<_, Failure>(tally)
    })?;
    let summary = tally.summary();
    out.result(&SummaryLine { summary: &summary }, |page| show_summary(page, &summary))?;
    if summary.received == 0 {
        out.note("nothing answered; `agentnet why` explains the path");
        return Err(Failure::Told(ExitStatus::TimedOut));
    }
    if args.until_direct && !summary.direct {
        out.note("no reply came directly; `agentnet why` explains the path");
        return Err(Failure::Told(ExitStatus::TimedOut));
    }
    Ok(())
}

async fn ping(args: &Args, client: &Client, out: &mut Output, tally: &mut Tally) -> Result<(), Failure> {
    let default = if args.until_direct { COUNT_UNTIL_DIRECT } else { COUNT };
    let count = args.count.unwrap_or(default);
    let timeout_ms = u64::try_from(args.timeout.as_millis()).unwrap_or(u64::MAX);
    let request = PingRequest { peer: args.peer.clone(), timeout_ms };
    for seq in 1..=count {
        let started = Instant::now();
        tally.sent += 1;
        match client.post::<_, PingReply>("/v1/ping", &request).await {
            Ok(reply) => {
                tally.answered(&reply);
                out.result(&Line { seq, outcome: Outcome::Reply(&reply) }, |page| show_reply(page, &reply))?;
            }
            Err(error) if error.code == ErrorCode::TimedOut => {
                let waited = human::span(args.timeout.as_secs_f64());
                out.result(&Line { seq, outcome: Outcome::Failed { error: &error } }, |page| {
                    writeln!(page, "no reply within {waited}")
                })?;
            }
            Err(error) => return Err(error.into()),
        }
        if args.until_direct && tally.direct {
            break;
        }
        if seq < count {
            tokio::time::sleep_until(started + args.interval).await;
        }
    }
    Ok(())
}

fn parse_timeout(text: &str) -> Result<Duration, String> {
    human::parse_seconds(text)
        .ok()
        .filter(|timeout| *timeout <= MAX_TIMEOUT)
        .ok_or_else(|| format!("the timeout is a number of seconds from 0.01 to {}", MAX_TIMEOUT.as_secs()))
}

#[derive(Serialize)]
struct Line<'a> {
    seq: u64,
    #[serde(flatten)]
    outcome: Outcome<'a>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Outcome<'a> {
    Reply(&'a PingReply),
    Failed { error: &'a Error },
}

#[derive(Serialize)]
struct SummaryLine<'a> {
    summary: &'a Summary,
}

/// What all pings came to.
#[derive(Debug, PartialEq, Serialize)]
struct Summary {
    peer: String,
    sent: u64,
    received: u64,
    /// From 0 to 1.
    loss: f64,
    min_ms: Option<f64>,
    avg_ms: Option<f64>,
    max_ms: Option<f64>,
    /// A reply came directly.
    direct: bool,
}

struct Tally {
    peer: String,
    sent: u64,
    received: u64,
    total_ms: f64,
    min_ms: f64,
    max_ms: f64,
    direct: bool,
}

impl Tally {
    fn new(peer: &str) -> Self {
        Self {
            peer: peer.to_owned(),
            sent: 0,
            received: 0,
            total_ms: 0.0,
            min_ms: f64::INFINITY,
            max_ms: 0.0,
            direct: false,
        }
    }

    fn answered(&mut self, reply: &PingReply) {
        self.peer = reply.name.clone().unwrap_or_else(|| reply.id.short());
        self.received += 1;
        self.total_ms += reply.rtt_ms;
        self.min_ms = self.min_ms.min(reply.rtt_ms);
        self.max_ms = self.max_ms.max(reply.rtt_ms);
        self.direct |= reply.path.kind == PathKind::Direct;
    }

    fn summary(&self) -> Summary {
        let measured = |value: f64| (self.received > 0).then_some(value);
        let lost = self.sent.saturating_sub(self.received);
        Summary {
            peer: self.peer.clone(),
            sent: self.sent,
            received: self.received,
            loss: if self.sent == 0 { 0.0 } else { lost as f64 / self.sent as f64 },
            min_ms: measured(self.min_ms),
            avg_ms: measured(self.total_ms / self.received as f64),
            max_ms: measured(self.max_ms),
            direct: self.direct,
        }
    }
}

fn show_reply(page: &mut Page, reply: &PingReply) -> io::Result<()> {
    let short = reply.id.short();
    let who = match &reply.name {
        Some(name) => format!("{} ({short})", clean(name)),
        None => short,
    };
    writeln!(page, "pong from {who} via {} in {}", way(&reply.path), human::round_trip(reply.rtt_ms))
}

fn way(path: &PathStatus) -> String {
    let kind = path.kind.as_str();
    match (path.kind, path.endpoint, path.via) {
        (PathKind::Direct, Some(endpoint), _) => format!("{kind} {endpoint}"),
        (PathKind::Relayed, _, Some(via)) => format!("{kind} {}", via.short()),
        _ => kind.to_owned(),
    }
}

fn show_summary(page: &mut Page, summary: &Summary) -> io::Result<()> {
    write!(page, "{} sent, {} received, {:.0} % lost", summary.sent, summary.received, summary.loss * 100.0)?;
    if let (Some(min), Some(avg), Some(max)) = (summary.min_ms, summary.avg_ms, summary.max_ms) {
        let [min, avg, max] = [min, avg, max].map(human::round_trip);
        write!(page, "; min {min}, avg {avg}, max {max}")?;
    }
    writeln!(page)
}

#[cfg(test)]
mod tests {
    use super::super::output::testing::rendered;
    use super::*;

    fn reply(name: &str, path: &str) -> PingReply {
        serde_json::from_str(&format!(
            r#"{{"id":"47pjoycnsrfmxikm95jh13y88e8qnhzu5kungjpxyepgt7a8krpy","name":{name},"rtt_ms":0.42,"path":
                {{{path},"rtt_ms":null,"since_s":null,"mtu":1420}}}}"#
        ))
        .unwrap()
    }

    #[test]
    fn replies_name_their_path() {
        let direct = reply(r#""one""#, r#""kind":"direct","endpoint":"192.0.2.1:41641","via":null"#);
        assert_eq!(
            rendered(|page| show_reply(page, &direct)),
            "pong from one (47pjoycnsr) via direct 192.0.2.1:41641 in 0.42 ms\n"
        );
        let via = r#""kind":"relayed","endpoint":null,"via":"47pjoycnsrfmxikm95jh13y88e8qnhzu5kungjpxyepgt7a8krpy""#;
        assert_eq!(
            rendered(|page| show_reply(page, &reply("null", via))),
            "pong from 47pjoycnsr via relayed 47pjoycnsr in 0.42 ms\n"
        );
    }

    #[test]
    fn the_summary_counts_what_was_lost() {
        let mut tally = Tally::new("x");
        tally.sent = 4;
        assert_eq!(rendered(|page| show_summary(page, &tally.summary())), "4 sent, 0 received, 100 % lost\n");
        let mut answer = reply("null", r#""kind":"none","endpoint":null,"via":null"#);
        for rtt in [1.0, 2.0, 6.0] {
            answer.rtt_ms = rtt;
            tally.answered(&answer);
        }
        let summary = tally.summary();
        assert_eq!((summary.loss, summary.avg_ms, summary.direct), (0.25, Some(3.0), false));
        assert_eq!(
            rendered(|page| show_summary(page, &summary)),
            "4 sent, 3 received, 25 % lost; min 1.00 ms, avg 3.00 ms, max 6.00 ms\n"
        );
    }

    #[test]
    fn lines_carry_the_reply_or_the_error() {
        let direct = reply("null", r#""kind":"none","endpoint":null,"via":null"#);
        let line = serde_json::to_value(Line { seq: 1, outcome: Outcome::Reply(&direct) }).unwrap();
        assert_eq!((line["seq"].as_u64(), line["rtt_ms"].as_f64()), (Some(1), Some(0.42)));
        let error = Error::new(ErrorCode::TimedOut, "m", "h");
        let line = serde_json::to_value(Line { seq: 2, outcome: Outcome::Failed { error: &error } }).unwrap();
        assert_eq!(line["error"]["code"], "timed_out");
    }
}
