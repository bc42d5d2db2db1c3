//! The child process that makes a user namespace and what belongs to it.
//!
//! Between fork and exit it makes bare system calls only: other threads of the parent may have held any lock
//! (signal-safety(7)).

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sched::CloneFlags;
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, fork, pipe2};

use super::{Error, IdMap, IdMaps, failed};

/// Runs `work` with the process number of a child that is root of a new user namespace with these maps and of new
/// namespaces of the kinds in `others`, which belong to it. The child is gone when this returns.
pub(super) fn with<T>(
    maps: &IdMaps,
    others: CloneFlags,
    work: impl FnOnce(u32) -> Result<T, Error>,
) -> Result<T, Error> {
    let here = Path::new("a user namespace");
    let pipe = || pipe2(OFlag::O_CLOEXEC).map_err(io::Error::from).map_err(failed("make a pipe for", here));
    let (answers, answer) = pipe()?;
    let (order, orders) = pipe()?;
    // SAFETY: the child makes bare system calls only and ends by _exit.
    match unsafe { fork() }.map_err(io::Error::from).map_err(failed("fork for", here))? {
        ForkResult::Child => live(order.as_raw_fd(), answer.as_raw_fd(), others),
        ForkResult::Parent { child } => {
            drop((order, answer));
            let mut talk = Talk { answers: answers.into(), orders: orders.into() };
            let done = talk.guide(child, maps).and_then(work);
            talk.end();
            bury(child);
            done
        }
    }
}

/// The parent's side. The child does one step, answers with an error number (0: done), and waits for the next order.
struct Talk {
    answers: File,
    orders: File,
}

impl Talk {
    fn guide(&mut self, child: Pid, maps: &IdMaps) -> Result<u32, Error> {
        let pid = child.as_raw().unsigned_abs();
        let process = PathBuf::from(format!("/proc/{pid}"));
        self.answer().map_err(failed("make a user namespace in", &process))?;
        for (file, ranges) in [("gid_map", &maps.groups), ("uid_map", &maps.users)] {
            let path = process.join(file);
            // The kernel takes a map in one write only.
            std::fs::write(&path, render(ranges)).map_err(failed("write", &path))?;
        }
        self.orders.write_all(b"m").map_err(failed("talk to", &process))?;
        self.answer().map_err(failed("become root of a user namespace and make others in", &process))?;
        Ok(pid)
    }

    fn answer(&mut self) -> io::Result<()> {
        let mut code = [0; 4];
        self.answers.read_exact(&mut code)?;
        match i32::from_ne_bytes(code) {
            0 => Ok(()),
            errno => Err(io::Error::from_raw_os_error(errno)),
        }
    }

    /// By word, not by closing the pipe alone: another child may have been forked with its end.
    fn end(&mut self) {
        // It may have ended by itself, having failed.
        let _ = self.orders.write_all(b"e");
    }
}

fn bury(child: Pid) {
    // Who else waits for all children may have been first.
    while waitpid(child, None) == Err(Errno::EINTR) {}
}

fn render(ranges: &[IdMap]) -> String {
    ranges.iter().fold(String::new(), |mut text, range| {
        let _ = writeln!(text, "{} {} {}", range.inside, range.outside, range.length);
        text
    })
}

/// Does `work` with the effective user `uid` and no capabilities. For the calling thread alone (credentials(7): to the
/// kernel they are a thread's), which must be one that ends soon.
pub(super) fn as_user<T>(uid: u32, work: impl FnOnce() -> T) -> io::Result<T> {
    let become_user = |uid: u32| {
        // SAFETY: takes three numbers; -1 leaves the real and the saved user.
        match unsafe { libc::syscall(libc::SYS_setresuid, -1, uid, -1) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    };
    become_user(uid)?;
    let done = work();
    become_user(0)?;
    Ok(done)
}

/// The child's life.
fn live(orders: RawFd, answers: RawFd, others: CloneFlags) -> ! {
    // SAFETY: bare system calls on numbers and on buffers of this frame; see the head of this file.
    unsafe {
        say(answers, libc::syscall(libc::SYS_unshare, libc::CLONE_NEWUSER));
        hear(orders);
        // The C library's would ask all threads of a process that has one only now.
        let root = libc::syscall(libc::SYS_setresgid, 0, 0, 0) | libc::syscall(libc::SYS_setresuid, 0, 0, 0);
        let made = if root == 0 { libc::syscall(libc::SYS_unshare, others.bits()) } else { root };
        say(answers, made);
        hear(orders);
        libc::_exit(0)
    }
}

/// # Safety
/// `answers` is open for writing.
unsafe fn say(answers: RawFd, done: libc::c_long) {
    let code: i32 = if done == 0 { 0 } else { Errno::last_raw() };
    // SAFETY: four bytes of this frame.
    unsafe {
        libc::write(answers, (&raw const code).cast(), 4);
        if code != 0 {
            libc::_exit(1);
        }
    }
}

/// # Safety
/// `orders` is open for reading.
unsafe fn hear(orders: RawFd) {
    let mut byte = 0u8;
    // SAFETY: one byte of this frame.
    unsafe {
        loop {
            let size = libc::read(orders, (&raw mut byte).cast(), 1);
            if size > 0 && byte != b'e' {
                return;
            }
            if size >= 0 || Errno::last_raw() != libc::EINTR {
                libc::_exit(0);
            }
        }
    }
}
