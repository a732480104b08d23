//! [`Settings`] to [`Config`]: the meaning of every value.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use ipnet::Ipv4Net;
use tracing_subscriber::EnvFilter;

use super::problem::closest;
use super::{
    Config, DEFAULT_IPV4_RANGE, DEFAULT_LOG_LEVEL, DEFAULT_SOCKET, DEFAULT_STATE_DIR, DEFAULT_USER, DiscoveryKind,
    Given, Invalid, Key, LogFormat, MAX_MTU, MAX_QUEUES, MAX_RENDEZVOUS, MAX_SOCKET_PATH, MIN_MTU, Origin, Problem,
    ProblemKind, SOCKET_IN_STATE_DIR, Setting, Settings,
};
use crate::identity::{Name, RendezvousRef};

/// Ways to find other agents that this version has.
const OFFERED_DISCOVERY: &[DiscoveryKind] = &[DiscoveryKind::Rendezvous];

/// Longest interface name, bytes: Linux' IFNAMSIZ less its end.
const MAX_INTERFACE_NAME: usize = 15;
/// Longest name of a user, bytes: directories of large organisations have such.
const MAX_USER_NAME: usize = 256;
/// Ranges hosts may use as they like: RFC 1918, RFC 6598 and, for laboratories, RFC 2544.
const PRIVATE_RANGES: [(Ipv4Addr, u8); 5] = [
    (Ipv4Addr::new(10, 0, 0, 0), 8),
    (Ipv4Addr::new(172, 16, 0, 0), 12),
    (Ipv4Addr::new(192, 168, 0, 0), 16),
    (Ipv4Addr::new(100, 64, 0, 0), 10),
    (Ipv4Addr::new(198, 18, 0, 0), 15),
];
/// Longest prefix of the IPv4 range: 256 addresses.
const MAX_RANGE_PREFIX: u8 = 24;
const LOG_LEVELS: [&str; 6] = ["error", "warn", "info", "debug", "trace", "off"];

/// Why one value is refused.
struct Refusal {
    kind: ProblemKind,
    message: String,
    hint: String,
}

fn refuse<T>(message: impl Into<String>, hint: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal { kind: ProblemKind::Invalid, message: message.into(), hint: hint.into() })
}

fn not_available<T>(message: impl Into<String>, hint: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal { kind: ProblemKind::NotAvailable, message: message.into(), hint: hint.into() })
}

pub(super) fn validate(settings: &Settings) -> Result<Config, Invalid> {
    let mut check = Check { settings, problems: Vec::new() };
    let state_dir = check.setting(Key::StateDir, PathBuf::from(DEFAULT_STATE_DIR), one(absolute_path));
    let socket = check.socket(&state_dir);
    let config = Config {
        name: check.setting(Key::Name, None, one(|text| name(text).map(Some))),
        tun: check.setting(Key::Tun, None, one(|text| interface_name(text).map(Some))),
        port: check.setting(Key::Port, None, one(port)),
        rendezvous: check.setting(Key::Rendezvous, Vec::new(), rendezvous),
        discovery: check.setting(Key::Discovery, Vec::new(), discovery),
        ipv4_range: check.ipv4_range(),
        port_mapping: check.setting(Key::PortMapping, true, one(on_or_off)),
        metrics_listen: check.setting(Key::MetricsListen, None, one(metrics_listen)),
        state_dir,
        socket,
        log_level: check.setting(Key::LogLevel, DEFAULT_LOG_LEVEL.to_owned(), one(log_level)),
        log_format: check.setting(Key::LogFormat, LogFormat::default(), one(log_format)),
        mtu: check.setting(Key::Mtu, None, one(mtu)),
        queues: check.setting(Key::Queues, None, one(queues)),
        user: check.setting(Key::User, DEFAULT_USER.to_owned(), one(user)),
        confine: check.setting(Key::Confine, true, one(on_or_off)),
    };
    Invalid::check(check.problems)?;
    Ok(config)
}

