//! A program within bounds of time and output: for programs that others wrote.
//!
//! One thread, no signals of ours: a pidfd says when the program has ended, so that a grandchild which keeps the output
//! open holds nobody up. Source: pidfd_open(2).

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::Error;
use crate::process::Ended;

/// How much of standard error is kept, from its beginning.
const SAID: usize = 16 << 10;

/// What a program may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    pub time: Duration,
    /// Bytes on standard output.
    pub output: usize,
}

/// A program that ended by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finished {
    pub ended: Ended,
    pub stdout: Vec<u8>,
    /// The first 16 KiB.
    pub stderr: Vec<u8>,
}

/// Runs `program` with `environment` added to the caller's, in a process group of its own.
///
/// # Errors
/// Where it cannot be started; of kind `TimedOut` or `FileTooLarge` where it passed a bound, after it and all of its
/// group were killed.
pub fn run_bounded(
    program: &Path,
    environment: &[(&str, &str)],
    stdin: &[u8],
    bounds: Bounds,
) -> Result<Finished, Error> {
    let failed = |source| Error { program: program.to_owned(), source };
    let mut child = Command::new(program)
        .envs(environment.iter().copied())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .map_err(failed)?;
    let gathered = gather(&mut child, stdin, bounds);
    if gathered.is_err() {
        kill_group(&child);
    }
    let status = child.wait().map_err(failed)?;
    let (stdout, stderr) = gathered.map_err(failed)?;
    Ok(Finished { ended: ended(status), stdout, stderr })
}

fn ended(status: ExitStatus) -> Ended {
    match (status.code(), status.signal()) {
        (Some(code), _) => Ended::Code(code),
        (None, signal) => Ended::Signal(signal.unwrap_or_default()),
    }
}

