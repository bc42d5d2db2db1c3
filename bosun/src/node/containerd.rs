//! containerd's configuration, in the version that the installed one reads.

use anyhow::Context;

use super::config::file;
use super::folders::PLUGINS;
use super::registries::CERTS;
use crate::cluster::Cri;

/// Where containerd serves.
pub const SOCKET: &str = "/run/containerd/containerd.sock";
/// CAP_SYS_RESOURCE.
const SYS_RESOURCE: u32 = 24;

pub fn config_file() -> std::path::PathBuf {
    file("containerd.toml")
}

/// # Errors
/// Where containerd does not say its version, or the file cannot be written.
pub fn write_config(cri: Cri) -> anyhow::Result<()> {
    let said = kernel::process::run("containerd", &["--version"])?;
    let major = major(&said).with_context(|| format!("containerd says its version as {:?}", said.trim()))?;
    // Whoever lacks the capability cannot give a container a lower score than its own.
    let restrict_oom = !kernel::process::has_capability(SYS_RESOURCE)?;
    let text = match (major >= 2, cri) {
        (true, Cri::Containerd) => base(3, "") + &version_3(restrict_oom),
        (true, Cri::Bosun) => base(3, CRI_3),
        (false, Cri::Containerd) => base(2, "") + &version_2(restrict_oom),
        (false, Cri::Bosun) => base(2, CRI_2),
    };
    std::fs::write(config_file(), text).with_context(|| format!("write {}", config_file().display()))
}

/// `containerd github.com/containerd/containerd 1.6.20~ds1 REVISION`, or `containerd REPOSITORY v2.1.4 REVISION`.
fn major(version: &str) -> Option<u32> {
    let word = version.split_whitespace().nth(2)?;
    word.trim_start_matches('v').split('.').next()?.parse().ok()
}

/// containerd's own CRI plugins, by the names of each version of the configuration.
const CRI_2: &str = r#""io.containerd.grpc.v1.cri","#;
const CRI_3: &str = r#""io.containerd.grpc.v1.cri", "io.containerd.cri.v1.runtime", "io.containerd.cri.v1.images", "io.containerd.podsandbox.controller.v1.podsandbox","#;

/// What every node has. Disabled are plugins that it does not use: other snapshotters, tracing, and those of `unused`.
fn base(version: u8, unused: &str) -> String {
    format!(
        r#"version = {version}
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.blockfile", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.erofs", "io.containerd.snapshotter.v1.zfs",
  "io.containerd.internal.v1.tracing", "io.containerd.tracing.processor.v1.otlp", {unused}
]
root = "/var/lib/containerd"
state = "/run/containerd"
[grpc]
address = "{SOCKET}"
[plugins."io.containerd.internal.v1.opt"]
path = "/run/containerd/opt"
"#
    )
}

fn version_2(restrict_oom: bool) -> String {
    format!(
        r#"[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{pause}"
restrict_oom_score_adj = {restrict_oom}
max_concurrent_downloads = 3
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{PLUGINS}"
conf_dir = "/etc/cni/net.d"
[plugins."io.containerd.grpc.v1.cri".registry]
config_path = "{CERTS}"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
SystemdCgroup = false
"#,
        pause = images::PAUSE
    )
}

fn version_3(restrict_oom: bool) -> String {
    format!(
        r#"[plugins."io.containerd.cri.v1.runtime"]
restrict_oom_score_adj = {restrict_oom}
[plugins."io.containerd.cri.v1.runtime".cni]
bin_dirs = ["{PLUGINS}"]
conf_dir = "/etc/cni/net.d"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
SystemdCgroup = false
[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = "{pause}"
[plugins."io.containerd.cri.v1.images".registry]
config_path = "{CERTS}"
"#,
        pause = images::PAUSE
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_as_debian_and_upstream_print_them() {
        assert_eq!(major("containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u3\n"), Some(1));
        assert_eq!(major("containerd github.com/containerd/containerd/v2 v2.4.2 abc"), Some(2));
        assert_eq!(major("containerd"), None);
    }
}
