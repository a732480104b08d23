//! WireGuard sessions with one peer each, on `boringtun`.
//!
//! A [`Tunnel`] wraps a [`boringtun::noise::Tunn`] and guards what the library leaves to its caller:
//!
//! - Output buffers shorter than the library needs are an error here; there they are a panic.
//! - A responder that wants to initiate later is "in progress" to the library for ever: every initiation is forced.
//! - After a forced initiation the library can expire the tunnel at its next timer, because it measures from the start
//!   of an older handshake. While a handshake of ours is out, the library's timers do not run; [`Tunnel`] resends and
//!   restarts it, and enforces the life of a session by its own clock.
//! - The library forgets the last timestamp with the process, so that a recorded initiation would be accepted again
//!   after a restart. The last accepted initiation is handed out by [`Tunnel::respond`] to be stored, and
//!   [`Tunnel::new`] shows it to the fresh library first.
//! - A repeated initiation is a replay to the library. Within [`RESPONSE_REPEAT`] the same response is given again,
//!   so that a lost response, or a second path, does not cost five seconds.
//! - The library answers no more than ten handshakes until its timers run, which nothing makes them do while there is no
//!   session. Its limit is lifted; the control plane has its own.
//! - A session begins when the library last knew the time, so that one answered after a long silence would be dropped at
//!   its next timer. It is told the time before.
//! - Its state takes 11 KiB, most of it room for eight sessions. It is made when there is something to keep in it, and
//!   dropped with the last session.
//! - Session indices are random and below 2^24 ([`IndexTable`]).

mod filter;
mod index;
mod library;

use std::time::Duration;

use boringtun::noise::errors::WireGuardError;
use boringtun::noise::handshake::parse_handshake_anon;
use boringtun::noise::{Packet, Tunn, TunnResult};
use boringtun::x25519;

use crate::identity::{TunnelPublic, TunnelSecret};
use crate::time::Time;
use crate::wire::{WIREGUARD_INITIATION_LEN, WIREGUARD_OVERHEAD, WIREGUARD_RESPONSE_LEN};

pub use filter::HandshakeFilter;
pub use index::{IndexTable, TunnelIndex};

/// A handshake initiation as it travels.
pub type Initiation = [u8; WIREGUARD_INITIATION_LEN];

/// Room that any single output of a [`Tunnel`] other than a sealed packet needs, bytes.
pub const CONTROL_OUTPUT_LEN: usize = WIREGUARD_INITIATION_LEN;

/// Message types (WireGuard paper, sections 5.4.2, 5.4.3, 5.4.7, 5.4.6).
const TYPE_INITIATION: u8 = 1;
/// See [`TYPE_INITIATION`].
const TYPE_RESPONSE: u8 = 2;
/// See [`TYPE_INITIATION`].
const TYPE_COOKIE: u8 = 3;
/// See [`TYPE_INITIATION`].
const TYPE_DATA: u8 = 4;
/// A session is not used for sending after this time (WireGuard paper, section 6.1: Reject-After-Time).
const REJECT_AFTER: Duration = Duration::from_secs(180);
/// The library's timers are rounded to when it was last told the time; while traffic flows it is told this often.
const REFRESH_INTERVAL: Duration = Duration::from_millis(250);
/// While a session saw data within [`ACTIVE_FOR`], its timers run this often even if no packet drives them.
const ACTIVE_TICK: Duration = Duration::from_secs(1);
/// Keepalive-Timeout + Rekey-Timeout (section 6.1) and a tick: after this silence no short timer is due.
const ACTIVE_FOR: Duration = Duration::from_secs(17);
/// When a new initiation replaces the unanswered one (section 6.1: Rekey-Timeout).
const REKEY_TIMEOUT: Duration = Duration::from_secs(5);
/// When an unanswered handshake is given up (section 6.1: Rekey-Attempt-Time).
const REKEY_ATTEMPT_TIME: Duration = Duration::from_secs(90);
/// The same initiation goes out again after these times; the responder answers any copy.
const RESEND_AFTER: [Duration; 5] = [
    Duration::from_millis(250),
    Duration::from_millis(600),
    Duration::from_millis(1200),
    Duration::from_millis(2200),
    Duration::from_millis(3600),
];
/// For how long a repeated initiation is answered with the same response. One Rekey-Timeout: the initiator makes a
/// new initiation after that.
pub const RESPONSE_REPEAT: Duration = REKEY_TIMEOUT;
/// How many copies of one initiation are answered: one per path a peer may try at once.
const RESPONSE_REPEAT_LIMIT: u8 = 16;

