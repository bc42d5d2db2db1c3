use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::jiff::Timestamp;

use super::reader::{Reader, Step};
use super::rotate::{Tidy, make_room_and_rename, tidy};
use super::*;

struct Log(PathBuf);

impl Log {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("volumes-log-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).unwrap();
        Self(dir.join("0.log"))
    }

    /// Appends entry `n`, written at second `n`.
    fn write(&self, n: u64) {
        self.raw(&format!("{} stdout F line {n}\n", at(n)));
    }

    fn raw(&self, text: &str) {
        let mut file = fs::OpenOptions::new().create(true).append(true).open(&self.0).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }

    fn rotate(&self, second: u64) {
        make_room_and_rename(&self.0, 5, time(second)).unwrap();
    }

    fn read(&self, options: LogOptions) -> String {
        let mut reader = Reader::open(self.0.clone(), options).unwrap();
        let mut out = Vec::new();
        while let Step::Text(bytes) = reader.step().unwrap() {
            out.extend_from_slice(&bytes);
        }
        String::from_utf8(out).unwrap()
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(self.0.parent().unwrap());
    }
}

fn time(second: u64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + i64::try_from(second).unwrap()).unwrap()
}

fn at(second: u64) -> String {
    time(second).strftime("%Y-%m-%dT%H:%M:%S.000000000Z").to_string()
}

fn lines(numbers: impl IntoIterator<Item = u64>) -> String {
    numbers.into_iter().map(|n| format!("line {n}\n")).collect()
}

#[test]
fn entries_of_the_format() {
    let entry = Entry::parse(b"2016-10-06T00:17:09.669794202Z stderr P a b").unwrap();
    assert_eq!((entry.output, entry.partial, entry.text), (Output::Stderr, true, b"a b".as_slice()));
    assert_eq!(Entry::parse(b"2016-10-06T00:17:09.669794202Z stdout F").unwrap().text, b"");
    assert_eq!(Entry::parse(b"garbage"), None);
}

#[test]
fn one_text_over_rotated_and_compressed_files() {
    let log = Log::new("chain");
    for n in 0..12 {
        if n > 0 && n % 3 == 0 {
            log.rotate(n);
        }
        log.write(n);
    }
    let compressed: Vec<_> =
        super::files::rotated(&log.0).unwrap().iter().map(|p| p.extension().unwrap() == "gz").collect();
    assert_eq!(compressed, [true, true, false]);
    let tail = |n| log.read(LogOptions { tail_lines: Some(n), ..LogOptions::default() });
    assert_eq!(log.read(LogOptions::default()), lines(0..12));
    assert_eq!([tail(0), tail(1), tail(3), tail(5), tail(8)], [0, 1, 3, 5, 8].map(|n| lines(12 - n..12)));
    assert_eq!(tail(100), lines(0..12));
    assert_eq!(log.read(LogOptions { since: Some(time(7)), ..LogOptions::default() }), lines(7..12));
    assert_eq!(log.read(LogOptions { limit_bytes: Some(10), ..LogOptions::default() }), "line 0\nlin");
    let stamped = log.read(LogOptions { timestamps: true, tail_lines: Some(1), ..LogOptions::default() });
    assert_eq!(stamped, format!("{} line 11\n", at(11)));
}

#[test]
fn partial_entries_are_one_line_and_the_tail_of_a_large_log_is_found() {
    let log = Log::new("partial");
    log.raw(&format!("{} stdout P one \n{} stdout F two\n{} stderr F three\n", at(1), at(2), at(3)));
    assert_eq!(log.read(LogOptions::default()), "one two\nthree\n");
    let one = LogOptions { timestamps: true, output: Some(Output::Stdout), ..LogOptions::default() };
    assert_eq!(log.read(one), format!("{} one two\n", at(1)));
    let many: String = (0..20_000).map(|n| format!("{} stdout F line {n}\n", at(4))).collect();
    log.raw(&many);
    let tail = log.read(LogOptions { tail_lines: Some(15_000), ..LogOptions::default() });
    assert_eq!(tail, lines(5_000..20_000));
}

#[test]
fn the_oldest_go_and_all_but_the_newest_are_compressed() {
    let path = |name: &str| PathBuf::from(name);
    let rotated = [path("l.1.gz"), path("l.2.gz"), path("l.3"), path("l.4")];
    assert_eq!(
        tidy(&rotated, 5),
        [Tidy::Remove(path("l.1.gz")), Tidy::Compress(path("l.3")), Tidy::Compress(path("l.4"))]
    );
    assert_eq!(tidy(&rotated[..1], 2), [Tidy::Remove(path("l.1.gz"))]);
}

#[tokio::test]
async fn a_follower_sees_every_line_over_rotations() {
    let log = Arc::new(Log::new("follow"));
    log.write(0);
    let alive = Arc::new(AtomicBool::new(true));
    let asked = alive.clone();
    let options = LogOptions { follow: true, ..LogOptions::default() };
    let text = stream(log.0.clone(), options, move || std::future::ready(asked.load(Ordering::Relaxed)));
    let writer = {
        let log = log.clone();
        std::thread::spawn(move || {
            for n in 1..60 {
                // The second rotation comes before the reader could have seen the first.
                if [10, 12, 45].contains(&n) {
                    // The runtime may write once more into the renamed file before it opens the new one.
                    let mut old = fs::OpenOptions::new().append(true).open(&log.0).unwrap();
                    log.rotate(n);
                    writeln!(old, "{} stdout F line {n}", at(n)).unwrap();
                } else {
                    log.write(n);
                }
                std::thread::sleep(Duration::from_millis(if n < 15 { 1 } else { 20 }));
            }
            alive.store(false, Ordering::Relaxed);
        })
    };
    let read = text.map(|chunk| String::from_utf8(chunk.unwrap().to_vec()).unwrap()).collect::<String>();
    assert_eq!(tokio::time::timeout(Duration::from_secs(20), read).await.unwrap(), lines(0..60));
    writer.join().unwrap();
}

#[test]
fn pods_with_logs_are_known_by_uid() {
    let log = Log::new("pods");
    let root = log.0.parent().unwrap();
    fs::create_dir_all(root.join("ns_a_u1/c")).unwrap();
    fs::create_dir_all(root.join("ns_b_u2")).unwrap();
    fs::write(root.join("no_folder_u3"), "").unwrap();
    let mut found = pods_with_logs(root);
    found.sort();
    assert_eq!(found, [("u1".into(), root.join("ns_a_u1")), ("u2".into(), root.join("ns_b_u2"))]);
}
