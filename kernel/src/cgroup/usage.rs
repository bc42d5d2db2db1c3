//! What a group uses, read from its files.

use std::fs;
use std::io;
use std::path::Path;

use super::{Cgroups, Result, at};

/// What a group and all below it use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// CPU time since the group was made, nanoseconds.
    pub cpu_nanos: u64,
    /// Memory charged, bytes, page cache included.
    pub memory: u64,
    /// Memory less the file pages that could be dropped at once, bytes: what eviction looks at.
    pub working_set: u64,
    /// Anonymous memory, bytes.
    pub rss: u64,
    pub page_faults: u64,
    pub major_page_faults: u64,
    /// `None`: unlimited.
    pub memory_limit: Option<u64>,
    /// Processes and threads.
    pub pids: u64,
    /// Bytes in swap.
    pub swap: u64,
    /// `None`: unlimited, or no swap is accounted.
    pub swap_limit: Option<u64>,
}

/// Version 1 says "no limit" as a number next to 2^63.
const V1_UNLIMITED: u64 = 1 << 62;

pub(super) fn read(cgroups: &Cgroups, path: &str) -> Result<Usage> {
    let text = |controller: &str, file: &str| file_of(cgroups, path, controller, file);
    let number =
        |controller: &str, file: &str| -> Result<u64> { Ok(text(controller, file)?.trim().parse().unwrap_or(0)) };
    let mut usage = Usage { pids: number("pids", "pids.current")?, ..Usage::default() };
    let inactive = if cgroups.is_v2() {
        let stat = text("memory", "memory.stat")?;
        usage.cpu_nanos = field(&text("cpu", "cpu.stat")?, "usage_usec") * 1000;
        usage.memory = number("memory", "memory.current")?;
        usage.memory_limit = text("memory", "memory.max")?.trim().parse().ok();
        usage.rss = field(&stat, "anon");
        usage.page_faults = field(&stat, "pgfault");
        usage.major_page_faults = field(&stat, "pgmajfault");
        usage.swap = number("memory", "memory.swap.current")?;
        usage.swap_limit = text("memory", "memory.swap.max")?.trim().parse().ok();
        field(&stat, "inactive_file")
    } else {
        let stat = text("memory", "memory.stat")?;
        usage.cpu_nanos = number("cpuacct", "cpuacct.usage")?;
        usage.memory = number("memory", "memory.usage_in_bytes")?;
        usage.memory_limit = Some(number("memory", "memory.limit_in_bytes")?).filter(|l| (1..V1_UNLIMITED).contains(l));
        usage.rss = field(&stat, "total_rss");
        usage.page_faults = field(&stat, "total_pgfault");
        usage.major_page_faults = field(&stat, "total_pgmajfault");
        usage.swap = field(&stat, "total_swap");
        // Version 1 limits memory and swap together.
        let both = number("memory", "memory.memsw.limit_in_bytes")?;
        usage.swap_limit =
            usage.memory_limit.filter(|_| (1..V1_UNLIMITED).contains(&both)).map(|m| both.saturating_sub(m));
        field(&stat, "total_inactive_file")
    };
    usage.working_set = usage.memory.saturating_sub(inactive);
    Ok(usage)
}

/// What a file of the group says: nothing where this machine lacks the controller.
pub(super) fn file_of(cgroups: &Cgroups, path: &str, controller: &str, file: &str) -> Result<String> {
    match cgroups.dir(controller, path) {
        Some(dir) if !dir.is_dir() => Err(at("read control group", &dir)(io::ErrorKind::NotFound.into())),
        Some(dir) => read_file(&dir.join(file)),
        None => Ok(String::new()),
    }
}

/// A file that is not there reads as empty: the root group lacks some, and so do kernels.
fn read_file(path: &Path) -> Result<String> {
    match fs::read_to_string(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        // Pressure that is switched off, and swap that is not accounted.
        Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(String::new()),
        other => other.map_err(at("read", path)),
    }
}

pub(super) fn field(text: &str, name: &str) -> u64 {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok());
    value.unwrap_or(0)
}
