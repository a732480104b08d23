//! Brings the sources of the configuration together: flags, environment, file.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::Global;
use crate::api::{Error, ErrorCode};
use crate::config::{
    Config, DEFAULT_FILE, DEFAULT_SOCKET, DEFAULT_STATE_DIR, Key, MAX_FILE_BYTES, Origin, Settings, control_socket,
    parse_file, with_setting,
};
use crate::daemon::{Access, write_whole};

/// The environment variable that names the configuration file.
const FILE_VARIABLE: &str = "AGENTNET_CONFIG";

/// Settings of an agent, as `up`, `daemon` and `config` take them.
#[derive(Debug, Clone, Default, clap::Args)]
pub(super) struct AgentArgs {
    /// Name of this agent, shown to others
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Name of the network interface [default: the first free agentnetN]
    #[arg(long, value_name = "NAME")]
    tun: Option<String>,
    /// UDP port, IPv4 and IPv6 [default: the one used before, else any]
    #[arg(long, value_name = "N")]
    port: Option<String>,
    /// Rendezvous server, AGENTID@HOST:PORT; may be repeated
    #[arg(long, value_name = "REF")]
    rendezvous: Vec<String>,
    /// Ways to find other agents: of lan,rendezvous,dht, or none [default: none]
    #[arg(long, value_name = "LIST")]
    discovery: Option<String>,
    /// Range that IPv4 aliases come from [default: 100.64.0.0/10]
    #[arg(long, value_name = "CIDR")]
    ipv4_range: Option<String>,
    /// Whether to ask the default gateway to let others in, by PCP, NAT-PMP or UPnP: on or off [default: on]
    #[arg(long, value_name = "on|off")]
    port_mapping: Option<String>,
    /// Where Prometheus reads metrics: ADDR:PORT, a port of 127.0.0.1, or off [default: off]
    #[arg(long, value_name = "ADDR:PORT")]
    metrics_listen: Option<String>,
    /// What to log: error, warn, info, debug, trace, off, or a list of target=level [default: info]
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
    /// How log lines look: text or json [default: text]
    #[arg(long, value_name = "text|json")]
    log_format: Option<String>,
    /// User whose rights an agent started as root takes [default: agentnet where there is one; root to stay root]
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    #[command(flatten)]
    file: FileArgs,
}

/// Where the configuration file is.
#[derive(Debug, Clone, Default, clap::Args)]
pub(super) struct FileArgs {
    /// Configuration file [default: /etc/agentnet/agentnet.toml; environment: AGENTNET_CONFIG]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl AgentArgs {
    /// The effective configuration.
    ///
    /// # Errors
    /// Everything wrong with it.
    pub(super) fn load(&self, global: &Global) -> Result<Config, Error> {
        let settings = self.settings(global)?.over(environment()?).over(self.file.read()?.settings);
        Ok(Config::from_settings(&settings)?)
    }

    fn settings(&self, global: &Global) -> Result<Settings, Error> {
        let mut settings = global_settings(global)?;
        let mut set = |key: Key, values: Vec<String>| {
            if let (Some(flag), false) = (key.flag(), values.is_empty()) {
                settings.set(key, values, Origin::Flag(flag));
            }
        };
        set(Key::Name, self.name.iter().cloned().collect());
        set(Key::Tun, self.tun.iter().cloned().collect());
        set(Key::Port, self.port.iter().cloned().collect());
        set(Key::Rendezvous, self.rendezvous.clone());
        set(Key::Discovery, self.discovery.iter().cloned().collect());
        set(Key::Ipv4Range, self.ipv4_range.iter().cloned().collect());
        set(Key::PortMapping, self.port_mapping.iter().cloned().collect());
        set(Key::MetricsListen, self.metrics_listen.iter().cloned().collect());
        set(Key::LogLevel, self.log_level.iter().cloned().collect());
        set(Key::LogFormat, self.log_format.iter().cloned().collect());
        set(Key::User, self.user.iter().cloned().collect());
        Ok(settings)
    }

    /// The configuration file that a flag or the environment names.
    pub(super) fn named_file(&self) -> Option<PathBuf> {
        self.file.named_file()
    }

