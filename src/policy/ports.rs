//! `tcp/22,tcp/8000-8100,udp/53`: the ports a grant names.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The most entries one specification may have. It travels in an introduction, which is one datagram.
const MAX_ENTRIES: usize = 16;

/// A transport protocol with ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// Protocols and port ranges.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortSpec {
    entries: Vec<Entry>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    protocol: Protocol,
    first: u16,
    last: u16,
}

/// Why a text is not a port specification.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PortSpecError {
    /// Nothing in it.
    #[error("no port is named")]
    Empty,
    /// More than 16 entries.
    #[error("more than {MAX_ENTRIES} entries")]
    TooMany,
    /// One entry is not of the form `tcp/22` or `udp/5000-5100`.
    #[error("\"{0}\" is not of the form tcp/22 or udp/5000-5100")]
    Entry(String),
}

impl PortSpec {
    /// No port at all.
    #[must_use]
    pub fn none() -> Self {
        Self { entries: Vec::new() }
    }

    /// Whether the port is covered.
    #[must_use]
    pub fn covers(&self, protocol: Protocol, port: u16) -> bool {
        self.entries.iter().any(|entry| entry.protocol == protocol && (entry.first..=entry.last).contains(&port))
    }
}

impl FromStr for PortSpec {
    type Err = PortSpecError;

    /// A bare number or range means TCP.
    fn from_str(text: &str) -> Result<Self, PortSpecError> {
        let mut entries = Vec::new();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            if entries.len() == MAX_ENTRIES {
                return Err(PortSpecError::TooMany);
            }
            entries.push(parse_entry(part).ok_or_else(|| PortSpecError::Entry(part.to_owned()))?);
        }
        if entries.is_empty() {
            return Err(PortSpecError::Empty);
        }
        entries.sort_unstable();
        entries.dedup();
        Ok(Self { entries })
    }
}

impl fmt::Display for PortSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, entry) in self.entries.iter().enumerate() {
            let comma = if i == 0 { "" } else { "," };
            let protocol = match entry.protocol {
                Protocol::Tcp => "tcp",
                Protocol::Udp => "udp",
            };
            if entry.first == entry.last {
                write!(f, "{comma}{protocol}/{}", entry.first)?;
            } else {
                write!(f, "{comma}{protocol}/{}-{}", entry.first, entry.last)?;
            }
        }
        Ok(())
    }
}

fn parse_entry(part: &str) -> Option<Entry> {
    let (protocol, ports) = match part.split_once('/') {
        None => (Protocol::Tcp, part),
        Some((name, ports)) if name.eq_ignore_ascii_case("tcp") => (Protocol::Tcp, ports),
        Some((name, ports)) if name.eq_ignore_ascii_case("udp") => (Protocol::Udp, ports),
        Some(_) => return None,
    };
    let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
    let (first, last) = (parse_port(first)?, parse_port(last)?);
    (first <= last).then_some(Entry { protocol, first, last })
}

fn parse_port(text: &str) -> Option<u16> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|port| digits && *port > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_normalised() {
        let spec: PortSpec = " udp/53, 22,TCP/8000-8100 ,tcp/22".parse().unwrap();
        assert_eq!(spec.to_string(), "tcp/22,tcp/8000-8100,udp/53");
        assert!(spec.covers(Protocol::Tcp, 8100) && !spec.covers(Protocol::Tcp, 8101));
        assert!(spec.covers(Protocol::Udp, 53) && !spec.covers(Protocol::Tcp, 53));
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["", ",", "tcp/", "tcp/0", "tcp/70000", "sctp/1", "tcp/9-8", "tcp/+9", "tcp/1-2-3"] {
            assert!(text.parse::<PortSpec>().is_err(), "{text}");
        }
        let many = (1..=17).map(|p| format!("tcp/{p}")).collect::<Vec<_>>().join(",");
        assert_eq!(many.parse::<PortSpec>(), Err(PortSpecError::TooMany));
    }
}
