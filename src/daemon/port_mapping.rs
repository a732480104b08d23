//! Asks the default gateway to let others in.
//!
//! 1. The event loop says which gateway there is, and when the network may have changed.
//! 2. A task beside it asks that gateway, and nobody else, for the agent's UDP port (`gateway`).
//! 3. What came of it goes back to the event loop. A mapping is asked for again at half its life.
//! 4. A gateway that gives none is asked again after ever longer times, and when the network changes.
//! 5. At the end the mapping is given back.

mod gateway;

use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroU16;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use self::gateway::{AskError, LIFETIME, Mapping, ask};
use crate::api::{PortMappingCheck, PortMappingState};

/// After so many failures in a row, the wait before the next attempt; the last one repeats.
const RETRIES: [Duration; 6] = [
    Duration::from_secs(10),
    Duration::from_secs(60),
    Duration::from_secs(5 * 60),
    Duration::from_secs(30 * 60),
    Duration::from_secs(2 * 3600),
    Duration::from_secs(6 * 3600),
];
/// The least time between two attempts at the same gateway: links of containers come and go all day.
const SPACING: Duration = Duration::from_secs(60);
/// The same when the gateway is another one.
const SPACING_AFTER_MOVE: Duration = Duration::from_secs(5);
/// How long the end of the agent may wait for the gateway.
const GIVE_BACK: Duration = Duration::from_secs(2);

/// Asks until it is stopped.
pub(super) struct PortMapper {
    surroundings: watch::Sender<Surroundings>,
    task: JoinHandle<()>,
}

/// What the task goes by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Surroundings {
    gateway: Option<Ipv4Addr>,
    /// How often something may have changed although the gateway did not.
    disturbances: u64,
}

impl PortMapper {
    /// Asks for UDP packets to `port` from now on.
    pub(super) fn start(port: NonZeroU16, gateway: Option<Ipv4Addr>) -> (Self, watch::Receiver<PortMappingCheck>) {
        let (surroundings, changes) = watch::channel(Surroundings { gateway, disturbances: 0 });
        let (found, result) = watch::channel(nothing_yet(gateway));
        let task = Task { port, changes, found, held: None, schedule: Schedule::new(Instant::now()) };
        (Self { surroundings, task: tokio::spawn(task.run()) }, result)
    }

    /// The network may have changed; `disturbed` if more than addresses of this host did.
    pub(super) fn network_changed(&self, gateway: Option<Ipv4Addr>, disturbed: bool) {
        self.surroundings.send_if_modified(|now| {
            let before = *now;
            now.gateway = gateway;
            now.disturbances += u64::from(disturbed);
            *now != before
        });
    }

    /// The host was asleep, perhaps for longer than a mapping lives.
    pub(super) fn woke_up(&self) {
        self.surroundings.send_modify(|now| now.disturbances += 1);
    }

    /// Gives the mapping back.
    pub(super) async fn stop(self) {
        let Self { surroundings, mut task } = self;
        drop(surroundings);
        if tokio::time::timeout(GIVE_BACK, &mut task).await.is_err() {
            tracing::debug!("the gateway did not take the port mapping back in time");
            task.abort();
        }
    }
}

/// What is told where nobody is asked.
pub(super) fn switched_off() -> watch::Receiver<PortMappingCheck> {
    watch::channel(PortMappingCheck::default()).1
}

fn nothing_yet(gateway: Option<Ipv4Addr>) -> PortMappingCheck {
    let state = if gateway.is_some() { PortMappingState::Asking } else { PortMappingState::NoGateway };
    PortMappingCheck { state, gateway: gateway.map(Into::into), ..PortMappingCheck::default() }
}

struct Task {
    port: NonZeroU16,
    changes: watch::Receiver<Surroundings>,
    found: watch::Sender<PortMappingCheck>,
    held: Option<Held>,
    schedule: Schedule,
}

/// A mapping, and when the gateway forgets it.
struct Held {
    mapping: Mapping,
    until: Instant,
}

impl Task {
    async fn run(mut self) {
        let mut last = *self.changes.borrow_and_update();
        if last.gateway.is_none() {
            self.schedule.stop();
        }
        loop {
            tokio::select! {
                // An attempt that has begun is brought to its end: half of it may be a mapping that nobody knows of.
                () = at(self.schedule.due) => self.attempt(last.gateway).await,
                changed = self.changes.changed() => {
                    if changed.is_err() {
                        break;
                    }
                    let surroundings = *self.changes.borrow_and_update();
                    self.surroundings_changed(last.gateway, surroundings.gateway);
                    last = surroundings;
                }
            }
        }
        if let Some(held) = self.held {
            held.mapping.give_back().await;
        }
    }

