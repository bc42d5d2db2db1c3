//! What is attached, on disk: `CACHE/results/NETWORK-CONTAINER-INTERFACE`, in the format of libcni, which other tools
//! read.
//!
//! An entry without a result is an ADD that has not succeeded, or not yet. Files are replaced in one step but not
//! synced: after a power cut no namespace lives, and an entry that is missing only means that DEL uses the present
//! configuration.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

use super::CniError;

/// The one format there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Kind {
    #[serde(rename = "cniCacheV1")]
    V1,
}

/// One attachment. Source: `cachedInfo` of containernetworking/cni, libcni/api.go.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Entry {
    pub kind: Kind,
    pub container_id: String,
    /// The configuration list that ADD used.
    #[serde(serialize_with = "encode", deserialize_with = "decode")]
    pub config: Vec<u8>,
    pub if_name: String,
    pub network_name: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub netns: String,
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub cni_args: Vec<(String, String)>,
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Map::is_empty")]
    pub capability_args: Map<String, Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<Value>,
}

fn encode<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&STANDARD.encode(bytes))
}

fn decode<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?.unwrap_or_default();
    STANDARD.decode(text).map_err(serde::de::Error::custom)
}

/// Go writes null for what is empty.
fn or_default<'de, T: Deserialize<'de> + Default, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
    Option::<T>::deserialize(deserializer).map(Option::unwrap_or_default)
}

impl Entry {
    pub fn new(network: &str, container: &str, interface: &str) -> Self {
        Self {
            kind: Kind::V1,
            container_id: container.to_owned(),
            config: Vec::new(),
            if_name: interface.to_owned(),
            network_name: network.to_owned(),
            netns: String::new(),
            cni_args: Vec::new(),
            capability_args: Map::new(),
            result: None,
        }
    }

    /// `None` for what is no entry of this kind.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice(bytes).ok().filter(Self::is_named)
    }

    fn is_named(&self) -> bool {
        [&self.network_name, &self.container_id, &self.if_name].iter().all(|name| api::cni::is_identifier(name))
    }

    fn file(&self) -> String {
        format!("{}-{}-{}", self.network_name, self.container_id, self.if_name)
    }
}

/// Reads any bytes as an entry, which is written as it was read: for fuzzing.
pub fn is_entry(bytes: &[u8]) -> bool {
    let Some(entry) = Entry::parse(bytes) else { return false };
    serde_json::to_vec(&entry).is_ok_and(|text| Entry::parse(&text).as_ref() == Some(&entry))
}

/// The folder of entries. It is made when it is needed.
#[derive(Debug)]
pub(super) struct Cache {
    folder: PathBuf,
}

static NEXT: AtomicU64 = AtomicU64::new(0);

impl Cache {
    /// `folder` is that of all of CNI, as `/var/lib/cni`.
    pub fn new(folder: PathBuf) -> Self {
        Self { folder: folder.join("results") }
    }

    pub fn put(&self, entry: &Entry) -> Result<(), CniError> {
        let path = self.folder.join(entry.file());
        let staged = self.folder.join(format!(".{}.{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)));
        let write = || -> io::Result<()> {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.folder)?;
            let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&staged)?;
            file.write_all(&serde_json::to_vec(entry)?)?;
            fs::rename(&staged, &path)
        };
        write().map_err(|source| {
            // Nobody reads it.
            let _ = fs::remove_file(&staged);
            CniError::Cache { verb: "write", path, source }
        })
    }