    /// The same flags again, for a process that is to be started with them.
    pub(super) fn to_arguments(&self) -> Vec<std::ffi::OsString> {
        let mut arguments = Vec::new();
        let mut add = |flag: &str, value: &std::ffi::OsStr| {
            // One word each, so that a value that begins with a dash stays a value.
            let mut word = std::ffi::OsString::from(format!("{flag}="));
            word.push(value);
            arguments.push(word);
        };
        for (flag, value) in [
            ("--name", &self.name),
            ("--tun", &self.tun),
            ("--port", &self.port),
            ("--discovery", &self.discovery),
            ("--ipv4-range", &self.ipv4_range),
            ("--port-mapping", &self.port_mapping),
            ("--metrics-listen", &self.metrics_listen),
            ("--log-level", &self.log_level),
            ("--log-format", &self.log_format),
            ("--user", &self.user),
        ] {
            if let Some(value) = value {
                add(flag, value.as_ref());
            }
        }
        for reference in &self.rendezvous {
            add("--rendezvous", reference.as_ref());
        }
        if let Some(path) = &self.file.config {
            add("--config", path.as_os_str());
        }
        arguments
    }
}

/// What a configuration file holds.
pub(super) struct FileSettings {
    /// The file; `None` when none is there.
    pub(super) path: Option<PathBuf>,
    /// Its settings.
    pub(super) settings: Settings,
}

impl FileArgs {
    /// A file named on the command line.
    pub(super) fn named(path: Option<PathBuf>) -> Self {
        Self { config: path }
    }

    fn named_file(&self) -> Option<PathBuf> {
        let variable = || std::env::var_os(FILE_VARIABLE).filter(|value| !value.is_empty()).map(PathBuf::from);
        self.config.clone().or_else(variable)
    }

    /// Reads the file. Only the default file may be missing.
    ///
    /// # Errors
    /// The file cannot be read, or is not a configuration.
    pub(super) fn read(&self) -> Result<FileSettings, Error> {
        let named = self.named_file();
        let path = named.clone().unwrap_or_else(|| PathBuf::from(DEFAULT_FILE));
        let text = match read_text(&path) {
            Err(error) if named.is_none() && error.kind() == ErrorKind::NotFound => {
                return Ok(FileSettings { path: None, settings: Settings::default() });
            }
            Err(error) => {
                return Err(Error::new(
                    ErrorCode::ConfigInvalid,
                    format!("{}: the configuration file cannot be read: {error}", path.display()),
                    match error.kind() {
                        ErrorKind::NotFound => "look at the path; without --config and AGENTNET_CONFIG none is needed",
                        ErrorKind::PermissionDenied => "run the command as root, or make the file readable",
                        _ => "look at the path, and at what the file is",
                    },
                ));
            }
            Ok(text) => text,
        };
        let settings = parse_file(&path, &text)?;
        Ok(FileSettings { path: Some(path), settings })
    }
}

/// What was written into a configuration file.
#[derive(Debug)]
pub(super) struct Written {
    /// Settings that the file did not have so.
    pub(super) keys: Vec<Key>,
    path: PathBuf,
    /// The text before; `None` when there was no file.
    before: Option<String>,
}

impl Written {
    /// Makes the file what it was before. What fails is left: the error that led here says more.
    pub(super) fn undo(self) {
        let _ = match self.before {
            _ if self.keys.is_empty() => Ok(()),
            Some(text) => replace(&self.path, &text),
            None => fs::remove_file(&self.path),
        };
    }
}

