//! How a packet travels.
//!
//! 1. [`Internet::send`]: the host chooses interface and source address; the packet climbs the interface's link.
//! 2. At a segment: if the segment knows the destination, the packet descends to it (at the core over the path's own
//!    link, if there is one). If not, the segment's box lets it out, perhaps with another source, and it climbs on; or
//!    the box turns it round, when it is for the box's own external address. At the core it has no route.
//! 3. At a box on the way down: the box lets it in, perhaps with another destination, and it descends on.
//! 4. At an interface: it is delivered.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::counters::{BoxCounters, DropReason};
use super::internet::{Attachment, BoxId, HostId, Interface, InterfaceId, Internet, Segment};

/// The largest UDP payload over IPv4: 65,535 less the IP header (20) and the UDP header (8).
const MAX_PAYLOAD: usize = 65_507;
/// Packets under way at once: far more than links with sane queues hold, and still under a gigabyte of full frames.
const IN_FLIGHT_LIMIT: usize = 1 << 18;

/// A datagram that reached a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// When.
    pub at: Duration,
    /// Which host.
    pub host: HostId,
    /// Whom it seems to come from.
    pub source: SocketAddr,
    /// The host's address and port that it was sent to. Whether a program has the port is not known here.
    pub destination: SocketAddr,
    /// The payload.
    pub bytes: Vec<u8>,
}

/// Why a host could not even send; what a kernel would say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendError {
    /// No interface that is up has an address of the family (`ENETUNREACH`).
    Unreachable,
    /// No interface that is up has the wanted source address, or it is of another family (`EINVAL`).
    NoSuchAddress,
    /// Larger than any datagram (`EMSGSIZE`).
    TooBig,
}

#[derive(Debug)]
struct Packet {
    source: SocketAddr,
    destination: SocketAddr,
    bytes: Vec<u8>,
}

impl Packet {
    /// Bytes of the IP packet.
    fn size(&self) -> usize {
        self.bytes.len() + if self.destination.is_ipv4() { 20 + 8 } else { 40 + 8 }
    }
}

/// Where a packet is.
#[derive(Clone, Copy, Debug)]
enum Place {
    /// On its way up, at a segment.
    Segment(Segment),
    /// On its way down, at an interface or box.
    Attachment(Attachment),
}

/// Packets under way, by arrival; those that arrive together, in the order they were sent.
#[derive(Default)]
pub(super) struct Queue {
    events: BTreeMap<(Duration, u64), (Place, Packet)>,
    sequence: u64,
    clock: Duration,
}

impl Internet {
    /// A host sends a datagram from a port of its own, and from `local_ip` if given. What becomes of it on the way it
    /// never learns.
    ///
    /// # Errors
    /// What the host's own kernel would say.
    ///
    /// # Panics
    /// When `now` is earlier than in an earlier call.
    pub fn send(
        &mut self,
        now: Duration,
        host: HostId,
        source_port: u16,
        local_ip: Option<IpAddr>,
        destination: SocketAddr,
        bytes: Vec<u8>,
    ) -> Result<(), SendError> {
        self.advance_clock(now);
        if bytes.len() > MAX_PAYLOAD {
            return Err(SendError::TooBig);
        }
        let (interface, source) = self.source(host, local_ip, destination.ip())?;
        let packet = Packet { source: SocketAddr::new(source, source_port), destination, bytes };
        if self.drop_rule.as_mut().is_some_and(|rule| rule(packet.source, destination, &packet.bytes)) {
            self.drops.count(DropReason::Rule);
            return Ok(());
        }
        let state = &mut self.interfaces[interface.0];
        let (arrival, next) = (state.up.packet(now, packet.size()), Place::Segment(state.segment));
        self.schedule(arrival, next, packet);
        Ok(())
    }

    /// When something happens next; not every such event is a delivery.
    pub fn next_event(&self) -> Option<Duration> {
        self.queue.events.first_key_value().map(|((at, _), _)| *at)
    }

    /// Packets under way.
    pub fn in_flight(&self) -> usize {
        self.queue.events.len()
    }