    pub fn remove(&self, entry: &Entry) -> Result<(), CniError> {
        let path = self.folder.join(entry.file());
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(CniError::Cache { verb: "remove from", path, source })
            }
            _ => Ok(()),
        }
    }

    /// The entries of one container, sorted by name.
    pub fn of(&self, container: &str) -> Result<Vec<Entry>, CniError> {
        let part = format!("-{container}-");
        let mut found = self.read(&|name| name.contains(&part))?;
        found.retain(|entry| entry.container_id == container);
        Ok(found)
    }

    /// All entries of all networks, sorted by name.
    pub fn all(&self) -> Result<Vec<Entry>, CniError> {
        self.read(&|name| !name.starts_with('.'))
    }

    fn read(&self, wanted: &dyn Fn(&str) -> bool) -> Result<Vec<Entry>, CniError> {
        let failed = |source| CniError::Cache { verb: "list", path: self.folder.clone(), source };
        let entries = match fs::read_dir(&self.folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(failed)?,
        };
        let mut names = BTreeSet::new();
        for entry in entries {
            // A name that is not text is none of libcni's.
            names.extend(entry.map_err(failed)?.file_name().into_string().ok().filter(|name| wanted(name)));
        }
        let mut found = Vec::new();
        for path in names.iter().map(|name| self.folder.join(name)) {
            match fs::read(&path) {
                Ok(bytes) => match Entry::parse(&bytes) {
                    Some(entry) => found.push(entry),
                    None => tracing::warn!("{} is no cached CNI attachment, and is passed over", path.display()),
                },
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(CniError::Cache { verb: "read", path, source }),
            }
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn entry(container: &str) -> Entry {
        Entry {
            config: br#"{"name":"pods"}"#.to_vec(),
            netns: "/run/ns/net".into(),
            cni_args: vec![("K8S_POD_NAME".into(), "web".into())],
            capability_args: Map::from_iter([("mac".to_owned(), json!("02:00:00:00:00:01"))]),
            result: Some(json!({"cniVersion": "1.0.0"})),
            ..Entry::new("pods", container, "eth0")
        }
    }

    #[test]
    fn an_entry_is_written_as_libcni_writes_it() {
        let expected = json!({
            "kind": "cniCacheV1", "containerId": "abc", "config": "eyJuYW1lIjoicG9kcyJ9", "ifName": "eth0",
            "networkName": "pods", "netns": "/run/ns/net", "cniArgs": [["K8S_POD_NAME", "web"]],
            "capabilityArgs": {"mac": "02:00:00:00:00:01"}, "result": {"cniVersion": "1.0.0"},
        });
        assert_eq!(serde_json::to_value(entry("abc")).unwrap(), expected);
        assert_eq!(Entry::parse(expected.to_string().as_bytes()), Some(entry("abc")));
        let sparse = json!({"kind": "cniCacheV1", "containerId": "a", "config": null, "ifName": "eth0", "networkName": "n",
            "cniArgs": null});
        assert_eq!(Entry::parse(sparse.to_string().as_bytes()), Some(Entry::new("n", "a", "eth0")));
        let elsewhere = br#"{"kind":"cniCacheV1","containerId":"../a","config":"","ifName":"eth0","networkName":"n"}"#;
        assert_eq!(Entry::parse(elsewhere), None);
    }

    #[test]
    fn entries_are_found_and_what_is_none_is_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::new(folder.path().join("cni"));
        assert_eq!(cache.of("a").unwrap(), []);
        cache.remove(&entry("a")).unwrap();
        for container in ["a", "b"] {
            cache.put(&Entry { result: None, ..entry(container) }).unwrap();
            cache.put(&entry(container)).unwrap();
        }
        fs::write(folder.path().join("cni/results/pods-a-eth1"), "garbage").unwrap();
        assert_eq!(cache.of("a").unwrap(), [entry("a")]);
        fs::write(folder.path().join("cni/results/.1.1"), serde_json::to_vec(&entry("c")).unwrap()).unwrap();
        assert_eq!(cache.all().unwrap(), [entry("a"), entry("b")]);
        cache.remove(&entry("a")).unwrap();
        assert_eq!(cache.all().unwrap(), [entry("b")]);
        assert_eq!(fs::read_dir(folder.path().join("cni/results")).unwrap().count(), 3);
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_entry_or_none(bytes in any::<Vec<u8>>()) {
            let _ = Entry::parse(&bytes);
        }

        #[test]
        fn what_is_written_reads_the_same(config in any::<Vec<u8>>(), netns in ".*", value in ".*") {
            let cni_args = vec![("K".to_owned(), value)];
            let entry = Entry { config, netns, cni_args, ..entry("abc") };
            prop_assert_eq!(Entry::parse(&serde_json::to_vec(&entry).unwrap()), Some(entry));
        }
    }
}
