//! The folder of one network, which the reference plugin reads and writes too:
//!
//! ```text
//! ADDRESS              `CONTAINER\r\nINTERFACE`: whose the address is
//! last_reserved_ip.N   the address given out last from range set N
//! lock
//! ```
//!
//! and beside them what only this plugin knows, so that nothing costs more where many addresses are in use:
//!
//! ```text
//! held/CONTAINER:INTERFACE:N   a link to the attachment's Nth address
//! bosun-taken.N                see [`Taken`]
//! bosun-boot                   the boot in which the links were made: those of an earlier one are nobody's
//! ```
//!
//! The files of addresses alone decide whose an address is; all else is believed only where they agree.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};

use super::ranges::RangeSet;
use super::taken::Taken;

#[derive(Debug, thiserror::Error)]
#[error("cannot {verb} {path}: {source}")]
pub struct Error {
    verb: &'static str,
    path: PathBuf,
    source: io::Error,
}

fn failed(verb: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error { verb, path, source }
}

/// An address with the container and the interface that it belongs to.
pub type Reservation = (IpAddr, String, String);

/// The folder, locked as long as this value lives.
#[derive(Debug)]
pub struct Store {
    folder: PathBuf,
    _lock: File,
}

impl Store {
    /// Opens the folder, making it where it is not there, and waits for its lock. What was reserved in another boot
    /// than `boot` is free again: no sandbox outlives one.
    pub fn open(folder: &Path, boot: &str) -> Result<Self, Error> {
        std::fs::create_dir_all(folder).map_err(failed("create", folder))?;
        let path = folder.join("lock");
        let mut options = OpenOptions::new();
        let lock = options.create(true).truncate(false).write(true).open(&path).map_err(failed("open", &path))?;
        lock.lock().map_err(failed("lock", &path))?;
        let store = Self { folder: folder.to_owned(), _lock: lock };
        store.enter(boot)?;
        Ok(store)
    }

    /// `None` where no address was ever given out.
    pub fn existing(folder: &Path, boot: &str) -> Result<Option<Self>, Error> {
        folder.is_dir().then(|| Self::open(folder, boot)).transpose()
    }

    /// Frees what was reserved before the machine started, where that is known. The reference's own reservations do
    /// not say when they were made and stay, until GC.
    fn enter(&self, boot: &str) -> Result<(), Error> {
        let path = self.folder.join("bosun-boot");
        let before = std::fs::read_to_string(&path).ok();
        if before.as_deref() == Some(boot) {
            return Ok(());
        }
        if before.is_some() {
            self.free_links()?;
        }
        // By rename: half a word would look like another boot.
        let new = self.folder.join(".bosun-boot");
        std::fs::write(&new, boot).and_then(|()| std::fs::rename(&new, &path)).map_err(failed("write", &path))
    }

    fn free_links(&self) -> Result<(), Error> {
        // Counted anew by the next ADD, rather than changed for each address.
        for number in 0.. {
            let path = self.folder.join(format!("bosun-taken.{number}"));
            if !path.exists() {
                break;
            }
            remove(&path)?;
        }
        for name in self.links()? {
            let mut parts = name.split(':');
            let (container, ifname) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
            if let Some(ip) = self.linked(&name, container, ifname) {
                self.release(ip)?;
            }
            self.unlink(&name)?;
        }
        Ok(())
    }

