//! How the node's containerd reaches registries: a certs.d folder in which nothing leads to the node's own loopback.
//!
//! containerd gets the relay as its HTTP proxy. Go does not ask a proxy for loopback hosts, so those go another way:
//! an image's own loopback registry through a mirror that is the relay, and a loopback URL in a hosts.toml by a name
//! that the relay knows. Source: containerd docs/hosts.md.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::Context;

use crate::relay::{LOOPBACK, SECRET_HEADER, Secret};

/// The node's certs.d folder.
pub const CERTS: &str = "/run/bosun/certs.d";

/// Copies the user's folder, if there is one, and adds the relay to what holds for every registry.
///
/// # Errors
/// Where a file cannot be read or written.
pub fn write(theirs: Option<&Path>, relay: SocketAddr, secret: &Secret) -> anyhow::Result<()> {
    let folder = Path::new(CERTS);
    if let Some(theirs) = theirs {
        copy(theirs, folder)?;
    }
    let default = folder.join("_default");
    fs::create_dir_all(&default)?;
    let hosts = default.join("hosts.toml");
    let text = fs::read_to_string(&hosts).unwrap_or_default() + &mirror(relay, secret);
    write_secret(&hosts, &text)
}

fn mirror(relay: SocketAddr, secret: &Secret) -> String {
    let secret = secret.as_str();
    format!(
        "\n[host.\"http://{relay}\"]\n  capabilities = [\"pull\", \"resolve\"]\n\
         [host.\"http://{relay}\".header]\n  {SECRET_HEADER} = [\"{secret}\"]\n"
    )
}

fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(to)?;
    let entries = fs::read_dir(from).with_context(|| format!("read {}", from.display()))?;
    for entry in entries {
        let entry = entry?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        // Links are followed: what they lead to may be hidden in the node.
        if source.is_dir() {
            copy(&source, &target)?;
        } else if entry.file_name() == "hosts.toml" {
            let text = fs::read_to_string(&source).with_context(|| format!("read {}", source.display()))?;
            write_secret(&target, &by_name(&text))?;
        } else {
            fs::copy(&source, &target).with_context(|| format!("copy {}", source.display()))?;
        }
    }
    Ok(())
}

fn write_secret(path: &Path, text: &str) -> anyhow::Result<()> {
    Ok(lifecycle::file::write_atomic(path, text.as_bytes(), 0o600)?)
}

/// Loopback URLs by the name under which the relay knows the host's loopback.
fn by_name(hosts: &str) -> String {
    let mut text = hosts.to_owned();
    for scheme in ["http", "https"] {
        for host in ["127.0.0.1", "localhost", "[::1]"] {
            for end in [":", "/", "\"", "'"] {
                text = text.replace(&format!("{scheme}://{host}{end}"), &format!("{scheme}://{LOOPBACK}{end}"));
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_urls_get_the_relays_name_and_others_stay() {
        let text =
            "server = \"http://127.0.0.1:5000\"\n[host.'https://localhost/v2']\n[host.\"http://127.0.0.10:1\"]\n";
        let named = "server = \"http://loopback.bosun.internal:5000\"\n\
                     [host.'https://loopback.bosun.internal/v2']\n[host.\"http://127.0.0.10:1\"]\n";
        assert_eq!(by_name(text), named);
    }
}
