//! The rights of a running agent: as few as it gets by with.
//!
//! 1. [`Rights::choose`], before anything is opened: whose rights are enough. The user must be able to reach what the
//!    agent has to reach later; where it is not, root it stays, and that is told.
//! 2. State is opened with that user's rights ([`Rights::act`]); device, sockets and routes are root's to open.
//! 3. [`Rights::reduce`]: the user for good, and of root's capabilities the one to administer the network.
//! 4. [`confine`](mod@confine): no files but its own and those of the name service, no system calls but those it makes.
//!
//! All of that before the first packet of the network is read and before the first thread is started. `docs/privileges.md`
//! has it for people.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use agentnet_platform::confine::{self, Acting, ConfineError, FileLimits, Files, Right, ServiceUser};
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag};
use nix::unistd::{AccessFlags, Uid, User, faccessat};

use super::state_dir::{foreign_file, is_only_of, is_owned_by, open_to_give, path_of};
use crate::api::{Error, ErrorCode, HealthEntry};
use crate::config::{Config, DEFAULT_SOCKET, Origin};

/// What the name service of the C library reads, on all distributions: its configuration, its modules, and where its
/// daemons and those of name resolution keep what they know. Files of /etc are replaced by others of their name while
/// the agent runs, so that the directory must be open to it, not they.
const NAME_SERVICE: [&str; 14] = [
    "/etc",
    "/lib",
    "/lib32",
    "/lib64",
    "/usr/lib",
    "/usr/lib32",
    "/usr/lib64",
    "/nix/store",
    "/gnu/store",
    "/run/systemd/resolve",
    "/run/systemd/userdb",
    "/run/NetworkManager",
    "/run/resolvconf",
    "/var/lib/sss",
];
/// Whichever program writes it keeps it where it likes.
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// What the process is told about itself.
const OWN_PROCESS: &str = "/proc/self";
/// The health entry of a process with more rights than it needs.
const NOT_CONFINED: &str = "not_confined";
/// What to do where a process of root may not become another user: a container without these two.
const USER_HINT: &str = "let it change users (CAP_SETUID and CAP_SETGID): `--cap-add SETUID --cap-add SETGID` for docker \
                         and podman; or with user = \"root\" and a state directory of root's it stays root";
/// What to do where a user cannot be had.
const HINT: &str = "name another with --user, or root to stay root; a service has its own, see User= of its unit";
/// The user that nothing is given up for.
const ROOT: &str = "root";

/// Whose rights the agent is going to have.
#[derive(Debug)]
pub(super) struct Rights {
    /// To become; `None` to stay who started it.
    user: Option<ServiceUser>,
    /// Of root's.
    keep: &'static [Right],
}

impl Rights {
    /// Decides, and gives the directory of the control socket to the user.
    ///
    /// # Errors
    /// The user that was asked for cannot be had.
    pub(super) fn choose(config: &Config, health: &mut Vec<HealthEntry>) -> Result<Self, Error> {
        let user = choose_user(config, health)?;
        let stays_root = user.is_none() && Uid::effective().is_root();
        let keep: &[Right] = match socket_dir_of_others(config) {
            Some(directory) if stays_root && confine::is_supported() => {
                health.push(HealthEntry {
                    code: NOT_CONFINED.to_owned(),
                    message: format!(
                        "the agent keeps the right to files of others: {} is somebody else's, and the control socket must \
                         be removed from there",
                        directory.display()
                    ),
                    hint: "name a directory of its own with --socket".to_owned(),
                });
                &[Right::Network, Right::FilesOfOthers]
            }
            _ => &[Right::Network],
        };
        Ok(Self { user, keep })
    }

    /// The user.
    pub(super) fn user(&self) -> Option<&ServiceUser> {
        self.user.as_ref()
    }

    /// Acts with the user's rights until the guard is gone.
    pub(super) fn act(&self) -> Result<Option<Acting>, Error> {
        let acting = self.user.as_ref().map(ServiceUser::act).transpose();
        acting.map_err(|error| not_taken(self.name(), &error.to_string(), HINT))
    }

    /// Gives up the rights of root.
    ///
    /// # Errors
    /// The user cannot be had. Everything else that fails is told.
    pub(super) fn reduce(&self, health: &mut Vec<HealthEntry>) -> Result<(), Error> {
        if !confine::is_supported() {
            return Ok(());
        }
        if !confine::is_single_threaded() {
            health.push(not_confined("threads were started too early"));
        }
        match confine::keep_only(self.user.as_ref(), self.keep) {
            Ok(()) => Ok(()),
            Err(error @ ConfineError::User { .. }) => Err(not_taken(self.name(), &error.to_string(), HINT)),
            Err(error) => {
                health.push(not_confined(&error.to_string()));
                Ok(())
            }
        }
    }

