//! Everybody who has, or is about to have, a session with the server.
//!
//! A client is an entry per tunnel key. It begins with a handshake, says who it is with its first registration, and is
//! forgotten when it has been silent or its session is over. The server never begins a handshake and therefore needs
//! none of a session's timers: a client that wants something renews its session.

use std::collections::{BTreeSet, HashMap};
use std::net::{Ipv6Addr, SocketAddr};
use std::time::Duration;

use rand_core::CryptoRng;

use super::channels::End;
use super::crowds::{Crowds, Network};
use super::pace::{Arrivals, Pace, Recipients};
use super::{ClientKey, Route};
use crate::identity::{AgentId, TunnelPublic};
use crate::limits::Bucket;
use crate::time::Time;
use crate::tunnel::{IndexTable, Tunnel, TunnelIndex};

/// A client that has not registered is forgotten after this: a round trip with many losses.
pub(super) const UNREGISTERED: Duration = Duration::from_secs(30);
/// For how long a registration is valid, seconds. Clients renew it every 20 s, which keeps the mappings of NATs open
/// (RFC 4787, REQ-5: 2 minutes and more, in practice 30 s) and survives two lost renewals.
pub const REGISTRATION_S: u32 = 60;
/// A registered client is forgotten after this silence, counted from the end of its registration.
pub(super) const SILENCE: Duration = Duration::from_secs(60);
/// A session ends at this age (WireGuard paper, section 6.1: Reject-After-Time).
const SESSION_LIFE: Duration = Duration::from_secs(180);
/// Control messages from one client, per second: enough for introductions to 50 agents at once. Each may cost a
/// signature check, 60 us.
pub(super) const CONTROL_RATE: u32 = 50;
/// Changes of address that are followed, per client and second: a client between two networks, and no more.
const MOVE_RATE: u32 = 4;
/// Unregistered clients looked at for one that may give way.
const LOOKED_AT: usize = 8;

/// One client.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) tunnel_key: TunnelPublic,
    /// Where its first handshake came from.
    pub(super) network: Network,
    /// In a box, as it has 12 KiB: a table that grows must not move them all while frames wait.
    pub(super) tunnel: Box<Tunnel>,
    /// Where its newest authenticated packet came from, which can be forged: only what it asks is answered there.
    pub(super) route: Option<Route>,
    /// Where it has shown that it receives: what others send it goes there.
    pub(super) proved: Option<Route>,
    pub(super) registration: Option<Registration>,
    pub(super) control: Bucket,
    pub(super) relayed: Bucket,
    /// Its handshakes, from where it is.
    pub(super) initiations: Pace,
    /// Whom it sent introductions.
    pub(super) introduced: Recipients,
    /// What introductions it was sent.
    pub(super) arrivals: Arrivals,
    moves: Bucket,
    created: Time,
    heard: Time,
    /// Its place in the order of look-ups; what it is really due at may be later.
    due: Time,
}

/// Who a client is.
#[derive(Debug, Clone)]
pub(super) struct Registration {
    pub(super) id: AgentId,
    pub(super) ipv6: Ipv6Addr,
    pub(super) expires: Time,
}

/// The order in which the clients of one network give way: first those that have not registered (`false`), of them and of
/// the others the longest silent.
type Standing = (bool, Time, ClientKey);

/// What became of a client's address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Moved {
    /// It is where it was, or was nowhere before.
    No,
    /// It was elsewhere before.
    Yes,
    /// It moves too often: it stays where it was.
    TooOften,
}

/// All clients.
#[derive(Debug)]
pub(super) struct Clients {
    table: HashMap<ClientKey, Client>,
    by_tunnel_key: HashMap<TunnelPublic, ClientKey>,
    by_id: HashMap<AgentId, ClientKey>,
    by_address: HashMap<SocketAddr, ClientKey>,
    indices: IndexTable<ClientKey>,
    /// Those that have not registered, the longest silent first.
    unregistered: BTreeSet<(Time, ClientKey)>,
    crowds: Crowds<Network, Standing>,
    due: BTreeSet<(Time, ClientKey)>,
    next: u64,
    limit: usize,
}

