//! The files that make up one log: the rotated ones, oldest first, then the one the runtime writes.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use flate2::read::GzDecoder;
use k8s_openapi::jiff::Timestamp;

use super::entry::Entry;

const BLOCK: u64 = 64 * 1024;

/// A file of a log, held open: it can be renamed or removed while it is read.
pub(super) struct LogFile {
    file: File,
    gzip: bool,
    /// Device and inode.
    pub id: (u64, u64),
}

/// Rotated files of a log, oldest first. What is being compressed is named once.
///
/// # Errors
/// Where the folder cannot be listed.
pub(super) fn rotated(log: &Path) -> io::Result<Vec<PathBuf>> {
    let prefix = format!("{}.", log.file_name().unwrap_or_default().to_string_lossy());
    let dir = log.parent().unwrap_or(Path::new("/"));
    let names = fs::read_dir(dir)?.flatten().filter_map(|e| e.file_name().into_string().ok());
    let mut names: Vec<String> = names.filter(|n| n.starts_with(&prefix) && !n.ends_with(".tmp")).collect();
    names.sort();
    // `X.gz` appears when it is complete, and only then X goes.
    let twins: Vec<String> = names.iter().filter_map(|n| n.strip_suffix(".gz").map(String::from)).collect();
    names.retain(|n| !twins.contains(n));
    Ok(names.into_iter().map(|n| dir.join(n)).collect())
}

/// Opens all files of a log, oldest first. A log that is not there yet has none.
///
/// # Errors
/// Where a file cannot be opened, or the log was rotated again and again meanwhile.
pub(super) fn open_all(log: &Path) -> io::Result<VecDeque<LogFile>> {
    for _ in 0..10 {
        let names = match rotated(log) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(VecDeque::new()),
            other => other?,
        };
        let opened: io::Result<VecDeque<LogFile>> = names.iter().map(|path| LogFile::open(path)).collect();
        let current = LogFile::open(log);
        // A rotation in between would hide a file: look again until nothing changed.
        let unchanged = rotated(log).is_ok_and(|again| again == names);
        match (opened, current) {
            (Ok(mut files), Ok(current)) if unchanged => {
                files.push_back(current);
                return Ok(files);
            }
            (Ok(files), Err(e)) if unchanged && e.kind() == io::ErrorKind::NotFound => return Ok(files),
            (Err(e), _) | (_, Err(e)) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    Err(io::Error::other("the log is rotated faster than it can be opened"))
}

impl LogFile {
    fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let meta = file.metadata()?;
        let gzip = path.extension().is_some_and(|e| e == "gz");
        Ok(Self { file, gzip, id: (meta.dev(), meta.ino()) })
    }

    /// The file's text from a position on.
    pub(super) fn read_from(mut self, position: u64) -> io::Result<Box<dyn Read + Send>> {
        if self.gzip {
            let mut text = GzDecoder::new(self.file);
            io::copy(&mut (&mut text).take(position), &mut io::sink())?;
            return Ok(Box::new(text));
        }
        self.file.seek(SeekFrom::Start(position))?;
        Ok(Box::new(self.file))
    }

    /// When the first entry was written; `None` for a file without one.
    pub(super) fn first_timestamp(&self) -> Option<Timestamp> {
        (&self.file).seek(SeekFrom::Start(0)).ok()?;
        let text: Box<dyn Read + '_> =
            if self.gzip { Box::new(GzDecoder::new(&self.file)) } else { Box::new(&self.file) };
        let mut line = Vec::new();
        BufReader::new(text.take(BLOCK)).read_until(b'\n', &mut line).ok()?;
        (&self.file).seek(SeekFrom::Start(0)).ok()?;
        Entry::parse(line.trim_ascii_end())?.timestamp.parse().ok()
    }

    /// Where the last `lines` lines begin, and how many there are, which is fewer in a short file.
    pub(super) fn tail(&mut self, lines: u64) -> io::Result<(u64, u64)> {
        if self.gzip { self.tail_forwards(lines) } else { self.tail_backwards(lines) }
    }

    fn tail_backwards(&mut self, lines: u64) -> io::Result<(u64, u64)> {
        let end = self.file.metadata()?.len();
        if lines == 0 {
            return Ok((end, 0));
        }
        let mut at = end;
        let mut found = 0;
        let mut block = Vec::new();
        while at > 0 {
            let start = at.saturating_sub(BLOCK);
            self.file.seek(SeekFrom::Start(start))?;
            block.clear();
            (&self.file).take(at - start).read_to_end(&mut block)?;
            for (index, _) in block.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n') {
                let after = start + index as u64 + 1;
                // The newline that ends the file ends the last line and starts none.
                if after == end {
                    continue;
                }
                found += 1;
                if found == lines {
                    return Ok((after, found));
                }
            }
            at = start;
        }
        Ok((0, if end > 0 { found + 1 } else { 0 }))
    }

    fn tail_forwards(&mut self, lines: u64) -> io::Result<(u64, u64)> {
        self.file.seek(SeekFrom::Start(0))?;
        let mut starts = VecDeque::new();
        let mut reader = BufReader::new(GzDecoder::new(&self.file));
        let (mut at, mut line) = (0, Vec::new());
        loop {
            line.clear();
            let count = reader.read_until(b'\n', &mut line)?;
            if count == 0 {
                break;
            }
            starts.push_back(at);
            at += count as u64;
            if starts.len() as u64 > lines {
                starts.pop_front();
            }
        }
        drop(reader);
        self.file.seek(SeekFrom::Start(0))?;
        Ok((starts.front().copied().unwrap_or(at), starts.len() as u64))
    }
}