    fn name(&self) -> &str {
        self.user.as_ref().map_or(ROOT, ServiceUser::name)
    }
}

/// The user to become, who can reach everything by then.
fn choose_user(config: &Config, health: &mut Vec<HealthEntry>) -> Result<Option<ServiceUser>, Error> {
    let asked = config.user.origin != Origin::Default;
    let name = config.user.value.as_str();
    let refused = |why: &str| if asked { Err(not_taken(name, why, HINT)) } else { Ok(None) };
    if !Uid::effective().is_root() {
        let own = User::from_uid(Uid::effective()).ok().flatten();
        return if own.is_some_and(|own| own.name == name) { Ok(None) } else { refused("it was not started as root") };
    }
    if name == ROOT {
        return Ok(None);
    }
    if !confine::is_supported() {
        return refused(&ConfineError::Unsupported.to_string());
    }
    let found = ServiceUser::find(name).map_err(|error| not_taken(name, &error.to_string(), HINT))?;
    let Some(user) = found else {
        if !asked {
            tracing::info!(
                hint = format!("sudo useradd --system --user-group {name}"),
                "there is no user {name}: the agent stays root, without root's rights but the one over the network"
            );
        }
        return refused("there is no such user");
    };
    if user.uid().is_root() {
        return Ok(None);
    }
    match prepare(&user, config) {
        Ok(()) => Ok(Some(user)),
        // Root cannot have a directory that is somebody else's: it would end there, with a worse reason.
        Err(obstacle) if asked || is_theirs(config, &user) => Err(not_taken(name, &obstacle.why, &obstacle.hint)),
        Err(obstacle) => {
            health.push(HealthEntry {
                code: "runs_as_root".to_owned(),
                message: format!("the agent runs as root, not as {name}: {}", obstacle.why),
                hint: obstacle.hint,
            });
            Ok(None)
        }
    }
}

/// The directory of the control socket, if root could write there by its special right alone.
fn socket_dir_of_others(config: &Config) -> Option<&Path> {
    let directory = config.socket.value.parent()?;
    let found = fs::metadata(directory).ok()?;
    (found.uid() != 0 && found.mode() & 0o003 != 0o003).then_some(directory)
}

/// From here on the kernel refuses everything that a running agent does not do.
pub(super) fn confine_agent(config: &Config, file: Option<&Path>, health: &mut Vec<HealthEntry>) {
    if !config.confine.value {
        return health.push(switched_off());
    }
    let removable = config.socket.value.parent().map(Path::to_owned);
    let limits = Files {
        writable: vec![config.state_dir.value.clone()],
        removable: removable.into_iter().collect(),
        readable: readable(file),
    };
    confine(&limits, health);
}

/// The same for a rendezvous server, which needs no capability at all.
pub(super) fn confine_server(state_dir: &Path, wanted: bool) {
    let mut health = Vec::new();
    if confine::is_supported() {
        if let Err(error) = confine::keep_only(None, &[]) {
            health.push(not_confined(&error.to_string()));
        }
        match wanted {
            true => {
                let writable = vec![state_dir.to_owned()];
                confine(&Files { writable, removable: Vec::new(), readable: readable(None) }, &mut health);
            }
            false => health.push(switched_off()),
        }
    }
    for HealthEntry { message, hint, .. } in health {
        tracing::warn!(hint, "{message}");
    }
}

fn confine(files: &Files, health: &mut Vec<HealthEntry>) {
    if !confine::is_supported() {
        return;
    }
    let limits = match confine::limit_files(files) {
        Ok(limits) => limits,
        Err(error) => {
            health.push(not_confined(&error.to_string()));
            FileLimits::None
        }
    };
    if let Err(error) = confine::limit_system_calls() {
        health.push(not_confined(&error.to_string()));
    }
    let user = Uid::effective();
    match limits {
        FileLimits::None => tracing::warn!(%user, "confined, but for files: this kernel has no landlock"),
        limits => tracing::info!(%user, files = ?limits, "confined"),
    }
}

/// The directory of the configuration file, too, as editors replace it by another of its name.
fn readable(file: Option<&Path>) -> Vec<PathBuf> {
    let resolver = fs::canonicalize(RESOLV_CONF).ok().and_then(|file| file.parent().map(Path::to_owned));
    let fixed = NAME_SERVICE.iter().chain([&OWN_PROCESS]).map(PathBuf::from);
    let named = file.and_then(|file| std::path::absolute(file).ok()?.parent().map(Path::to_owned));
    let found = resolver.into_iter().chain(named).filter(|directory| directory != Path::new("/"));
    fixed.chain(found).collect()
}

