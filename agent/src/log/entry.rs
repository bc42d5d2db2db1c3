//! One line of a log in the CRI's format: `2026-11-21T08:30:00.123456789Z stdout F text`.

/// Where a container wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    Stdout,
    Stderr,
}

/// One line, without its newline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// RFC 3339 with nanoseconds.
    pub timestamp: &'a str,
    pub output: Output,
    /// The text goes on in the next entry.
    pub partial: bool,
    pub text: &'a [u8],
}

impl<'a> Entry<'a> {
    /// Reads a line; `None` if it is not in the format.
    pub fn parse(line: &'a [u8]) -> Option<Self> {
        let mut parts = line.splitn(4, |b| *b == b' ');
        let timestamp = std::str::from_utf8(parts.next()?).ok().filter(|t| t.len() >= 20)?;
        let output = match parts.next()? {
            b"stdout" => Output::Stdout,
            b"stderr" => Output::Stderr,
            _ => return None,
        };
        // Tags are separated by colons; the first says whether the line is whole.
        let tag = parts.next()?.split(|b| *b == b':').next()?;
        let partial = match tag {
            b"F" => false,
            b"P" => true,
            _ => return None,
        };
        Some(Self { timestamp, output, partial, text: parts.next().unwrap_or_default() })
    }
}
