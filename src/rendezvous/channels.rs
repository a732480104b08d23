//! The relay: which way through the server a channel number names.
//!
//! Knows channel numbers, two transport addresses for each, and when a frame last passed. It has no access to sessions,
//! keys or records; the payload of a frame is opaque to it and leaves as it came.

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::time::Duration;

use super::crowds::{Crowds, Network};
use super::{ClientKey, Route};
use crate::time::Time;
use crate::trust::source_network;
use crate::wire::RelayChannel;

/// A channel on which nothing passed for so long is forgotten; its opener renews one it still wants.
pub(super) const CHANNEL_IDLE: Duration = Duration::from_secs(3600);
/// Channels to one client that others opened: each costs work when it moves.
const MAX_OFFERED: usize = 4096;
/// Of these from one network, so that none has all.
const MAX_OFFERED_BY_NETWORK: usize = 1024;
/// Channels that one client opened to one other: the one it uses, and the one before, on which frames may be under way. A
/// client that restarts opens another.
const MAX_PER_PAIR: usize = 2;
/// Channels looked at for the one used least lately. Their order is brought up to date only here: a frame that passes
/// moves nothing.
const LOOKED_AT: usize = 16;

/// The open channels.
#[derive(Debug)]
pub(super) struct Channels {
    open: HashMap<RelayChannel, Channel>,
    owned: HashMap<ClientKey, Owned>,
    /// When to look at each channel again, by number.
    due: BTreeSet<(Time, u64)>,
    /// By the network of the opener; within it by when each was used, as of the last look.
    crowds: Crowds<Network, (Time, u64)>,
    /// Channels to one client by the network of the openers.
    offers: HashMap<(ClientKey, Network), usize>,
    limit: usize,
    limit_per_opener: usize,
}

/// One end of a channel.
#[derive(Debug, Clone, Copy)]
pub(super) struct End {
    /// Whose it is.
    pub(super) owner: ClientKey,
    /// Where its newest packet came from: frames are taken from there as well. Who may pay for them is all that a forged
    /// source decides; what they say is authenticated from end to end.
    pub(super) heard: SocketAddr,
    /// Where it has shown that it is. Frames go there only.
    pub(super) route: Option<Route>,
}

#[derive(Debug)]
struct Channel {
    opener: End,
    peer: End,
    used: Time,
    /// Its place in the order of look-ups.
    due: Time,
    /// Where its opener was.
    network: Network,
    /// Its place in that network's crowd.
    seen_used: Time,
}

/// The channels of one client.
#[derive(Debug, Default)]
struct Owned {
    opened: Vec<RelayChannel>,
    offered: Vec<RelayChannel>,
}

/// A channel was opened or renewed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Opened {
    New,
    /// In place of another: the one between the two that was used least lately, or, of the network with the most, that one.
    Replaced,
    Renewed,
}

/// The channel number is taken, both ends are at one address, or a limit is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Refused;

/// Why a frame does not pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoPassage {
    /// There is no such channel.
    Channel,
    /// It comes from neither end.
    Source,
    /// Both ends are at one address: it would go back to where it came from.
    Loop,
    /// The other end has not shown where it is.
    Nowhere,
}

impl Channels {
    /// No channels; at most `limit`, and at most `limit_per_opener` opened by one client.
    pub(super) fn new(limit: usize, limit_per_opener: usize) -> Self {
        Self {
            open: HashMap::new(),
            owned: HashMap::new(),
            due: BTreeSet::new(),
            crowds: Crowds::new(),
            offers: HashMap::new(),
            limit,
            limit_per_opener,
        }
    }

