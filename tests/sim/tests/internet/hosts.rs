//! Hosts whose interfaces come, go and move.

use std::net::IpAddr;

use agentnet_sim::net::{DropReason, NatConfig, NatKind, Segment, SendError, Site, SiteOptions};

use super::{Lab, MS, PORT, access, endpoint, lab};

#[test]
fn interfaces_come_and_go() {
    let mut lab = lab();
    let (wifi, host) = lab.behind(NatConfig::full_cone());
    let options = SiteOptions::new(NatKind::SymmetricRandom, access());
    let lte = lab.net.add_site(&options);
    let [first, second] = [lab.net.interfaces(host)[0], lab.net.add_interface_at(host, &lte)];
    let server = lab.server(0, 1);
    let external = |lab: &Lab, site: &Site| IpAddr::V4(lab.net.external(site.boxes[0]).unwrap());
    let (over_wifi, over_lte) = (external(&lab, &wifi), external(&lab, &lte));
    let seen = lab.seen(host, PORT, server);
    assert_eq!(seen.ip(), over_wifi, "the first is preferred");

    // To neighbours over the network they are on, whatever is preferred.
    let neighbour = lab.net.add_host_at(&lte);
    let local = endpoint(&lab.net, neighbour, PORT);
    let from = lab.carry(host, PORT, local).unwrap().source.ip();
    assert_eq!(Some(&from), lab.net.addresses(host).get(1));
    let explicit = lab.net.send(lab.now, host, PORT, Some(from), server, b"x".to_vec());
    assert_eq!((explicit, lab.settle()[0].source.ip()), (Ok(()), over_lte));

    lab.send(lab.servers[0], 1, seen);
    lab.net.take_down(first);
    assert!(lab.settle().is_empty());
    assert_eq!(lab.seen(host, PORT, server).ip(), over_lte);
    lab.net.take_down(second);
    let send = |lab: &mut Lab, ip| lab.net.send(lab.now, host, PORT, ip, server, Vec::new());
    assert_eq!(send(&mut lab, None), Err(SendError::Unreachable));
    assert_eq!(send(&mut lab, Some(from)), Err(SendError::NoSuchAddress));

    let before = endpoint(&lab.net, neighbour, PORT);
    lab.net.move_to(first, &lte);
    assert_eq!(lab.seen(host, PORT, server).ip(), over_lte);
    assert_eq!(lab.carry(host, PORT, before).unwrap().host, neighbour);
    assert!(!lab.lets_in(lab.servers[0], 1, seen), "the old network does not find it");
}

#[test]
fn what_is_under_way_to_a_lost_interface_or_address_is_lost() {
    let mut lab = lab();
    let site = lab.net.add_site(&SiteOptions::new(NatKind::None, access()));
    let host = lab.net.add_host_at(&site);
    let own = endpoint(&lab.net, host, PORT);
    let interface = lab.net.interfaces(host)[0];
    for reason in [DropReason::InterfaceDown, DropReason::AddressGone] {
        lab.send(lab.servers[0], 1, own);
        lab.now += MS * 15;
        assert!(lab.net.deliver_until(lab.now).is_empty());
        if reason == DropReason::InterfaceDown {
            lab.net.take_down(interface);
        } else {
            lab.net.bring_up(interface, Segment::Core, &[[198, 51, 100, 1].into()]);
        }
        assert!(lab.settle().is_empty());
        assert_eq!(lab.net.drops().of(reason), 1);
        lab.net.bring_up(interface, Segment::Core, &[own.ip()]);
    }
    assert!(lab.carry(lab.servers[0], 1, own).is_some());
}