/// The sessions with one peer.
///
/// Driving it: [`refresh`](Self::refresh) before sealing a batch and whenever [`next_timeout`](Self::next_timeout) has
/// passed; send what it returns. All methods take the time; none blocks. The library reads the same clock by itself.
pub struct Tunnel {
    /// Exists while there is a session, a handshake, or what a handshake left that came to nothing.
    tunn: Option<Box<Tunn>>,
    secret: x25519::StaticSecret,
    peer: x25519::PublicKey,
    index: TunnelIndex,
    refreshed_at: Time,
    outgoing: Option<OutgoingHandshake>,
    answered: Option<AnsweredInitiation>,
    /// The last initiation accepted from this peer in an earlier life.
    last_initiation: Option<Initiation>,
    /// Start of the newest session that may be used for sending.
    session_since: Option<Time>,
    last_data: Option<Time>,
    /// While there is no usable session: when the library's state is dropped, and every key with it.
    erase_at: Option<Time>,
    /// Our index of the newest session, as it stands in the peer's messages.
    newest: Option<u32>,
    newest_since: Time,
    /// The one before.
    previous: Option<u32>,
}

impl std::fmt::Debug for Tunnel {
    /// Without keys.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tunnel").field("index", &self.index).field("session_since", &self.session_since).finish()
    }
}

/// A handshake this side began.
struct OutgoingHandshake {
    initiation: Initiation,
    /// When the first initiation of this attempt went out.
    began: Time,
    /// When the current initiation was made.
    made: Time,
    resends: usize,
}

/// The last initiation this side accepted, and what it answered.
struct AnsweredInitiation {
    initiation: Initiation,
    response: [u8; WIREGUARD_RESPONSE_LEN],
    at: Time,
    copies: u8,
    /// Set until the initiator proved, by a data packet, that it has the session.
    unconfirmed: bool,
}

/// Why a packet could not be sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// There is no session, or it is too old: a handshake is needed.
    #[error("there is no session")]
    NoSession,
    /// The output buffer is shorter than the packet and [`WIREGUARD_OVERHEAD`].
    #[error("the output buffer is too short")]
    ShortBuffer,
}

/// What a data message contained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opened {
    /// Length of the IP packet in the output buffer; 0 for a keepalive.
    pub len: usize,
    /// True once per session in which this side was the responder: the session can be used for sending from now on.
    pub session_confirmed: bool,
    /// It came in the newest session; older ones live on for packets that were under way.
    pub newest: bool,
}

/// Why a message was not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// It does not authenticate, is a replay, or its session is gone.
    #[error("the message does not authenticate")]
    Unauthenticated,
    /// It authenticates and carries no IP packet.
    #[error("the message carries no IP packet")]
    NotIp,
    /// An initiation that is not newer than one already accepted.
    #[error("the initiation is older than one already accepted")]
    Stale,
    /// The output buffer is too short for this input.
    #[error("the output buffer is too short")]
    ShortBuffer,
}

/// What [`Tunnel::respond`] made of an initiation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Responded {
    /// Length of the response in the output buffer.
    pub len: usize,
    /// False when this is a copy of the initiation answered last. A fresh one is to be stored before it is answered.
    pub fresh: bool,
}

/// What [`Tunnel::refresh`] found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Refreshed {
    /// Length of a datagram in the output buffer that is to be sent to the peer; 0 for none.
    pub len: usize,
    /// The datagram is a handshake initiation: it belongs on every path that might work.
    pub initiation: bool,
    /// A handshake was given up for want of an answer.
    pub gave_up: bool,
    /// The last keys were erased, and the memory they took is free.
    pub erased: bool,
}

