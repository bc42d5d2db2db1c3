//! The RuntimeDefault profile: what ordinary programs call is allowed; what changes the machine, or has had more bugs
//! than users, only with the capability that the kernel asks for it anyway, or not at all. Containers get what
//! containerd and Docker let through; io_uring and sockets of the kernel's crypto and of virtual machines' hosts are
//! left out, as there. Numbers: linux/sched.h, linux/socket.h, personality(2).

use oci_spec::runtime::{
    Arch, Capabilities, Capability, LinuxSeccomp, LinuxSeccompAction as Action, LinuxSeccompArg,
    LinuxSeccompArgBuilder, LinuxSeccompOperator as Operator, LinuxSyscall,
};

/// clone(2) flags that make namespaces: mount, cgroup, UTS, IPC, user, PID, network.
const NAMESPACE_FLAGS: u64 =
    0x0002_0000 | 0x0200_0000 | 0x0400_0000 | 0x0800_0000 | 0x1000_0000 | 0x2000_0000 | 0x4000_0000;
const ENOSYS: u32 = 38;
/// Sockets of these families are refused; between them nothing but 39 lies.
const AF_ALG: u64 = 38;
const AF_VSOCK: u64 = 40;
/// Linux, Linux for 32 bits, either with uname(2) telling of Linux 2.6, and the question for the present one.
const PERSONALITIES: [u64; 5] = [0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// Allowed always.
#[rustfmt::skip]
const ALWAYS: &[&str] = &[
    "accept", "accept4", "access", "adjtimex", "alarm", "bind", "brk", "cachestat", "capget", "capset", "chdir",
    "chmod", "chown", "chown32", "clock_adjtime", "clock_adjtime64", "clock_getres", "clock_getres_time64",
    "clock_gettime", "clock_gettime64", "clock_nanosleep", "clock_nanosleep_time64", "close", "close_range",
    "connect", "copy_file_range", "creat", "dup", "dup2", "dup3", "epoll_create", "epoll_create1", "epoll_ctl",
    "epoll_ctl_old", "epoll_pwait", "epoll_pwait2", "epoll_wait", "epoll_wait_old", "eventfd", "eventfd2", "execve",
    "execveat", "exit", "exit_group", "faccessat", "faccessat2", "fadvise64", "fadvise64_64", "fallocate",
    "fanotify_mark", "fchdir", "fchmod", "fchmodat", "fchmodat2", "fchown", "fchown32", "fchownat", "fcntl",
    "fcntl64", "fdatasync", "fgetxattr", "flistxattr", "flock", "fork", "fremovexattr", "fsetxattr", "fstat",
    "fstat64", "fstatat64", "fstatfs", "fstatfs64", "fsync", "ftruncate", "ftruncate64", "futex", "futex_requeue",
    "futex_time64", "futex_wait", "futex_waitv", "futex_wake", "futimesat", "get_robust_list", "get_thread_area",
    "getcpu", "getcwd", "getdents", "getdents64", "getegid", "getegid32", "geteuid", "geteuid32", "getgid",
    "getgid32", "getgroups", "getgroups32", "getitimer", "getpeername", "getpgid", "getpgrp", "getpid", "getppid",
    "getpriority", "getrandom", "getresgid", "getresgid32", "getresuid", "getresuid32", "getrlimit", "getrusage",
    "getsid", "getsockname", "getsockopt", "gettid", "gettimeofday", "getuid", "getuid32", "getxattr", "getxattrat",
    "inotify_add_watch", "inotify_init", "inotify_init1", "inotify_rm_watch", "io_cancel", "io_destroy",
    "io_getevents", "io_pgetevents", "io_pgetevents_time64", "io_setup", "io_submit", "ioctl", "ioprio_get",
    "ioprio_set", "ipc", "kill", "landlock_add_rule", "landlock_create_ruleset", "landlock_restrict_self", "lchown",
    "lchown32", "lgetxattr", "link", "linkat", "listen", "listmount", "listxattr", "listxattrat", "llistxattr",
    "_llseek", "lremovexattr", "lseek", "lsetxattr", "lstat", "lstat64", "madvise", "map_shadow_stack",
    "membarrier", "memfd_create", "memfd_secret", "mincore", "mkdir", "mkdirat", "mknod", "mknodat", "mlock",
    "mlock2", "mlockall", "mmap", "mmap2", "mprotect", "mq_getsetattr", "mq_notify", "mq_open", "mq_timedreceive",
    "mq_timedreceive_time64", "mq_timedsend", "mq_timedsend_time64", "mq_unlink", "mremap", "mseal", "msgctl",
    "msgget", "msgrcv", "msgsnd", "msync", "munlock", "munlockall", "munmap", "name_to_handle_at", "nanosleep",
    "newfstatat", "_newselect", "open", "openat", "openat2", "pause", "pidfd_open", "pidfd_send_signal", "pipe",
    "pipe2", "pkey_alloc", "pkey_free", "pkey_mprotect", "poll", "ppoll", "ppoll_time64", "prctl", "pread64",
    "preadv", "preadv2", "prlimit64", "process_mrelease", "process_vm_readv", "process_vm_writev", "pselect6",
    "pselect6_time64", "ptrace", "pwrite64", "pwritev", "pwritev2", "read", "readahead", "readlink", "readlinkat",
    "readv", "recv", "recvfrom", "recvmmsg", "recvmmsg_time64", "recvmsg", "remap_file_pages", "removexattr",
    "removexattrat", "rename", "renameat", "renameat2", "restart_syscall", "riscv_hwprobe", "rmdir", "rseq",
    "rt_sigaction", "rt_sigpending", "rt_sigprocmask", "rt_sigqueueinfo", "rt_sigreturn", "rt_sigsuspend",
    "rt_sigtimedwait", "rt_sigtimedwait_time64", "rt_tgsigqueueinfo", "sched_get_priority_max",
    "sched_get_priority_min", "sched_getaffinity", "sched_getattr", "sched_getparam", "sched_getscheduler",
    "sched_rr_get_interval", "sched_rr_get_interval_time64", "sched_setaffinity", "sched_setattr", "sched_setparam",
    "sched_setscheduler", "sched_yield", "seccomp", "select", "semctl", "semget", "semop", "semtimedop",
    "semtimedop_time64", "send", "sendfile", "sendfile64", "sendmmsg", "sendmsg", "sendto", "set_robust_list",
    "set_thread_area", "set_tid_address", "setfsgid", "setfsgid32", "setfsuid", "setfsuid32", "setgid", "setgid32",
    "setgroups", "setgroups32", "setitimer", "setpgid", "setpriority", "setregid", "setregid32", "setresgid",
    "setresgid32", "setresuid", "setresuid32", "setreuid", "setreuid32", "setrlimit", "setsid", "setsockopt",
    "setuid", "setuid32", "setxattr", "setxattrat", "shmat", "shmctl", "shmdt", "shmget", "shutdown", "sigaltstack",
    "signalfd", "signalfd4", "sigprocmask", "sigreturn", "socketcall", "socketpair", "splice", "stat", "stat64",
    "statfs", "statfs64", "statmount", "statx", "symlink", "symlinkat", "sync", "sync_file_range", "syncfs",
    "sysinfo", "tee", "tgkill", "time", "timer_create", "timer_delete", "timer_getoverrun", "timer_gettime",
    "timer_gettime64", "timer_settime", "timer_settime64", "timerfd_create", "timerfd_gettime", "timerfd_gettime64",
    "timerfd_settime", "timerfd_settime64", "times", "tkill", "truncate", "truncate64", "ugetrlimit", "umask",
    "uname", "unlink", "unlinkat", "uretprobe", "utime", "utimensat", "utimensat_time64", "utimes", "vfork",
    "vmsplice", "wait4", "waitid", "waitpid", "write", "writev",
];

/// Allowed with a capability.
const WITH: &[(Capability, &[&str])] = &[
    (Capability::DacReadSearch, &["open_by_handle_at"]),
    (
        Capability::SysAdmin,
        &[
            "bpf",
            "clone",
            "clone3",
            "fanotify_init",
            "fsconfig",
            "fsmount",
            "fsopen",
            "fspick",
            "lookup_dcookie",
            "lsm_get_self_attr",
            "lsm_list_modules",
            "lsm_set_self_attr",
            "mount",
            "mount_setattr",
            "move_mount",
            "open_tree",
            "perf_event_open",
            "quotactl",
            "quotactl_fd",
            "setdomainname",
            "sethostname",
            "setns",
            "syslog",
            "umount",
            "umount2",
            "unshare",
        ],
    ),
    (Capability::SysBoot, &["reboot"]),
    (Capability::SysChroot, &["chroot"]),
    (Capability::SysModule, &["delete_module", "finit_module", "init_module"]),
    (Capability::SysPacct, &["acct"]),
    (Capability::SysPtrace, &["kcmp", "pidfd_getfd", "process_madvise"]),
    (Capability::SysRawio, &["ioperm", "iopl"]),
    (Capability::SysTime, &["clock_settime", "clock_settime64", "settimeofday", "stime"]),
    (Capability::SysTtyConfig, &["vhangup"]),
    (Capability::SysNice, &["get_mempolicy", "mbind", "set_mempolicy", "set_mempolicy_home_node"]),
    (Capability::Syslog, &["syslog"]),
    (Capability::Bpf, &["bpf"]),
    (Capability::Perfmon, &["perf_event_open"]),
];

/// Of one architecture.
#[cfg(target_arch = "x86_64")]
const OF_ARCHITECTURE: &[&str] = &["arch_prctl", "modify_ldt"];
#[cfg(target_arch = "aarch64")]
const OF_ARCHITECTURE: &[&str] =
    &["arm_fadvise64_64", "arm_sync_file_range", "breakpoint", "cacheflush", "set_tls", "sync_file_range2"];
#[cfg(target_arch = "riscv64")]
const OF_ARCHITECTURE: &[&str] = &["riscv_flush_icache"];
#[cfg(target_arch = "powerpc64")]
const OF_ARCHITECTURE: &[&str] = &["swapcontext", "sync_file_range2"];
#[cfg(target_arch = "s390x")]
const OF_ARCHITECTURE: &[&str] = &["s390_pci_mmio_read", "s390_pci_mmio_write", "s390_runtime_instr"];
#[cfg(not(any(
    target_arch = "x86_64",
    target_arch = "aarch64",
    target_arch = "riscv64",
    target_arch = "powerpc64",
    target_arch = "s390x"
)))]
const OF_ARCHITECTURE: &[&str] = &[];

