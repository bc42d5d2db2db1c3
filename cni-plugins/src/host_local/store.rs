//! The folder of one network: a file for each address in use, with `CONTAINER\r\nINTERFACE` in it,
//! `last_reserved_ip.N` for each range set, and `lock`. The reference plugin reads and writes the same.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

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

/// The folder, locked as long as this value lives.
#[derive(Debug)]
pub struct Store {
    folder: PathBuf,
    _lock: File,
}

impl Store {
    /// Opens the folder, making it where it is not there, and waits for its lock.
    pub fn open(folder: &Path) -> Result<Self, Error> {
        std::fs::create_dir_all(folder).map_err(failed("create", folder))?;
        let path = folder.join("lock");
        let mut options = OpenOptions::new();
        let lock = options.create(true).truncate(false).write(true).open(&path).map_err(failed("open", &path))?;
        lock.lock().map_err(failed("lock", &path))?;
        Ok(Self { folder: folder.to_owned(), _lock: lock })
    }

    /// `None` where no address was ever given out.
    pub fn existing(folder: &Path) -> Result<Option<Self>, Error> {
        folder.is_dir().then(|| Self::open(folder)).transpose()
    }

    /// Takes the address. `false` where it is taken.
    pub fn reserve(&self, ip: IpAddr, container: &str, ifname: &str, set: usize) -> Result<bool, Error> {
        let path = self.folder.join(ip.to_string());
        let mut file = match File::create_new(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(false),
            made => made.map_err(failed("create", &path))?,
        };
        let last = self.folder.join(format!("last_reserved_ip.{set}"));
        let wrote = file
            .write_all(format!("{container}\r\n{ifname}").as_bytes())
            .map_err(failed("write", &path))
            .and_then(|()| std::fs::write(&last, ip.to_string()).map_err(failed("write", &last)));
        match wrote {
            Ok(()) => Ok(true),
            Err(error) => {
                // A full disk must not cost an address.
                let _ = std::fs::remove_file(&path);
                Err(error)
            }
        }
    }

    pub fn release(&self, ip: IpAddr) -> Result<(), Error> {
        let path = self.folder.join(ip.to_string());
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", &path)(error)),
            _ => Ok(()),
        }
    }

    /// The address given out last from a range set.
    pub fn last(&self, set: usize) -> Option<IpAddr> {
        let text = std::fs::read_to_string(self.folder.join(format!("last_reserved_ip.{set}"))).ok()?;
        text.trim().parse().ok()
    }

    /// The addresses of one attachment. Files of old reference plugins name only the container.
    pub fn held(&self, container: &str, ifname: &str) -> Result<Vec<IpAddr>, Error> {
        let all = self.all()?.into_iter();
        let mut ips: Vec<IpAddr> = all
            .filter(|(_, id, name)| id == container && (name == ifname || name.is_empty()))
            .map(|(ip, ..)| ip)
            .collect();
        ips.sort();
        Ok(ips)
    }

    /// Every address in use, with its container and interface.
    pub fn all(&self) -> Result<Vec<(IpAddr, String, String)>, Error> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&self.folder).map_err(failed("list", &self.folder))? {
            let path = entry.map_err(failed("list", &self.folder))?.path();
            let Some(ip) = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok()) else {
                continue;
            };
            let text = std::fs::read_to_string(&path).map_err(failed("read", &path))?;
            let (id, ifname) = text.trim().split_once("\r\n").unwrap_or((text.trim(), ""));
            found.push((ip, id.to_owned(), ifname.to_owned()));
        }
        Ok(found)
    }
}
