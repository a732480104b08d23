//! The configuration: which settings there are, how they are written, and what they mean.
//!
//! 1. Each source (flags, environment, file) is read into [`Settings`], the low form: text, nothing checked but syntax.
//! 2. [`Settings::over`] lays the stronger source over the weaker: flags, environment, file.
//! 3. [`Config::from_settings`] checks everything, fills in defaults and remembers where each value came from.
//!
//! Nothing here reads a file, the environment or the working directory; the caller brings them.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

mod edit;
mod file;
mod problem;
mod validate;

use ipnet::Ipv4Net;

use crate::api::{ConfigDocument, ConfigSetting};
use crate::identity::{Name, RendezvousRef};

pub use self::edit::with_setting;
pub use self::file::parse_file;
pub use self::problem::{Invalid, Problem, ProblemKind};
pub use self::validate::control_socket;

/// The configuration file that is read when none is named.
pub const DEFAULT_FILE: &str = "/etc/agentnet/agentnet.toml";
/// The state directory when none is named.
pub const DEFAULT_STATE_DIR: &str = "/var/lib/agentnet";
/// The control socket when neither it nor a state directory is named. macOS has no `/run`.
pub const DEFAULT_SOCKET: &str =
    if cfg!(target_os = "macos") { "/var/run/agentnet/agentnet.sock" } else { "/run/agentnet/agentnet.sock" };
/// The control socket's name inside a state directory that is named.
pub const SOCKET_IN_STATE_DIR: &str = "agentnet.sock";
/// The user that an agent of root becomes when none is named, where the host has it.
pub const DEFAULT_USER: &str = "agentnet";
/// The IPv4 range aliases come from: the shared address space (RFC 6598).
pub const DEFAULT_IPV4_RANGE: &str = "100.64.0.0/10";
/// Log filter when none is given.
pub const DEFAULT_LOG_LEVEL: &str = "info";
/// Smallest interface MTU in bytes: what IPv6 asks of every link (RFC 8200 section 5).
pub const MIN_MTU: u16 = 1280;
/// Largest interface MTU in bytes: a UDP payload over IPv4 (65,507) less WireGuard's overhead (32), cut to a multiple
/// of its padding (16).
pub const MAX_MTU: u16 = 65_472;
/// Most queues of the interface.
pub const MAX_QUEUES: u16 = 16;
/// Longest control socket path in bytes: `sun_path` less its end, on the system that allows least.
pub const MAX_SOCKET_PATH: usize = 103;
/// Most rendezvous servers an agent uses; as many as its record can name.
pub const MAX_RENDEZVOUS: usize = 4;
/// Largest configuration file that is read, bytes. One is a page of text; this stops a mistaken path.
pub const MAX_FILE_BYTES: u64 = 1 << 20;

/// How a setting is written in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// A string.
    Text,
    /// A whole number.
    Number,
    /// An array of strings, or one string with commas.
    List,
}

macro_rules! keys {
    ($($variant:ident $name:literal $shape:ident $flag:expr, $variable:literal, $doc:literal;)*) => {
        /// Every setting there is.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Key { $(#[doc = $doc] $variant,)* }

        impl Key {
            /// All settings, in the order they are shown.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The key in the configuration file.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// How it is written in the file.
            #[must_use]
            pub fn shape(self) -> Shape {
                match self { $(Self::$variant => Shape::$shape,)* }
            }

            /// The flag of `up` and `daemon`, where there is one.
            #[must_use]
            pub fn flag(self) -> Option<&'static str> {
                match self { $(Self::$variant => $flag,)* }
            }

            /// The environment variable.
            #[must_use]
            pub fn variable(self) -> &'static str {
                match self { $(Self::$variant => $variable,)* }
            }

            /// One line of documentation.
            #[must_use]
            pub fn explanation(self) -> &'static str {
                match self { $(Self::$variant => $doc,)* }
            }
        }
    };
}

