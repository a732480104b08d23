//! What a process of ours is asked by signals.

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::api::{Error, ErrorCode};

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    /// SIGTERM, SIGINT.
    Stop,
    /// SIGHUP.
    Reload,
}

/// From when it is made on, these signals end nothing by themselves. That is done before anything is taken from the host:
/// the system would end the process where it stands.
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

    /// Waits for the next one.
    pub(super) async fn received(&mut self) -> Asked {
        tokio::select! {
            _ = self.terminate.recv() => Asked::Stop,
            _ = self.interrupt.recv() => Asked::Stop,
            _ = self.hang_up.recv() => Asked::Reload,
        }
    }

    /// Whether the agent is to end by what has come so far.
    pub(super) async fn told_to_stop(&mut self) -> bool {
        // The runtime learns of signals between two turns of the task.
        tokio::task::yield_now().await;
        tokio::select! {
            biased;
            asked = self.received() => asked == Asked::Stop,
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
        assert_eq!(signals.received().await, Asked::Stop);
    }
}
