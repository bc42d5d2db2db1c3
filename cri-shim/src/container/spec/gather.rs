//! What of this machine and of the image a container's spec depends on, looked up before the spec is decided.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use cri::v1;
use kernel::mount::{Beneath, MountInfo};

use crate::seccomp::Profile;

use super::cdi::{self, Edits};
use super::devices::DeviceNode;
use super::{Accounts, HostFacts, Rootfs, SpecError, apparmor, seccomp_reference, security_of};

/// The facts of one container.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Gathered {
    /// One for each mount of the config.
    pub mounts: Vec<Source>,
    /// The nodes of each device of the config.
    pub devices: Vec<Vec<DeviceNode>>,
    /// All devices of the machine, for a privileged container.
    pub host_devices: Vec<DeviceNode>,
    /// The machine's console, where it has one.
    pub console: Option<DeviceNode>,
    pub cdi: Edits,
    pub seccomp: Option<Profile>,
    /// Names of loaded AppArmor profiles; where the container asks for the default one, only that.
    pub apparmor: BTreeSet<String>,
    pub accounts: Accounts,
}

/// Where a mount comes from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Source {
    /// Without links.
    pub path: PathBuf,
    /// The mount on which it lies.
    pub mount_point: PathBuf,
    pub shared: bool,
    pub slave: bool,
}

/// What to look up.
#[derive(Debug)]
pub struct Request<'a> {
    /// Mounts of images have the folder where the image is mounted as their host path; the path within it is
    /// resolved here.
    pub config: &'a v1::ContainerConfig,
    /// The container's image; none where [`Accounts::are_needed`] says no.
    pub rootfs: Option<&'a Rootfs>,
    pub host: &'a HostFacts,
}

/// Looks everything up. Blocks: some small files, the mount table where propagation asks for it, /dev for a privileged
/// container. Makes the folder of a mount's source where nothing is, and loads the default AppArmor profile.
///
/// # Errors
/// Where something is not there or cannot be read.
pub fn gather(request: &Request<'_>) -> Result<Gathered, SpecError> {
    let config = request.config;
    let security = security_of(config);
    let peers = config.mounts.iter().any(|m| m.propagation != v1::MountPropagation::PropagationPrivate as i32);
    let table = if peers { kernel::mount::mounts()? } else { Vec::new() };
    let names = cdi::requested(config);
    let folders = cdi::FOLDERS.map(Path::new);
    Ok(Gathered {
        mounts: config.mounts.iter().map(|m| source(m, &table)).collect::<Result<_, _>>()?,
        devices: config.devices.iter().map(nodes).collect::<Result<_, _>>()?,
        host_devices: if security.privileged { all_nodes()? } else { Vec::new() },
        console: DeviceNode::at(Path::new("/dev/console")).ok(),
        cdi: cdi::resolve(&names, &folders)?,
        seccomp: seccomp_reference(&security)?.map(|file| Profile::read(Path::new(&file))).transpose()?,
        apparmor: apparmor::ready(&security, request.host.apparmor)?,
        accounts: request.rootfs.map(Rootfs::accounts).transpose()?.unwrap_or_default(),
    })
}

fn source(mount: &v1::Mount, table: &[MountInfo]) -> Result<Source, SpecError> {
    let host = Path::new(&mount.host_path);
    if !host.is_absolute() {
        return Err(SpecError::Mount { path: mount.container_path.clone(), reason: "its host path is not absolute" });
    }
    let path = if mount.image_sub_path.is_empty() { real(host)? } else { within_image(mount, host)? };
    // Of two mounts at one place the later one is seen.
    let above = table.iter().filter(|m| path.starts_with(&m.mount_point));
    let on = above.max_by_key(|m| m.mount_point.components().count());
    Ok(Source {
        mount_point: on.map(|m| m.mount_point.clone()).unwrap_or_default(),
        shared: on.is_some_and(|m| m.shared),
        slave: on.is_some_and(|m| m.slave),
        path,
    })
}