impl Tunnel {
    /// A tunnel to the peer with this key, without a session. `last_initiation` is the last one accepted from this peer
    /// with the same keys, as stored.
    #[must_use]
    pub fn new(
        secret: &TunnelSecret,
        peer: &TunnelPublic,
        index: TunnelIndex,
        now: Time,
        last_initiation: Option<&Initiation>,
    ) -> Self {
        Self {
            tunn: None,
            secret: x25519::StaticSecret::from(*secret.to_bytes()),
            peer: x25519::PublicKey::from(*peer.as_bytes()),
            index,
            refreshed_at: now,
            outgoing: None,
            answered: None,
            last_initiation: last_initiation.copied(),
            session_since: None,
            last_data: None,
            newest: None,
            newest_since: now,
            previous: None,
            erase_at: None,
        }
    }

    /// The index under which the peer's messages arrive.
    #[must_use]
    pub fn index(&self) -> TunnelIndex {
        self.index
    }

    /// Whether packets can be sealed now.
    #[must_use]
    pub fn has_session(&self, now: Time) -> bool {
        self.session_since.is_some_and(|since| now.since(since) < REJECT_AFTER)
    }

    /// When the newest usable session began.
    #[must_use]
    pub fn session_since(&self) -> Option<Time> {
        self.session_since
    }

    /// Whether an initiation of ours waits for its answer.
    #[must_use]
    pub fn is_handshaking(&self) -> bool {
        self.outgoing.is_some()
    }

    /// Seals one IP packet into `out` and returns the length of the datagram.
    ///
    /// # Errors
    /// [`SealError`]; the packet was not sent and can be sealed later.
    pub fn seal(&mut self, now: Time, packet: &[u8], out: &mut [u8]) -> Result<usize, SealError> {
        if out.len() < sealed_len(packet.len()) {
            return Err(SealError::ShortBuffer);
        }
        if !self.has_session(now) {
            return Err(SealError::NoSession);
        }
        let Some(tunn) = &mut self.tunn else { return Err(SealError::NoSession) };
        self.last_data = Some(now);
        match tunn.encapsulate(packet, out) {
            TunnResult::WriteToNetwork(datagram) => Ok(datagram.len()),
            _ => Err(SealError::NoSession),
        }
    }

    /// Opens one data message (type 4) into `out`, which must be as long as the message.
    ///
    /// # Errors
    /// [`OpenError`]; nothing changed but the replay window.
    pub fn open(&mut self, now: Time, datagram: &[u8], out: &mut [u8]) -> Result<Opened, OpenError> {
        if out.len() < datagram.len() {
            return Err(OpenError::ShortBuffer);
        }
        // The library would take any message here, and an empty one as a call to send what it queued.
        if !is_of_type(datagram, TYPE_DATA) {
            return Err(OpenError::Unauthenticated);
        }
        let receiver = receiver_index(datagram);
        let Some(tunn) = &mut self.tunn else { return Err(OpenError::Unauthenticated) };
        let len = match tunn.decapsulate(None, datagram, out) {
            TunnResult::Done => 0,
            TunnResult::WriteToTunnelV4(packet, _) | TunnResult::WriteToTunnelV6(packet, _) => packet.len(),
            TunnResult::Err(WireGuardError::InvalidPacket) => return Err(OpenError::NotIp),
            _ => return Err(OpenError::Unauthenticated),
        };
        if len > 0 {
            self.last_data = Some(now);
        }
        let session_confirmed = self.confirm(now, receiver);
        // Two handshakes that cross leave two sessions, and either may be the one the other side uses.
        let crossing = now.since(self.newest_since) < REKEY_TIMEOUT && receiver == self.previous;
        Ok(Opened { len, session_confirmed, newest: receiver == self.newest || crossing })
    }

