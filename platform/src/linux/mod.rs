//! The Linux side.

pub(crate) mod clock;
pub(crate) mod confine;
pub(crate) mod events;
pub(crate) mod network;
pub(crate) mod privilege;
pub(crate) mod process;
pub(crate) mod readiness;
pub(crate) mod socket;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64"))]
pub(crate) mod system_calls;
pub(crate) mod tun;
pub(crate) mod wait;

/// Processors that the filter's library does not know.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64")))]
pub(crate) mod system_calls {
    use crate::confine::ConfineError;

    pub(crate) fn limit() -> Result<(), ConfineError> {
        Err(ConfineError::Unsupported)
    }
}
