//! Device nodes of the machine, and those that a container gets. Sources: CRI's Device, mknod(2), config-linux.md.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use cri::v1;
use oci_spec::runtime::{LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType, Spec};

use super::mounts::cleaned;
use super::{ContainerInput, SpecError};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceKind {
    Block,
    Character,
    Fifo,
}

/// A device node of the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceNode {
    pub path: PathBuf,
    pub kind: DeviceKind,
    pub major: i64,
    pub minor: i64,
    /// Permission bits.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
}

/// Folders of /dev whose nodes are made for each container, or belong to the machine alone.
const NOT_SHARED: [&str; 7] = ["pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev"];

impl DeviceNode {
    /// The node that a path leads to, over links.
    ///
    /// # Errors
    /// Where there is none; `InvalidInput` where there is no device.
    pub fn at(path: &Path) -> io::Result<Self> {
        let real = fs::canonicalize(path)?;
        Self::of(&real, &fs::symlink_metadata(&real)?)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "not a device"))
    }

    /// The node, or all nodes below the folder, that a path leads to.
    ///
    /// # Errors
    /// As [`Self::at`].
    pub fn below(path: &Path) -> io::Result<Vec<Self>> {
        if !fs::metadata(path)?.is_dir() {
            return Ok(vec![Self::at(path)?]);
        }
        let mut all = Vec::new();
        collect(&fs::canonicalize(path)?, &mut all)?;
        all.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(all)
    }

    fn of(path: &Path, metadata: &Metadata) -> Option<Self> {
        let kind = match metadata.file_type() {
            t if t.is_block_device() => DeviceKind::Block,
            t if t.is_char_device() => DeviceKind::Character,
            t if t.is_fifo() => DeviceKind::Fifo,
            _ => return None,
        };
        let (major, minor) = numbers(metadata.rdev());
        let mode = metadata.mode() & 0o7777;
        Some(Self { path: path.into(), kind, major, minor, mode, uid: metadata.uid(), gid: metadata.gid() })
    }

    fn to_oci(&self, path: PathBuf) -> LinuxDevice {
        let mut device = LinuxDevice::default();
        device.set_path(path).set_typ(self.kind.to_oci()).set_major(self.major).set_minor(self.minor);
        device.set_file_mode(Some(self.mode)).set_uid(Some(self.uid)).set_gid(Some(self.gid));
        device
    }
}

impl DeviceKind {
    pub(super) fn to_oci(self) -> LinuxDeviceType {
        match self {
            Self::Block => LinuxDeviceType::B,
            Self::Character => LinuxDeviceType::C,
            Self::Fifo => LinuxDeviceType::P,
        }
    }
}

/// What goes away while it is listed is passed over; links are not followed, or a node would come once for each.
fn collect(dir: &Path, all: &mut Vec<DeviceNode>) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let Ok(metadata) = fs::symlink_metadata(entry.path()) else { continue };
        let name = entry.file_name();
        if metadata.is_dir() && !NOT_SHARED.iter().any(|n| name == *n) {
            collect(&entry.path(), all)?;
        } else if name != "console" {
            all.extend(DeviceNode::of(&entry.path(), &metadata).filter(|node| node.kind != DeviceKind::Fifo));
        }
    }
    Ok(())
}

/// Source: makedev(3), as glibc packs them.
fn numbers(device: u64) -> (i64, i64) {
    let major = (device >> 8 & 0xfff) | (device >> 32 & 0xffff_f000);
    let minor = (device & 0xff) | (device >> 12 & 0xffff_ff00);
    (i64::try_from(major).unwrap_or_default(), i64::try_from(minor).unwrap_or_default())
}

/// Gives a container the devices that it asks for, or all, if it is privileged.
pub(super) fn apply(
    spec: &mut Spec,
    input: &ContainerInput<'_>,
    security: &v1::LinuxContainerSecurityContext,
) -> Result<(), SpecError> {
    if input.gathered.devices.len() != input.config.devices.len() {
        return Err(SpecError::Incomplete("node for each of its devices"));
    }
    for (asked, nodes) in input.config.devices.iter().zip(&input.gathered.devices) {
        let access = access(asked)?;
        for node in nodes {
            let path = path_in_container(asked, node, nodes.len() > 1)?;
            add(spec, node.to_oci(path), access.clone());
        }
    }
    if security.privileged && !input.handler.privileged_without_host_devices {
        for node in &input.gathered.host_devices {
            add_node(spec, node.to_oci(node.path.clone()));
        }
        let mut everything = LinuxDeviceCgroup::default();
        everything.set_allow(true).set_access(Some("rwm".into()));
        allow(spec, everything);
    }
    if needs_console(input) {
        add_console(spec, input);
    }
    Ok(())
}

