//! SELinux labels of files. Source: xattr(7), `security.selinux`.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

const NAME: &std::ffi::CStr = c"security.selinux";

/// A file that could not be labelled, and why.
#[derive(Debug, thiserror::Error)]
#[error("cannot give {} the SELinux label {label}: {source}", path.display())]
pub struct Error {
    pub path: PathBuf,
    pub label: String,
    pub source: io::Error,
}

/// Labels a file, or a folder and all below it on whatever file system. Links are labelled themselves, not followed.
/// What has the label is left alone, a file system that keeps no labels is passed over, and so is what goes away
/// meanwhile. Blocks.
///
/// # Errors
/// At the first file that the kernel refuses.
pub fn relabel(path: &Path, label: &str) -> Result<(), Error> {
    let failed = |at: &Path| {
        let at = at.to_owned();
        move |source| Error { path: at, label: label.to_owned(), source }
    };
    let mut left = vec![path.to_owned()];
    while let Some(path) = left.pop() {
        // What is set is written to the disk, and refused where nothing can be written.
        let done = if self::label(&path).as_deref() == Some(label) { Ok(()) } else { set(&path, label) };
        match done {
            Err(e) if matches!(e.raw_os_error(), Some(libc::ENOTSUP | libc::ENOENT)) => {}
            other => other.map_err(failed(&path))?,
        }
        let is_folder = path.symlink_metadata().is_ok_and(|m| m.is_dir());
        if is_folder {
            for entry in std::fs::read_dir(&path).map_err(failed(&path))? {
                left.push(entry.map_err(failed(&path))?.path());
            }
        }
    }
    Ok(())
}

fn set(path: &Path, label: &str) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let value = label.as_bytes();
    // SAFETY: both names are NUL-terminated, and the value is readable for as many bytes as are told.
    let done = unsafe { libc::lsetxattr(path.as_ptr(), NAME.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The label of a file; `None` where it has none, or cannot be asked.
pub fn label(path: &Path) -> Option<String> {
    let path = CString::new(path.as_os_str().as_bytes()).ok()?;
    let mut value = [0_u8; 4096];
    // SAFETY: both names are NUL-terminated, and the buffer is writable for as many bytes as are told.
    let length = unsafe { libc::lgetxattr(path.as_ptr(), NAME.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
    let label = value.get(..usize::try_from(length).ok()?)?;
    Some(String::from_utf8_lossy(label).trim_end_matches('\0').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_below_is_labelled_and_nothing_beside() {
        if !crate::test::root("relabel") {
            return;
        }
        let dir = std::env::temp_dir().join(format!("relabel-{}", std::process::id()));
        std::fs::create_dir_all(dir.join("in/sub")).unwrap();
        std::fs::write(dir.join("in/sub/file"), "").unwrap();
        std::fs::write(dir.join("beside"), "").unwrap();
        std::os::unix::fs::symlink("../beside", dir.join("in/link")).unwrap();
        let wanted = "system_u:object_r:container_file_t:s0";
        let result = relabel(&dir.join("in"), wanted);
        let labels = ["in", "in/sub/file", "beside"].map(|name| label(&dir.join(name)));
        std::fs::remove_dir_all(&dir).unwrap();
        result.unwrap();
        if labels[0].is_none() {
            return eprintln!("SKIPPED relabel: {} keeps no labels", std::env::temp_dir().display());
        }
        assert_eq!(labels, [Some(wanted.into()), Some(wanted.into()), None]);
    }
}
