//! Named pipes: make them, open them without waiting for the other end, and look at what is in one without taking it.
//!
//! A pipe's bytes live as long as anyone holds either end open, so a reader that dies between looking and taking leaves
//! them to the next. Source: fifo(7), pipe(7), tee(2), splice(2).

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::stat::Mode;

nix::ioctl_read_bad!(bytes_waiting, libc::FIONREAD, libc::c_int);

/// Why a named pipe could not be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot {verb} the named pipe {}: {source}", path.display())]
    Io { verb: &'static str, path: PathBuf, source: io::Error },
    #[error("{} is there and is not a named pipe", .0.display())]
    NotAFifo(PathBuf),
}

fn failed(verb: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io { verb, path, source }
}

/// Makes a named pipe with the permissions `mode`. One that is there already is success.
///
/// # Errors
/// Where the folder is missing, or something else has the name.
pub fn make(path: &Path, mode: u32) -> Result<(), Error> {
    match nix::unistd::mkfifo(path, Mode::from_bits_truncate(mode)) {
        Ok(()) => Ok(()),
        Err(Errno::EEXIST) => {
            let meta = std::fs::symlink_metadata(path).map_err(failed("stat", path))?;
            if meta.file_type().is_fifo() { Ok(()) } else { Err(Error::NotAFifo(path.to_owned())) }
        }
        Err(errno) => Err(failed("make", path)(errno.into())),
    }
}

/// Opens the end that reads, at once and not blocking, whether or not anybody writes. Until the first writer has come
/// and gone poll(2) reports no hang-up, though a read returns 0.
///
/// # Errors
/// Where the path cannot be opened or is no named pipe.
pub fn open_reader(path: &Path) -> Result<File, Error> {
    open(path, OpenOptions::new().read(true))
}

/// Opens the end that writes, at once and not blocking, whether or not anybody reads: for that it reads as well, so that
/// writing never breaks the pipe. A reader elsewhere sees the end once this and all other writers are closed.
///
/// # Errors
/// Where the path cannot be opened or is no named pipe.
pub fn open_writer(path: &Path) -> Result<File, Error> {
    open(path, OpenOptions::new().read(true).write(true))
}

/// Opens the end that writes, at once and not blocking, if anybody reads or waits in open(2) to read; else `None`.
///
/// # Errors
/// Where the path cannot be opened or is no named pipe.
pub fn open_writer_to_reader(path: &Path) -> Result<Option<File>, Error> {
    match open(path, OpenOptions::new().write(true)) {
        Err(Error::Io { source, .. }) if source.raw_os_error() == Some(libc::ENXIO) => Ok(None),
        opened => opened.map(Some),
    }
}

fn open(path: &Path, options: &mut OpenOptions) -> Result<File, Error> {
    // Without following a link: the folder is ours and holds none.
    let flags = OFlag::O_NONBLOCK | OFlag::O_NOFOLLOW;
    let file = options.custom_flags(flags.bits()).open(path).map_err(failed("open", path))?;
    let kind = file.metadata().map_err(failed("stat", path))?.file_type();
    if kind.is_fifo() { Ok(file) } else { Err(Error::NotAFifo(path.to_owned())) }
}

/// Sets how many bytes a pipe holds before its writers wait, and returns what the kernel made of it.
///
/// # Errors
/// Where it is above `fs.pipe-max-size` without CAP_SYS_RESOURCE, or below what the pipe holds now.
pub fn set_capacity(pipe: impl AsFd, bytes: usize) -> io::Result<usize> {
    let bytes = libc::c_int::try_from(bytes).map_err(|_| io::ErrorKind::InvalidInput)?;
    Ok(fcntl(pipe, FcntlArg::F_SETPIPE_SZ(bytes))?.unsigned_abs() as usize)
}

/// How many bytes wait in a pipe.
///
/// # Errors
/// Where the descriptor is no pipe.
pub fn waiting(pipe: impl AsFd) -> io::Result<usize> {
    let mut count = 0;
    // SAFETY: FIONREAD writes one int, to `count`, and the descriptor is open as long as it is borrowed.
    unsafe { bytes_waiting(pipe.as_fd().as_raw_fd(), &raw mut count) }?;
    Ok(count.unsigned_abs() as usize)
}

/// Looks into pipes and takes from them what was looked at, in two steps.
#[derive(Debug)]
pub struct Peek {
    read: File,
    write: File,
    null: File,
}

impl Peek {
    /// `capacity` bytes can be looked at in one step, or fewer where the kernel grants no such pipe.
    ///
    /// # Errors
    /// Where no descriptors are left.
    pub fn new(capacity: usize) -> io::Result<Self> {
        let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
        // A smaller one only shows less at once.
        let _ = set_capacity(&write, capacity);
        let null = OpenOptions::new().write(true).open("/dev/null")?;
        Ok(Self { read: read.into(), write: write.into(), null })
    }