    /// Answers a handshake initiation (type 1) whose static key was found to be this peer's.
    ///
    /// # Errors
    /// [`OpenError::Stale`] for a replay, [`OpenError::Unauthenticated`] for everything that does not verify. No answer
    /// is due then.
    pub fn respond(&mut self, now: Time, initiation: &Initiation, out: &mut [u8]) -> Result<Responded, OpenError> {
        if out.len() < CONTROL_OUTPUT_LEN {
            return Err(OpenError::ShortBuffer);
        }
        if let Some(answered) = &mut self.answered
            && answered.initiation == *initiation
            && now.since(answered.at) < RESPONSE_REPEAT
            && answered.copies < RESPONSE_REPEAT_LIMIT
        {
            answered.copies += 1;
            out[..WIREGUARD_RESPONSE_LEN].copy_from_slice(&answered.response);
            return Ok(Responded { len: WIREGUARD_RESPONSE_LEN, fresh: false });
        }
        if !is_of_type(initiation, TYPE_INITIATION) {
            return Err(OpenError::Unauthenticated);
        }
        if self.outgoing.is_none() {
            // The library dates the session by when it last knew the time: after a long silence it would be born old, and
            // dropped by the next timer. What the library wants to send is superseded by this handshake.
            self.run_library_timers(now, &mut [0; CONTROL_OUTPUT_LEN]);
        }
        // Whatever becomes of this, what it leaves is dropped some time.
        self.erase_at = Some(now + REJECT_AFTER);
        let response: [u8; WIREGUARD_RESPONSE_LEN] = match self.library().decapsulate(None, initiation, out) {
            TunnResult::WriteToNetwork(response) => {
                <[u8; WIREGUARD_RESPONSE_LEN]>::try_from(&*response).map_err(|_| OpenError::Unauthenticated)?
            }
            TunnResult::Err(WireGuardError::WrongTai64nTimestamp) => return Err(OpenError::Stale),
            _ => return Err(OpenError::Unauthenticated),
        };
        self.answered =
            Some(AnsweredInitiation { initiation: *initiation, response, at: now, copies: 0, unconfirmed: true });
        Ok(Responded { len: response.len(), fresh: true })
    }

    /// Takes the answer (type 2) to our initiation; the session can be used. The output is a keepalive that must be sent
    /// so that the responder may use the session too.
    ///
    /// # Errors
    /// [`OpenError::Unauthenticated`] when it answers nothing of ours.
    pub fn complete(&mut self, now: Time, response: &[u8], out: &mut [u8]) -> Result<usize, OpenError> {
        if out.len() < CONTROL_OUTPUT_LEN {
            return Err(OpenError::ShortBuffer);
        }
        if !is_of_type(response, TYPE_RESPONSE) {
            return Err(OpenError::Unauthenticated);
        }
        let Some(tunn) = &mut self.tunn else { return Err(OpenError::Unauthenticated) };
        let len = match tunn.decapsulate(None, response, out) {
            TunnResult::WriteToNetwork(keepalive) => keepalive.len(),
            _ => return Err(OpenError::Unauthenticated),
        };
        self.outgoing = None;
        self.begin_newest(now, message_receiver(response));
        self.session_since = Some(now);
        self.last_data = Some(now);
        self.drain_library_queue();
        Ok(len)
    }

    /// Takes a cookie reply (type 3): the peer is under load, and the next initiation will carry the cookie.
    ///
    /// # Errors
    /// [`OpenError::Unauthenticated`] when it answers nothing of ours.
    pub fn take_cookie(&mut self, cookie: &[u8]) -> Result<(), OpenError> {
        if !is_of_type(cookie, TYPE_COOKIE) {
            return Err(OpenError::Unauthenticated);
        }
        let Some(tunn) = &mut self.tunn else { return Err(OpenError::Unauthenticated) };
        let mut out = [0; CONTROL_OUTPUT_LEN];
        match tunn.decapsulate(None, cookie, &mut out) {
            TunnResult::Done => Ok(()),
            _ => Err(OpenError::Unauthenticated),
        }
    }

    /// Begins a handshake, unless one is out. `None` when nothing needs to be sent now.
    pub fn initiate(&mut self, now: Time) -> Option<Initiation> {
        if self.outgoing.is_some() {
            return None;
        }
        // The library must know the time before it notes when the handshake began.
        self.run_library_timers(now, &mut [0; CONTROL_OUTPUT_LEN]);
        self.make_initiation(now, now)
    }

    /// The initiation that waits for its answer.
    #[must_use]
    pub fn pending_initiation(&self) -> Option<&Initiation> {
        self.outgoing.as_ref().map(|outgoing| &outgoing.initiation)
    }

