//! Trees of several folders, whose files may have other owners for whoever looks through the mount. Source: mount_setattr(2), "ID-mapped mounts".

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::detached::{joined, owned};
use super::{Result, at};
use crate::namespaces::{IdMap, IdMaps};

const OPEN_TREE_CLONE: libc::c_uint = 1;
/// Covered by mounts in a namespace of a thread's own; every Linux has it.
const PLACE: &str = "/proc/sys/fs";

/// Folders that make up one tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layers {
    /// The first is on top.
    pub lower: Vec<PathBuf>,
    /// Where changes go; none for a tree that cannot be written to.
    pub upper: Option<Upper>,
    /// Further options of the overlay file system.
    pub options: Vec<String>,
}

/// The folders of an overlay that is written to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upper {
    pub changes: PathBuf,
    pub work: PathBuf,
}

/// Mounts `layers` as one tree at `target`. Needs Linux 5.2.
///
/// With `users` owners are as the user namespace at that path has them: what its root owns in the lower folders is its
/// root's. The maps are the same, for the owner of the tree's top. This needs Linux 5.19.
///
/// # Errors
/// Where the kernel refuses, as for lower folders on a file system that cannot map ids (EINVAL).
pub fn overlay(layers: &Layers, users: Option<(&Path, &IdMaps)>, target: &Path) -> Result<()> {
    // It is the top of the tree.
    if let (Some(upper), Some((_, maps))) = (&layers.upper, users) {
        hand_over(&upper.changes, maps)?;
    }
    let user = users.map(|(path, _)| File::open(path).map_err(at("open", path))).transpose()?;
    let shown = |dir: &PathBuf| user.as_ref().map_or_else(|| copy(dir), |user| mapped(dir, user));
    let trees = layers.lower.iter().map(shown).collect::<Result<Vec<_>>>()?;
    let rest = layers.clone();
    // What lower folders are mounted at is of no use once the overlay has them, so that nobody else gets to see it.
    let thread = std::thread::spawn(move || assemble(&trees, &rest));
    let panicked = |_| at("mount an overlay for", target)(io::Error::other("the thread that mounts it panicked"));
    let tree = thread.join().map_err(panicked)??;
    super::beneath::attach(&tree, target)
}

/// A copy of the mount at `dir`, attached nowhere, that maps ids.
fn mapped(dir: &Path, user: &File) -> Result<OwnedFd> {
    let tree = copy(dir)?;
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: 0,
        userns_fd: u64::try_from(user.as_raw_fd()).unwrap_or_default(),
    };
    let size = size_of::<libc::mount_attr>();
    // SAFETY: both descriptors are open for the call, the path is a NUL-terminated string, and the kernel only reads
    // `attributes`, of the size that it is told.
    let done = unsafe {
        let attributes = std::ptr::from_ref(&attributes);
        libc::syscall(libc::SYS_mount_setattr, tree.as_raw_fd(), c"".as_ptr(), libc::AT_EMPTY_PATH, attributes, size)
    };
    if done < 0 { Err(at("map the ids of", dir)(io::Error::last_os_error())) } else { Ok(tree) }
}

fn copy(path: &Path) -> Result<OwnedFd> {
    let name = super::beneath::c_path(path).map_err(at("copy the mount of", path))?;
    let flags = OPEN_TREE_CLONE | libc::O_CLOEXEC as libc::c_uint;
    // SAFETY: the path is a NUL-terminated string and the kernel writes nothing.
    owned(unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, name.as_ptr(), flags) })
        .map_err(at("copy the mount of", path))
}

/// The overlay, attached nowhere. Moves the calling thread to a mount namespace of its own.
fn assemble(trees: &[OwnedFd], layers: &Layers) -> Result<OwnedFd> {
    super::own_namespace()?;
    let place = Path::new(PLACE);
    super::tmpfs(place, None, 0o700)?;
    let folder = |name: &str| {
        let path = place.join(name);
        std::fs::create_dir(&path).map_err(at("make", &path)).map(|()| path)
    };
    let mut lower = Vec::new();
    for (number, tree) in trees.iter().enumerate() {
        let path = folder(&number.to_string())?;
        super::beneath::attach(tree, &path)?;
        lower.push(path);
    }
    let whole = folder("whole")?;
    let mut folders = Vec::new();
    match &layers.upper {
        Some(upper) => {
            folders.extend([("upperdir", vec![upper.changes.clone()]), ("workdir", vec![upper.work.clone()])])
        }
        // One folder alone is no overlay.
        None if lower.len() == 1 => lower.push(folder("nothing")?),
        None => {}
    }
    folders.push(("lowerdir", lower));
    let mut options: Vec<String> = layers.options.clone();
    for (key, paths) in &folders {
        options.push(format!("{key}={}", String::from_utf8_lossy(&joined(paths))));
    }
    super::mount("overlay", "overlay", &whole, &options.join(","))?;
    copy(&whole)
}