/// The control socket these settings name, without a look at the others.
///
/// # Errors
/// Paths that are not valid.
pub fn control_socket(settings: &Settings) -> Result<Setting<PathBuf>, Invalid> {
    let mut check = Check { settings, problems: Vec::new() };
    let state_dir = check.setting(Key::StateDir, PathBuf::from(DEFAULT_STATE_DIR), one(absolute_path));
    let socket = check.socket(&state_dir);
    Invalid::check(check.problems)?;
    Ok(socket)
}

struct Check<'a> {
    settings: &'a Settings,
    problems: Vec<Problem>,
}

impl Check<'_> {
    fn setting<T>(&mut self, key: Key, default: T, parse: impl Fn(&[String]) -> Result<T, Refusal>) -> Setting<T> {
        let Some(Given { values, origin }) = self.settings.get(key) else { return Setting::default_value(default) };
        match parse(values) {
            Ok(value) => Setting { value, origin: origin.clone() },
            Err(refusal) => {
                self.refused(key, origin.clone(), refusal);
                Setting::default_value(default)
            }
        }
    }

    fn refused(&mut self, key: Key, origin: Origin, refusal: Refusal) {
        let message = match origin {
            Origin::File { .. } => format!("`{}` {}", key.name(), refusal.message),
            _ => refusal.message,
        };
        self.problems.push(Problem { origin, kind: refusal.kind, message, hint: refusal.hint });
    }

    /// A socket that is named counts, unless a stronger source names a state directory: that is another agent then.
    fn socket(&mut self, state_dir: &Setting<PathBuf>) -> Setting<PathBuf> {
        let named = self.settings.get(Key::Socket).map(|given| given.origin.strength());
        if named.is_some_and(|strength| strength >= state_dir.origin.strength()) {
            return self.setting(Key::Socket, PathBuf::from(DEFAULT_SOCKET), one(socket_path));
        }
        if state_dir.origin == Origin::Default {
            return Setting::default_value(PathBuf::from(DEFAULT_SOCKET));
        }
        let value = state_dir.value.join(SOCKET_IN_STATE_DIR);
        if let Err(mut refusal) = short_enough(&value) {
            "name a shorter path with --socket".clone_into(&mut refusal.hint);
            self.refused(Key::StateDir, state_dir.origin.clone(), refusal);
        }
        Setting { value, origin: state_dir.origin.clone() }
    }

    fn ipv4_range(&mut self) -> Setting<Ipv4Net> {
        let default = Ipv4Net::from_str(DEFAULT_IPV4_RANGE).unwrap_or_default();
        self.setting(Key::Ipv4Range, default, one(ipv4_range))
    }
}

/// A parser of one text, for settings that are no lists.
fn one<T>(parse: impl Fn(&str) -> Result<T, Refusal>) -> impl Fn(&[String]) -> Result<T, Refusal> {
    move |values| match values {
        [value] => parse(value.trim()),
        _ => refuse("takes one value", "give it once"),
    }
}

/// The elements of a list, whichever way it was written.
fn elements(values: &[String]) -> impl Iterator<Item = &str> {
    values.iter().flat_map(|value| value.split(',')).map(str::trim).filter(|element| !element.is_empty())
}

fn name(text: &str) -> Result<Name, Refusal> {
    match Name::from_str(text) {
        Ok(name) => Ok(name),
        Err(error) => refuse(format!("{text:?} is not a name"), error.to_string()),
    }
}

fn interface_name(text: &str) -> Result<String, Refusal> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let special = text == "." || text == "..";
    if (1..=MAX_INTERFACE_NAME).contains(&text.len()) && text.bytes().all(allowed) && !special {
        return Ok(text.to_owned());
    }
    refuse(
        format!("{text:?} is not an interface name"),
        format!("interface names have 1 to {MAX_INTERFACE_NAME} letters, digits, -, _ and ."),
    )
}

