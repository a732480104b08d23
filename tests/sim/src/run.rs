//! How time passes.
//!
//! 1. The clock moves to the next event: a packet somewhere on its way, a machine's timer, or the end asked for.
//! 2. What reaches hosts at this instant is handed to their machines.
//! 3. Machines with something to do, or with a timer that is due, run and send. 2 and 3 repeat until nothing is left to
//!    do at this instant.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use agentnet::time::{Now, Time};
use agentnet_platform::fake::set_wall_clock;
use mock_instant::MockClock;

use crate::net::{Delivery, HostId};
use crate::{Machine, World};

/// 2026-01-01, so that records have a plausible life.
const UNIX_START: Duration = Duration::from_secs(1_767_225_600);
/// How often everybody may run at one instant before a test is told that it never ends.
const SETTLE_LIMIT: usize = 10_000;

impl World {
    /// The time, as machines are told it.
    pub fn now(&self) -> Now {
        let unix_ms = u64::try_from(self.wall_clock().as_millis()).expect("a run of fewer than half a billion years");
        Now { time: Time::from_origin(self.elapsed), unix_ms }
    }

    /// The time on an agent's host, whose wall clock may be wrong.
    pub fn now_on(&self, host: usize) -> Now {
        self.now_at(self.hosts[host].at())
    }

    /// From now on the wall clock of an agent's host is so many seconds ahead of the others', or behind if negative.
    pub fn set_clock(&mut self, host: usize, ahead_s: i64) {
        self.clocks.insert(self.hosts[host].at(), ahead_s);
    }

    /// The same for a server's host.
    pub fn set_server_clock(&mut self, server: usize, ahead_s: i64) {
        self.clocks.insert(self.servers[server].at(), ahead_s);
    }

    /// The time on a host, which what runs there from now on is told by the session library's clocks as well.
    pub(crate) fn now_at(&self, host: HostId) -> Now {
        let ahead_s = self.clocks.get(&host).copied().unwrap_or(0);
        let seconds = Duration::from_secs(ahead_s.unsigned_abs());
        let wall_clock = match ahead_s {
            0.. => self.wall_clock() + seconds,
            _ => self.wall_clock().saturating_sub(seconds),
        };
        set_wall_clock(Some(wall_clock));
        let unix_ms = u64::try_from(wall_clock.as_millis()).expect("a run of fewer than half a billion years");
        Now { unix_ms, ..self.now() }
    }

    /// Time since the beginning, the time of [`World::net`].
    pub fn elapsed(&self) -> Duration {
        self.elapsed
    }

    /// When, from where, to whom and how long everything was that reached a host, as one number. Two runs of one test
    /// with the same seed agree in it.
    pub fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    /// Lets everything happen that happens at this instant. Returns how often a timer woke a control plane up. To be
    /// called after something was done to a host's node directly.
    pub fn settle(&mut self) -> usize {
        for id in self.machines.keys() {
            self.schedule.wake(*id);
        }
        self.run_instant()
    }

    /// Lets time pass. Returns how often a timer woke a control plane up.
    pub fn advance(&mut self, duration: Duration) -> usize {
        let (end, mut wakeups) = (self.elapsed + duration, self.settle());
        while self.elapsed < end {
            wakeups += self.next_instant(end);
        }
        wakeups
    }

    /// Lets time pass until `is_done`, which is asked after every instant at which something happened. Returns how long
    /// it took, or nothing if it took longer than `limit`.
    pub fn advance_until(&mut self, limit: Duration, mut is_done: impl FnMut(&mut Self) -> bool) -> Option<Duration> {
        let start = self.elapsed;
        self.settle();
        loop {
            if is_done(self) {
                return Some(self.elapsed - start);
            }
            if self.elapsed >= start + limit {
                return None;
            }
            self.next_instant(start + limit);
        }
    }

    /// Lets time pass until something happens, or until `end`.
    pub fn advance_to_next(&mut self, end: Duration) {
        self.settle();
        self.next_instant(end);
    }

    /// The clocks that the session library reads itself are put to this world's time: the monotonic one for its timers,
    /// the wall clock for the time stamps in handshakes, of which a peer takes none that is older than the last.
    pub(crate) fn set_clocks(&self) {
        MockClock::set_time(self.elapsed);
        set_wall_clock(Some(self.wall_clock()));
    }

    /// Since 1970.
    fn wall_clock(&self) -> Duration {
        UNIX_START + self.elapsed
    }

    fn next_instant(&mut self, end: Duration) -> usize {
        let timer = self.schedule.next_timer().map(Time::since_origin);
        let next = timer.into_iter().chain(self.net.next_event()).chain([end]).min().unwrap_or(end).max(self.elapsed);
        self.elapsed = next;
        self.set_clocks();
        self.run_instant()
    }

    fn run_instant(&mut self) -> usize {
        let mut wakeups = 0;
        for _ in 0..SETTLE_LIMIT {
            for delivery in self.net.deliver_until(self.elapsed) {
                self.deliver(self.now_at(delivery.host), &delivery);
            }
            let ready = self.schedule.take_ready(self.now().time);
            if ready.is_empty() {
                self.set_clocks();
                return wakeups;
            }
            wakeups += ready.into_iter().map(|id| self.run_machine(self.now_at(id), id)).sum::<usize>();
        }
        panic!("the hosts never stop talking");
    }

    fn deliver(&mut self, now: Now, delivery: &Delivery) {
        let mut hasher = DefaultHasher::new();
        let Delivery { at, host, source, destination, bytes } = delivery;
        (self.fingerprint, at, host, source, destination, bytes.len()).hash(&mut hasher);
        self.fingerprint = hasher.finish();
        match self.machines.get(host) {
            Some(Machine::Agent(number)) => self.hosts[*number].datagram_arrived(delivery),
            Some(Machine::Server(number)) => self.servers[*number].datagram_arrived(now, delivery),
            None => {
                self.inboxes.entry(*host).and_modify(|inbox| inbox.push(delivery.clone()));
                return;
            }
        }
        self.schedule.wake(*host);
    }

    fn run_machine(&mut self, now: Now, id: HostId) -> usize {
        let Some(machine) = self.machines.get(&id).copied() else { return 0 };
        let (wakeups, next) = match machine {
            Machine::Agent(number) => {
                let host = &mut self.hosts[number];
                let wakeups = host.run(now, &mut self.net, &mut self.buffers);
                self.look_up_names(now, number);
                (wakeups, self.hosts[number].next_timer())
            }
            Machine::Server(number) => {
                let server = &mut self.servers[number];
                server.run(now, &mut self.net);
                (0, server.next_timer())
            }
        };
        self.schedule.arm(id, next);
        wakeups
    }

    /// Resolvers answer at once, but not a host without links.
    fn look_up_names(&mut self, now: Now, number: usize) {
        let host = &mut self.hosts[number];
        for (id, name) in host.take_names() {
            let is_connected = !self.net.addresses(host.at()).is_empty();
            let known = self.servers.iter().filter(|_| is_connected).find_map(|server| server.resolve(&name));
            host.resolved(now, id, known.unwrap_or_default().to_vec());
            self.schedule.wake(host.at());
        }
    }
}
