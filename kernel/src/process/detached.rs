//! A program that outlives whoever starts it. Source: setsid(2), close_range(2), getrlimit(2).

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::unblocked;

/// A program in a session of its own and without any descriptor of ours. It goes on when we end.
#[derive(Debug)]
pub struct Detached(Child);

impl Detached {
    /// Starts a program; `words` has its path first.
    ///
    /// # Errors
    /// Where it cannot be started.
    pub fn start(words: &[OsString]) -> io::Result<Self> {
        let (program, arguments) = words.split_first().ok_or(io::ErrorKind::InvalidInput)?;
        let mut command = Command::new(program);
        command.args(arguments).current_dir("/");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        unblocked(&mut command);
        // SAFETY: both are bare system calls, which a child may make between fork and exec.
        unsafe {
            command.pre_exec(|| {
                nix::unistd::setsid()?;
                // What we were started with may be open for programs too. A kernel before 5.11 cannot do this.
                libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC);
                Ok(())
            });
        }
        command.spawn().map(Self)
    }

    /// In the PID namespace of the caller.
    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Ends it if it has not ended, and buries it.
    ///
    /// # Errors
    /// Where it may not be signalled.
    pub fn end(mut self) -> io::Result<()> {
        self.0.kill()?;
        self.0.wait().map(drop)
    }
}

/// Lets this process open as many files as it ever may; most are allowed 1024 at first.
///
/// # Errors
/// Where a filter of system calls refuses.
pub fn allow_all_open_files() -> io::Result<()> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(setrlimit(Resource::RLIMIT_NOFILE, most, most)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_has_a_session_of_its_own_and_nothing_of_ours_open() {
        // As a program that does not mind leaves it to ours.
        let file = std::fs::File::open("/dev/null").unwrap();
        nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty())).unwrap();
        let detached = Detached::start(&["sleep", "60"].map(OsString::from)).unwrap();
        let pid = detached.pid();
        let mut open: Vec<_> =
            std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().map(|fd| fd.unwrap().file_name()).collect();
        open.sort();
        assert_eq!(open, ["0", "1", "2"]);
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        assert_eq!(stat.split(' ').nth(5), Some(pid.to_string().as_str()), "it leads its session");
        detached.end().unwrap();
        assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
    }
}
