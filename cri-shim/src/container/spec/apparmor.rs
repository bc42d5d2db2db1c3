//! The AppArmor profile of containers that ask for none, and what is loaded in the kernel.
//! Sources: apparmor.d(5), apparmor_parser(8), securityfs's apparmor/profiles.

use std::collections::BTreeSet;
use std::path::Path;

use super::SpecError;

/// Containerd's own plugin loads one of this name; the loaded one stays, whoever loaded it.
pub const DEFAULT: &str = "cri-containerd.apparmor.d";
/// One loaded profile a line: `NAME (MODE)`.
pub(super) const LOADED: &str = "/sys/kernel/security/apparmor/profiles";

/// The names of all loaded profiles.
///
/// # Errors
/// Where securityfs cannot be read.
pub fn loaded() -> Result<BTreeSet<String>, SpecError> {
    let path = Path::new(LOADED);
    Ok(names(&std::fs::read_to_string(path).map_err(SpecError::file("read", path))?))
}

/// Loads the default profile, unless one of its name is loaded. Runs apparmor_parser.
///
/// # Errors
/// Where that program is not there or fails.
pub fn load_default() -> Result<(), SpecError> {
    if loaded()?.contains(DEFAULT) {
        return Ok(());
    }
    let words = ["apparmor_parser", "-K", "-r"].map(String::from);
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
        let words = ["apparmor_parser", "-QK"].map(String::from);
        match kernel::process::feed(&words, |input| input.write_all(text.as_bytes())) {
            Err(kernel::process::RunError::Start { source, .. }) => eprintln!("SKIPPED apparmor_parser: {source}"),
            other => other.unwrap(),
        }
    }
}