/// Writes settings of `config` into the configuration file at `path`, which is made if it is not there.
///
/// # Errors
/// `config_invalid`: the file cannot be read or written. It is then as it was.
pub(super) fn write_settings(path: &Path, config: &Config, keys: &[Key]) -> Result<Written, Error> {
    let failed = |error: io::Error| {
        let message = format!("{}: the configuration file cannot be written: {error}", path.display());
        Error::new(ErrorCode::ConfigInvalid, message, "look at the path and at the room on its disk")
    };
    let before = match read_text(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        text => Some(text.map_err(failed)?),
    };
    let mut text = before.clone().unwrap_or_default();
    let mut written = Vec::new();
    for key in keys {
        let with = with_setting(&text, *key, &config.given(*key));
        if with != text {
            written.push(*key);
            text = with;
        }
    }
    // What the agent could not start with must not come to stand there.
    Config::from_settings(&parse_file(path, &text)?)?;
    if !written.is_empty() {
        replace(path, &text).map_err(failed)?;
    }
    Ok(Written { keys: written, path: path.to_owned(), before })
}

/// Gives a file new content, whole or not at all. Who may read it stays the same, whatever the umask.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    let old = fs::metadata(path).ok();
    // Commands of every user look here for the control socket.
    let mode = old.as_ref().map_or(0o644, |old| old.mode() & 0o777);
    if let Some(directory) = path.parent().filter(|directory| !directory.exists()) {
        DirBuilder::new().recursive(true).mode(0o755).create(directory)?;
        fs::set_permissions(directory, Permissions::from_mode(0o755))?;
    }
    let access = Access { mode, owner: old.map(|old| (old.uid(), old.gid())) };
    write_whole(path, text.as_bytes(), access)
}

/// Whether flags or environment name an agent that is not the default one.
///
/// # Errors
/// The paths are not valid.
pub(super) fn names_another(global: &Global) -> Result<bool, Error> {
    let settings = global_settings(global)?.over(environment()?);
    let differs = |key, default: &str| settings.get(key).is_some_and(|given| given.values != [default]);
    // A state directory that is named comes with a socket of its own.
    let has_own_socket = settings.get(Key::StateDir).is_some() && settings.get(Key::Socket).is_none();
    let has_own_file = FileArgs::default().named_file().is_some_and(|file| file != Path::new(DEFAULT_FILE));
    let has_own_paths = differs(Key::StateDir, DEFAULT_STATE_DIR) || differs(Key::Socket, DEFAULT_SOCKET);
    Ok(has_own_socket || has_own_file || has_own_paths)
}

/// The control socket a command talks to, and the flags that name the same agent.
pub(super) struct Target {
    /// The socket.
    pub(super) socket: PathBuf,
    /// What belongs between `agentnet` and the command to start this agent; empty for the default one.
    pub(super) flags: String,
}

/// Finds the control socket. The configuration file only counts when neither flags nor environment say anything.
///
/// # Errors
/// The paths, or the file, are not valid.
pub(super) fn target(global: &Global) -> Result<Target, Error> {
    let mut settings = global_settings(global)?.over(environment()?);
    if settings.get(Key::StateDir).is_none() && settings.get(Key::Socket).is_none() {
        settings = settings.over(FileArgs::default().read()?.settings);
    }
    let socket = control_socket(&settings)?.value;
    let mut flags = String::new();
    for (flag, path) in [("--state-dir", &global.state_dir), ("--socket", &global.socket)] {
        if let Some(path) = path {
            flags.push_str(&format!("{flag} {} ", path.display()));
        }
    }
    Ok(Target { socket, flags })
}

/// What global flags and environment say, for a program that is no agent: the configuration file is an agent's.
///
/// # Errors
/// Everything wrong with it.
pub(super) fn host_config(global: &Global) -> Result<Config, Error> {
    Ok(Config::from_settings(&global_settings(global)?.over(environment()?))?)
}

/// The environment, with relative paths made absolute.
fn environment() -> Result<Settings, Error> {
    let mut settings = Settings::from_environment(|variable| std::env::var(variable).ok());
    for key in [Key::StateDir, Key::Socket] {
        let Some(value) = std::env::var_os(key.variable()).filter(|value| !value.is_empty()) else { continue };
        settings.set(key, vec![absolute(Path::new(&value))?], Origin::Environment(key.variable()));
    }
    Ok(settings)
}

fn global_settings(global: &Global) -> Result<Settings, Error> {
    let mut settings = Settings::default();
    if let Some(path) = &global.state_dir {
        settings.set(Key::StateDir, vec![absolute(path)?], Origin::Flag("--state-dir"));
    }
    if let Some(path) = &global.socket {
        settings.set(Key::Socket, vec![absolute(path)?], Origin::Flag("--socket"));
    }
    Ok(settings)
}

