//! Real named pipes, real log files.

use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use super::*;

const PATIENCE: Duration = Duration::from_secs(10);

/// A container without a runtime: its pipes, and their ends that containerd's shim would hold.
struct Bed {
    folder: tempfile::TempDir,
    paths: IoPaths,
    log: PathBuf,
}

impl Bed {
    fn new(tty: bool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let paths = IoPaths::of(&folder.path().join("io"), "", true, tty);
        paths.make().unwrap();
        let log = folder.path().join("0.log");
        Self { folder, paths, log }
    }

    fn open(&self) -> ContainerIo {
        ContainerIo::open(&self.paths, Some(&self.log), self.paths.stderr.is_none()).unwrap()
    }

    fn stdout(&self) -> File {
        writer(self.paths.stdout.as_ref().unwrap())
    }

    /// The log, each record as `STREAM TAG CONTENT`.
    fn records(&self) -> Vec<String> {
        let text = std::fs::read_to_string(&self.log).unwrap();
        // Not `lines`, which would eat the carriage return of a terminal.
        text.split_terminator('\n').map(|line| line.split_once(' ').unwrap().1.to_owned()).collect()
    }

    async fn records_are(&self, expected: &[&str]) {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while self.records() != expected && tokio::time::Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(self.records(), expected);
    }
}

/// As the shim opens it, with a reader beside it, and blocking for the writing of these tests.
fn writer(path: &Path) -> File {
    File::options().read(true).write(true).open(path).unwrap()
}

#[tokio::test]
async fn lines_of_both_streams_come_into_the_log_and_nothing_is_left() {
    let bed = Bed::new(false);
    let io = bed.open();
    let (mut stdout, mut stderr) = (bed.stdout(), writer(bed.paths.stderr.as_ref().unwrap()));
    stdout.write_all(b"one\ntwo\n").unwrap();
    bed.records_are(&["stdout F one", "stdout F two"]).await;
    stderr.write_all(b"oops\n").unwrap();
    bed.records_are(&["stdout F one", "stdout F two", "stderr F oops"]).await;
    stdout.write_all(b"three\nfour").unwrap();
    drop((stdout, stderr));
    assert!(io.drained(PATIENCE).await);
    assert_eq!(bed.records()[3..], ["stdout F three", "stdout P four"]);
}

#[tokio::test]
async fn many_empty_lines_are_many_records() {
    let bed = Bed::new(true);
    let io = bed.open();
    let mut stdout = bed.stdout();
    let feed = tokio::task::spawn_blocking(move || stdout.write_all(&[b'\n'; 200_000]).unwrap());
    feed.await.unwrap();
    assert!(io.drained(PATIENCE).await);
    assert_eq!(bed.records().len(), 200_000);
    assert!(bed.records().iter().all(|record| record == "stdout F "));
}

#[tokio::test]
async fn an_unfinished_line_is_seen_after_a_while_and_goes_on() {
    let bed = Bed::new(true);
    let io = bed.open();
    let mut stdout = bed.stdout();
    stdout.write_all(b"name? ").unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(bed.records(), [""; 0], "a line may take its time");
    bed.records_are(&["stdout P name? "]).await;
    stdout.write_all(b"x\r\n").unwrap();
    bed.records_are(&["stdout P name? ", "stdout F x\r"]).await;
    drop(stdout);
    assert!(io.drained(PATIENCE).await);
}

#[tokio::test]
async fn a_container_that_ended_before_we_came_is_drained_at_once() {
    let bed = Bed::new(false);
    let io = bed.open();
    assert!(io.drained(PATIENCE).await);
}

#[tokio::test]
async fn what_a_container_wrote_that_ended_before_we_came_is_in_the_log() {
    for (text, records) in
        [("one\ntwo\n", &["stdout F one", "stdout F two"][..]), ("one\nname? ", &["stdout F one", "stdout P name? "])]
    {
        let bed = Bed::new(true);
        // As the keeper holds it.
        let _held = fifo::open_reader(bed.paths.stdout.as_ref().unwrap()).unwrap();
        bed.stdout().write_all(text.as_bytes()).unwrap();
        let io = bed.open();
        assert!(io.drained(PATIENCE).await);
        assert_eq!(bed.records(), records);
    }
}

