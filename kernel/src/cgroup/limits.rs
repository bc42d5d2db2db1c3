//! Limits as values, and how each version of the interface spells them.

use std::fs;
use std::io;
use std::path::Path;

use super::{Cgroups, Result, at};

const MIN_SHARES: u64 = 2;
const MAX_SHARES: u64 = 262_144;
const MIN_QUOTA_MICROS: i64 = 1000;

/// CPU time in microseconds that a group may use in each period.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuQuota {
    /// -1: no limit.
    pub quota: i64,
    pub period: u64,
}

/// What to set on a group. `None` leaves a limit as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Version 1's measure, 2 to 262144, 1024 for one CPU; version 2's weight is computed from it.
    pub cpu_shares: Option<u64>,
    pub cpu_quota: Option<CpuQuota>,
    /// Bytes; -1: no limit.
    pub memory: Option<i64>,
    /// Processes and threads; -1: no limit.
    pub pids: Option<i64>,
    /// Page size as the kernel names it (`2MB`) and bytes.
    pub huge_pages: Vec<(String, u64)>,
}

/// CPU shares for a request in thousandths of a CPU.
pub fn shares(milli_cpu: i64) -> u64 {
    u64::try_from(milli_cpu).unwrap_or(0).saturating_mul(1024).wrapping_div(1000).clamp(MIN_SHARES, MAX_SHARES)
}

/// CPU quota in microseconds a period for a limit in thousandths of a CPU; at least one millisecond, 0 for no limit.
pub fn quota(milli_cpu: i64, period_micros: u64) -> i64 {
    if milli_cpu <= 0 {
        return 0;
    }
    let period = i64::try_from(period_micros).unwrap_or(i64::MAX);
    (milli_cpu.saturating_mul(period) / 1000).max(MIN_QUOTA_MICROS)
}

/// Version 2's cpu.weight (1 to 10000) for version 1's shares, by the linear mapping of KEP-2254.
pub fn weight(shares: u64) -> u64 {
    let shares = shares.clamp(MIN_SHARES, MAX_SHARES);
    1 + (shares - MIN_SHARES) * 9999 / (MAX_SHARES - MIN_SHARES)
}

/// Allows the children of `dir` every controller that the kernel offers there and kubelet's groups use.
pub(super) fn enable_controllers(dir: &Path) -> Result<()> {
    let offered_file = dir.join("cgroup.controllers");
    let file = dir.join("cgroup.subtree_control");
    let offered = match fs::read_to_string(&offered_file) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(at("read", &offered_file))?,
    };
    let enabled = fs::read_to_string(&file).map_err(at("read", &file))?;
    let enabled: Vec<&str> = enabled.split_whitespace().collect();
    for name in ["cpu", "cpuset", "memory", "pids", "io", "hugetlb"] {
        if offered.split_whitespace().any(|o| o == name) && !enabled.contains(&name) {
            fs::write(&file, format!("+{name}")).map_err(at("write", &file))?;
        }
    }
    Ok(())
}

/// A new version 1 cpuset has no CPUs and takes no process until it has some: it gets its parent's.
pub(super) fn inherit_cpuset(dir: &Path) -> Result<()> {
    for name in ["cpuset.cpus", "cpuset.mems"] {
        let file = dir.join(name);
        let Ok(own) = fs::read_to_string(&file) else { continue };
        let parent = dir.parent().map(|p| p.join(name)).unwrap_or_default();
        if own.trim().is_empty() {
            let inherited = fs::read_to_string(&parent).map_err(at("read", &parent))?;
            fs::write(&file, inherited.trim()).map_err(at("write", &file))?;
        }
    }
    Ok(())
}

/// One file of a group and what belongs in it.
#[derive(Debug, PartialEq, Eq)]
struct Setting {
    controller: &'static str,
    file: String,
    value: String,
}

