//! Who pulled what: a small file under the root folder, so that a private image that is present is lent only to pods
//! that hold a credential it was once pulled with. Images that nobody is recorded for are the node's.
//!
//! `{"version":1,"images":{ID:{"names":[NAME],"credentials":[SHA-256]}}}`; an image that was pulled without any has no entry.

use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use tracing::warn;

#[derive(Debug)]
pub struct Records {
    path: PathBuf,
    file: Mutex<File>,
}

#[derive(Debug, Default, Deserialize, Serialize)]
struct File {
    version: u32,
    images: BTreeMap<String, Entry>,
}

#[derive(Debug, Default, Deserialize, Serialize)]
struct Entry {
    names: BTreeSet<String>,
    credentials: BTreeSet<String>,
}

impl Records {
    /// Reads the file; one that is absent is empty.
    pub fn open(path: PathBuf) -> Self {
        let file = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_else(|error| {
                warn!(path = %path.display(), %error, "the record of image credentials is unreadable and begins anew");
                File::default()
            }),
            Err(_) => File::default(),
        };
        Self { path, file: Mutex::new(file) }
    }

    /// Fingerprints of which one is needed to use the image; `None` where anybody may.
    pub fn needed(&self, id: &str, name: &str) -> Option<BTreeSet<String>> {
        let file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = file.images.get(id).filter(|entry| entry.names.contains(name) || !entry.names.is_empty())?;
        Some(entry.credentials.clone())
    }

    /// Notes a pull. One without a credential opens the image to all.
    pub fn pulled(&self, id: &str, name: &str, credential: Option<String>) {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        match credential {
            None if file.images.remove(id).is_none() => return,
            None => {}
            Some(credential) => {
                let entry = file.images.entry(id.to_string()).or_default();
                let news = entry.names.insert(name.to_string());
                if !entry.credentials.insert(credential) && !news {
                    return;
                }
            }
        }
        file.version = 1;
        self.store(&file);
    }

    /// Forgets images that are gone.
    pub fn forget(&self, id: &str) {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        if file.images.remove(id).is_some() {
            self.store(&file);
        }
    }

    fn store(&self, file: &File) {
        let stored = serde_json::to_vec(file)
            .map_err(std::io::Error::from)
            .and_then(|bytes| lifecycle::file::write_atomic(&self.path, &bytes, 0o600));
        if let Err(error) = stored {
            warn!(path = %self.path.display(), %error, "the record of image credentials was not stored");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_private_image_needs_its_credential_until_it_is_pulled_without() {
        let folder = std::env::temp_dir().join(format!("bosun-records-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("records.json");
        let records = Records::open(path.clone());
        assert_eq!(records.needed("i", "n"), None);
        records.pulled("i", "n", Some("c".into()));
        let again = Records::open(path);
        assert_eq!(again.needed("i", "n"), Some(BTreeSet::from(["c".to_string()])));
        again.pulled("i", "n", None);
        assert_eq!(again.needed("i", "n"), None);
        std::fs::remove_dir_all(folder).unwrap();
    }
}