    /// Runs the timers. Cheap when nothing is due.
    ///
    /// # Errors
    /// [`OpenError::ShortBuffer`] when `out` is shorter than [`CONTROL_OUTPUT_LEN`].
    pub fn refresh(&mut self, now: Time, out: &mut [u8]) -> Result<Refreshed, OpenError> {
        if out.len() < CONTROL_OUTPUT_LEN {
            return Err(OpenError::ShortBuffer);
        }
        if self.outgoing.is_some() {
            return Ok(self.refresh_handshake(now, out));
        }
        if self.session_since.is_some_and(|since| now.since(since) >= REJECT_AFTER) {
            // It was not renewed while there was traffic, so there is none. The library would renew it now, for nothing.
            self.session_since = None;
            // Unless the peer began another that it has not used yet.
            let begun = self.answered.as_ref().filter(|answered| answered.unconfirmed);
            self.erase_at = Some(begun.map_or(now, |answered| answered.at + REJECT_AFTER));
        }
        if self.session_since.is_none() {
            let erased = self.erase_at.is_none_or(|at| at <= now) && self.erase();
            return Ok(Refreshed { erased, ..Refreshed::default() });
        }
        if now.since(self.refreshed_at) < REFRESH_INTERVAL {
            return Ok(Refreshed::default());
        }
        let len = self.run_library_timers(now, out);
        let initiation = Initiation::try_from(&out[..len]).ok();
        if let Some(initiation) = initiation {
            self.outgoing = Some(OutgoingHandshake { initiation, began: now, made: now, resends: 0 });
        }
        Ok(Refreshed { len, initiation: initiation.is_some(), ..Refreshed::default() })
    }

    /// Whether short timers may become due: a handshake is out, or data went by lately.
    #[must_use]
    pub fn is_active(&self, now: Time) -> bool {
        self.outgoing.is_some() || self.last_data.is_some_and(|last| now.since(last) < ACTIVE_FOR)
    }

    /// When [`refresh`](Self::refresh) is due next; `None` while nothing can become due by itself.
    #[must_use]
    pub fn next_timeout(&self) -> Option<Time> {
        if let Some(outgoing) = &self.outgoing {
            return Some(outgoing.next_send());
        }
        let Some(since) = self.session_since else { return self.erase_at };
        let expiry = since + REJECT_AFTER;
        // Never sooner than a refresh would do something, or the caller would spin.
        let soonest = self.refreshed_at + ACTIVE_TICK;
        match self.last_data {
            Some(last) if self.refreshed_at <= last + ACTIVE_FOR => Some(soonest),
            _ => Some(expiry.max(soonest)),
        }
    }

    fn refresh_handshake(&mut self, now: Time, out: &mut [u8]) -> Refreshed {
        let Some(outgoing) = &mut self.outgoing else { return Refreshed::default() };
        if now < outgoing.next_send() {
            return Refreshed::default();
        }
        if now.since(outgoing.began) >= REKEY_ATTEMPT_TIME {
            self.outgoing = None;
            self.run_library_timers(now, out);
            self.erase_at = self.erase_at.or(Some(now));
            return Refreshed { gave_up: true, ..Refreshed::default() };
        }
        let initiation = if now.since(outgoing.made) >= REKEY_TIMEOUT {
            let began = outgoing.began;
            self.make_initiation(now, began)
        } else {
            // Several may be due after a pause; one copy serves for all of them.
            outgoing.resends = RESEND_AFTER.iter().take_while(|after| now.since(outgoing.made) >= **after).count();
            Some(outgoing.initiation)
        };
        let Some(initiation) = initiation else { return Refreshed::default() };
        out[..initiation.len()].copy_from_slice(&initiation);
        Refreshed { len: initiation.len(), initiation: true, ..Refreshed::default() }
    }

    fn make_initiation(&mut self, now: Time, began: Time) -> Option<Initiation> {
        let mut out = [0; CONTROL_OUTPUT_LEN];
        let TunnResult::WriteToNetwork(datagram) = self.library().format_handshake_initiation(&mut out, true) else {
            return None;
        };
        let initiation = Initiation::try_from(&*datagram).ok()?;
        self.outgoing = Some(OutgoingHandshake { initiation, began, made: now, resends: 0 });
        Some(initiation)
    }

    /// Tells the library the time: it drops old sessions, and may want a datagram sent. Returns that datagram's length.
    fn run_library_timers(&mut self, now: Time, out: &mut [u8]) -> usize {
        self.refreshed_at = now;
        let Some(tunn) = &mut self.tunn else { return 0 };
        let len = match tunn.update_timers(out) {
            TunnResult::WriteToNetwork(datagram) => datagram.len(),
            _ => 0,
        };
        if tunn.time_since_last_handshake().is_none() && self.session_since.take().is_some() {
            self.erase_at = Some(now + REJECT_AFTER);
        }
        len
    }

