//! Whatever a container writes, the CRI log holds it, and who reads the log gets it back. The first byte says how much
//! comes at a time.
#![no_main]

use std::time::SystemTime;

use agent::log::Entry;
use cri_shim::log::{Carried, Stream, Tail, Timestamp, carried, encode};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((first, output)) = bytes.split_first() else { return };
    let time = Timestamp::of(SystemTime::UNIX_EPOCH);
    let (mut log, mut rest) = (Vec::new(), output);
    while !rest.is_empty() {
        let piece = &rest[..rest.len().min(usize::from(*first) + 1)];
        let before = log.len();
        let taken = encode(Stream::Stdout, time, piece, Tail::Write, &mut log);
        let records = log.len() - before;
        assert_eq!(carried(&log[before..], records), Carried { records, input: taken });
        rest = &rest[taken..];
    }
    let mut read = Vec::new();
    for line in log.split_inclusive(|byte| *byte == b'\n') {
        let line = line.strip_suffix(b"\n").expect("a record ends with its line");
        let entry = Entry::parse(line).expect("a record is read");
        read.extend_from_slice(entry.text);
        read.extend((!entry.partial).then_some(b'\n'));
    }
    assert_eq!(read, output);
    for line in output.split(|byte| *byte == b'\n') {
        let _ = Entry::parse(line);
    }
});
