//! Who may do what over the control socket: everybody on the host may look, root and the group `agentnet` may change.

use nix::unistd::{Gid, Group, Uid, User, getgrouplist};
use tokio::net::unix::UCred;

use crate::api::{Error, ErrorCode};

/// Members of this group may change the agent.
const GROUP: &str = "agentnet";

/// Who connected.
#[derive(Debug, Clone, Copy)]
pub(super) struct Caller {
    /// Vouched for by the kernel; `None` where it cannot tell.
    ids: Option<(Uid, Gid)>,
}

impl Caller {
    pub(super) fn from_credentials(credentials: Option<UCred>) -> Self {
        Self { ids: credentials.map(|caller| (Uid::from_raw(caller.uid()), Gid::from_raw(caller.gid()))) }
    }

    /// Root, or the agent's own user, who started it and could stop it in other ways.
    pub(super) fn is_owner(self) -> bool {
        self.ids.is_some_and(|(uid, _)| uid.is_root() || uid == Uid::effective())
    }

    /// # Errors
    /// `not_permitted`.
    pub(super) async fn require_change(self) -> Result<(), Error> {
        let permitted = match self.ids {
            _ if self.is_owner() => true,
            // The user database may be on another host and slow; nothing else waits for it.
            Some((uid, gid)) => tokio::task::spawn_blocking(move || is_member(uid, gid)).await.unwrap_or(false),
            None => false,
        };
        if permitted {
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
