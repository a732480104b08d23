//! Requests that take their time. Above all, the configuration is read again: what can change while the agent runs changes,
//! the rest is named.

use agentnet_platform::network::Network;

use super::{EventLoop, to_value};
use crate::api::{Diagnostics, Error, ErrorCode, Reloaded};
use crate::config::{Config, Key};
use crate::daemon::control_socket::{Ask, Request};
use crate::daemon::diagnostics::document;
use crate::daemon::now;

/// What changes without a restart.
const LIVE: &[Key] = &[Key::Name, Key::Rendezvous, Key::LogLevel];

impl EventLoop {
    pub(super) async fn answer_with_time(&mut self, request: Request, network: &Network) {
        let result = match request.ask {
            Ask::Diagnostics => self.diagnostics(network).await.and_then(|document| to_value(&document)),
            _ => self.reload().and_then(|document| to_value(&document)),
        };
        // The caller may have gone.
        let _ = request.answer.send(result);
    }

    async fn diagnostics(&self, network: &Network) -> Result<Diagnostics, Error> {
        let layout = network.layout().await;
        let layout = layout.map_err(|error| Error::new(ErrorCode::Internal, error.to_string(), "try again"))?;
        Ok(Diagnostics { log: self.own.surroundings.log.last_lines(), network: document(&layout) })
    }

    /// Reads the configuration as at the start, from the same flags, environment and file, and applies it.
    ///
    /// # Errors
    /// The configuration is not valid. Nothing has changed then.
    pub(super) fn reload(&mut self) -> Result<Reloaded, Error> {
        let result = match (self.own.surroundings.load)() {
            Ok(config) => self.apply(config),
            Err(error) => Err(error),
        };
        match &result {
            Ok(Reloaded { applied, needs_restart }) => {
                tracing::info!(?applied, ?needs_restart, "the configuration was read again");
            }
            Err(error) => tracing::error!(%error, "the configuration was read again and is not used"),
        }
        result
    }

    fn apply(&mut self, new: Config) -> Result<Reloaded, Error> {
        let changed = changed(&self.own.config, &new);
        let (live, rest): (Vec<Key>, Vec<Key>) = changed.into_iter().partition(|key| LIVE.contains(key));
        // What can be refused comes first; the level was looked at with the rest of the configuration.
        self.node
            .reconfigure(now(), new.name.value.clone(), new.rendezvous.value.clone())
            .map_err(|error| Error::new(ErrorCode::ConfigInvalid, error.to_string(), "shorten the name"))?;
        if live.contains(&Key::LogLevel) {
            self.own.surroundings.log.set_level(&new.log_level.value)?;
        }
        self.drain();
        let config = &mut self.own.config;
        (config.name, config.rendezvous) = (new.name, new.rendezvous);
        config.log_level = new.log_level;
        let names = |keys: Vec<Key>| keys.into_iter().map(|key| key.name().to_owned()).collect();
        Ok(Reloaded { applied: names(live), needs_restart: names(rest) })
    }
}

/// The settings whose values differ.
fn changed(old: &Config, new: &Config) -> Vec<Key> {
    Key::ALL.iter().copied().filter(|key| old.value_text(*key) != new.value_text(*key)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Origin, Settings};

    #[test]
    fn settings_that_differ_are_found_wherever_they_come_from() {
        let config = |given: &[(Key, &str)], origin: Origin| {
            let mut settings = Settings::default();
            given.iter().for_each(|(key, value)| settings.set(*key, vec![(*value).to_owned()], origin.clone()));
            Config::from_settings(&settings).unwrap()
        };
        let flag = |given: &[(Key, &str)]| config(given, Origin::Flag("--x"));
        let one = flag(&[(Key::Name, "one"), (Key::Port, "7")]);
        assert_eq!(changed(&one, &config(&[(Key::Name, "one"), (Key::Port, "7")], Origin::Environment("X"))), []);
        assert_eq!(
            changed(&one, &flag(&[(Key::Name, "two"), (Key::Port, "7"), (Key::Mtu, "1300")])),
            [Key::Name, Key::Mtu]
        );
        assert_eq!(changed(&one, &flag(&[(Key::Name, "one")])), [Key::Port]);
    }
}
