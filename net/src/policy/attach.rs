//! What is attached to this node, remembered across restarts of the daemon: one file for each link, named like it, in
//! a folder that ends with the machine's run, as the links do.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use kernel::netlink::{self, Network};
use lifecycle::file::write_atomic;

use super::model::Attachment;
use crate::control::Request;

pub struct Store {
    folder: PathBuf,
}

impl Store {
    /// # Errors
    /// Where the folder cannot be made.
    pub fn open(folder: &Path) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        Ok(Self { folder: folder.to_owned() })
    }

    /// # Errors
    /// Where the file cannot be written.
    pub fn save(&self, attachment: &Attachment) -> io::Result<()> {
        let text = serde_json::to_vec(attachment)?;
        write_atomic(&self.folder.join(&*attachment.link), &text, 0o600)
    }

    pub fn remove(&self, link: &str) {
        if let Err(error) = fs::remove_file(self.folder.join(link))
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!("cannot forget link {link}: {error}");
        }
    }

    /// Those that were saved. A file that cannot be read is told and removed: its pod is attached again by the runtime
    /// or goes.
    ///
    /// # Errors
    /// Where the folder cannot be read.
    pub fn load(&self) -> io::Result<Vec<Attachment>> {
        let mut all = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let path = entry?.path();
            match fs::read(&path).and_then(|text| Ok(serde_json::from_slice(&text)?)) {
                Ok(attachment) => all.push(attachment),
                Err(error) => {
                    tracing::warn!("cannot read attachment {}: {error}", path.display());
                    let _ = fs::remove_file(&path);
                }
            }
        }
        Ok(all)
    }
}

/// The attachment that a request tells of. `Err` says what is wrong with it.
pub fn read(request: &Request) -> Option<Result<Attachment, String>> {
    let Request::Attach { namespace, pod, uid, container, link, addresses } = request else { return None };
    let named = [("namespace", namespace), ("pod", pod), ("container", container)];
    if let Some((field, _)) = named.into_iter().find(|(_, text)| text.is_empty()) {
        return Some(Err(format!("{field} is empty")));
    }
    // The link's name goes into rules and is a file's name.
    if !is_link(link) {
        return Some(Err(format!("link: {link:?} is no interface's name")));
    }
    Some(Ok(Attachment {
        container: container.as_str().into(),
        link: link.as_str().into(),
        namespace: namespace.as_str().into(),
        pod: pod.as_str().into(),
        uid: uid.as_str().into(),
        addresses: addresses.clone().into(),
    }))
}

/// Letters, digits and what else the plugins put into names; the kernel takes more.
fn is_link(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    !text.is_empty() && text.len() < 16 && !matches!(text, "." | "..") && text.chars().all(plain)
}

/// Those of the links that this network namespace has.
///
/// # Errors
/// Where the kernel does not say.
pub fn present() -> netlink::Result<std::collections::HashSet<String>> {
    let mut network = netlink::Kernel::open()?;
    Ok(network.links()?.into_iter().map(|link| link.name).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attachments_outlive_the_daemon() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("net")).unwrap();
        let request = Request::Attach {
            namespace: "a".into(),
            pod: "web".into(),
            uid: "u".into(),
            container: "c".into(),
            link: "veth1".into(),
            addresses: vec!["10.0.0.1".parse().unwrap()],
        };
        let attachment = read(&request).unwrap().unwrap();
        store.save(&attachment).unwrap();
        fs::write(folder.path().join("net/veth2"), "{").unwrap();
        let store = Store::open(&folder.path().join("net")).unwrap();
        assert_eq!(store.load().unwrap(), [attachment]);
        store.remove("veth1");
        store.remove("veth1");
        assert_eq!(store.load().unwrap(), []);
    }

    #[test]
    fn a_request_with_a_strange_link_is_refused() {
        for link in ["", "..", "a/b", "a\" }", "seventeen-letters"] {
            let request = Request::Attach {
                namespace: "a".into(),
                pod: "web".into(),
                uid: "".into(),
                container: "c".into(),
                link: link.into(),
                addresses: vec![],
            };
            assert_eq!(read(&request).unwrap().unwrap_err(), format!("link: {link:?} is no interface's name"));
        }
        assert_eq!(read(&Request::Peers), None);
    }
}
