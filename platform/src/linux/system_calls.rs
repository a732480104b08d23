//! The system calls of a running agent, as a filter: seccomp(2).
//!
//! 1. What is listed here is let through, some of it only with certain arguments.
//! 2. Everything else fails with EPERM: a library that tries something else must be able to go on without.
//! 3. What Linux has got since 5.3 and is not listed fails with ENOSYS: libraries then take the older call.

use std::collections::BTreeMap;

use libc::c_long;
use nix::unistd::geteuid;
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

use crate::confine::ConfineError;

/// Numbers that mean the same on every processor. The last of them leaves room for kernels to come.
const RECENT: std::ops::Range<c_long> = 424..512;

const THREADS: &[c_long] = &[
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_rseq,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_restart_syscall,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
];

const MEMORY: &[c_long] = &[libc::SYS_brk, libc::SYS_madvise, libc::SYS_mremap, libc::SYS_munmap, libc::SYS_membarrier];

const TIME_AND_CHANCE: &[c_long] = &[
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_getrandom,
    libc::SYS_gettimeofday,
    libc::SYS_nanosleep,
];

/// Questions about the process and its host. They change nothing.
const QUESTIONS: &[c_long] = &[
    libc::SYS_capget,
    libc::SYS_getcwd,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getgroups,
    libc::SYS_getrusage,
    libc::SYS_getuid,
    libc::SYS_sysinfo,
    libc::SYS_uname,
];

const EVENTS: &[c_long] = &[
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_eventfd2,
    libc::SYS_ppoll,
    libc::SYS_pselect6,
    libc::SYS_pipe2,
];

/// Which files, is a matter of the limits on files.
const FILES: &[c_long] = &[
    libc::SYS_close,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_fadvise64,
    libc::SYS_fallocate,
    libc::SYS_fcntl,
    libc::SYS_fdatasync,
    libc::SYS_flock,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_getdents64,
    libc::SYS_lseek,
    libc::SYS_newfstatat,
    libc::SYS_openat,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_read,
    libc::SYS_readlinkat,
    libc::SYS_readv,
    libc::SYS_renameat2,
    libc::SYS_statx,
    libc::SYS_sync_file_range,
    libc::SYS_unlinkat,
    libc::SYS_write,
    libc::SYS_writev,
];

/// Not listen(2): the control socket listens by now, and nothing else ever does.
const SOCKETS: &[c_long] = &[
    libc::SYS_accept4,
    libc::SYS_bind,
    libc::SYS_connect,
    libc::SYS_getpeername,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_recvfrom,
    libc::SYS_recvmmsg,
    libc::SYS_recvmsg,
    libc::SYS_sendmmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_shutdown,
    libc::SYS_socketpair,
];

/// Older names of the above, which the C library prefers on this processor.
#[cfg(target_arch = "x86_64")]
const OLDER: &[c_long] = &[
    libc::SYS_accept,
    libc::SYS_access,
    libc::SYS_dup2,
    libc::SYS_epoll_wait,
    libc::SYS_lstat,
    libc::SYS_open,
    libc::SYS_pipe,
    libc::SYS_poll,
    libc::SYS_readlink,
    libc::SYS_rename,
    libc::SYS_renameat,
    libc::SYS_select,
    libc::SYS_stat,
    libc::SYS_time,
    libc::SYS_unlink,
];
#[cfg(target_arch = "aarch64")]
const OLDER: &[c_long] = &[libc::SYS_accept, libc::SYS_renameat];
#[cfg(target_arch = "riscv64")]
const OLDER: &[c_long] = &[libc::SYS_accept];

/// `PR_SET_VMA` of linux/prctl.h: the C library names its memory.
const PR_SET_VMA: u64 = 0x5356_4d41;
/// linux/netfilter_ipv4/ip_tables.h, netfilter_arp/arp_tables.h, netfilter_bridge/ebtables.h, ip_vs.h and their IPv6 twins:
/// from here on options set rules of the firewall, of bridges and of load balancing.
const FIREWALL_OPTIONS: u64 = 64;
/// The bits of socket(2)'s type that are not flags.
const SOCKET_TYPE: u64 = 0xf;

