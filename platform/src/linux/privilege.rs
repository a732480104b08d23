use std::fs::{self, OpenOptions};
use std::io;

use nix::errno::Errno;

use crate::privilege::{MissingRight, PrivilegeError};

/// `CAP_NET_ADMIN` of linux/capability.h, a bit number.
const CAP_NET_ADMIN: u32 = 12;

const TUN_DEVICE: &str = "/dev/net/tun";

pub(crate) fn check_network_admin() -> Result<(), PrivilegeError> {
    let status = fs::read_to_string("/proc/self/status").map_err(PrivilegeError::Unknown)?;
    let capabilities =
        effective_capabilities(&status).ok_or_else(|| PrivilegeError::Unknown(io::ErrorKind::InvalidData.into()))?;
    if capabilities & (1 << CAP_NET_ADMIN) == 0 {
        return Err(PrivilegeError::NotRoot { missing: MissingRight::NetAdmin });
    }
    match OpenOptions::new().read(true).write(true).open(TUN_DEVICE) {
        Ok(_) => Ok(()),
        Err(error) => Err(match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ENOENT | Errno::ENODEV | Errno::ENXIO | Errno::ENOTDIR) => PrivilegeError::NoTunDevice,
            Some(Errno::EACCES | Errno::EPERM) => PrivilegeError::TunDenied,
            _ => PrivilegeError::Unknown(error),
        }),
    }
}

/// The line `CapEff:` of proc_pid_status(5): 16 hexadecimal digits.
fn effective_capabilities(status: &str) -> Option<u64> {
    let digits = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(digits.trim(), 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn effective_capabilities_are_read_from_the_status_file() {
        let status = "Name:\tx\nCapPrm:\t0000000000000000\nCapEff:\t0000000000001000\nCapBnd:\t1\n";
        assert_eq!(effective_capabilities(status), Some(1 << CAP_NET_ADMIN));
        assert_eq!(effective_capabilities("CapPrm:\t1\n"), None);
        assert_eq!(effective_capabilities("CapEff:\tnonsense\n"), None);
    }
}
