//! The log writer killed by SIGKILL, again and again at whatever instruction it is, while a container writes: no line is
//! lost or torn, and what comes twice is what one step moves.
//!
//! The writer is this program itself, started with the folder in [`FOLDER`].

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use cri_shim::log::{ContainerIo, IoPaths};

const FOLDER: &str = "LOG_KILL_FOLDER";
const LINES: usize = 400_000;

fn paths(folder: &Path) -> IoPaths {
    IoPaths::of(&folder.join("io"), "", false, true)
}

fn line(number: usize) -> String {
    format!("line {number} {}", "x".repeat(number % 120))
}

/// Follows until it is killed, or until the writer has closed its end.
#[test]
fn follower() {
    let Some(folder) = std::env::var_os(FOLDER).map(PathBuf::from) else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        let io = ContainerIo::open(&paths(&folder), Some(&folder.join("0.log")), true).unwrap();
        File::create(folder.join("following")).unwrap();
        while !folder.join("closed").exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(io.drained(Duration::from_secs(30)).await);
        File::create(folder.join("drained")).unwrap();
    });
}

fn start(folder: &Path) -> std::io::Result<Child> {
    let own = std::env::current_exe()?;
    Command::new(own).args(["--exact", "follower", "--nocapture"]).env(FOLDER, folder).spawn()
}

#[test]
fn killed_at_any_instruction_it_loses_no_line() {
    if std::env::var_os(FOLDER).is_some() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let paths = paths(folder.path());
    paths.make().unwrap();
    // As containerd's shim holds it: both ends, as long as the container runs.
    let mut pipe = File::options().read(true).write(true).open(paths.stdout.as_ref().unwrap()).unwrap();
    let writer = std::thread::spawn(move || {
        for from in (0..LINES).step_by(250) {
            let chunk: String = (from..from + 250).map(|number| line(number) + "\n").collect();
            pipe.write_all(chunk.as_bytes()).unwrap();
        }
        pipe
    });
    let mut kills = 0;
    while !writer.is_finished() {
        let mut follower = start(folder.path()).unwrap();
        while !folder.path().join("following").exists() {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::fs::remove_file(folder.path().join("following")).unwrap();
        std::thread::sleep(Duration::from_micros(500 + 371 * (kills % 20)));
        follower.kill().unwrap();
        follower.wait().unwrap();
        kills += 1;
    }
    let mut last = start(folder.path()).unwrap();
    while !folder.path().join("following").exists() {
        std::thread::sleep(Duration::from_millis(1));
    }
    drop(writer.join().unwrap());
    File::create(folder.path().join("closed")).unwrap();
    assert!(last.wait().unwrap().success() && folder.path().join("drained").exists());
    assert!(kills > 3, "it was killed {kills} times only");

    let (mut next, mut again) = (0, 0);
    for record in std::fs::read_to_string(folder.path().join("0.log")).unwrap().lines() {
        let (_, text) = record.split_once(" stdout F ").expect(record);
        let number: usize = text.split(' ').nth(1).unwrap().parse().unwrap();
        assert_eq!(text, line(number));
        assert!(number <= next, "lines {next} to {number} are lost");
        again += usize::from(number < next);
        next = number + 1;
    }
    assert_eq!(next, LINES);
    println!("killed {kills} times, {again} steps came again");
}
