//! The lab itself: what its other scenarios rely on holds without an agent.

use std::process::Command;

use crate::harness::{Capture, Lab, SOON, Snapshot, median, run, script, wait_for, wait_until};

#[test]
fn hosts_reach_each_other_and_nothing_else() {
    let lab = Lab::hosts(3);
    for address in [lab.b().ipv4.into(), lab.c().ipv6.into()] {
        lab.a().wait_until_reaches(address);
        assert_eq!(lab.a().ping(address, 3), 3);
    }
    assert!(!lab.a().run("ip route get 192.0.2.1").status.success(), "there is a way out of the lab");
}

#[test]
fn nothing_is_left_when_a_lab_is_dropped() {
    let lab = Lab::two_hosts();
    let name = lab.a().namespace().to_owned();
    let listed = || run(Command::new("ip").args(["netns", "list"]), SOON).ok();
    assert!(listed().contains(&name));
    // `Program` is leaked on purpose: the namespace must end what runs inside.
    std::mem::forget(lab.a().spawn("sleep 600"));
    drop(lab);
    assert!(!listed().contains(&name));
}

#[test]
fn a_capture_sees_what_passes_and_only_that() {
    let lab = Lab::two_hosts();
    let (a, b) = (lab.a(), lab.b());
    a.wait_until_reaches(b.ipv4.into());
    let capture = Capture::start(b, "eth0");
    assert_eq!(a.ping(b.ipv4.into(), 5), 5);
    capture.wait_for("icmp");
    wait_until("all are recorded", SOON, || capture.count("icmp[icmptype] == icmp-echo") == 5);
    let recording = capture.stop();
    assert_eq!(recording.count(&format!("icmp and src host {}", a.ipv4)), 5);
    recording.assert_none("udp port 9");
    assert!(recording.times("icmp").is_sorted());
}

#[test]
fn a_snapshot_tells_a_changed_host_from_an_unchanged_one() {
    let lab = Lab::two_hosts();
    let before = Snapshot::of(lab.a());
    lab.a().ok("ip link add extra type bridge");
    assert!(Snapshot::of(lab.a()) != before);
    lab.a().ok("ip link del extra");
    before.assert_same(&Snapshot::of(lab.a()), "after a link came and went");
    lab.a().ok("ip -6 rule add from fd00::1 lookup 77");
    assert!(Snapshot::of(lab.a()) != before);
}

#[test]
fn programs_speak_over_the_plain_link() {
    let lab = Lab::two_hosts();
    let (a, b) = (lab.a(), lab.b());
    a.wait_until_reaches(b.ipv6.into());
    let _echo = b.serve("udp_echo.py", &format!("{} 7000", b.ipv6));
    a.call("udp_call.py", &format!("{} 7000 1 1000 9000", b.ipv6)).ok();
    assert!(!a.call("udp_call.py", &format!("{} 7001 1", b.ipv6)).status.success(), "an echo from a closed port");
    let _grpc = b.serve("grpc_serve.py", &format!("{} 7002", b.ipv4));
    a.call("grpc_call.py", &format!("{} 7002", b.ipv4)).ok();
    assert_eq!(a.call("knock.py", &format!("{} 7000", b.ipv6)).ok().trim(), "30", "the echo answers every knock");
}

#[test]
fn forged_packets_leave_as_they_were_made() {
    let lab = Lab::hosts(3);
    let (a, b, c) = (lab.a(), lab.b(), lab.c());
    a.wait_until_reaches(b.ipv6.into());
    let capture = Capture::start(b, "eth0");
    a.call("forge.py", &format!("{} {} 10", c.ipv6, b.ipv6)).ok();
    a.call("forge.py", &format!("{} {} 10", c.ipv4, b.ipv4)).ok();
    wait_until("forged packets arrive", SOON, || {
        let count = |from| capture.count(&format!("udp dst port 4000 and src host {from}"));
        count(c.ipv6.to_string()) == 10 && count(c.ipv4.to_string()) == 10
    });
}

#[test]
fn waits_end() {
    let vain = std::panic::catch_unwind(|| wait_until("never", std::time::Duration::ZERO, || false));
    assert!(vain.is_err());
    assert_eq!(wait_for("a number", SOON, || Some(7)), 7);
    assert!(script("forge.py").exists());
    assert!((median(&[3.0, 1.0, 2.0]) - 2.0).abs() < f64::EPSILON);
}
