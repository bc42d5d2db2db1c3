//! Shims that containerd has lost. Where a client of it dies in the middle of a start, its 1.6 removes the bundle and
//! forgets the shim, which then waits for ever.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

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
    let lost = entries.filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let words = fs::read_to_string(entry.path().join("cmdline")).ok()?;
        let (namespace, id) = container_of(&words)?;
        (!Path::new(BUNDLES).join(namespace).join(id).exists()).then_some(pid)
    });
    lost.collect()
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
}
