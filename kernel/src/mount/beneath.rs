//! Paths resolved beneath a folder by the kernel itself (openat2(2)), and mounts made by descriptor.
//!
//! A container can swap a folder of its volume for a symbolic link at any moment (CVE-2021-25741). What was opened here
//! lies beneath the root for good, and what is mounted is the very file that was opened, not what a path names later.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use nix::fcntl::{OFlag, OpenHow, ResolveFlag};
use nix::sys::stat::{Mode, SFlag};

use super::{Error, Result, at, descriptor_path};

/// A folder, held open, beneath which paths are resolved.
#[derive(Debug)]
pub struct Beneath {
    root: OwnedFd,
    name: PathBuf,
}

impl Beneath {
    /// Opens the root, following links on the way to it. The root may be a file; then only the empty path resolves.
    ///
    /// # Errors
    /// Where it cannot be opened.
    pub fn open(root: &Path) -> Result<Self> {
        let fd = nix::fcntl::open(root, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).map_err(at("open", root))?;
        Ok(Self { root: fd, name: root.to_owned() })
    }

    /// A folder that was opened already; `name` stands for it in errors.
    pub fn of(root: OwnedFd, name: &Path) -> Self {
        Self { root, name: name.to_owned() }
    }

    /// Opens (O_PATH) what `path` names beneath the root. Links are followed as long as they stay beneath it.
    ///
    /// # Errors
    /// [`Error::Escapes`] where a link, an absolute path or `..` leads out; else the kernel's refusal.
    pub fn resolve(&self, path: &Path) -> Result<OwnedFd> {
        self.open_path(path, ResolveFlag::RESOLVE_BENEATH)
    }