/// Not buried yet, so the number is still its own.
fn kill_group(child: &Child) {
    if let Ok(pid) = i32::try_from(child.id()) {
        // Gone already is as good.
        let _ = nix::sys::signal::killpg(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
    }
}

/// Feeds the program and reads what it says until it has ended.
fn gather(child: &mut Child, mut stdin: &[u8], bounds: Bounds) -> io::Result<(Vec<u8>, Vec<u8>)> {
    let deadline = Instant::now() + bounds.time;
    let alive = pidfd(child.id())?;
    let mut input = child.stdin.take();
    let mut output = child.stdout.take();
    let mut errors = child.stderr.take();
    for pipe in [fd(&input), fd(&output), fd(&errors)].into_iter().flatten() {
        fcntl(pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    }
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    loop {
        let over = wait(alive.as_fd(), [fd(&output), fd(&errors)], fd(&input), (deadline, bounds.time))?;
        if feed(&mut input, &mut stdin)? {
            input = None;
        }
        if drain(&mut output, &mut stdout, bounds.output)? {
            output = None;
        }
        if stdout.len() > bounds.output {
            let said = format!("it wrote more than {} bytes and was killed", bounds.output);
            return Err(io::Error::new(ErrorKind::FileTooLarge, said));
        }
        if drain(&mut errors, &mut stderr, SAID)? {
            errors = None;
        }
        if over {
            stderr.truncate(SAID);
            return Ok((stdout, stderr));
        }
    }
}

fn fd(pipe: &Option<impl AsFd>) -> Option<BorrowedFd<'_>> {
    pipe.as_ref().map(AsFd::as_fd)
}

/// Waits until something can be done; tells whether the program has ended.
fn wait(
    alive: BorrowedFd<'_>,
    readers: [Option<BorrowedFd<'_>>; 2],
    writer: Option<BorrowedFd<'_>>,
    (deadline, time): (Instant, Duration),
) -> io::Result<bool> {
    let readers = [alive].into_iter().chain(readers.into_iter().flatten());
    let mut polled: Vec<PollFd<'_>> = readers.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
    polled.extend(writer.map(|fd| PollFd::new(fd, PollFlags::POLLOUT)));
    let left = deadline.saturating_duration_since(Instant::now());
    // A millisecond more, for poll counts in whole ones: the last turn must not spin.
    let left = PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
    match poll(&mut polled, left) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => {}
        Err(errno) => return Err(errno.into()),
    }
    let over = polled.first().and_then(PollFd::any).unwrap_or_default();
    // Output without end is no reason to go on for longer.
    if !over && Instant::now() >= deadline {
        let said = format!("it did not end within {} s and was killed", time.as_secs_f32());
        return Err(io::Error::new(ErrorKind::TimedOut, said));
    }
    Ok(over)
}

/// Whether all was written, or the program takes no more: then it has said why on its output.
fn feed(input: &mut Option<impl Write>, stdin: &mut &[u8]) -> io::Result<bool> {
    let Some(pipe) = input else { return Ok(true) };
    while !stdin.is_empty() {
        match pipe.write(stdin) {
            Ok(size) => *stdin = stdin.get(size..).unwrap_or_default(),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(true),
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

/// Reads what is there, and keeps at most one byte more than `limit`; tells whether it was the end.
fn drain(pipe: &mut Option<impl Read>, kept: &mut Vec<u8>, limit: usize) -> io::Result<bool> {
    let Some(pipe) = pipe else { return Ok(true) };
    let mut buffer = [0; 8 << 10];
    // In turns, so that a program which writes for ever meets its bounds.
    for _ in 0..64 {
        match pipe.read(&mut buffer) {
            Ok(0) => return Ok(true),
            Ok(size) => {
                let room = (limit + 1).saturating_sub(kept.len()).min(size);
                kept.extend_from_slice(&buffer[..room]);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}

fn pidfd(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: takes two numbers and returns a new descriptor or -1.
    let raw = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let raw = i32::try_from(raw).ok().filter(|raw| *raw >= 0).ok_or_else(io::Error::last_os_error)?;
    // SAFETY: the descriptor was just made and is nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, stdin: &[u8], bounds: Bounds) -> Result<Finished, Error> {
        use std::os::unix::fs::PermissionsExt;
        let folder = std::env::temp_dir().join(format!("bounded-{}-{:?}", std::process::id(), Instant::now()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("program");
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let result = loop {
            match run_bounded(&path, &[], stdin, bounds) {
                // Another test's fork still holds the file open for writing.
                Err(error) if error.source.kind() == ErrorKind::ExecutableFileBusy => {}
                other => break other,
            }
        };
        std::fs::remove_dir_all(&folder).unwrap();
        result
    }

    const BOUNDS: Bounds = Bounds { time: Duration::from_secs(20), output: 1 << 20 };

    #[test]
    fn input_goes_in_and_both_outputs_come_back() {
        let input = "x".repeat(200_000);
        let done = shell("cat | wc -c; echo why >&2; exit 3", input.as_bytes(), BOUNDS).unwrap();
        assert_eq!(done.ended, Ended::Code(3));
        assert_eq!(String::from_utf8_lossy(&done.stdout).trim(), "200000");
        assert_eq!(done.stderr, b"why\n");
        let deaf = shell("exec 0<&-; echo done", &vec![b' '; 1 << 20], BOUNDS).unwrap();
        assert_eq!((deaf.ended, &deaf.stdout[..]), (Ended::Code(0), &b"done\n"[..]));
        assert_eq!(shell("kill -9 $$", b"", BOUNDS).unwrap().ended, Ended::Signal(9));
    }

    #[test]
    fn what_hangs_is_killed_with_its_children() {
        let mark = format!("{}", 1000 + std::process::id());
        let bounds = Bounds { time: Duration::from_millis(300), ..BOUNDS };
        let error = shell(&format!("sleep {mark} & sleep {mark}"), b"", bounds).unwrap_err();
        assert_eq!(error.source.kind(), ErrorKind::TimedOut);
        assert!(error.to_string().ends_with("it did not end within 0.3 s and was killed"), "{error}");
        let left = || {
            std::fs::read_dir("/proc").unwrap().flatten().any(|process| {
                std::fs::read(process.path().join("cmdline")).is_ok_and(|c| c == format!("sleep\0{mark}\0").as_bytes())
            })
        };
        let soon = Instant::now() + Duration::from_secs(5);
        while left() {
            assert!(Instant::now() < soon, "a child outlived its group");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn a_grandchild_with_the_output_holds_nobody_up() {
        let start = Instant::now();
        let done = shell("(exec sleep 3) & echo early", b"", BOUNDS).unwrap();
        assert_eq!(done.stdout, b"early\n");
        assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    }

    #[test]
    fn too_much_output_is_refused_and_too_much_complaint_is_cut() {
        let bounds = Bounds { output: 1000, ..BOUNDS };
        let error = shell("yes", b"", bounds).unwrap_err();
        assert_eq!(error.source.kind(), ErrorKind::FileTooLarge);
        let done = shell("yes | head -c 100000 >&2", b"", bounds).unwrap();
        assert_eq!((done.ended, done.stderr.len()), (Ended::Code(0), SAID));
    }
}