/// What a path leads to; a folder, made now, where nothing is.
fn real(path: &Path) -> Result<PathBuf, SpecError> {
    match fs::canonicalize(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            fs::create_dir_all(path).map_err(SpecError::file("create the mount source", path))?;
            fs::canonicalize(path).map_err(SpecError::file("resolve the mount source", path))
        }
        other => other.map_err(SpecError::file("resolve the mount source", path)),
    }
}

/// A path within a mounted image, which leads to nothing outside it.
fn within_image(mount: &v1::Mount, image: &Path) -> Result<PathBuf, SpecError> {
    let wanted = Path::new(&mount.image_sub_path);
    let found = Beneath::open(image)?.resolve_in_root(wanted);
    let refused = |e: kernel::mount::Error| match e.kind() {
        Some(io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => SpecError::Mount {
            path: format!("{} ({} of the image)", mount.container_path, mount.image_sub_path),
            reason: "the image has no such path",
        },
        _ => e.into(),
    };
    let link = PathBuf::from(format!("/proc/self/fd/{}", found.as_ref().map_or(-1, AsRawFd::as_raw_fd)));
    let _held = found.map_err(refused)?;
    fs::read_link(link).map_err(SpecError::file("resolve the mount source", image))
}

fn nodes(device: &v1::Device) -> Result<Vec<DeviceNode>, SpecError> {
    let fault = |e: io::Error| SpecError::Device { path: device.host_path.clone(), reason: e.to_string() };
    DeviceNode::below(Path::new(&device.host_path)).map_err(fault)
}

fn all_nodes() -> Result<Vec<DeviceNode>, SpecError> {
    let dev = Path::new("/dev");
    DeviceNode::below(dev).map_err(SpecError::file("list the devices of", dev))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn table(lines: &[&str]) -> Vec<MountInfo> {
        lines.iter().map(|line| MountInfo::parse(line).unwrap()).collect()
    }

    #[test]
    fn a_source_lies_on_the_nearest_mount() {
        let dir = tempfile::tempdir().unwrap();
        let here = fs::canonicalize(dir.path()).unwrap();
        fs::create_dir(here.join("real")).unwrap();
        symlink("real", here.join("link")).unwrap();
        let at = |path: &Path, tags: &str| format!("36 35 98:0 / {} rw {tags} - ext3 /dev/root rw", path.display());
        let (root, own, over) = (at(Path::new("/"), "shared:1"), at(&here, "master:1"), at(&here, "shared:2 master:1"));
        let of = |lines: &[&str], name: &str| {
            let mount = v1::Mount { host_path: here.join(name).display().to_string(), ..v1::Mount::default() };
            source(&mount, &table(lines)).unwrap()
        };
        let expected = |mount_point: &Path, shared, slave| Source {
            path: here.join("real"),
            mount_point: mount_point.into(),
            shared,
            slave,
        };
        assert_eq!(of(&[&root], "link"), expected(Path::new("/"), true, false));
        assert_eq!(of(&[&root, &own], "link"), expected(&here, false, true));
        assert_eq!(of(&[&root, &own, &over], "real"), expected(&here, true, true));
        assert!(of(&[], "new/folder").path.is_dir());
    }

    #[test]
    fn a_path_within_an_image_stays_there() {
        let dir = tempfile::tempdir().unwrap();
        let image = fs::canonicalize(dir.path()).unwrap();
        fs::create_dir_all(image.join("usr/share")).unwrap();
        symlink("/usr/share", image.join("data")).unwrap();
        symlink("/etc", image.join("evil")).unwrap();
        let of = |path: &str| {
            let mount = v1::Mount {
                host_path: image.display().to_string(),
                image_sub_path: path.into(),
                ..v1::Mount::default()
            };
            source(&mount, &[]).map(|s| s.path).map_err(|e| e.to_string())
        };
        assert_eq!(of("data"), Ok(image.join("usr/share")));
        assert_eq!(of("../../usr"), Ok(image.join("usr")));
        for missing in ["evil", "none"] {
            assert!(of(missing).unwrap_err().ends_with("the image has no such path"), "{missing}");
        }
    }

    #[test]
    fn host_paths_are_absolute() {
        let mount = v1::Mount { host_path: "relative".into(), ..v1::Mount::default() };
        assert!(source(&mount, &[]).unwrap_err().to_string().contains("host path is not absolute"));
    }
}
