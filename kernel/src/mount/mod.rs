//! Mounts of this process's mount namespace: typed calls, mountinfo, and paths resolved beneath a folder that cannot be
//! led out of it.

mod beneath;
mod detached;
mod info;
mod mapped;

use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags};

pub use beneath::{Beneath, bind_descriptor};
pub use detached::detached_overlay;
pub use info::MountInfo;
pub use mapped::{Layers, Upper, hand_over, overlay};

/// What a mount operation attempted, on what, and why it failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{operation} {}: {source}", path.display())]
    Call { operation: &'static str, path: PathBuf, source: io::Error },
    #[error("{} leads out of {}", path.display(), root.display())]
    Escapes { root: PathBuf, path: PathBuf },
}

/// Result of this module.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// The error number of the kernel.
    pub fn kind(&self) -> Option<io::ErrorKind> {
        match self {
            Self::Call { source, .. } => Some(source.kind()),
            Self::Escapes { .. } => None,
        }
    }
}

pub(crate) fn at<E: Into<io::Error>>(operation: &'static str, path: &Path) -> impl FnOnce(E) -> Error + use<E> {
    let path = path.to_owned();
    move |source| Error::Call { operation, path, source: source.into() }
}

/// How mount events travel between a mount and its copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    Private,
    Shared,
    Slave,
}

/// Mounts a file system by its kernel name with comma-separated options.
///
/// # Errors
/// Where the kernel refuses.
pub fn mount(fs_type: &str, source: &str, target: &Path, options: &str) -> Result<()> {
    nix::mount::mount(Some(source), target, Some(fs_type), MsFlags::empty(), Some(options)).map_err(at("mount", target))
}

/// Mounts a tmpfs of at most `size` bytes (the kernel's half of memory if `None`).
///
/// # Errors
/// Where the kernel refuses.
pub fn tmpfs(target: &Path, size: Option<u64>, mode: u32) -> Result<()> {
    let options = size.map_or_else(|| format!("mode={mode:o}"), |s| format!("mode={mode:o},size={s}"));
    mount("tmpfs", "tmpfs", target, &options)
}

/// As [`tmpfs`], for data that everybody may write: it has no programs, no set-user-id files and no devices.
///
/// # Errors
/// Where the kernel refuses.
pub fn shared_memory(target: &Path, size: u64) -> Result<()> {
    let options = format!("mode=1777,size={size}");
    let flags = MsFlags::MS_NOEXEC | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    nix::mount::mount(Some("shm"), target, Some("tmpfs"), flags, Some(options.as_str())).map_err(at("mount", target))
}

/// Bind mounts `source` at `target`, with everything mounted below it if `recursive`.
///
/// # Errors
/// Where the kernel refuses.
pub fn bind(source: &Path, target: &Path, recursive: bool) -> Result<()> {
    let rec = if recursive { MsFlags::MS_REC } else { MsFlags::empty() };
    nix::mount::mount(Some(source), target, None::<&str>, MsFlags::MS_BIND | rec, None::<&str>)
        .map_err(at("bind mount at", target))
}

/// Makes a bind mount read-only (this mount alone, not the file system behind it).
///
/// # Errors
/// Where the kernel refuses.
pub fn remount_read_only(target: &Path) -> Result<()> {
    let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    nix::mount::mount(None::<&str>, target, None::<&str>, flags, None::<&str>).map_err(at("remount read-only", target))
}

/// Sets the propagation of a mount, and of everything below it if `recursive`.
///
/// # Errors
/// Where the kernel refuses.
pub fn propagate(target: &Path, propagation: Propagation, recursive: bool) -> Result<()> {
    let kind = match propagation {
        Propagation::Private => MsFlags::MS_PRIVATE,
        Propagation::Shared => MsFlags::MS_SHARED,
        Propagation::Slave => MsFlags::MS_SLAVE,
    };
    let rec = if recursive { MsFlags::MS_REC } else { MsFlags::empty() };
    nix::mount::mount(None::<&str>, target, None::<&str>, kind | rec, None::<&str>)
        .map_err(at("change the propagation of", target))
}