    /// Opens a channel between two clients, or renews it if that is what it is.
    pub(super) fn open(&mut self, now: Time, number: RelayChannel, opener: End, peer: End) -> Result<Opened, Refused> {
        if peer.is_at(opener.heard) || opener.meets(&peer) {
            return Err(Refused);
        }
        if let Some(channel) = self.open.get_mut(&number) {
            // Either end may renew it: it cannot tell whether the other still does.
            let ends = [channel.opener.owner, channel.peer.owner];
            if ends != [opener.owner, peer.owner] && ends != [peer.owner, opener.owner] {
                return Err(Refused);
            }
            channel.used = now;
            return Ok(Opened::Renewed);
        }
        let replaced = self.least_used_of_pair(opener.owner, peer.owner);
        if let Some(least_used) = replaced {
            self.close(least_used);
        }
        let opened = self.owned.get(&opener.owner).map_or(0, |owned| owned.opened.len());
        let offered = self.owned.get(&peer.owner).map_or(0, |owned| owned.offered.len());
        let network = source_network(opener.address().ip());
        let by_network = self.offers.get(&(peer.owner, network)).copied().unwrap_or(0);
        if opened >= self.limit_per_opener || offered >= MAX_OFFERED || by_network >= MAX_OFFERED_BY_NETWORK {
            return Err(Refused);
        }
        let evicted = self.open.len() >= self.limit;
        if evicted {
            let least_used = self.least_used_of_crowd(network).ok_or(Refused)?;
            self.close(least_used);
        }
        let due = now + CHANNEL_IDLE;
        self.open.insert(number, Channel { opener, peer, used: now, due, network, seen_used: now });
        self.due.insert((due, number.number()));
        self.crowds.insert(network, (now, number.number()));
        *self.offers.entry((peer.owner, network)).or_default() += 1;
        self.owned.entry(opener.owner).or_default().opened.push(number);
        self.owned.entry(peer.owner).or_default().offered.push(number);
        Ok(if evicted || replaced.is_some() { Opened::Replaced } else { Opened::New })
    }

    /// The channel that gives way to a further one between the two, if one must.
    fn least_used_of_pair(&self, opener: ClientKey, peer: ClientKey) -> Option<RelayChannel> {
        let opened = &self.owned.get(&opener)?.opened;
        let between = opened.iter().filter_map(|number| Some((*number, self.open.get(number)?)));
        let between: Vec<_> = between.filter(|(_, channel)| channel.peer.owner == peer).collect();
        let least_used = between.iter().min_by_key(|(_, channel)| channel.used).map(|(number, _)| *number);
        least_used.filter(|_| between.len() >= MAX_PER_PAIR)
    }

    /// The channel that gives way to one of a network that has fewer.
    fn least_used_of_crowd(&mut self, newcomer: Network) -> Option<RelayChannel> {
        let crowded = self.crowds.crowded(newcomer)?;
        let mut least_used: Option<(Time, RelayChannel)> = None;
        for _ in 0..LOOKED_AT {
            let (seen_used, number) = self.crowds.first(crowded)?;
            let number = RelayChannel::new(number);
            let channel = self.open.get_mut(&number)?;
            if channel.used == seen_used {
                return Some(number);
            }
            self.crowds.remove(crowded, &(seen_used, number.number()));
            self.crowds.insert(crowded, (channel.used, number.number()));
            channel.seen_used = channel.used;
            if least_used.is_none_or(|(used, _)| channel.used < used) {
                least_used = Some((channel.used, number));
            }
        }
        least_used.map(|(_, number)| number)
    }

    /// Whose frame this is, and where it goes on to.
    pub(super) fn pass(
        &mut self,
        now: Time,
        number: RelayChannel,
        source: SocketAddr,
    ) -> Result<(ClientKey, Route), NoPassage> {
        let channel = self.open.get_mut(&number).ok_or(NoPassage::Channel)?;
        let (from, to) = channel.ends(source)?;
        channel.used = now;
        Ok((from, to))
    }

    /// Whose frame this is.
    pub(super) fn sender(&self, number: RelayChannel, source: SocketAddr) -> Option<ClientKey> {
        self.open.get(&number)?.ends(source).ok().map(|(from, _)| from)
    }

    /// A client is somewhere else now, or has shown that it is.
    pub(super) fn moved(&mut self, to: End) {
        let Some(owned) = self.owned.get(&to.owner) else { return };
        for number in owned.opened.iter().chain(&owned.offered) {
            let Some(channel) = self.open.get_mut(number) else { continue };
            for end in [&mut channel.opener, &mut channel.peer] {
                if end.owner == to.owner {
                    *end = to;
                }
            }
        }
    }

