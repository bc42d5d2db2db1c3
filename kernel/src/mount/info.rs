//! One line of `/proc/PID/mountinfo` (proc(5)).

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// A mount as the kernel tells of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountInfo {
    pub id: u32,
    pub parent: u32,
    /// `major:minor`.
    pub device: String,
    /// The folder of the file system that is mounted.
    pub root: PathBuf,
    pub mount_point: PathBuf,
    /// Options of this mount, such as `rw,relatime`.
    pub options: String,
    /// Mount events travel to and from a peer group.
    pub shared: bool,
    /// Mount events come in from a peer group.
    pub slave: bool,
    pub fs_type: String,
    pub source: String,
    /// Options of the file system.
    pub super_options: String,
}

impl MountInfo {
    /// Reads one line; `None` if it is not one.
    pub fn parse(line: &str) -> Option<Self> {
        let (mount, file_system) = line.split_once(" - ")?;
        let mut mount = mount.split(' ');
        let mut file_system = file_system.splitn(3, ' ');
        let (id, parent) = (mount.next()?.parse().ok()?, mount.next()?.parse().ok()?);
        let device = mount.next()?.into();
        let (root, mount_point) = (unescape(mount.next()?), unescape(mount.next()?));
        let options = mount.next()?.into();
        let groups: Vec<&str> = mount.collect();
        Some(Self {
            id,
            parent,
            device,
            root,
            mount_point,
            options,
            shared: groups.iter().any(|g| g.starts_with("shared:")),
            slave: groups.iter().any(|g| g.starts_with("master:")),
            fs_type: file_system.next()?.into(),
            source: file_system.next()?.into(),
            super_options: file_system.next().unwrap_or_default().trim_end().into(),
        })
    }
}

/// Space, tab, newline and backslash stand as three octal digits.
fn unescape(text: &str) -> PathBuf {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let octal = bytes.get(at + 1..at + 4).and_then(|d| std::str::from_utf8(d).ok());
        match octal.and_then(|d| u8::from_str_radix(d, 8).ok()) {
            Some(byte) if bytes[at] == b'\\' => {
                out.push(byte);
                at += 4;
            }
            _ => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    PathBuf::from(OsString::from_vec(out))
}