impl Clients {
    /// None; at most `limit`.
    pub(super) fn new(limit: usize) -> Self {
        Self {
            table: HashMap::new(),
            by_tunnel_key: HashMap::new(),
            by_id: HashMap::new(),
            by_address: HashMap::new(),
            indices: IndexTable::new(),
            unregistered: BTreeSet::new(),
            crowds: Crowds::new(),
            due: BTreeSet::new(),
            next: 0,
            limit,
        }
    }

    pub(super) fn get(&self, key: ClientKey) -> Option<&Client> {
        self.table.get(&key)
    }

    pub(super) fn get_mut(&mut self, key: ClientKey) -> Option<&mut Client> {
        self.table.get_mut(&key)
    }

    pub(super) fn with_tunnel_key(&self, tunnel_key: &TunnelPublic) -> Option<ClientKey> {
        self.by_tunnel_key.get(tunnel_key).copied()
    }

    pub(super) fn with_id(&self, id: &AgentId) -> Option<ClientKey> {
        self.by_id.get(id).copied()
    }

    pub(super) fn with_index(&self, index: TunnelIndex) -> Option<ClientKey> {
        self.indices.owner(index)
    }

    /// Whether a client's newest authenticated packet came from here.
    pub(super) fn is_known_address(&self, address: SocketAddr) -> bool {
        self.by_address.contains_key(&address)
    }

    pub(super) fn is_full(&self) -> bool {
        self.table.len() >= self.limit
    }

    /// The one that gives way to a newcomer of this network when there is no room: one of the most crowded network, else
    /// one that has not registered. Whose own network is the most crowded takes places from that only, so that whoever
    /// makes many keys cannot push out a client between its handshake and its registration.
    pub(super) fn gives_way(&self, newcomer: Network) -> Option<ClientKey> {
        if let Some(crowded) = self.crowds.crowded(newcomer) {
            return self.crowds.first(crowded).map(|(_, _, key)| key);
        }
        let own = self.crowds.size(newcomer);
        let silent = self.unregistered.iter().take(LOOKED_AT).filter_map(|(_, key)| Some((key, self.table.get(key)?)));
        let mut yielding = silent.filter(|(_, other)| self.crowds.size(other.network) > own);
        let of_others = yielding.next().map(|(key, _)| *key);
        of_others.or_else(|| self.crowds.first(newcomer).filter(|(registered, ..)| !registered).map(|(_, _, key)| key))
    }

    /// A name and an index for a client in the making. To be given to [`insert`](Self::insert) or
    /// [`abandon`](Self::abandon).
    pub(super) fn reserve(&mut self, rng: &mut dyn CryptoRng) -> (ClientKey, TunnelIndex) {
        let key = ClientKey(self.next);
        self.next += 1;
        (key, self.indices.allocate(key, rng))
    }

    /// The handshake came to nothing.
    pub(super) fn abandon(&mut self, index: TunnelIndex) {
        self.indices.release(index);
    }

    /// A client whose handshake was answered.
    pub(super) fn insert(
        &mut self,
        now: Time,
        (key, tunnel_key): (ClientKey, TunnelPublic),
        network: Network,
        tunnel: Tunnel,
        relay_rate: u32,
    ) {
        let due = now + UNREGISTERED;
        let client = Client {
            tunnel_key,
            network,
            tunnel: Box::new(tunnel),
            route: None,
            proved: None,
            registration: None,
            control: Bucket::full(now, CONTROL_RATE),
            relayed: Bucket::full(now, relay_rate),
            initiations: Pace::default(),
            introduced: Recipients::default(),
            arrivals: Arrivals::default(),
            moves: Bucket::full(now, MOVE_RATE),
            created: now,
            heard: now,
            due,
        };
        self.by_tunnel_key.insert(tunnel_key, key);
        self.unregistered.insert((now, key));
        self.crowds.insert(network, client.standing(key));
        self.due.insert((due, key));
        self.table.insert(key, client);
    }

    /// Something authenticated arrived.
    pub(super) fn heard(&mut self, now: Time, key: ClientKey) {
        let Some(client) = self.table.get_mut(&key) else { return };
        if client.registration.is_none() && self.unregistered.remove(&(client.heard, key)) {
            self.unregistered.insert((now, key));
        }
        self.crowds.remove(client.network, &client.standing(key));
        client.heard = now;
        self.crowds.insert(client.network, client.standing(key));
    }