/// Gives a file to whom its owner is in the user namespace that maps ids so. It is its own already where its owner is
/// none of the ids.
///
/// # Errors
/// Where it is not there, or may not be given away.
pub fn hand_over(path: &Path, maps: &IdMaps) -> Result<()> {
    let stat = std::fs::metadata(path).map_err(at("stat", path))?;
    super::chown(path, outside(&maps.users, stat.uid()), outside(&maps.groups, stat.gid()))
}

/// What an id is outside; `None` where it is not mapped, as when it has been already.
fn outside(maps: &[IdMap], id: u32) -> Option<u32> {
    let one = |map: &IdMap| id.checked_sub(map.inside).filter(|at| *at < map.length).map(|at| map.outside + at);
    maps.iter().find_map(one)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_mapped_once() {
        let maps = [IdMap { inside: 0, outside: 100_000, length: 10 }];
        assert_eq!(outside(&maps, 0), Some(100_000));
        assert_eq!(outside(&maps, 9), Some(100_009));
        assert_eq!(outside(&maps, 10), None);
        assert_eq!(outside(&maps, 100_000), None);
    }

    #[test]
    fn the_roots_files_are_the_namespaces_roots() {
        let name = "the_roots_files_are_the_namespaces_roots";
        if !crate::test::root(name) {
            return;
        }
        let folder = std::env::temp_dir().join(format!("mapped-overlay-{}", std::process::id()));
        let [lower, below, upper, work, target, pins] =
            ["lower", "below", "upper", "work", "target", "pins"].map(|part| folder.join(part));
        for dir in [&lower, &below, &upper, &work, &target] {
            std::fs::create_dir_all(dir).unwrap();
        }
        std::fs::write(lower.join("file"), "x").unwrap();
        std::fs::write(below.join("other"), "y").unwrap();
        let maps = IdMaps {
            users: vec![IdMap { inside: 0, outside: 100_000, length: 65_536 }],
            groups: vec![IdMap { inside: 0, outside: 200_000, length: 65_536 }],
        };
        let request = crate::namespaces::Request { user: Some(maps.clone()), ..Default::default() };
        let pinned = crate::namespaces::pin(&pins, &request).unwrap();
        let namespace = pinned.user.unwrap();
        let changes = Some(Upper { changes: upper.clone(), work });
        let layers = Layers { lower: vec![lower.clone(), below.clone()], upper: changes, options: Vec::new() };
        let mounted = overlay(&layers, Some((&namespace, &maps)), &target);
        if mounted.as_ref().is_err_and(|e| e.kind() == Some(io::ErrorKind::InvalidInput)) {
            eprintln!("SKIPPED {name}: the file system of the temporary folder or this kernel maps no ids");
            crate::namespaces::unpin(&pins).unwrap();
            return std::fs::remove_dir_all(&folder).unwrap();
        }
        let owner = |path: &Path| std::fs::metadata(path).map(|stat| (stat.uid(), stat.gid())).unwrap();
        let seen = mounted.map(|()| ["", "file", "other"].map(|part| owner(&target.join(part))));
        let changed = std::fs::write(target.join("file"), "z").and_then(|()| std::fs::metadata(upper.join("file")));
        let changed = changed.map(|stat| (stat.uid(), stat.gid()));
        let unmounted = crate::mount::unmount(&target);
        let fixed = Layers { lower: vec![lower.clone()], upper: None, options: Vec::new() };
        let fixed = overlay(&fixed, Some((&namespace, &maps)), &target);
        let fixed = fixed.map(|()| (owner(&target.join("file")), std::fs::write(target.join("file"), "z")));
        let unmounted = unmounted.and(crate::mount::unmount(&target));
        let unpinned = crate::namespaces::unpin(&pins);
        unmounted.and(unpinned.map_err(|e| at("unpin", &pins)(io::Error::other(e)))).unwrap();
        let below = owner(&lower.join("file"));
        std::fs::remove_dir_all(&folder).unwrap();
        assert_eq!(seen.unwrap(), [(100_000, 200_000); 3]);
        assert_eq!((changed.unwrap(), below), ((100_000, 200_000), (0, 0)));
        let (owner, written) = fixed.unwrap();
        assert_eq!((owner, written.unwrap_err().kind()), ((100_000, 200_000), io::ErrorKind::ReadOnlyFilesystem));
    }
}
