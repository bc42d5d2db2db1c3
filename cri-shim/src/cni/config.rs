//! The folder of network configurations, of which the first by name is the pods' network.

use std::io;
use std::path::{Path, PathBuf};

use api::cni::{NetworkConfigList, VERSIONS};
use serde_json::{Map, Value};

const EXTENSIONS: [&str; 3] = ["conf", "conflist", "json"];

/// A network as its file has it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Loaded {
    pub list: NetworkConfigList,
    /// The version that plugins are spoken to in.
    pub version: &'static str,
    pub file: PathBuf,
}

/// Why there is no network.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("there is no CNI configuration in {}: install a network add-on, or put a .conflist there", .0.display())]
    Absent(PathBuf),
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("CNI configuration {} is not usable: {source}", file.display())]
    Invalid { file: PathBuf, source: api::cni::Error },
    #[error(
        "network {network:?} in {} is of CNI version {version:?}: change its cniVersion to one of {}",
        file.display(), VERSIONS.join(", ")
    )]
    Version { file: PathBuf, network: String, version: String },
}

/// Reads the first configuration of `folder`. A first one that is not usable is an error, not passed over: pods would
/// silently get another network than its administrator meant.
pub(super) fn load(folder: &Path) -> Result<Loaded, ConfigError> {
    let file = first(files(folder, &EXTENSIONS)?).ok_or_else(|| ConfigError::Absent(folder.to_owned()))?;
    let bytes = std::fs::read(&file).map_err(|source| ConfigError::Read { path: file.clone(), source })?;
    let mut unread = None;
    let siblings = |name: &str| {
        plugins(&folder.join(name)).map_err(|error| {
            let source = api::cni::Error::config(error.to_string());
            unread = Some(error);
            source
        })
    };
    let list = NetworkConfigList::parse_with(&bytes, siblings);
    let list = list.map_err(|source| unread.unwrap_or(ConfigError::Invalid { file: file.clone(), source }))?;
    usable(list, file)
}

/// Checks what a parsed list must have for us.
pub(super) fn usable(list: NetworkConfigList, file: PathBuf) -> Result<Loaded, ConfigError> {
    let kinds = list.plugins.iter().filter_map(|plugin| plugin.get("type")?.as_str());
    if let Some(bad) = kinds.into_iter().find(|kind| kind.is_empty() || kind.contains('/') || *kind == "..") {
        let source = api::cni::Error::config(format!("{bad:?} is not the name of a plugin"));
        return Err(ConfigError::Invalid { file, source });
    }
    match list.version() {
        Some(version) => Ok(Loaded { list, version, file }),
        None => Err(ConfigError::Version { file, network: list.name, version: list.cni_version }),
    }
}

fn first(mut files: Vec<PathBuf>) -> Option<PathBuf> {
    files.sort();
    files.into_iter().next()
}

/// Plugins of their own files, `FOLDER/NAME/*.conf` (1.1.0). Without the folder, none.
fn plugins(folder: &Path) -> Result<Vec<Map<String, Value>>, ConfigError> {
    let mut files = match files(folder, &["conf"]) {
        Err(ConfigError::Absent(_)) => return Ok(Vec::new()),
        other => other?,
    };
    files.sort();
    let read = |file: PathBuf| {
        let bytes = std::fs::read(&file).map_err(|source| ConfigError::Read { path: file.clone(), source })?;
        serde_json::from_slice(&bytes).map_err(|error| {
            let source = api::cni::Error::new(api::cni::code::DECODING_FAILURE, error.to_string());
            ConfigError::Invalid { file, source }
        })
    };
    files.into_iter().map(read).collect()
}

fn files(folder: &Path, extensions: &[&str]) -> Result<Vec<PathBuf>, ConfigError> {
    let read = |source: io::Error| ConfigError::Read { path: folder.to_owned(), source };
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(ConfigError::Absent(folder.to_owned()));
        }
        other => other.map_err(read)?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(read)?.path();
        let wanted = path.extension().is_some_and(|own| extensions.iter().any(|wanted| own == *wanted));
        // A link to a file counts, as network add-ons make them.
        if wanted && !path.is_dir() {
            found.push(path);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        folder
    }

    #[test]
    fn the_first_by_name_counts_and_other_files_do_not() {
        let folder = folder(&[
            ("00-readme.txt", "no"),
            ("05-folder.conf/x", ""),
            ("20-late.conf", r#"{"cniVersion":"1.0.0","name":"late","type":"a"}"#),
            ("10-early.conflist", r#"{"cniVersion":"1.1.0","name":"early","plugins":[{"type":"a"}]}"#),
            ("early/2.conf", r#"{"type":"c"}"#),
            ("early/1.conf", r#"{"type":"b"}"#),
            ("early/1.json", "no"),
        ]);
        let loaded = load(folder.path()).unwrap();
        assert_eq!((loaded.list.name.as_str(), loaded.version), ("early", "1.1.0"));
        assert_eq!(loaded.file, folder.path().join("10-early.conflist"));
        let kinds: Vec<_> = loaded.list.plugins.iter().map(|plugin| plugin["type"].as_str().unwrap()).collect();
        assert_eq!(kinds, ["a", "b", "c"]);
    }

    #[test]
    fn each_reason_names_its_file() {
        let said = |files: &[(&str, &str)]| {
            let folder = folder(files);
            load(folder.path()).unwrap_err().to_string().replace(folder.path().to_str().unwrap(), "DIR")
        };
        assert_eq!(
            said(&[]),
            "there is no CNI configuration in DIR: install a network add-on, or put a .conflist there"
        );
        assert_eq!(
            load(Path::new("/nonexistent/net.d")).unwrap_err().to_string(),
            "there is no CNI configuration in /nonexistent/net.d: install a network add-on, or put a .conflist there"
        );
        assert_eq!(
            said(&[("a.conf", r#"{"cniVersion":"0.2.0","name":"n","type":"a"}"#)]),
            "network \"n\" in DIR/a.conf is of CNI version \"0.2.0\": change its cniVersion to one of 0.3.0, 0.3.1, 0.4.0, \
             1.0.0, 1.1.0"
        );
        assert_eq!(
            said(&[("a.conf", r#"{"cniVersion":"1.0.0","name":"n","type":"../../bin/sh"}"#)]),
            "CNI configuration DIR/a.conf is not usable: \"../../bin/sh\" is not the name of a plugin"
        );
        assert!(
            said(&[("a.conf", "{"), ("b.conf", "")]).starts_with("CNI configuration DIR/a.conf is not usable: EOF")
        );
        let broken = [("a.conflist", r#"{"cniVersion":"1.1.0","name":"n"}"#), ("n/1.conf", "[]")];
        assert!(said(&broken).starts_with("CNI configuration DIR/n/1.conf is not usable: invalid type"));
    }
}
