//! Where the shim's files are.
//!
//! ```text
//! ROOT/sandboxes/ID/{hostname,hosts,resolv.conf}     durable
//! ROOT/containers/ID/exit.json                       how it ended, once it has
//! ROOT/reserve                                       room kept back for what makes room on a full disk
//! ROOT/containers/ID/volumes/N                       VOLUMEs of its image that nothing is mounted at
//! STATE/sandboxes/ID/life.json                       what a reboot ends
//! STATE/sandboxes/ID/ns/{net,ipc,uts,user}           pinned namespaces
//! STATE/sandboxes/ID/shm                             /dev/shm of the pod
//! STATE/containers/ID/started.json                   when it began
//! STATE/containers/ID/io/{stdin,stdout,stderr}       FIFOs
//! STATE/containers/ID/images/N                       image volumes
//! STATE/keeper.sock                                  where the keeper of output listens
//! STATE/containers/ID/rootfs                         while its task is made: its tree with mapped owners
//! ```

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

#[derive(Debug, Clone)]
pub struct Folders {
    pub root: PathBuf,
    pub state: PathBuf,
}

impl Folders {
    /// Makes them, for root alone: what a container owns in there, such as set-user-id programs of an image's volume, would
    /// work for every user of the machine (CVE-2021-41103).
    ///
    /// # Errors
    /// Where one cannot be made.
    pub fn make(&self) -> io::Result<()> {
        let about =
            |path: &Path, error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
        for top in [&self.root, &self.state] {
            std::fs::create_dir_all(top)
                .and_then(|()| std::fs::set_permissions(top, Permissions::from_mode(0o700)))
                .map_err(|error| about(top, error))?;
        }
        let files = [self.all_sandbox_files(), self.all_container_files()];
        let all = files.into_iter().chain([self.all_sandbox_states(), self.all_container_states()]);
        all.into_iter().try_for_each(|dir| std::fs::create_dir_all(&dir).map_err(|error| about(&dir, error)))
    }

    /// On the disk of containerd's root, as a rule.
    pub fn reserve(&self) -> PathBuf {
        self.root.join("reserve")
    }

    pub fn all_sandbox_files(&self) -> PathBuf {
        self.root.join("sandboxes")
    }

    pub fn all_sandbox_states(&self) -> PathBuf {
        self.state.join("sandboxes")
    }

    pub fn all_container_files(&self) -> PathBuf {
        self.root.join("containers")
    }

    pub fn all_container_states(&self) -> PathBuf {
        self.state.join("containers")
    }

    pub fn keeper(&self) -> PathBuf {
        self.state.join("keeper.sock")
    }

    pub fn sandbox(&self, id: &str) -> SandboxFolders {
        SandboxFolders { files: self.all_sandbox_files().join(id), state: self.all_sandbox_states().join(id) }
    }

    pub fn container(&self, id: &str) -> ContainerFolders {
        ContainerFolders { files: self.all_container_files().join(id), state: self.all_container_states().join(id) }
    }
}

#[derive(Debug, Clone)]
pub struct SandboxFolders {
    pub files: PathBuf,
    pub state: PathBuf,
}

impl SandboxFolders {
    pub fn hostname(&self) -> PathBuf {
        self.files.join("hostname")
    }

    pub fn hosts(&self) -> PathBuf {
        self.files.join("hosts")
    }

    pub fn resolv_conf(&self) -> PathBuf {
        self.files.join("resolv.conf")
    }

    pub fn life(&self) -> PathBuf {
        self.state.join("life.json")
    }

    pub fn namespaces(&self) -> PathBuf {
        self.state.join("ns")
    }

    pub fn netns(&self) -> PathBuf {
        self.namespaces().join("net")
    }

    pub fn shm(&self) -> PathBuf {
        self.state.join("shm")
    }

    /// Where the pause task's files are mounted while it is made, if their owners are mapped.
    pub fn rootfs(&self) -> PathBuf {
        self.state.join("rootfs")
    }
}

#[derive(Debug, Clone)]
pub struct ContainerFolders {
    pub files: PathBuf,
    pub state: PathBuf,
}

impl ContainerFolders {
    pub fn exit(&self) -> PathBuf {
        self.files.join("exit.json")
    }

    pub fn started(&self) -> PathBuf {
        self.state.join("started.json")
    }

    pub fn io(&self) -> PathBuf {
        self.state.join("io")
    }

    pub fn images(&self) -> PathBuf {
        self.state.join("images")
    }

    pub fn rootfs(&self) -> PathBuf {
        self.state.join("rootfs")
    }

    pub fn volumes(&self) -> PathBuf {
        self.files.join("volumes")
    }
}

/// Names of the folders directly in `dir`; none where it is not there.
pub fn names(dir: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_other_user_reaches_what_containers_own() {
        let dir = tempfile::tempdir().unwrap();
        let folders = Folders { root: dir.path().join("lib/cri"), state: dir.path().join("run") };
        // As an earlier version made it.
        std::fs::create_dir(&folders.state).unwrap();
        std::fs::set_permissions(&folders.state, Permissions::from_mode(0o755)).unwrap();
        folders.make().unwrap();
        for top in [&folders.root, &folders.state] {
            assert_eq!(std::fs::metadata(top).unwrap().permissions().mode() & 0o777, 0o700, "{}", top.display());
        }
        assert!(folders.all_container_files().is_dir() && folders.all_sandbox_states().is_dir());
    }
}
