//! The records of a CRI log file: `TIME STREAM TAG CONTENT`, one a line. Pure.
//!
//! The tag is `F` for a line, or the rest of one, and `P` for a part of one that goes on in the stream's next record.
//! Source: the CRI logging design (kubernetes/design-proposals-archive, node/kubelet-cri-logging.md).

use std::time::SystemTime;

/// The longest content of a record, bytes; longer lines become several. As containerd's default.
pub const MAX_LINE: usize = 16 * 1024;

/// [`encode`] stops when it has made so much, bytes: empty lines become forty times what they were.
pub const ENOUGH: usize = 1024 * 1024;

/// Which output of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    pub const ALL: [Self; 2] = [Self::Stdout, Self::Stderr];

    pub fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// What becomes of bytes at the end of the input that no newline follows yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tail {
    /// They are left for later.
    Wait,
    /// They become a partial record: no more came for a while, or will come.
    Write,
}

/// Length of everything before a record's content.
const HEAD: usize = TIME + " stdout F ".len();
const TIME: usize = "2006-01-02T15:04:05.000000000Z".len();

/// A point in time as the log writes it: RFC 3339 in UTC with nine digits after the second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timestamp([u8; TIME]);

impl Timestamp {
    pub fn of(time: SystemTime) -> Self {
        let time = time::OffsetDateTime::from(time);
        let mut text = *b"0000-00-00T00:00:00.000000000Z";
        let mut put = |at: usize, width: usize, mut value: u32| {
            for digit in text[at..at + width].iter_mut().rev() {
                *digit = b'0' + (value % 10) as u8;
                value /= 10;
            }
        };
        put(0, 4, time.year().unsigned_abs());
        put(5, 2, u8::from(time.month()).into());
        put(8, 2, time.day().into());
        put(11, 2, time.hour().into());
        put(14, 2, time.minute().into());
        put(17, 2, time.second().into());
        put(20, 9, time.nanosecond());
        Self(text)
    }
}

/// Appends the records of `input` to `out`, until that has [`ENOUGH`], and returns how many bytes of the input they carry.
pub fn encode(stream: Stream, time: Timestamp, input: &[u8], tail: Tail, out: &mut Vec<u8>) -> usize {
    let full = head(stream, time, b'F');
    let part = head(stream, time, b'P');
    let put = |out: &mut Vec<u8>, head: &[u8; HEAD], content: &[u8]| {
        out.reserve(HEAD + content.len() + 1);
        out.extend_from_slice(head);
        out.extend_from_slice(content);
        out.push(b'\n');
    };
    let mut rest = input;
    while out.len() < ENOUGH {
        match newline(&rest[..rest.len().min(MAX_LINE + 1)]) {
            Some(at) => {
                put(out, &full, &rest[..at]);
                rest = &rest[at + 1..];
            }
            None if rest.len() > MAX_LINE => {
                put(out, &part, &rest[..MAX_LINE]);
                rest = &rest[MAX_LINE..];
            }
            None if tail == Tail::Write && !rest.is_empty() => {
                put(out, &part, rest);
                rest = &[];
            }
            None => break,
        }
    }
    input.len() - rest.len()
}

/// Of the first `len` bytes of what [`encode`] made: how many are whole records, and how many bytes of input these carry.
pub fn carried(records: &[u8], len: usize) -> Carried {
    let mut done = Carried::default();
    while let Some(rest) = records.get(done.records + HEAD..len) {
        let Some(content) = newline(rest) else { break };
        let full = records[done.records + HEAD - 2] == b'F';
        done.records += HEAD + content + 1;
        done.input += content + usize::from(full);
    }
    done
}

/// What whole records amount to, bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Carried {
    pub records: usize,
    pub input: usize,
}

fn head(stream: Stream, time: Timestamp, tag: u8) -> [u8; HEAD] {
    let mut head = [b' '; HEAD];
    head[..TIME].copy_from_slice(&time.0);
    head[TIME + 1..TIME + 7].copy_from_slice(stream.name().as_bytes());
    head[TIME + 8] = tag;
    head
}

