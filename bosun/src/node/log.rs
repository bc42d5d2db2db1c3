//! A daemon's log: what it prints, in a file that is bounded.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// A file reaches this size, becomes FILE.1, and a new one begins.
const LIMIT: u64 = 8 << 20;

/// Copies what `source` gives to `path` until it ends, on a thread of its own.
///
/// # Errors
/// Where the file cannot be opened or a thread not be started.
pub fn keep(mut source: impl Read + Send + 'static, path: &Path) -> io::Result<()> {
    let mut log = Log::open(path, LIMIT)?;
    let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    std::thread::Builder::new().name(name).stack_size(64 << 10).spawn(move || {
        let mut buffer = [0; 8192];
        while let Ok(length @ 1..) = source.read(&mut buffer) {
            // A full disk costs lines, and never the daemon: it must not block on its log.
            let _ = log.write(&buffer[..length]);
        }
    })?;
    Ok(())
}

struct Log {
    path: PathBuf,
    file: File,
    size: u64,
    limit: u64,
}

impl Log {
    fn open(path: &Path, limit: u64) -> io::Result<Self> {
        let file = File::options().append(true).create(true).open(path)?;
        let size = file.metadata()?.len();
        Ok(Self { path: path.to_owned(), file, size, limit })
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.size > 0 && self.size + bytes.len() as u64 > self.limit {
            fs::rename(&self.path, self.path.with_added_extension("1"))?;
            *self = Self::open(&self.path, self.limit)?;
        }
        self.file.write_all(bytes)?;
        self.size += bytes.len() as u64;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_files_hold_the_newest() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.log");
        let mut log = Log::open(&path, 10).unwrap();
        for line in ["one\n", "two\n", "three\n", "four\n", "fifteen\n"] {
            log.write(line.as_bytes()).unwrap();
        }
        assert_eq!(fs::read_to_string(&path).unwrap(), "fifteen\n");
        assert_eq!(fs::read_to_string(dir.path().join("agent.log.1")).unwrap(), "four\n".to_owned());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }
}
