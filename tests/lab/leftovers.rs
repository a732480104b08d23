//! A host is as it was after `down`, and after a crash once the agent was up and down again.

use crate::harness::{Agent, Lab, Pair, Snapshot, trust};

#[test]
fn down_leaves_nothing() {
    let lab = Lab::two_hosts();
    let before = Snapshot::of(lab.a());
    let Pair { a, b } = Pair::trusted(&lab);
    lab.a().wait_until_reaches(b.ipv6().into());
    assert!(Snapshot::of(lab.a()) != before, "a running agent changes nothing, so equality proves nothing");
    a.down();
    before.assert_same(&Snapshot::of(lab.a()), "after down");
    a.run(&["down"]).ok();
}

#[test]
fn a_crash_leaves_nothing_that_up_and_down_do_not_remove() {
    let lab = Lab::two_hosts();
    let before = Snapshot::of(lab.a());
    let Pair { mut a, b } = Pair::trusted(&lab);
    lab.a().wait_until_reaches(b.ipv6().into());
    a.kill9();
    a.up();
    lab.a().wait_until_reaches(b.ipv6().into());
    a.down();
    before.assert_same(&Snapshot::of(lab.a()), "after kill -9, up and down");
}

#[test]
fn a_second_agent_stays_as_it_is_when_the_first_goes() {
    let lab = Lab::two_hosts();
    let remains = Agent::started(lab.a());
    let far = Agent::started(lab.b());
    trust(&remains, &far);
    lab.a().wait_until_reaches(far.ipv6().into());
    let before = Snapshot::of(lab.a());
    let mut goes = Agent::started(lab.a());
    goes.kill9();
    goes.up();
    goes.down();
    before.assert_same(&Snapshot::of(lab.a()), "after another agent came and went");
    lab.a().wait_until_reaches(far.ipv6().into());
}
