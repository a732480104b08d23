//! `agentnet bugreport`
//!
//! Everything in the report is chosen: what could hold a secret (identity, state, tickets, environment) is not read at all.
//! What the agent logs and says is free of secrets by rule; words that look like keys or tickets are cut out all the same,
//! should a person have pasted one somewhere.

use std::fs::{self, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::unistd::Uid;
use serde::Serialize;
use serde_json::Value;

use super::Global;
use super::client::{Client, block_on, query_value};
use super::load::AgentArgs;
use super::output::{Failure, Output};
use crate::api::{BugReport, Diagnostics, Error, ErrorCode, Missing, SettingWithSource, SystemDocument};
use crate::config::{Config, DEFAULT_STATE_DIR, Key};
use crate::daemon::{LOG_FILE, network_document, open_own};

/// How long the agent may take for each answer; a check of the network takes five seconds.
const PATIENCE: Duration = Duration::from_secs(10);
/// Peers whose paths are explained.
const MOST_PEERS: usize = 64;
/// How much of the log file's end is read, bytes, where there is no agent to ask.
const LOG_TAIL: u64 = 64 << 10;
/// Longest word left in a report, letters and digits: an agent id. Identities as text, keys in hexadecimal and tickets are
/// longer.
const LONGEST_WORD: usize = 52;

/// Write one file with everything that helps to find a fault, and no secrets
#[derive(Debug, clap::Args)]
#[command(
    after_help = "The file is JSON, for its owner's eyes only (mode 0600). It names peers and addresses: look it over\n\
                  before you hand it on. It can be made without a running agent; what is missing then is said in it."
)]
pub(super) struct Args {
    /// The file, which must not exist [default: agentnet-bugreport-TIME.json in the working directory]; - prints it
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    #[command(flatten)]
    agent: AgentArgs,
}

/// What is printed about the file.
#[derive(Serialize)]
struct Written {
    /// The file.
    file: String,
    /// What the report lacks.
    missing: Vec<Missing>,
}

pub(super) fn run(args: &Args, global: &Global, out: &mut Output) -> Result<(), Failure> {
    let mut report = local(args, global);
    block_on(async {
        ask(&mut report, global).await;
        if report.network.is_none() {
            match network_document().await {
                Ok(network) => report.network = Some(network),
                Err(why) => report.lacks("network", &why),
            }
        }
        Ok::<_, Error>(())
    })?;
    let text = without_secrets(&to_text(&report)?);
    let path = match &args.output {
        Some(path) if path.as_os_str() == "-" => {
            return out.result(&report, |page| page.write_all(text.as_bytes()));
        }
        Some(path) => path.clone(),
        None => PathBuf::from(format!("agentnet-bugreport-{}.json", report.created)),
    };
    write_new(&path, &text)?;
    let written = Written { file: path.display().to_string(), missing: report.missing };
    out.result(&written, |page| {
        writeln!(
            page,
            "Written to {}. It names peers and addresses: look it over before you hand it on.",
            written.file
        )?;
        written.missing.iter().try_for_each(|Missing { what, why }| writeln!(page, "  without {what}: {why}"))
    })
}

/// What can be had without an agent.
fn local(args: &Args, global: &Global) -> BugReport {
    let mut report = BugReport {
        created: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        system: system(),
        missing: Vec::new(),
        configuration: Vec::new(),
        files: Vec::new(),
        running_configuration: None,
        status: None,
        why: Vec::new(),
        netcheck: None,
        metrics: Vec::new(),
        network: None,
        log: Vec::new(),
    };
    let state_dir = match args.agent.load(global) {
        Ok(config) => {
            report.configuration = Key::ALL.iter().map(|key| setting(&config, *key)).collect();
            config.state_dir.value
        }
        Err(error) => {
            report.lacks("configuration", &error.message);
            global.state_dir.clone().unwrap_or_else(|| DEFAULT_STATE_DIR.into())
        }
    };
    match files(&state_dir) {
        Ok(files) => report.files = files,
        Err(error) => report.lacks("files", &format!("{}: {error}", state_dir.display())),
    }
    match log_tail(&state_dir.join(LOG_FILE)) {
        Ok(lines) => report.log = lines,
        Err(error) => report.lacks("log", &format!("{}: {error}", state_dir.join(LOG_FILE).display())),
    }
    report
}

/// What the agent says.
async fn ask(report: &mut BugReport, global: &Global) {
    let client = match Client::new(global) {
        Ok(client) => client.with_timeout(PATIENCE),
        Err(error) => return report.lacks("everything that a running agent says", &error.message),
    };
    match client.get::<Value>("/v1/status").await {
        Ok(status) => report.status = Some(status),
        Err(error) => return report.lacks("everything that a running agent says", &error.message),
    }
    match client.get::<Diagnostics>("/v1/diagnostics").await {
        Ok(Diagnostics { log, network }) => {
            report.missing.retain(|missing| missing.what != "log");
            (report.log, report.network) = (log, Some(network));
        }
        Err(error) => report.lacks("the running agent's log", &error.message),
    }
    match client.get("/v1/config").await {
        Ok(document) => report.running_configuration = Some(document),
        Err(error) => report.lacks("running_configuration", &error.message),
    }
    match client.get_text("/v1/metrics").await {
        Ok(text) => report.metrics = text.lines().map(str::to_owned).collect(),
        Err(error) => report.lacks("metrics", &error.message),
    }
    match client.get("/v1/netcheck").await {
        Ok(document) => report.netcheck = Some(document),
        Err(error) => report.lacks("netcheck", &error.message),
    }
    explain_peers(report, &client).await;
}

