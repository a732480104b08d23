//! `agentnet why`

use std::io::{self, Write};

use owo_colors::Style;

use super::client::{Client, block_on, query_value};
use super::output::{Failure, Output, Page, clean};
use super::{Global, human};
use crate::api::{Verdict, Why};

/// Explain the path to a peer, or why there is none
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Agent id or prefix, name, overlay IP or ticket
    #[arg(value_name = "PEER")]
    peer: String,
}

pub(super) fn run(args: &Args, global: &Global, out: &mut Output) -> Result<(), Failure> {
    let client = Client::new(global)?;
    let path = format!("/v1/why?peer={}", query_value(&args.peer));
    let why: Why = block_on(client.get(&path))?;
    out.result(&why, |page| show(page, &why))
}

fn show(page: &mut Page, why: &Why) -> io::Result<()> {
    let good = Style::new().green().bold();
    let bad = Style::new().red().bold();
    let (verdict, style) = match why.verdict {
        Verdict::Direct => ("reached directly", good),
        Verdict::Relayed => ("reached through a relay", good),
        Verdict::Unreachable => ("trusted, and not reached", bad),
        Verdict::Untrusted => ("not trusted", bad),
    };
    let verdict = page.styled(verdict, style);
    writeln!(page, "{}: {verdict}", why.peer)?;
    for step in &why.steps {
        let mark = page.mark(step.ok);
        let at = step.at_ms.map_or_else(String::new, |at| format!("  (at {})", human::span(at as f64 / 1000.0)));
        writeln!(page, "  {mark} {:<12}  {}{at}", clean(&step.step), clean(&step.detail))?;
    }
    if why.reason_code != "ok" {
        page.field("reason", &why.reason_code)?;
    }
    page.field("hint", &why.hint)
}

#[cfg(test)]
mod tests {
    use super::super::output::testing::rendered;
    use super::*;

    #[test]
    fn steps_have_marks_and_the_reason_follows() {
        let why: Why = serde_json::from_str(
            r#"{"peer":"47pjoycnsrfmxikm95jh13y88e8qnhzu5kungjpxyepgt7a8krpy","verdict":"untrusted","steps":[
            {"step":"record","ok":true,"detail":"from a ticket, valid for 6 d","at_ms":1500},
            {"step":"trust","ok":false,"detail":"asked 20 s ago, not answered","at_ms":null}],
            "reason_code":"trust_requested","hint":"approve it on the other host"}"#,
        )
        .unwrap();
        insta::assert_snapshot!(rendered(|page| show(page, &why)), @r#"
        47pjoycnsrfmxikm95jh13y88e8qnhzu5kungjpxyepgt7a8krpy: not trusted
          ✓ record        from a ticket, valid for 6 d  (at 1.5 s)
          ✗ trust         asked 20 s ago, not answered
          reason     trust_requested
          hint       approve it on the other host
        "#);
    }
}
