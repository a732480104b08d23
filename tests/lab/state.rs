//! State survives a crash at any moment: what was acknowledged is there, and peers come back by themselves.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::harness::{Agent, Lab, Pair, observe, setting, unix_seconds};

const CRASHES: u32 = 20;
/// Agents that trust is given to and taken from meanwhile.
const OTHERS: usize = 4;
/// A crash comes at a random moment before this has passed.
const LONGEST_RUN_MS: u64 = 400;

#[test]
fn trust_survives_crashes_while_it_changes() {
    let seed = setting("AGENTNET_LAB_SEED", unix_seconds().to_bits());
    eprintln!("AGENTNET_LAB_SEED={seed}");
    let mut random = Random(seed | 1);
    let lab = Lab::two_hosts();
    let Pair { mut a, b } = Pair::trusted(&lab);
    let others: Vec<Other> = (0..OTHERS).map(|_| Other::met_on(&lab)).collect();
    let before = (a.id(), a.port(), a.ipv4(), a.ipv6(), a.alias_of(&b));
    let mut expected = Given::new();
    let mut changes = Changes { next: 0, acknowledged: 0 };
    for crash in 0..CRASHES {
        let moment = Duration::from_millis(random.below(LONGEST_RUN_MS));
        let in_flight = change_until_crash(&a, &others, &mut changes, &mut expected, moment);
        a.up();
        let after = (a.id(), a.port(), a.ipv4(), a.ipv6(), a.alias_of(&b));
        assert_eq!(before, after, "id, port or addresses changed in crash {crash}");
        assert_eq!(a.trust_state(&b.id()), "trusted", "crash {crash}");
        let found = given(&a, &others);
        let with_in_flight = in_flight.apply(&expected);
        assert!(
            found == expected || found == with_in_flight,
            "crash {crash} after {moment:?}: found {found:?}, acknowledged {expected:?}, in flight {in_flight:?}"
        );
        expected = found;
        lab.a().wait_until_reaches(b.ipv6().into());
    }
    eprintln!("{CRASHES} crashes, {} changes acknowledged", changes.acknowledged);
    assert!(changes.acknowledged > u64::from(CRASHES), "too few changes for the crashes to meet one");
}

#[test]
fn trusted_peers_come_back_by_themselves() {
    let lab = Lab::two_hosts();
    let Pair { mut a, mut b } = Pair::trusted(&lab);
    lab.a().wait_until_reaches(b.ipv6().into());
    let before = (a.port(), a.ipv4(), b.port(), b.ipv4());
    a.kill9();
    b.down();
    a.up();
    b.up();
    assert_eq!(before, (a.port(), a.ipv4(), b.port(), b.ipv4()));
    for address in a.addresses_of(&b) {
        lab.a().wait_until_reaches(address);
    }
}

/// For every other agent, whether this side's yes stands.
type Given = BTreeMap<usize, bool>;

/// An agent that was up once, so that there is a ticket of it.
struct Other {
    id: String,
    ticket: String,
}

impl Other {
    fn met_on(lab: &Lab) -> Self {
        let agent = Agent::started(lab.b());
        let other = Self { id: agent.id(), ticket: agent.ticket() };
        agent.down();
        other
    }
}

/// Gives trust to every other in turn, then takes it back from every other in turn, and so on.
struct Changes {
    next: usize,
    acknowledged: u64,
}

impl Changes {
    fn next(&self) -> Change {
        Change { other: self.next % OTHERS, yes: (self.next / OTHERS).is_multiple_of(2) }
    }
}

#[derive(Debug, Clone, Copy)]
struct Change {
    other: usize,
    yes: bool,
}

impl Change {
    fn apply(self, given: &Given) -> Given {
        let mut given = given.clone();
        given.insert(self.other, self.yes);
        given
    }
}

/// Makes changes until `moment` has passed and the daemon is killed; returns the change that got no answer.
fn change_until_crash(
    agent: &Agent<'_>,
    others: &[Other],
    changes: &mut Changes,
    expected: &mut Given,
    moment: Duration,
) -> Change {
    for other in 0..others.len() {
        expected.entry(other).or_insert(false);
    }
    let killed = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            observe(moment);
            killed.store(true, Ordering::SeqCst);
            agent.kill9();
        });
        loop {
            let change = changes.next();
            let other = &others[change.other];
            let finished = if change.yes {
                agent.run(&["trust", "request", &other.ticket])
            } else {
                agent.run(&["trust", "revoke", &other.id])
            };
            if !finished.status.success() {
                assert!(killed.load(Ordering::SeqCst), "failed before the crash: {finished}");
                return change;
            }
            *expected = change.apply(expected);
            changes.next += 1;
            changes.acknowledged += 1;
        }
    })
}

fn given(agent: &Agent<'_>, others: &[Other]) -> Given {
    let is_given = |other: &Other| matches!(agent.trust_state(&other.id).as_str(), "requested" | "trusted");
    others.iter().map(is_given).enumerate().collect()
}

/// Marsaglia's xorshift64: enough to choose moments, and replayed by its seed.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}
