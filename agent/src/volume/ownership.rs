//! Who owns the files of a volume: fsGroup and runAsUser.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use k8s_openapi::api::core::v1::Pod;

use super::error::{Cause, at};

/// The group that a volume is handed to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Group {
    gid: u32,
    read_only: bool,
    /// fsGroupChangePolicy OnRootMismatch: a volume whose root fits already is left alone.
    on_root_mismatch: bool,
}

impl Group {
    /// The pod's fsGroup, if it has one.
    pub(super) fn of(pod: &Pod, read_only: bool) -> Option<Self> {
        let context = pod.spec.as_ref()?.security_context.as_ref()?;
        let gid = u32::try_from(context.fs_group?).ok()?;
        let on_root_mismatch = !read_only && context.fs_group_change_policy.as_deref() == Some("OnRootMismatch");
        Some(Self { gid, read_only, on_root_mismatch })
    }
}

/// The user that every container of the pod runs as; `None` if they differ or one does not say.
pub(super) fn common_user(pod: &Pod) -> Option<u32> {
    let spec = pod.spec.as_ref()?;
    let of_pod = spec.security_context.as_ref().and_then(|c| c.run_as_user);
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let mut users = containers.map(|c| c.security_context.as_ref().and_then(|s| s.run_as_user).or(of_pod));
    let first = users.next()??;
    users.all(|user| user == Some(first)).then(|| u32::try_from(first).ok())?
}

/// Hands a volume to a group, as the kubelet does: the group owns everything, may read (and write, unless the volume is
/// read-only) and enter, and new files inherit it.
///
/// # Errors
/// Where an owner or a mode cannot be set.
pub(super) fn apply(dir: &Path, group: Group) -> Result<(), Cause> {
    if group.on_root_mismatch && fits(dir, group)? {
        return Ok(());
    }
    walk(dir, group)
}

fn bits(is_dir: bool, group: Group) -> u32 {
    let read_write = if group.read_only { 0o440 } else { 0o660 };
    if is_dir { read_write | 0o2110 } else { read_write }
}

fn fits(dir: &Path, group: Group) -> Result<bool, Cause> {
    let meta = fs::metadata(dir).map_err(at("stat", dir))?;
    let wanted = bits(true, group);
    Ok(meta.gid() == group.gid && meta.mode() & wanted == wanted)
}

/// The root comes last, so that a walk that was cut short is done again.
fn walk(path: &Path, group: Group) -> Result<(), Cause> {
    let meta = fs::symlink_metadata(path).map_err(at("stat", path))?;
    if meta.is_dir() {
        for entry in fs::read_dir(path).map_err(at("list", path))? {
            walk(&entry.map_err(at("list", path))?.path(), group)?;
        }
    }
    kernel::mount::chown(path, None, Some(group.gid))?;
    if meta.is_symlink() {
        return Ok(());
    }
    let mode = (meta.mode() & 0o7777) | bits(meta.is_dir(), group);
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(at("change the mode of", path))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(context: serde_json::Value, users: &[Option<i64>]) -> Pod {
        let containers: Vec<_> =
            users.iter().map(|u| json!({"name": "c", "securityContext": {"runAsUser": u}})).collect();
        serde_json::from_value(json!({"spec": {"securityContext": context, "containers": containers}})).unwrap()
    }

    #[test]
    fn a_token_has_the_user_that_all_containers_share() {
        assert_eq!(common_user(&pod(json!({"runAsUser": 7}), &[None, Some(7)])), Some(7));
        assert_eq!(common_user(&pod(json!({"runAsUser": 7}), &[None, Some(8)])), None);
        assert_eq!(common_user(&pod(json!({}), &[None])), None);
    }

    #[test]
    fn the_group_owns_reads_and_inherits() {
        let dir = std::env::temp_dir().join(format!("volumes-own-{}", std::process::id()));
        fs::create_dir_all(dir.join("sub")).unwrap();
        fs::write(dir.join("sub/file"), "").unwrap();
        fs::set_permissions(dir.join("sub/file"), fs::Permissions::from_mode(0o400)).unwrap();
        let group = Group::of(&pod(json!({"fsGroup": 4321}), &[]), false).unwrap();
        if let Err(e) = apply(&dir, group) {
            return eprintln!("skipped: {e}");
        }
        let meta = |name: &str| fs::metadata(dir.join(name)).map(|m| (m.gid(), m.mode() & 0o7777)).unwrap();
        assert_eq!(meta("sub/file"), (4321, 0o660));
        assert_eq!(meta("sub"), (4321, 0o2775));
        fs::remove_dir_all(dir).unwrap();
    }
}
