//! Every counter, one line of documentation each. Counters only grow and start at zero with the process.
//!
//! `exposition` makes of them what Prometheus reads.

mod exposition;
mod families;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::metrics::histogram::Histogram;

pub use exposition::{AgentReading, CONTENT_TYPE, ProcessReading, ServerReading};
pub use families::{Family, Kind, agent_families, server_families};

macro_rules! counters {
    ($(#[doc = $table_doc:literal])+ $table:ident: $($(#[doc = $doc:literal])+ $name:ident,)*
     $(; $(#[doc = $more_doc:literal])+ $more:ident: $type:ty,)*) => {
        $(#[doc = $table_doc])+
        #[derive(Debug, Default)]
        pub struct $table {
            $($(#[doc = $doc])+ pub $name: Counter,)*
            $($(#[doc = $more_doc])+ pub $more: $type,)*
        }

        impl $table {
            /// Every counter with its name and documentation, in the order of this file.
            pub fn iter(&self) -> impl Iterator<Item = (&'static str, &'static str, u64)> {
                [$((stringify!($name), concat!($($doc),+).trim_ascii(), self.$name.get()),)*].into_iter()
            }

            #[cfg(test)]
            fn all(&self) -> impl Iterator<Item = &Counter> {
                [$(&self.$name,)*].into_iter()
            }
        }
    };
}

counters! {
    /// The counters of one agent. Updated from every thread without ordering; read for `status`.
    Counters:
    /// Packets taken from the interface and sealed.
    tx_packets,
    /// Bytes of those packets that went directly.
    tx_direct_bytes,
    /// Packets opened and written to the interface.
    rx_packets,
    /// Bytes of those packets that came directly.
    rx_direct_bytes,
    /// Bytes of packets sealed that went through a relay.
    tx_relayed_bytes,
    /// Bytes of packets opened that came through a relay.
    rx_relayed_bytes,
    /// Datagrams received.
    rx_datagrams,
    /// Datagrams handed to the kernel.
    tx_datagrams,
    /// Packets from the interface that are not valid IP packets.
    drop_out_malformed,
    /// Packets from the interface whose source is not this agent's address.
    drop_out_source,
    /// Packets from the interface to an address no trusted peer has.
    drop_out_no_route,
    /// Packets from the interface that the grant of the peer does not cover.
    drop_out_policy,
    /// Packets that waited for a session and found the queue full or the wait too long.
    drop_out_no_session,
    /// Packets from the interface longer than the path to the peer takes; the program is told.
    drop_out_too_big,
    /// Datagrams the kernel did not take.
    drop_out_send,
    /// Datagrams of the agent itself (handshakes, probes, control messages) that the kernel did not take.
    drop_out_own,
    /// Packets from the interface in the form of control messages, which only the agent itself may send.
    drop_out_control,
    /// Datagrams from an overlay address: a session inside a session.
    drop_in_overlay,
    /// Relay frames that no relay of this agent sent, or that hold no WireGuard datagram.
    drop_in_relay,
    /// Probes over the budget for probes: they will be sent later.
    drop_out_probe,
    /// Requests for the records of peers' servers over the budget for them: they will be sent later.
    drop_out_record_request,
    /// Rendezvous servers of peers for which there was no room.
    drop_servers_full,
    /// Datagrams of no known kind.
    drop_in_unknown_kind,
    /// STUN messages that answer nothing this agent asked.
    drop_in_stun,
    /// WireGuard data for an index this agent did not hand out.
    drop_in_unknown_index,
    /// WireGuard data that failed to authenticate, was replayed or belongs to no session.
    drop_in_unauthenticated,
    /// Authenticated packets that are not valid IP packets.
    drop_in_malformed,
    /// Authenticated packets whose source is not the peer's address.
    drop_in_source,
    /// Authenticated packets to an address that is not this agent's.
    drop_in_destination,
    /// Authenticated packets from a peer without mutual trust.
    drop_in_untrusted,
    /// Authenticated packets that the grant of the peer does not cover.
    drop_in_policy,
    /// Packets the interface did not take.
    drop_in_interface,
    /// Notices to the control plane that found its queue full.
    drop_notices,
    /// Lines that were not logged, as there were too many of a kind.
    drop_log_lines,
    /// Handshake initiations from keys without trust.
    drop_handshake_stranger,
    /// Handshake initiations over the rate limit.
    drop_handshake_rate,
    /// Handshake messages that do not verify.
    drop_handshake_invalid,
    /// Handshake initiations that are older than one already seen.
    drop_handshake_replay,
    /// Introductions that do not open, do not verify or are not for this agent.
    drop_introduction_invalid,
    /// Introductions over the rate limit.
    drop_introduction_rate,
    /// Introductions from agents that were rejected or revoked.
    drop_introduction_refused,
    /// Introductions that repeat an earlier one.
    drop_introduction_replay,
    /// Introductions that found the table of pending requests full.
    drop_introduction_full,
    /// In-tunnel control messages over the rate limit of their peer.
    drop_control_rate,
    /// In-tunnel control messages that do not parse or are not for this agent.
    drop_control_invalid,
    /// Handshakes completed, either role.
    handshakes,
    /// Handshakes given up without an answer.
    handshakes_unanswered,
    /// Probes of paths sent, those of searches included.
    probes,
    /// Searches for a way through NATs that give every destination another port.
    hard_nat_attempts,
    /// Probes sent in those searches.
    hard_nat_probes,
    /// Those of them in which an extra socket of this agent was reached.
    hard_nat_found,
    /// Introductions accepted.
    introductions,
    /// Introductions sent.
    introductions_sent,
    /// Introductions of one peer passed on to another.
    introductions_passed_on,
    /// Agents that this agent's user asked for trust.
    trust_requested,
    /// Agents that asked this one for trust.
    trust_asked,
    /// Requests for trust that this agent's user approved.
    trust_approved,
    /// Requests for trust that this agent's user rejected.
    trust_rejected,
    /// Trust that this agent's user revoked.
    trust_revoked,
    /// Trust that the other side took back.
    trust_withdrawn,
    /// Trust that ran out.
    trust_expired,
    ;
    /// Round trips of probes.
    round_trips: RoundTrips,
}

counters! {
    /// The counters of a rendezvous server.
    ServerCounters:
    /// Datagrams received.
    rx_datagrams,
    /// Datagrams handed to the kernel.
    tx_datagrams,
    /// STUN requests answered.
    stun_answers,
    /// Record requests answered.
    record_answers,
    /// Handshakes completed.
    handshakes,
    /// Registrations, renewals not counted.
    registrations,
    /// Registrations renewed.
    renewals,
    /// Look-ups that found a record.
    lookups_found,
    /// Look-ups that found none.
    lookups_unknown,
    /// Introductions sent on at once.
    introductions_delivered,
    /// Introductions kept for later.
    introductions_stored,
    /// Introductions kept earlier and sent on when their recipient registered.
    introductions_delivered_late,
    /// Relay channels opened, renewals not counted.
    channels_opened,
    /// Relay frames passed on.
    relay_frames,
    /// Bytes of those frames.
    relay_bytes,
    /// Datagrams the kernel did not take.
    drop_send,
    /// Datagrams from an overlay address, from one that cannot be answered, or from the server's own.
    drop_source,
    /// Datagrams of no known kind, or of one that is not for a server.
    drop_unknown_kind,
    /// Datagrams other than STUN on the alternate port.
    drop_alternate_port,
    /// STUN requests over the rate limit.
    drop_stun_rate,
    /// STUN messages that are malformed, or no binding requests.
    drop_stun_invalid,
    /// Record requests over the rate limit.
    drop_record_rate,
    /// Record requests that do not parse.
    drop_record_invalid,
    /// Handshake initiations over the rate limit.
    drop_handshake_rate,
    /// Handshake messages that do not verify.
    drop_handshake_invalid,
    /// Handshake initiations that are older than one already seen.
    drop_handshake_replay,
    /// Handshakes that found the table of clients full.
    drop_clients_full,
    /// WireGuard data for an index this server did not hand out.
    drop_unknown_index,
    /// WireGuard data that failed to authenticate, was replayed or belongs to no session.
    drop_unauthenticated,
    /// Changes of a client's address that were not followed: too many in one second.
    drop_client_moves,
    /// Clients that did not show that they receive where their packets come from.
    drop_client_unproved,
    /// In-tunnel packets over the rate limit of their client.
    drop_control_rate,
    /// In-tunnel packets that are no control messages this version understands, or not between client and server.
    drop_control_invalid,
    /// Control messages that a server is not sent, or not before a registration.
    drop_control_unexpected,
    /// Control messages that could not be sealed: the session is over.
    drop_control_no_session,
    /// Registrations with a record that has expired, is for another key, or whose key was replaced.
    drop_register,
    /// Introductions that are none by their first bytes.
    drop_introduce_invalid,
    /// Introductions over the rate limit from one sender to one recipient, or of their recipient.
    drop_introduce_rate,
    /// Introductions to agents the server does not know.
    drop_introduce_unknown,
    /// Introductions that found no place to be kept.
    drop_introduce_full,
    /// Introductions kept that gave way to a later one, or became too old.
    drop_introductions_kept,
    /// Relay channels refused, for whatever reason.
    drop_relay_open,
    /// Relay channels that were not used for an hour, lost one of their ends, or gave way to a newer one.
    drop_channels_closed,
    /// Relay frames that do not parse or carry no WireGuard message.
    drop_relay_invalid,
    /// Relay frames on a channel that does not exist.
    drop_relay_channel,
    /// Relay frames that come from neither end of their channel.
    drop_relay_source,
    /// Relay frames on a channel whose two ends are at one address.
    drop_relay_loop,
    /// Relay frames to a client that has not shown where it is.
    drop_relay_unproved,
    /// Relay frames over the rate limit of their client.
    drop_relay_rate,
    /// Relay frames over their client's fair share while more arrives than can be served.
    drop_relay_unfair,
    /// Clients forgotten: silent for too long, or never registered.
    drop_clients_silent,
    /// Clients forgotten to make room for another one.
    drop_clients_evicted,
    /// Records of past clients forgotten to make room for others.
    drop_records_evicted,
    /// Log lines left out: too many of a kind.
    drop_log_lines,
}

impl Counters {
    /// Packets were sealed, of so many bytes together.
    pub fn sealed(&self, packets: u64, bytes: u64, relayed: bool) {
        self.tx_packets.add(packets);
        if relayed { &self.tx_relayed_bytes } else { &self.tx_direct_bytes }.add(bytes);
    }

    /// A packet of so many bytes was opened, and goes to the interface.
    pub fn opened(&self, bytes: u64, relayed: bool) {
        self.rx_packets.increment();
        if relayed { &self.rx_relayed_bytes } else { &self.rx_direct_bytes }.add(bytes);
    }
}

/// One counter.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds one.
    pub fn increment(&self) {
        self.add(1);
    }

    /// Adds `n`.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// The value now.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Upper bounds of the buckets for round trips, seconds: from one host to the next, to around the world over a bad line.
const ROUND_TRIP_BOUNDS: [f64; 12] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5];

/// Round trips of probes, by the way the answer took. One thread adds to them, some times a second.
#[derive(Debug, Clone)]
pub struct RoundTrips {
    direct: Histogram,
    relayed: Histogram,
}

impl Default for RoundTrips {
    fn default() -> Self {
        Self { direct: Histogram::new(ROUND_TRIP_BOUNDS), relayed: Histogram::new(ROUND_TRIP_BOUNDS) }
    }
}

impl RoundTrips {
    /// Adds one.
    pub fn observe(&self, relayed: bool, round_trip: Duration) {
        let histogram = if relayed { &self.relayed } else { &self.direct };
        histogram.observe(round_trip.as_secs_f64());
    }
}

impl Counters {
    /// What was dropped, by reason (names without `drop_`), without the reasons that never occurred.
    #[must_use]
    pub fn drops(&self) -> BTreeMap<String, u64> {
        self.iter()
            .filter(|(_, _, value)| *value > 0)
            .filter_map(|(name, _, value)| Some((name.strip_prefix("drop_")?.to_owned(), value)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drops_are_listed_by_reason() {
        let counters = Counters::default();
        counters.drop_in_source.add(3);
        counters.rx_packets.increment();
        assert_eq!(counters.drops(), BTreeMap::from([("in_source".to_owned(), 3)]));
    }
}