    fn links(&self) -> Result<Vec<String>, Error> {
        let held = self.folder.join("held");
        match std::fs::read_dir(&held) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            read => {
                let names = read.map_err(failed("list", &held))?.flatten();
                Ok(names.filter_map(|entry| entry.file_name().into_string().ok()).collect())
            }
        }
    }

    fn unlink(&self, name: &str) -> Result<(), Error> {
        remove(&self.folder.join("held").join(name))
    }

    /// The address that a link leads to, where it still is the attachment's.
    fn linked(&self, name: &str, container: &str, ifname: &str) -> Option<IpAddr> {
        let target = std::fs::read_link(self.folder.join("held").join(name)).ok()?;
        let ip: IpAddr = target.file_name()?.to_str()?.parse().ok()?;
        self.belongs(ip, container, ifname).then_some(ip)
    }

    /// Whether the address is the attachment's. Files of old reference plugins name only the container.
    fn belongs(&self, ip: IpAddr, container: &str, ifname: &str) -> bool {
        let text = std::fs::read_to_string(self.folder.join(ip.to_string())).unwrap_or_default();
        let (id, name) = parse(&text);
        id == container && (name == ifname || name.is_empty())
    }

    /// Takes the address, the attachment's `ordinal`th, from range set `set`. `false` where it is taken.
    pub fn reserve(&self, ip: IpAddr, (container, ifname): (&str, &str), ordinal: usize) -> Result<bool, Error> {
        let path = self.folder.join(ip.to_string());
        let mut file = match File::create_new(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(false),
            made => made.map_err(failed("create", &path))?,
        };
        let last = self.folder.join(format!("last_reserved_ip.{ordinal}"));
        let wrote = file
            .write_all(format!("{container}\r\n{ifname}").as_bytes())
            .map_err(failed("write", &path))
            .and_then(|()| std::fs::write(&last, ip.to_string()).map_err(failed("write", &last)))
            .and_then(|()| self.link(ip, &format!("{container}:{ifname}:{ordinal}")));
        match wrote {
            Ok(()) => Ok(true),
            Err(error) => {
                // A full disk must not cost an address.
                let _ = std::fs::remove_file(&path);
                Err(error)
            }
        }
    }

    fn link(&self, ip: IpAddr, name: &str) -> Result<(), Error> {
        let held = self.folder.join("held");
        let (path, target) = (held.join(name), Path::new("..").join(ip.to_string()));
        match symlink(&target, &path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => std::fs::create_dir_all(&held),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => std::fs::remove_file(&path),
            done => return done.map_err(failed("create", &path)),
        }
        .and_then(|()| symlink(&target, &path))
        .map_err(failed("create", &path))
    }

    /// Frees the address, whoever has it.
    pub fn release(&self, ip: IpAddr) -> Result<(), Error> {
        remove(&self.folder.join(ip.to_string()))?;
        for number in 0.. {
            let path = self.folder.join(format!("bosun-taken.{number}"));
            let Ok(bytes) = std::fs::read(&path) else { break };
            let byte = Taken::read(&bytes).and_then(|mut taken| taken.set(ip, false));
            if let Some((at, byte)) = byte {
                self.write_byte(number, at, byte)?;
            }
        }
        Ok(())
    }

    /// Frees the addresses and the attachment's links to them.
    pub fn release_all(&self, ips: &[IpAddr], container: &str, ifname: &str) -> Result<(), Error> {
        ips.iter().try_for_each(|ip| self.release(*ip))?;
        for ordinal in 0.. {
            let name = format!("{container}:{ifname}:{ordinal}");
            if std::fs::symlink_metadata(self.folder.join("held").join(&name)).is_err() {
                break;
            }
            self.unlink(&name)?;
        }
        Ok(())
    }

    /// The address given out last from a range set.
    pub fn last(&self, set: usize) -> Option<IpAddr> {
        let text = std::fs::read_to_string(self.folder.join(format!("last_reserved_ip.{set}"))).ok()?;
        text.trim().parse().ok()
    }

    /// The attachment's addresses as its links tell.
    pub fn linked_addresses(&self, container: &str, ifname: &str) -> Vec<IpAddr> {
        let link = |ordinal| format!("{container}:{ifname}:{ordinal}");
        let exists = |name: &String| std::fs::symlink_metadata(self.folder.join("held").join(name)).is_ok();
        let names = (0..).map(link).take_while(exists);
        names.filter_map(|name| self.linked(&name, container, ifname)).collect()
    }

    /// The attachment's addresses. Where no link tells them, as for those that the reference reserved, the `likely`
    /// ones are looked at, and where there are none, all.
    pub fn held(&self, (container, ifname): (&str, &str), likely: &[IpAddr]) -> Result<Vec<IpAddr>, Error> {
        let mut ips = self.linked_addresses(container, ifname);
        if ips.is_empty() {
            ips = likely.iter().copied().filter(|ip| self.belongs(*ip, container, ifname)).collect();
        }
        if ips.is_empty() && likely.is_empty() {
            let is_own = |(_, id, name): &Reservation| id == container && (name == ifname || name.is_empty());
            ips = self.all()?.into_iter().filter(is_own).map(|(ip, ..)| ip).collect();
        }
        ips.sort();
        Ok(ips)
    }

    /// Every address in use.
    pub fn all(&self) -> Result<Vec<Reservation>, Error> {
        let mut found = Vec::new();
        for ip in self.addresses()? {
            let path = self.folder.join(ip.to_string());
            let text = std::fs::read_to_string(&path).map_err(failed("read", &path))?;
            let (id, ifname) = parse(&text);
            found.push((ip, id.to_owned(), ifname.to_owned()));
        }
        Ok(found)
    }

    fn addresses(&self) -> Result<Vec<IpAddr>, Error> {
        let entries = std::fs::read_dir(&self.folder).map_err(failed("list", &self.folder))?;
        let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        Ok(names.filter_map(|name| name.parse().ok()).collect())
    }

    /// Removes links to addresses that are not their attachment's any more.
    pub fn drop_stale_links(&self) -> Result<(), Error> {
        for name in self.links()? {
            let mut parts = name.split(':');
            let (container, ifname) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
            if self.linked(&name, container, ifname).is_none() {
                self.unlink(&name)?;
            }
        }
        Ok(())
    }

    /// What is remembered of the set's addresses in use, which may be out of date. `None` where the set is too large.
    pub fn remembered(&self, number: usize, set: &RangeSet) -> Option<Taken> {
        let empty = Taken::new(set)?;
        let bytes = std::fs::read(self.folder.join(format!("bosun-taken.{number}"))).unwrap_or_default();
        Taken::read(&bytes).filter(|taken| taken.describes_same(&empty)).or_else(|| self.count(number, &empty).ok())
    }

    /// Reads the addresses in use from the folder itself, and remembers them.
    pub fn count(&self, number: usize, empty: &Taken) -> Result<Taken, Error> {
        let mut taken = empty.clone();
        for ip in self.addresses()? {
            taken.set(ip, true);
        }
        let path = self.folder.join(format!("bosun-taken.{number}"));
        std::fs::write(&path, taken.bytes()).map_err(failed("write", &path))?;
        Ok(taken)
    }

    /// Remembers one change of a [`Taken`].
    pub fn write_byte(&self, number: usize, at: usize, byte: u8) -> Result<(), Error> {
        let path = self.folder.join(format!("bosun-taken.{number}"));
        let opened = OpenOptions::new().write(true).open(&path);
        opened.and_then(|file| file.write_all_at(&[byte], at as u64)).map_err(failed("write", &path))
    }
}

fn parse(text: &str) -> (&str, &str) {
    text.trim().split_once("\r\n").unwrap_or((text.trim(), ""))
}

fn remove(path: &Path) -> Result<(), Error> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", path)(error)),
        _ => Ok(()),
    }
}
