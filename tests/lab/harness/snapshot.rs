//! A host's links, addresses, routes and rules, to be compared byte for byte.

use super::Host;

const VIEWS: &[&str] = &[
    "ip -d link show",
    "ip -d addr show",
    "ip -d -4 route show table all",
    "ip -d -6 route show table all",
    "ip -d -4 rule show",
    "ip -d -6 rule show",
    "cat /etc/resolv.conf",
];

/// What a host looks like to its administrator.
#[derive(PartialEq, Eq)]
pub(crate) struct Snapshot(String);

impl Snapshot {
    /// Takes it, after the kernel has finished with addresses it is still checking.
    pub(crate) fn of(host: &Host) -> Self {
        host.wait_until_settled();
        let view = |words: &&str| format!("# {words}\n{}", host.ok(words));
        Self(VIEWS.iter().map(view).collect())
    }

    /// Fails the test when `later` differs, and says where.
    pub(crate) fn assert_same(&self, later: &Self, when: &str) {
        if self == later {
            return;
        }
        let differing = |mark: &'static str, one: &Self, other: &Self| -> String {
            let other: Vec<&str> = other.0.lines().collect();
            one.0.lines().filter(|line| !other.contains(line)).map(|line| format!("{mark} {line}\n")).collect()
        };
        panic!("the host is not as before {when}:\n{}{}", differing("-", self, later), differing("+", later, self));
    }
}