pub(crate) fn limit() -> Result<(), ConfineError> {
    let failed = |error: &dyn std::fmt::Display| ConfineError::SystemCalls(error.to_string());
    let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(|_| ConfineError::Unsupported)?;
    for filter in [answer_recent(arch), refuse_unlisted(arch)] {
        let program = filter.and_then(BpfProgram::try_from).map_err(|error| failed(&error))?;
        seccompiler::apply_filter(&program).map_err(|error| failed(&error))?;
    }
    Ok(())
}

/// ENOSYS for what is recent and not listed.
fn answer_recent(arch: TargetArch) -> Result<SeccompFilter, BackendError> {
    let recent = RECENT.filter(|number| !listed().any(|listed| listed == *number));
    let answer = SeccompAction::Errno(libc::ENOSYS.cast_unsigned());
    SeccompFilter::new(recent.map(|number| (number, Vec::new())).collect(), SeccompAction::Allow, answer, arch)
}

/// EPERM for everything else. It lets through what [`answer_recent`] answers: of two refusals the later filter's counts.
fn refuse_unlisted(arch: TargetArch) -> Result<SeccompFilter, BackendError> {
    let mut rules: BTreeMap<c_long, Vec<SeccompRule>> = RECENT.chain(listed()).map(|call| (call, Vec::new())).collect();
    rules.extend(by_arguments()?);
    let refuse = SeccompAction::Errno(libc::EPERM.cast_unsigned());
    SeccompFilter::new(rules, refuse, SeccompAction::Allow, arch)
}

fn listed() -> impl Iterator<Item = c_long> {
    let groups = [THREADS, MEMORY, TIME_AND_CHANCE, QUESTIONS, EVENTS, FILES, SOCKETS, OLDER];
    groups.into_iter().flatten().copied()
}

/// What is let through with certain arguments only.
fn by_arguments() -> Result<Vec<(c_long, Vec<SeccompRule>)>, BackendError> {
    let thread = number(libc::CLONE_THREAD);
    let executable = number(libc::PROT_EXEC);
    let writable = number(libc::PROT_WRITE);
    let own = u64::from(std::process::id());
    Ok(vec![
        // Threads, no processes.
        (libc::SYS_clone, vec![all([bits(0, thread, thread)])?]),
        // Memory to be written or to be run, never both: for the modules of the name service.
        (libc::SYS_mmap, vec![all([bits(2, executable, 0)])?, all([bits(2, writable, 0)])?]),
        (libc::SYS_mprotect, vec![all([bits(2, executable, 0)])?]),
        (libc::SYS_tgkill, vec![all([is(0, own)])?]),
        (libc::SYS_prctl, one_of(0, &[number(libc::PR_SET_NAME), number(libc::PR_GET_NAME), PR_SET_VMA])?),
        // Looking at limits; the third argument would set them.
        (libc::SYS_prlimit64, vec![all([long(2, SeccompCmpOp::Eq, 0)])?]),
        (libc::SYS_ioctl, one_of(1, &ioctls())?),
        (libc::SYS_socket, sockets()?),
        (libc::SYS_setsockopt, socket_options()?),
    ])
}

/// Blocking or not, is this a terminal, and an interface's number for its name.
fn ioctls() -> [u64; 6] {
    // The type of these constants differs between C libraries.
    #[allow(clippy::unnecessary_cast)]
    [
        libc::FIONBIO as u64,
        libc::FIOCLEX as u64,
        libc::FIONREAD as u64,
        libc::TCGETS as u64,
        libc::SIOCGIFINDEX as u64,
        libc::SIOCGIFNAME as u64,
    ]
}

/// Datagrams and streams; of netlink only that of links, addresses, routes and queueing, not the firewall. Services of the
/// host do what root asks of them over Unix sockets: a process that is still root gets none.
fn sockets() -> Result<Vec<SeccompRule>, BackendError> {
    let route = [is(0, number(libc::AF_NETLINK)), is(2, number(libc::NETLINK_ROUTE))];
    let mut rules = vec![all(route)?];
    if !geteuid().is_root() {
        rules.push(all([is(0, number(libc::AF_UNIX))])?);
    }
    for family in [libc::AF_INET, libc::AF_INET6] {
        for kind in [libc::SOCK_DGRAM, libc::SOCK_STREAM] {
            rules.push(all([is(0, number(family)), bits(1, SOCKET_TYPE, number(kind))])?);
        }
    }
    Ok(rules)
}

