//! hostPath: the host's own path, after its kind was checked.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;

use super::error::{Cause, at};

/// Checks that `path` is of the kind that the pod asked for, and makes it where the kind says so. An empty kind asks
/// for nothing.
///
/// # Errors
/// Where the path is of another kind or cannot be made.
pub(super) fn check(path: &Path, kind: &str) -> Result<(), Cause> {
    // Links are followed, as the mount will follow them.
    let found = fs::metadata(path).ok().map(|m| m.file_type());
    let expect = |ok: bool, wanted| {
        if ok { Ok(()) } else { Err(Cause::HostPathType { path: path.into(), wanted }) }
    };
    let is = |test: fn(&fs::FileType) -> bool| found.as_ref().is_some_and(test);
    match kind {
        "" => Ok(()),
        "DirectoryOrCreate" if found.is_none() => {
            fs::DirBuilder::new().recursive(true).mode(0o755).create(path).map_err(at("create", path))
        }
        "Directory" | "DirectoryOrCreate" => expect(is(fs::FileType::is_dir), "a directory"),
        "FileOrCreate" if found.is_none() => {
            match fs::OpenOptions::new().write(true).create_new(true).mode(0o644).open(path) {
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(at("create", path)(e)),
                _ => Ok(()),
            }
        }
        "File" | "FileOrCreate" => expect(is(fs::FileType::is_file), "a file"),
        "Socket" => expect(is(fs::FileType::is_socket), "a socket file"),
        "CharDevice" => expect(is(fs::FileType::is_char_device), "a character device"),
        "BlockDevice" => expect(is(fs::FileType::is_block_device), "a block device"),
        other => Err(Cause::UnknownHostPathType(other.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_checked_and_made() {
        let dir = std::env::temp_dir().join(format!("volumes-hostpath-{}", std::process::id()));
        let path = |name: &str| dir.join(name);
        check(&path("a/b"), "DirectoryOrCreate").unwrap();
        check(&path("a/file"), "FileOrCreate").unwrap();
        check(&path("absent"), "").unwrap();
        check(Path::new("/dev/null"), "CharDevice").unwrap();
        let text = |name: &str, kind| check(&path(name), kind).unwrap_err().to_string();
        let start = format!("hostPath type check failed: {}", dir.display());
        assert_eq!(text("absent", "Directory"), format!("{start}/absent is not a directory"));
        assert_eq!(text("a", "FileOrCreate"), format!("{start}/a is not a file"));
        assert_eq!(text("a/file", "Socket"), format!("{start}/a/file is not a socket file"));
        fs::remove_dir_all(dir).unwrap();
    }
}
