//! PEER, as users write it: an agent id, a prefix of one, a name, an overlay IP or a ticket.

use std::net::IpAddr;

use super::Node;
use crate::api::{Error, ErrorCode};
use crate::identity::{AgentId, Ticket, TicketError};
use crate::trust::Ours;

/// A prefix this short names too many agents by accident.
const MIN_PREFIX: usize = 6;

/// Whose names count. Anybody can introduce itself under any name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Among {
    /// Of agents this side said yes to at some time. What they call themselves has not changed without a session.
    Related,
    /// Of all, where the user decides on requests.
    All,
}

impl Among {
    fn covers(self, ours: &Ours) -> bool {
        self == Self::All || matches!(ours, Ours::Granted | Ours::Revoked)
    }
}

impl Node {
    /// The ticket a text is meant to be; `None` when it is meant to be something else.
    pub(super) fn parse_ticket(text: &str) -> Option<Result<Ticket, Error>> {
        match text.parse::<Ticket>() {
            Ok(ticket) => Some(Ok(ticket)),
            Err(TicketError::NotATicket) => None,
            Err(error) => Some(Err(Error::new(
                ErrorCode::TicketInvalid,
                error.to_string(),
                "copy the whole line that `agentnet ticket` prints on the other host",
            ))),
        }
    }

    /// The one known agent a text names. A name is what an agent calls itself, so it never takes precedence over a
    /// prefix of somebody else's id: where both match, the text is ambiguous.
    pub(super) fn resolve(&self, text: &str, among: Among) -> Result<AgentId, Error> {
        let text = text.trim();
        if let Some(ticket) = Self::parse_ticket(text) {
            return self.known(ticket?.record().id(), text);
        }
        if let Ok(id) = text.parse::<AgentId>() {
            return self.known(id, text);
        }
        if let Ok(address) = text.parse::<IpAddr>() {
            return self.resolve_address(address, text);
        }
        let by_prefix = text.len() >= MIN_PREFIX;
        let matches: Vec<AgentId> = self
            .peers
            .values()
            .filter(|peer| {
                let named = among.covers(&peer.relation.ours) && peer.name().as_deref() == Some(text);
                named || (by_prefix && peer.id.to_string().starts_with(text))
            })
            .map(|peer| peer.id)
            .collect();
        match matches.as_slice() {
            [id] => Ok(*id),
            [] => Err(not_found(text)),
            several => {
                let ids: Vec<_> = several.iter().take(5).map(AgentId::short).collect();
                let message = format!("\"{text}\" matches {} agents: {}", several.len(), ids.join(", "));
                Err(Error::new(ErrorCode::PeerAmbiguous, message, "use more of the agent id"))
            }
        }
    }

    fn known(&self, id: AgentId, text: &str) -> Result<AgentId, Error> {
        if id == self.id {
            return Err(is_self());
        }
        if self.peers.contains_key(&id) { Ok(id) } else { Err(not_found(text)) }
    }

    fn resolve_address(&self, address: IpAddr, text: &str) -> Result<AgentId, Error> {
        if address == IpAddr::V6(self.ipv6) || self.ipv4().map(IpAddr::V4) == Some(address) {
            return Err(is_self());
        }
        let found = self.peers.values().find(|peer| {
            IpAddr::V6(peer.ipv6) == address || peer.alias.is_some_and(|alias| IpAddr::V4(alias) == address)
        });
        found.map(|peer| peer.id).ok_or_else(|| not_found(text))
    }
}

pub(super) fn is_self() -> Error {
    Error::new(ErrorCode::PeerIsSelf, "that is this agent itself", "name another agent; `agentnet peers` lists them")
}

fn not_found(text: &str) -> Error {
    // A ticket would fill the screen.
    let shown: String = text.chars().take(60).collect();
    Error::new(
        ErrorCode::PeerNotFound,
        format!("no known agent matches \"{shown}\""),
        "`agentnet peers` lists known agents; a new one is made known by its ticket: `agentnet trust request TICKET`",
    )
}
