//! The machine as /proc and /etc tell of it.

use std::fs::read_to_string;

/// What does not change while the agent runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    pub cpus: i64,
    /// Bytes.
    pub memory: i64,
    pub machine_id: String,
    pub system_uuid: String,
    pub boot_id: String,
    pub kernel_version: String,
    pub os_image: String,
}

impl Machine {
    pub fn read() -> Self {
        let line = |path: &str| read_to_string(path).map(|text| text.trim().to_string()).unwrap_or_default();
        let machine_id = line("/etc/machine-id");
        let uuid = line("/sys/class/dmi/id/product_uuid");
        Self {
            cpus: std::thread::available_parallelism().map_or(1, |cpus| i64::try_from(cpus.get()).unwrap_or(1)),
            memory: meminfo("MemTotal:"),
            system_uuid: if uuid.is_empty() { machine_id.clone() } else { uuid },
            machine_id,
            boot_id: line("/proc/sys/kernel/random/boot_id"),
            kernel_version: line("/proc/sys/kernel/osrelease"),
            os_image: os_image(&read_to_string("/etc/os-release").unwrap_or_default()),
        }
    }
}

/// The architecture's name in Kubernetes.
pub fn arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Bytes that can be had without swapping.
pub fn memory_available() -> i64 {
    meminfo("MemAvailable:")
}

/// Threads that run, and the most there can be.
pub fn tasks() -> Option<(i64, i64)> {
    let load = read_to_string("/proc/loadavg").ok()?;
    let running = load.split_whitespace().nth(3)?.split_once('/')?.1.parse().ok()?;
    Some((running, read_to_string("/proc/sys/kernel/pid_max").ok()?.trim().parse().ok()?))
}

fn meminfo(field: &str) -> i64 {
    let text = read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(field));
    line.and_then(|rest| rest.split_whitespace().next()?.parse::<i64>().ok()).map_or(0, |kib| kib * 1024)
}

fn os_image(os_release: &str) -> String {
    let name = os_release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    name.map_or_else(|| "Linux".into(), |name| name.trim_matches('"').to_string())
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_os_has_a_name() {
        assert_eq!(super::os_image("ID=debian\nPRETTY_NAME=\"Debian GNU/Linux 12\"\n"), "Debian GNU/Linux 12");
        assert_eq!(super::os_image(""), "Linux");
    }
}
