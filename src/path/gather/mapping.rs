//! What the mappings seen at several destinations say about the NATs (RFC 5780, section 4.3).

use std::net::{IpAddr, SocketAddr};

use super::super::net_report::MappingBasis;
use crate::wire::control::Mapping;

/// A NAT counts its ports if so many distances are equal.
const EQUAL_DISTANCES: usize = 2;

/// How one destination saw this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sample {
    pub(super) destination: SocketAddr,
    pub(super) mapped: SocketAddr,
}

/// How the NATs map, by samples in the order the mappings were made, of one address family and one time. `None`: not
/// enough of them.
pub(super) fn find_mapping(samples: &[Sample], local: &[IpAddr], port: u16) -> Option<(Mapping, MappingBasis)> {
    let (first, rest) = samples.split_first()?;
    if samples.iter().all(|sample| sample.mapped.port() == port && local.contains(&sample.mapped.ip())) {
        return Some((Mapping::EndpointIndependent, MappingBasis::NoNat));
    }
    let mut others = rest.iter().filter(|sample| sample.destination != first.destination).peekable();
    others.peek()?;
    let basis = if rest.iter().any(|sample| sample.destination.ip() != first.destination.ip()) {
        MappingBasis::Addresses
    } else {
        MappingBasis::Ports
    };
    if others.all(|sample| sample.mapped == first.mapped) {
        return Some((Mapping::EndpointIndependent, basis));
    }
    Some((Mapping::EndpointDependent { step: step(samples).unwrap_or(0) }, basis))
}

/// How many different mappings there are.
pub(super) fn distinct(samples: &[Sample]) -> usize {
    in_order(samples).len()
}

/// By how much the port of each new mapping is above that of the one before, if that is regular.
///
/// Some mappings are older than the first sample, and nobody knows in which order they were made: neighbours in number
/// are compared, not in time. Mappings of other hosts may come in between, so the most frequent distance counts. Where
/// there are two mappings only, because one server with one address is all there is, they have to be next to each other:
/// chance does that once in 30,000 times.
fn step(samples: &[Sample]) -> Option<i16> {
    let mapped = in_order(samples);
    let newest = mapped.last()?;
    let mut ports: Vec<u16> = mapped.iter().filter(|one| one.ip() == newest.ip()).map(SocketAddr::port).collect();
    ports.sort_unstable();
    ports.dedup();
    let distances: Vec<u16> = ports.iter().zip(ports.iter().skip(1)).map(|(one, next)| next - one).collect();
    let count = |distance: u16| distances.iter().filter(|other| **other == distance).count();
    let frequent = distances.iter().copied().filter(|distance| count(*distance) >= EQUAL_DISTANCES);
    // Of equally frequent ones the smallest: the others hold mappings of other hosts.
    let best = frequent.max_by_key(|distance| (count(*distance), std::cmp::Reverse(*distance)));
    let distance = best.or_else(|| distances.first().copied().filter(|only| distances.len() == 1 && *only == 1))?;
    let upwards = i16::try_from(distance).ok()?;
    match (ports.first() == Some(&newest.port()), ports.last() == Some(&newest.port())) {
        (false, true) => Some(upwards),
        (true, false) => Some(-upwards),
        // The count went round, or is none.
        _ => None,
    }
}

