//! Facts about this machine that specs depend on, asked once at start.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use oci_spec::runtime::{Capability, PosixRlimitType};

use super::capabilities::{self, CapabilitySet};
use super::selinux::SelinuxContexts;

/// What this machine and this process have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostFacts {
    pub hostname: String,
    /// cgroup v2 carries the controllers.
    pub cgroup_v2: bool,
    /// systemd makes cgroups: it manages this machine, unless the command line says otherwise.
    pub systemd_cgroup: bool,
    /// Swap can be limited by cgroup.
    pub swap: bool,
    /// Huge pages can be limited by cgroup.
    pub hugetlb: bool,
    pub seccomp: bool,
    pub apparmor: bool,
    /// What the policy has for containers, where SELinux is on.
    pub selinux: Option<SelinuxContexts>,
    /// What a container can be given at most: what this process holds.
    pub capabilities: CapabilitySet,
    /// The score of this process; without CAP_SYS_RESOURCE nothing below it can be set.
    pub oom_score_adj: i32,
    /// Hard resource limits of this process; without CAP_SYS_RESOURCE nothing above them can be set.
    pub hard_limits: BTreeMap<PosixRlimitKey, u64>,
    /// The kernel makes mounts read-only with all below (mount_setattr(2), 5.12).
    pub recursive_read_only: bool,
    /// The kernel maps ids of mounts (5.12), of overlay too (5.19).
    pub idmapped_mounts: bool,
}

/// A resource by its number in the order of [`PosixRlimitType`], which has none of its own.
pub type PosixRlimitKey = u8;

impl HostFacts {
    /// Asks the kernel. What cannot be read is taken as not there. Blocks for some small files of /proc and /sys.
    pub fn detect() -> Self {
        let status = read("/proc/self/status");
        let kernel = version(&read("/proc/sys/kernel/osrelease"));
        let cgroups = kernel::cgroup::Cgroups::detect().ok();
        Self {
            hostname: read("/proc/sys/kernel/hostname").trim().to_owned(),
            cgroup_v2: cgroups.as_ref().is_some_and(kernel::cgroup::Cgroups::is_v2),
            systemd_cgroup: Path::new("/run/systemd/system").is_dir(),
            swap: cgroups.as_ref().is_some_and(has_swap),
            hugetlb: cgroups.as_ref().is_some_and(has_hugetlb),
            seccomp: Path::new("/proc/sys/kernel/seccomp/actions_avail").exists(),
            apparmor: super::apparmor::is_enabled(),
            selinux: selinux_contexts(),
            capabilities: held(&status),
            oom_score_adj: read("/proc/self/oom_score_adj").trim().parse().unwrap_or(0),
            hard_limits: hard_limits(&read("/proc/self/limits")),
            recursive_read_only: kernel >= (5, 12),
            idmapped_mounts: kernel >= (5, 19),
        }
    }

    /// Whether scores below and limits above this process's own may be set.
    pub fn may_raise(&self) -> bool {
        self.capabilities.contains(&Capability::SysResource)
    }