/// Unmounts. What is not mounted or not there is success.
///
/// # Errors
/// Where the kernel refuses, such as for a mount in use.
pub fn unmount(target: &Path) -> Result<()> {
    unmount_with(target, MntFlags::UMOUNT_NOFOLLOW)
}

/// Detaches the mount now; the kernel lets it go when its last user does.
///
/// # Errors
/// Where the kernel refuses.
pub fn unmount_lazy(target: &Path) -> Result<()> {
    unmount_with(target, MntFlags::UMOUNT_NOFOLLOW | MntFlags::MNT_DETACH)
}

fn unmount_with(target: &Path, flags: MntFlags) -> Result<()> {
    match nix::mount::umount2(target, flags) {
        Ok(()) | Err(nix::Error::EINVAL | nix::Error::ENOENT) => Ok(()),
        Err(e) => Err(at("unmount", target)(e)),
    }
}

/// Unmounts everything at and below `path`, the newest mounts first, each one lazily if it is in use.
/// Goes on past errors and returns them all.
///
/// # Errors
/// Where mountinfo cannot be read, or mounts stay.
pub fn unmount_below(path: &Path) -> std::result::Result<(), Vec<Error>> {
    let mounts = mounts().map_err(|e| vec![e])?;
    let below = mounts.iter().rev().filter(|m| m.mount_point.starts_with(path));
    let errors: Vec<Error> = below.filter_map(|m| unmount_lazy(&m.mount_point).err()).collect();
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}

/// All mounts of this mount namespace, in the order of mountinfo.
///
/// # Errors
/// Where mountinfo cannot be read.
pub fn mounts() -> Result<Vec<MountInfo>> {
    // A thread may have a mount namespace of its own; "self" would be the main thread's.
    let path = Path::new("/proc/thread-self/mountinfo");
    let text = std::fs::read(path).map_err(at("read", path))?;
    Ok(String::from_utf8_lossy(&text).lines().filter_map(MountInfo::parse).collect())
}

/// True if something is mounted exactly there.
///
/// # Errors
/// Where mountinfo cannot be read.
pub fn is_mount_point(path: &Path) -> Result<bool> {
    Ok(mounts()?.iter().any(|m| m.mount_point == path))
}

/// Space and inodes of a file system.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Space {
    pub capacity: u64,
    /// For an unprivileged user.
    pub available: u64,
    pub used: u64,
    pub inodes: u64,
    pub inodes_free: u64,
}

/// Space of the file system that holds `path`, bytes.
///
/// # Errors
/// Where the path cannot be reached.
pub fn space(path: &Path) -> Result<Space> {
    let stat = nix::sys::statvfs::statvfs(path).map_err(at("statvfs", path))?;
    let unit = stat.fragment_size();
    Ok(Space {
        capacity: stat.blocks() * unit,
        available: stat.blocks_available() * unit,
        used: stat.blocks().saturating_sub(stat.blocks_free()) * unit,
        inodes: stat.files(),
        inodes_free: stat.files_free(),
    })
}

/// Changes the owner of an open file; `None` leaves a part as it is.
///
/// # Errors
/// Where the kernel refuses.
pub fn chown(path: &Path, uid: Option<u32>, gid: Option<u32>) -> Result<()> {
    use nix::unistd::{Gid, Uid};
    nix::unistd::fchownat(
        nix::fcntl::AT_FDCWD,
        path,
        uid.map(Uid::from_raw),
        gid.map(Gid::from_raw),
        nix::fcntl::AtFlags::AT_SYMLINK_NOFOLLOW,
    )
    .map_err(at("change the owner of", path))
}

/// Gives the calling thread, and the threads it starts, a mount namespace of its own from which nothing spreads.
///
/// # Errors
/// Where the process may not.
pub fn own_namespace() -> Result<()> {
    use nix::sched::CloneFlags;
    let root = Path::new("/");
    nix::sched::unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_FS)
        .map_err(at("make a mount namespace with the root", root))?;
    propagate(root, Propagation::Private, true)
}

/// The path by which this process's descriptor is reached.
pub(crate) fn descriptor_path(fd: &impl AsFd) -> PathBuf {
    use std::os::fd::AsRawFd;
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd()))
}

#[cfg(test)]
mod tests;