#[tokio::test]
async fn a_process_that_outlives_its_container_is_not_waited_for() {
    let bed = Bed::new(false);
    let io = bed.open();
    let mut stdout = bed.stdout();
    stdout.write_all(b"one\n").unwrap();
    assert!(!io.drained(Duration::from_millis(100)).await);
    stdout.write_all(b"two\n").unwrap();
    bed.records_are(&["stdout F one", "stdout F two"]).await;
    io.close().await;
}

/// Lines in, through `rotations` of the log, lines out.
fn numbered(from: usize, to: usize) -> String {
    (from..to).map(|n| format!("line {n} {}\n", "x".repeat(n % 200))).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rotation_loses_and_tears_nothing() {
    let bed = Bed::new(false);
    let io = bed.open();
    let mut stdout = bed.stdout();
    let done = Arc::new(AtomicBool::new(false));
    let feed = std::thread::spawn({
        let done = done.clone();
        move || {
            let mut lines = 0;
            while !done.load(Ordering::Relaxed) {
                stdout.write_all(numbered(lines, lines + 500).as_bytes()).unwrap();
                lines += 500;
            }
            lines
        }
    });
    let mut files = Vec::new();
    for n in 0..20 {
        tokio::time::sleep(Duration::from_millis(10)).await;
        let old = bed.folder.path().join(format!("0.log.{n}"));
        std::fs::rename(&bed.log, &old).unwrap();
        io.reopen_log().await.unwrap();
        files.push(old);
    }
    done.store(true, Ordering::Relaxed);
    let lines = feed.join().unwrap();
    assert!(io.drained(PATIENCE).await);
    files.push(bed.log.clone());
    let written: String = files.iter().map(|file| std::fs::read_to_string(file).unwrap()).collect();
    let got: String =
        written.lines().map(|line| line.split_once(" stdout F ").expect(line).1.to_owned() + "\n").collect();
    assert!(got == numbered(0, lines), "the lines are others than those written");
}

/// A successor goes on where its predecessor stopped, at whatever instruction that was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_loses_nothing() {
    let bed = Bed::new(false);
    let mut stdout = bed.stdout();
    let feed = std::thread::spawn(move || {
        for n in 0..40 {
            stdout.write_all(numbered(n * 500, (n + 1) * 500).as_bytes()).unwrap();
        }
        stdout
    });
    while !feed.is_finished() {
        let io = bed.open();
        tokio::time::sleep(Duration::from_micros(700)).await;
        io.close().await;
    }
    let stdout = feed.join().unwrap();
    let io = bed.open();
    drop(stdout);
    assert!(io.drained(PATIENCE).await);
    let text = std::fs::read_to_string(&bed.log).unwrap();
    let mut lines: Vec<&str> = text.lines().map(|line| line.split_once(" stdout F ").expect(line).1).collect();
    // A step that was written and not taken comes twice: the same lines, in the same order.
    let mut at = 1;
    while at < lines.len() {
        let number = |line: &str| line.split(' ').nth(1).and_then(|n| n.parse::<usize>().ok()).unwrap();
        if number(lines[at]) <= number(lines[at - 1]) {
            lines.remove(at);
        } else {
            at += 1;
        }
    }
    assert!(lines.join("\n") + "\n" == numbered(0, 20_000), "lines are missing");
}

/// Killed between the write and the taking, as `step` orders them: the same step comes again, and nothing else does.
#[test]
fn a_step_that_was_not_finished_comes_again() {
    let bed = Bed::new(false);
    let mut stdout = bed.stdout();
    let pipe = fifo::open_reader(bed.paths.stdout.as_ref().unwrap()).unwrap();
    stdout.write_all(b"one\ntwo\nthr").unwrap();
    let mut peek = fifo::Peek::new(1 << 16).unwrap();
    let mut input = [0; 64];
    let seen = peek.look(&pipe, &mut input).unwrap();
    let mut records = Vec::new();
    let now = record::Timestamp::of(std::time::SystemTime::now());
    record::encode(Stream::Stdout, now, &input[..seen], record::Tail::Wait, &mut records);
    LogFile::open(&bed.log).unwrap().append(&records[..records.len() - 2]).unwrap();
    drop(pipe);

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let io = bed.open();
        stdout.write_all(b"ee\n").unwrap();
        drop(stdout);
        assert!(io.drained(PATIENCE).await);
    });
    assert_eq!(bed.records(), ["stdout F one", "stdout F one", "stdout F two", "stdout F three"]);
}

