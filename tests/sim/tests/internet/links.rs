//! Delays, faults, limits, and that a run can be replayed.

use std::net::SocketAddr;
use std::time::Duration;

use agentnet_sim::net::{
    Attachment, Delivery, Direction, DropReason, LinkConfig, Loss, NatConfig, NatKind, Replay, Segment, SendError,
    SimRng, SiteOptions,
};

use super::{Lab, MS, PORT, SECOND, access, lab};

#[test]
fn delays_add_up_and_may_differ_by_direction() {
    let mut lab = lab();
    let (site, host) = lab.at(&SiteOptions::new(NatKind::Double, access()));
    let outermost = Attachment::Box(site.boxes[0]);
    lab.net.link_mut(outermost, Direction::Up).config.delay = MS * 70;
    let out = lab.carry(host, PORT, lab.server(0, 1)).unwrap();
    assert_eq!(out.at, MS * 80);
    let back = lab.carry(lab.servers[0], 1, out.source).unwrap();
    assert_eq!(back.at - out.at, MS * 20);

    let interface = Attachment::Interface(lab.net.interfaces(host)[0]);
    lab.net.link_mut(interface, Direction::Up).config.delay = MS * 5;
    let start = lab.now;
    assert_eq!(lab.carry(host, PORT, lab.server(0, 1)).unwrap().at - start, MS * 85);
    lab.net.link_mut(interface, Direction::Down).config.delay = MS * 7;
    let start = lab.now;
    assert_eq!(lab.carry(lab.servers[0], 1, out.source).unwrap().at - start, MS * 27);
}

#[test]
fn one_path_can_fail_alone_and_one_way() {
    let mut lab = lab();
    let (_, a) = lab.behind(NatConfig::full_cone());
    let (_, b) = lab.behind(NatConfig::full_cone());
    let server = lab.server(0, 1);
    let (seen_a, seen_b) = (lab.seen(a, PORT, server), lab.seen(b, PORT, server));
    assert!(lab.lets_in(a, PORT, seen_b) && lab.lets_in(b, PORT, seen_a));

    lab.net.path_mut(seen_a.ip(), seen_b.ip()).config.blackhole = true;
    assert!(!lab.lets_in(a, PORT, seen_b));
    assert!(lab.lets_in(b, PORT, seen_a), "the other way");
    assert!(lab.lets_in(a, PORT, server), "another path of the same host");
    let path = lab.net.path_mut(seen_a.ip(), seen_b.ip());
    assert_eq!(path.counters().drops.of(DropReason::Blackhole), 1);
    path.config = LinkConfig { drop_above: Some(1_000), ..LinkConfig::default() };
    let mut passes = |payload: usize| {
        lab.net.send(lab.now, a, PORT, None, seen_b, vec![0; payload]).unwrap();
        !lab.settle().is_empty()
    };
    assert_eq!([972, 973].map(&mut passes), [true, false], "28 bytes of headers count");
}

#[test]
fn the_mtu_counts_headers_of_either_family() {
    let mut lab = lab();
    let options = SiteOptions { has_v6: true, ..SiteOptions::new(NatKind::FullCone, access()) };
    let (_, host) = lab.at(&options);
    for to in lab.net.addresses(lab.servers[0]) {
        let headers = if to.is_ipv4() { 28 } else { 48 };
        for (size, passes) in [(1_500 - headers, true), (1_501 - headers, false)] {
            lab.net.send(lab.now, host, PORT, None, SocketAddr::new(to, 1), vec![7; size]).unwrap();
            let arrived = lab.settle();
            assert_eq!(arrived.len(), usize::from(passes), "{size} bytes to {to}");
            assert!(arrived.iter().all(|delivery| delivery.bytes == vec![7; size]));
        }
    }
    assert_eq!(lab.net.drops().of(DropReason::TooBig), 2);
    let huge = lab.net.send(lab.now, host, PORT, None, lab.server(0, 1), vec![0; 65_508]);
    assert_eq!(huge, Err(SendError::TooBig));
}

#[test]
fn what_is_under_way_is_bounded_and_the_rest_counted() {
    let mut lab = lab();
    let to = lab.server(1, 1);
    for _ in 0..(1 << 18) + 5 {
        lab.send(lab.servers[0], 1, to);
    }
    assert_eq!((lab.net.in_flight(), lab.net.drops().of(DropReason::InFlightLimit)), (1 << 18, 5));
    assert_eq!(lab.settle().len(), 1 << 18);
}

#[test]
#[should_panic(expected = "time goes back")]
fn time_does_not_go_back() {
    let mut lab = lab();
    lab.net.deliver_until(SECOND);
    lab.net.deliver_until(Duration::ZERO);
}

#[test]
#[should_panic(expected = "two holders")]
fn an_address_has_one_holder() {
    let mut lab = lab();
    let taken = lab.net.addresses(lab.servers[0]);
    let host = lab.net.add_host();
    lab.net.add_interface(host, Segment::Core, &taken, LinkConfig::default());
}

/// Everybody talks to everybody over bad links, NATs reboot, hosts move. Every packet is accounted for.
fn storm(rng: SimRng) -> Vec<Delivery> {
    let mut draw = rng.clone();
    let mut lab = Lab::new(rng);
    let bad = LinkConfig {
        jitter: MS * 30,
        loss: Loss::Burst { enter: 0.05, leave: 0.5 },
        reorder: 0.1,
        reorder_delay: MS * 15,
        ..access()
    };
    let sites = NatKind::ALL.map(|kind| lab.net.add_site(&SiteOptions::new(kind, bad.clone())));
    let hosts: Vec<_> = sites.iter().flat_map(|site| [site; 3]).map(|site| lab.net.add_host_at(site)).collect();
    let mut known = vec![lab.server(0, 1), lab.server(1, 1)];
    let (mut trace, mut sent) = (Vec::new(), 0);
    for round in 0..4_000u64 {
        let host = hosts[draw.below(hosts.len() as u64) as usize];
        let to = known[draw.below(known.len() as u64) as usize];
        lab.net.send(lab.now, host, 1 + draw.below(3) as u16, None, to, vec![0; 50]).unwrap();
        sent += 1;
        lab.now += draw.duration(MS * 20);
        let arrived = lab.net.deliver_until(lab.now);
        known.extend(arrived.iter().map(|delivery| delivery.source));
        known.drain(..known.len().saturating_sub(50));
        trace.extend(arrived);
        let site = &sites[draw.below(7) as usize];
        match site.boxes.first() {
            Some(id) if round % 100 == 0 => lab.net.reboot(*id, None),
            _ if round % 150 == 0 => lab.net.move_to(lab.net.interfaces(host)[0], site),
            _ => {}
        }
    }
    trace.extend(lab.settle());
    assert_eq!(sent, trace.len() as u64 + lab.net.drops().total(), "a packet is neither delivered nor dropped");
    assert!(trace.len() > 400, "only {} arrived", trace.len());
    trace
}

#[test]
fn the_same_seed_is_the_same_run() {
    let replay = Replay::seed_or(11);
    let trace = storm(replay.rng());
    assert!(trace.is_sorted_by_key(|delivery| delivery.at));
    assert!(trace == storm(replay.rng()), "two runs differ");
    assert!(trace != storm(SimRng::from_seed(replay.seed() + 1)), "the seed changes nothing");
}
