//! A pod's namespaces, kept alive by bind mounts instead of by a process: `FOLDER/{net,ipc,uts,user}`.
//!
//! A thread of its own moves into new namespaces, furnishes them (loopback, hostname, sysctls), mounts them and ends.
//! With a user namespace a child process makes them, because a process with threads cannot, and because the others must
//! belong to it. Source: namespaces(7), user_namespaces(7), unshare(2).

mod child;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::statfs::statfs;

use crate::netlink::{self, LinkChange, Network};
use crate::{mount, sysctl};

/// What statfs(2) says of a mounted namespace.
const NSFS_MAGIC: u64 = 0x6e73_6673;
/// Mounts that a folder's file may have on it: more than one where a killed maker was followed by another.
const STACKED: usize = 16;

/// Why namespaces could not be made or removed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot {verb} {}: {source}", path.display())]
    Io { verb: &'static str, path: PathBuf, source: io::Error },
    #[error(transparent)]
    Sysctl(#[from] sysctl::Error),
    #[error("cannot bring up the loopback of a new network namespace: {0}")]
    Loopback(#[from] netlink::Error),
    #[error("the thread that makes the namespaces of {} panicked", .0.display())]
    Panicked(PathBuf),
}

pub type Result<T> = std::result::Result<T, Error>;

fn failed(verb: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io { verb, path, source }
}

/// A range of a user namespace's identifiers and what they are outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdMap {
    pub inside: u32,
    pub outside: u32,
    pub length: u32,
}

/// Both maps of a user namespace; its root must be in them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct IdMaps {
    pub users: Vec<IdMap>,
    pub groups: Vec<IdMap>,
}

impl IdMaps {
    /// What the namespace's root is outside.
    fn root(&self) -> Option<u32> {
        self.users.iter().find(|map| map.inside == 0 && map.length > 0).map(|map| map.outside)
    }
}

/// What to make.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Request {
    pub net: bool,
    pub ipc: bool,
    pub uts: bool,
    /// A user namespace, which then owns the others.
    pub user: Option<IdMaps>,
    /// For a new UTS namespace; without it the new one has the machine's name.
    pub hostname: Option<String>,
    /// Names as [`sysctl`] has them. Each must belong to one of the new namespaces: else it would change the machine.
    pub sysctls: Vec<(String, String)>,
}

/// Paths of namespaces that live.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Pinned {
    pub net: Option<PathBuf>,
    pub ipc: Option<PathBuf>,
    pub uts: Option<PathBuf>,
    pub user: Option<PathBuf>,
}

/// Makes what is asked for, mounted in `folder`, whose parents are made too. What an earlier call left there is removed
/// first. A new network namespace has its loopback up.
///
/// # Errors
/// Without CAP_SYS_ADMIN, or for a sysctl that this kernel lacks or whose value it refuses. Nothing is left then.
pub fn pin(folder: &Path, request: &Request) -> Result<Pinned> {
    unpin(folder)?;
    std::fs::create_dir_all(folder).map_err(failed("create the folder", folder))?;
    let made = std::thread::scope(|scope| {
        let work = || match &request.user {
            None => fresh(folder, request),
            Some(maps) => child::with(maps, flags(request), |pid| owned(folder, request, pid)),
        };
        let thread = std::thread::Builder::new().name("namespaces".into()).spawn_scoped(scope, work);
        let thread = thread.map_err(failed("start a thread to fill", folder))?;
        thread.join().map_err(|_| Error::Panicked(folder.to_owned()))?
    });
    if made.is_err() {
        // The first failure is the one to report; the next call finds what stays.
        let _ = unpin(folder);
    }
    made.map(|()| pinned(folder))
}

/// Which namespaces of `folder` live. After a reboot none does.
pub fn pinned(folder: &Path) -> Pinned {
    let alive = |name: &str| Some(folder.join(name)).filter(|path| is_namespace(path));
    Pinned { net: alive("net"), ipc: alive("ipc"), uts: alive("uts"), user: alive("user") }
}

/// Lets the namespaces of `folder` go (each ends with the last that uses it) and removes the folder. What is not there,
/// or half there, is success.
///
/// # Errors
/// Where a mount or a file cannot be removed; after all were attempted.
pub fn unpin(folder: &Path) -> Result<()> {
    let mut outcome = Ok(());
    for name in ["net", "ipc", "uts", "user"] {
        outcome = outcome.and(remove(&folder.join(name)));
    }
    outcome?;
    gone(std::fs::remove_dir(folder)).map_err(failed("remove the folder", folder))
}

