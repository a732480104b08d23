//! What a trusted peer may do: protocols and ports, and the replies to what was allowed.

mod flows;
mod ports;

pub use flows::{Direction, FlowTable, MAX_FLOWS, Verdict};
pub use ports::{PortSpec, PortSpecError, Protocol};
