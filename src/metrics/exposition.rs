//! Counters and state as Prometheus reads them (text exposition format 0.0.4).

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode_registry;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use super::families::{
    BUILD, BYTES, DATAGRAMS, DELIVERY_RATIO, DROPS, HANDSHAKES, HEALTH, INTRODUCTIONS, MEMORY, PACKETS, PEERS, PROBES,
    RELATIONS, RELAY_RATIO, ROUND_TRIP, SEARCHES, SERVER_DROPS, SERVERS, TRUST, UPTIME, agent_drops, server_family,
};
use super::{Counter, Counters, Family, Kind, ServerCounters};

/// What an answer with the text says of itself.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The process.
#[derive(Debug, Clone, Copy, Default)]
pub struct ProcessReading {
    /// Version of the program.
    pub version: &'static str,
    /// Operating system it was built for.
    pub os: &'static str,
    /// Processor it was built for.
    pub arch: &'static str,
    /// Time since its start.
    pub uptime: Duration,
    /// Memory in RAM, bytes; `None` where the system does not say.
    pub resident_bytes: Option<u64>,
}

/// An agent as it stands.
#[derive(Debug, Clone)]
pub struct AgentReading {
    /// The process.
    pub process: ProcessReading,
    /// What was counted.
    pub counters: Arc<Counters>,
    /// Trusted peers, by kind of path.
    pub peers: Vec<(&'static str, u64)>,
    /// Relations, by where trust stands.
    pub relations: Vec<(&'static str, u64)>,
    /// Rendezvous servers, by state.
    pub servers: Vec<(&'static str, u64)>,
    /// Codes of what is wrong, each once.
    pub health: Vec<String>,
}

/// A rendezvous server as it stands.
#[derive(Debug, Clone)]
pub struct ServerReading {
    /// The process.
    pub process: ProcessReading,
    /// What was counted.
    pub counters: Arc<ServerCounters>,
}

impl AgentReading {
    /// The text.
    #[must_use]
    pub fn text(self) -> String {
        text(self)
    }
}

impl ServerReading {
    /// The text.
    #[must_use]
    pub fn text(self) -> String {
        text(self)
    }
}

fn text(reading: impl Collector) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(reading));
    let mut text = String::new();
    // Writing to a string does not fail, and nothing read here does.
    let _ = encode_registry(&mut text, &registry);
    text
}

impl Collector for AgentReading {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let (out, counters) = (&mut encoder, &*self.counters);
        self.process.encode(out)?;
        for (of, label, values) in
            [(&PEERS, "path", &self.peers), (&RELATIONS, "trust", &self.relations), (&SERVERS, "state", &self.servers)]
        {
            family(out, of, [label], values.iter().map(|(value, count)| ([*value], *count as f64)))?;
        }
        family(out, &HEALTH, ["code"], self.health.iter().map(|code| ([code.as_str()], 1.0)))?;
        encode_round_trips(out, counters)?;
        encode_traffic(out, counters)?;
        let drops = agent_drops(counters).map(|(direction, reason, count)| ([direction, reason], count as f64));
        family(out, &DROPS, ["direction", "reason"], drops)?;
        encode_events(out, counters)
    }
}

impl Collector for ServerReading {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let out = &mut encoder;
        self.process.encode(out)?;
        for (name, help, count) in self.counters.iter().filter(|(name, ..)| !name.starts_with("drop_")) {
            single(out, &server_family(name, help), Some(count as f64))?;
        }
        let drops = self.counters.iter().filter_map(|(name, _, count)| Some((name.strip_prefix("drop_")?, count)));
        family(out, &SERVER_DROPS, ["reason"], drops.map(|(reason, count)| ([reason], count as f64)))
    }
}

impl ProcessReading {
    fn encode(&self, out: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let build = [self.version, self.os, self.arch];
        family(out, &BUILD, ["version", "os", "arch"], [(build, 1.0)])?;
        single(out, &UPTIME, Some(self.uptime.as_secs_f64()))?;
        single(out, &MEMORY, self.resident_bytes.map(|bytes| bytes as f64))
    }
}

fn encode_round_trips(out: &mut DescriptorEncoder<'_>, counters: &Counters) -> fmt::Result {
    let mut metric = descriptor(out, &ROUND_TRIP)?;
    for (path, histogram) in [("direct", &counters.round_trips.direct), ("relayed", &counters.round_trips.relayed)] {
        histogram.encode(metric.encode_family(&[("path", path)])?)?;
    }
    Ok(())
}