    /// Copies what waits at the front of `fifo`, at most `buffer`'s length, and leaves it there. 0 says that the pipe is
    /// empty and that nobody writes.
    ///
    /// # Errors
    /// `WouldBlock` where it is empty and somebody may still write. After another error this value is of no more use.
    pub fn look(&mut self, fifo: impl AsFd, buffer: &mut [u8]) -> io::Result<usize> {
        let from = fifo.as_fd().as_raw_fd();
        let copied = retried(|| {
            // SAFETY: both descriptors are open pipes and no memory is passed.
            unsafe { libc::tee(from, self.write.as_raw_fd(), buffer.len(), libc::SPLICE_F_NONBLOCK) }
        })?;
        // It is emptied each time, so that the next look begins at the front.
        self.read.read_exact(&mut buffer[..copied])?;
        Ok(copied)
    }

    /// Takes `count` bytes off the front of `fifo`, which were looked at before, without copying them.
    ///
    /// # Errors
    /// Where they are not there.
    pub fn take(&mut self, fifo: impl AsFd, count: usize) -> io::Result<()> {
        let (from, null) = (fifo.as_fd().as_raw_fd(), self.null.as_raw_fd());
        let mut left = count;
        while left > 0 {
            let taken = retried(|| {
                let (no_offset, flags) = (std::ptr::null_mut(), libc::SPLICE_F_NONBLOCK);
                // SAFETY: both descriptors are open, and null offsets stand for the files' own positions.
                unsafe { libc::splice(from, no_offset, null, no_offset, left, flags) }
            })?;
            if taken == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            left -= taken;
        }
        Ok(())
    }
}

fn retried(call: impl Fn() -> isize) -> io::Result<usize> {
    loop {
        match usize::try_from(call()) {
            Ok(count) => return Ok(count),
            Err(_) if Errno::last() == Errno::EINTR => {}
            Err(_) => return Err(Errno::last().into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    /// A folder that is gone with the test.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("fifo-{name}-{}", std::process::id()));
            std::fs::create_dir_all(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn making_is_idempotent_and_does_not_take_another_files_name() {
        let folder = Folder::new("make");
        let path = folder.0.join("stdout");
        make(&path, 0o600).unwrap();
        make(&path, 0o600).unwrap();
        let file = folder.0.join("file");
        std::fs::write(&file, "").unwrap();
        assert!(matches!(make(&file, 0o600), Err(Error::NotAFifo(_))));
        assert!(matches!(open_reader(&file), Err(Error::NotAFifo(_))));
        assert!(matches!(make(&folder.0.join("no/such"), 0o600), Err(Error::Io { verb: "make", .. })));
    }

    #[test]
    fn what_was_looked_at_stays_until_it_is_taken() {
        let folder = Folder::new("peek");
        let path = folder.0.join("stdout");
        make(&path, 0o600).unwrap();
        let reader = open_reader(&path).unwrap();
        let mut peek = Peek::new(1 << 16).unwrap();
        let mut buffer = [0; 64];
        assert_eq!(peek.look(&reader, &mut buffer).unwrap(), 0, "nobody writes");

        let mut writer = open_writer(&path).unwrap();
        assert_eq!(peek.look(&reader, &mut buffer).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        writer.write_all(b"one two").unwrap();
        for _ in 0..2 {
            assert_eq!(peek.look(&reader, &mut buffer).unwrap(), 7);
            assert_eq!(&buffer[..7], b"one two");
        }
        peek.take(&reader, 4).unwrap();
        writer.write_all(b"!").unwrap();
        assert_eq!(waiting(&reader).unwrap(), 4);
        let seen = peek.look(&reader, &mut buffer).unwrap();
        assert_eq!(&buffer[..seen], b"two!");
        peek.take(&reader, 4).unwrap();
        assert_eq!(peek.take(&reader, 1).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(writer);
        assert_eq!(peek.look(&reader, &mut buffer).unwrap(), 0);
    }

    #[test]
    fn capacity_is_what_the_kernel_grants() {
        let folder = Folder::new("capacity");
        let path = folder.0.join("stdout");
        make(&path, 0o600).unwrap();
        let reader = open_reader(&path).unwrap();
        assert_eq!(set_capacity(&reader, 4096).unwrap(), 4096);
        let mut writer = open_writer(&path).unwrap();
        writer.write_all(&[b'x'; 4096]).unwrap();
        assert_eq!(writer.write(b"y").unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }
}
