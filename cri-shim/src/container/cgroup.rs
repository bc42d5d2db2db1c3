//! Where a spec's `cgroupsPath` leads. Source: runc, docs/systemd.md; systemd.slice(5).

/// The cgroup below the hierarchies' roots: for the cgroupfs driver the path itself, for systemd's
/// `slice:prefix:name` the slice with its parents and the scope in it.
pub fn path(cgroups_path: &str) -> String {
    let mut parts = cgroups_path.split(':');
    let (Some(slice), Some(prefix), Some(name), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
        return cgroups_path.to_owned();
    };
    let slice = if slice.is_empty() { "system.slice" } else { slice };
    let unit = if name.ends_with(".slice") { name.to_owned() } else { format!("{prefix}-{name}.scope") };
    format!("{}/{unit}", slices(slice))
}

/// `a-b-c.slice` lies in `a-b.slice`, which lies in `a.slice`.
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
    fn both_drivers_lead_somewhere() {
        assert_eq!(path("/kubepods/pod1/abc"), "/kubepods/pod1/abc");
        assert_eq!(
            path("kubepods-burstable-pod1.slice:cri-containerd:abc"),
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice/cri-containerd-abc.scope"
        );
        assert_eq!(path(":cri:abc"), "/system.slice/cri-abc.scope");
        assert_eq!(path("-.slice:cri:abc"), "/cri-abc.scope");
    }
}