pub(super) fn write(cgroups: &Cgroups, path: &str, limits: &Limits) -> Result<()> {
    let settings = if cgroups.is_v2() { v2(limits) } else { v1(limits) };
    for setting in settings {
        let Some(dir) = cgroups.dir(setting.controller, path) else { continue };
        let file = dir.join(&setting.file);
        if dir.is_dir() && fs::read_to_string(&file).is_ok_and(|now| now.trim() == setting.value) {
            continue;
        }
        match fs::write(&file, &setting.value) {
            // The kernel was built without this limit (CFS bandwidth, huge pages), or the controller is absent.
            Err(e)
                if dir.is_dir()
                    && matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied)
                    && !file.exists() => {}
            other => other.map_err(at("write", &file))?,
        }
    }
    Ok(())
}

fn v1(limits: &Limits) -> Vec<Setting> {
    let set = |controller, file: &str, value: String| Setting { controller, file: file.into(), value };
    let mut out = Vec::new();
    out.extend(limits.cpu_shares.map(|s| set("cpu", "cpu.shares", s.clamp(MIN_SHARES, MAX_SHARES).to_string())));
    if let Some(CpuQuota { quota, period }) = limits.cpu_quota {
        out.push(set("cpu", "cpu.cfs_period_us", period.to_string()));
        out.push(set("cpu", "cpu.cfs_quota_us", quota.to_string()));
    }
    out.extend(limits.memory.map(|m| set("memory", "memory.limit_in_bytes", m.to_string())));
    out.extend(limits.pids.map(|p| set("pids", "pids.max", max(p))));
    for (size, bytes) in &limits.huge_pages {
        out.push(set("hugetlb", &format!("hugetlb.{size}.limit_in_bytes"), bytes.to_string()));
    }
    out
}

fn v2(limits: &Limits) -> Vec<Setting> {
    let set = |controller, file: &str, value: String| Setting { controller, file: file.into(), value };
    let mut out = Vec::new();
    out.extend(limits.cpu_shares.map(|s| set("cpu", "cpu.weight", weight(s).to_string())));
    if let Some(CpuQuota { quota, period }) = limits.cpu_quota {
        out.push(set("cpu", "cpu.max", format!("{} {period}", max(quota))));
    }
    out.extend(limits.memory.map(|m| set("memory", "memory.max", max(m))));
    out.extend(limits.pids.map(|p| set("pids", "pids.max", max(p))));
    for (size, bytes) in &limits.huge_pages {
        out.push(set("hugetlb", &format!("hugetlb.{size}.max"), bytes.to_string()));
    }
    out
}

fn max(value: i64) -> String {
    if value < 0 { "max".into() } else { value.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_spell_the_same_limits() {
        let limits = Limits {
            cpu_shares: Some(512),
            cpu_quota: Some(CpuQuota { quota: -1, period: 100_000 }),
            memory: Some(-1),
            pids: Some(100),
            huge_pages: vec![("2MB".into(), 0)],
        };
        let lines = |all: Vec<Setting>| all.into_iter().map(|s| format!("{}={}", s.file, s.value)).collect::<Vec<_>>();
        assert_eq!(
            lines(v1(&limits)),
            [
                "cpu.shares=512",
                "cpu.cfs_period_us=100000",
                "cpu.cfs_quota_us=-1",
                "memory.limit_in_bytes=-1",
                "pids.max=100",
                "hugetlb.2MB.limit_in_bytes=0"
            ]
        );
        assert_eq!(
            lines(v2(&limits)),
            ["cpu.weight=20", "cpu.max=max 100000", "memory.max=max", "pids.max=100", "hugetlb.2MB.max=0"]
        );
    }

    #[test]
    fn shares_and_quota_keep_kubelets_bounds() {
        assert_eq!([shares(0), shares(1), shares(250), shares(1000), shares(i64::MAX)], [2, 2, 256, 1024, 262_144]);
        assert_eq!([quota(0, 100_000), quota(1, 100_000), quota(1500, 100_000)], [0, 1000, 150_000]);
        assert_eq!([weight(2), weight(1024), weight(262_144)], [1, 39, 10_000]);
    }
}
