//! The metrics by what they are read of. Names and helps are cAdvisor's, which dashboards know.

use cri::v1::MetricType;
use cri::v1::MetricType::{Counter, Gauge};
use kernel::cgroup::{DeviceIo, HugePages, Stall};
use kernel::netlink::LinkStatistics;

use super::{ContainerMeasure, GroupMeasure, Series, Values};

const fn series<T>(
    name: &'static str,
    kind: MetricType,
    keys: &'static [&'static str],
    read: fn(&T) -> Values,
    help: &'static str,
) -> Series<T> {
    Series { name, help, kind, keys, read }
}

fn one(value: u64) -> Values {
    vec![(Vec::new(), value)]
}

fn some(value: Option<u64>) -> Values {
    value.map(one).unwrap_or_default()
}

fn seconds(nanos: u64) -> u64 {
    nanos / 1_000_000_000
}

fn stall(stall: Option<Stall>) -> Values {
    some(stall.map(|stall| stall.total_micros / 1_000_000))
}

fn faults(group: &GroupMeasure) -> Values {
    let usage = &group.measure.usage;
    let labels = |kind: &str| vec![kind.to_owned(), "container".to_owned()];
    vec![(labels("pgfault"), usage.page_faults), (labels("pgmajfault"), usage.major_page_faults)]
}

fn by_device(group: &GroupMeasure, value: fn(&DeviceIo) -> u64) -> Values {
    group.detail.io.iter().map(|io| (vec![io.device.clone()], value(io))).collect()
}

fn by_size(group: &GroupMeasure, value: fn(&HugePages) -> u64) -> Values {
    group.detail.huge_pages.iter().map(|pages| (vec![pages.size.clone()], value(pages))).collect()
}

fn by_link(link: &LinkStatistics, value: u64) -> Values {
    vec![(vec![link.name.clone()], value)]
}

