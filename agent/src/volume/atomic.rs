//! Writes a set of files so that a reader sees all of the old or all of the new.
//!
//! ```text
//! VOLUME/..2026_11_21_08_30_00.123456789/key    the files
//! VOLUME/..data -> ..2026_11_21_08_30_00.123456789
//! VOLUME/key -> ..data/key
//! ```
//!
//! A write makes a new folder, then renames a new `..data` link over the old one, which is the moment of change.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use time::OffsetDateTime;
use time::macros::format_description;

use super::error::{Cause, at};
use super::payload::{File, Payload};

const DATA: &str = "..data";
const NEW_DATA: &str = "..data_tmp";

/// Makes the volume hold exactly these files. `own` is called on the volume before the new files become visible, to set
/// owner and group. Nothing is written if the files are there already.
///
/// # Errors
/// Where a file cannot be written; readers then still see the old files.
pub(super) fn write(
    volume: &Path,
    payload: &Payload,
    own: impl FnOnce(&Path) -> Result<(), Cause>,
) -> Result<(), Cause> {
    let old = current(volume)?;
    if old.as_deref().is_some_and(|old| same(old, payload)) {
        return finish(volume, payload);
    }
    let new = create_folder(volume)?;
    let written = write_files(&new, payload).and_then(|()| own(volume)).and_then(|()| swap(volume, &new));
    if let Err(cause) = written {
        let _ = fs::remove_dir_all(&new);
        return Err(cause);
    }
    finish(volume, payload)
}

/// The folder that `..data` names, if there is one.
fn current(volume: &Path) -> Result<Option<PathBuf>, Cause> {
    let link = volume.join(DATA);
    match fs::read_link(&link) {
        Ok(target) => Ok(Some(volume.join(target.file_name().unwrap_or_default()))),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(at("read link", &link)(e)),
    }
}

fn same(dir: &Path, payload: &Payload) -> bool {
    let mut found = BTreeMap::new();
    if list_files(dir, Path::new(""), &mut found).is_err() || found.len() != payload.len() {
        return false;
    }
    payload.iter().all(|(path, file)| found.get(Path::new(path)).is_some_and(|full| holds(full, file)))
}

fn holds(path: &Path, file: &File) -> bool {
    fs::metadata(path).is_ok_and(|m| m.len() == file.data.len() as u64) && fs::read(path).is_ok_and(|d| d == file.data)
}

fn list_files(dir: &Path, prefix: &Path, found: &mut BTreeMap<PathBuf, PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = prefix.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            list_files(&entry.path(), &name, found)?;
        } else {
            found.insert(name, entry.path());
        }
    }
    Ok(())
}

fn create_folder(volume: &Path) -> Result<PathBuf, Cause> {
    let now = OffsetDateTime::from(SystemTime::now());
    let format = format_description!("..[year]_[month]_[day]_[hour]_[minute]_[second].[subsecond digits:9]");
    let name = now.format(format).map_err(|e| at("name a folder in", volume)(io::Error::other(e)))?;
    let dir = volume.join(name);
    fs::create_dir(&dir).map_err(at("create", &dir))?;
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).map_err(at("change the mode of", &dir))?;
    Ok(dir)
}

fn write_files(dir: &Path, payload: &Payload) -> Result<(), Cause> {
    for (name, file) in payload {
        let path = dir.join(name);
        if let Some(parent) = path.parent() {
            fs::DirBuilder::new().recursive(true).mode(0o755).create(parent).map_err(at("create", parent))?;
        }
        // The mode is set once more because the umask may have taken bits away.
        let mut handle = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(file.mode)
            .open(&path)
            .map_err(at("create", &path))?;
        io::Write::write_all(&mut handle, &file.data).map_err(at("write", &path))?;
        handle.set_permissions(fs::Permissions::from_mode(file.mode)).map_err(at("change the mode of", &path))?;
        if file.owner.is_some() {
            kernel::mount::chown(&path, file.owner, None)?;
        }
    }
    Ok(())
}

fn swap(volume: &Path, new: &Path) -> Result<(), Cause> {
    let link = volume.join(NEW_DATA);
    let _ = fs::remove_file(&link);
    symlink(new.file_name().unwrap_or_default(), &link).map_err(at("create link", &link))?;
    let data = volume.join(DATA);
    fs::rename(&link, &data).map_err(at("rename to", &data))
}

/// Gives each file its link, and takes away links and folders of the past, also those of a write that was cut short.
fn finish(volume: &Path, payload: &Payload) -> Result<(), Cause> {
    let wanted: BTreeSet<&str> = payload.keys().map(|path| path.split('/').next().unwrap_or(path)).collect();
    for name in &wanted {
        let link = volume.join(name);
        match symlink(Path::new(DATA).join(name), &link) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(at("create link", &link)(e)),
            _ => {}
        }
    }
    let current = current(volume)?;
    for entry in fs::read_dir(volume).map_err(at("list", volume))?.flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        let name = name.to_string_lossy();
        let is_dir = entry.file_type().is_ok_and(|t| t.is_dir());
        if is_dir && name.starts_with("..") && current.as_ref() != Some(&path) {
            fs::remove_dir_all(&path).map_err(at("remove", &path))?;
        } else if !is_dir && name != DATA && !wanted.contains(&*name) {
            fs::remove_file(&path).map_err(at("remove", &path))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(files: &[(&str, &str, u32)]) -> Payload {
        let file = |data: &str, mode| File { data: data.to_owned().into(), mode, owner: None };
        files.iter().map(|(path, data, mode)| ((*path).to_owned(), file(data, *mode))).collect()
    }

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn old_and_new_never_mix_and_nothing_stays_behind() {
        let dir = std::env::temp_dir().join(format!("volumes-atomic-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        write(&dir, &payload(&[("a", "1", 0o400), ("sub/b", "1", 0o644)]), |_| Ok(())).unwrap();
        let first = fs::read_link(dir.join("..data")).unwrap();
        assert_eq!(fs::read_to_string(dir.join("sub/b")).unwrap(), "1");
        assert_eq!(fs::metadata(dir.join("a")).unwrap().permissions().mode() & 0o777, 0o400);
        // The same again writes nothing.
        write(&dir, &payload(&[("a", "1", 0o400), ("sub/b", "1", 0o644)]), |_| Ok(())).unwrap();
        assert_eq!(fs::read_link(dir.join("..data")).unwrap(), first);
        // At the moment of ownership the reader still sees the old content.
        write(&dir, &payload(&[("a", "2", 0o644), ("c", "2", 0o644)]), |volume| {
            assert_eq!(fs::read_to_string(volume.join("a")).unwrap(), "1");
            Ok(())
        })
        .unwrap();
        assert_eq!(fs::read_to_string(dir.join("a")).unwrap(), "2");
        let data = fs::read_link(dir.join("..data")).unwrap().to_str().unwrap().to_owned();
        assert_eq!(names(&dir), [data.as_str(), "..data", "a", "c"]);
        // A failure leaves the old content and no rest.
        let failed = write(&dir, &payload(&[("a", "3", 0o644)]), |_| Err(Cause::NoSource));
        assert!(failed.is_err());
        assert_eq!(names(&dir), [data.as_str(), "..data", "a", "c"]);
        // The rest of a write that was cut short goes with the next one.
        fs::create_dir(dir.join("..1999_01_01_00_00_00.0")).unwrap();
        write(&dir, &payload(&[]), |_| Ok(())).unwrap();
        assert_eq!(names(&dir).len(), 2);
        fs::remove_dir_all(&dir).unwrap();
    }
}
