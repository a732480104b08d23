//! A small internet in virtual time: hosts, links, NATs and firewalls. Pure; the same seed and the same calls give the
//! same packets at the same times.
//!
//! ```text
//!                 core ───────────────┬─────────────────┐
//!                  │                  │                 │
//!               carrier box        home box          interface of a public host
//!               │         │         │      │
//!            home box   home box   hosts  hosts        segments: the core, and the inside of every box
//!               │         │
//!             hosts     hosts
//! ```
//!
//! A packet climbs from its host until a segment knows the destination address, then descends. Every line is a pair of
//! [`Link`]s, up towards the core and down from it; every box may be a NAT for IPv4, a firewall for what it does not
//! translate, or both. At the core, [`Internet::path_mut`] adds a link between two addresses alone, for faults that only
//! one path has.
//!
//! How to drive it: [`Internet::send`] what hosts send, advance the clock to [`Internet::next_event`], hand out what
//! [`Internet::deliver_until`] returns. Times never go back.

mod counters;
mod firewall;
mod forward;
mod internet;
mod link;
mod nat;
mod ports;
mod rng;
mod session;
mod sites;

pub use counters::{BoxCounters, DropReason, Drops, LinkCounters};
pub use firewall::FirewallConfig;
pub use forward::{Delivery, SendError};
pub use internet::{Attachment, BoxConfig, BoxId, Direction, HostId, InterfaceId, Internet, Segment};
pub use link::{Link, LinkConfig, Loss, Rate};
pub use nat::NatConfig;
pub use ports::{FIRST_PORT, PORT_COUNT, PortAllocation};
pub use rng::{Replay, SimRng};
pub use session::{Dependence, Lifetime, Refresh};
pub use sites::{NatKind, Site, SiteOptions};