    /// Lets everything happen that happens until `now`, and returns what reached hosts, in order.
    ///
    /// # Panics
    /// When `now` is earlier than in an earlier call.
    pub fn deliver_until(&mut self, now: Duration) -> Vec<Delivery> {
        self.advance_clock(now);
        let mut deliveries = Vec::new();
        while let Some(event) = self.queue.events.first_entry().filter(|event| event.key().0 <= now) {
            let ((at, _), (place, packet)) = event.remove_entry();
            match place {
                Place::Segment(segment) => self.at_segment(at, segment, packet),
                Place::Attachment(Attachment::Box(id)) => self.at_box(at, id, packet),
                Place::Attachment(Attachment::Interface(id)) => match self.at_interface(at, id, packet) {
                    Ok(delivery) => deliveries.push(delivery),
                    Err(reason) => self.drops.count(reason),
                },
            }
        }
        deliveries
    }

    fn advance_clock(&mut self, now: Duration) {
        assert!(now >= self.queue.clock, "time goes back from {:?} to {now:?}", self.queue.clock);
        self.queue.clock = now;
    }

    fn source(
        &self,
        host: HostId,
        local_ip: Option<IpAddr>,
        destination: IpAddr,
    ) -> Result<(InterfaceId, IpAddr), SendError> {
        let same_family = |ip: &&IpAddr| ip.is_ipv4() == destination.is_ipv4();
        let all = self.hosts[host.0].interfaces.iter().map(|id| (*id, &self.interfaces[id.0]));
        let usable = all.filter(|(_, interface)| interface.is_up);
        if let Some(ip) = local_ip {
            let found =
                usable.clone().find(|(_, interface)| interface.addresses.iter().filter(same_family).any(|a| *a == ip));
            return found.map(|(id, _)| (id, ip)).ok_or(SendError::NoSuchAddress);
        }
        let with_source = |(id, interface): (InterfaceId, &Interface)| {
            let source = *interface.addresses.iter().find(same_family)?;
            Some((self.is_neighbour(interface.segment, destination), id, source))
        };
        let mut candidates = usable.filter_map(with_source).collect::<Vec<_>>();
        candidates.sort_by_key(|(is_neighbour, _, _)| !is_neighbour);
        candidates.first().map(|(_, id, source)| (*id, *source)).ok_or(SendError::Unreachable)
    }

    /// Whether the address is on a segment other than the core, which is no one's link.
    fn is_neighbour(&self, segment: Segment, address: IpAddr) -> bool {
        segment != Segment::Core && self.routes.contains_key(&(segment, address))
    }

    fn at_segment(&mut self, now: Duration, segment: Segment, packet: Packet) {
        if let Some(next) = self.routes.get(&(segment, packet.destination.ip())).copied() {
            let at_core = (segment == Segment::Core).then_some((packet.source.ip(), packet.destination.ip()));
            match at_core.and_then(|key| self.paths.get_mut(&key)).map(|path| path.packet(now, packet.size())) {
                None => self.descend(now, next, packet),
                Some(Ok(arrival)) => self.descend(arrival, next, packet),
                Some(Err(reason)) => self.drops.count(reason),
            }
            return;
        }
        match segment {
            Segment::Core => self.drops.count(DropReason::NoRoute),
            Segment::Behind(id) => self.leave_box(now, id, packet),
        }
    }

    /// A packet from inside a box to somewhere that the inside does not know.
    fn leave_box(&mut self, now: Duration, id: BoxId, mut packet: Packet) {
        let middlebox = &mut self.boxes[id.0];
        let counters = &mut middlebox.counters;
        let (source, destination) = (packet.source, packet.destination);
        let is_translated = source.is_ipv4() && middlebox.nat.is_some();
        let mut is_turned = false;
        let result = match (middlebox.nat.as_mut().filter(|_| is_translated), &mut middlebox.firewall) {
            (Some(nat), _) if destination.ip() == nat.external => {
                is_turned = true;
                hairpin(nat, now, source, destination, counters)
            }
            (Some(nat), _) => nat.packet_out(now, source, destination, counters).map(|source| (source, destination)),
            (None, Some(firewall)) => {
                firewall.packet_out(now, source, destination, counters).map(|()| (source, destination))
            }
            (None, None) => Ok((source, destination)),
        };
        match result {
            Err(reason) => self.dropped_at(id, reason),
            Ok(translated) => {
                (packet.source, packet.destination) = translated;
                if is_turned {
                    counters.hairpinned += 1;
                    return self.enter_box(now, id, packet);
                }
                counters.outbound += 1;
                let (arrival, next) = (middlebox.up.packet(now, packet.size()), Place::Segment(middlebox.segment));
                self.schedule(arrival, next, packet);
            }
        }
    }