/// What keeps the agent from becoming a user, and what to do about it.
struct Obstacle {
    why: String,
    hint: String,
}

impl Obstacle {
    fn new(why: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { why: why.into(), hint: hint.into() }
    }
}

/// Whether the state directory is the user's already.
fn is_theirs(config: &Config, user: &ServiceUser) -> bool {
    is_owned_by(&config.state_dir.value, user.uid()).unwrap_or(false)
}

/// Sees to it that the user can reach everything later on. Changes nothing unless it can.
fn prepare(user: &ServiceUser, config: &Config) -> Result<(), Obstacle> {
    let state_dir = config.state_dir.value.as_path();
    let socket_dir = config.socket.value.parent().unwrap_or(Path::new("/"));
    let chown = |path: &Path| format!("sudo chown --recursive {}: {}", user.name(), path.display());
    if !is_theirs(config, user)
        && let Some(foreign) = foreign_file(state_dir).map_err(|error| unreachable(state_dir, &error))?
    {
        let why = format!("{} is not the agent's alone, it also has {foreign}", state_dir.display());
        return Err(Obstacle::new(
            why,
            format!("name a directory of its own with --state-dir, or {}", chown(state_dir)),
        ));
    }
    let is_writable = {
        let _acting = user.act().map_err(|error| Obstacle::new(error.to_string(), USER_HINT))?;
        for directory in [state_dir, socket_dir] {
            look(directory.parent().unwrap_or(directory)).map_err(|error| unreachable(directory, &error))?;
        }
        is_allowed(socket_dir, AccessFlags::W_OK | AccessFlags::X_OK)
    };
    if is_writable || socket_dir == state_dir {
        return Ok(());
    }
    let is_default = Path::new(DEFAULT_SOCKET).parent() == Some(socket_dir);
    let given = match fs::metadata(socket_dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => make_for(user, socket_dir),
        // Made by an agent that stayed root, or at boot.
        Ok(found) if is_default && is_only_of(&found, Uid::effective()) => give(user, socket_dir, None),
        Ok(_) => {
            let why = format!("{} may not remove the control socket from {}", user.name(), socket_dir.display());
            return Err(Obstacle::new(
                why,
                format!("name a directory of its own with --socket, or {}", chown(socket_dir)),
            ));
        }
        Err(error) => Err(error),
    };
    given.map_err(|error| match error.kind() {
        io::ErrorKind::PermissionDenied => Obstacle::new(
            format!("{} cannot be given to it: {error}", socket_dir.display()),
            format!(
                "make it and give it away before: `install --directory --owner {} {}`; a container does without that \
                 with CAP_CHOWN (`--cap-add CHOWN`)",
                user.name(),
                socket_dir.display()
            ),
        ),
        _ => unreachable(socket_dir, &error),
    })
}

/// Whether what is there of a path can be passed through.
fn look(path: &Path) -> io::Result<()> {
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => path.parent().map_or(Ok(()), look),
        Err(error) => Err(error),
        Ok(_) if is_allowed(path, AccessFlags::X_OK) => Ok(()),
        Ok(_) => Err(io::ErrorKind::PermissionDenied.into()),
    }
}

fn is_allowed(path: &Path, access: AccessFlags) -> bool {
    faccessat(AT_FDCWD, path, access, AtFlags::AT_EACCESS).is_ok()
}

/// Everybody may reach the socket; the kernel tells who they are.
fn make_for(user: &ServiceUser, directory: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o755).create(directory)?;
    give(user, directory, Some(0o755))
}

/// Gives the user a directory of root's; one with a mode was made for it, and is empty. One that somebody has put in its
/// place meanwhile, or a link, stays as it is.
fn give(user: &ServiceUser, directory: &Path, mode: Option<u32>) -> io::Result<()> {
    let opened = open_to_give(directory, OFlag::O_NOFOLLOW)?;
    if let Some(mode) = mode {
        if fs::read_dir(path_of(&opened))?.next().is_some() {
            return Err(io::Error::other("it is not the empty one that was made"));
        }
        // Whatever the umask.
        opened.set_permissions(fs::Permissions::from_mode(mode))?;
    }
    fchown(&opened, Some(user.uid().as_raw()), Some(user.gid().as_raw()))
}

fn unreachable(path: &Path, error: &io::Error) -> Obstacle {
    let why = format!("{} is out of its reach: {error}", path.display());
    Obstacle::new(why, "name directories that it can reach with --state-dir and --socket")
}

