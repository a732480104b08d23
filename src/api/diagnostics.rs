//! What an agent tells who is to help it: `GET /v1/diagnostics`, and `agentnet bugreport`.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What only the running agent knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Diagnostics {
    /// The last lines of its log, the oldest first.
    pub log: Vec<String>,
    /// The host's network as it sees it.
    pub network: NetworkDocument,
}

/// The host's network.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkDocument {
    /// Interfaces, in words: name, index, MTU, state.
    pub links: Vec<String>,
    /// Addresses, each with its interface.
    pub addresses: Vec<String>,
    /// Routes of all tables.
    pub routes: Vec<String>,
}

/// What `agentnet bugreport` writes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct BugReport {
    /// When it was made, seconds since 1970.
    pub created: u64,
    /// Version of the program that made it.
    pub version: String,
    /// The host.
    pub system: SystemDocument,
    /// What could not be had.
    pub missing: Vec<Missing>,
    /// Settings that an agent would be started with now: key, value, and where it came from.
    pub configuration: Vec<SettingWithSource>,
    /// Files in the state directory: name, size, mode. None is read but the log.
    pub files: Vec<String>,
    /// `config show --running`.
    pub running_configuration: Option<Value>,
    /// `status`.
    pub status: Option<Value>,
    /// `why`, for each peer.
    pub why: Vec<Value>,
    /// `netcheck`.
    pub netcheck: Option<Value>,
    /// `metrics`, line by line.
    pub metrics: Vec<String>,
    /// Interfaces, addresses, routes.
    pub network: Option<NetworkDocument>,
    /// The last lines of the log.
    pub log: Vec<String>,
}

/// Something a [`BugReport`] lacks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Missing {
    /// What.
    pub what: String,
    /// Why.
    pub why: String,
}

/// One setting, in a [`BugReport`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SettingWithSource {
    /// Its key.
    pub key: String,
    /// Its value.
    pub value: String,
    /// File and line, flag or variable.
    pub from: String,
}

/// The host, in a [`BugReport`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SystemDocument {
    /// Operating system and processor that the program was built for.
    pub built_for: String,
    /// Name and version of the kernel.
    pub kernel: String,
    /// Name and version of the distribution, where there is one.
    pub distribution: Option<String>,
    /// Effective user id.
    pub uid: u32,
}
