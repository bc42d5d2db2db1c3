//! What pods and containers use, as CRI tells it.
//!
//! [`Meter`] reads the kernel; `container.rs`, `sandbox.rs` and `metrics.rs` turn what it read into messages, without
//! effects. It blocks, so a caller measures on a thread that may.

mod container;
mod metrics;
mod rate;
mod sandbox;

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use kernel::cgroup::{Cgroups, Detail, Pressures, Usage};
use kernel::netlink::{Kernel, LinkStatistics};
use kernel::netns::Netns;

pub use container::{Layer, container_stats};
pub use metrics::{ContainerMeasure, GroupMeasure, PodMeasure, descriptors, pod_metrics};
pub use sandbox::sandbox_stats;

use rate::Rates;

/// What a control group used at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Measure {
    /// Nanoseconds since 1970.
    pub at: i64,
    pub usage: Usage,
    pub pressures: Pressures,
    /// Billionths of a CPU lately; `None` until two measures are a second apart.
    pub nano_cores: Option<u64>,
}

/// Reads control groups and network namespaces, and remembers how much CPU time was used when, for rates.
#[derive(Debug)]
pub struct Meter {
    cgroups: Cgroups,
    rates: Rates,
}

impl Meter {
    pub fn new(cgroups: Cgroups) -> Self {
        Self { cgroups, rates: Rates::default() }
    }

    /// Measures the group at `path` below the hierarchies' roots.
    ///
    /// # Errors
    /// Where there is no such group: its container has ended.
    pub fn measure(&self, path: &str) -> Result<Measure, kernel::cgroup::Error> {
        let usage = self.cgroups.usage(path)?;
        let pressures = self.cgroups.pressures(path)?;
        let nano_cores = self.rates.note(path, usage.cpu_nanos);
        Ok(Measure { at: now(), usage, pressures, nano_cores })
    }

    /// The hierarchies that it reads.
    pub fn cgroups(&self) -> &Cgroups {
        &self.cgroups
    }

    /// What only metrics tell.
    ///
    /// # Errors
    /// As [`Meter::measure`].
    pub fn detail(&self, path: &str) -> Result<Detail, kernel::cgroup::Error> {
        self.cgroups.detail(path)
    }
}

/// The counters of a pod's links. Nothing for a pod whose namespace is gone: it may end while it is listed.
pub fn links(netns: &Path) -> Vec<LinkStatistics> {
    let read = || -> Result<Vec<LinkStatistics>, String> {
        let netns = Netns::open(netns).map_err(|error| error.to_string())?;
        let counted = netns.run(|| Kernel::open()?.statistics()).map_err(|error| error.to_string())?;
        counted.map_err(|error| error.to_string())
    };
    read().unwrap_or_else(|error| {
        tracing::debug!("no network statistics: {error}");
        Vec::new()
    })
}

/// Nanoseconds since 1970.
pub(crate) fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use kernel::cgroup::Layout;

    use super::*;

    #[test]
    fn a_group_is_measured_until_it_is_gone() {
        let root = tempfile::tempdir().unwrap();
        let group = root.path().join("kubepods/pod1");
        std::fs::create_dir_all(&group).unwrap();
        for (file, text) in [
            ("cpu.stat", "usage_usec 7\nuser_usec 5\n"),
            ("memory.current", "900\n"),
            ("memory.stat", "inactive_file 100\n"),
            ("memory.swap.current", "3\n"),
            ("memory.swap.max", "max\n"),
            ("cpu.pressure", "some avg10=0.00 avg60=0.00 avg300=0.00 total=4\n"),
        ] {
            std::fs::write(group.join(file), text).unwrap();
        }
        let meter = Meter::new(Cgroups::new(Layout::v2(root.path())));
        let path = "/kubepods/pod1";
        let measure = meter.measure(path).unwrap();
        let usage = Usage { cpu_nanos: 7000, memory: 900, working_set: 800, swap: 3, ..Usage::default() };
        assert_eq!((measure.usage, measure.nano_cores), (usage, None));
        assert_eq!(measure.pressures.cpu.unwrap().some.total_micros, 4);
        assert_eq!(meter.detail(path).unwrap().cpu_user_nanos, 5000);
        assert!(meter.measure("/kubepods/pod2").is_err());
    }

    #[test]
    fn a_pod_that_is_gone_has_no_links() {
        assert_eq!(links(Path::new("/nonexistent/ns/net")), []);
    }
}
