//! A program that outlives whoever starts it. Source: setsid(2), getrlimit(2).

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
        // SAFETY: setsid is a bare system call, which a child may make between fork and exec.
        unsafe {
            command.pre_exec(|| {
                nix::unistd::setsid()?;
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
        let pipe = io::pipe().unwrap();
        let folder = std::env::temp_dir().join(format!("detached-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let said = folder.join("said");
        let script = format!(
            "(cut -d' ' -f6 /proc/self/stat; ls /proc/$$/fd) >{0}.part; mv {0}.part {0}; sleep 60",
            said.display()
        );
        let words = ["sh", "-c", &script].map(OsString::from);
        let detached = Detached::start(&words).unwrap();
        while !said.exists() {
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        let text = std::fs::read_to_string(&said).unwrap();
        assert_eq!(text, format!("{}\n0\n1\n2\n", detached.pid()));
        detached.end().unwrap();
        std::fs::remove_dir_all(&folder).unwrap();
        drop(pipe);
    }
}
