//! subPath: a part of a volume, resolved beneath it and mounted by descriptor, so that no link that a container plants
//! leads the mount out of the volume (CVE-2021-25741).

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Component, Path, PathBuf};

use k8s_openapi::api::core::v1::VolumeMount;
use kernel::mount::{Beneath, bind_descriptor, is_mount_point, unmount_lazy};

use super::error::{Cause, SubPathError, at};

/// What is mounted where.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub volume: PathBuf,
    /// Relative to the volume.
    pub sub_path: PathBuf,
    pub target: PathBuf,
}

/// The mount's subPath, or its subPathExpr with variables put in; empty for the whole volume.
///
/// # Errors
/// Where it is absolute, climbs by `..`, or names a variable that is not there.
pub(super) fn wanted(mount: &VolumeMount, environment: &BTreeMap<String, String>) -> Result<PathBuf, SubPathError> {
    let path = match mount.sub_path_expr.as_deref().filter(|e| !e.is_empty()) {
        Some(expression) => expand(expression, environment)?,
        None => mount.sub_path.clone().unwrap_or_default(),
    };
    if path.starts_with('/') {
        return Err(SubPathError::Absolute(path));
    }
    if Path::new(&path).components().any(|c| c == Component::ParentDir) {
        return Err(SubPathError::Backsteps(path));
    }
    Ok(Path::new(&path).components().filter(|c| *c != Component::CurDir).collect())
}

/// `$(NAME)` becomes the variable's value, `$$` a dollar sign.
fn expand(expression: &str, environment: &BTreeMap<String, String>) -> Result<String, SubPathError> {
    let undefined = || SubPathError::Expression(expression.into());
    let mut out = String::new();
    let mut rest = expression;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|r| r.split_once(')')) {
            out.push_str(environment.get(name).ok_or_else(undefined)?);
            rest = after;
        } else {
            out.push('$');
        }
    }
    out.push_str(rest);
    Ok(out)
}

/// Mounts the part of the volume at the target. What is missing of it is made as a folder with the volume's own mode.
///
/// # Errors
/// Where a link leads out of the volume, or a folder or the mount is refused.
pub(super) fn mount(place: &Place) -> Result<(), Cause> {
    let volume = Beneath::open(&place.volume)?;
    // With setgid, or the folders made here would leave the pod's fsGroup.
    let mode = volume.mode()? & 0o2777;
    let part = volume.resolve_or_create(&place.sub_path, mode)?;
    let target = &place.target;
    if is_mount_point(target)? {
        // A former container's, which keeps its own copy.
        unmount_lazy(target)?;
    }
    let parent = target.parent().unwrap_or(target);
    fs::DirBuilder::new().recursive(true).mode(0o750).create(parent).map_err(at("create", parent))?;
    make_target(target, Beneath::is_dir(&part)?)?;
    Ok(bind_descriptor(&part, target)?)
}

/// A folder is mounted on a folder, anything else on a file.
fn make_target(target: &Path, is_dir: bool) -> Result<(), Cause> {
    match fs::symlink_metadata(target) {
        Ok(found) if found.is_dir() == is_dir && !found.is_symlink() => return Ok(()),
        Ok(found) if found.is_dir() => fs::remove_dir(target).map_err(at("remove", target))?,
        Ok(_) => fs::remove_file(target).map_err(at("remove", target))?,
        Err(_) => {}
    }
    if is_dir {
        fs::create_dir(target).map_err(at("create", target))
    } else {
        fs::File::create(target).map(drop).map_err(at("create", target))
    }
}
