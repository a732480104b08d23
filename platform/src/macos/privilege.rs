use crate::privilege::{MissingRight, PrivilegeError};

/// utun is built into the kernel, so the user id is all there is to ask.
pub(crate) fn check_network_admin() -> Result<(), PrivilegeError> {
    if nix::unistd::geteuid().is_root() { Ok(()) } else { Err(PrivilegeError::NotRoot { missing: MissingRight::Root }) }
}
