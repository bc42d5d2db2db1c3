//! Shims that containerd has lost. Where a client of it dies in the middle of a start, its 1.6 removes the bundle and
//! forgets the shim, which then waits for ever.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use kernel::process::{Signal, kill};

const PROGRAM: &str = "containerd-shim-runc-v2";
/// Where containerd has a folder for each shim it knows, as NAMESPACE/ID.
const BUNDLES: &str = "/run/containerd/io.containerd.runtime.v2.task";

/// Those without a bundle at the last look. One is ended only at the second look: containerd may be at work with it.
#[derive(Default)]
pub struct Shims {
    suspects: BTreeSet<u32>,
}

impl Shims {
    /// Ends what had no bundle at the last look either.
    pub fn sweep(&mut self) {
        let lost = lost();
        for pid in lost.intersection(&self.suspects) {
            eprintln!("process {pid} is a shim that containerd has lost: it is ended");
            // It may have ended by itself.
            let _ = kill(*pid, Signal::SIGKILL);
        }
        self.suspects = lost;
    }
}

fn lost() -> BTreeSet<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let shims = entries.filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let words = fs::read_to_string(entry.path().join("cmdline")).ok()?;
        let (namespace, id) = container_of(&words)?;
        let serving = children(pid);
        Some(Shim { pid, bundle: Path::new(BUNDLES).join(namespace).join(id), serving })
    });
    let bundles = bundles();
    shims.filter(|shim| shim.is_lost(&bundles)).map(|shim| shim.pid).collect()
}

/// A shim's process.
struct Shim {
    pid: u32,
    /// Of the container that it was started for.
    bundle: PathBuf,
    /// First processes of the containers that it serves now, and whatever else is its child.
    serving: BTreeSet<u32>,
}

impl Shim {
    /// `bundles`: all of the node, with the first process of each container. The containers of one pod share a shim, so
    /// that it may be in use though its first container is forgotten.
    fn is_lost(&self, bundles: &BTreeMap<PathBuf, Option<u32>>) -> bool {
        !bundles.contains_key(&self.bundle) && !bundles.values().flatten().any(|first| self.serving.contains(first))
    }
}

fn bundles() -> BTreeMap<PathBuf, Option<u32>> {
    let inside = |folder: &Path| fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let bundles = inside(Path::new(BUNDLES)).flat_map(|namespace| inside(&namespace).collect::<Vec<_>>());
    let first = |bundle: &Path| fs::read_to_string(bundle.join("init.pid")).ok()?.trim().parse().ok();
    bundles.map(|bundle| (bundle.clone(), first(&bundle))).collect()
}

fn children(pid: u32) -> BTreeSet<u32> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists = threads.filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    lists.flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>()).collect()
}

/// The namespace and ID that a process is the shim of; its words end with NUL each.
fn container_of(words: &str) -> Option<(&str, &str)> {
    let words: Vec<&str> = words.split('\0').collect();
    let program = words.first()?.rsplit('/').next()?;
    let after = |flag: &str| words.iter().position(|word| *word == flag).and_then(|at| words.get(at + 1)).copied();
    (program == PROGRAM).then_some((after("-namespace")?, after("-id")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shim_says_whose_it_is() {
        let shim = "/usr/bin/containerd-shim-runc-v2\0-namespace\0k8s.io\0-id\0abc\0-address\0/run/c.sock\0";
        assert_eq!(container_of(shim), Some(("k8s.io", "abc")));
        assert_eq!(container_of("grep\0containerd-shim-runc-v2\0-namespace\0k8s.io\0-id\0abc\0"), None);
        assert_eq!(container_of(""), None);
    }

    #[test]
    fn a_shim_without_its_own_bundle_may_serve_another() {
        let bundle = |id: &str| Path::new(BUNDLES).join("k8s.io").join(id);
        let shim = Shim { pid: 7, bundle: bundle("first"), serving: BTreeSet::from([20]) };
        let bundles = |of: &[(&str, Option<u32>)]| of.iter().map(|(id, first)| (bundle(id), *first)).collect();
        assert!(!shim.is_lost(&bundles(&[("first", None)])));
        assert!(!shim.is_lost(&bundles(&[("second", Some(20))])));
        assert!(shim.is_lost(&bundles(&[("other", Some(30)), ("starting", None)])));
        assert!(shim.is_lost(&bundles(&[])));
    }
}
