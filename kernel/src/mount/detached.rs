//! Mounts that are attached nowhere: a descriptor leads into them, and they go with it, however this process ends.
//! Sources: fsopen(2), fsconfig(2), fsmount(2); the overlay file system's `lowerdir+` (kernel 6.5).

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::mount::MsFlags;
use nix::sys::stat::Mode;

use super::{Error, Result, at};

const FSOPEN_CLOEXEC: libc::c_uint = 1;
const FSCONFIG_SET_STRING: libc::c_uint = 1;
const FSCONFIG_CMD_CREATE: libc::c_uint = 6;
const FSMOUNT_CLOEXEC: libc::c_uint = 1;
const MOUNT_ATTR_RDONLY: libc::c_uint = 1;
/// The longest value that fsconfig(2) takes, without its NUL.
const LONGEST_VALUE: usize = 255;

/// Shows `lower` as one tree, the first folder on top, read-only and attached nowhere. Needs two folders at least.
///
/// # Errors
/// Where the kernel refuses, as without CAP_SYS_ADMIN.
pub fn detached_overlay(lower: &[PathBuf]) -> Result<OwnedFd> {
    let [top, ..] = lower else {
        return Err(at("overlay", Path::new(""))(io::Error::from(io::ErrorKind::InvalidInput)));
    };
    match by_descriptor(lower) {
        // Kernels before 6.5 take folders in one short string only, kernels before 5.2 have no fsopen at all.
        Err(e) if matches!(e.raw_os_error(), Some(libc::EINVAL | libc::ENOSYS)) => in_private_namespace(lower),
        other => other.map_err(at("overlay", top)),
    }
}

fn by_descriptor(lower: &[PathBuf]) -> io::Result<OwnedFd> {
    // SAFETY: the name is a NUL-terminated string and the kernel writes nothing.
    let context = owned(unsafe { libc::syscall(libc::SYS_fsopen, c"overlay".as_ptr(), FSOPEN_CLOEXEC) })?;
    let whole = joined(lower);
    if whole.len() <= LONGEST_VALUE {
        set(&context, c"lowerdir", &whole)?;
    } else {
        for dir in lower {
            set(&context, c"lowerdir+", dir.as_os_str().as_bytes())?;
        }
    }
    let null = std::ptr::null::<libc::c_char>();
    // SAFETY: this command takes no key and no value.
    let created = unsafe { libc::syscall(libc::SYS_fsconfig, context.as_raw_fd(), FSCONFIG_CMD_CREATE, null, null, 0) };
    if created < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: takes numbers only.
    owned(unsafe { libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), FSMOUNT_CLOEXEC, MOUNT_ATTR_RDONLY) })
}

fn set(context: &OwnedFd, key: &std::ffi::CStr, value: &[u8]) -> io::Result<()> {
    let value = CString::new(value)?;
    let (fd, command) = (context.as_raw_fd(), FSCONFIG_SET_STRING);
    // SAFETY: both strings are NUL-terminated and live for the call; the kernel writes nothing.
    let done = unsafe { libc::syscall(libc::SYS_fsconfig, fd, command, key.as_ptr(), value.as_ptr(), 0) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

pub(super) fn owned(result: libc::c_long) -> io::Result<OwnedFd> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = i32::try_from(result).map_err(io::Error::other)?;
    // SAFETY: the system call returned this descriptor just now and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The same by mount(2), in a mount namespace that ends with the thread which makes it.
pub(super) fn in_private_namespace(lower: &[PathBuf]) -> Result<OwnedFd> {
    let options = [b"lowerdir=".as_slice(), &joined(lower)].concat();
    // Covered by the mount in that namespace alone; every Linux has it.
    let target = Path::new("/proc/sys/fs");
    let thread = std::thread::spawn(move || {
        super::own_namespace()?;
        let flags = MsFlags::MS_RDONLY;
        nix::mount::mount(Some("overlay"), target, Some("overlay"), flags, Some(options.as_slice()))
            .map_err(at("mount an overlay at", target))?;
        nix::fcntl::open(target, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).map_err(at("open", target))
    });
    let panicked = |_| Error::Call {
        operation: "mount an overlay at",
        path: target.to_owned(),
        source: io::Error::other("the thread that mounts it panicked"),
    };
    thread.join().map_err(panicked)?
}

/// Folders as the overlay file system takes them: colons part them, a backslash keeps what follows.
pub(super) fn joined(lower: &[PathBuf]) -> Vec<u8> {
    let mut whole = Vec::new();
    for dir in lower {
        if !whole.is_empty() {
            whole.push(b':');
        }
        for byte in dir.as_os_str().as_bytes() {
            if matches!(byte, b':' | b'\\') {
                whole.push(b'\\');
            }
            whole.push(*byte);
        }
    }
    whole
}
