//! The AppArmor profile of containers that ask for none, and what is loaded in the kernel.
//! Sources: apparmor.d(5), apparmor_parser(8), securityfs's apparmor/profiles.

use std::collections::BTreeSet;
use std::path::Path;

use cri::v1::{self, security_profile::ProfileType};

use super::SpecError;
use super::security::profile;

/// Containerd's own plugin loads one of this name; the loaded one stays, whoever loaded it.
pub(super) const DEFAULT: &str = "cri-containerd.apparmor.d";
/// One loaded profile a line: `NAME (MODE)`.
const LOADED: &str = "/sys/kernel/security/apparmor/profiles";

/// The program that loads profiles.
const PARSER: &str = "apparmor_parser";

/// What a container asks to be confined by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Confinement {
    None,
    Default,
    /// A profile that someone else loads.
    Named(String),
}

/// A container that says nothing has the default profile, unless it is privileged. `enabled`: see [`is_enabled`].
///
/// # Errors
/// For a profile in no known form, and for any where there is no AppArmor.
pub(super) fn wanted(security: &v1::LinuxContainerSecurityContext, enabled: bool) -> Result<Confinement, SpecError> {
    #[allow(deprecated)]
    let old = &security.apparmor_profile;
    let asked = profile("AppArmor", security.apparmor.as_ref(), old)?.map(|asked| match asked.profile_type() {
        ProfileType::Unconfined => Confinement::None,
        ProfileType::Localhost => Confinement::Named(asked.localhost_ref),
        ProfileType::RuntimeDefault if security.privileged => Confinement::None,
        ProfileType::RuntimeDefault => Confinement::Default,
    });
    match asked {
        None if enabled && !security.privileged => Ok(Confinement::Default),
        None | Some(Confinement::None) => Ok(Confinement::None),
        Some(asked) if enabled => Ok(asked),
        Some(_) => {
            let reason = "this kernel has no AppArmor, or this machine no apparmor_parser: use Unconfined".to_owned();
            Err(SpecError::Profile { kind: "AppArmor", reason })
        }
    }
}

/// Whether containers can be confined: the kernel does, and profiles can be loaded.
pub(super) fn is_enabled() -> bool {
    let kernel = std::fs::read_to_string("/sys/module/apparmor/parameters/enabled").unwrap_or_default();
    if !kernel.starts_with('Y') || !Path::new(LOADED).exists() {
        return false;
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).any(|folder| folder.join(PARSER).is_file());
    if !found {
        tracing::warn!("no container is confined by AppArmor: this kernel could, but {PARSER} is not on PATH");
    }
    found
}

/// The profiles that a container may name, with the default one loaded where it asks for that.
///
/// # Errors
/// As [`wanted`], and where profiles cannot be listed or loaded.
pub(super) fn ready(
    security: &v1::LinuxContainerSecurityContext,
    enabled: bool,
) -> Result<BTreeSet<String>, SpecError> {
    match wanted(security, enabled)? {
        Confinement::None => Ok(BTreeSet::new()),
        Confinement::Named(_) => loaded(),
        Confinement::Default => {
            load_default()?;
            Ok([DEFAULT.to_owned()].into())
        }
    }
}

/// The names of all loaded profiles.
fn loaded() -> Result<BTreeSet<String>, SpecError> {
    let path = Path::new(LOADED);
    Ok(names(&std::fs::read_to_string(path).map_err(SpecError::file("read", path))?))
}

/// Loads the default profile, unless one of its name is loaded. Runs apparmor_parser.
fn load_default() -> Result<(), SpecError> {
    if loaded()?.contains(DEFAULT) {
        return Ok(());
    }
    let words = [PARSER, "-K", "-r"].map(String::from);
    let text = default_profile(DEFAULT);
    kernel::process::feed(&words, |input| input.write_all(text.as_bytes()))
        .map_err(|e| SpecError::Profile { kind: "AppArmor", reason: format!("cannot load the default one: {e}") })
}

fn names(text: &str) -> BTreeSet<String> {
    text.lines().filter_map(|line| Some(line.rsplit_once(" (")?.0.to_owned())).collect()
}

/// Everything is allowed but what changes the machine through /proc and /sys, mounts, and tracing of others.
fn default_profile(name: &str) -> String {
    const WRITES: [&str; 7] = [
        "/proc/sysrq-trigger",
        "/proc/kcore",
        "/proc/mem",
        "/proc/kmem",
        "/sys/firmware/**",
        "/sys/devices/virtual/powercap/**",
        "/sys/kernel/security/**",
    ];
    let denied: String = WRITES.iter().map(|path| format!("  deny {path} rwklx,\n")).collect();
    format!(
        "profile {name} flags=(attach_disconnected,mediate_deleted) {{
  network,
  capability,
  file,
  umount,
  signal (receive) peer=unconfined,
  signal (receive) peer=runc,
  signal (receive) peer=crun,
  signal (send,receive) peer={name},
  ptrace (trace,read,tracedby,readby) peer={name},
  deny mount,
  # Of /proc/sys, what lies in the container's own namespaces may be written.
  deny /proc/* w,
  deny /proc/[^1-9s]*/** w,
  deny /proc/scsi/** w,
  deny /proc/sys/[^kn]** w,
  deny /proc/sys/kernel/{{?,??,[^s][^h][^m]**}} w,
{denied}  deny /sys/[^f]*/** wklx,
  deny /sys/f[^s]*/** wklx,
  deny /sys/fs/[^c]*/** wklx,
  deny /sys/fs/c[^g]*/** wklx,
}}
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loaded_names_may_have_spaces() {
        let text = "docker-default (enforce)\n/usr/bin/man (x) (complain)\nbroken\n";
        assert_eq!(names(text), ["docker-default", "/usr/bin/man (x)"].map(String::from).into());
    }

    #[test]
    fn the_parser_takes_the_default_profile() {
        let text = default_profile(DEFAULT);
        let words = [PARSER, "-QK"].map(String::from);
        match kernel::process::feed(&words, |input| input.write_all(text.as_bytes())) {
            Err(kernel::process::RunError::Start { source, .. }) => eprintln!("SKIPPED apparmor_parser: {source}"),
            other => other.unwrap(),
        }
    }
}
