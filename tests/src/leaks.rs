//! What stands on the host: taken before and after, the difference is what leaked.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::bed::{output, text};

/// One line for each thing, with what kind it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot(BTreeSet<String>);

impl Snapshot {
    /// Links, addresses, routes, rules, mounts, control groups, processes and namespaces of bosun, sysctls, and the
    /// folders that a node uses.
    pub fn take() -> Self {
        let mut lines = BTreeSet::new();
        let mut add =
            |kind: &str, text: String| lines.extend(text.lines().map(|line| format!("{kind}: {}", line.trim())));
        add("link", links());
        add("route", text(&output("ip", &["-o", "route", "show", "table", "all"]).stdout));
        add("nftables", text(&output("nft", &["list", "ruleset"]).stdout));
        add("mount", mounts());
        add("cgroup", folders(Path::new("/sys/fs/cgroup"), "bosun"));
        add("process", processes());
        add("sysctl", sysctls());
        for root in [
            "/var/lib/bosun",
            "/var/lib/kubelet",
            "/var/lib/cni",
            "/etc/cni",
            "/opt/cni",
            "/var/log/pods",
            "/var/log/containers",
        ] {
            add("file", folders(Path::new(root), ""));
        }
        for root in ["/run", "/var/lib", "/etc", "/opt", "/var/log"] {
            add("file", entries(Path::new(root)));
        }
        Self(lines)
    }

    /// What is there now and was not, and what was there and is not: of processes only the former, since one of an
    /// earlier test may still have been ending.
    pub fn difference(&self, later: &Self) -> Vec<String> {
        let more = later.0.difference(&self.0).map(|line| format!("+ {line}"));
        let gone = self.0.difference(&later.0).filter(|line| !line.starts_with("process:"));
        more.chain(gone.map(|line| format!("- {line}"))).collect()
    }

    /// # Panics
    /// Where the host differs from this for longer than the kernel needs to let go of a namespace, with how.
    pub fn assert_same(&self) {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let differs = self.difference(&Self::take());
            if differs.is_empty() {
                return;
            }
            assert!(Instant::now() < deadline, "not as it was before:\n{}", differs.join("\n"));
            std::thread::sleep(Duration::from_millis(400));
        }
    }
}

/// Without indexes, which the kernel counts on.
fn links() -> String {
    let listed = text(&output("ip", &["-o", "addr"]).stdout) + &text(&output("ip", &["-o", "link"]).stdout);
    let stable =
        |line: &str| line.split_once(": ").map(|(_, rest)| rest.split(" valid_lft").next().unwrap_or(rest).to_owned());
    listed.lines().filter_map(stable).collect::<Vec<_>>().join("\n")
}

fn mounts() -> String {
    let text = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    text.lines().filter_map(|line| line.split(' ').nth(1)).collect::<Vec<_>>().join("\n")
}

/// Programs of ours and containers' shims, wherever they run.
fn processes() -> String {
    let names = ["bosun", "containerd", "containerd-shim", "pause", "echo", "runc"];
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        if names.iter().any(|ours| name.trim() == *ours) {
            let words = fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default().replace('\0', " ");
            found.push(format!("{} {words}", entry.file_name().to_string_lossy()));
        }
    }
    found.join("\n")
}

fn sysctls() -> String {
    // Counters and random numbers change by themselves.
    let listed = text(
        &output("sysctl", &["-a", "-r", "^(net\\.(ipv4|ipv6|bridge|core|netfilter)|vm|kernel\\.(panic|keys))"]).stdout,
    );
    let moves = ["random", "count", "_cookie", "stable_secret", "neigh", "ns_last_pid"];
    listed.lines().filter(|line| !moves.iter().any(|word| line.contains(word))).collect::<Vec<_>>().join("\n")
}

/// Every folder and file below `root` whose path contains `part`.
fn folders(root: &Path, part: &str) -> String {
    let mut found = Vec::new();
    let mut left = vec![root.to_owned()];
    while let Some(folder) = left.pop() {
        if !folder.exists() {
            continue;
        }
        found.push(folder.display().to_string());
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                left.push(entry.path());
            }
        }
    }
    found.retain(|path| path.contains(part));
    found.join("\n")
}

fn entries(folder: &Path) -> String {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.path().display().to_string()).collect::<Vec<_>>().join("\n")
}
