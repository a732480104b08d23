//! What packages ship says what the program does.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use agentnet::config::{
    Config, DEFAULT_FILE, DEFAULT_SOCKET, DEFAULT_STATE_DIR, Key, MAX_MTU, MIN_MTU, Settings, parse_file,
};

/// Settings without a default value: the file shows an example.
const EXAMPLES: &[Key] = &[Key::Name, Key::Tun, Key::Rendezvous, Key::Mtu, Key::Queues];

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).expect(path)
}

/// The settings of the configuration file that is shipped, by the line that shows them.
fn shown(text: &str) -> Vec<&str> {
    let is_shown = |line: &&str| Key::ALL.iter().any(|key| line.starts_with(&format!("{} = ", key.name())));
    text.lines().filter_map(|line| line.strip_prefix('#')).filter(is_shown).collect()
}

#[test]
fn the_configuration_file_shows_every_setting_and_sets_none() {
    let text = read("packaging/agentnet.toml");
    assert_eq!(parse_file(Path::new(DEFAULT_FILE), &text).unwrap(), Settings::default());
    let names: Vec<&str> = shown(&text).iter().map(|line| line.split(' ').next().unwrap()).collect();
    assert_eq!(names, Key::ALL.iter().map(|key| key.name()).collect::<Vec<_>>());
}

#[test]
fn what_the_configuration_file_shows_is_valid_and_is_the_default() {
    let text = read("packaging/agentnet.toml");
    let settings = parse_file(Path::new(DEFAULT_FILE), &shown(&text).join("\n")).unwrap();
    let config = Config::from_settings(&settings).unwrap();
    let default = Config::from_settings(&Settings::default()).unwrap();
    for key in Key::ALL {
        let is_example = EXAMPLES.contains(key);
        assert_eq!(config.value_text(*key) != default.value_text(*key), is_example, "{}", key.name());
        let line = format!("#{} = ", key.name());
        let comment = text.lines().take_while(|text| !text.starts_with(&line)).last().unwrap();
        assert_eq!(comment.ends_with("an example:"), is_example, "{}", key.name());
    }
    assert!(text.contains(&format!("{MIN_MTU} to {MAX_MTU}")));
}

#[test]
fn the_units_use_the_directories_that_the_program_uses() {
    for (file, command, state) in [
        ("agentnet", "daemon", DEFAULT_STATE_DIR),
        ("agentnet-rendezvous", "rendezvous", "/var/lib/agentnet-rendezvous"),
    ] {
        let text = read(&format!("packaging/systemd/{file}.service"));
        let lines: BTreeMap<&str, &str> = text.lines().filter_map(|line| line.split_once('=')).collect();
        assert!(lines["ExecStart"].starts_with(&format!("/usr/bin/agentnet {command}")), "{file}");
        assert_eq!(format!("/var/lib/{}", lines["StateDirectory"]), state);
        assert_eq!((lines["Type"], lines["StateDirectoryMode"]), ("notify", "0700"));
        if file == "agentnet" {
            let socket = Path::new(DEFAULT_SOCKET);
            assert_eq!(Path::new("/run").join(lines["RuntimeDirectory"]), socket.parent().unwrap());
        }
    }
    assert!(read("src/cli/rendezvous.rs").contains("\"/var/lib/agentnet-rendezvous\""));
}

#[test]
fn the_units_give_no_right_that_is_not_always_needed() {
    for (file, rights) in [("agentnet", "CAP_NET_ADMIN"), ("agentnet-rendezvous", "")] {
        let text = read(&format!("packaging/systemd/{file}.service"));
        let given = |key: &str| text.lines().filter_map(|line| line.strip_prefix(key)).collect::<Vec<_>>().join(" ");
        assert_eq!(
            (given("CapabilityBoundingSet="), given("AmbientCapabilities=")),
            (rights.into(), rights.into()),
            "{file}"
        );
        assert!(text.contains("\nNoNewPrivileges=yes\n") && text.contains("User="), "{file}");
    }
}

#[test]
fn the_package_has_the_documents_that_people_need() {
    let manifest = read("Cargo.toml");
    for name in ["faq", "guide", "privileges", "protocol", "reference", "security"] {
        let asset = format!("[\"docs/{name}.md\", \"usr/share/doc/agentnet/\", \"644\"]");
        assert!(manifest.contains(&asset), "{name}");
    }
}

#[test]
fn every_description_has_this_version() {
    let version = env!("CARGO_PKG_VERSION");
    let changelog = read("packaging/deb/changelog");
    assert!(changelog.starts_with(&format!("agentnet ({version}) ")), "packaging/deb/changelog");
    let formula = read("packaging/homebrew/agentnet.rb");
    assert!(formula.contains(&format!("/agentnet-{version}.tar.gz\"")), "packaging/homebrew/agentnet.rb");
}