    /// Opens (O_PATH) what a process with this root would get for `path`: an absolute path or link and `..` at the top
    /// stay in it, as in a container's image.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn resolve_in_root(&self, path: &Path) -> Result<OwnedFd> {
        self.open_path(path, ResolveFlag::RESOLVE_IN_ROOT)
    }

    /// Opens for reading what a process with this root would get for `path`. Nothing but a regular file is opened: a
    /// FIFO would wait for a writer and a device may act on being opened.
    ///
    /// # Errors
    /// The kernel's refusal; what is there and is no regular file is `InvalidInput`.
    pub fn open_file_in_root(&self, path: &Path) -> Result<File> {
        let fd = self.resolve_in_root(path)?;
        let full = self.name.join(path.strip_prefix("/").unwrap_or(path));
        let stat = nix::sys::stat::fstat(&fd).map_err(at("stat", &full))?;
        if SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT != SFlag::S_IFREG {
            return Err(at("read", &full)(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")));
        }
        File::open(descriptor_path(&fd)).map_err(at("open", &full))
    }

    fn open_path(&self, path: &Path, resolve: ResolveFlag) -> Result<OwnedFd> {
        if path.as_os_str().is_empty() {
            return self.root.try_clone().map_err(at("duplicate the descriptor of", &self.name));
        }
        let how = OpenHow::new()
            .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
            .resolve(resolve | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        // EAGAIN: something above was renamed meanwhile and the kernel could not vouch for the answer.
        for _ in 0..64 {
            match nix::fcntl::openat2(&self.root, path, how) {
                Err(nix::Error::EAGAIN) => {}
                Err(nix::Error::EXDEV | nix::Error::ELOOP) => return Err(self.escapes(path)),
                other => return other.map_err(at("open", &self.name.join(path))),
            }
        }
        Err(at("open", &self.name.join(path))(nix::Error::EAGAIN))
    }

    /// Opens the folder at `path`, making what is missing of it with `mode`. A file at the end is opened as it is.
    ///
    /// # Errors
    /// As [`Self::resolve`], and where a folder cannot be made.
    pub fn resolve_or_create(&self, path: &Path, mode: u32) -> Result<OwnedFd> {
        match self.resolve(path) {
            Err(Error::Call { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            other => return other,
        }
        let mut known = PathBuf::new();
        let mut dir = self.resolve(Path::new(""))?;
        for part in path.components() {
            let Component::Normal(name) = part else {
                if part == Component::CurDir {
                    continue;
                }
                return Err(self.escapes(path));
            };
            known.push(name);
            match nix::sys::stat::mkdirat(&dir, name, Mode::from_bits_truncate(0o700)) {
                Ok(()) => {
                    dir = self.resolve(&known)?;
                    let mode = Mode::from_bits_truncate(mode & 0o7777);
                    nix::sys::stat::fchmodat(
                        nix::fcntl::AT_FDCWD,
                        &descriptor_path(&dir),
                        mode,
                        nix::sys::stat::FchmodatFlags::FollowSymlink,
                    )
                    .map_err(at("change the mode of", &self.name.join(&known)))?;
                }
                Err(nix::Error::EEXIST) => dir = self.resolve(&known)?,
                Err(e) => return Err(at("create", &self.name.join(&known))(e)),
            }
        }
        Ok(dir)
    }

    fn escapes(&self, path: &Path) -> Error {
        Error::Escapes { root: self.name.clone(), path: path.to_owned() }
    }
}

/// Permission bits of the root, and whether an opened file is a folder.
impl Beneath {
    /// The root's permission bits.
    ///
    /// # Errors
    /// Where it cannot be asked.
    pub fn mode(&self) -> Result<u32> {
        let stat = nix::sys::stat::fstat(&self.root).map_err(at("stat", &self.name))?;
        Ok(stat.st_mode & 0o7777)
    }

    /// True if the descriptor is a folder.
    ///
    /// # Errors
    /// Where it cannot be asked.
    pub fn is_dir(fd: &OwnedFd) -> Result<bool> {
        let stat = nix::sys::stat::fstat(fd).map_err(at("stat", &descriptor_path(fd)))?;
        Ok(SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFDIR)
    }
}

/// Mounts the very file or folder that `fd` stands for at `target`, with everything mounted below it.
/// A kernel without open_tree(2) (before 5.2) is served through /proc/self/fd, which names the same file.
///
/// # Errors
/// Where the kernel refuses.
pub fn bind_descriptor(fd: &impl AsFd, target: &Path) -> Result<()> {
    const OPEN_TREE_CLONE: libc::c_uint = 1;
    let flags = OPEN_TREE_CLONE
        | libc::O_CLOEXEC as libc::c_uint
        | libc::AT_EMPTY_PATH as libc::c_uint
        | libc::AT_RECURSIVE as libc::c_uint;
    let empty = c"";
    // SAFETY: the descriptor is open for the call, the path is a NUL-terminated string, and the kernel writes nothing.
    let tree = unsafe { libc::syscall(libc::SYS_open_tree, fd.as_fd().as_raw_fd(), empty.as_ptr(), flags) };
    if tree < 0 {
        let error = io::Error::last_os_error();
        if error.raw_os_error() == Some(libc::ENOSYS) {
            return super::bind(&descriptor_path(fd), target, true);
        }
        return Err(at("open the tree for", target)(error));
    }
    // SAFETY: open_tree returned this descriptor just now and nobody else owns it.
    let tree = unsafe { OwnedFd::from_raw_fd(i32::try_from(tree).unwrap_or(-1)) };
    attach(&tree, target)
}

pub(super) fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)
}

/// Mounts at `target` what is attached nowhere.
pub(super) fn attach(tree: &OwnedFd, target: &Path) -> Result<()> {
    let to = c_path(target).map_err(at("mount at", target))?;
    const MOVE_MOUNT_F_EMPTY_PATH: libc::c_uint = 4;
    // SAFETY: both descriptors are open for the call and both paths are NUL-terminated.
    let moved = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            to.as_ptr(),
            MOVE_MOUNT_F_EMPTY_PATH,
        )
    };
    if moved < 0 { Err(at("mount at", target)(io::Error::last_os_error())) } else { Ok(()) }
}