/// On s390 the flags of clone(2) are its second argument.
const CLONE_FLAGS_AT: usize = if cfg!(target_arch = "s390x") { 1 } else { 0 };

/// The filter for a process that holds these capabilities.
pub fn runtime_default(held: &Capabilities) -> LinuxSeccomp {
    let mut rules = vec![allow(ALWAYS, None)];
    rules.extend(PERSONALITIES.map(|p| allow(&["personality"], Some(argument(0, Operator::ScmpCmpEq, p, None)))));
    rules.push(allow(&["socket"], Some(argument(0, Operator::ScmpCmpLt, AF_ALG, None))));
    rules.push(allow(&["socket"], Some(argument(0, Operator::ScmpCmpEq, AF_ALG + 1, None))));
    rules.push(allow(&["socket"], Some(argument(0, Operator::ScmpCmpGt, AF_VSOCK, None))));
    if !OF_ARCHITECTURE.is_empty() {
        rules.push(allow(OF_ARCHITECTURE, None));
    }
    rules.extend(WITH.iter().filter(|(capability, _)| held.contains(capability)).map(|(_, names)| allow(names, None)));
    if !held.contains(&Capability::SysAdmin) {
        let no_namespace = argument(CLONE_FLAGS_AT, Operator::ScmpCmpMaskedEq, NAMESPACE_FLAGS, Some(0));
        rules.push(allow(&["clone"], Some(no_namespace)));
        // Its flags lie in memory, where no filter looks. "No such call" lets the C library fall back to clone.
        let mut clone3 = allow(&["clone3"], None);
        clone3.set_action(Action::ScmpActErrno).set_errno_ret(Some(ENOSYS));
        rules.push(clone3);
    }
    let mut filter = LinuxSeccomp::default();
    filter.set_default_action(Action::ScmpActErrno).set_architectures(architectures()).set_syscalls(Some(rules));
    filter
}

