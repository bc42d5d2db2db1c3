//! Network namespaces: open one by path, work inside it, make and remove bind-mounted ones.
//!
//! A thread that enters a namespace never comes back: [`Netns::run`] gives each closure a thread of its own,
//! so that no other work of the process can find itself in a foreign namespace. Source: setns(2), namespaces(7).

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

use crate::mount::MountInfo;

/// `ioctl(NS_GET_NSTYPE)`, the question which kind of namespace a descriptor is.
const NS_GET_NSTYPE: libc::c_ulong = 0xb703;

/// Why a network namespace could not be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot {verb} network namespace {path}: {source}")]
    Io { verb: &'static str, path: PathBuf, source: io::Error },
    #[error("{0} is not a network namespace")]
    NotANamespace(PathBuf),
    #[error("the work inside network namespace {0} panicked")]
    Panicked(PathBuf),
}

impl Error {
    /// Whether the namespace is gone: no such path, or a path that no longer leads to a namespace.
    /// Tear-down takes that for success.
    pub fn is_gone(&self) -> bool {
        match self {
            Self::Io { source, .. } => source.kind() == io::ErrorKind::NotFound,
            Self::NotANamespace(_) => true,
            Self::Panicked(_) => false,
        }
    }
}

/// An open network namespace. It lives at least as long as this value.
#[derive(Debug)]
pub struct Netns {
    file: File,
    path: PathBuf,
}

impl Netns {
    /// Opens `/run/netns/NAME`, `/proc/PID/ns/net` or another path to a network namespace.
    ///
    /// # Errors
    /// Where the path cannot be opened, or leads to something else.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref().to_owned();
        let file = File::open(&path).map_err(failed("open", &path))?;
        // SAFETY: the request takes no argument and only asks about the descriptor, which `file` keeps open.
        let kind = unsafe { libc::ioctl(file.as_raw_fd(), NS_GET_NSTYPE) };
        if kind != libc::CLONE_NEWNET {
            return Err(Error::NotANamespace(path));
        }
        Ok(Self { file, path })
    }

    /// The calling thread's namespace.
    ///
    /// # Errors
    /// Where /proc is not mounted.
    pub fn current() -> Result<Self, Error> {
        Self::open("/proc/thread-self/ns/net")
    }

    /// A new namespace that nothing but this value keeps alive.
    ///
    /// # Errors
    /// Without CAP_SYS_ADMIN.
    pub fn anonymous() -> Result<Self, Error> {
        let path = PathBuf::from("(new)");
        own_thread(&path, || {
            unshare(CloneFlags::CLONE_NEWNET).map_err(io::Error::from).map_err(failed("create", Path::new("(new)")))?;
            Self::current()
        })?
    }

    /// Runs `work` in the namespace, on a thread of its own, and waits for it.
    ///
    /// # Errors
    /// Where the namespace cannot be entered or `work` panicked.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, Error> {
        own_thread(&self.path, || {
            self.enter()?;
            Ok(work())
        })?
    }

    /// Moves the calling thread into the namespace for good. For a process (or thread) that has no other work.
    ///
    /// # Errors
    /// Without CAP_SYS_ADMIN over the namespace.
    pub fn enter(&self) -> Result<(), Error> {
        setns(&self.file, CloneFlags::CLONE_NEWNET).map_err(io::Error::from).map_err(failed("enter", &self.path))
    }

    /// A TCP connection made inside the namespace to the first of `addresses` that takes it. The thread that asked
    /// stays where it is: a socket belongs for good to the namespace in which it was made.
    ///
    /// # Errors
    /// Where the namespace cannot be entered, or the last address's refusal. Each may take as long as `timeout`.
    pub fn connect(&self, addresses: &[SocketAddr], timeout: Duration) -> io::Result<TcpStream> {
        let dial = || {
            let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
            for address in addresses {
                match TcpStream::connect_timeout(address, timeout) {
                    Ok(stream) => return Ok(stream),
                    Err(error) => last = io::Error::new(error.kind(), format!("connect to {address}: {error}")),
                }
            }
            Err(last)
        };
        self.run(dial).map_err(io::Error::other)?
    }

    /// What the kernel knows the namespace by: equal for two paths to the same one.
    ///
    /// # Errors
    /// Where the descriptor cannot be read.
    pub fn identity(&self) -> Result<(u64, u64), Error> {
        let meta = self.file.metadata().map_err(failed("stat", &self.path))?;
        Ok((meta.dev(), meta.ino()))
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl From<Netns> for OwnedFd {
    fn from(netns: Netns) -> Self {
        netns.file.into()
    }
}

/// Creates a namespace and keeps it alive by a bind mount on `path`, as `ip netns add` does.
/// The parent folder is made; its mount propagation is left as it is.
///
/// # Errors
/// Where `path` exists already, or without CAP_SYS_ADMIN. Nothing is left behind then.
pub fn create(path: impl AsRef<Path>) -> Result<Netns, Error> {
    let path = path.as_ref();
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(failed("create the folder of", path))?;
    }
    File::create_new(path).map_err(failed("create", path))?;
    let made = own_thread(path, || -> io::Result<()> {
        unshare(CloneFlags::CLONE_NEWNET)?;
        Ok(mount(Some("/proc/thread-self/ns/net"), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)?)
    });
    let opened = made.and_then(|done| done.map_err(failed("create", path))).and_then(|()| Netns::open(path));
    if opened.is_err() {
        // The first failure is the one to report.
        let _ = remove(path);
    }
    opened
}

