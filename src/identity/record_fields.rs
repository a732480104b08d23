//! The checked text and number types of a record: names, server addresses, version ranges.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::agent_id::{AgentId, AgentIdError};

/// Longest [`Name`], the length of a DNS label (RFC 1035, section 2.3.4).
pub const MAX_NAME_LEN: usize = 63;

/// Longest [`HostPort`] in bytes.
pub const MAX_HOST_PORT_LEN: usize = 255;

/// What an agent calls itself: 1 to 63 of `a-z`, `0-9` and `-`, neither first nor last a `-`.
/// Chosen by the agent, so it proves nothing.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

/// A text is not a [`Name`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a name has 1 to 63 of a-z, 0-9 and -, and neither begins nor ends with -")]
pub struct NameError;

impl Name {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Name {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        let valid = (1..=MAX_NAME_LEN).contains(&text.len())
            && text.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'))
            && !text.starts_with('-')
            && !text.ends_with('-');
        if valid { Ok(Self(text)) } else { Err(NameError) }
    }
}

impl FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        Self::try_from(text.to_owned())
    }
}

impl From<Name> for String {
    fn from(name: Name) -> String {
        name.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// `host:port`, where host is a DNS name, an IPv4 address or an IPv6 address in brackets, and port
/// is 1 to 65535 without leading zeros. At most 255 bytes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HostPort {
    text: String,
    port: u16,
}

/// A text is not a [`HostPort`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a server address is HOST:PORT, an IPv6 address in brackets, at most 255 characters")]
pub struct HostPortError;

impl HostPort {
    /// The whole text.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The DNS name or IP address, without brackets.
    pub fn host(&self) -> &str {
        let host = self.text.rsplit_once(':').map_or("", |(host, _)| host);
        host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
    }

    /// The port, never 0.
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl TryFrom<String> for HostPort {
    type Error = HostPortError;

    fn try_from(text: String) -> Result<Self, HostPortError> {
        let (host, port_text) = text.rsplit_once(':').ok_or(HostPortError)?;
        let port = port_text.parse::<u16>().map_err(|_| HostPortError)?;
        let valid = text.len() <= MAX_HOST_PORT_LEN && port != 0 && port.to_string() == port_text && is_host(host);
        if valid { Ok(Self { text, port }) } else { Err(HostPortError) }
    }
}

fn is_host(host: &str) -> bool {
    if let Some(address) = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        return address.parse::<Ipv6Addr>().is_ok();
    }
    !host.is_empty()
        && !host.starts_with(['.', '-'])
        && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_'))
}

impl FromStr for HostPort {
    type Err = HostPortError;

    fn from_str(text: &str) -> Result<Self, HostPortError> {
        Self::try_from(text.to_owned())
    }
}

impl From<HostPort> for String {
    fn from(address: HostPort) -> String {
        address.text
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text)
    }
}

/// A rendezvous server: who it is and where. Text form `AGENTID@HOST:PORT`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RendezvousRef {
    /// The server's agent id.
    pub id: AgentId,
    /// Where it listens.
    pub address: HostPort,
}

/// A text is not a [`RendezvousRef`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RendezvousRefError {
    /// There is no `@`.
    #[error("a rendezvous server is written AGENTID@HOST:PORT")]
    Form,
    /// The part before the `@`.
    #[error(transparent)]
    Id(#[from] AgentIdError),
    /// The part after the `@`.
    #[error(transparent)]
    Address(#[from] HostPortError),
}

impl FromStr for RendezvousRef {
    type Err = RendezvousRefError;

    fn from_str(text: &str) -> Result<Self, RendezvousRefError> {
        let (id, address) = text.split_once('@').ok_or(RendezvousRefError::Form)?;
        Ok(Self { id: id.parse()?, address: address.parse()? })
    }
}

impl fmt::Display for RendezvousRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.id, self.address)
    }
}

/// The protocol versions an agent speaks, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct VersionRange {
    /// Lowest version.
    pub min: u8,
    /// Highest version.
    pub max: u8,
}

impl VersionRange {
    /// The highest version that both speak.
    pub fn common(self, other: Self) -> Option<u8> {
        let version = self.max.min(other.max);
        (version >= self.min.max(other.min)).then_some(version)
    }

    /// Whether the range holds at least one version.
    pub fn is_valid(self) -> bool {
        self.min <= self.max
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names() {
        for good in ["a", "a-b", "0", &"a".repeat(63)] {
            assert!(good.parse::<Name>().is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a.b", "ä", &"a".repeat(64)] {
            assert!(bad.parse::<Name>().is_err(), "{bad}");
        }
    }

    #[test]
    fn server_addresses() {
        let address: HostPort = "[2001:db8::1]:443".parse().unwrap();
        assert_eq!((address.host(), address.port()), ("2001:db8::1", 443));
        let address: HostPort = "rv.example.org:3478".parse().unwrap();
        assert_eq!((address.host(), address.port()), ("rv.example.org", 3478));
        for bad in [
            "", ":1", "a", "a:", "a:0", "a:65536", "a:+1", "a:01", "a b:1", "::1:1", "[x]:1", "[::1]x:1", "-a:1",
            "a/b:1",
        ] {
            assert!(bad.parse::<HostPort>().is_err(), "{bad}");
        }
        assert!(format!("{}:1", "a".repeat(253)).parse::<HostPort>().is_ok());
        assert!(format!("{}:1", "a".repeat(254)).parse::<HostPort>().is_err());
    }

    #[test]
    fn highest_common_version() {
        let range = |min, max| VersionRange { min, max };
        assert_eq!(range(1, 3).common(range(2, 5)), Some(3));
        assert_eq!(range(1, 1).common(range(1, 9)), Some(1));
        assert_eq!(range(1, 2).common(range(3, 4)), None);
    }

    proptest! {
        #[test]
        fn arbitrary_text_never_panics(text: String, host in "[a-z0-9.:\\[\\]@-]{0,20}") {
            for text in [text, host] {
                let _ = text.parse::<Name>();
                let _ = text.parse::<RendezvousRef>();
                if let Ok(address) = text.parse::<HostPort>() {
                    prop_assert!(!address.host().is_empty());
                    prop_assert_eq!(address.as_str(), text);
                }
            }
        }
    }
}
