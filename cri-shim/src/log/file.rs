//! The log file of a container, which always ends with a whole record.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::record::{self, Carried};

/// Why a log file cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot {verb} log file {}: {source}", path.display())]
pub struct LogError {
    pub verb: &'static str,
    pub path: PathBuf,
    pub source: io::Error,
}

fn failed(verb: &'static str, path: &Path) -> impl FnOnce(io::Error) -> LogError {
    let path = path.to_owned();
    move |source| LogError { verb, path, source }
}

/// A write that did not go through: what of it is in the file, in whole records, and why no more.
#[derive(Debug)]
pub struct Short {
    pub carried: Carried,
    pub source: io::Error,
}

/// An open log file.
#[derive(Debug)]
pub struct LogFile {
    file: File,
    path: PathBuf,
}

impl LogFile {
    /// Opens for appending, makes the file if need be, and cuts off a record that a killed predecessor began: what it
    /// carries still waits in the pipe.
    ///
    /// # Errors
    /// Where the folder is missing, or the file cannot be written.
    pub fn open(path: &Path) -> Result<Self, LogError> {
        let file = append(path)?;
        cut_torn_record(path, &file).map_err(failed("mend", path))?;
        Ok(Self { file, path: path.to_owned() })
    }

    /// Goes on in a new file at the same path, after a rotation moved the old one away.
    ///
    /// # Errors
    /// Where it cannot be opened; then the old one stays in use.
    pub fn reopen(&mut self) -> Result<(), LogError> {
        self.file = append(&self.path)?;
        Ok(())
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Appends whole records.
    ///
    /// # Errors
    /// With the records that went in, where the disk is full or broken.
    pub fn append(&mut self, records: &[u8]) -> Result<(), Short> {
        let mut written = 0;
        while written < records.len() {
            match self.file.write(&records[written..]) {
                Ok(0) => return Err(self.short(records, written, io::ErrorKind::WriteZero.into())),
                Ok(more) => written += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.short(records, written, error)),
            }
        }
        Ok(())
    }

    /// Takes back the record that was written in part. Where even that fails, the record stays torn and comes again.
    fn short(&mut self, records: &[u8], written: usize, source: io::Error) -> Short {
        let carried = record::carried(records, written);
        let torn = (written - carried.records) as u64;
        if torn > 0 {
            let _ = self.file.metadata().and_then(|meta| self.file.set_len(meta.len().saturating_sub(torn)));
        }
        Short { carried, source }
    }
}

fn append(path: &Path) -> Result<File, LogError> {
    // The mode of containerd's: a group may be let in to collect logs.
    OpenOptions::new().append(true).create(true).mode(0o640).open(path).map_err(failed("open", path))
}

/// Shortens the file to its last newline.
fn cut_torn_record(path: &Path, file: &File) -> io::Result<()> {
    let meta = file.metadata()?;
    if !meta.is_file() || meta.len() == 0 {
        return Ok(());
    }
    // A descriptor that appends cannot read.
    let mut reader = File::open(path)?;
    let from = meta.len().saturating_sub(record::MAX_LINE as u64 + 64);
    reader.seek(SeekFrom::Start(from))?;
    let mut end = Vec::new();
    reader.read_to_end(&mut end)?;
    let whole = end.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    // No record is as long as what was read: a file that is no log of ours is left alone.
    let ours = whole > 0 || from == 0;
    if whole < end.len() && ours { file.set_len(from + whole as u64) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::record::{Stream, Tail, Timestamp, encode};
    use std::time::SystemTime;

    fn records(text: &str) -> Vec<u8> {
        let mut out = Vec::new();
        encode(Stream::Stdout, Timestamp::of(SystemTime::UNIX_EPOCH), text.as_bytes(), Tail::Wait, &mut out);
        out
    }

    #[test]
    fn a_torn_record_is_cut_off_and_whole_ones_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("0.log");
        let whole = records("one\ntwo\n");
        for torn in ["", "1970-01-01T00:00:00.000000000Z stdout F thr"] {
            std::fs::write(&path, [&whole[..], torn.as_bytes()].concat()).unwrap();
            LogFile::open(&path).unwrap().append(&records("three\n")).unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), records("one\ntwo\nthree\n"), "after {torn:?}");
        }
        std::fs::write(&path, "torn at once").unwrap();
        LogFile::open(&path).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"");
        let foreign = vec![b'x'; 100_000];
        std::fs::write(&path, &foreign).unwrap();
        LogFile::open(&path).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), foreign);
    }

    #[test]
    fn a_reopened_log_goes_on_in_a_new_file() {
        let folder = tempfile::tempdir().unwrap();
        let (path, old) = (folder.path().join("0.log"), folder.path().join("0.log.1"));
        let mut log = LogFile::open(&path).unwrap();
        log.append(&records("one\n")).unwrap();
        std::fs::rename(&path, &old).unwrap();
        log.append(&records("two\n")).unwrap();
        log.reopen().unwrap();
        log.append(&records("three\n")).unwrap();
        assert_eq!(std::fs::read(&old).unwrap(), records("one\ntwo\n"));
        assert_eq!(std::fs::read(&path).unwrap(), records("three\n"));
        std::fs::remove_dir_all(folder.path()).unwrap();
        assert_eq!(log.reopen().unwrap_err().verb, "open");
        log.append(&records("four\n")).unwrap();
    }

    /// Runs `work` with a tmpfs of one page to write to, in a mount namespace of its own.
    fn on_a_small_disk(work: impl FnOnce(&Path) + Send + 'static) {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().to_owned();
        let thread = std::thread::spawn(move || match kernel::mount::own_namespace() {
            Ok(()) => {
                kernel::mount::tmpfs(&at, Some(4096), 0o700).unwrap();
                work(&at);
                kernel::mount::unmount_lazy(&at).unwrap();
            }
            Err(error) => eprintln!("SKIPPED: {error}"),
        });
        thread.join().unwrap();
    }

    #[test]
    fn a_full_disk_takes_whole_records_and_says_how_many() {
        on_a_small_disk(|folder| {
            let path = folder.join("0.log");
            let mut log = LogFile::open(&path).unwrap();
            let line = format!("{}\n", "x".repeat(959));
            let all = records(&line.repeat(6));
            let short = log.append(&all).unwrap_err();
            // A record is 1000 bytes, the disk 4096.
            assert_eq!(short.carried, Carried { records: 4000, input: 4 * 960 });
            assert_eq!(short.source.kind(), io::ErrorKind::StorageFull);
            assert_eq!(std::fs::read(&path).unwrap(), all[..4000]);
        });
    }
}
