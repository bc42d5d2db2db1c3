//! How fast a container's output gets into its log: lines of 100 bytes through a named pipe, as containerd's shim writes
//! them, into a file on tmpfs. Prints one line of JSON.
//!
//!     cargo bench -p cri-shim --bench log [-- FOLDER]
//!
//! `mb_per_s` is by the clock, the writer running beside; `mb_per_cpu_s` by the CPU time of all threads but the writer's:
//! what one core does if it has nothing else to do. The aim is 200.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use cri_shim::log::{ContainerIo, IoPaths};

const LINE: usize = 100;
/// As much as containerd's shim hands on at once.
const CHUNK: usize = 4096;
const TOTAL: usize = 1 << 30;
/// The log is rotated at this size, so that tmpfs stays small.
const ROTATE: u64 = 128 << 20;

fn main() {
    // cargo adds --bench.
    let folder = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    let folder = PathBuf::from(folder.unwrap_or_else(|| "/dev/shm".into()));
    let folder = tempfile::tempdir_in(&folder).expect("a folder to write to");
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    let line = runtime.block_on(measure(folder.path()));
    println!("{line}");
}

async fn measure(folder: &Path) -> serde_json::Value {
    let paths = IoPaths::of(&folder.join("io"), "", false, true);
    paths.make().expect("named pipes");
    let log = folder.join("0.log");
    let io = ContainerIo::open(&paths, Some(&log), true).expect("a log");
    let (report, tid) = mpsc::channel();
    let (began, cpu) = (Instant::now(), cpu_of_others(0));
    let writer = std::thread::spawn(move || write(&paths, &report));
    let tid = tid.recv().expect("the writer's thread");
    let mut written = 0;
    loop {
        let drained = io.drained(Duration::from_millis(100)).await;
        let len = fs::metadata(&log).expect("the log").len();
        if len >= ROTATE || drained {
            fs::rename(&log, folder.join("old")).expect("a rotation");
            io.reopen_log().await.expect("a new log");
            written += fs::metadata(folder.join("old")).expect("the old log").len();
        }
        if drained {
            break;
        }
    }
    let (seconds, cpu) = (began.elapsed().as_secs_f64(), (cpu_of_others(tid) - cpu).as_secs_f64());
    writer.join().expect("the writer");
    let lines = TOTAL / CHUNK * (CHUNK / LINE);
    // A time, a stream and a tag for each line.
    assert_eq!(written, (lines * (LINE + 40)) as u64, "lines were lost");
    let megabytes = (lines * LINE) as f64 / 1e6;
    let rate = |seconds: f64| (megabytes / seconds).round();
    serde_json::json!({
        "log_mb": megabytes.round(), "line_bytes": LINE, "mb_per_s": rate(seconds), "mb_per_cpu_s": rate(cpu),
    })
}

fn write(paths: &IoPaths, tid: &mpsc::Sender<u32>) {
    let own = fs::read_link("/proc/thread-self").expect("/proc");
    let own = own.file_name().and_then(|tid| tid.to_str()?.parse().ok()).expect("a thread's number");
    let path = paths.stdout.as_ref().expect("an output");
    let mut pipe = File::options().read(true).write(true).open(path).expect("the pipe");
    tid.send(own).expect("a receiver");
    let line = [&[b'x'; LINE - 1][..], b"\n"].concat();
    let chunk = line.repeat(CHUNK / LINE);
    for _ in 0..TOTAL / CHUNK {
        pipe.write_all(&chunk).expect("a reader");
    }
}

/// CPU time that this process's threads took, but for one.
fn cpu_of_others(but: u32) -> Duration {
    let tasks = fs::read_dir("/proc/self/task").expect("/proc").flatten();
    let of_task = |task: fs::DirEntry| -> Option<u64> {
        if task.file_name().to_str()?.parse::<u32>().ok()? == but {
            return None;
        }
        fs::read_to_string(task.path().join("schedstat")).ok()?.split(' ').next()?.parse().ok()
    };
    Duration::from_nanos(tasks.filter_map(of_task).sum())
}
