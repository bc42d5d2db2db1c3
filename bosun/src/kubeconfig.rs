//! The user's kubeconfig: a cluster's entries go in and out, everything else in the file stays.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde_json::{Value, json};

/// The three lists of a kubeconfig, each of entries with a `name`.
const LISTS: [&str; 3] = ["clusters", "contexts", "users"];

/// `~/.kube/config`.
///
/// # Errors
/// Where HOME is not set.
pub fn default_path() -> anyhow::Result<PathBuf> {
    let home = std::env::var_os("HOME").filter(|home| !home.is_empty());
    Ok(Path::new(&home.context("HOME is not set: name a file with --kubeconfig FILE")?).join(".kube/config"))
}

/// Puts the entries of `ours` (a kubeconfig with one of each) into the file and makes its context current.
/// A file that has them already is not touched.
///
/// # Errors
/// Where the file is no kubeconfig or cannot be written.
pub fn merge(path: &Path, ours: &Value) -> anyhow::Result<()> {
    change(path, |theirs| merged(theirs, ours))
}

/// Takes the entries called `name` out. A file that is gone, or that was made for them alone, is gone afterwards.
///
/// # Errors
/// Where the file is no kubeconfig or cannot be written.
pub fn remove(path: &Path, name: &str) -> anyhow::Result<()> {
    if !path.exists() {
        return Ok(());
    }
    change(path, |theirs| without(theirs, name))
}

/// # Errors
/// One line that says why the file could not be written. Nothing is left behind.
pub fn check_writable(path: &Path) -> anyhow::Result<()> {
    let why = || format!("the kubeconfig {} cannot be written: name another with --kubeconfig FILE", path.display());
    anyhow::ensure!(!path.is_dir(), "{}: is a directory", why());
    // The nearest folder that is there shall take a file: the way in which the kubeconfig will be written.
    let folder = path.ancestors().skip(1).find(|folder| folder.exists()).unwrap_or(Path::new("/"));
    let probe = folder.join(format!(".bosun-{}", std::process::id()));
    File::create_new(&probe).with_context(why)?;
    fs::remove_file(&probe).with_context(why)?;
    if path.exists() {
        File::options().append(true).open(path).with_context(why)?;
        read(path)?;
    }
    Ok(())
}

fn change(path: &Path, edit: impl FnOnce(&Value) -> Value) -> anyhow::Result<()> {
    let _lock = FileLock::take(path)?;
    let theirs = read(path)?;
    let new = edit(&theirs);
    if new == theirs {
        return Ok(());
    }
    if is_empty(&new) {
        return fs::remove_file(path).with_context(|| format!("remove {}", path.display()));
    }
    // A link stays a link: what it leads to is written.
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    Ok(lifecycle::file::write_atomic(&target, lifecycle::kubeconfig::to_yaml(&new).as_bytes(), 0o600)?)
}

fn read(path: &Path) -> anyhow::Result<Value> {
    let text = match fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Value::Null),
        text => text.with_context(|| format!("read {}", path.display()))?,
    };
    if text.trim().is_empty() {
        return Ok(Value::Null);
    }
    let value: Value = serde_saphyr::from_str(&text).with_context(|| format!("{} is no kubeconfig", path.display()))?;
    let lists = LISTS.iter().all(|list| value[list].is_array() || value[list].is_null());
    anyhow::ensure!(value.is_object() && lists, "{} is no kubeconfig", path.display());
    Ok(value)
}

/// `FILE.lock`, as kubectl and kind take it; a stale one is taken over after a while.
struct FileLock(PathBuf);

impl FileLock {
    fn take(path: &Path) -> anyhow::Result<Self> {
        let mut name = path.as_os_str().to_owned();
        name.push(".lock");
        let lock = PathBuf::from(name);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
        }
        for _ in 0..100 {
            match File::create_new(&lock) {
                Ok(_) => return Ok(Self(lock)),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error).with_context(|| format!("create {}", lock.display())),
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        anyhow::bail!("{} is held by another program: remove it if none runs", lock.display())
    }
}

