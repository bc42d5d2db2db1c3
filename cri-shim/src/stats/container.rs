//! A container's figures as CRI's messages.

use cri::v1::{
    ContainerAttributes, ContainerStats, CpuUsage, FilesystemIdentifier, FilesystemUsage, IoUsage, MemoryUsage,
    PsiData, PsiStats, SwapUsage, UInt64Value,
};
use kernel::cgroup::{Pressure, Stall};

use super::Measure;

/// A container's writable layer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Layer {
    /// When it was measured, nanoseconds since 1970.
    pub at: i64,
    /// The folder whose file system holds it.
    pub mountpoint: String,
    pub used_bytes: u64,
    pub inodes: u64,
}

/// A container's figures. One that does not run has only its writable layer.
pub fn container_stats(
    attributes: ContainerAttributes,
    measure: Option<&Measure>,
    layer: Option<&Layer>,
) -> ContainerStats {
    ContainerStats {
        attributes: Some(attributes),
        cpu: measure.map(cpu),
        memory: measure.map(memory),
        writable_layer: layer.map(filesystem),
        swap: measure.map(swap),
        io: measure.and_then(io),
    }
}

pub(super) fn value(value: u64) -> Option<UInt64Value> {
    Some(UInt64Value { value })
}

pub(super) fn cpu(measure: &Measure) -> CpuUsage {
    CpuUsage {
        timestamp: measure.at,
        usage_core_nano_seconds: value(measure.usage.cpu_nanos),
        usage_nano_cores: measure.nano_cores.and_then(value),
        psi: measure.pressures.cpu.as_ref().map(psi),
    }
}

pub(super) fn memory(measure: &Measure) -> MemoryUsage {
    let usage = &measure.usage;
    MemoryUsage {
        timestamp: measure.at,
        working_set_bytes: value(usage.working_set),
        // Without a limit nobody can say what is available.
        available_bytes: usage.memory_limit.and_then(|limit| value(limit.saturating_sub(usage.working_set))),
        usage_bytes: value(usage.memory),
        rss_bytes: value(usage.rss),
        page_faults: value(usage.page_faults),
        major_page_faults: value(usage.major_page_faults),
        psi: measure.pressures.memory.as_ref().map(psi),
    }
}

fn swap(measure: &Measure) -> SwapUsage {
    let usage = &measure.usage;
    SwapUsage {
        timestamp: measure.at,
        swap_available_bytes: usage.swap_limit.and_then(|limit| value(limit.saturating_sub(usage.swap))),
        swap_usage_bytes: value(usage.swap),
    }
}

pub(super) fn io(measure: &Measure) -> Option<IoUsage> {
    measure.pressures.io.as_ref().map(|pressure| IoUsage { timestamp: measure.at, psi: Some(psi(pressure)) })
}

fn psi(pressure: &Pressure) -> PsiStats {
    // CRI counts in nanoseconds, the kernel in microseconds.
    let data = |stall: &Stall| PsiData {
        total: stall.total_micros.saturating_mul(1000),
        avg10: stall.avg10,
        avg60: stall.avg60,
        avg300: stall.avg300,
    };
    PsiStats { full: Some(data(&pressure.full)), some: Some(data(&pressure.some)) }
}

fn filesystem(layer: &Layer) -> FilesystemUsage {
    FilesystemUsage {
        timestamp: layer.at,
        fs_id: Some(FilesystemIdentifier { mountpoint: layer.mountpoint.clone() }),
        used_bytes: value(layer.used_bytes),
        inodes_used: value(layer.inodes),
    }
}

#[cfg(test)]
mod tests {
    use kernel::cgroup::{Pressures, Usage};

    use super::*;

    #[test]
    fn figures_become_messages() {
        let pressure =
            Pressure { some: Stall { avg10: 1.5, total_micros: 7, ..Stall::default() }, ..Pressure::default() };
        let measure = Measure {
            at: 5,
            usage: Usage {
                cpu_nanos: 10,
                memory: 100,
                working_set: 60,
                rss: 40,
                page_faults: 3,
                major_page_faults: 1,
                memory_limit: Some(200),
                pids: 2,
                swap: 9,
                swap_limit: None,
            },
            pressures: Pressures { memory: Some(pressure), ..Pressures::default() },
            nano_cores: None,
        };
        let layer = Layer { at: 6, mountpoint: "/var/lib/x".into(), used_bytes: 11, inodes: 4 };
        let stats = container_stats(ContainerAttributes::default(), Some(&measure), Some(&layer));
        let cpu = CpuUsage { timestamp: 5, usage_core_nano_seconds: value(10), usage_nano_cores: None, psi: None };
        assert_eq!(stats.cpu, Some(cpu));
        let told = PsiStats {
            some: Some(PsiData { total: 7000, avg10: 1.5, avg60: 0.0, avg300: 0.0 }),
            full: Some(PsiData::default()),
        };
        let memory = MemoryUsage {
            timestamp: 5,
            working_set_bytes: value(60),
            available_bytes: value(140),
            usage_bytes: value(100),
            rss_bytes: value(40),
            page_faults: value(3),
            major_page_faults: value(1),
            psi: Some(told),
        };
        assert_eq!(stats.memory, Some(memory));
        let swap = SwapUsage { timestamp: 5, swap_available_bytes: None, swap_usage_bytes: value(9) };
        assert_eq!((stats.swap, stats.io), (Some(swap), None));
        let fs = FilesystemUsage {
            timestamp: 6,
            fs_id: Some(FilesystemIdentifier { mountpoint: "/var/lib/x".into() }),
            used_bytes: value(11),
            inodes_used: value(4),
        };
        assert_eq!(stats.writable_layer, Some(fs));
        let ended = container_stats(ContainerAttributes::default(), None, Some(&layer));
        assert_eq!((ended.cpu, ended.memory, ended.swap), (None, None, None));
    }
}