    /// A packet from outside a box.
    fn at_box(&mut self, now: Duration, id: BoxId, mut packet: Packet) {
        let middlebox = &mut self.boxes[id.0];
        let destination = packet.destination;
        let result = match (middlebox.nat.as_mut().filter(|_| destination.is_ipv4()), &mut middlebox.firewall) {
            // The address changed while the packet was under way.
            (Some(nat), _) if destination.ip() != nat.external => Err(DropReason::AddressGone),
            (Some(nat), _) => nat.packet_in(now, packet.source, destination.port()),
            (None, Some(firewall)) => firewall.packet_in(now, packet.source, destination).map(|()| destination),
            (None, None) => Ok(destination),
        };
        match result {
            Err(reason) => self.dropped_at(id, reason),
            Ok(destination) => {
                middlebox.counters.inbound += 1;
                packet.destination = destination;
                self.enter_box(now, id, packet);
            }
        }
    }

    /// A packet that a box let in goes on to whoever has the address now. It never climbs again.
    fn enter_box(&mut self, now: Duration, id: BoxId, packet: Packet) {
        match self.routes.get(&(Segment::Behind(id), packet.destination.ip())).copied() {
            Some(next) => self.descend(now, next, packet),
            None => self.dropped_at(id, DropReason::NoRoute),
        }
    }

    fn at_interface(&self, at: Duration, id: InterfaceId, packet: Packet) -> Result<Delivery, DropReason> {
        let interface = &self.interfaces[id.0];
        if !interface.is_up {
            return Err(DropReason::InterfaceDown);
        }
        let Packet { source, destination, bytes } = packet;
        if !interface.addresses.contains(&destination.ip()) {
            return Err(DropReason::AddressGone);
        }
        Ok(Delivery { at, host: interface.host, source, destination, bytes })
    }

    fn descend(&mut self, now: Duration, next: Attachment, packet: Packet) {
        let link = match next {
            Attachment::Interface(id) => &mut self.interfaces[id.0].down,
            Attachment::Box(id) => &mut self.boxes[id.0].down,
        };
        let arrival = link.packet(now, packet.size());
        self.schedule(arrival, Place::Attachment(next), packet);
    }

    fn schedule(&mut self, arrival: Result<Duration, DropReason>, place: Place, packet: Packet) {
        let is_full = self.queue.events.len() >= IN_FLIGHT_LIMIT;
        match arrival {
            Err(reason) => self.drops.count(reason),
            Ok(_) if is_full => self.drops.count(DropReason::InFlightLimit),
            Ok(at) => {
                self.queue.sequence += 1;
                self.queue.events.insert((at, self.queue.sequence), (place, packet));
            }
        }
    }

    fn dropped_at(&mut self, id: BoxId, reason: DropReason) {
        self.boxes[id.0].counters.drops.count(reason);
        self.drops.count(reason);
    }
}

/// From inside to inside over the external address, with the external source (RFC 4787 REQ-9a).
fn hairpin(
    nat: &mut super::nat::Nat,
    now: Duration,
    source: SocketAddr,
    destination: SocketAddr,
    counters: &mut BoxCounters,
) -> Result<(SocketAddr, SocketAddr), DropReason> {
    if !nat.config.hairpinning {
        return Err(DropReason::NoHairpinning);
    }
    let external = nat.packet_out(now, source, destination, counters)?;
    let internal = nat.packet_in(now, external, destination.port())?;
    Ok((external, internal))
}
