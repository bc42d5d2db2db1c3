//! What a group does beyond the few numbers that eviction and scaling look at.
//!
//! Source: the kernel's Documentation/admin-guide/cgroup-v1 and cgroup-v2.rst.

use std::collections::BTreeMap;

use super::usage::{field, file_of};
use super::{Cgroups, Result};

/// Counters since the group was made, sizes as they are now. All of it covers the groups below.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Detail {
    pub cpu_user_nanos: u64,
    pub cpu_system_nanos: u64,
    /// Periods of the CPU quota that passed, those in which it was used up, and the time waited for then.
    pub periods: u64,
    pub throttled_periods: u64,
    pub throttled_nanos: u64,
    /// Version 1's measure; version 2's weight is turned back.
    pub cpu_shares: Option<u64>,
    /// Microseconds; `None` without a quota.
    pub cpu_quota: Option<u64>,
    pub cpu_period: Option<u64>,
    /// Bytes.
    pub cache: u64,
    pub mapped_file: u64,
    pub active_file: u64,
    pub inactive_file: u64,
    pub kernel: u64,
    pub memory_peak: u64,
    /// How often memory was at its limit.
    pub limit_hits: u64,
    pub oom_kills: u64,
    /// Bytes below which memory is not taken back first; `None` without.
    pub memory_reservation: Option<u64>,
    pub pids_limit: Option<u64>,
    pub processes: u64,
    /// By device, sorted.
    pub io: Vec<DeviceIo>,
    pub huge_pages: Vec<HugePages>,
}

/// What went to and from a block device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceIo {
    /// `major:minor`.
    pub device: String,
    pub reads: u64,
    pub read_bytes: u64,
    pub writes: u64,
    pub written_bytes: u64,
}

/// Huge pages of one size, bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HugePages {
    /// As the kernel names it: `2MB`.
    pub size: String,
    pub used: u64,
    pub peak: u64,
}

/// What ticks of cpuacct.stat are: USER_HZ, 100 on every architecture that Kubernetes runs on.
const TICK_NANOS: u64 = 10_000_000;

pub(super) fn read(cgroups: &Cgroups, path: &str) -> Result<Detail> {
    let text = |controller: &str, file: &str| file_of(cgroups, path, controller, file);
    let mut detail = if cgroups.is_v2() { v2(&text)? } else { v1(&text)? };
    detail.pids_limit = number(&text("pids", "pids.max")?);
    let processes = text("pids", "cgroup.procs")?;
    // The group's own list; containers that make groups below are told of by `pids`.
    detail.processes = processes.lines().count() as u64;
    detail.huge_pages = huge_pages(cgroups, path);
    Ok(detail)
}

type Text<'a> = &'a dyn Fn(&str, &str) -> Result<String>;