    /// Marks the session in which we responded as usable, when `receiver` is its index for the first time.
    fn confirm(&mut self, now: Time, receiver: Option<u32>) -> bool {
        let Some(answered) = &mut self.answered else { return false };
        if !answered.unconfirmed || receiver != sender_index(&answered.response) {
            return false;
        }
        answered.unconfirmed = false;
        // An attempt of ours from before this session is moot now.
        if self.outgoing.as_ref().is_some_and(|outgoing| outgoing.began <= answered.at) {
            self.outgoing = None;
        }
        self.session_since = Some(answered.at);
        self.begin_newest(now, receiver);
        self.last_data = Some(now);
        self.drain_library_queue();
        true
    }

    fn begin_newest(&mut self, now: Time, index: Option<u32>) {
        self.previous = self.newest;
        self.newest = index;
        self.newest_since = now;
    }

    /// The library queues empty keepalives when a session ends under them. They are worthless; keep its queue empty.
    fn drain_library_queue(&mut self) {
        let Some(tunn) = &mut self.tunn else { return };
        let mut out = [0; CONTROL_OUTPUT_LEN];
        // Its queue holds 256 packets at most.
        for _ in 0..=256 {
            if !matches!(tunn.decapsulate(None, &[], &mut out), TunnResult::WriteToNetwork(_)) {
                break;
            }
        }
    }

    /// The library's state, made if there is none.
    fn library(&mut self) -> &mut Tunn {
        let accepted = self.answered.as_ref().map(|answered| &answered.initiation).or(self.last_initiation.as_ref());
        self.tunn.get_or_insert_with(|| Box::new(library::new_state(&self.secret, &self.peer, self.index, accepted)))
    }

    /// Drops every key, if there is one. What was accepted stays known.
    fn erase(&mut self) -> bool {
        (self.erase_at, self.newest, self.previous) = (None, None, None);
        // The next sessions begin to count anew, and one of them may have the number of one that nobody confirmed.
        if let Some(answered) = &mut self.answered {
            answered.unconfirmed = false;
        }
        self.tunn.take().is_some()
    }
}

impl OutgoingHandshake {
    fn next_send(&self) -> Time {
        self.made + RESEND_AFTER.get(self.resends).copied().unwrap_or(REKEY_TIMEOUT)
    }
}

/// Room that sealing a packet of this length needs, bytes.
#[must_use]
pub fn sealed_len(packet: usize) -> usize {
    (packet + WIREGUARD_OVERHEAD).max(CONTROL_OUTPUT_LEN)
}

/// The static key an initiation claims to come from. Only who completes the handshake has proved it.
///
/// `None` when the initiation is not made for our key. Costs one Diffie-Hellman: limit the rate before.
#[must_use]
pub fn claimed_key(secret: &TunnelSecret, initiation: &Initiation) -> Option<TunnelPublic> {
    let Ok(Packet::HandshakeInit(parsed)) = Tunn::parse_incoming_packet(initiation) else { return None };
    let secret = x25519::StaticSecret::from(*secret.to_bytes());
    let public = x25519::PublicKey::from(&secret);
    let half = parse_handshake_anon(&secret, &public, &parsed).ok()?;
    TunnelPublic::from_bytes(&half.peer_static_public).ok()
}

/// The receiver index of a WireGuard message of type 2, 3 or 4.
#[must_use]
pub fn message_receiver(datagram: &[u8]) -> Option<u32> {
    let at = if is_of_type(datagram, TYPE_RESPONSE) { 8 } else { 4 };
    Some(u32::from_le_bytes(datagram.get(at..at + 4)?.try_into().ok()?))
}

fn is_of_type(message: &[u8], kind: u8) -> bool {
    message.first() == Some(&kind)
}

fn receiver_index(data: &[u8]) -> Option<u32> {
    Some(u32::from_le_bytes(data.get(4..8)?.try_into().ok()?))
}

fn sender_index(response: &[u8; WIREGUARD_RESPONSE_LEN]) -> Option<u32> {
    receiver_index(response)
}

#[cfg(test)]
mod tests;
