//! A host that asks for an echo every 10 ms, to see when nothing passes.

use std::net::IpAddr;

use super::{Host, PATIENT, Program, wait_for};

/// A running `ping`.
pub(crate) struct Echoes {
    program: Program,
}

impl Echoes {
    /// Starts to ask; answers may come later or never.
    pub(crate) fn start(host: &Host, address: impl Into<IpAddr>) -> Self {
        let address = address.into();
        Self { program: host.spawn(&format!("ping -n -D -i 0.01 {address}")) }
    }

    /// When answers came, in Unix seconds.
    pub(crate) fn answers(&self) -> Vec<f64> {
        answers(&self.program)
    }

    /// Waits for an answer after `time`; returns when the first one came.
    pub(crate) fn first_after(&self, time: f64) -> f64 {
        wait_for("an echo", PATIENT, || self.answers().into_iter().find(|at| *at > time))
    }

    /// The longest time without an answer that ended after `start`, in seconds.
    pub(crate) fn longest_gap(&self, start: f64) -> f64 {
        longest_gap(&self.answers(), start)
    }

    /// Requests so far that were sent, and those of them that were not answered. What was sent after the last one that
    /// was answered does not count: the answer may be on its way.
    pub(crate) fn sent_and_lost(&self) -> (usize, usize) {
        let said = self.program.stdout();
        let number = |line: &str| line.split("icmp_seq=").nth(1)?.split(' ').next()?.parse::<usize>().ok();
        let mut numbers: Vec<usize> = said.lines().filter(|line| line.contains("time=")).filter_map(number).collect();
        numbers.sort_unstable();
        numbers.dedup();
        let sent = numbers.last().copied().unwrap_or_default();
        (sent, sent - numbers.len())
    }
}

/// When answers came, from the output of `ping -D`.
pub(crate) fn answers(echoes: &Program) -> Vec<f64> {
    let said = echoes.stdout();
    let lines = said.lines().filter(|line| line.contains("time="));
    lines.filter_map(|line| line.strip_prefix('[')?.split(']').next()?.parse().ok()).collect()
}

/// The longest time without an answer that ended after `start`.
pub(crate) fn longest_gap(answers: &[f64], start: f64) -> f64 {
    let pairs = answers.windows(2).filter(|pair| pair[1] > start);
    pairs.map(|pair| pair[1] - pair[0]).fold(0.0, f64::max)
}
