//! emptyDir, on disk or in memory.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

use api::quantity::Quantity;
use k8s_openapi::api::core::v1::{EmptyDirVolumeSource, Pod};

use super::NodeCapacity;
use super::error::{Cause, at};
use super::ownership::{self, Group};
use crate::cgroup::pod_resources;

/// The size of a memory volume: the least of its sizeLimit and what the pod or else the node may use.
pub(super) fn size(source: &EmptyDirVolumeSource, pod: &Pod, node: &NodeCapacity) -> Option<u64> {
    let limit = source.size_limit.as_ref().and_then(|q| q.0.parse::<Quantity>().ok()).map(Quantity::value);
    let most = pod_resources(pod).memory_limit.unwrap_or(node.memory);
    let sizes = [limit, Some(most)].into_iter().flatten().filter(|size| *size > 0);
    sizes.min().and_then(|size| u64::try_from(size).ok())
}

/// Makes the folder and, for medium `Memory`, mounts a tmpfs on it. What is there is left with its content.
///
/// # Errors
/// Where the folder cannot be made, the medium is unknown or the mount is refused.
pub(super) fn set_up(dir: &Path, medium: &str, size: Option<u64>, group: Option<Group>) -> Result<(), Cause> {
    if !matches!(medium, "" | "Memory") {
        return Err(if medium.starts_with("HugePages") {
            Cause::Unsupported("emptyDir of huge pages")
        } else {
            Cause::UnknownMedium(medium.into())
        });
    }
    let parent = dir.parent().unwrap_or(dir);
    fs::DirBuilder::new().recursive(true).mode(0o750).create(parent).map_err(at("create", parent))?;
    let fresh = match fs::create_dir(dir) {
        Ok(()) => true,
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => false,
        Err(e) => return Err(at("create", dir)(e)),
    };
    let mounted = medium == "Memory" && kernel::mount::is_mount_point(dir)?;
    if medium == "Memory" && !mounted {
        kernel::mount::tmpfs(dir, size, 0o777)?;
    }
    // Only a new one: a container may have changed the mode and the owners since.
    if fresh || (medium == "Memory" && !mounted) {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o777)).map_err(at("change the mode of", dir))?;
        group.map_or(Ok(()), |group| ownership::apply(dir, group))?;
    }
    Ok(())
}