    /// A client is gone, and with it all its channels. Returns how many there were.
    pub(super) fn close_all(&mut self, owner: ClientKey) -> usize {
        let Some(owned) = self.owned.remove(&owner) else { return 0 };
        owned.opened.iter().chain(&owned.offered).filter(|number| self.close(**number)).count()
    }

    /// Closes the channels that were idle for too long. Returns how many there were.
    pub(super) fn expire(&mut self, now: Time) -> usize {
        let mut closed = 0;
        while let Some(&(due, number)) = self.due.first().filter(|(due, _)| *due <= now) {
            self.due.remove(&(due, number));
            let number = RelayChannel::new(number);
            let Some(channel) = self.open.get_mut(&number) else { continue };
            let idle_at = channel.used + CHANNEL_IDLE;
            if idle_at > now {
                channel.due = idle_at;
                self.due.insert((idle_at, number.number()));
            } else {
                closed += usize::from(self.close(number));
            }
        }
        closed
    }

    /// When [`expire`](Self::expire) is due.
    pub(super) fn next_timeout(&self) -> Option<Time> {
        self.due.first().map(|(due, _)| *due)
    }

    fn close(&mut self, number: RelayChannel) -> bool {
        let Some(channel) = self.open.remove(&number) else { return false };
        self.due.remove(&(channel.due, number.number()));
        self.crowds.remove(channel.network, &(channel.seen_used, number.number()));
        let offer = (channel.peer.owner, channel.network);
        if let Some(offers) = self.offers.get_mut(&offer) {
            *offers -= 1;
            if *offers == 0 {
                self.offers.remove(&offer);
            }
        }
        for end in [channel.opener, channel.peer] {
            let Some(owned) = self.owned.get_mut(&end.owner) else { continue };
            owned.opened.retain(|other| *other != number);
            owned.offered.retain(|other| *other != number);
            if owned.opened.is_empty() && owned.offered.is_empty() {
                self.owned.remove(&end.owner);
            }
        }
        true
    }

    /// How many are open.
    pub(super) fn len(&self) -> usize {
        self.open.len()
    }
}

impl Channel {
    /// Who sent a frame from `source`, and where the other end is.
    fn ends(&self, source: SocketAddr) -> Result<(ClientKey, Route), NoPassage> {
        let (opener, peer) = (&self.opener, &self.peer);
        if opener.meets(peer) {
            return Err(NoPassage::Loop);
        }
        // Who has shown that it is there comes before who only seems to be.
        let (from, to) = if opener.is_at(source) {
            (opener, peer)
        } else if peer.is_at(source) {
            (peer, opener)
        } else if opener.heard == source {
            (opener, peer)
        } else if peer.heard == source {
            (peer, opener)
        } else {
            return Err(NoPassage::Source);
        };
        Ok((from.owner, to.route.ok_or(NoPassage::Nowhere)?))
    }
}

impl End {
    /// Whether it has shown that it is here.
    fn is_at(&self, address: SocketAddr) -> bool {
        self.route.is_some_and(|route| route.destination == address)
    }

    /// Whether both have shown that they are at one address.
    fn meets(&self, other: &Self) -> bool {
        self.route.is_some_and(|route| other.is_at(route.destination))
    }