fn encode_traffic(out: &mut DescriptorEncoder<'_>, counters: &Counters) -> fmt::Result {
    let packets = [("in", &counters.rx_packets), ("out", &counters.tx_packets)];
    family(out, &PACKETS, ["direction"], packets.map(|(direction, counter)| ([direction], value(counter))))?;
    let directions = [
        ("in", &counters.rx_direct_bytes, &counters.rx_relayed_bytes),
        ("out", &counters.tx_direct_bytes, &counters.tx_relayed_bytes),
    ];
    let (mut samples, mut relayed, mut all) = (Vec::new(), 0.0, 0.0);
    for (direction, directly, through_relay) in directions {
        let (directly, through_relay) = (value(directly), value(through_relay));
        samples.push(([direction, "direct"], directly));
        samples.push(([direction, "relayed"], through_relay));
        relayed += through_relay;
        all += directly + through_relay;
    }
    family(out, &BYTES, ["direction", "path"], samples)?;
    single(out, &RELAY_RATIO, Some(relayed / all))?;
    // What the kernel refused was sealed before, and is among the packets sent.
    let sealed = value(&counters.tx_packets);
    let sent = (sealed - value(&counters.drop_out_send)).max(0.0);
    single(out, &DELIVERY_RATIO, Some(sent / (sealed + value(&counters.drop_out_no_session))))?;
    let datagrams = [("in", &counters.rx_datagrams), ("out", &counters.tx_datagrams)];
    family(out, &DATAGRAMS, ["direction"], datagrams.map(|(direction, counter)| ([direction], value(counter))))
}

fn encode_events(out: &mut DescriptorEncoder<'_>, counters: &Counters) -> fmt::Result {
    let results = [
        (["ok", ""], value(&counters.handshakes)),
        (["failed", "unanswered"], value(&counters.handshakes_unanswered)),
        (["rejected", "stranger"], value(&counters.drop_handshake_stranger)),
        (["rejected", "rate"], value(&counters.drop_handshake_rate)),
        (["rejected", "invalid"], value(&counters.drop_handshake_invalid)),
        (["rejected", "replay"], value(&counters.drop_handshake_replay)),
    ];
    family(out, &HANDSHAKES, ["result", "reason"], results)?;
    let introductions = [
        (["accepted"], value(&counters.introductions)),
        (["sent"], value(&counters.introductions_sent)),
        (["passed_on"], value(&counters.introductions_passed_on)),
    ];
    family(out, &INTRODUCTIONS, ["event"], introductions)?;
    single(out, &PROBES, Some(value(&counters.probes)))?;
    let searches = [
        (["attempt"], value(&counters.hard_nat_attempts)),
        (["probe"], value(&counters.hard_nat_probes)),
        (["found"], value(&counters.hard_nat_found)),
    ];
    family(out, &SEARCHES, ["event"], searches)?;
    let trust = [
        (["requested"], value(&counters.trust_requested)),
        (["asked"], value(&counters.trust_asked)),
        (["approved"], value(&counters.trust_approved)),
        (["rejected"], value(&counters.trust_rejected)),
        (["revoked"], value(&counters.trust_revoked)),
        (["withdrawn"], value(&counters.trust_withdrawn)),
        (["expired"], value(&counters.trust_expired)),
    ];
    family(out, &TRUST, ["event"], trust)
}

/// A family without labels; without its sample where the number is not known.
fn single(out: &mut DescriptorEncoder<'_>, of: &Family, number: Option<f64>) -> fmt::Result {
    let mut metric = descriptor(out, of)?;
    number.map_or(Ok(()), |number| metric.encode_gauge(&number))
}

/// A family with its samples: the values of its labels, and the number. An empty label is left out.
fn family<'v, const LABELS: usize>(
    out: &mut DescriptorEncoder<'_>,
    of: &Family,
    labels: [&'static str; LABELS],
    samples: impl IntoIterator<Item = ([&'v str; LABELS], f64)>,
) -> fmt::Result {
    let mut metric = descriptor(out, of)?;
    for (values, number) in samples {
        let pairs: Vec<(&str, &str)> = labels.into_iter().zip(values).filter(|(_, value)| !value.is_empty()).collect();
        // Whatever the type is: the encoder puts `_total` behind a counter's name, where this format has it already.
        metric.encode_family(&pairs)?.encode_gauge(&number)?;
    }
    Ok(())
}

fn descriptor<'e>(out: &'e mut DescriptorEncoder<'_>, of: &'e Family) -> Result<MetricEncoder<'e>, fmt::Error> {
    let kind = match of.kind {
        Kind::Counter => MetricType::Counter,
        Kind::Gauge => MetricType::Gauge,
        Kind::Histogram => MetricType::Histogram,
    };
    out.encode_descriptor(&of.name, of.help, None, kind)
}

fn value(counter: &Counter) -> f64 {
    counter.get() as f64
}

#[cfg(test)]
mod tests;
