//! One step of one stream: look into the pipe, write the log, take from the pipe what the log has. Blocks.
//!
//! Killed between writing and taking, a successor writes the same records again: each line at least once, and at most one
//! step twice.

use std::fs::File;
use std::io;
use std::time::SystemTime;

use bytes::Bytes;
use kernel::fifo;

use super::file::LogFile;
use super::record::{self, Stream, Tail, Timestamp};
use super::workshop::Tools;

/// As many bytes are moved before other streams may have a turn.
const TURN: usize = 16 * super::workshop::STEP;

/// A stream's share of what is moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cursor {
    pub stream: Stream,
    /// Bytes at the front of the pipe that those who attached have seen and the log has not.
    pub shown: usize,
    /// Somebody is attached.
    pub watched: bool,
}

/// How a step left the pipe.
#[derive(Debug)]
pub enum After {
    /// There is more to move at once.
    More,
    /// What is left is the beginning of a line, of so many bytes.
    Rest(usize),
    /// Nothing is left, and nobody writes.
    Abandoned,
    /// The log takes no more for now.
    Full(io::Error),
}

/// What a step did.
#[derive(Debug)]
pub struct Done {
    pub after: After,
    /// What those who attached have not seen.
    pub fresh: Option<Bytes>,
    pub shown: usize,
    /// Bytes that were taken from the pipe.
    pub moved: usize,
}

/// Moves until the pipe is empty or the turn is over. With somebody attached it stops after each look, so that he sees
/// the output as it comes. `tail` says what becomes of the beginning of a line that nothing waits behind.
///
/// # Errors
/// Where the pipe cannot be read. The tools are of no more use then.
pub fn step(pipe: &File, log: &mut Option<LogFile>, cursor: Cursor, tail: Tail, tools: &mut Tools) -> io::Result<Done> {
    let mut moved = 0;
    loop {
        let seen = match tools.peek.look(pipe, &mut tools.input) {
            Ok(0) => return Ok(Done { after: After::Abandoned, fresh: None, shown: 0, moved }),
            Ok(seen) => seen,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Ok(Done { after: After::Rest(0), fresh: None, shown: 0, moved });
            }
            Err(error) => return Err(error),
        };
        let input = &tools.input[..seen];
        let all = fifo::waiting(pipe)? <= seen;
        let now = if all { tail } else { Tail::Wait };
        let (mut taken, mut full) = write(log, cursor.stream, input, now, &mut tools.records);
        if taken == 0 && full.is_none() && tail != now {
            // A pipe of many small pieces shows less than a line at a time; it must not stay full.
            (taken, full) = write(log, cursor.stream, input, tail, &mut tools.records);
        }
        tools.peek.take(pipe, taken)?;
        moved += taken;
        let after = match full {
            Some(error) => After::Full(error),
            None if tools.records.len() >= record::ENOUGH => After::More,
            None if all => After::Rest(seen - taken),
            None if taken == 0 => After::Rest(seen),
            None => After::More,
        };
        if cursor.watched {
            let fresh = input.get(cursor.shown..).filter(|fresh| !fresh.is_empty()).map(Bytes::copy_from_slice);
            return Ok(Done { after, fresh, shown: cursor.shown.max(seen) - taken, moved });
        }
        if !matches!(after, After::More) || moved >= TURN {
            return Ok(Done { after, fresh: None, shown: seen - taken, moved });
        }
    }
}

/// Returns how many bytes of input are in the log, and why not more.
fn write(
    log: &mut Option<LogFile>,
    stream: Stream,
    input: &[u8],
    tail: Tail,
    records: &mut Vec<u8>,
) -> (usize, Option<io::Error>) {
    records.clear();
    let Some(log) = log else { return (input.len(), None) };
    let taken = record::encode(stream, Timestamp::of(SystemTime::now()), input, tail, records);
    match log.append(records) {
        Ok(()) => (taken, None),
        Err(short) => (short.carried.input, Some(short.source)),
    }
}