#[test]
fn a_full_disk_holds_the_container_and_a_rotation_sets_it_free() {
    let bed = Bed::new(false);
    let logs = bed.folder.path().join("logs");
    std::fs::create_dir(&logs).unwrap();
    let log = logs.join("0.log");
    let thread = std::thread::spawn(move || {
        if let Err(error) = kernel::mount::own_namespace() {
            eprintln!("SKIPPED: {error}");
            return;
        }
        kernel::mount::tmpfs(&logs, Some(64 * 1024), 0o700).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread();
        // The blocking threads are made by this thread, and so are in its mount namespace.
        let runtime = { runtime }.enable_all().build().unwrap();
        runtime.block_on(async {
            let io = ContainerIo::open(&bed.paths, Some(&log), false).unwrap();
            let mut stdout = bed.stdout();
            let feed = std::thread::spawn(move || stdout.write_all(numbered(0, 5000).as_bytes()).unwrap());
            let mut got = String::new();
            while !feed.is_finished() || got.lines().count() < 5000 {
                tokio::time::sleep(Duration::from_millis(50)).await;
                // Whatever is in the log is whole, full disk or not.
                let text = std::fs::read_to_string(&log).unwrap();
                assert!(text.is_empty() || text.ends_with('\n'));
                std::fs::rename(&log, logs.join("old")).unwrap();
                io.reopen_log().await.unwrap();
                let text = std::fs::read_to_string(logs.join("old")).unwrap();
                got.extend(text.lines().map(|line| line.split_once(" stdout F ").expect(line).1.to_owned() + "\n"));
                std::fs::remove_file(logs.join("old")).unwrap();
            }
            assert!(got == numbered(0, 5000), "the lines are others than those written");
            assert!(io.drained(PATIENCE).await);
        });
        kernel::mount::unmount_lazy(&logs).unwrap();
    });
    thread.join().unwrap();
}

fn client() -> (DuplexStream, Output) {
    let (client, server) = tokio::io::duplex(1 << 16);
    (client, Box::new(server))
}

#[tokio::test]
async fn a_client_sees_output_from_now_on_and_prompts_at_once() {
    let bed = Bed::new(false);
    let io = bed.open();
    let mut stdout = bed.stdout();
    stdout.write_all(b"before\n").unwrap();
    bed.records_are(&["stdout F before"]).await;
    let (mut client, output) = client();
    let attached = tokio::spawn({
        let io = io.clone();
        async move {
            io.attach(AttachStreams { stdout: Some(output), ..AttachStreams::default() }, InputEnd::Detach).await;
        }
    });
    while io.0.shared.audience(Stream::Stdout).is_empty() {
        tokio::task::yield_now().await;
    }
    stdout.write_all(b"$ ").unwrap();
    let mut prompt = [0; 2];
    client.read_exact(&mut prompt).await.unwrap();
    assert_eq!(&prompt, b"$ ");
    stdout.write_all(b"ls\nfile\n").unwrap();
    drop(stdout);
    assert!(io.drained(PATIENCE).await);
    let mut rest = String::new();
    client.read_to_string(&mut rest).await.unwrap();
    assert_eq!(rest, "ls\nfile\n");
    attached.await.unwrap();
    assert_eq!(bed.records(), ["stdout F before", "stdout F $ ls", "stdout F file"]);
}

#[tokio::test]
async fn the_end_of_input_detaches_or_closes() {
    let bed = Bed::new(false);
    let io = bed.open();
    let mut stdin =
        tokio::net::unix::pipe::OpenOptions::new().open_receiver(bed.paths.stdin.as_ref().unwrap()).unwrap();
    let input = |text: &'static [u8]| -> AttachStreams {
        AttachStreams { stdin: Some(Box::new(text)), stdout: Some(client().1), ..AttachStreams::default() }
    };
    io.attach(input(b"first "), InputEnd::Detach).await;
    let mut got = [0; 6];
    stdin.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"first ");

    let told = Arc::new(AtomicBool::new(false));
    let close = InputEnd::Close(Box::pin({
        let told = told.clone();
        async move { told.store(true, Ordering::Relaxed) }
    }));
    let streams = input(b"last");
    let gone = streams.gone.clone();
    let attached = tokio::spawn({
        let io = io.clone();
        async move { io.attach(streams, close).await }
    });
    let mut rest = String::new();
    stdin.read_to_string(&mut rest).await.unwrap();
    assert_eq!(rest, "last");
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert!(told.load(Ordering::Relaxed) && !attached.is_finished(), "output goes on after the input's end");
    gone.cancel();
    attached.await.unwrap();
}