/// Of any control group: a container's or a pod's.
pub(super) const GROUP: [Series<GroupMeasure>; 40] = [
    series(
        "container_cpu_usage_seconds_total",
        Counter,
        &["cpu"],
        |g| vec![(vec!["total".to_owned()], seconds(g.measure.usage.cpu_nanos))],
        "Cumulative cpu time consumed in seconds.",
    ),
    series(
        "container_cpu_user_seconds_total",
        Counter,
        &[],
        |g| one(seconds(g.detail.cpu_user_nanos)),
        "Cumulative user cpu time consumed in seconds.",
    ),
    series(
        "container_cpu_system_seconds_total",
        Counter,
        &[],
        |g| one(seconds(g.detail.cpu_system_nanos)),
        "Cumulative system cpu time consumed in seconds.",
    ),
    series(
        "container_cpu_cfs_periods_total",
        Counter,
        &[],
        |g| one(g.detail.periods),
        "Number of elapsed enforcement period intervals.",
    ),
    series(
        "container_cpu_cfs_throttled_periods_total",
        Counter,
        &[],
        |g| one(g.detail.throttled_periods),
        "Number of throttled period intervals.",
    ),
    series(
        "container_cpu_cfs_throttled_seconds_total",
        Counter,
        &[],
        |g| one(seconds(g.detail.throttled_nanos)),
        "Total time duration the container has been throttled.",
    ),
    series(
        "container_memory_usage_bytes",
        Gauge,
        &[],
        |g| one(g.measure.usage.memory),
        "Current memory usage in bytes, including all memory regardless of when it was accessed.",
    ),
    series(
        "container_memory_working_set_bytes",
        Gauge,
        &[],
        |g| one(g.measure.usage.working_set),
        "Current working set in bytes.",
    ),
    series("container_memory_rss", Gauge, &[], |g| one(g.measure.usage.rss), "Size of RSS in bytes."),
    series("container_memory_cache", Gauge, &[], |g| one(g.detail.cache), "Number of bytes of page cache memory."),
    series(
        "container_memory_mapped_file",
        Gauge,
        &[],
        |g| one(g.detail.mapped_file),
        "Size of memory mapped files in bytes.",
    ),
    series("container_memory_swap", Gauge, &[], |g| one(g.measure.usage.swap), "Container swap usage in bytes."),
    series(
        "container_memory_kernel_usage",
        Gauge,
        &[],
        |g| one(g.detail.kernel),
        "Size of kernel memory allocated in bytes.",
    ),
    series(
        "container_memory_max_usage_bytes",
        Gauge,
        &[],
        |g| one(g.detail.memory_peak),
        "Maximum memory usage recorded in bytes.",
    ),
    series(
        "container_memory_failcnt",
        Counter,
        &[],
        |g| one(g.detail.limit_hits),
        "Number of memory usage hits limits.",
    ),
    series(
        "container_memory_total_active_file_bytes",
        Gauge,
        &[],
        |g| one(g.detail.active_file),
        "Current total active file in bytes.",
    ),
    series(
        "container_memory_total_inactive_file_bytes",
        Gauge,
        &[],
        |g| one(g.detail.inactive_file),
        "Current total inactive file in bytes.",
    ),
    series(
        "container_memory_failures_total",
        Counter,
        &["failure_type", "scope"],
        faults,
        "Cumulative count of memory allocation failures.",
    ),
    series(
        "container_oom_events_total",
        Counter,
        &[],
        |g| one(g.detail.oom_kills),
        "Count of out of memory events observed for the container.",
    ),
    series(
        "container_processes",
        Gauge,
        &[],
        |g| one(g.detail.processes),
        "Number of processes running inside the container.",
    ),
    series(
        "container_threads",
        Gauge,
        &[],
        |g| one(g.measure.usage.pids),
        "Number of threads running inside the container.",
    ),
    series(
        "container_threads_max",
        Gauge,
        &[],
        |g| one(g.detail.pids_limit.unwrap_or(0)),
        "Maximum number of threads allowed inside the container, infinity if value is zero.",
    ),
    series("container_spec_cpu_period", Gauge, &[], |g| some(g.detail.cpu_period), "CPU period of the container."),
    series("container_spec_cpu_quota", Gauge, &[], |g| some(g.detail.cpu_quota), "CPU quota of the container."),
    series("container_spec_cpu_shares", Gauge, &[], |g| some(g.detail.cpu_shares), "CPU share of the container."),
    series(
        "container_spec_memory_limit_bytes",
        Gauge,
        &[],
        |g| one(g.measure.usage.memory_limit.unwrap_or(0)),
        "Memory limit for the container.",
    ),
    series(
        "container_spec_memory_reservation_limit_bytes",
        Gauge,
        &[],
        |g| one(g.detail.memory_reservation.unwrap_or(0)),
        "Memory reservation limit for the container.",
    ),
    series(
        "container_spec_memory_swap_limit_bytes",
        Gauge,
        &[],
        |g| one(g.measure.usage.swap_limit.unwrap_or(0)),
        "Memory swap limit for the container.",
    ),
    series(
        "container_fs_reads_total",
        Counter,
        &["device"],
        |g| by_device(g, |io| io.reads),
        "Cumulative count of reads completed.",
    ),
    series(
        "container_fs_reads_bytes_total",
        Counter,
        &["device"],
        |g| by_device(g, |io| io.read_bytes),
        "Cumulative count of bytes read.",
    ),
    series(
        "container_fs_writes_total",
        Counter,
        &["device"],
        |g| by_device(g, |io| io.writes),
        "Cumulative count of writes completed.",
    ),
    series(
        "container_fs_writes_bytes_total",
        Counter,
        &["device"],
        |g| by_device(g, |io| io.written_bytes),
        "Cumulative count of bytes written.",
    ),
    series(
        "container_hugetlb_usage_bytes",
        Gauge,
        &["pagesize"],
        |g| by_size(g, |pages| pages.used),
        "Current hugepage usage in bytes.",
    ),
    series(
        "container_hugetlb_max_usage_bytes",
        Gauge,
        &["pagesize"],
        |g| by_size(g, |pages| pages.peak),
        "Maximum hugepage usage recorded in bytes.",
    ),
    series(
        "container_pressure_cpu_waiting_seconds_total",
        Counter,
        &[],
        |g| stall(g.measure.pressures.cpu.map(|p| p.some)),
        "Total time duration tasks in the container have waited due to CPU congestion.",
    ),
    series(
        "container_pressure_cpu_stalled_seconds_total",
        Counter,
        &[],
        |g| stall(g.measure.pressures.cpu.map(|p| p.full)),
        "Total time duration no tasks in the container could make progress due to CPU congestion.",
    ),
    series(
        "container_pressure_memory_waiting_seconds_total",
        Counter,
        &[],
        |g| stall(g.measure.pressures.memory.map(|p| p.some)),
        "Total time duration tasks in the container have waited due to memory congestion.",
    ),
    series(
        "container_pressure_memory_stalled_seconds_total",
        Counter,
        &[],
        |g| stall(g.measure.pressures.memory.map(|p| p.full)),
        "Total time duration no tasks in the container could make progress due to memory congestion.",
    ),
    series(
        "container_pressure_io_waiting_seconds_total",
        Counter,
        &[],
        |g| stall(g.measure.pressures.io.map(|p| p.some)),
        "Total time duration tasks in the container have waited due to IO congestion.",
    ),
    series(
        "container_pressure_io_stalled_seconds_total",
        Counter,
        &[],
        |g| stall(g.measure.pressures.io.map(|p| p.full)),
        "Total time duration no tasks in the container could make progress due to IO congestion.",
    ),
];