fn port(text: &str) -> Result<Option<u16>, Refusal> {
    match text.parse::<u16>() {
        Ok(0) => Ok(None),
        Ok(port) => Ok(Some(port)),
        Err(_) => refuse(format!("{text:?} is not a port"), "ports are numbers from 1 to 65535; 0 is any"),
    }
}

fn mtu(text: &str) -> Result<Option<u16>, Refusal> {
    match text.parse::<u16>() {
        Ok(mtu) if (MIN_MTU..=MAX_MTU).contains(&mtu) => Ok(Some(mtu)),
        _ => refuse(
            format!("{text:?} is not an MTU"),
            format!("the MTU is a number of bytes from {MIN_MTU} to {MAX_MTU}; leave it out to let the agent choose"),
        ),
    }
}

fn queues(text: &str) -> Result<Option<u16>, Refusal> {
    match text.parse::<u16>() {
        Ok(queues) if (1..=MAX_QUEUES).contains(&queues) => Ok(Some(queues)),
        _ => refuse(
            format!("{text:?} is not a number of queues"),
            format!("it goes from 1 to {MAX_QUEUES}; leave it out to let the agent choose by the number of processors"),
        ),
    }
}

fn rendezvous(values: &[String]) -> Result<Vec<RendezvousRef>, Refusal> {
    let mut all: Vec<RendezvousRef> = Vec::new();
    for element in elements(values) {
        match RendezvousRef::from_str(element) {
            Ok(reference) if all.contains(&reference) => {}
            Ok(reference) => all.push(reference),
            Err(error) => {
                return refuse(
                    format!("{element:?} names no rendezvous server: {error}"),
                    "it is written AGENTID@HOST:PORT",
                );
            }
        }
    }
    if all.len() > MAX_RENDEZVOUS {
        return refuse(format!("names {} servers", all.len()), format!("at most {MAX_RENDEZVOUS} are used"));
    }
    Ok(all)
}

fn discovery(values: &[String]) -> Result<Vec<DiscoveryKind>, Refusal> {
    let words: Vec<&str> = elements(values).collect();
    if words == ["none"] {
        return Ok(Vec::new());
    }
    let mut kinds = Vec::new();
    for word in words {
        match DiscoveryKind::ALL.iter().find(|kind| kind.as_str() == word) {
            Some(kind) if kinds.contains(kind) => {}
            Some(kind) => kinds.push(*kind),
            None if word == "none" => return refuse("has `none` beside others", "give `none` alone"),
            None => {
                let known = DiscoveryKind::ALL.iter().map(|kind| kind.as_str()).chain(["none"]);
                return refuse(format!("{word:?} is not a way to find agents"), did_you_mean(word, known));
            }
        }
    }
    match kinds.iter().find(|kind| !OFFERED_DISCOVERY.contains(kind)) {
        Some(kind) => not_available(
            format!("names `{}`, a way to find agents that this version does not offer yet", kind.as_str()),
            "use `none`; agents meet by exchanging tickets (`agentnet ticket`)",
        ),
        None => Ok(kinds),
    }
}

fn ipv4_range(text: &str) -> Result<Ipv4Net, Refusal> {
    let Ok(range) = Ipv4Net::from_str(text) else {
        return refuse(format!("{text:?} is not an IPv4 range"), format!("ranges look like {DEFAULT_IPV4_RANGE}"));
    };
    if range != range.trunc() {
        return refuse(format!("{text:?} has host bits set"), format!("did you mean {}?", range.trunc()));
    }
    if range.prefix_len() > MAX_RANGE_PREFIX {
        return refuse(format!("{text:?} is too small"), format!("take a /{MAX_RANGE_PREFIX} or larger"));
    }
    let inside = |(network, prefix): &(Ipv4Addr, u8)| {
        Ipv4Net::new(*network, *prefix).is_ok_and(|private| private.contains(&range))
    };
    if !PRIVATE_RANGES.iter().any(inside) {
        return refuse(
            format!("{text:?} is not a private range, and would hide other hosts"),
            "take one inside 100.64.0.0/10, 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16 or 198.18.0.0/15",
        );
    }
    Ok(range)
}

