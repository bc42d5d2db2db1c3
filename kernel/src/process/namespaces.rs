//! Programs in other namespaces than ours. Source: namespaces(7), unshare(2), setns(2).

use std::fs::File;
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sched::{CloneFlags, setns, unshare};

/// The network and mount namespaces of a process, kept open.
#[derive(Debug)]
pub struct Namespaces {
    net: OwnedFd,
    mount: OwnedFd,
}

impl Namespaces {
    /// Those of the process whose folder in /proc this is, as `/proc/self`.
    ///
    /// # Errors
    /// Where the process is gone.
    pub fn open(process: &Path) -> io::Result<Self> {
        let open = |name: &str| File::open(process.join("ns").join(name)).map(OwnedFd::from);
        Ok(Self { net: open("net")?, mount: open("mnt")? })
    }

    /// Lets `command` start in these namespaces.
    pub fn enter(&self, command: &mut Command) -> io::Result<()> {
        let (net, mount) = (self.net.try_clone()?, self.mount.try_clone()?);
        // SAFETY: setns is a bare system call, which a child may make between fork and exec.
        unsafe {
            command.pre_exec(move || {
                setns(&net, CloneFlags::CLONE_NEWNET)?;
                Ok(setns(&mount, CloneFlags::CLONE_NEWNS)?)
            });
        }
        Ok(())
    }
}

/// Starts `command` as PID 1 of new network, mount, PID, UTS and IPC namespaces, in a session of its own.
///
/// # Errors
/// Without CAP_SYS_ADMIN, where the kernel lacks one of them, or where the program cannot be started.
pub fn isolate(mut command: Command) -> io::Result<Child> {
    super::unblocked(&mut command);
    // SAFETY: setsid is a bare system call, which a child may make between fork and exec.
    unsafe {
        command.pre_exec(|| {
            nix::unistd::setsid()?;
            Ok(())
        });
    }
    // unshare moves the calling thread for good, and for PIDs only its children: so a thread that ends after that.
    let start = move || {
        let wanted = CloneFlags::CLONE_NEWNET
            | CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWPID
            | CloneFlags::CLONE_NEWUTS
            | CloneFlags::CLONE_NEWIPC;
        unshare(wanted)?;
        command.spawn()
    };
    std::thread::spawn(start).join().map_err(|_| io::Error::other("the thread that starts it panicked"))?
}

/// Lets `command` inherit a descriptor under its own number.
pub fn inherit(command: &mut Command, descriptor: &impl AsRawFd) {
    let number: RawFd = descriptor.as_raw_fd();
    // SAFETY: fcntl is a bare system call, which a child may make between fork and exec; the caller keeps the
    // descriptor open until the command was spawned.
    unsafe {
        command.pre_exec(move || {
            fcntl(BorrowedFd::borrow_raw(number), FcntlArg::F_SETFD(FdFlag::empty()))?;
            Ok(())
        });
    }
}

/// The listener that whoever started this process let it inherit under `number`.
///
/// # Errors
/// Where no descriptor has that number, or one that does not listen.
pub fn listener(number: RawFd) -> io::Result<TcpListener> {
    // SAFETY: asks about a number only; what is not open is an error.
    if unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is open, and by the contract of `inherit` it is this process's own.
    let listener = unsafe { TcpListener::from_raw_fd(number) };
    listener.local_addr()?;
    Ok(listener)
}

/// # Errors
/// Without CAP_SYS_ADMIN, or where the name is longer than 64 bytes.
pub fn set_hostname(name: &str) -> io::Result<()> {
    Ok(nix::unistd::sethostname(name)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn isolated_is_pid_1_and_the_caller_stays() {
        if !crate::test::root("isolate") {
            return;
        }
        let here = std::fs::read_link("/proc/thread-self/ns/net").unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "test $$ = 1 && hostname elsewhere && exec readlink /proc/self/ns/net"]);
        command.stdout(std::process::Stdio::piped());
        let output = isolate(command).unwrap().wait_with_output().unwrap();
        assert!(output.status.success());
        assert_ne!(String::from_utf8_lossy(&output.stdout).trim(), here.to_string_lossy());
        assert_eq!(std::fs::read_link("/proc/thread-self/ns/net").unwrap(), here);
    }
}