impl Drop for FileLock {
    fn drop(&mut self) {
        // Whoever comes next says so if it stays.
        let _ = fs::remove_file(&self.0);
    }
}

fn merged(theirs: &Value, ours: &Value) -> Value {
    let mut new = match theirs {
        Value::Object(_) => theirs.clone(),
        _ => json!({ "apiVersion": "v1", "kind": "Config", "preferences": {} }),
    };
    for list in LISTS {
        let mut entries = new[list].as_array().cloned().unwrap_or_default();
        for entry in ours[list].as_array().into_iter().flatten() {
            match entries.iter_mut().find(|e| e["name"] == entry["name"]) {
                Some(old) => *old = entry.clone(),
                None => entries.push(entry.clone()),
            }
        }
        new[list] = entries.into();
    }
    new["current-context"] = ours["current-context"].clone();
    new
}

fn without(theirs: &Value, name: &str) -> Value {
    let mut new = theirs.clone();
    for list in LISTS {
        if let Some(entries) = new[list].as_array_mut() {
            entries.retain(|entry| entry["name"] != name);
        }
    }
    if new["current-context"] == name {
        new["current-context"] = "".into();
    }
    new
}

/// Nothing but empty lists: what `up` made of no file, and `down` took its entries out of.
fn is_empty(config: &Value) -> bool {
    let known = ["apiVersion", "kind", "preferences", "current-context"];
    let fields = config.as_object().into_iter().flatten();
    fields.into_iter().all(|(name, value)| match value {
        Value::Array(list) => list.is_empty(),
        Value::Object(map) if name == "preferences" => map.is_empty(),
        Value::String(context) if name == "current-context" => context.is_empty(),
        _ => known.contains(&name.as_str()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ours() -> Value {
        json!({
            "apiVersion": "v1", "kind": "Config",
            "clusters": [{ "name": "bosun-dev", "cluster": { "server": "https://172.30.0.2:6443" } }],
            "contexts": [{ "name": "bosun-dev", "context": { "cluster": "bosun-dev", "user": "bosun-dev" } }],
            "current-context": "bosun-dev",
            "users": [{ "name": "bosun-dev", "user": {} }],
        })
    }

    #[test]
    fn others_stay_through_merge_and_removal() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kube/config");
        let theirs = "apiVersion: v1\nkind: Config\nclusters:\n- name: work\n  cluster: {server: 'https://w', \
            extensions: [{name: x, extension: {a: '1'}}]}\ncontexts: []\ncurrent-context: work\nusers: null\nmore: 1\n";
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, theirs).unwrap();
        let before = read(&path).unwrap();
        merge(&path, &ours()).unwrap();
        let merged = read(&path).unwrap();
        assert_eq!(merged["current-context"], "bosun-dev");
        assert_eq!(merged["clusters"].as_array().unwrap().len(), 2);
        assert_eq!(merged["clusters"][0], before["clusters"][0]);
        let written = fs::metadata(&path).unwrap().modified().unwrap();
        merge(&path, &ours()).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), written, "the same again must not write");
        remove(&path, "bosun-dev").unwrap();
        let after = read(&path).unwrap();
        assert_eq!((&after["clusters"], &after["more"]), (&before["clusters"], &before["more"]));
        assert_eq!(after["current-context"], "");
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "no lock may stay");
    }

    #[test]
    fn a_file_made_for_us_goes_with_us() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config");
        merge(&path, &ours()).unwrap();
        remove(&path, "bosun-dev").unwrap();
        remove(&path, "bosun-dev").unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn what_cannot_be_written_is_said_before() {
        let dir = tempfile::tempdir().unwrap();
        let error = check_writable(dir.path()).unwrap_err();
        assert!(error.to_string().ends_with("is a directory"), "{error}");
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(check_writable(&file.join("config")).is_err());
        fs::write(&file, "- a list\n").unwrap();
        assert!(check_writable(&file).unwrap_err().to_string().ends_with("is no kubeconfig"));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
