//! The check of privileges, as root and as nobody.
#![cfg(target_os = "linux")]
#![allow(clippy::disallowed_methods, reason = "a test may read its environment")]

use std::os::unix::process::CommandExt;
use std::process::Command;

use agentnet_platform::privilege::{MissingRight, PrivilegeError, check_network_admin};

/// Tells the child process of the second test apart from its parent.
const AS_NOBODY: &str = "AGENTNET_TEST_AS_NOBODY";
const NOBODY: u32 = 65_534;

#[test]
fn root_may_administer_the_network() {
    check_network_admin().expect("these tests need root and /dev/net/tun");
}

#[test]
fn nobody_may_not_and_is_told_what_is_missing() {
    if std::env::var_os(AS_NOBODY).is_some() {
        let error = check_network_admin().unwrap_err();
        let missing = MissingRight::NetAdmin;
        assert!(matches!(error, PrivilegeError::NotRoot { missing: m } if m == missing), "{error:?}");
        return;
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "nobody_may_not_and_is_told_what_is_missing"])
        .env(AS_NOBODY, "1")
        .uid(NOBODY)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}
