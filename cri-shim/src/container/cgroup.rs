//! A container's place in the cgroup tree, by either driver. Sources: CRI's LinuxPodSandboxConfig, systemd.slice(5),
//! runc's docs/systemd.md.

use std::path::{Path, PathBuf};

use kernel::cgroup::Cgroups;

use crate::error::{Error, Result};

/// systemd scopes of containers start with this, as those of containerd's own plugin do: monitoring knows them by it.
const SCOPE_PREFIX: &str = "cri-containerd";

/// In a scope, systemd writes the limits that it knows; so crun has a group within it for those that it sets itself.
/// Source: crun.1, run.oci.systemd.subgroup.
const CRUN_GROUP: &str = "container";

/// Whether containers can be placed below a pod's `parent`: systemd places them in slices only, and only systemd
/// makes slices.
///
/// # Errors
/// `Invalid` for a parent of the other driver, which is the kubelet's then.
pub fn check_parent(parent: &str, systemd: bool) -> Result<()> {
    let (is, other) = if systemd { ("systemd", "cgroupfs") } else { ("cgroupfs", "systemd") };
    let what = if systemd { "is not a slice (NAME.slice)" } else { "is a systemd slice" };
    if parent.is_empty() || slice(parent).is_some() == systemd {
        return Ok(());
    }
    Err(Error::Invalid(format!(
        "cgroup parent {parent:?} {what}, and the cgroup driver here is {is}: give bosun cri --cgroup-driver {other}, \
         or the kubelet cgroupDriver: {is}"
    )))
}

/// The `cgroupsPath` of a container's spec: a folder below the pod's, or `slice:prefix:name` for a scope in its slice.
pub fn of_spec(parent: &str, id: &str, systemd: bool) -> PathBuf {
    if systemd {
        // runc's own choice where none is named; crun has none.
        return format!("{}:{SCOPE_PREFIX}:{id}", slice(parent).unwrap_or("system.slice")).into();
    }
    let parent = if parent.is_empty() { "k8s.io" } else { parent };
    Path::new("/").join(parent).join(id)
}

/// The cgroup of a pod with this parent, below the hierarchies' roots.
pub fn of_pod(parent: &str) -> String {
    slice(parent).map_or_else(|| format!("/{}", parent.trim_matches('/')), slices)
}

/// The cgroup to which a `cgroupsPath` leads, below the hierarchies' roots: the path itself, or the slice with its
/// parents and the scope in it.
pub fn path(cgroups_path: &str) -> String {
    let mut parts = cgroups_path.split(':');
    let (Some(slice), Some(prefix), Some(name), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
        return cgroups_path.to_owned();
    };
    format!("{}/{prefix}-{name}.scope", slices(slice))
}

/// The cgroup that has the container's processes and limits: the scope, or the one that crun makes in it.
pub fn of_container(cgroups: &Cgroups, cgroups_path: &str) -> String {
    let group = path(cgroups_path);
    let within = format!("{group}/{CRUN_GROUP}");
    if group.ends_with(".scope") && cgroups.exists(&within) { within } else { group }
}

/// Kills for want of memory of all containers in the pod of this one. The kernel keeps the count when their cgroups go.
pub fn oom_kills_in_pod(cgroups: &Cgroups, cgroups_path: &str) -> u64 {
    let group = path(cgroups_path);
    let pod = group.rsplit_once('/').map_or("", |(pod, _)| pod);
    cgroups.oom_kills(pod).unwrap_or(0)
}

/// A parent's last part, if that is a slice: it has its parents in its name.
fn slice(parent: &str) -> Option<&str> {
    parent.trim_end_matches('/').rsplit('/').next().filter(|last| last.ends_with(".slice"))
}

/// `a-b-c.slice` lies in `a-b.slice`, which lies in `a.slice`; `-.slice` is the root.
fn slices(slice: &str) -> String {
    let stem = slice.strip_suffix(".slice").unwrap_or(slice);
    if stem == "-" {
        return String::new();
    }
    let ends = stem.match_indices('-').map(|(at, _)| at).chain([stem.len()]);
    ends.map(|end| format!("/{}.slice", &stem[..end])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_lie_below_the_pods() {
        for (parent, folder) in [("/kubepods/pod1", "/kubepods/pod1"), ("kubepods/pod1/", "/kubepods/pod1")] {
            let spec = of_spec(parent, "abc", false);
            assert_eq!(spec, Path::new(folder).join("abc"));
            assert_eq!((path(&spec.to_string_lossy()), of_pod(parent)), (format!("{folder}/abc"), folder.to_owned()));
        }
        assert_eq!(of_spec("", "abc", false), Path::new("/k8s.io/abc"));
    }

    #[test]
    fn scopes_lie_in_the_pods_slice() {
        let pod = "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice";
        for parent in [pod, "kubepods-burstable-pod1_2.slice"] {
            let spec = of_spec(parent, "abc", true);
            assert_eq!(spec, Path::new("kubepods-burstable-pod1_2.slice:cri-containerd:abc"));
            assert_eq!(path(&spec.to_string_lossy()), format!("{pod}/cri-containerd-abc.scope"));
            assert_eq!(of_pod(parent), pod);
        }
        assert_eq!(of_spec("", "abc", true), Path::new("system.slice:cri-containerd:abc"));
        assert_eq!(path("system.slice:cri-containerd:abc"), "/system.slice/cri-containerd-abc.scope");
        assert_eq!(path("-.slice:cri-containerd:abc"), "/cri-containerd-abc.scope");
    }

    #[test]
    fn cruns_group_has_the_limits_and_the_pods_the_kills() {
        let root = tempfile::tempdir().unwrap();
        let cgroups = Cgroups::new(kernel::cgroup::Layout::v2(root.path()));
        let (spec, scope) = ("a.slice:cri-containerd:abc", "a.slice/cri-containerd-abc.scope");
        std::fs::create_dir_all(root.path().join(scope)).unwrap();
        std::fs::write(root.path().join("a.slice/memory.events"), "oom_kill 2\n").unwrap();
        assert_eq!(of_container(&cgroups, spec), format!("/{scope}"));
        std::fs::create_dir(root.path().join(scope).join(CRUN_GROUP)).unwrap();
        assert_eq!(of_container(&cgroups, spec), format!("/{scope}/container"));
        assert_eq!(oom_kills_in_pod(&cgroups, spec), 2);
        std::fs::create_dir_all(root.path().join("pod/abc/container")).unwrap();
        assert_eq!(of_container(&cgroups, "/pod/abc"), "/pod/abc");
    }

    #[test]
    fn a_parent_of_the_other_driver_is_refused() {
        let says = |parent: &str, systemd| check_parent(parent, systemd).map_err(|error| error.to_string());
        for (parent, systemd) in [("", true), ("", false), ("/a.slice/a-b.slice", true), ("/a.slice/pod1", false)] {
            assert_eq!(says(parent, systemd), Ok(()));
        }
        let refused = says("/kubepods/pod1", true).unwrap_err();
        assert!(
            refused.contains("\"/kubepods/pod1\" is not a slice") && refused.contains("-driver cgroupfs"),
            "{refused}"
        );
        let refused = says("a-b.slice", false).unwrap_err();
        assert!(
            refused.contains("\"a-b.slice\" is a systemd slice") && refused.contains("-driver systemd"),
            "{refused}"
        );
    }
}