    fn surroundings_changed(&mut self, before: Option<Ipv4Addr>, gateway: Option<Ipv4Addr>) {
        let now = Instant::now();
        if before != gateway {
            // It is not given back: its gateway is out of reach, and another one may have the address.
            self.held = None;
            self.found.send_replace(nothing_yet(gateway));
        }
        match gateway {
            None => self.schedule.stop(),
            Some(_) => self.schedule.network_changed(now, before != gateway),
        }
    }

    async fn attempt(&mut self, gateway: Option<Ipv4Addr>) {
        let Some(gateway) = gateway else { return self.schedule.stop() };
        self.schedule.begun(Instant::now());
        let result = match &self.held {
            Some(held) => held.mapping.renewed().await,
            None => ask(gateway, self.port).await,
        };
        let now = Instant::now();
        match result {
            Ok(mapping) => self.succeeded(now, mapping),
            Err(error) => self.failed(now, gateway, &error),
        }
    }

    fn succeeded(&mut self, now: Instant, mapping: Mapping) {
        let report = PortMappingCheck {
            state: PortMappingState::Mapped,
            gateway: Some(mapping.gateway().into()),
            protocol: Some(mapping.protocol()),
            address: Some(mapping.external),
            reason: None,
        };
        self.tell(report);
        // Gateways that promise more than they were asked for are not believed.
        let lifetime = mapping.lifetime.min(LIFETIME);
        self.schedule.succeeded(now, lifetime);
        self.held = Some(Held { mapping, until: now + lifetime });
    }

    fn failed(&mut self, now: Instant, gateway: Ipv4Addr, error: &AskError) {
        tracing::debug!(%gateway, %error, "no port mapping");
        self.held = self.held.take().filter(|held| now < held.until);
        self.schedule.failed(now, self.held.as_ref().map(|held| held.until));
        let mut report = match &self.held {
            Some(_) => self.found.borrow().clone(),
            None => PortMappingCheck { state: PortMappingState::None, ..nothing_yet(Some(gateway)) },
        };
        report.reason = Some(error.to_string());
        self.tell(report);
    }

    fn tell(&self, report: PortMappingCheck) {
        let address = |report: &PortMappingCheck| -> Option<SocketAddr> { report.address };
        let before = address(&self.found.borrow());
        if before != report.address {
            match report.address {
                Some(_) => tracing::info!(protocol = ?report.protocol, "the gateway lets others in"),
                None => tracing::info!("the gateway does not let others in any more"),
            }
            tracing::debug!(address = ?report.address, "port mapping");
        }
        self.found.send_if_modified(|current| {
            let is_new = *current != report;
            *current = report;
            is_new
        });
    }
}

/// When the gateway is asked.
#[derive(Debug)]
struct Schedule {
    /// The next attempt.
    due: Option<Instant>,
    /// When the last one began.
    begun: Option<Instant>,
    /// In a row.
    failures: usize,
}

impl Schedule {
    /// At once.
    fn new(now: Instant) -> Self {
        Self { due: Some(now), begun: None, failures: 0 }
    }

    /// There is nobody to ask.
    fn stop(&mut self) {
        self.due = None;
    }

    /// Something has changed; `moved` if the gateway has.
    fn network_changed(&mut self, now: Instant, moved: bool) {
        let spacing = if moved { SPACING_AFTER_MOVE } else { SPACING };
        let soonest = self.begun.map_or(now, |begun| (begun + spacing).max(now));
        if moved {
            self.failures = 0;
            self.due = Some(soonest);
        } else {
            self.due = Some(self.due.map_or(soonest, |due| due.min(soonest)));
        }
    }

    fn begun(&mut self, now: Instant) {
        self.begun = Some(now);
    }

    /// There is a mapping for so long.
    fn succeeded(&mut self, now: Instant, lifetime: Duration) {
        self.failures = 0;
        self.due = Some(now + (lifetime / 2).max(SPACING));
    }

    /// There is none, or the one there is ends at `until`.
    fn failed(&mut self, now: Instant, until: Option<Instant>) {
        let wait = RETRIES.get(self.failures).or(RETRIES.last()).copied().unwrap_or(SPACING);
        self.failures = self.failures.saturating_add(1);
        let next = now + wait;
        self.due = Some(until.map_or(next, |until| next.min(until.max(now + SPACING))));
    }
}

async fn at(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