fn on_or_off(text: &str) -> Result<bool, Refusal> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => refuse(format!("{text:?} is neither on nor off"), "give `on` or `off`"),
    }
}

/// A port alone is one of loopback: what others are to see must be said.
fn metrics_listen(text: &str) -> Result<Option<SocketAddr>, Refusal> {
    if text == "off" {
        return Ok(None);
    }
    if let Ok(port) = text.parse::<u16>() {
        return Ok(Some(SocketAddr::from((Ipv4Addr::LOCALHOST, port))));
    }
    match text.parse() {
        Ok(address) => Ok(Some(address)),
        Err(_) => refuse(
            format!("{text:?} is not an address to listen at"),
            "give ADDR:PORT such as 127.0.0.1:9464, a port of 127.0.0.1, or `off`",
        ),
    }
}

/// Whether the host has it is another question. A number would be taken for a name.
fn user(text: &str) -> Result<String, Refusal> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'@' | b'\\');
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
    if (1..=MAX_USER_NAME).contains(&text.len()) && text.bytes().all(allowed) && !is_number {
        return Ok(text.to_owned());
    }
    refuse(format!("{text:?} is not a user's name"), "name a user of this host, or `root` to stay root")
}

fn absolute_path(text: &str) -> Result<PathBuf, Refusal> {
    let path = Path::new(text);
    if !path.is_absolute() {
        return refuse(format!("{text:?} is not an absolute path"), "begin it with /");
    }
    if text.contains('\0') {
        return refuse(format!("{text:?} is not a path"), "leave the NUL byte out");
    }
    Ok(path.to_owned())
}

fn socket_path(text: &str) -> Result<PathBuf, Refusal> {
    let path = absolute_path(text)?;
    short_enough(&path)?;
    Ok(path)
}

fn short_enough(path: &Path) -> Result<(), Refusal> {
    if path.as_os_str().len() <= MAX_SOCKET_PATH {
        return Ok(());
    }
    refuse(
        format!("leads to the socket path {}, which is longer than {MAX_SOCKET_PATH} bytes", path.display()),
        "name a shorter one",
    )
}

fn log_level(text: &str) -> Result<String, Refusal> {
    // EnvFilter takes any single word as the name of a target, so that a mistyped level would be silently accepted.
    let is_word = !text.contains(['=', ',', '[', ':']);
    if is_word && !LOG_LEVELS.contains(&text.to_ascii_lowercase().as_str()) {
        return refuse(format!("{text:?} is not a log level"), did_you_mean(text, LOG_LEVELS.into_iter()));
    }
    match EnvFilter::builder().parse(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => refuse(
            format!("{text:?} is not a log filter: {error}"),
            "filters look like `debug` or `info,agentnet::node=debug`",
        ),
    }
}

fn log_format(text: &str) -> Result<LogFormat, Refusal> {
    let all = [LogFormat::Text, LogFormat::Json];
    match all.iter().find(|format| format.as_str() == text) {
        Some(format) => Ok(*format),
        None => refuse(
            format!("{text:?} is not a log format"),
            did_you_mean(text, all.iter().map(|format| format.as_str())),
        ),
    }
}

