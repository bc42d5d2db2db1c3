//! The node as a whole, from /proc.

use std::fs;

/// What the node uses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct NodeUsage {
    pub cpu_nanos: u64,
    pub memory: u64,
    pub working_set: u64,
    pub available: u64,
    pub rss: u64,
    pub page_faults: u64,
    pub major_page_faults: u64,
    pub interfaces: Vec<Interface>,
    /// Seconds since the epoch.
    pub boot_time: i64,
    pub cpus: u64,
    pub memory_total: u64,
    pub max_pid: u64,
    pub processes: u64,
}

/// Counters of a network interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Interface {
    pub name: String,
    pub received: u64,
    pub receive_errors: u64,
    pub sent: u64,
    pub send_errors: u64,
}

/// /proc/stat counts in hundredths of a second.
const NANOS_PER_TICK: u64 = 10_000_000;

pub(super) fn read() -> NodeUsage {
    let file = |name: &str| fs::read_to_string(format!("/proc/{name}")).unwrap_or_default();
    parse(
        &file("stat"),
        &file("meminfo"),
        &file("vmstat"),
        &file("net/dev"),
        &(file("sys/kernel/pid_max"), file("loadavg")),
    )
}

fn parse(stat: &str, meminfo: &str, vmstat: &str, net: &str, (pid_max, loadavg): &(String, String)) -> NodeUsage {
    let number = |text: &str, name: &str| -> u64 {
        let value = text.lines().find_map(|l| l.strip_prefix(name)?.split_whitespace().next()?.parse().ok());
        value.unwrap_or(0)
    };
    let kib = |name: &str| number(meminfo, name) * 1024;
    // user, nice, system, idle, iowait, irq, softirq, steal
    let ticks: Vec<u64> =
        stat.lines().next().unwrap_or_default().split_whitespace().skip(1).map_while(|n| n.parse().ok()).collect();
    let busy: u64 = [0, 1, 2, 5, 6, 7].iter().filter_map(|i| ticks.get(*i)).sum();
    let total = kib("MemTotal:");
    let memory = total.saturating_sub(kib("MemFree:"));
    let working_set = memory.saturating_sub(kib("Inactive(file):"));
    NodeUsage {
        cpu_nanos: busy * NANOS_PER_TICK,
        memory,
        working_set,
        available: total.saturating_sub(working_set),
        rss: kib("AnonPages:"),
        page_faults: number(vmstat, "pgfault "),
        major_page_faults: number(vmstat, "pgmajfault "),
        interfaces: net.lines().filter_map(interface).filter(|i| i.name != "lo").collect(),
        boot_time: i64::try_from(number(stat, "btime ")).unwrap_or(0),
        cpus: stat.lines().filter(|l| l.starts_with("cpu") && !l.starts_with("cpu ")).count() as u64,
        memory_total: total,
        max_pid: pid_max.trim().parse().unwrap_or(0),
        processes: loadavg.split_whitespace().nth(3).and_then(|p| p.split_once('/')?.1.parse().ok()).unwrap_or(0),
    }
}

fn interface(line: &str) -> Option<Interface> {
    let (name, counters) = line.split_once(':')?;
    let counters: Vec<u64> = counters.split_whitespace().map_while(|n| n.parse().ok()).collect();
    Some(Interface {
        name: name.trim().into(),
        received: *counters.first()?,
        receive_errors: *counters.get(2)?,
        sent: *counters.get(8)?,
        send_errors: *counters.get(10)?,
    })
}

/// What this process uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct ProcessUsage {
    pub cpu_nanos: u64,
    pub resident: u64,
    pub descriptors: u64,
}

pub(super) fn own_process() -> ProcessUsage {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    // The name in parentheses may hold spaces; user and system time are the 12th and 13th field after it.
    let fields: Vec<u64> =
        stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().map(|f| f.parse().unwrap_or(0)).collect();
    let ticks: u64 = [11, 12].iter().filter_map(|i| fields.get(*i)).sum();
    let resident =
        status.lines().find_map(|l| l.strip_prefix("VmRSS:")?.split_whitespace().next()?.parse::<u64>().ok());
    ProcessUsage {
        cpu_nanos: ticks * NANOS_PER_TICK,
        resident: resident.unwrap_or(0) * 1024,
        descriptors: fs::read_dir("/proc/self/fd").map_or(0, |entries| entries.count() as u64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_files_as_measures() {
        let usage = parse(
            "cpu  10 1 5 900 7 1 2 3 0 0\ncpu0 1\ncpu1 1\nbtime 1700000000\n",
            "MemTotal: 1000 kB\nMemFree: 400 kB\nInactive(file): 100 kB\nAnonPages: 50 kB\n",
            "pgfault 7\npgmajfault 2\n",
            "Inter-| x\n face |bytes\n    lo: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n  eth0: 5 1 2 0 0 0 0 0 9 1 4 0 0 0 0 0\n",
            &("4194304\n".into(), "0.1 0.2 0.3 2/345 6789\n".into()),
        );
        let eth0 = Interface { name: "eth0".into(), received: 5, receive_errors: 2, sent: 9, send_errors: 4 };
        let expected = NodeUsage {
            cpu_nanos: 22 * NANOS_PER_TICK,
            memory: 600 * 1024,
            working_set: 500 * 1024,
            available: 500 * 1024,
            rss: 50 * 1024,
            page_faults: 7,
            major_page_faults: 2,
            interfaces: vec![eth0],
            boot_time: 1_700_000_000,
            cpus: 2,
            memory_total: 1000 * 1024,
            max_pid: 4_194_304,
            processes: 345,
        };
        assert_eq!(usage, expected);
    }
}
