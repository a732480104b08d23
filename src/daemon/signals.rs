//! The signals that end the agent, or have it read its configuration.

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::api::{Error, ErrorCode};

/// Listens to them from when it is made, so that is done before anything is taken from the host: the system would end the
/// process where it stands.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Signals {
    pub(super) fn new() -> Result<Self, Error> {
        let listen = |kind| {
            signal(kind).map_err(|error| {
                Error::new(ErrorCode::Internal, format!("signals cannot be handled: {error}"), "please report this")
            })
        };
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            hang_up: listen(SignalKind::hangup())?,
        })
    }

    /// Waits for the next one. Whether the agent is to end.
    pub(super) async fn received(&mut self) -> bool {
        tokio::select! {
            _ = self.terminate.recv() => true,
            _ = self.interrupt.recv() => true,
            _ = self.hang_up.recv() => false,
        }
    }

    /// Whether the agent is to end by what has come so far.
    pub(super) async fn told_to_stop(&mut self) -> bool {
        // The runtime learns of signals between two turns of the task.
        tokio::task::yield_now().await;
        tokio::select! {
            biased;
            stop = self.received() => stop,
            () = std::future::ready(()) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::signal::{Signal as Number, raise};

    use super::*;

    #[tokio::test]
    async fn what_came_before_it_was_asked_for_counts() {
        let mut signals = Signals::new().unwrap();
        assert!(!signals.told_to_stop().await);
        raise(Number::SIGHUP).unwrap();
        assert!(!signals.told_to_stop().await);
        raise(Number::SIGTERM).unwrap();
        assert!(signals.told_to_stop().await);
        raise(Number::SIGINT).unwrap();
        assert!(signals.received().await);
    }
}