/// Removes what [`create`] made. The namespace itself ends with its last process, descriptor or mount.
/// Nothing there is success.
///
/// # Errors
/// Where the mount or the file cannot be removed.
pub fn remove(path: impl AsRef<Path>) -> Result<(), Error> {
    let path = path.as_ref();
    match umount2(path, MntFlags::MNT_DETACH) {
        Ok(()) | Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => {}
        Err(errno) => return Err(failed("unmount", path)(errno.into())),
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Every network namespace that a process of this PID namespace or a mount of this mount namespace keeps, each once.
///
/// # Errors
/// Where /proc is not mounted.
pub fn all() -> io::Result<Vec<Netns>> {
    let processes = std::fs::read_dir("/proc")?.flatten().map(|entry| entry.path());
    let own = processes.filter(|path| path.file_name().is_some_and(|name| name.as_encoded_bytes()[0].is_ascii_digit()));
    let mounts = String::from_utf8_lossy(&std::fs::read("/proc/self/mountinfo")?).into_owned();
    let pinned = mounts.lines().filter_map(MountInfo::parse).filter(|mount| mount.fs_type == "nsfs");
    let paths = own.map(|path| path.join("ns/net")).chain(pinned.map(|mount| mount.mount_point));
    let mut seen = HashSet::new();
    // A process may end meanwhile, and a mount may be of another kind of namespace.
    let opened = paths.filter_map(|path| Netns::open(path).ok());
    Ok(opened.filter(|netns| netns.identity().is_ok_and(|identity| seen.insert(identity))).collect())
}

fn failed(verb: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io { verb, path, source }
}

fn own_thread<T: Send>(path: &Path, work: impl FnOnce() -> T + Send) -> Result<T, Error> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("netns".into())
            .spawn_scoped(scope, work)
            .map_err(failed("start a thread for", path))?;
        thread.join().map_err(|_| Error::Panicked(path.to_owned()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_no_namespace() {
        let error = Netns::open("/proc/self/status").unwrap_err();
        assert_eq!(error.to_string(), "/proc/self/status is not a network namespace");
        assert!(error.is_gone());
        assert!(Netns::open("/nonexistent/ns").unwrap_err().is_gone());
    }

    #[test]
    fn a_connection_reaches_a_listener_that_only_the_namespace_has() {
        if !crate::test::root("connect") {
            return;
        }
        let netns = Netns::anonymous().unwrap();
        let listener = netns
            .run(|| {
                use crate::netlink::{Kernel, LinkChange, Network};
                let mut network = Kernel::open().unwrap();
                let lo = network.link("lo").unwrap().unwrap().index;
                network.change_link(lo, LinkChange { up: Some(true), ..LinkChange::default() }).unwrap();
                std::net::TcpListener::bind("127.0.0.1:0").unwrap()
            })
            .unwrap();
        let address = listener.local_addr().unwrap();
        let six = SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, address.port()));
        let stream = netns.connect(&[six, address], Duration::from_secs(1)).unwrap();
        assert_eq!(listener.accept().unwrap().1, stream.local_addr().unwrap());
        drop(listener);
        let error = netns.connect(&[address], Duration::from_secs(1)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }

    #[test]
    fn work_happens_inside_and_the_caller_stays() {
        if !crate::test::root("netns") {
            return;
        }
        let path = PathBuf::from(format!("/tmp/net-netns-{}/one", std::process::id()));
        let made = create(&path).unwrap();
        let inside = made.run(|| Netns::current().unwrap().identity().unwrap()).unwrap();
        assert_eq!(inside, made.identity().unwrap());
        assert_ne!(inside, Netns::current().unwrap().identity().unwrap());
        assert!(matches!(create(&path), Err(Error::Io { verb: "create", .. })), "a second one must not replace it");
        let found = all().unwrap();
        assert_eq!(found.iter().filter(|netns| netns.identity().unwrap() == made.identity().unwrap()).count(), 1);
        remove(&path).unwrap();
        remove(&path).unwrap();
        assert!(!path.exists());
        std::fs::remove_dir(path.parent().unwrap()).unwrap();
    }
}
