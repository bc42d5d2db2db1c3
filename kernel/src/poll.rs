//! Waiting for several descriptors at once. Source: poll(2).

use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Which of `descriptors` can be read, or have lost their other end; none of them after `timeout`, or after a signal.
///
/// # Errors
/// Where the kernel lacks memory.
pub fn readable(descriptors: &[BorrowedFd<'_>], timeout: Duration) -> io::Result<Vec<bool>> {
    let mut polled: Vec<PollFd<'_>> = descriptors.iter().map(|fd| PollFd::new(*fd, PollFlags::POLLIN)).collect();
    match poll(&mut polled, PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX)) {
        Ok(_) => Ok(polled.iter().map(|one| one.any().unwrap_or(false)).collect()),
        Err(Errno::EINTR) => Ok(vec![false; descriptors.len()]),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::fd::AsFd;

    #[test]
    fn those_with_bytes_or_without_a_writer_are_told() {
        let (idle, _writer) = io::pipe().unwrap();
        let (full, mut writer) = io::pipe().unwrap();
        let (abandoned, _) = io::pipe().unwrap();
        writer.write_all(b"x").unwrap();
        let all = [idle.as_fd(), full.as_fd(), abandoned.as_fd()];
        assert_eq!(readable(&all, Duration::from_secs(5)).unwrap(), [false, true, true]);
        assert_eq!(readable(&all[..1], Duration::from_millis(1)).unwrap(), [false]);
    }
}
