use std::collections::{BTreeMap, BTreeSet};

use super::super::{agent_families, server_families};
use super::*;

/// Every family, with one of its samples as it must be after [`agent`] or [`server`] made the reading. A family that is
/// not here fails the test below.
const EXERCISED: &[(&str, &str)] = &[
    ("agentnet_build_info", r#"{version="1.2.3",os="linux",arch="x86_64"} 1.0"#),
    ("agentnet_uptime_seconds", " 90.5"),
    ("process_resident_memory_bytes", " 4096.0"),
    ("agentnet_peers", r#"{path="relayed"} 2.0"#),
    ("agentnet_relations", r#"{trust="pending"} 3.0"#),
    ("agentnet_rendezvous_servers", r#"{state="failed"} 1.0"#),
    ("agentnet_health", r#"{code="no_udp"} 1.0"#),
    ("agentnet_round_trip_seconds", r#"_bucket{le="0.05",path="relayed"} 1"#),
    ("agentnet_packets_total", r#"{direction="out"} 101.0"#),
    ("agentnet_bytes_total", r#"{direction="in",path="relayed"} 106.0"#),
    ("agentnet_relay_usage_ratio", " 0.8"),
    ("agentnet_delivery_success_ratio", " 0.5"),
    ("agentnet_datagrams_total", r#"{direction="in"} 107.0"#),
    ("agentnet_drops_total", r#"{direction="inside",reason="notices"} "#),
    ("agentnet_handshakes_total", r#"{result="rejected",reason="stranger"} "#),
    ("agentnet_introductions_total", r#"{event="passed_on"} "#),
    ("agentnet_probes_total", " "),
    ("agentnet_hard_nat_total", r#"{event="found"} "#),
    ("agentnet_trust_events_total", r#"{event="expired"} "#),
    ("agentnet_rendezvous_rx_datagrams_total", " 101.0"),
    ("agentnet_rendezvous_tx_datagrams_total", " 102.0"),
    ("agentnet_rendezvous_stun_answers_total", " 103.0"),
    ("agentnet_rendezvous_record_answers_total", " 104.0"),
    ("agentnet_rendezvous_handshakes_total", " 105.0"),
    ("agentnet_rendezvous_registrations_total", " 106.0"),
    ("agentnet_rendezvous_renewals_total", " 107.0"),
    ("agentnet_rendezvous_lookups_found_total", " 108.0"),
    ("agentnet_rendezvous_lookups_unknown_total", " 109.0"),
    ("agentnet_rendezvous_introductions_delivered_total", " 110.0"),
    ("agentnet_rendezvous_introductions_stored_total", " 111.0"),
    ("agentnet_rendezvous_introductions_delivered_late_total", " 112.0"),
    ("agentnet_rendezvous_channels_opened_total", " 113.0"),
    ("agentnet_rendezvous_relay_frames_total", " 114.0"),
    ("agentnet_rendezvous_relay_bytes_total", " 115.0"),
    ("agentnet_rendezvous_drops_total", r#"{reason="records_evicted"} "#),
];

fn process() -> ProcessReading {
    let uptime = Duration::from_millis(90_500);
    ProcessReading { version: "1.2.3", os: "linux", arch: "x86_64", uptime, resident_bytes: Some(4096) }
}

/// An agent of whose counters the first is 101, the second 102 and so on.
fn agent() -> AgentReading {
    let counters = Arc::new(Counters::default());
    for (number, counter) in (101..).zip(counters.all()) {
        counter.add(number);
    }
    counters.round_trips.observe(true, Duration::from_millis(40));
    counters.round_trips.observe(false, Duration::from_secs(60));
    AgentReading {
        process: process(),
        counters,
        peers: vec![("direct", 1), ("relayed", 2), ("none", 0)],
        relations: vec![("pending", 3)],
        servers: vec![("connected", 1), ("failed", 1)],
        health: vec!["no_udp".to_owned()],
    }
}

fn server() -> ServerReading {
    let counters = Arc::new(ServerCounters::default());
    for (number, counter) in (101..).zip(counters.all()) {
        counter.add(number);
    }
    ServerReading { process: process(), counters }
}

#[test]
fn every_family_is_exercised() {
    // What is computed gets round numbers.
    let reading = agent();
    let only = Arc::new(Counters::default());
    only.rx_direct_bytes.add(20);
    only.tx_relayed_bytes.add(50);
    only.rx_relayed_bytes.add(30);
    only.tx_packets.add(7);
    only.drop_out_no_session.add(3);
    only.drop_out_send.add(2);
    let ratios = AgentReading { counters: only, ..agent() }.text();
    let text = [reading.text(), ratios, server().text()].concat();
    for (name, sample) in EXERCISED {
        let line = format!("\n{name}{sample}");
        assert!(text.contains(&line), "no {line:?} in\n{text}");
    }
    let listed: BTreeSet<&str> = EXERCISED.iter().map(|(name, _)| *name).collect();
    let families: Vec<Family> = agent_families().into_iter().chain(server_families()).collect();
    let there: BTreeSet<&str> = families.iter().map(|family| &*family.name).collect();
    assert_eq!(listed, there, "families and those exercised differ");
    let told = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
    assert_eq!(told.collect::<BTreeSet<_>>(), there, "families and those exposed differ");
}

#[test]
fn no_counter_is_forgotten() {
    let text = agent().text();
    let values: BTreeSet<&str> = text.lines().filter_map(|line| line.rsplit(' ').next()).collect();
    for (name, _, value) in agent().counters.iter() {
        assert!(values.contains(format!("{value}.0").as_str()), "{name} ({value}) is not told");
    }
    let text = server().text();
    for (name, _, value) in server().counters.iter() {
        assert!(text.contains(&format!(" {value}.0\n")), "{name} ({value}) is not told");
    }
}

#[test]
fn ratios_of_nothing_are_unknown() {
    let text = AgentReading { counters: Arc::default(), ..agent() }.text();
    assert!(text.contains("\nagentnet_relay_usage_ratio NaN\n"), "{text}");
    assert!(text.contains("\nagentnet_delivery_success_ratio NaN\n"), "{text}");
}

#[test]
fn labels_written_by_others_cannot_break_a_line() {
    let health = vec!["a\"} 1\nagentnet_evil 1\n# \\".to_owned()];
    let text = AgentReading { health, ..agent() }.text();
    assert!(!text.lines().any(|line| line.starts_with("agentnet_evil")), "{text}");
}

#[test]
fn the_text_keeps_the_rules_of_prometheus() {
    let good = "# HELP a_total Words.\n# TYPE a_total counter\na_total{x=\"1\"} 1.0\n";
    assert_eq!(lint(good), Vec::<String>::new());
    for bad in [
        good.replace("a_total", "a"),
        good.replace("counter", "gauge"),
        good.replace("Words.", ""),
        good.replace("a_total", "aA_total"),
        good.replace("a_total", "a_ms_total"),
        good.replace("a_total", "a_milliseconds_total"),
        good.replace("a_total", "a_counter_total"),
        good.replace("a_total{", "b_total{"),
        good.replace("x=\"1\"", "xY=\"1\""),
        [good, good].concat(),
        good.replace("1.0\n", "1.0\na_total{x=\"1\"} 2.0\n"),
    ] {
        assert!(!lint(&bad).is_empty(), "{bad}");
    }
    assert_eq!(lint(&agent().text()), Vec::<String>::new());
    assert_eq!(lint(&server().text()), Vec::<String>::new());
}

/// What `promtool check metrics` complains about, and what the format forbids.
fn lint(text: &str) -> Vec<String> {
    const UNITS: [&str; 16] = [
        "ms",
        "us",
        "ns",
        "sec",
        "kb",
        "mb",
        "gb",
        "milliseconds",
        "microseconds",
        "nanoseconds",
        "minutes",
        "hours",
        "kilobytes",
        "megabytes",
        "percent",
        "bits",
    ];
    let mut problems = Vec::new();
    let (mut help, mut kinds, mut seen) = (BTreeMap::new(), BTreeMap::new(), BTreeSet::new());
    let mut current = String::new();
    for line in text.lines() {
        if let Some((name, words)) = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')) {
            current = name.to_owned();
            if help.insert(name, words).is_some() || words.is_empty() {
                problems.push(format!("{name}: no help, or twice"));
            }
            continue;
        }
        if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            kinds.insert(name, kind);
            let ends_total = name.ends_with("_total");
            let named_by_kind = ["counter", "gauge", "histogram", "summary"].iter().any(|kind| name.contains(kind));
            let has_unit = name.split('_').any(|word| UNITS.contains(&word));
            let reserved = ["_count", "_sum", "_bucket"].iter().any(|end| name.ends_with(end));
            let lower = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
            if ends_total != (kind == "counter") || named_by_kind || has_unit || reserved || !lower {
                problems.push(format!("{name}: not a name for a {kind}"));
            }
            continue;
        }
        let name = line.split(['{', ' ']).next().unwrap();
        let kind = kinds.get(current.as_str()).copied().unwrap_or_default();
        let ends: &[&str] = if kind == "histogram" { &["_bucket", "_sum", "_count"] } else { &[""] };
        if !ends.iter().any(|end| format!("{current}{end}") == name) {
            problems.push(format!("{line}: not a sample of {current}"));
        }
        let (series, number) = line.rsplit_once(' ').unwrap();
        if number.parse::<f64>().is_err() || !seen.insert(series) {
            problems.push(format!("{line}: no number, or twice"));
        }
        let labels = series.split_once('{').map_or("", |(_, labels)| labels);
        let keys = labels.split(',').filter_map(|pair| pair.split_once('=')).map(|(key, _)| key);
        problems.extend(keys.filter(|key| key.contains(char::is_uppercase)).map(|key| format!("label {key}")));
    }
    problems
}