fn did_you_mean<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> String {
    let known: Vec<&str> = known.collect();
    match closest(word, known.iter().copied()) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("use one of {}", known.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(values: &[(Key, &str)]) -> Settings {
        let mut settings = Settings::default();
        for (key, value) in values {
            settings.set(*key, vec![(*value).to_owned()], Origin::Flag(key.flag().unwrap_or("--none")));
        }
        settings
    }

    fn file(values: &[(Key, &str)]) -> Settings {
        let mut settings = Settings::default();
        for (key, value) in values {
            settings.set(*key, vec![(*value).to_owned()], Origin::File { path: "f".into(), line: 1 });
        }
        settings
    }

    fn refused(key: Key, value: &str) -> Problem {
        let invalid = Config::from_settings(&flags(&[(key, value)])).expect_err(value);
        assert_eq!(invalid.problems().len(), 1);
        invalid.problems()[0].clone()
    }

    #[test]
    fn nothing_given_is_the_documented_default() {
        let config = Config::from_settings(&Settings::default()).unwrap();
        let shown: Vec<_> =
            config.document().settings.into_iter().map(|s| format!("{}={} {}", s.key, s.value, s.origin)).collect();
        assert_eq!(
            shown,
            [
                "name= default",
                "tun= default",
                "port= default",
                "rendezvous= default",
                "discovery=none default",
                "ipv4_range=100.64.0.0/10 default",
                "port_mapping=on default",
                "metrics_listen=off default",
                "state_dir=/var/lib/agentnet default",
                "socket=/run/agentnet/agentnet.sock default",
                "log_level=info default",
                "log_format=text default",
                "mtu= default",
                "queues= default",
                "user=agentnet default",
                "confine=on default",
            ]
        );
    }

    #[test]
    fn stronger_sources_win_and_are_named() {
        let environment = Settings::from_environment(|variable| match variable {
            "AGENTNET_PORT" => Some("2".to_owned()),
            "AGENTNET_NAME" => Some("env".to_owned()),
            "AGENTNET_TUN" => Some(String::new()),
            _ => None,
        });
        let settings = flags(&[(Key::Port, "1")]).over(environment).over(file(&[
            (Key::Port, "3"),
            (Key::Name, "file"),
            (Key::Tun, "tun7"),
        ]));
        let config = Config::from_settings(&settings).unwrap();
        assert_eq!((config.port.value, config.port.origin.word()), (Some(1), "flag"));
        assert_eq!(
            (config.name.value.as_ref().map(Name::as_str), config.name.origin.word()),
            (Some("env"), "environment")
        );
        assert_eq!((config.tun.value.as_deref(), config.tun.origin.word()), (Some("tun7"), "file"));
    }

    #[test]
    fn the_socket_follows_the_state_directory() {
        let socket = |settings: &Settings| control_socket(settings).unwrap().value;
        assert_eq!(socket(&Settings::default()), Path::new("/run/agentnet/agentnet.sock"));
        assert_eq!(socket(&flags(&[(Key::StateDir, "/a")])), Path::new("/a/agentnet.sock"));
        assert_eq!(socket(&flags(&[(Key::StateDir, "/a"), (Key::Socket, "/b")])), Path::new("/b"));
        assert_eq!(
            socket(&flags(&[(Key::StateDir, "/a")]).over(file(&[(Key::Socket, "/b")]))),
            Path::new("/a/agentnet.sock")
        );
        assert_eq!(socket(&flags(&[(Key::Socket, "/b")]).over(file(&[(Key::StateDir, "/a")]))), Path::new("/b"));
        let long = format!("/{}", "x".repeat(100));
        let invalid = control_socket(&flags(&[(Key::StateDir, &long)])).unwrap_err();
        assert_eq!(invalid.problems()[0].hint, "name a shorter path with --socket");
    }

    #[test]
    fn values_outside_their_range_are_refused() {
        for bad in ["", "-a", "a-", "A", "a.b", &"x".repeat(64)] {
            assert!(refused(Key::Name, bad).hint.contains("a-z"), "{bad}");
        }
        for bad in ["", "..", "tun%d", "a/b", "sixteen-bytes-xx"] {
            assert!(refused(Key::Tun, bad).message.contains("interface name"), "{bad}");
        }
        for bad in ["", "65536", "-1", "x"] {
            assert!(refused(Key::Port, bad).message.contains("is not a port"), "{bad}");
        }
        for bad in ["1279", "65473", "x"] {
            assert!(refused(Key::Mtu, bad).message.contains("is not an MTU"), "{bad}");
        }
        assert_eq!(refused(Key::Ipv4Range, "10.1.2.3/16").hint, "did you mean 10.1.0.0/16?");
        assert!(refused(Key::Ipv4Range, "8.8.0.0/16").message.contains("not a private range"));
        assert!(refused(Key::Ipv4Range, "0.0.0.0/0").message.contains("not a private range"));
        assert!(refused(Key::Ipv4Range, "10.0.0.0/25").message.contains("too small"));
        assert!(refused(Key::Ipv4Range, "10.0.0.0").message.contains("not an IPv4 range"));
        assert!(refused(Key::StateDir, "relative").message.contains("not an absolute path"));
        assert_eq!(refused(Key::LogLevel, "inof").hint, "did you mean `info`?");
        assert!(refused(Key::LogLevel, "a=nonsense").message.contains("not a log filter"));
        assert_eq!(refused(Key::LogFormat, "jsn").hint, "did you mean `json`?");
        assert_eq!(refused(Key::PortMapping, "yes").message, "\"yes\" is neither on nor off");
        for bad in ["", "on", "localhost:9464", "127.0.0.1", "65536", "127.0.0.1:65536"] {
            assert!(refused(Key::MetricsListen, bad).message.contains("not an address to listen at"), "{bad}");
        }
        for bad in ["", "0", "1000", "a:b", "a b", "../x", "ä"] {
            assert!(refused(Key::User, bad).message.contains("is not a user's name"), "{bad}");
        }
        assert_eq!(refused(Key::Confine, "no").message, "\"no\" is neither on nor off");
        assert_eq!(refused(Key::Discovery, "lna").hint, "did you mean `lan`?");
        assert!(refused(Key::Discovery, "none,lan").message.contains("beside others"));
        assert!(refused(Key::Rendezvous, "example.org:1").message.contains("names no rendezvous server"));
    }

    #[test]
    fn limits_themselves_are_accepted() {
        let config = Config::from_settings(&flags(&[
            (Key::Name, "a"),
            (Key::Tun, "fifteen-bytes-x"),
            (Key::Port, "65535"),
            (Key::Mtu, "1280"),
            (Key::Ipv4Range, "10.9.8.0/24"),
            (Key::LogLevel, "info,agentnet::node=debug"),
            (Key::LogFormat, "json"),
            (Key::Discovery, "none"),
            (Key::PortMapping, "off"),
            (Key::User, "CORP\\svc_agent-7.x@example"),
            (Key::Confine, "off"),
        ]))
        .unwrap();
        assert_eq!(config.mtu.value, Some(MIN_MTU));
        assert_eq!(config.log_format.value, LogFormat::Json);
        assert!(!config.port_mapping.value && !config.confine.value);
        for (text, meant) in
            [("9464", "127.0.0.1:9464"), ("[::1]:1", "[::1]:1"), ("0.0.0.0:9", "0.0.0.0:9"), ("off", "off")]
        {
            let config = Config::from_settings(&flags(&[(Key::MetricsListen, text)])).unwrap();
            assert_eq!(config.value_text(Key::MetricsListen), meant);
        }
        assert_eq!(Config::from_settings(&flags(&[(Key::Port, "0")])).unwrap().port.value, None);
        assert_eq!(Config::from_settings(&flags(&[(Key::Mtu, "65472")])).unwrap().mtu.value, Some(MAX_MTU));
    }

    #[test]
    fn what_is_not_offered_is_told_apart_from_what_is_wrong() {
        let problem = refused(Key::Discovery, "lan,dht");
        assert_eq!(problem.kind, ProblemKind::NotAvailable);
        let error = crate::api::Error::from(Invalid::one(problem));
        assert_eq!(error.code, crate::api::ErrorCode::NotAvailable);
        let mixed = Config::from_settings(&flags(&[(Key::Discovery, "lan"), (Key::Port, "x")])).unwrap_err();
        assert_eq!(crate::api::Error::from(mixed).code, crate::api::ErrorCode::Usage);
        let in_file = Config::from_settings(&file(&[(Key::Port, "x")])).unwrap_err();
        assert_eq!(crate::api::Error::from(in_file).code, crate::api::ErrorCode::ConfigInvalid);
    }
}
