//! The macOS side.

pub(crate) mod clock;
pub(crate) mod confine;
pub(crate) mod events;
pub(crate) mod network;
pub(crate) mod privilege;
pub(crate) mod process;
pub(crate) mod readiness;
pub(crate) mod socket;
pub(crate) mod system_calls;
pub(crate) mod tun;
pub(crate) mod wait;
