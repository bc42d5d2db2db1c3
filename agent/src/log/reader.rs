//! Reads a log as one text, however many files it is in, and follows it.

use std::collections::VecDeque;
use std::future::Future;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use futures::Stream;
use k8s_openapi::jiff::Timestamp;

use super::entry::{Entry, Output};
use super::files::{LogFile, open_all};

const CHUNK: usize = 64 * 1024;
/// How often a followed log is looked at.
const POLL: Duration = Duration::from_millis(100);
/// How often the container is asked for while its log is silent.
const ASK: Duration = Duration::from_millis(500);
/// How long a renamed file may still be written to: the runtime opens the new file before it leaves the old one.
const REOPEN: Duration = Duration::from_millis(300);
/// A line longer than this is no line of a log.
const MAX_LINE: usize = 1 << 20;

/// What of a log is wanted (PodLogOptions).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogOptions {
    pub follow: bool,
    /// The last lines only.
    pub tail_lines: Option<u64>,
    /// Nothing older.
    pub since: Option<Timestamp>,
    /// Each line begins with its time.
    pub timestamps: bool,
    /// No more bytes than this.
    pub limit_bytes: Option<u64>,
    /// One of the two outputs only.
    pub output: Option<Output>,
}

/// The log as a stream of text. A followed log ends once `alive` says that the container is not running and everything
/// it wrote was given out.
pub fn stream<A, F>(log: PathBuf, options: LogOptions, alive: A) -> impl Stream<Item = io::Result<Bytes>> + Send
where
    A: Fn() -> F + Send + 'static,
    F: Future<Output = bool> + Send + 'static,
{
    let open = Some((log, options));
    let state = Following { reader: None, open, alive, last_asked: Instant::now(), last_look: false };
    futures::stream::try_unfold(state, |mut state| async move { Ok(state.next().await?.map(|bytes| (bytes, state))) })
}

struct Following<A> {
    reader: Option<Reader>,
    open: Option<(PathBuf, LogOptions)>,
    alive: A,
    last_asked: Instant,
    /// The container ended; what comes now is the rest.
    last_look: bool,
}