keys! {
    Name "name" Text Some("--name"), "AGENTNET_NAME", "name of this agent, shown to others";
    Tun "tun" Text Some("--tun"), "AGENTNET_TUN", "name of the network interface";
    Port "port" Number Some("--port"), "AGENTNET_PORT", "UDP port, IPv4 and IPv6; 0 is any";
    Rendezvous "rendezvous" List Some("--rendezvous"), "AGENTNET_RENDEZVOUS",
        "rendezvous servers, each AGENTID@HOST:PORT";
    Discovery "discovery" List Some("--discovery"), "AGENTNET_DISCOVERY",
        "ways to find other agents: lan, rendezvous, dht, or none";
    Ipv4Range "ipv4_range" Text Some("--ipv4-range"), "AGENTNET_IPV4_RANGE", "range that IPv4 aliases come from";
    PortMapping "port_mapping" Text Some("--port-mapping"), "AGENTNET_PORT_MAPPING",
        "whether to ask the default gateway to let others in: on or off";
    MetricsListen "metrics_listen" Text Some("--metrics-listen"), "AGENTNET_METRICS_LISTEN",
        "address and port where Prometheus reads metrics, or off";
    StateDir "state_dir" Text Some("--state-dir"), "AGENTNET_STATE_DIR", "directory of identity, trust and log";
    Socket "socket" Text Some("--socket"), "AGENTNET_SOCKET", "path of the control socket";
    LogLevel "log_level" Text Some("--log-level"), "AGENTNET_LOG", "error, warn, info, debug, trace, off, or a list of target=level";
    LogFormat "log_format" Text Some("--log-format"), "AGENTNET_LOG_FORMAT", "text or json";
    Mtu "mtu" Number None, "AGENTNET_MTU", "MTU of the interface in bytes";
    Queues "queues" Number None, "AGENTNET_QUEUES", "queues of the interface, each with threads of its own";
    User "user" Text Some("--user"), "AGENTNET_USER", "user whose rights the agent takes when it has started as root";
    Confine "confine" Text None, "AGENTNET_CONFINE",
        "whether the running agent may only use the files and system calls that it needs: on or off";
}

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Nobody gave one.
    Default,
    /// The agent's own state: what it used before.
    State,
    /// A line of the configuration file.
    File {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
    },
    /// An environment variable.
    Environment(&'static str),
    /// A flag of the command line.
    Flag(&'static str),
}

impl Origin {
    /// The word used in JSON: `default`, `state`, `file`, `environment` or `flag`.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::State => "state",
            Self::File { .. } => "file",
            Self::Environment(_) => "environment",
            Self::Flag(_) => "flag",
        }
    }

    /// Which source wins: the larger number.
    fn strength(&self) -> u8 {
        match self {
            Self::Default => 0,
            Self::State => 1,
            Self::File { .. } => 2,
            Self::Environment(_) => 3,
            Self::Flag(_) => 4,
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::State => f.write_str("state"),
            Self::File { path, line } => write!(f, "{}, line {line}", path.display()),
            Self::Environment(variable) => write!(f, "environment variable {variable}"),
            Self::Flag(flag) => f.write_str(flag),
        }
    }
}

/// A value as it was given, unchecked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Given {
    /// The text; one element for everything but lists.
    pub values: Vec<String>,
    /// Where it was given.
    pub origin: Origin,
}

/// What one source gave, or several laid over each other. Every setting may be absent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settings {
    given: BTreeMap<Key, Given>,
}

impl Settings {
    /// Sets a value, in place of an earlier one.
    pub fn set(&mut self, key: Key, values: Vec<String>, origin: Origin) {
        self.given.insert(key, Given { values, origin });
    }

    /// What was given for a setting.
    #[must_use]
    pub fn get(&self, key: Key) -> Option<&Given> {
        self.given.get(&key)
    }

    /// These settings, completed by weaker ones.
    #[must_use]
    pub fn over(mut self, weaker: Self) -> Self {
        for (key, given) in weaker.given {
            self.given.entry(key).or_insert(given);
        }
        self
    }

    /// The settings found in an environment. Empty variables count as absent.
    #[must_use]
    pub fn from_environment(lookup: impl Fn(&str) -> Option<String>) -> Self {
        let mut settings = Self::default();
        for key in Key::ALL {
            let variable = key.variable();
            if let Some(value) = lookup(variable).filter(|value| !value.is_empty()) {
                settings.set(*key, vec![value], Origin::Environment(variable));
            }
        }
        settings
    }
}

/// A checked value and where it came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting<T> {
    /// The value.
    pub value: T,
    /// Its origin.
    pub origin: Origin,
}

impl<T> Setting<T> {
    /// A value nobody gave.
    pub fn default_value(value: T) -> Self {
        Self { value, origin: Origin::Default }
    }
}

/// A way to find other agents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DiscoveryKind {
    /// Multicast on the local network.
    Lan,
    /// Rendezvous servers.
    Rendezvous,
    /// The Mainline DHT.
    Dht,
}

impl DiscoveryKind {
    /// All ways.
    pub const ALL: &'static [Self] = &[Self::Lan, Self::Rendezvous, Self::Dht];

    /// The word used in the configuration.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Lan => "lan",
            Self::Rendezvous => "rendezvous",
            Self::Dht => "dht",
        }
    }
}

/// How log lines look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

impl LogFormat {
    /// The word used in the configuration.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Json => "json",
        }
    }
}