/// A path given by the caller starts at the caller's working directory.
fn absolute(path: &Path) -> Result<String, Error> {
    let refused = |why: &str| {
        let message = format!("{:?} cannot be used as a path: {why}", path.as_os_str());
        Error::new(ErrorCode::Usage, message, "name another path")
    };
    let absolute = std::path::absolute(path).map_err(|error| refused(&error.to_string()))?;
    absolute.into_os_string().into_string().map_err(|_| refused("it is not UTF-8"))
}

fn read_text(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    let read = File::open(path)?.take(MAX_FILE_BYTES + 1).read_to_string(&mut text)?;
    if read as u64 > MAX_FILE_BYTES {
        let message = format!("it is longer than {MAX_FILE_BYTES} bytes");
        return Err(io::Error::new(ErrorKind::FileTooLarge, message));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::{Cli, Command};
    use super::*;

    #[test]
    fn flags_are_written_into_the_file_and_the_rest_of_it_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("etc/agentnet.toml");
        let mut settings = Settings::default();
        settings.set(Key::Name, vec!["one".to_owned()], Origin::Flag("--name"));
        settings.set(Key::Port, vec!["0".to_owned()], Origin::Flag("--port"));
        let config = Config::from_settings(&settings).unwrap();
        let keys = [Key::Name, Key::Port];
        let mode = || fs::metadata(&path).unwrap().mode() & 0o777;
        assert_eq!(write_settings(&path, &config, &keys).unwrap().keys, keys);
        assert_eq!(fs::read_to_string(&path).unwrap(), "name = \"one\"\nport = 0\n");
        assert_eq!(mode(), 0o644);
        fs::set_permissions(&path, PermissionsExt::from_mode(0o666)).unwrap();
        settings.set(Key::Name, vec!["three".to_owned()], Origin::Flag("--name"));
        write_settings(&path, &Config::from_settings(&settings).unwrap(), &keys).unwrap();
        assert_eq!(mode(), 0o666, "no usual umask leaves that");
        fs::write(&path, "# mine\nmtu = 1400\nname = \"two\" # was\nport = 0\n").unwrap();
        fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        assert_eq!(write_settings(&path, &config, &keys).unwrap().keys, [Key::Name]);
        let text = "# mine\nmtu = 1400\nname = \"one\" # was\nport = 0\n";
        assert_eq!(fs::read_to_string(&path).unwrap(), text);
        assert_eq!(mode(), 0o600);
        assert_eq!(write_settings(&path, &config, &keys).unwrap().keys, []);
        let entries: Vec<_> = fs::read_dir(path.parent().unwrap()).unwrap().collect();
        assert_eq!(entries.len(), 1, "{entries:?}");
    }

    #[test]
    fn a_file_that_is_not_valid_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agentnet.toml");
        let config = Config::from_settings(&Settings::default()).unwrap();
        for text in ["mtu = 1\n", "mtu 1400\n"] {
            fs::write(&path, text).unwrap();
            let error = write_settings(&path, &config, &[Key::PortMapping]).unwrap_err();
            assert_eq!(error.code, ErrorCode::ConfigInvalid);
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
    }

    #[test]
    fn flags_survive_being_handed_on() {
        let given = [
            "--name=a",
            "--tun=t",
            "--port=-1",
            "--discovery=none",
            "--ipv4-range=10.0.0.0/8",
            "--port-mapping=off",
            "--metrics-listen=9464",
            "--log-level=debug",
            "--log-format=json",
            "--user=u",
            "--rendezvous=x",
            "--rendezvous=--y",
            "--config=/etc/a b.toml",
        ];
        let cli = Cli::try_parse_from(["agentnet", "daemon"].into_iter().chain(given)).unwrap();
        let Command::Daemon(daemon) = cli.command else { panic!("not the daemon") };
        assert_eq!(daemon.agent.to_arguments(), given);
    }
}