impl<A, F> Following<A>
where
    A: Fn() -> F + Send,
    F: Future<Output = bool> + Send,
{
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        if let Some((log, options)) = self.open.take() {
            self.reader = Some(blocking(move || Reader::open(log, options)).await?);
        }
        loop {
            let Some(mut reader) = self.reader.take() else { return Ok(None) };
            let (reader, step) = blocking(move || {
                let step = reader.step()?;
                Ok((reader, step))
            })
            .await?;
            let (follow, behind) = (reader.options.follow, reader.rotated_at.is_some());
            self.reader = Some(reader);
            match step {
                Step::Text(bytes) => return Ok(Some(bytes)),
                Step::Limit => return Ok(None),
                Step::End if !follow || (self.last_look && !behind) => return Ok(None),
                Step::End => self.wait().await,
            }
        }
    }

    async fn wait(&mut self) {
        tokio::time::sleep(POLL).await;
        if !self.last_look && self.last_asked.elapsed() >= ASK {
            self.last_asked = Instant::now();
            if !(self.alive)().await {
                // What it wrote last may still be on its way through the runtime.
                tokio::time::sleep(POLL).await;
                self.last_look = true;
            }
        }
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

pub(super) enum Step {
    Text(Bytes),
    /// Nothing more for now.
    End,
    /// `limit_bytes` was reached.
    Limit,
}

/// Reads the files of a log in their order.
pub(super) struct Reader {
    log: PathBuf,
    options: LogOptions,
    /// Files still to be read, and from where.
    waiting: VecDeque<(LogFile, u64)>,
    current: Option<Box<dyn Read + Send>>,
    /// Device and inode of the file that was opened last.
    current_id: Option<(u64, u64)>,
    /// The start of a line whose end is not written yet.
    rest: Vec<u8>,
    /// The next entry begins a line.
    new_line: bool,
    last_timestamp: String,
    written: u64,
    rotated_at: Option<Instant>,
}

impl Reader {
    pub(super) fn open(log: PathBuf, options: LogOptions) -> io::Result<Self> {
        let waiting = begin(open_all(&log)?, &options)?;
        Ok(Self {
            log,
            options,
            waiting,
            current: None,
            current_id: None,
            rest: Vec::new(),
            new_line: true,
            last_timestamp: String::new(),
            written: 0,
            rotated_at: None,
        })
    }

    pub(super) fn step(&mut self) -> io::Result<Step> {
        loop {
            if self.options.limit_bytes.is_some_and(|limit| self.written >= limit) {
                return Ok(Step::Limit);
            }
            if self.current.is_none() && !self.advance()? {
                return Ok(Step::End);
            }
            let Some(source) = &mut self.current else { return Ok(Step::End) };
            let mut buffer = vec![0; CHUNK];
            let count = source.read(&mut buffer)?;
            if count > 0 {
                let text = self.format(&buffer[..count]);
                if !text.is_empty() {
                    return Ok(Step::Text(text));
                }
            } else if !self.waiting.is_empty() || self.is_left_behind() {
                self.current = None;
            } else {
                return Ok(Step::End);
            }
        }
    }

    /// Opens the next file; false if there is none now.
    fn advance(&mut self) -> io::Result<bool> {
        self.rotated_at = None;
        if self.waiting.is_empty() {
            self.waiting = self.newer_files()?;
        }
        let Some((file, position)) = self.waiting.pop_front() else { return Ok(false) };
        self.current_id = Some(file.id);
        self.current = Some(file.read_from(position)?);
        Ok(true)
    }

    /// What was written after the last entry that was read: usually the new file, but also the files of further
    /// rotations if the reader was slow.
    fn newer_files(&self) -> io::Result<VecDeque<(LogFile, u64)>> {
        let last: Option<Timestamp> = self.last_timestamp.parse().ok();
        let mut files = open_all(&self.log)?;
        files.retain(|file| Some(file.id) != self.current_id);
        if let Some(last) = last {
            // A file without an entry is the newest.
            files.retain(|file| file.first_timestamp().is_none_or(|first| first >= last));
        }
        Ok(files.into_iter().map(|file| (file, 0)).collect())
    }

    /// True once the log's name stands for another file than the one being read, and that one is surely complete.
    fn is_left_behind(&mut self) -> bool {
        if !self.options.follow {
            return false;
        }
        let moved = std::fs::metadata(&self.log).is_ok_and(|m| Some((m.dev(), m.ino())) != self.current_id);
        moved && self.rotated_at.get_or_insert_with(Instant::now).elapsed() >= REOPEN
    }

    fn format(&mut self, bytes: &[u8]) -> Bytes {
        let mut out = BytesMut::with_capacity(bytes.len());
        for piece in bytes.split_inclusive(|b| *b == b'\n') {
            match piece.strip_suffix(b"\n") {
                None => {
                    self.rest.extend_from_slice(piece);
                    if self.rest.len() > MAX_LINE {
                        self.rest.clear();
                    }
                }
                Some(line) if self.rest.is_empty() => self.entry(line, &mut out),
                Some(end) => {
                    let mut line = std::mem::take(&mut self.rest);
                    line.extend_from_slice(end);
                    self.entry(&line, &mut out);
                }
            }
        }
        if let Some(limit) = self.options.limit_bytes {
            out.truncate(usize::try_from(limit.saturating_sub(self.written)).unwrap_or(usize::MAX));
        }
        self.written += out.len() as u64;
        out.freeze()
    }

    fn entry(&mut self, line: &[u8], out: &mut BytesMut) {
        let Some(entry) = Entry::parse(line) else { return };
        self.last_timestamp.clear();
        self.last_timestamp.push_str(entry.timestamp);
        if self.options.output.is_some_and(|wanted| wanted != entry.output) {
            return;
        }
        let too_old = |since| entry.timestamp.parse::<Timestamp>().is_ok_and(|time| time < since);
        if self.options.since.is_some_and(too_old) {
            return;
        }
        if self.options.timestamps && self.new_line {
            out.extend_from_slice(entry.timestamp.as_bytes());
            out.extend_from_slice(b" ");
        }
        out.extend_from_slice(entry.text);
        if !entry.partial {
            out.extend_from_slice(b"\n");
        }
        self.new_line = !entry.partial;
    }
}

/// Which files to read from where.
fn begin(mut files: VecDeque<LogFile>, options: &LogOptions) -> io::Result<VecDeque<(LogFile, u64)>> {
    let mut chosen = VecDeque::new();
    if let Some(mut lines) = options.tail_lines {
        while let Some(mut file) = files.pop_back() {
            let (position, found) = file.tail(lines)?;
            chosen.push_front((file, position));
            lines = lines.saturating_sub(found);
            if lines == 0 {
                break;
            }
        }
        return Ok(chosen);
    }
    if let Some(since) = options.since {
        // A file is older than its successor's first entry.
        while files.len() > 1 && files[1].first_timestamp().is_some_and(|first| first <= since) {
            files.pop_front();
        }
    }
    Ok(files.into_iter().map(|file| (file, 0)).collect())
}
