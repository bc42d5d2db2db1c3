//! Control groups, version 1 (also hybrid) and 2: groups are made, limited, measured and removed by a path that is the
//! same in every hierarchy, such as `/bosun/dev/n1/kubepods/burstable/pod1234`.
//!
//! Nothing outside the given path is ever written, except that version 2 needs its controllers enabled in the parents.

mod detail;
mod layout;
mod limits;
mod oom;
mod pressure;
mod usage;

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use detail::{Detail, DeviceIo, HugePages};
pub use layout::{Hierarchy, Layout};
pub use limits::{CpuQuota, Limits, quota, shares, weight};
pub use pressure::{Pressure, Pressures, Stall};
pub use usage::Usage;

/// What a control group operation attempted, and why it failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no control group hierarchy is mounted")]
    NoHierarchy,
    #[error("{operation} {}: {source}", path.display())]
    File { operation: &'static str, path: PathBuf, source: io::Error },
    #[error("remove control group {}: {count} processes are left in it", path.display())]
    Busy { path: PathBuf, count: usize },
}

/// Result of this module.
pub type Result<T> = std::result::Result<T, Error>;

pub(crate) fn at(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error + use<> {
    let path = path.to_owned();
    move |source| Error::File { operation, path, source }
}

/// The control groups of this machine, or of a folder that looks like one.
#[derive(Clone, Debug)]
pub struct Cgroups {
    layout: Layout,
}

impl Cgroups {
    /// The hierarchies mounted in this process's mount namespace.
    ///
    /// # Errors
    /// Where mountinfo cannot be read, or names no hierarchy.
    pub fn detect() -> Result<Self> {
        let path = Path::new("/proc/self/mountinfo");
        // Others' mounts may have names of any bytes.
        let text = fs::read(path).map_err(at("read", path))?;
        Layout::parse(&String::from_utf8_lossy(&text)).map(Self::new).ok_or(Error::NoHierarchy)
    }

    /// Hierarchies given by the caller, such as a temporary folder.
    pub fn new(layout: Layout) -> Self {
        Self { layout }
    }

    /// True where cgroup v2 is the one hierarchy that carries the controllers.
    pub fn is_v2(&self) -> bool {
        matches!(self.layout, Layout::V2(_))
    }

    /// Where the hierarchies are mounted.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Makes the group and its parents in every hierarchy. A group that exists is left as it is.
    ///
    /// # Errors
    /// Where a folder cannot be made or, in version 2, no controller be enabled in a parent.
    pub fn create(&self, path: &str) -> Result<()> {
        for hierarchy in self.layout.hierarchies() {
            let mut dir = hierarchy.mount.clone();
            for part in parts(path) {
                if self.is_v2() {
                    limits::enable_controllers(&dir)?;
                }
                dir.push(part);
                match fs::create_dir(&dir) {
                    Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
                        return Err(at("create control group", &dir)(e));
                    }
                    _ => {}
                }
                if hierarchy.has("cpuset") && !self.is_v2() {
                    limits::inherit_cpuset(&dir)?;
                }
            }
        }
        Ok(())
    }

    /// True if the group is there in any hierarchy.
    pub fn exists(&self, path: &str) -> bool {
        self.dirs(path).iter().any(|dir| dir.is_dir())
    }

    /// Writes the limits that are `Some`. A limit of a controller that this machine lacks is passed over.
    ///
    /// # Errors
    /// Where the kernel refuses a value.
    pub fn limit(&self, path: &str, limits: &Limits) -> Result<()> {
        limits::write(self, path, limits)
    }

    /// What the group and all below it use now. What a controller that is not there would tell is zero.
    ///
    /// # Errors
    /// Where a file of the group exists and cannot be read, or the group does not exist.
    pub fn usage(&self, path: &str) -> Result<Usage> {
        usage::read(self, path)
    }

    /// What dashboards ask for beyond [`Cgroups::usage`]. What this machine does not account is zero or `None`.
    ///
    /// # Errors
    /// As `usage`.
    pub fn detail(&self, path: &str) -> Result<Detail> {
        detail::read(self, path)
    }

    /// How long the group's tasks were stalled. Only version 2 tells, in kernels with pressure stall information.
    ///
    /// # Errors
    /// As `usage`.
    pub fn pressures(&self, path: &str) -> Result<Pressures> {
        pressure::read(self, path)
    }

    /// Names of the groups directly below, over all hierarchies, sorted.
    pub fn children(&self, path: &str) -> Vec<String> {
        let mut names = BTreeSet::new();
        for dir in self.dirs(path) {
            names.extend(subdirs(&dir).iter().filter_map(|d| Some(d.file_name()?.to_str()?.to_owned())));
        }
        names.into_iter().collect()
    }

    /// Processes in the group and all groups below it.
    ///
    /// # Errors
    /// Where a process list cannot be read.
    pub fn processes(&self, path: &str) -> Result<Vec<i32>> {
        let mut found = BTreeSet::new();
        for dir in self.dirs(path) {
            collect_processes(&dir, &mut found)?;
        }
        Ok(found.into_iter().collect())
    }

    /// Moves a process into the group in every hierarchy.
    ///
    /// # Errors
    /// Where a hierarchy refuses the process.
    pub fn enter(&self, path: &str, pid: u32) -> Result<()> {
        for dir in self.dirs(path) {
            let file = dir.join("cgroup.procs");
            fs::write(&file, pid.to_string()).map_err(at("write", &file))?;
        }
        Ok(())
    }

    /// Kills (SIGKILL) every process in the group and below it. The root of a hierarchy is refused.
    ///
    /// # Errors
    /// Where the processes cannot be listed. A process that is gone already is no error.
    pub fn kill(&self, path: &str) -> Result<()> {
        if parts(path).next().is_none() {
            return Ok(());
        }
        for pid in self.processes(path)? {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        }
        Ok(())
    }

    /// Removes the group and everything below it from every hierarchy; processes left inside are killed first.
    /// A group that is not there is success. Blocks up to two seconds while killed processes go.
    ///
    /// # Errors
    /// [`Error::Busy`] if processes stay; else the first refusal, after everything was attempted.
    pub fn remove(&self, path: &str) -> Result<()> {
        if parts(path).next().is_none() {
            return Ok(());
        }
        let mut tries = 0;
        loop {
            let Some(error) = self.remove_once(path) else { return Ok(()) };
            if tries == 100 {
                let count = self.processes(path).map_or(0, |p| p.len());
                let dir = self.dirs(path).into_iter().next().unwrap_or_default();
                return Err(if count > 0 { Error::Busy { path: dir, count } } else { error });
            }
            self.kill(path)?;
            tries += 1;
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn remove_once(&self, path: &str) -> Option<Error> {
        self.dirs(path).iter().filter_map(|dir| remove_tree(dir).err()).next()
    }

    /// The group's folder in each hierarchy.
    pub fn dirs(&self, path: &str) -> Vec<PathBuf> {
        self.layout.hierarchies().iter().map(|h| join(&h.mount, path)).collect()
    }

    /// The group's folder in the hierarchy that has this controller.
    pub(crate) fn dir(&self, controller: &str, path: &str) -> Option<PathBuf> {
        let found = self.layout.hierarchies().iter().find(|h| h.has(controller))?;
        Some(join(&found.mount, path))
    }
}

/// The parts of a group's path. `.` and `..` are dropped, so that no path leaves its hierarchy.
fn parts(path: &str) -> impl Iterator<Item = &str> {
    path.split('/').filter(|p| !p.is_empty() && *p != "." && *p != "..")
}

fn join(mount: &Path, path: &str) -> PathBuf {
    parts(path).fold(mount.to_owned(), |dir, part| dir.join(part))
}

fn subdirs(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path()).collect()
}

fn collect_processes(dir: &Path, found: &mut BTreeSet<i32>) -> Result<()> {
    let file = dir.join("cgroup.procs");
    match fs::read_to_string(&file) {
        Ok(text) => found.extend(text.lines().filter_map(|l| l.parse::<i32>().ok()).filter(|pid| *pid > 0)),
        // ENODEV: the group went while it was read.
        Err(e) if e.kind() == io::ErrorKind::NotFound || e.raw_os_error() == Some(libc::ENODEV) => {}
        Err(e) => return Err(at("read", &file)(e)),
    }
    subdirs(dir).iter().try_for_each(|sub| collect_processes(sub, found))
}

/// Groups go with rmdir, the deepest first; their files go with them.
fn remove_tree(dir: &Path) -> Result<()> {
    for sub in subdirs(dir) {
        remove_tree(&sub)?;
    }
    match fs::remove_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(at("remove control group", dir)),
    }
}

#[cfg(test)]
mod tests;
