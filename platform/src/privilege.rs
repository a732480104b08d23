//! May this process create interfaces and set routes?

use std::io;

/// The right that is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MissingRight {
    /// The capability `CAP_NET_ADMIN` (Linux).
    NetAdmin,
    /// Effective user id 0 (macOS).
    Root,
}

/// Why the process cannot run a network.
#[derive(Debug, thiserror::Error)]
pub enum PrivilegeError {
    /// The process lacks the right to administer the network.
    #[error("not allowed to administer the network (missing: {missing:?})")]
    NotRoot {
        /// What would be enough.
        missing: MissingRight,
    },
    /// `/dev/net/tun` is missing: no driver, or a container without the device.
    #[error("the host has no TUN device")]
    NoTunDevice,
    /// `/dev/net/tun` is there and may not be opened: a container's device rules, for one.
    #[error("the TUN device may not be opened")]
    TunDenied,
    /// The question could not be answered.
    #[error("cannot find out about privileges: {0}")]
    Unknown(#[source] io::Error),
}

/// Checks that the process may administer the network and that the TUN device can be opened. Creates nothing.
///
/// # Errors
/// The first thing that is missing, see [`PrivilegeError`].
pub fn check_network_admin() -> Result<(), PrivilegeError> {
    crate::os::privilege::check_network_admin()
}
