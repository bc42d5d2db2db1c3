//! Small files that are whole or absent, whatever happens while they are written.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Puts `content` at `path` in one step: a new file beside it is written, synced and renamed over the old one, and the
/// folder is synced. A reader, or a machine that lost power, sees the old content or the new. `mode` is as in `0o600`.
///
/// # Errors
/// The path and what the kernel said. The folder must exist.
pub fn write_atomic(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let about = |e: io::Error| io::Error::new(e.kind(), format!("write {}: {e}", path.display()));
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = path.file_name().ok_or_else(|| about(io::ErrorKind::InvalidInput.into()))?;
    let staged = folder.join(format!(".{}.{}", name.to_string_lossy(), std::process::id()));
    // What a killed process of the same id left may have another mode, and the mode counts only for a new file.
    let _ = fs::remove_file(&staged);
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&staged)
        .and_then(|mut file| file.write_all(content).and_then(|()| file.sync_all()))
        .and_then(|()| fs::rename(&staged, path))
        .and_then(|()| File::open(folder)?.sync_all());
    written.map_err(|e| {
        let _ = fs::remove_file(&staged);
        about(e)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn replaces_content_and_mode_and_leaves_nothing_beside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.key");
        write_atomic(&path, b"old", 0o644).unwrap();
        write_atomic(&path, b"new", 0o600).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
