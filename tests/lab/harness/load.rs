//! Throughput between two agents.

use serde_json::Value;

use super::{Agent, Finished, PATIENT, Program};

/// `iperf3` from one agent to another.
pub(crate) struct Load {
    client: Program,
    /// Kept alive for as long as it serves.
    _server: Program,
}

impl Load {
    /// Starts it, with these further words for the sending side.
    pub(crate) fn start(from: &Agent<'_>, to: &Agent<'_>, words: &str) -> Self {
        let port = to.host().fresh_port();
        let mut server = to.host().spawn(&format!("iperf3 --forceflush -s -1 -p {port}"));
        server.wait_for_text("Server listening");
        let client = from.host().spawn(&format!("iperf3 -J -c {} -p {port} {words}", to.ipv6()));
        Self { client, _server: server }
    }

    /// Waits for its end; returns what was received, in Mbit/s.
    pub(crate) fn finish(self) -> f64 {
        let finished: Finished = self.client.finish(PATIENT);
        let report: Value = serde_json::from_str(&finished.ok()).unwrap();
        report["end"]["sum_received"]["bits_per_second"].as_f64().unwrap() / 1e6
    }
}