/// All but the firewall's.
fn socket_options() -> Result<Vec<SeccompRule>, BackendError> {
    let plain = [libc::SOL_SOCKET, libc::IPPROTO_TCP, libc::IPPROTO_UDP, libc::SOL_NETLINK];
    let mut rules = one_of(1, &plain.map(number))?;
    for level in [libc::IPPROTO_IP, libc::IPPROTO_IPV6] {
        let below = condition(2, SeccompCmpArgLen::Dword, SeccompCmpOp::Lt, FIREWALL_OPTIONS);
        rules.push(all([is(1, number(level)), below])?);
    }
    Ok(rules)
}

type Condition = Result<SeccompCondition, BackendError>;

/// The conditions together.
fn all<const N: usize>(conditions: [Condition; N]) -> Result<SeccompRule, BackendError> {
    SeccompRule::new(conditions.into_iter().collect::<Result<_, _>>()?)
}

/// An argument has one of these values.
fn one_of(argument: u8, values: &[u64]) -> Result<Vec<SeccompRule>, BackendError> {
    values.iter().map(|value| all([is(argument, *value)])).collect()
}

/// An argument of 32 bits has this value.
fn is(argument: u8, value: u64) -> Condition {
    condition(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value)
}

/// The bits of `mask` in an argument of 32 bits are these.
fn bits(argument: u8, mask: u64, value: u64) -> Condition {
    condition(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::MaskedEq(mask), value)
}

fn long(argument: u8, operator: SeccompCmpOp, value: u64) -> Condition {
    condition(argument, SeccompCmpArgLen::Qword, operator, value)
}

fn condition(argument: u8, length: SeccompCmpArgLen, operator: SeccompCmpOp, value: u64) -> Condition {
    SeccompCondition::new(argument, length, operator, value)
}