/// Every mapping once, where it was first seen.
fn in_order(samples: &[Sample]) -> Vec<SocketAddr> {
    let mut mapped = Vec::new();
    for sample in samples {
        if !mapped.contains(&sample.mapped) {
            mapped.push(sample.mapped);
        }
    }
    mapped
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(list: &[(&str, u16)]) -> Vec<Sample> {
        let mapped = |port| SocketAddr::new("203.0.113.1".parse().unwrap(), port);
        list.iter().map(|(to, port)| Sample { destination: to.parse().unwrap(), mapped: mapped(*port) }).collect()
    }

    fn mapping(list: &[(&str, u16)]) -> Option<(Mapping, MappingBasis)> {
        find_mapping(&samples(list), &["192.168.1.2".parse().unwrap()], 7)
    }

    const A: &str = "192.0.2.1:1";
    const A2: &str = "192.0.2.1:2";
    const B: &str = "192.0.2.2:1";
    const B2: &str = "192.0.2.2:2";

    #[test]
    fn one_destination_shows_nothing_behind_a_nat() {
        assert_eq!(mapping(&[]), None);
        assert_eq!(mapping(&[(A, 7)]), None);
        assert_eq!(mapping(&[(A, 7), (A, 8)]), None);
    }

    #[test]
    fn without_a_nat_one_destination_is_enough() {
        let local = ["203.0.113.1".parse().unwrap()];
        let found = |port| find_mapping(&samples(&[(A, 7)]), &local, port);
        assert_eq!(found(7), Some((Mapping::EndpointIndependent, MappingBasis::NoNat)));
        // The address is the host's own, and yet something translates the port.
        assert_eq!(found(8), None);
    }

    #[test]
    fn two_ports_are_less_certain_than_two_addresses() {
        let independent = Mapping::EndpointIndependent;
        assert_eq!(mapping(&[(A, 7), (A2, 7)]), Some((independent, MappingBasis::Ports)));
        assert_eq!(mapping(&[(A, 7), (B, 7)]), Some((independent, MappingBasis::Addresses)));
    }

    #[test]
    fn a_step_needs_two_equal_distances() {
        let dependent = |step| Some((Mapping::EndpointDependent { step }, MappingBasis::Addresses));
        assert_eq!(mapping(&[(A, 100), (B, 102)]), dependent(0));
        assert_eq!(mapping(&[(A, 100), (B, 102), (A2, 104)]), dependent(2));
        assert_eq!(mapping(&[(A, 100), (B, 98), (A2, 96)]), dependent(-2));
        assert_eq!(mapping(&[(A, 100), (B, 102), (A2, 105)]), dependent(0));
        assert_eq!(mapping(&[(A, 100), (B, 102), (A2, 105), (B2, 107)]), dependent(2));
        assert_eq!(mapping(&[(A, 100), (B, 60_000), (A2, 3), (B2, 4)]), dependent(0));
    }

    #[test]
    fn two_mappings_next_to_each_other_are_enough() {
        let dependent = |step| Some((Mapping::EndpointDependent { step }, MappingBasis::Ports));
        assert_eq!(mapping(&[(A, 100), (A2, 101)]), dependent(1));
        assert_eq!(mapping(&[(A, 100), (A2, 99)]), dependent(-1));
        assert_eq!(mapping(&[(A, 100), (A2, 103)]), dependent(0));
    }

    #[test]
    fn a_mapping_by_address_counts_once() {
        let dependent = Some((Mapping::EndpointDependent { step: 0 }, MappingBasis::Addresses));
        assert_eq!(mapping(&[(A, 100), (A2, 100), (B, 120), (B2, 120)]), dependent);
        assert_eq!(distinct(&samples(&[(A, 100), (A2, 100), (B, 101)])), 2);
    }

    #[test]
    fn mappings_older_than_the_first_sample_may_come_in_any_order() {
        let dependent = |step| Some((Mapping::EndpointDependent { step }, MappingBasis::Addresses));
        assert_eq!(mapping(&[(A, 101), (B, 100), (A2, 102), (B2, 103)]), dependent(1));
        assert_eq!(mapping(&[(A, 100), (B, 101), (A2, 99), (B2, 98)]), dependent(-1));
        assert_eq!(mapping(&[(A, 101), (B, 100), (A2, 207), (B2, 208)]), dependent(1));
        // It went round, or draws: nobody can tell.
        assert_eq!(mapping(&[(A, 65_534), (B, 65_535), (A2, 1_024), (B2, 1_025)]), dependent(0));
    }
}
