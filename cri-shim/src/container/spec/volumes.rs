//! VOLUMEs that an image declares: each a folder of the container's own, with the image's content at first.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, Metadata};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, lchown, symlink};
use std::path::{Path, PathBuf};

use cri::v1::ContainerConfig;
use oci_spec::image::Config as ImageConfig;

use super::mounts::cleaned;
use super::{Rootfs, SpecError};

/// A folder of the machine for a place in a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    pub destination: PathBuf,
    pub source: PathBuf,
}

/// The VOLUMEs that no mount of the request takes the place of, each in a folder of its own below `folder`.
pub fn declared(config: &ContainerConfig, image: &ImageConfig, folder: &Path) -> Vec<Volume> {
    let taken: Vec<PathBuf> = config.mounts.iter().filter_map(|m| cleaned(&m.container_path).ok()).collect();
    let rooted = |path: &String| cleaned(&format!("/{path}")).ok();
    let paths: BTreeSet<PathBuf> = image.volumes().iter().flatten().filter_map(rooted).collect();
    let free = paths.into_iter().filter(|p| p != Path::new("/") && !taken.contains(p));
    // Numbered in order: the same image gives the same folders to a creation that is tried again.
    free.enumerate().map(|(n, destination)| Volume { destination, source: folder.join(n.to_string()) }).collect()
}

/// Makes the volumes' folders and copies the image's content into them, with owners, modes and links.
/// A folder that is there is made anew: a copy may have been cut short. Blocks.
///
/// # Errors
/// Where the image cannot be read or a folder not written.
pub fn populate(rootfs: &Rootfs, volumes: &[Volume]) -> Result<(), SpecError> {
    for volume in volumes {
        let target = &volume.source;
        match fs::remove_dir_all(target) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(SpecError::file("remove", target)(e)),
            _ => {}
        }
        fs::create_dir_all(target).map_err(SpecError::file("create", target))?;
        let Some(found) = rootfs.resolve(&volume.destination)? else { continue };
        // The descriptor's own path: the image's links are behind us, and below it none is followed.
        let source = PathBuf::from(format!("/proc/self/fd/{}", found.as_raw_fd()));
        let metadata = fs::metadata(&source).map_err(SpecError::file("look at", &volume.destination))?;
        if metadata.is_dir() {
            copy_folder(&source, &metadata, target)
                .map_err(SpecError::file("copy the image's", &volume.destination))?;
        }
    }
    Ok(())
}

fn copy_folder(source: &Path, metadata: &Metadata, target: &Path) -> io::Result<()> {
    for entry in fs::read_dir(source)? {
        let name = entry?.file_name();
        copy(source, target, &name)?;
    }
    // Last: a folder that may not be written to would take no files.
    own(metadata, target)
}

fn copy(from: &Path, to: &Path, name: &OsStr) -> io::Result<()> {
    let (source, target) = (from.join(name), to.join(name));
    let metadata = fs::symlink_metadata(&source)?;
    let kind = metadata.file_type();
    if kind.is_symlink() {
        symlink(fs::read_link(&source)?, &target)?;
        return lchown(&target, Some(metadata.uid()), Some(metadata.gid()));
    }
    if kind.is_dir() {
        fs::create_dir(&target)?;
        return copy_folder(&source, &metadata, &target);
    }
    // Sockets, FIFOs and devices in an image's volume are left out: nothing good is known to need them.
    if kind.is_file() {
        fs::copy(&source, &target)?;
        own(&metadata, &target)?;
    }
    Ok(())
}

/// The mode after the owner, whose change clears the set-user-id bit.
fn own(metadata: &Metadata, target: &Path) -> io::Result<()> {
    chown(target, Some(metadata.uid()), Some(metadata.gid()))?;
    fs::set_permissions(target, fs::Permissions::from_mode(metadata.mode() & 0o7777))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(volumes: &[&str]) -> ImageConfig {
        let mut image = ImageConfig::default();
        image.set_volumes(Some(volumes.iter().map(|v| (*v).to_owned()).collect()));
        image
    }

    #[test]
    fn mounts_of_the_request_take_the_place_of_volumes() {
        let config = ContainerConfig {
            mounts: vec![cri::v1::Mount { container_path: "/data/".into(), ..Default::default() }],
            ..Default::default()
        };
        let volumes = declared(&config, &image(&["/data", "cache", "/", "/var//lib/"]), Path::new("/v"));
        let volume =
            |destination: &str, source: &str| Volume { destination: destination.into(), source: source.into() };
        assert_eq!(volumes, [volume("/cache", "/v/0"), volume("/var/lib", "/v/1")]);
    }

    #[test]
    fn the_images_content_is_copied_and_nothing_of_the_machine() {
        let dir = tempfile::tempdir().unwrap();
        let (root, store) = (dir.path().join("root"), dir.path().join("store"));
        fs::create_dir_all(root.join("real/sub")).unwrap();
        fs::write(root.join("real/sub/file"), "content").unwrap();
        fs::set_permissions(root.join("real/sub/file"), fs::Permissions::from_mode(0o4750)).unwrap();
        fs::set_permissions(root.join("real/sub"), fs::Permissions::from_mode(0o550)).unwrap();
        symlink("/etc/hostname", root.join("real/link")).unwrap();
        symlink("/real", root.join("data")).unwrap();
        symlink("../../../../../../../../../etc", root.join("evil")).unwrap();
        let volumes = declared(&ContainerConfig::default(), &image(&["/data", "/evil", "/none"]), &store);
        let rootfs = Rootfs::open(&root).unwrap();
        for _ in 0..2 {
            populate(&rootfs, &volumes).unwrap();
            let copied = store.join("0/sub/file");
            assert_eq!(fs::read_to_string(&copied).unwrap(), "content");
            assert_eq!(fs::metadata(&copied).unwrap().mode() & 0o7777, 0o4750);
            assert_eq!(fs::metadata(store.join("0/sub")).unwrap().mode() & 0o7777, 0o550);
            assert_eq!(fs::read_link(store.join("0/link")).unwrap(), Path::new("/etc/hostname"));
            for empty in ["1", "2"] {
                assert_eq!(fs::read_dir(store.join(empty)).unwrap().count(), 0, "{empty}");
            }
        }
    }
}