fn remove(path: &Path) -> Result<()> {
    for _ in 0..STACKED {
        if !is_namespace(path) {
            break;
        }
        nix::mount::umount2(path, nix::mount::MntFlags::MNT_DETACH)
            .map_err(io::Error::from)
            .map_err(failed("unmount", path))?;
    }
    gone(std::fs::remove_file(path)).map_err(failed("remove", path))
}

fn gone(done: io::Result<()>) -> io::Result<()> {
    done.or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
}

/// Whether `path` leads to a namespace that lives: not to the bare file under a mount that is gone.
pub fn is_namespace(path: &Path) -> bool {
    statfs(path).is_ok_and(|fs| u64::try_from(fs.filesystem_type().0).is_ok_and(|kind| kind == NSFS_MAGIC))
}

fn flags(request: &Request) -> CloneFlags {
    let all = [
        (request.net, CloneFlags::CLONE_NEWNET),
        (request.ipc, CloneFlags::CLONE_NEWIPC),
        (request.uts, CloneFlags::CLONE_NEWUTS),
    ];
    all.into_iter().filter(|(wanted, _)| *wanted).map(|(_, flag)| flag).collect()
}

/// The calling thread moves into new namespaces.
fn fresh(folder: &Path, request: &Request) -> Result<()> {
    unshare(flags(request)).map_err(io::Error::from).map_err(failed("make namespaces for", folder))?;
    furnish(request)?;
    hold_all(folder, request)
}

/// The calling thread moves into those that the child has made, and furnishes them with our rights.
fn owned(folder: &Path, request: &Request, child: u32) -> Result<()> {
    let namespaces = PathBuf::from(format!("/proc/{child}/ns"));
    let kinds = [
        (request.net, "net", CloneFlags::CLONE_NEWNET),
        (request.ipc, "ipc", CloneFlags::CLONE_NEWIPC),
        (request.uts, "uts", CloneFlags::CLONE_NEWUTS),
    ];
    for (_, name, kind) in kinds.into_iter().filter(|(wanted, ..)| *wanted) {
        let path = namespaces.join(name);
        let file = File::open(&path).map_err(failed("open", &path))?;
        setns(file, kind).map_err(io::Error::from).map_err(failed("enter", &path))?;
    }
    furnish(request)?;
    hold(&namespaces.join("user"), &folder.join("user"))?;
    hold_all(folder, request)
}

fn furnish(request: &Request) -> Result<()> {
    if request.net {
        let mut network = netlink::Kernel::open()?;
        if let Some(lo) = network.link("lo")? {
            network.change_link(lo.index, LinkChange { up: Some(true), ..LinkChange::default() })?;
        }
    }
    if let Some(name) = request.hostname.as_deref().filter(|_| request.uts) {
        crate::process::set_hostname(name).map_err(failed("set the hostname to", Path::new(name)))?;
    }
    let owner = request.user.as_ref().and_then(IdMaps::root);
    request.sysctls.iter().try_for_each(|(name, value)| set(name, value, owner))
}

/// Those of an IPC namespace may be set by its owner's root alone, since Linux 5.19; others by the machine's.
fn set(name: &str, value: &str, owner: Option<u32>) -> Result<()> {
    let write = || sysctl::write(name, value).map(drop);
    let done = write().or_else(|error| match owner {
        Some(owner) if error.source.kind() == io::ErrorKind::PermissionDenied => {
            child::as_user(owner, write).unwrap_or(Err(error))
        }
        _ => Err(error),
    });
    done.map_err(Error::from)
}

fn hold_all(folder: &Path, request: &Request) -> Result<()> {
    let own = Path::new("/proc/thread-self/ns");
    for (wanted, name) in [(request.net, "net"), (request.ipc, "ipc"), (request.uts, "uts")] {
        if wanted {
            hold(&own.join(name), &folder.join(name))?;
        }
    }
    Ok(())
}

fn hold(namespace: &Path, path: &Path) -> Result<()> {
    File::create_new(path).map_err(failed("create", path))?;
    mount::bind(namespace, path, false).map_err(|error| match error {
        mount::Error::Call { source, .. } => {
            Error::Io { verb: "keep a namespace by a mount on", path: path.into(), source }
        }
        mount::Error::Escapes { .. } => {
            failed("keep a namespace by a mount on", path)(io::ErrorKind::InvalidInput.into())
        }
    })
}

#[cfg(test)]
mod tests;