/// A constant of the C library as the kernel sees it in a register.
fn number(constant: libc::c_int) -> u64 {
    u64::from(constant.cast_unsigned())
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener, UdpSocket};
    use std::process::Command;
    use std::{fs, io, ptr};

    use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};

    use super::*;

    /// On a thread of its own, which takes its filter with it.
    fn apart(test: impl FnOnce() + Send) {
        std::thread::scope(|scope| scope.spawn(test).join().unwrap());
    }

    fn errno(result: c_long) -> i32 {
        if result == -1 { io::Error::last_os_error().raw_os_error().unwrap() } else { 0 }
    }

    fn call(number: c_long, arguments: [c_long; 3]) -> i32 {
        let [a, b, c] = arguments;
        // SAFETY: every call of these tests is refused before the kernel looks at its arguments, or takes only numbers
        // and null pointers.
        errno(unsafe { libc::syscall(number, a, b, c, 0, 0, 0) })
    }

    #[test]
    fn what_an_attacker_would_call_is_refused() {
        const FORBIDDEN: &[c_long] = &[
            libc::SYS_execve,
            libc::SYS_execveat,
            libc::SYS_ptrace,
            libc::SYS_process_vm_readv,
            libc::SYS_mount,
            libc::SYS_umount2,
            libc::SYS_pivot_root,
            libc::SYS_chroot,
            libc::SYS_unshare,
            libc::SYS_setns,
            libc::SYS_init_module,
            libc::SYS_finit_module,
            libc::SYS_kexec_load,
            libc::SYS_bpf,
            libc::SYS_perf_event_open,
            libc::SYS_userfaultfd,
            libc::SYS_keyctl,
            libc::SYS_memfd_create,
            libc::SYS_setuid,
            libc::SYS_setresuid,
            libc::SYS_setgroups,
            libc::SYS_capset,
            libc::SYS_fchmodat,
            libc::SYS_fchownat,
            libc::SYS_linkat,
            libc::SYS_symlinkat,
            libc::SYS_mknodat,
            libc::SYS_kill,
            libc::SYS_listen,
            libc::SYS_reboot,
            libc::SYS_settimeofday,
            libc::SYS_seccomp,
        ];
        apart(|| {
            limit().unwrap();
            for number in FORBIDDEN {
                assert_eq!(call(*number, [-1, 0, 0]), libc::EPERM, "system call {number}");
            }
            for number in [libc::SYS_io_uring_setup, libc::SYS_open_tree, libc::SYS_pidfd_getfd, libc::SYS_clone3, 511]
            {
                assert_eq!(call(number, [-1, 0, 0]), libc::ENOSYS, "system call {number}");
            }
            let started = Command::new("/bin/true").spawn().unwrap_err();
            assert_eq!(started.kind(), io::ErrorKind::PermissionDenied);
        });
        assert!(Command::new("/bin/true").status().unwrap().success(), "the filter reaches other threads");
    }

    #[test]
    fn arguments_count() {
        apart(|| {
            let kept = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            limit().unwrap();
            // A process, another's signal, memory to be written and run.
            assert_eq!(call(libc::SYS_clone, [libc::SIGCHLD.into(), 0, 0]), libc::EPERM);
            assert_eq!(call(libc::SYS_tgkill, [1, 1, 0]), libc::EPERM);
            let own = c_long::from(std::process::id());
            assert_eq!(call(libc::SYS_tgkill, [own, own, 0]), 0);
            let mmap = |protection: libc::c_int| {
                let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
                // SAFETY: new memory, which nobody uses; it is left mapped.
                let address = unsafe { libc::mmap(ptr::null_mut(), 4096, protection, flags, -1, 0) };
                address != libc::MAP_FAILED
            };
            assert!(mmap(libc::PROT_READ | libc::PROT_WRITE) && mmap(libc::PROT_READ | libc::PROT_EXEC));
            assert!(!mmap(libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC));
            // An interface's flags, the firewall's options and its netlink.
            let fd = c_long::from(std::os::fd::AsRawFd::as_raw_fd(&kept));
            assert_eq!(call(libc::SYS_ioctl, [fd, 0x8914, 0]), libc::EPERM);
            for level in [libc::IPPROTO_IP, libc::IPPROTO_IPV6] {
                for option in [64, 65, 66, 96, 128, 1153] {
                    assert_eq!(call(libc::SYS_setsockopt, [fd, level.into(), option]), libc::EPERM);
                }
            }
            kept.set_ttl(7).unwrap();
            kept.set_nonblocking(true).unwrap();
            let open = |family, kind, protocol: Option<SockProtocol>| {
                socket(family, kind, SockFlag::empty(), protocol).map(drop)
            };
            let eperm = Err(nix::Error::EPERM);
            let netlink = |protocol| open(AddressFamily::Netlink, SockType::Raw, Some(protocol));
            assert_eq!(netlink(SockProtocol::NetlinkRoute), Ok(()));
            assert_eq!(netlink(SockProtocol::NetlinkNetFilter), eperm);
            assert_eq!(open(AddressFamily::Packet, SockType::Datagram, None), eperm);
            assert_eq!(open(AddressFamily::Inet, SockType::Raw, Some(SockProtocol::Udp)), eperm);
        });
    }

    #[test]
    fn what_an_agent_does_goes_on() {
        let directory = tempfile::tempdir().unwrap();
        apart(|| {
            limit().unwrap();
            let joined = std::thread::Builder::new().name("other".into()).spawn(|| 7).unwrap().join().unwrap();
            assert_eq!(joined, 7);
            let file = directory.path().join("file");
            fs::write(&file, "x").unwrap();
            fs::File::open(&file).unwrap().sync_all().unwrap();
            fs::remove_file(&file).unwrap();
            let [one, other] = [(); 2].map(|()| UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap());
            one.send_to(b"x", other.local_addr().unwrap()).unwrap();
            assert_eq!(other.recv_from(&mut [0; 8]).unwrap().0, 1);
            assert!(nix::unistd::User::from_name("root").unwrap().is_some());
            // What listens is opened before.
            assert_eq!(
                TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap_err().kind(),
                io::ErrorKind::PermissionDenied
            );
        });
    }
}