fn not_taken(name: &str, why: &str, hint: &str) -> Error {
    Error::new(ErrorCode::ConfigInvalid, format!("the agent cannot become the user {name}: {why}"), hint)
}

fn switched_off() -> HealthEntry {
    HealthEntry {
        code: NOT_CONFINED.to_owned(),
        message: "all files of its user and all system calls are open to the agent: confine is off".to_owned(),
        hint: "set confine = \"on\", and start it again".to_owned(),
    }
}

fn not_confined(why: &str) -> HealthEntry {
    HealthEntry {
        code: NOT_CONFINED.to_owned(),
        message: format!("the agent has more rights than it needs: {why}"),
        hint: "see docs/privileges.md; a container's own filter may stand in the way".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::net::ToSocketAddrs;

    use super::*;
    use crate::config::{Key, Settings};

    fn config(given: &[(Key, &str)]) -> Config {
        let mut settings = Settings::default();
        for (key, value) in given {
            settings.set(*key, vec![(*value).to_owned()], Origin::Flag("--flag"));
        }
        Config::from_settings(&settings).unwrap()
    }

    #[test]
    #[cfg_attr(not(target_os = "linux"), ignore = "there is nothing to confine with")]
    fn a_confined_process_has_its_own_files_and_the_name_service() {
        let directory = tempfile::tempdir().unwrap();
        let [state, run, other] = ["state", "run", "other"].map(|name| directory.path().join(name));
        for tree in [&state, &run, &other] {
            fs::create_dir(tree).unwrap();
            fs::write(tree.join("file"), "x").unwrap();
        }
        let socket = run.join("file").display().to_string();
        let config = config(&[(Key::StateDir, state.to_str().unwrap()), (Key::Socket, &socket)]);
        // The limits go with the thread.
        let confined = || {
            let mut health = Vec::new();
            confine_agent(&config, None, &mut health);
            assert_eq!(health, []);
            fs::write(state.join("new"), "x").unwrap();
            fs::rename(state.join("new"), state.join("file")).unwrap();
            fs::remove_file(&config.socket.value).unwrap();
            assert!("localhost:1".to_socket_addrs().unwrap().next().is_some());
            assert!(User::from_name("nobody").unwrap().is_some());
            let group = nix::unistd::Gid::from_raw(0);
            assert!(nix::unistd::getgrouplist(c"root", group).unwrap().contains(&group));
            assert!(agentnet_platform::process::resident_memory().unwrap() > 0);
            let denied = |result: io::Result<()>| result.unwrap_err().kind() == io::ErrorKind::PermissionDenied;
            assert!(denied(fs::read(other.join("file")).map(drop)) && denied(fs::write(run.join("new"), "x")));
            assert!(denied(fs::read("/proc/1/status").map(drop)) && denied(fs::read_dir("/").map(drop)));
        };
        std::thread::scope(|scope| scope.spawn(confined).join().unwrap());
    }

    #[test]
    fn the_switch_is_told() {
        let mut health = Vec::new();
        confine_agent(&config(&[(Key::Confine, "off")]), None, &mut health);
        assert_eq!(health.iter().map(|entry| entry.code.as_str()).collect::<Vec<_>>(), [NOT_CONFINED]);
        assert!(fs::read_dir("/").is_ok());
    }

    #[test]
    fn a_directory_is_given_away_and_where_a_link_leads_is_not() {
        if !Uid::effective().is_root() {
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let [real, link, open] = ["real", "link", "open"].map(|name| directory.path().join(name));
        let user = ServiceUser::find("nobody").unwrap().unwrap();
        make_for(&user, &real).unwrap();
        let owner = |path: &Path| fs::metadata(path).unwrap().uid();
        assert_eq!((owner(&real), fs::metadata(&real).unwrap().mode() & 0o777), (user.uid().as_raw(), 0o755));
        give(&user, &real, None).unwrap_err();
        fs::create_dir(&open).unwrap();
        std::os::unix::fs::symlink(&open, &link).unwrap();
        give(&user, &link, None).unwrap_err();
        fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
        give(&user, &open, None).unwrap_err();
        assert_eq!(owner(&open), 0);
    }

    #[test]
    fn a_user_that_is_asked_for_and_not_there_is_an_error() {
        let error = Rights::choose(&config(&[(Key::User, "no-such-user")]), &mut Vec::new()).unwrap_err();
        assert_eq!(error.code, ErrorCode::ConfigInvalid);
        let root = Rights::choose(&config(&[(Key::User, ROOT)]), &mut Vec::new());
        assert_eq!(root.is_ok_and(|rights| rights.user().is_none()), Uid::effective().is_root());
    }
}
