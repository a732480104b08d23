//! Who may do what over the control socket: everybody on the host may look, root and the group `agentnet` may change.

use nix::unistd::{Gid, Group, Uid, User, getgrouplist};
use tokio::net::unix::UCred;

use crate::api::{Error, ErrorCode};

/// Members of this group may change the agent.
const GROUP: &str = "agentnet";

/// Who connected.
#[derive(Debug, Clone, Copy)]
pub(super) struct Caller {
    may_change: bool,
}

impl Caller {
    /// Decides by the credentials the kernel vouches for.
    pub(super) fn from_credentials(credentials: Option<UCred>) -> Self {
        let may_change = credentials.is_some_and(|caller| {
            let uid = Uid::from_raw(caller.uid());
            // The agent's own user started it and could stop it in other ways.
            uid.is_root() || uid == Uid::effective() || is_member(uid, Gid::from_raw(caller.gid()))
        });
        Self { may_change }
    }

    /// # Errors
    /// `not_permitted`.
    pub(super) fn require_change(self) -> Result<(), Error> {
        if self.may_change {
            return Ok(());
        }
        Err(Error::new(
            ErrorCode::NotPermitted,
            format!("only root and members of the group {GROUP} may change this agent"),
            format!("use sudo, or join the group: `sudo usermod -aG {GROUP} $USER` and log in again"),
        ))
    }
}

/// Whether the group is the caller's own or one the user database lists for it.
fn is_member(uid: Uid, gid: Gid) -> bool {
    let Ok(Some(group)) = Group::from_name(GROUP) else { return false };
    if group.gid == gid {
        return true;
    }
    let Ok(Some(user)) = User::from_uid(uid) else { return false };
    let Ok(name) = std::ffi::CString::new(user.name) else { return false };
    getgrouplist(&name, user.gid).is_ok_and(|groups| groups.contains(&group.gid))
}