/// Where the first newline is, eight bytes at a step.
fn newline(bytes: &[u8]) -> Option<usize> {
    const ONES: u64 = u64::from_ne_bytes([0x01; 8]);
    const HIGHS: u64 = u64::from_ne_bytes([0x80; 8]);
    let (words, _) = bytes.as_chunks::<8>();
    let hit = words.iter().position(|word| {
        // A byte that is zero borrows from its high bit (Warren, Hacker's Delight, 6-1).
        let word = u64::from_ne_bytes(*word) ^ (ONES * u64::from(b'\n'));
        word.wrapping_sub(ONES) & !word & HIGHS != 0
    });
    let from = hit.unwrap_or(words.len()) * 8;
    bytes[from..].iter().position(|byte| *byte == b'\n').map(|at| from + at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    fn at(millis: u64) -> Timestamp {
        Timestamp::of(SystemTime::UNIX_EPOCH + Duration::from_millis(millis))
    }

    fn encoded(input: &[u8], tail: Tail) -> (String, usize) {
        let mut out = Vec::new();
        let carried = encode(Stream::Stderr, at(0), input, tail, &mut out);
        (String::from_utf8(out).unwrap().replace("1970-01-01T00:00:00.000000000Z stderr ", ""), carried)
    }

    #[test]
    fn timestamps_have_nine_digits() {
        let time = SystemTime::UNIX_EPOCH + Duration::new(1_790_000_000, 45);
        assert_eq!(&Timestamp::of(time).0, b"2026-09-21T14:13:20.000000045Z");
    }

    #[test]
    fn lines_are_records_and_the_rest_waits_or_is_a_part() {
        assert_eq!(encoded(b"one\n\ntwo\r\nthr", Tail::Wait), ("F one\nF \nF two\r\n".into(), 10));
        assert_eq!(encoded(b"one\nthr", Tail::Write), ("F one\nP thr\n".into(), 7));
        assert_eq!(encoded(b"", Tail::Write), (String::new(), 0));
    }

    #[test]
    fn long_lines_are_cut_at_the_limit_and_not_before() {
        let exact = "x".repeat(MAX_LINE);
        assert_eq!(encoded(format!("{exact}\n").as_bytes(), Tail::Wait), (format!("F {exact}\n"), MAX_LINE + 1));
        assert_eq!(encoded(exact.as_bytes(), Tail::Wait), (String::new(), 0));
        assert_eq!(
            encoded(format!("{exact}yz\n").as_bytes(), Tail::Wait),
            (format!("P {exact}\nF yz\n"), MAX_LINE + 3)
        );
    }

    #[test]
    fn what_is_made_at_once_is_bounded() {
        let mut out = Vec::new();
        let taken = encode(Stream::Stdout, at(0), &[b'\n'; 100_000], Tail::Write, &mut out);
        assert_eq!(taken, ENOUGH.div_ceil(HEAD + 1));
        assert_eq!(out.len(), taken * (HEAD + 1));
    }

    #[test]
    fn records_count_what_they_carry() {
        let mut out = Vec::new();
        encode(Stream::Stdout, at(5), b"one\ntwo", Tail::Write, &mut out);
        let first = HEAD + 4;
        assert_eq!(carried(&out, out.len()), Carried { records: out.len(), input: 7 });
        assert_eq!(carried(&out, out.len() - 1), Carried { records: first, input: 4 });
        assert_eq!(carried(&out, first), Carried { records: first, input: 4 });
        assert_eq!(carried(&out, 10), Carried::default());
    }

    /// What a reader of the log makes of it: the bytes that were written.
    fn decode(records: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for record in records.split_inclusive(|byte| *byte == b'\n') {
            let content = &record[HEAD..];
            let part = record[HEAD - 2] == b'P';
            bytes.extend_from_slice(if part { &content[..content.len() - 1] } else { content });
        }
        bytes
    }

    proptest! {
        /// However the bytes come in and wherever a write breaks off, the log says what was written.
        #[test]
        fn nothing_is_lost_or_told_twice(
            lines in proptest::collection::vec((0usize..40_000, any::<u8>().prop_filter("no newline", |b| *b != b'\n')), 0..6),
            step in 1usize..70_000,
            cut in any::<prop::sample::Index>(),
        ) {
            let mut input = Vec::new();
            for (len, byte) in lines {
                input.resize(input.len() + len, byte);
                input.push(b'\n');
            }
            input.pop();
            let (mut log, mut from, mut seen) = (Vec::new(), 0, 0);
            while from < input.len() {
                seen = (seen.max(from) + step).min(input.len());
                let tail = if seen == input.len() { Tail::Write } else { Tail::Wait };
                let mut records = Vec::new();
                let whole = encode(Stream::Stdout, at(1), &input[from..seen], tail, &mut records);
                prop_assert_eq!(carried(&records, records.len()), Carried { records: records.len(), input: whole });
                let kept = carried(&records, if records.is_empty() { 0 } else { cut.index(records.len()) });
                log.extend_from_slice(&records[..kept.records]);
                from += kept.input;
                records.clear();
                from += encode(Stream::Stdout, at(2), &input[from..seen], tail, &mut records);
                log.extend_from_slice(&records);
            }
            prop_assert_eq!(decode(&log), input);
        }

        #[test]
        fn finds_the_first_newline(bytes in proptest::collection::vec(prop_oneof![Just(b'\n'), any::<u8>(), Just(0x8a)], 0..60)) {
            prop_assert_eq!(newline(&bytes), bytes.iter().position(|b| *b == b'\n'));
        }
    }
}