fn number(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

fn v2(text: Text<'_>) -> Result<Detail> {
    let (cpu, memory, events) =
        (text("cpu", "cpu.stat")?, text("memory", "memory.stat")?, text("memory", "memory.events")?);
    let quota = text("cpu", "cpu.max")?;
    let (quota, period) = quota.trim().split_once(' ').unwrap_or_default();
    Ok(Detail {
        cpu_user_nanos: field(&cpu, "user_usec") * 1000,
        cpu_system_nanos: field(&cpu, "system_usec") * 1000,
        periods: field(&cpu, "nr_periods"),
        throttled_periods: field(&cpu, "nr_throttled"),
        throttled_nanos: field(&cpu, "throttled_usec") * 1000,
        cpu_shares: number(&text("cpu", "cpu.weight")?).map(shares_of),
        cpu_quota: number(quota),
        cpu_period: number(period),
        cache: field(&memory, "file"),
        mapped_file: field(&memory, "file_mapped"),
        active_file: field(&memory, "active_file"),
        inactive_file: field(&memory, "inactive_file"),
        kernel: field(&memory, "kernel"),
        memory_peak: number(&text("memory", "memory.peak")?).unwrap_or(0),
        limit_hits: field(&events, "max"),
        oom_kills: field(&events, "oom_kill"),
        memory_reservation: number(&text("memory", "memory.low")?).filter(|low| *low > 0),
        io: io_v2(&text("io", "io.stat")?),
        ..Detail::default()
    })
}

/// The inverse of the linear mapping of KEP-2254.
fn shares_of(weight: u64) -> u64 {
    2 + (weight.clamp(1, 10_000) - 1) * 262_142 / 9999
}

fn v1(text: Text<'_>) -> Result<Detail> {
    let (ticks, cpu, memory) =
        (text("cpuacct", "cpuacct.stat")?, text("cpu", "cpu.stat")?, text("memory", "memory.stat")?);
    let soft = number(&text("memory", "memory.soft_limit_in_bytes")?);
    Ok(Detail {
        cpu_user_nanos: field(&ticks, "user") * TICK_NANOS,
        cpu_system_nanos: field(&ticks, "system") * TICK_NANOS,
        periods: field(&cpu, "nr_periods"),
        throttled_periods: field(&cpu, "nr_throttled"),
        throttled_nanos: field(&cpu, "throttled_time"),
        cpu_shares: number(&text("cpu", "cpu.shares")?),
        // -1 without a quota, which is no number here.
        cpu_quota: number(&text("cpu", "cpu.cfs_quota_us")?),
        cpu_period: number(&text("cpu", "cpu.cfs_period_us")?),
        cache: field(&memory, "total_cache"),
        mapped_file: field(&memory, "total_mapped_file"),
        active_file: field(&memory, "total_active_file"),
        inactive_file: field(&memory, "total_inactive_file"),
        kernel: number(&text("memory", "memory.kmem.usage_in_bytes")?).unwrap_or(0),
        memory_peak: number(&text("memory", "memory.max_usage_in_bytes")?).unwrap_or(0),
        limit_hits: number(&text("memory", "memory.failcnt")?).unwrap_or(0),
        oom_kills: field(&text("memory", "memory.oom_control")?, "oom_kill"),
        memory_reservation: soft.filter(|bytes| (1..1 << 62).contains(bytes)),
        io: io_v1(
            &text("blkio", "blkio.throttle.io_serviced_recursive")?,
            &text("blkio", "blkio.throttle.io_service_bytes_recursive")?,
        ),
        ..Detail::default()
    })
}

/// `8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6`
fn io_v2(text: &str) -> Vec<DeviceIo> {
    let mut devices: Vec<DeviceIo> = text.lines().filter_map(io_line).collect();
    devices.sort_by(|a, b| a.device.cmp(&b.device));
    devices
}

fn io_line(line: &str) -> Option<DeviceIo> {
    let (device, rest) = line.split_once(' ')?;
    let mut io = DeviceIo { device: device.to_owned(), ..DeviceIo::default() };
    for (key, value) in rest.split(' ').filter_map(|pair| pair.split_once('=')) {
        let value = value.parse().unwrap_or(0);
        match key {
            "rios" => io.reads = value,
            "rbytes" => io.read_bytes = value,
            "wios" => io.writes = value,
            "wbytes" => io.written_bytes = value,
            _ => {}
        }
    }
    Some(io)
}

/// `8:0 Read 3`, in one file operations, in the other bytes.
fn io_v1(operations: &str, bytes: &str) -> Vec<DeviceIo> {
    let mut devices: BTreeMap<&str, DeviceIo> = BTreeMap::new();
    for (text, is_bytes) in [(operations, false), (bytes, true)] {
        for line in text.lines() {
            let mut words = line.split(' ');
            let (Some(device), Some(kind), Some(value)) = (words.next(), words.next(), words.next()) else { continue };
            let io =
                devices.entry(device).or_insert_with(|| DeviceIo { device: device.to_owned(), ..DeviceIo::default() });
            let place = match (kind, is_bytes) {
                ("Read", false) => &mut io.reads,
                ("Write", false) => &mut io.writes,
                ("Read", true) => &mut io.read_bytes,
                ("Write", true) => &mut io.written_bytes,
                _ => continue,
            };
            *place = value.parse().unwrap_or(0);
        }
    }
    devices.into_values().collect()
}

/// The sizes are known from the names of the files.
fn huge_pages(cgroups: &Cgroups, path: &str) -> Vec<HugePages> {
    let (current, peak) =
        if cgroups.is_v2() { ("current", None) } else { ("usage_in_bytes", Some("max_usage_in_bytes")) };
    let Some(dir) = cgroups.dir("hugetlb", path) else { return Vec::new() };
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let size = |name: String| {
        let size = name.strip_prefix("hugetlb.")?.strip_suffix(current)?.strip_suffix('.')?;
        (!size.contains('.')).then(|| size.to_owned())
    };
    let read = |file: String| file_of(cgroups, path, "hugetlb", &file).ok().and_then(|text| number(&text)).unwrap_or(0);
    let mut found: Vec<HugePages> = names
        .filter_map(size)
        .map(|size| HugePages {
            used: read(format!("hugetlb.{size}.{current}")),
            peak: peak.map_or(0, |peak| read(format!("hugetlb.{size}.{peak}"))),
            size,
        })
        .collect();
    found.sort_by(|a, b| a.size.cmp(&b.size));
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_told_alike_by_both_versions() {
        let device = DeviceIo { device: "8:0".into(), reads: 3, read_bytes: 4096, writes: 1, written_bytes: 512 };
        let text = "8:0 rbytes=4096 wbytes=512 rios=3 wios=1 dbytes=0 dios=0\n";
        assert_eq!(io_v2(text), std::slice::from_ref(&device));
        let operations = "8:0 Read 3\n8:0 Write 1\n8:0 Sync 4\n8:0 Total 4\nTotal 4\n";
        let bytes = "8:0 Read 4096\n8:0 Write 512\n8:0 Total 4608\nTotal 4608\n";
        assert_eq!(io_v1(operations, bytes), [device]);
        assert_eq!((io_v1("", "").len(), io_v2("\n").len()), (0, 0));
    }

    #[test]
    fn weight_turns_back_into_shares() {
        assert_eq!([shares_of(1), shares_of(39), shares_of(10_000)], [2, 998, 262_144]);
    }

    #[test]
    fn version_2_is_read_field_by_field() {
        let text = |_: &str, file: &str| {
            Ok(match file {
                "cpu.stat" => {
                    "usage_usec 9\nuser_usec 5\nsystem_usec 4\nnr_periods 7\nnr_throttled 2\nthrottled_usec 3\n"
                }
                "cpu.max" => "50000 100000\n",
                "memory.stat" => "file 10\nfile_mapped 20\nkernel 30\n",
                "memory.events" => "low 0\nhigh 0\nmax 4\noom 1\noom_kill 1\n",
                "memory.peak" => "77\n",
                "memory.low" => "0\n",
                _ => "",
            }
            .to_owned())
        };
        let expected = Detail {
            cpu_user_nanos: 5000,
            cpu_system_nanos: 4000,
            periods: 7,
            throttled_periods: 2,
            throttled_nanos: 3000,
            cpu_quota: Some(50_000),
            cpu_period: Some(100_000),
            cache: 10,
            mapped_file: 20,
            kernel: 30,
            memory_peak: 77,
            limit_hits: 4,
            oom_kills: 1,
            ..Detail::default()
        };
        assert_eq!(v2(&text).unwrap(), expected);
    }
}