    /// The hard limit on a resource; none is no limit.
    pub fn hard_limit(&self, resource: PosixRlimitType) -> Option<u64> {
        self.hard_limits.get(&(resource as u8)).copied()
    }
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// Major and minor of `6.1.0-18-amd64`.
fn version(release: &str) -> (u32, u32) {
    let mut numbers = release.trim().split(|c: char| !c.is_ascii_digit()).map(|n| n.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// What may be in a container's bounding set: in ours, and permitted.
fn held(status: &str) -> CapabilitySet {
    let mask = |name: &str| {
        let line = status.lines().find_map(|l| l.strip_prefix(name));
        line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0)
    };
    capabilities::of_mask(mask("CapBnd:") & mask("CapPrm:"))
}

/// A group's swap files are there for each group but the root's own, so our group or one below the root is asked.
fn has_swap(cgroups: &kernel::cgroup::Cgroups) -> bool {
    let name = if cgroups.is_v2() { "memory.swap.max" } else { "memory.memsw.limit_in_bytes" };
    let own = own_group(&read("/proc/self/cgroup"));
    let mut groups = vec![own];
    groups.extend(cgroups.children("/"));
    groups.iter().flat_map(|group| cgroups.dirs(group)).any(|dir| dir.join(name).exists())
}

fn has_hugetlb(cgroups: &kernel::cgroup::Cgroups) -> bool {
    let mut hierarchies = cgroups.layout().hierarchies().iter();
    if !cgroups.is_v2() {
        return hierarchies.any(|h| h.has("hugetlb"));
    }
    hierarchies.any(|h| {
        let offered = fs::read_to_string(h.mount.join("cgroup.controllers")).unwrap_or_default();
        offered.split_whitespace().any(|c| c == "hugetlb")
    })
}

/// The group that `/proc/self/cgroup` names for memory, or for version 2.
fn own_group(text: &str) -> String {
    let of = |wanted: &str| {
        text.lines().find_map(|line| {
            let mut parts = line.splitn(3, ':').skip(1);
            let found = parts.next()?.split(',').any(|c| c == wanted);
            found.then(|| parts.next().unwrap_or("/").to_owned())
        })
    };
    of("memory").or_else(|| of("")).unwrap_or_else(|| "/".into())
}

/// Source: proc(5), /proc/PID/limits: name, soft, hard, units, in columns.
fn hard_limits(text: &str) -> BTreeMap<PosixRlimitKey, u64> {
    const NAMES: [(&str, PosixRlimitType); 16] = [
        ("Max cpu time", PosixRlimitType::RlimitCpu),
        ("Max file size", PosixRlimitType::RlimitFsize),
        ("Max data size", PosixRlimitType::RlimitData),
        ("Max stack size", PosixRlimitType::RlimitStack),
        ("Max core file size", PosixRlimitType::RlimitCore),
        ("Max resident set", PosixRlimitType::RlimitRss),
        ("Max processes", PosixRlimitType::RlimitNproc),
        ("Max open files", PosixRlimitType::RlimitNofile),
        ("Max locked memory", PosixRlimitType::RlimitMemlock),
        ("Max address space", PosixRlimitType::RlimitAs),
        ("Max file locks", PosixRlimitType::RlimitLocks),
        ("Max pending signals", PosixRlimitType::RlimitSigpending),
        ("Max msgqueue size", PosixRlimitType::RlimitMsgqueue),
        ("Max nice priority", PosixRlimitType::RlimitNice),
        ("Max realtime priority", PosixRlimitType::RlimitRtprio),
        ("Max realtime timeout", PosixRlimitType::RlimitRttime),
    ];
    let hard = |name: &str| {
        let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
        rest.split_whitespace().nth(1)?.parse().ok()
    };
    NAMES.iter().filter_map(|(name, resource)| Some((*resource as u8, hard(name)?))).collect()
}

/// Those that the policy has for containers; none where SELinux is off, or has no policy yet or one that knows none.
fn selinux_contexts() -> Option<SelinuxContexts> {
    let own = read("/proc/self/attr/current");
    if !Path::new("/sys/fs/selinux/enforce").exists() || own.trim_end_matches(['\0', '\n']) == "kernel" {
        return None;
    }
    let config = read("/etc/selinux/config");
    let policy = config.lines().find_map(|line| line.strip_prefix("SELINUXTYPE=")).unwrap_or("targeted").trim();
    let of_policy = format!("/etc/selinux/{policy}/contexts/lxc_contexts");
    let files = ["/usr/share/containers/selinux/contexts", &of_policy];
    let text = files.iter().find_map(|file| fs::read_to_string(file).ok()).unwrap_or_default();
    let contexts = SelinuxContexts::parse(&text);
    if contexts.is_none() {
        tracing::warn!("containers have no SELinux label: neither {} says which", files.join(" nor "));
    }
    contexts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_their_first_two_numbers() {
        assert_eq!(version("6.1.0-18-amd64\n"), (6, 1));
        assert_eq!(version("5.12\n"), (5, 12));
        assert_eq!(version(""), (0, 0));
    }

    #[test]
    fn held_is_what_is_permitted_within_the_bounding_set() {
        let status = "CapPrm:\t0000000000000003\nCapBnd:\t0000000000000006\n";
        assert_eq!(held(status), CapabilitySet::from([Capability::DacOverride]));
    }

    #[test]
    fn limits_are_the_hard_ones() {
        let text = "Limit                     Soft Limit           Hard Limit           Units     \n\
                    Max cpu time              unlimited            unlimited            seconds   \n\
                    Max open files            1024                 20000                files     \n";
        let limits = HostFacts { hard_limits: hard_limits(text), ..HostFacts::default() };
        assert_eq!(limits.hard_limit(PosixRlimitType::RlimitNofile), Some(20000));
        assert_eq!(limits.hard_limit(PosixRlimitType::RlimitCpu), None);
    }

    #[test]
    fn the_own_group_is_memorys_or_version_2s() {
        assert_eq!(own_group("4:memory:/a\n0::/b\n"), "/a");
        assert_eq!(own_group("0::/b\n"), "/b");
        assert_eq!(own_group(""), "/");
    }

    #[test]
    fn this_machine_has_a_name_and_this_process_limits() {
        let host = HostFacts::detect();
        assert!(!host.hostname.is_empty());
        assert!(host.hard_limit(PosixRlimitType::RlimitNofile).is_some());
    }
}