/// The machine's own architecture, and those whose programs its kernel runs too.
pub(super) fn architectures() -> Option<Vec<Arch>> {
    match std::env::consts::ARCH {
        "x86_64" => Some(vec![Arch::ScmpArchX86_64, Arch::ScmpArchX86, Arch::ScmpArchX32]),
        "aarch64" => Some(vec![Arch::ScmpArchAarch64, Arch::ScmpArchArm]),
        "s390x" => Some(vec![Arch::ScmpArchS390x, Arch::ScmpArchS390]),
        "riscv64" => Some(vec![Arch::ScmpArchRiscv64]),
        _ => None,
    }
}

fn allow(names: &[&str], argument: Option<LinuxSeccompArg>) -> LinuxSyscall {
    let mut rule = LinuxSyscall::default();
    rule.set_names(names.iter().map(|n| (*n).to_owned()).collect());
    rule.set_action(Action::ScmpActAllow).set_args(argument.map(|a| vec![a]));
    rule
}

/// For a masked comparison `value` is the mask and `second` what must be left.
fn argument(index: usize, operator: Operator, value: u64, second: Option<u64>) -> LinuxSeccompArg {
    let mut argument = LinuxSeccompArgBuilder::default().index(index).op(operator).value(value);
    if let Some(second) = second {
        argument = argument.value_two(second);
    }
    // Every field is set, so that it can be built.
    argument.build().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the filter does with a call by name, where the argument is of no matter.
    fn allowed(held: &[Capability], name: &str) -> bool {
        let held: Capabilities = held.iter().copied().collect();
        let filter = runtime_default(&held);
        let rules = filter.syscalls().as_ref().unwrap();
        let matching = rules.iter().filter(|r| r.names().iter().any(|n| n == name) && r.args().is_none());
        matching.into_iter().any(|r| r.action() == Action::ScmpActAllow)
    }

    #[test]
    fn capabilities_open_what_needs_them() {
        assert!(allowed(&[], "openat") && allowed(&[], "chmod"));
        for (capability, name) in [
            (Capability::SysAdmin, "sethostname"),
            (Capability::SysAdmin, "clone3"),
            (Capability::SysTime, "clock_settime"),
            (Capability::SysModule, "init_module"),
            (Capability::SysChroot, "chroot"),
        ] {
            assert!(!allowed(&[], name), "{name}");
            assert!(allowed(&[capability], name), "{name}");
        }
        for name in ["io_uring_setup", "kexec_load", "add_key", "keyctl", "userfaultfd", "swapon", "pivot_root"] {
            assert!(!allowed(&[Capability::SysAdmin], name), "{name}");
        }
    }

    #[test]
    fn no_call_is_named_twice() {
        let mut names = ALWAYS.to_vec();
        names.sort_unstable();
        let all = names.len();
        names.dedup();
        assert_eq!(names.len(), all);
        assert!(!names.contains(&"socket") && !names.contains(&"clone") && !names.contains(&"personality"));
    }
}