#[tokio::test]
async fn capture_keeps_its_limit_and_reads_on() {
    let bed = Bed::new(false);
    let capture = Capture::open(&bed.paths, 1000).unwrap();
    let (mut stdout, mut stderr) = (bed.stdout(), writer(bed.paths.stderr.as_ref().unwrap()));
    let feed = tokio::task::spawn_blocking(move || {
        stdout.write_all(&vec![b'x'; 1 << 20]).unwrap();
        stderr.write_all(b"oops").unwrap();
    });
    feed.await.unwrap();
    let [out, err] = capture.finish(PATIENCE).await;
    assert_eq!(out, Captured { bytes: vec![b'x'; 1000], cut: true });
    assert_eq!(err, Captured { bytes: b"oops".to_vec(), cut: false });
}

#[tokio::test]
async fn capture_does_not_wait_for_who_stays_behind() {
    let bed = Bed::new(false);
    let capture = Capture::open(&bed.paths, CAPTURE_LIMIT).unwrap();
    let mut stdout = bed.stdout();
    stdout.write_all(b"hi").unwrap();
    let [out, err] = capture.finish(Duration::from_millis(100)).await;
    assert_eq!((out.bytes.as_slice(), err), (&b"hi"[..], Captured::default()));
}

#[tokio::test]
async fn a_commands_streams_reach_its_client_and_a_lost_client_holds_nothing_up() {
    let bed = Bed::new(false);
    let command = CommandIo::open(&bed.paths).unwrap();
    let (mut near, output) = client();
    let (mut typed, input) = tokio::io::duplex(100);
    let streams = AttachStreams { stdin: Some(Box::new(input)), stdout: Some(output), ..AttachStreams::default() };
    let relay = tokio::spawn(command.relay(streams, InputEnd::Close(Box::pin(async {}))));
    // The client is through before the shim comes to read, which under load it does late.
    typed.write_all(b"echo").await.unwrap();
    drop(typed);
    tokio::time::sleep(Duration::from_millis(50)).await;
    let stdin = bed.paths.stdin.clone().unwrap();
    let read = tokio::task::spawn_blocking(move || std::fs::read_to_string(stdin).unwrap());
    assert_eq!(tokio::time::timeout(PATIENCE, read).await.unwrap().unwrap(), "echo");

    let (mut stdout, stderr) = (bed.stdout(), writer(bed.paths.stderr.as_ref().unwrap()));
    stdout.write_all(b"hello").unwrap();
    let mut hello = [0; 5];
    near.read_exact(&mut hello).await.unwrap();
    drop(near);
    let feed = tokio::task::spawn_blocking(move || {
        stdout.write_all(&vec![b'x'; 1 << 20]).unwrap();
        drop(stderr);
    });
    feed.await.unwrap();
    tokio::time::timeout(PATIENCE, relay).await.unwrap().unwrap();
}

#[test]
fn paths_follow_what_is_asked_for() {
    let folder = Path::new("/run/x");
    let terminal = IoPaths::of(folder, "", false, true);
    assert_eq!(terminal, IoPaths { stdin: None, stdout: Some("/run/x/stdout".into()), stderr: None });
    let command = IoPaths::of(folder, "e1", true, false);
    assert_eq!(command.stdin, Some("/run/x/e1-stdin".into()));
    assert_eq!(command.stderr, Some("/run/x/e1-stderr".into()));
    assert_eq!(IoPaths::text(&terminal.stdin), "");

    let bed = Bed::new(false);
    bed.paths.make().unwrap();
    bed.paths.remove().unwrap();
    bed.paths.remove().unwrap();
    assert_eq!(std::fs::read_dir(bed.folder.path().join("io")).unwrap().count(), 0);
}