    /// It is here now.
    pub(super) fn moved(&mut self, now: Time, key: ClientKey, route: Route) -> Moved {
        let Some(client) = self.table.get_mut(&key) else { return Moved::No };
        let before = client.route.filter(|before| *before != route);
        if before.is_some() && !client.moves.take(now, MOVE_RATE) {
            return Moved::TooOften;
        }
        client.route = Some(route);
        if let Some(before) = before {
            self.forget_address(key, before.destination);
        }
        // A source can be forged: another client's address stays its own for as long as that client is there.
        self.by_address.entry(route.destination).or_insert(key);
        if before.is_some() { Moved::Yes } else { Moved::No }
    }

    /// It said who it is, or said so again.
    pub(super) fn register(&mut self, key: ClientKey, registration: Registration) {
        let Some(client) = self.table.get_mut(&key) else { return };
        self.unregistered.remove(&(client.heard, key));
        self.by_id.insert(registration.id, key);
        self.crowds.remove(client.network, &client.standing(key));
        client.registration = Some(registration);
        self.crowds.insert(client.network, client.standing(key));
    }

    /// Forgets a client.
    pub(super) fn remove(&mut self, key: ClientKey) -> Option<Client> {
        let client = self.table.remove(&key)?;
        self.by_tunnel_key.remove(&client.tunnel_key);
        self.indices.release(client.tunnel.index());
        self.unregistered.remove(&(client.heard, key));
        self.crowds.remove(client.network, &client.standing(key));
        self.due.remove(&(client.due, key));
        if let Some(route) = client.route {
            self.forget_address(key, route.destination);
        }
        if let Some(registration) = &client.registration
            && self.by_id.get(&registration.id) == Some(&key)
        {
            self.by_id.remove(&registration.id);
        }
        Some(client)
    }

    /// One that is to be forgotten now.
    pub(super) fn pop_silent(&mut self, now: Time) -> Option<ClientKey> {
        while let Some(&(due, key)) = self.due.first().filter(|(due, _)| *due <= now) {
            let Some(client) = self.table.get_mut(&key) else {
                self.due.remove(&(due, key));
                continue;
            };
            let end = client.end();
            if end <= now {
                return Some(key);
            }
            self.due.remove(&(due, key));
            client.due = end;
            self.due.insert((end, key));
        }
        None
    }

    /// When [`pop_silent`](Self::pop_silent) is due.
    pub(super) fn next_timeout(&self) -> Option<Time> {
        self.due.first().map(|(due, _)| *due)
    }

    fn forget_address(&mut self, key: ClientKey, address: SocketAddr) {
        if self.by_address.get(&address) == Some(&key) {
            self.by_address.remove(&address);
        }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.table.len()
    }
}

impl Client {
    /// Whether this is its address.
    pub(super) fn is_at(&self, address: SocketAddr) -> bool {
        self.route.is_some_and(|route| route.destination == address)
    }

    /// Whether it has shown that it receives where its newest packet came from.
    pub(super) fn is_proved(&self) -> bool {
        self.proved.is_some() && self.proved == self.route
    }

    /// Whether what is sent to it can be expected to arrive, if it is where it seems to be.
    pub(super) fn is_live(&self, now: Time) -> bool {
        let registered = self.registration.as_ref().is_some_and(|registration| now < registration.expires);
        registered && self.tunnel.has_session(now)
    }

    /// Its end of a channel.
    pub(super) fn channel_end(&self, key: ClientKey) -> Option<End> {
        Some(End { owner: key, heard: self.route?.destination, route: self.proved })
    }

    fn standing(&self, key: ClientKey) -> Standing {
        (self.registration.is_some(), self.heard, key)
    }

    /// When it is forgotten, unless something is heard of it.
    fn end(&self) -> Time {
        let Some(registration) = &self.registration else { return self.created + UNREGISTERED };
        let silent = registration.expires.max(self.heard) + SILENCE;
        // With the session end its keys.
        self.tunnel.session_since().map_or(silent, |since| silent.min(since + SESSION_LIFE))
    }
}
