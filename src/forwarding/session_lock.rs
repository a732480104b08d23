//! How the two directions share the sessions with a peer.
//!
//! A direction locks them for a run of packets. Without more, acknowledgements would wait until a train of data is sealed
//! or opened: longer than a lock waits before it puts the thread to sleep, which costs more than the sealing. So the one
//! that waits says so and stays awake for a moment, and the other one passes the lock on between two packets.

use std::hint;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};

use crate::tunnel::Tunnel;

/// Whether the lock is wanted is looked at after so many packets, whose sealing or opening takes some 6 us.
const PASSED_ON_AFTER: usize = 8;
/// How often a direction looks for the lock before it sleeps: for some 10 to 20 us, as one pause of the processor takes
/// 10 to 50 ns.
const PATIENCE: u32 = 400;
/// It sleeps for so long at most before it says again that it waits.
const NAP: Duration = Duration::from_millis(1);
/// How often the one that passed it on looks whether it was taken.
const COURTESY: u32 = 40;

/// The sessions with a peer.
#[derive(Debug)]
pub struct Sessions {
    tunnel: Mutex<Tunnel>,
    /// A packet thread waits for the lock.
    wanted: AtomicBool,
}

/// The sessions, for one direction and one run of packets.
pub(super) struct SessionLock<'a> {
    sessions: &'a Sessions,
    guard: Option<MutexGuard<'a, Tunnel>>,
    packets: usize,
}

impl Sessions {
    /// Those of this tunnel.
    #[must_use]
    pub fn new(tunnel: Tunnel) -> Self {
        Self { tunnel: Mutex::new(tunnel), wanted: AtomicBool::new(false) }
    }

    /// The sessions, for whoever needs them once.
    pub fn lock(&self) -> MutexGuard<'_, Tunnel> {
        self.tunnel.lock()
    }

    /// The sessions, for a run of packets. Nothing is locked yet.
    pub(super) fn for_run(&self) -> SessionLock<'_> {
        SessionLock { sessions: self, guard: None, packets: 0 }
    }

    fn lock_patiently(&self) -> MutexGuard<'_, Tunnel> {
        loop {
            for _ in 0..PATIENCE {
                if let Some(guard) = self.tunnel.try_lock() {
                    self.wanted.store(false, Ordering::Relaxed);
                    return guard;
                }
                self.wanted.store(true, Ordering::Relaxed);
                hint::spin_loop();
            }
            if let Some(guard) = self.tunnel.try_lock_for(NAP) {
                self.wanted.store(false, Ordering::Relaxed);
                return guard;
            }
        }
    }

    fn is_wanted(&self) -> bool {
        self.wanted.load(Ordering::Relaxed)
    }
}

impl SessionLock<'_> {
    /// The sessions, for one packet.
    pub(super) fn tunnel(&mut self) -> &mut Tunnel {
        self.packets += 1;
        if self.packets.is_multiple_of(PASSED_ON_AFTER) && self.sessions.is_wanted() {
            self.pass_on();
        }
        self.guard.get_or_insert_with(|| self.sessions.lock_patiently())
    }

    fn pass_on(&mut self) {
        self.guard = None;
        for _ in 0..COURTESY {
            if !self.sessions.is_wanted() {
                return;
            }
            hint::spin_loop();
        }
        // Whoever wanted it fell asleep, and will be woken like anybody who waits for a lock.
        self.sessions.wanted.store(false, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::thread;

    use super::*;
    use crate::identity::TunnelSecret;
    use crate::identity::test_rng::TestRng;
    use crate::time::Time;
    use crate::tunnel::TunnelIndex;

    fn sessions() -> Sessions {
        let mut rng = TestRng::new(1);
        let (own, peer) = (TunnelSecret::generate(&mut rng), TunnelSecret::generate(&mut rng));
        Sessions::new(Tunnel::new(&own, &peer.public(), TunnelIndex::of_receiver(256), Time::ZERO, None))
    }

    #[test]
    fn a_run_locks_once_and_frees_at_its_end() {
        let sessions = sessions();
        let mut run = sessions.for_run();
        assert!(!sessions.tunnel.is_locked());
        for _ in 0..100 {
            run.tunnel();
            assert!(sessions.tunnel.is_locked());
        }
        drop(run);
        assert!(!sessions.tunnel.is_locked());
    }

    #[test]
    fn nobody_waits_for_who_fell_asleep() {
        let sessions = sessions();
        let mut run = sessions.for_run();
        run.tunnel();
        sessions.wanted.store(true, Ordering::Relaxed);
        for _ in 0..PASSED_ON_AFTER {
            run.tunnel();
        }
        assert!(!sessions.is_wanted() && sessions.tunnel.is_locked());
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "two threads are what is tested")]
    fn a_long_run_lets_the_other_direction_in() {
        let sessions = Arc::new(sessions());
        let mut run = sessions.for_run();
        run.tunnel();
        let other = {
            let sessions = Arc::clone(&sessions);
            thread::spawn(move || {
                sessions.for_run().tunnel();
            })
        };
        // It would not end if the lock were never passed on.
        while !other.is_finished() {
            run.tunnel();
            thread::yield_now();
        }
        other.join().unwrap();
    }
}