/// A container with the machine's /dev and a terminal needs its own terminal at /dev/console.
pub(super) fn needs_console(input: &ContainerInput<'_>) -> bool {
    let config = input.config;
    let of_machine = |m: &v1::Mount| m.container_path == "/dev" && m.host_path == "/dev";
    config.tty
        && config.mounts.iter().any(of_machine)
        && !config.devices.iter().any(|d| d.container_path == "/dev/console")
}

fn add_console(spec: &mut Spec, input: &ContainerInput<'_>) {
    if let Some(node) = &input.gathered.console {
        add(spec, node.to_oci("/dev/console".into()), "rwm".into());
    }
}

fn access(asked: &v1::Device) -> Result<String, SpecError> {
    if asked.permissions.is_empty() || asked.permissions.chars().any(|c| !"rwm".contains(c)) {
        let reason = format!("permissions {:?} are not some of r, w and m", asked.permissions);
        return Err(SpecError::Device { path: asked.host_path.clone(), reason });
    }
    Ok(asked.permissions.clone())
}

/// A folder of devices keeps its shape below the path in the container.
fn path_in_container(asked: &v1::Device, node: &DeviceNode, many: bool) -> Result<PathBuf, SpecError> {
    if asked.container_path.is_empty() {
        return Ok(node.path.clone());
    }
    let path = cleaned(&asked.container_path)?;
    match node.path.strip_prefix(&asked.host_path) {
        Ok(below) if !below.as_os_str().is_empty() => Ok(path.join(below)),
        _ if many => Ok(path.join(node.path.file_name().unwrap_or_default())),
        _ => Ok(path),
    }
}

/// Adds a device and the right to use it.
pub(super) fn add(spec: &mut Spec, device: LinuxDevice, access: String) {
    let mut rule = LinuxDeviceCgroup::default();
    rule.set_allow(true).set_typ(Some(device.typ())).set_major(Some(device.major())).set_minor(Some(device.minor()));
    rule.set_access(Some(access));
    // A FIFO needs no right to devices.
    if device.typ() != LinuxDeviceType::P {
        allow(spec, rule);
    }
    add_node(spec, device);
}

fn add_node(spec: &mut Spec, device: LinuxDevice) {
    let Some(linux) = spec.linux_mut() else { return };
    let devices = linux.devices_mut().get_or_insert_default();
    match devices.iter_mut().find(|d| d.path() == device.path()) {
        Some(old) => *old = device,
        None => devices.push(device),
    }
}

fn allow(spec: &mut Spec, rule: LinuxDeviceCgroup) {
    let Some(linux) = spec.linux_mut() else { return };
    linux.resources_mut().get_or_insert_default().devices_mut().get_or_insert_default().push(rule);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_more_than_a_byte() {
        assert_eq!(numbers(0x0103), (1, 3));
        assert_eq!(numbers(0x0000_1000_0010_0a05), (0x100a, 0x105));
    }

    #[test]
    fn null_is_a_character_device_and_a_folder_is_its_nodes() {
        let null = DeviceNode::at(Path::new("/dev/null")).unwrap();
        assert_eq!((null.kind, null.major, null.minor), (DeviceKind::Character, 1, 3));
        let all = DeviceNode::below(Path::new("/dev")).unwrap();
        assert!(all.contains(&null));
        assert!(!all.iter().any(|n| n.path.starts_with("/dev/pts") || n.path.ends_with("console")));
        assert_eq!(DeviceNode::at(Path::new("/etc/hosts")).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn a_folder_keeps_its_shape() {
        let asked =
            v1::Device { container_path: "/dev/gpu".into(), host_path: "/dev/dri".into(), permissions: "rw".into() };
        let node = |path: &str| DeviceNode { path: path.into(), ..DeviceNode::at(Path::new("/dev/null")).unwrap() };
        let path = |node: &DeviceNode, many| path_in_container(&asked, node, many).unwrap();
        assert_eq!(path(&node("/dev/dri/by-path/card0"), true), Path::new("/dev/gpu/by-path/card0"));
        assert_eq!(path(&node("/dev/null"), false), Path::new("/dev/gpu"));
        assert!(access(&v1::Device { permissions: "rx".into(), ..asked }).is_err());
    }
}