/// The effective configuration: complete, checked, immutable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Name of this agent.
    pub name: Setting<Option<Name>>,
    /// Interface name; the first free `agentnetN` when absent.
    pub tun: Setting<Option<String>>,
    /// UDP port; the one used before, else any, when absent.
    pub port: Setting<Option<u16>>,
    /// Rendezvous servers.
    pub rendezvous: Setting<Vec<RendezvousRef>>,
    /// Ways to find other agents, without repetition.
    pub discovery: Setting<Vec<DiscoveryKind>>,
    /// Range of the IPv4 aliases; host bits are zero.
    pub ipv4_range: Setting<Ipv4Net>,
    /// Whether the default gateway is asked for a port mapping.
    pub port_mapping: Setting<bool>,
    /// Where Prometheus reads metrics; nowhere when absent. Port 0 is any.
    pub metrics_listen: Setting<Option<SocketAddr>>,
    /// State directory, an absolute path.
    pub state_dir: Setting<PathBuf>,
    /// Control socket, an absolute path.
    pub socket: Setting<PathBuf>,
    /// A filter `tracing_subscriber::EnvFilter` accepts.
    pub log_level: Setting<String>,
    /// Log format.
    pub log_format: Setting<LogFormat>,
    /// Interface MTU in bytes; chosen by the agent when absent.
    pub mtu: Setting<Option<u16>>,
    /// Queues of the interface; chosen by the agent when absent.
    pub queues: Setting<Option<u16>>,
    /// The user an agent of root becomes; `root` for none.
    pub user: Setting<String>,
    /// Whether the running agent is limited in the files and system calls it may use.
    pub confine: Setting<bool>,
}

impl Config {
    /// Checks settings and completes them with defaults.
    ///
    /// # Errors
    /// Every value that is not valid, or that asks for what this version does not offer.
    pub fn from_settings(settings: &Settings) -> Result<Self, Invalid> {
        validate::validate(settings)
    }

    /// The configuration as a document, for `config show` and `GET /v1/config`.
    #[must_use]
    pub fn document(&self) -> ConfigDocument {
        let settings = Key::ALL
            .iter()
            .map(|key| ConfigSetting {
                key: key.name().to_owned(),
                value: self.value_text(*key),
                origin: self.origin(*key).word().to_owned(),
            })
            .collect();
        ConfigDocument { settings }
    }

    /// A value as text; empty when there is none.
    #[must_use]
    pub fn value_text(&self, key: Key) -> String {
        match key {
            Key::Name => self.name.value.as_ref().map_or_else(String::new, Name::to_string),
            Key::Tun => self.tun.value.clone().unwrap_or_default(),
            Key::Port => self.port.value.map_or_else(String::new, |port| port.to_string()),
            Key::Rendezvous => joined(self.rendezvous.value.iter()),
            Key::Discovery if self.discovery.value.is_empty() => "none".to_owned(),
            Key::Discovery => joined(self.discovery.value.iter().map(|kind| kind.as_str())),
            Key::Ipv4Range => self.ipv4_range.value.to_string(),
            Key::PortMapping if self.port_mapping.value => "on".to_owned(),
            Key::PortMapping => "off".to_owned(),
            Key::MetricsListen => {
                self.metrics_listen.value.map_or_else(|| "off".to_owned(), |address| address.to_string())
            }
            Key::StateDir => self.state_dir.value.display().to_string(),
            Key::Socket => self.socket.value.display().to_string(),
            Key::LogLevel => self.log_level.value.clone(),
            Key::LogFormat => self.log_format.value.as_str().to_owned(),
            Key::Mtu => self.mtu.value.map_or_else(String::new, |mtu| mtu.to_string()),
            Key::Queues => self.queues.value.map_or_else(String::new, |queues| queues.to_string()),
            Key::User => self.user.value.clone(),
            Key::Confine if self.confine.value => "on".to_owned(),
            Key::Confine => "off".to_owned(),
        }
    }

    /// A value as it would be given, for [`with_setting`]. The unset port is 0.
    #[must_use]
    pub fn given(&self, key: Key) -> Vec<String> {
        let text = self.value_text(key);
        match key.shape() {
            Shape::List => text.split(',').filter(|element| !element.is_empty()).map(str::to_owned).collect(),
            Shape::Number if text.is_empty() => vec!["0".to_owned()],
            Shape::Number | Shape::Text => vec![text],
        }
    }

    /// Where a value came from.
    #[must_use]
    pub fn origin(&self, key: Key) -> &Origin {
        match key {
            Key::Name => &self.name.origin,
            Key::Tun => &self.tun.origin,
            Key::Port => &self.port.origin,
            Key::Rendezvous => &self.rendezvous.origin,
            Key::Discovery => &self.discovery.origin,
            Key::Ipv4Range => &self.ipv4_range.origin,
            Key::PortMapping => &self.port_mapping.origin,
            Key::MetricsListen => &self.metrics_listen.origin,
            Key::StateDir => &self.state_dir.origin,
            Key::Socket => &self.socket.origin,
            Key::LogLevel => &self.log_level.origin,
            Key::LogFormat => &self.log_format.origin,
            Key::Mtu => &self.mtu.origin,
            Key::Queues => &self.queues.origin,
            Key::User => &self.user.origin,
            Key::Confine => &self.confine.origin,
        }
    }
}

fn joined(values: impl Iterator<Item = impl fmt::Display>) -> String {
    values.map(|value| value.to_string()).collect::<Vec<_>>().join(",")
}
