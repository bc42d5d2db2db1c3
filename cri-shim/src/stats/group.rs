//! Where runc puts a container's control group, by either driver.

/// The path of the group of container `id` in a pod's `parent`, or of the pod itself without an id, the same in every
/// hierarchy.
///
/// A parent whose last part ends in `.slice` is systemd's (`a-b.slice` lies in `a.slice`) and the container a scope
/// `cri-containerd-ID.scope` in it; else it is a plain folder. Source: systemd.slice(5), runc's docs/systemd.md.
pub fn path(parent: &str, id: Option<&str>) -> String {
    let last = parent.rsplit('/').next().unwrap_or(parent);
    let (folder, child) = match last.strip_suffix(".slice") {
        Some(name) => (expand(name), id.map(|id| format!("cri-containerd-{id}.scope"))),
        None => (format!("/{}", parent.trim_matches('/')), id.map(str::to_owned)),
    };
    match child {
        Some(child) => format!("{}/{child}", folder.trim_end_matches('/')),
        None => folder,
    }
}

/// `-.slice` is the root.
fn expand(name: &str) -> String {
    let mut path = String::new();
    for (at, _) in name.match_indices('-').chain([(name.len(), "")]) {
        if at > 0 && name != "-" {
            path.push('/');
            path.push_str(&name[..at]);
            path.push_str(".slice");
        }
    }
    if path.is_empty() { "/".to_owned() } else { path }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_driver_has_its_own_names() {
        assert_eq!(path("/kubepods/burstable/pod1", Some("abc")), "/kubepods/burstable/pod1/abc");
        assert_eq!(path("kubepods/pod1/", None), "/kubepods/pod1");
        assert_eq!(path("", Some("abc")), "/abc");
        let slice = "/kubepods.slice/kubepods-besteffort.slice";
        assert_eq!(
            path("kubepods-besteffort-pod1_2.slice", Some("abc")),
            format!("{slice}/kubepods-besteffort-pod1_2.slice/cri-containerd-abc.scope")
        );
        let whole = format!("{slice}/kubepods-besteffort-pod1_2.slice");
        assert_eq!(path(&whole, None), whole);
        assert_eq!(path("-.slice", Some("abc")), "/cri-containerd-abc.scope");
    }
}
