//! Any text is a configuration or a list of what is wrong with it.
#![no_main]

use std::path::Path;

use agentnet::config::{Config, parse_file};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &str| {
    if let Ok(settings) = parse_file(Path::new("/etc/agentnet/agentnet.toml"), input)
        && let Ok(config) = Config::from_settings(&settings)
    {
        assert!(!config.document().settings.is_empty());
    }
});