    /// Where it is, as far as is known.
    fn address(&self) -> SocketAddr {
        self.route.map_or(self.heard, |route| route.destination)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NUMBER: RelayChannel = RelayChannel::new(7);

    fn end(client: u64) -> End {
        let destination = SocketAddr::from(([192, 0, 2, client as u8], 1000));
        at_home(client, destination)
    }

    /// A client in another network than `end` has them.
    fn end_in(network: u8, client: u64) -> End {
        let destination = SocketAddr::from(([198, 51, network, client as u8], 1000));
        at_home(client, destination)
    }

    fn at_home(client: u64, destination: SocketAddr) -> End {
        let route = Some(Route { destination, local_ip: None });
        End { owner: ClientKey(client), heard: destination, route }
    }

    fn route(client: u64) -> Route {
        end(client).route.unwrap()
    }

    fn at(seconds: u64) -> Time {
        Time::from_origin(Duration::from_secs(seconds))
    }

    fn source(client: u64) -> SocketAddr {
        end(client).heard
    }

    #[test]
    fn frames_pass_between_the_two_ends_only() {
        let mut channels = Channels::new(10, 10);
        assert_eq!(channels.open(at(0), NUMBER, end(1), end(2)), Ok(Opened::New));
        assert_eq!(channels.pass(at(0), NUMBER, source(1)), Ok((ClientKey(1), route(2))));
        assert_eq!(channels.pass(at(0), NUMBER, source(2)), Ok((ClientKey(2), route(1))));
        assert_eq!(channels.pass(at(0), NUMBER, source(3)), Err(NoPassage::Source));
        assert_eq!(channels.pass(at(0), RelayChannel::new(8), source(1)), Err(NoPassage::Channel));
        assert_eq!(channels.sender(NUMBER, source(2)), Some(ClientKey(2)));
    }

    #[test]
    fn a_number_belongs_to_two_clients() {
        let mut channels = Channels::new(10, 10);
        channels.open(at(0), NUMBER, end(1), end(2)).unwrap();
        assert_eq!(channels.open(at(1), NUMBER, end(1), end(2)), Ok(Opened::Renewed));
        assert_eq!(channels.open(at(1), NUMBER, end(2), end(1)), Ok(Opened::Renewed));
        for (opener, peer) in [(1, 3), (2, 3), (3, 2), (3, 4)] {
            assert_eq!(channels.open(at(1), NUMBER, end(opener), end(peer)), Err(Refused), "{opener} to {peer}");
        }
        assert_eq!(channels.len(), 1);
    }

    #[test]
    fn a_client_that_moved_is_followed_and_its_old_address_is_nobody() {
        let mut channels = Channels::new(10, 10);
        channels.open(at(0), NUMBER, end(1), end(2)).unwrap();
        channels.moved(End { owner: ClientKey(2), ..end(9) });
        assert_eq!(channels.pass(at(0), NUMBER, source(1)), Ok((ClientKey(1), route(9))));
        assert_eq!(channels.pass(at(0), NUMBER, source(9)), Ok((ClientKey(2), route(1))));
        assert_eq!(channels.pass(at(0), NUMBER, source(2)), Err(NoPassage::Source));
    }

    #[test]
    fn of_a_pair_the_channel_used_least_lately_gives_way() {
        let mut channels = Channels::new(10, 10);
        let mut open = |at_s, number| channels.open(at(at_s), RelayChannel::new(number), end(1), end(2));
        assert_eq!((open(0, 1), open(1, 2), open(2, 1)), (Ok(Opened::New), Ok(Opened::New), Ok(Opened::Renewed)));
        assert_eq!(open(3, 3), Ok(Opened::Replaced));
        assert_eq!(channels.pass(at(4), RelayChannel::new(2), source(1)), Err(NoPassage::Channel));
        assert_eq!((channels.len(), channels.due.len()), (2, 2));
        channels.open(at(5), RelayChannel::new(4), end(1), end(3)).unwrap();
        channels.open(at(5), RelayChannel::new(5), end(2), end(1)).unwrap();
        assert_eq!(channels.len(), 4);
    }

    #[test]
    fn limits_hold_and_closing_makes_room() {
        let mut channels = Channels::new(3, 2);
        for number in 2..=3 {
            channels.open(at(0), RelayChannel::new(number), end(1), end(number)).unwrap();
        }
        assert_eq!(channels.open(at(0), RelayChannel::new(4), end(1), end(4)), Err(Refused));
        channels.open(at(0), RelayChannel::new(4), end(2), end(1)).unwrap();
        assert_eq!(channels.open(at(0), RelayChannel::new(5), end(3), end(1)), Err(Refused));
        assert_eq!(channels.close_all(ClientKey(1)), 3);
        assert_eq!((channels.len(), channels.owned.len(), channels.due.len()), (0, 0, 0));
        assert_eq!(channels.close_all(ClientKey(2)), 0);
        channels.open(at(0), RelayChannel::new(4), end(3), end(1)).unwrap();
    }

    #[test]
    fn nobody_is_offered_more_than_moving_may_cost() {
        let mut channels = Channels::new(usize::MAX, usize::MAX);
        let mut offered = 0;
        for network in 0..4 {
            for _ in 0..MAX_OFFERED_BY_NETWORK {
                offered += 1;
                let opener = End { owner: ClientKey(1000 + offered), ..end_in(network, 1) };
                channels.open(at(0), RelayChannel::new(offered), opener, end(2)).unwrap();
            }
            let further = channels.open(at(0), RelayChannel::new(u64::MAX), end_in(network, 3), end(2));
            assert_eq!(further, Err(Refused), "by one network");
        }
        assert_eq!(channels.open(at(0), RelayChannel::new(u64::MAX), end_in(9, 3), end(2)), Err(Refused), "by all");
        channels.close_all(ClientKey(2));
        assert_eq!((channels.offers.len(), channels.crowds.largest()), (0, None));
    }

    #[test]
    fn of_the_network_with_most_channels_the_one_used_least_lately_gives_way() {
        let mut channels = Channels::new(3, 10);
        for (number, peer) in [(1, 2), (2, 3), (3, 4)] {
            channels.open(at(number), RelayChannel::new(number), end(1), end(peer)).unwrap();
        }
        channels.pass(at(10), RelayChannel::new(1), source(1)).unwrap();
        assert_eq!(channels.open(at(11), RelayChannel::new(4), end(2), end(5)), Err(Refused), "its own has the most");
        assert_eq!(channels.open(at(11), RelayChannel::new(4), end_in(1, 6), end(2)), Ok(Opened::Replaced));
        assert_eq!(channels.pass(at(12), RelayChannel::new(2), source(1)), Err(NoPassage::Channel));
        assert_eq!(
            channels.open(at(12), RelayChannel::new(5), end_in(1, 6), end(3)),
            Err(Refused),
            "they have as many"
        );
        assert_eq!(channels.pass(at(12), RelayChannel::new(1), source(1)).map(|(from, _)| from), Ok(ClientKey(1)));
        assert_eq!((channels.len(), channels.due.len(), channels.offers.len()), (3, 3, 3));
    }

    #[test]
    fn two_ends_at_one_address_are_a_loop() {
        let mut channels = Channels::new(10, 10);
        let twin = End { owner: ClientKey(2), ..end(1) };
        assert_eq!(channels.open(at(0), NUMBER, end(1), twin), Err(Refused));
        channels.open(at(0), NUMBER, end(1), end(2)).unwrap();
        channels.moved(End { owner: ClientKey(2), ..end(1) });
        assert_eq!(channels.pass(at(0), NUMBER, source(1)), Err(NoPassage::Loop));
        assert_eq!(channels.sender(NUMBER, source(1)), None);
    }

    #[test]
    fn a_channel_lives_as_long_as_something_passes_or_renews_it() {
        let mut channels = Channels::new(10, 10);
        channels.open(at(0), NUMBER, end(1), end(2)).unwrap();
        channels.pass(at(3000), NUMBER, source(1)).unwrap();
        assert_eq!((channels.expire(at(3600)), channels.next_timeout()), (0, Some(at(6600))));
        channels.open(at(6000), NUMBER, end(1), end(2)).unwrap();
        assert_eq!((channels.expire(at(9599)), channels.next_timeout()), (0, Some(at(9600))));
        assert_eq!((channels.expire(at(9600)), channels.next_timeout()), (1, None));
        assert_eq!(channels.pass(at(9600), NUMBER, source(1)), Err(NoPassage::Channel));
        assert_eq!(channels.owned.len(), 0);
    }
}