async fn explain_peers(report: &mut BugReport, client: &Client) {
    let peers = report.status.as_ref().and_then(|status| status.get("peers")?.as_array());
    let ids = peers.into_iter().flatten().filter_map(|peer| Some(peer.get("id")?.as_str()?.to_owned()));
    let ids: Vec<String> = ids.collect();
    for id in ids.iter().take(MOST_PEERS) {
        match client.get(&format!("/v1/why?peer={}", query_value(id))).await {
            Ok(why) => report.why.push(why),
            Err(error) => report.lacks(&format!("why {id}"), &error.message),
        }
    }
    if ids.len() > MOST_PEERS {
        report.lacks("why", &format!("only {MOST_PEERS} of {} peers are explained", ids.len()));
    }
}

impl BugReport {
    fn lacks(&mut self, what: &str, why: &str) {
        self.missing.push(Missing { what: what.to_owned(), why: why.to_owned() });
    }
}

fn setting(config: &Config, key: Key) -> SettingWithSource {
    let (value, from) = (config.value_text(key), config.origin(key).to_string());
    SettingWithSource { key: key.name().to_owned(), value, from }
}

fn system() -> SystemDocument {
    let kernel = nix::sys::utsname::uname().map(|name| {
        let parts = [name.sysname(), name.release(), name.version(), name.machine()];
        parts.map(|part| part.to_string_lossy().into_owned()).join(" ")
    });
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let distribution = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    SystemDocument {
        built_for: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
        kernel: kernel.unwrap_or_default(),
        distribution: distribution.map(|name| name.trim_matches('"').to_owned()),
        uid: Uid::effective().as_raw(),
    }
}

fn files(state_dir: &Path) -> std::io::Result<Vec<String>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(state_dir)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        let (mode, owner) = (metadata.mode() & 0o7777, metadata.uid());
        files.push(format!("{}: {} bytes, mode {mode:04o}, user {owner}", entry.file_name().display(), metadata.len()));
    }
    files.sort_unstable();
    Ok(files)
}

fn log_tail(path: &Path) -> std::io::Result<Vec<String>> {
    // The directory is the agent's, who reads may be root: what stands there under this name must be the log itself.
    let mut file = open_own(path, OpenOptions::new().read(true))?;
    let begin = file.metadata()?.len().saturating_sub(LOG_TAIL);
    file.seek(SeekFrom::Start(begin))?;
    let mut tail = Vec::new();
    file.take(LOG_TAIL).read_to_end(&mut tail)?;
    // The first line is not whole, unless the file begins with it.
    let text = String::from_utf8_lossy(&tail);
    Ok(text.lines().skip(usize::from(begin > 0)).map(str::to_owned).collect())
}

fn to_text(report: &BugReport) -> Result<String, Error> {
    let text = serde_json::to_string_pretty(report);
    text.map(|text| text + "\n").map_err(|error| Error::new(ErrorCode::Internal, error.to_string(), "report this"))
}

fn without_secrets(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(begin) = rest.find(|c: char| c.is_ascii_alphanumeric()) {
        let (before, word) = rest.split_at(begin);
        let (word, after) = word.split_at(word.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(word.len()));
        clean.push_str(before);
        clean.push_str(if word.len() > LONGEST_WORD { "[left out]" } else { word });
        rest = after;
    }
    clean + rest
}

/// Readable for its owner only, from the first moment on. An existing file, or a link, is left alone.
fn write_new(path: &Path, text: &str) -> Result<(), Error> {
    let written = OpenOptions::new().create_new(true).write(true).mode(0o600).open(path).and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        file.sync_all()
    });
    written.map_err(|error| {
        let code = match error.kind() {
            std::io::ErrorKind::AlreadyExists => ErrorCode::Usage,
            std::io::ErrorKind::StorageFull => ErrorCode::DiskFull,
            std::io::ErrorKind::PermissionDenied => ErrorCode::NotPermitted,
            _ => ErrorCode::Internal,
        };
        let message = format!("{} cannot be written: {error}", path.display());
        Error::new(code, message, "name another file with --output")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_looks_like_an_identity_or_a_ticket_is_cut_out() {
        let (id, longer) = ("y".repeat(52), "y".repeat(53));
        let text = format!("\"{id}\", a agentnet-identity-1 {longer}\n{longer}, é{longer}");
        let clean = format!("\"{id}\", a agentnet-identity-1 [left out]\n[left out], é[left out]");
        assert_eq!(without_secrets(&text), clean);
    }

    #[test]
    fn only_the_end_of_a_log_is_read_and_whole_lines_of_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        fs::write(&path, "one\ntwo\n").unwrap();
        assert_eq!(log_tail(&path).unwrap(), ["one", "two"]);
        fs::write(&path, format!("{}\nlast\n", "x".repeat(100_000))).unwrap();
        assert_eq!(log_tail(&path).unwrap(), ["last"]);
    }

    #[test]
    fn a_report_replaces_nothing_and_is_for_its_owner_only() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("report");
        write_new(&path, "text").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(write_new(&path, "other").unwrap_err().code, ErrorCode::Usage);
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(directory.path().join("elsewhere"), &link).unwrap();
        assert!(write_new(&link, "other").is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "text");
    }
}