/// Of a container alone.
pub(super) const CONTAINER: [Series<ContainerMeasure>; 3] = [
    series(
        "container_fs_usage_bytes",
        Gauge,
        &["device"],
        |c| c.layer.iter().map(|layer| (vec![layer.mountpoint.clone()], layer.used_bytes)).collect(),
        "Number of bytes that are consumed by the container on this filesystem.",
    ),
    series(
        "container_start_time_seconds",
        Gauge,
        &[],
        |c| one(c.started),
        "Start time of the container since unix epoch in seconds.",
    ),
    series(
        "container_last_seen",
        Gauge,
        &[],
        |c| one(seconds(c.group.measure.at.unsigned_abs())),
        "Last time a container was seen by the exporter.",
    ),
];

/// Of a pod's link.
pub(super) const LINK: [Series<LinkStatistics>; 8] = [
    series(
        "container_network_receive_bytes_total",
        Counter,
        &["interface"],
        |l| by_link(l, l.rx_bytes),
        "Cumulative count of bytes received.",
    ),
    series(
        "container_network_receive_packets_total",
        Counter,
        &["interface"],
        |l| by_link(l, l.rx_packets),
        "Cumulative count of packets received.",
    ),
    series(
        "container_network_receive_errors_total",
        Counter,
        &["interface"],
        |l| by_link(l, l.rx_errors),
        "Cumulative count of errors encountered while receiving.",
    ),
    series(
        "container_network_receive_packets_dropped_total",
        Counter,
        &["interface"],
        |l| by_link(l, l.rx_dropped),
        "Cumulative count of packets dropped while receiving.",
    ),
    series(
        "container_network_transmit_bytes_total",
        Counter,
        &["interface"],
        |l| by_link(l, l.tx_bytes),
        "Cumulative count of bytes transmitted.",
    ),
    series(
        "container_network_transmit_packets_total",
        Counter,
        &["interface"],
        |l| by_link(l, l.tx_packets),
        "Cumulative count of packets transmitted.",
    ),
    series(
        "container_network_transmit_errors_total",
        Counter,
        &["interface"],
        |l| by_link(l, l.tx_errors),
        "Cumulative count of errors encountered while transmitting.",
    ),
    series(
        "container_network_transmit_packets_dropped_total",
        Counter,
        &["interface"],
        |l| by_link(l, l.tx_dropped),
        "Cumulative count of packets dropped while transmitting.",
    ),
];
