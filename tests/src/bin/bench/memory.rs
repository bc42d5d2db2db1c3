//! Memory as the kernel accounts it: shared pages are divided among those who share them.

use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// PSS in MB by program name, of all processes in the PID namespace of `pid`, pods' own processes left out.
///
/// # Errors
/// Where /proc cannot be read.
pub fn measure(pid: u32) -> anyhow::Result<Value> {
    let namespace = std::fs::read_link(format!("/proc/{pid}/ns/pid_for_children"))?;
    let mut sums: BTreeMap<String, f64> = BTreeMap::new();
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let path = entry.path();
        if std::fs::read_link(path.join("ns/pid")).is_ok_and(|ns| ns == namespace)
            && let Some((name, mb)) = process(&path)
        {
            *sums.entry(name).or_default() += mb;
        }
    }
    let total: f64 = sums.values().sum();
    let rounded: BTreeMap<_, _> = sums.into_iter().map(|(name, mb)| (name, (mb * 10.0).round() / 10.0)).collect();
    Ok(json!({"pss_mb": rounded, "total_mb": (total * 10.0).round() / 10.0}))
}

/// A process may end while it is looked at: then it is not counted.
fn process(path: &Path) -> Option<(String, f64)> {
    let line = std::fs::read(path.join("cmdline")).ok()?;
    let mut words = line.split(|b| *b == 0).map(String::from_utf8_lossy);
    let program = words.next()?;
    let mut name = program.rsplit('/').next().unwrap_or_default().to_owned();
    if name == "bosun" {
        name = format!("bosun {}", words.next()?);
    }
    Some((name, pss_mb(path)?))
}

/// PSS in MB of the process whose folder in /proc is `path`. `None` where it has ended.
pub fn pss_mb(path: &Path) -> Option<f64> {
    let rollup = std::fs::read_to_string(path.join("smaps_rollup")).ok()?;
    let kb: f64 = rollup.lines().find_map(|l| l.strip_prefix("Pss:"))?.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kb / 1024.0)
}
