//! Files of an image, before its container runs. Every path is resolved with the image as its root (CVE-2022-23648).

use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use containerd_client::types;
use kernel::mount::{Beneath, detached_overlay};

use super::{Accounts, SpecError};

/// The largest account file that is read, bytes.
const LARGEST: u64 = 16 << 20;

/// An image's tree, held open.
#[derive(Debug)]
pub struct Rootfs {
    tree: Beneath,
    name: PathBuf,
}

impl Rootfs {
    /// A tree that is mounted at, or is, a folder.
    ///
    /// # Errors
    /// Where the folder cannot be opened.
    pub fn open(folder: &Path) -> Result<Self, SpecError> {
        Ok(Self { tree: Beneath::open(folder)?, name: folder.into() })
    }

    /// The tree that a snapshot's mounts would show, without mounting it where anybody sees it.
    /// Blocks for some system calls. `None` where the snapshotter's mounts are of a kind that has to be mounted.
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub fn of_snapshot(mounts: &[types::Mount]) -> Result<Option<Self>, SpecError> {
        match View::of(mounts) {
            Some(View::Folder(folder)) => Self::open(&folder).map(Some),
            Some(View::Layers(folders)) => {
                let name = folders.first().cloned().unwrap_or_default();
                Ok(Some(Self { tree: Beneath::of(detached_overlay(&folders)?, &name), name }))
            }
            None => Ok(None),
        }
    }

    /// The image's users and groups.
    ///
    /// # Errors
    /// Where a file is there and cannot be read.
    pub fn accounts(&self) -> Result<Accounts, SpecError> {
        Ok(Accounts { passwd: self.read("/etc/passwd")?, group: self.read("/etc/group")? })
    }

    /// What `path` leads to, if anything.
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub fn resolve(&self, path: &Path) -> Result<Option<OwnedFd>, SpecError> {
        found(self.tree.resolve_in_root(path))
    }

    fn read(&self, path: &str) -> Result<Vec<u8>, SpecError> {
        let Some(file) = found(self.tree.open_file_in_root(Path::new(path)))? else { return Ok(Vec::new()) };
        let full = self.name.join(path.trim_start_matches('/'));
        let mut bytes = Vec::new();
        file.take(LARGEST + 1).read_to_end(&mut bytes).map_err(SpecError::file("read", &full))?;
        if bytes.len() as u64 > LARGEST {
            let too_large = io::Error::new(io::ErrorKind::FileTooLarge, format!("larger than {LARGEST} bytes"));
            return Err(SpecError::file("read", &full)(too_large));
        }
        Ok(bytes)
    }
}

fn found<T>(result: kernel::mount::Result<T>) -> Result<Option<T>, SpecError> {
    match result {
        Ok(found) => Ok(Some(found)),
        Err(e) if matches!(e.kind(), Some(io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// How a fresh snapshot's tree can be read without its own mount.
#[derive(Debug, PartialEq, Eq)]
enum View {
    Folder(PathBuf),
    /// The top one first.
    Layers(Vec<PathBuf>),
}

impl View {
    /// A fresh snapshot has nothing of its own yet, so its lower folders are all of it.
    fn of(mounts: &[types::Mount]) -> Option<Self> {
        let [mount] = mounts else { return None };
        match mount.r#type.as_str() {
            "bind" => Some(Self::Folder(mount.source.clone().into())),
            "overlay" => {
                let lower = mount.options.iter().find_map(|o| o.strip_prefix("lowerdir="))?;
                let mut folders = parted(lower);
                // A folder by itself needs no overlay, which would want two.
                if folders.len() == 1 { folders.pop().map(Self::Folder) } else { Some(Self::Layers(folders)) }
            }
            _ => None,
        }
    }
}

/// Colons part folders; a backslash keeps what follows it.
fn parted(lower: &str) -> Vec<PathBuf> {
    let (mut folders, mut current) = (Vec::new(), String::new());
    let mut chars = lower.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => current.extend(chars.next()),
            ':' => folders.push(std::mem::take(&mut current).into()),
            other => current.push(other),
        }
    }
    folders.push(current.into());
    folders
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn mount(kind: &str, source: &str, options: &[&str]) -> types::Mount {
        let options = options.iter().map(|o| (*o).to_owned()).collect();
        types::Mount { r#type: kind.into(), source: source.into(), options, ..types::Mount::default() }
    }

    #[test]
    fn snapshots_are_read_by_their_lower_folders() {
        let overlay = mount("overlay", "overlay", &["index=off", "workdir=/w", "upperdir=/u", "lowerdir=/b:/a\\:1"]);
        assert_eq!(View::of(&[overlay]), Some(View::Layers(vec!["/b".into(), "/a:1".into()])));
        let one = mount("overlay", "overlay", &["upperdir=/u", "lowerdir=/a"]);
        assert_eq!(View::of(&[one]), Some(View::Folder("/a".into())));
        assert_eq!(View::of(&[mount("bind", "/s", &["ro", "rbind"])]), Some(View::Folder("/s".into())));
        assert_eq!(View::of(&[mount("erofs", "/s", &[])]), None);
        assert_eq!(View::of(&[]), None);
    }

    #[test]
    fn an_image_cannot_lead_out_of_itself() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("etc")).unwrap();
        symlink("/proc/self/root/etc/passwd", dir.path().join("etc/passwd")).unwrap();
        symlink("/other/group", dir.path().join("etc/group")).unwrap();
        fs::create_dir(dir.path().join("other")).unwrap();
        fs::write(dir.path().join("other/group"), "inside:x:7:").unwrap();
        let accounts = Rootfs::open(dir.path()).unwrap().accounts().unwrap();
        assert_eq!(
            (accounts.passwd.as_slice(), accounts.group.as_slice()),
            (b"".as_slice(), b"inside:x:7:".as_slice())
        );
    }

    #[test]
    fn layers_hide_what_lies_below() {
        let dir = tempfile::tempdir().unwrap();
        for (layer, text) in [("top", "top"), ("bottom", "bottom")] {
            fs::create_dir_all(dir.path().join(layer).join("etc")).unwrap();
            fs::write(dir.path().join(layer).join("etc/passwd"), text).unwrap();
        }
        fs::write(dir.path().join("bottom/etc/group"), "g").unwrap();
        let path = |layer: &str| dir.path().join(layer).display().to_string();
        let lower = format!("lowerdir={}:{}", path("top"), path("bottom"));
        let rootfs = match Rootfs::of_snapshot(&[mount("overlay", "overlay", &[&lower])]) {
            Err(e) => return eprintln!("SKIPPED layers: {e}"),
            Ok(rootfs) => rootfs.unwrap(),
        };
        assert_eq!(rootfs.accounts().unwrap(), Accounts { passwd: b"top".into(), group: b"g".into() });
    }
}
