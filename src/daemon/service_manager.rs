//! What the service manager is told, in the words of sd_notify(3): readiness, that the work goes on, the end.
//!
//! Without one (`NOTIFY_SOCKET` is not set) nothing is said. Only path names are supported, which is what systemd and
//! container managers give; the abstract sockets of old systemd are not.

use std::env;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use crate::time::Time;

/// A watchdog interval is this many sign-of-life intervals long, so that one late sign ends nothing.
const SIGNS_PER_INTERVAL: u32 = 3;

/// How long the manager may take to make room for the word that the service is ready.
const READY_PATIENCE: Duration = Duration::from_secs(2);

/// The service manager, if there is one.
#[derive(Debug, Default)]
pub(super) struct ServiceManager {
    /// Connected from the start: what the process may open later does not matter then.
    socket: Option<UnixDatagram>,
    /// Time between two signs of life; `None` when nobody waits for them.
    interval: Option<Duration>,
    /// When the next one is due.
    due: Option<Time>,
}

impl ServiceManager {
    /// The one that started this process, by `NOTIFY_SOCKET`, `WATCHDOG_USEC` and `WATCHDOG_PID`.
    pub(super) fn from_environment() -> Self {
        let variable = |name| env::var(name).ok().filter(|value| !value.is_empty());
        let Some(path) = variable("NOTIFY_SOCKET") else { return Self::default() };
        let connected = UnixDatagram::unbound().and_then(|socket| {
            // A manager that does not read must not stop the work.
            socket.set_nonblocking(true)?;
            socket.set_write_timeout(Some(READY_PATIENCE))?;
            socket.connect(&path)?;
            Ok(socket)
        });
        match connected {
            Ok(socket) => {
                let watchdog = variable("WATCHDOG_USEC");
                let pid = variable("WATCHDOG_PID");
                let interval = interval(watchdog.as_deref(), pid.as_deref(), std::process::id());
                Self { socket: Some(socket), interval, due: None }
            }
            Err(error) => {
                tracing::warn!(%error, path, "the service manager cannot be told anything");
                Self::default()
            }
        }
    }

    /// Whoever waits for this service can go on. Signs of life begin.
    pub(super) fn ready(&mut self, now: Time, status: &str) {
        // Said once, and without it the manager would end the service: this is worth a wait.
        self.set_blocking(true);
        self.tell(&format!("READY=1\nSTATUS={status}\n"));
        self.set_blocking(false);
        self.due = self.interval.map(|interval| now + interval);
    }

    /// The end has begun.
    pub(super) fn stopping(&mut self) {
        self.tell("STOPPING=1\nSTATUS=stopping\n");
    }

    /// When [`Self::alive`] is to be called next.
    pub(super) fn due(&self) -> Option<Time> {
        self.due
    }

    /// Gives the sign of life if it is due. Called by whatever must go on, after each piece of work.
    pub(super) fn alive(&mut self, now: Time) {
        if let (Some(due), Some(interval)) = (self.due, self.interval)
            && due <= now
        {
            self.tell("WATCHDOG=1\n");
            self.due = Some(now + interval);
        }
    }

    fn set_blocking(&self, blocking: bool) {
        if let Some(socket) = &self.socket {
            let _ = socket.set_nonblocking(!blocking);
        }
    }

    fn tell(&self, words: &str) {
        if let Some(socket) = &self.socket
            && let Err(error) = socket.send(words.as_bytes())
        {
            tracing::debug!(%error, "the service manager did not hear");
        }
    }
}

/// Time between two signs of life, from what the manager put into the environment.
fn interval(watchdog_us: Option<&str>, watchdog_pid: Option<&str>, own_pid: u32) -> Option<Duration> {
    // A child of the process that is watched inherits the variables.
    if watchdog_pid.is_some_and(|pid| pid.parse() != Ok(own_pid)) {
        return None;
    }
    let us = watchdog_us?.parse::<u64>().ok().filter(|us| *us > 0)?;
    Some(Duration::from_micros(us) / SIGNS_PER_INTERVAL)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_process_that_is_watched_gives_signs() {
        assert_eq!(interval(Some("30000000"), Some("7"), 7), Some(Duration::from_secs(10)));
        assert_eq!(interval(Some("30000000"), None, 7), Some(Duration::from_secs(10)));
        assert_eq!(interval(Some("30000000"), Some("8"), 7), None);
        for nonsense in [None, Some(""), Some("0"), Some("-1"), Some("x")] {
            assert_eq!(interval(nonsense, None, 7), None, "{nonsense:?}");
        }
    }

    #[test]
    fn readiness_then_signs_of_life_then_the_end() {
        let (socket, manager) = UnixDatagram::pair().unwrap();
        manager.set_nonblocking(true).unwrap();
        let heard = || {
            let mut buffer = [0; 256];
            let length = manager.recv(&mut buffer).ok()?;
            Some(String::from_utf8(buffer[..length].to_vec()).unwrap())
        };
        let second = Duration::from_secs(1);
        let start = Time::from_origin(second);
        let mut service = ServiceManager { socket: Some(socket), interval: Some(second), due: None };
        service.alive(start + 10 * second);
        assert_eq!((heard(), service.due()), (None, None), "it said it lives before it was ready");
        service.ready(start, "there");
        assert_eq!(heard().as_deref(), Some("READY=1\nSTATUS=there\n"));
        service.alive(start + second / 2);
        assert_eq!((heard(), service.due()), (None, Some(start + second)));
        service.alive(start + second);
        assert_eq!(heard().as_deref(), Some("WATCHDOG=1\n"));
        assert_eq!(service.due(), Some(start + 2 * second));
        service.stopping();
        assert_eq!(heard().as_deref(), Some("STOPPING=1\nSTATUS=stopping\n"));
    }

    #[test]
    fn without_a_manager_nothing_is_due() {
        let mut service = ServiceManager::default();
        service.ready(Time::from_origin(Duration::ZERO), "there");
        assert_eq!(service.due(), None);
        service.alive(Time::from_origin(Duration::from_secs(100)));
        service.stopping();
    }
}
