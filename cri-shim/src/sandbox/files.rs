//! The files that all containers of a pod see: hostname, hosts, resolv.conf. Source: resolv.conf(5), hosts(5).

use std::fmt::Write;
use std::fs;
use std::path::Path;

use cri::v1::DnsConfig;

use crate::error::{Error, Result};
use crate::folders::SandboxFolders;

/// Writes them. `host` is the folder of the host's own, `/etc`; they need no fsync, since a pod does not survive what
/// they do not.
///
/// # Errors
/// Where a folder or file cannot be written.
pub fn write(folders: &SandboxFolders, host: &Path, hostname: &str, dns: Option<&DnsConfig>) -> Result<()> {
    fs::create_dir_all(&folders.files).map_err(Error::io("make", &folders.files))?;
    let put = |path: &Path, content: &[u8]| fs::write(path, content).map_err(Error::io("write", path));
    put(&folders.hostname(), format!("{hostname}\n").as_bytes())?;
    put(&folders.hosts(), &of_host(host, "hosts", b"127.0.0.1\tlocalhost\n::1\tlocalhost\n"))?;
    match dns.and_then(resolv_conf) {
        Some(text) => put(&folders.resolv_conf(), text.as_bytes()),
        None => put(&folders.resolv_conf(), &of_host(host, "resolv.conf", b"")),
    }
}

fn of_host(host: &Path, name: &str, otherwise: &[u8]) -> Vec<u8> {
    fs::read(host.join(name)).unwrap_or_else(|_| otherwise.to_vec())
}

/// `None` where the configuration says nothing: the host's file counts then.
fn resolv_conf(dns: &DnsConfig) -> Option<String> {
    let DnsConfig { servers, searches, options } = dns;
    if servers.is_empty() && searches.is_empty() && options.is_empty() {
        return None;
    }
    let mut text = String::new();
    // Writing to a string does not fail.
    if !searches.is_empty() {
        let _ = writeln!(text, "search {}", searches.join(" "));
    }
    for server in servers {
        let _ = writeln!(text, "nameserver {server}");
    }
    if !options.is_empty() {
        let _ = writeln!(text, "options {}", options.join(" "));
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dns_of_the_pod_or_else_of_the_host() {
        let dns = DnsConfig {
            servers: vec!["10.96.0.10".into(), "8.8.8.8".into()],
            searches: vec!["default.svc".into(), "svc".into()],
            options: vec!["ndots:5".into()],
        };
        let expected = "search default.svc svc\nnameserver 10.96.0.10\nnameserver 8.8.8.8\noptions ndots:5\n";
        assert_eq!(resolv_conf(&dns).as_deref(), Some(expected));
        assert_eq!(resolv_conf(&DnsConfig::default()), None);
    }

    #[test]
    fn a_pod_gets_the_hosts_files_where_it_asks_for_none() {
        let dir = tempfile::tempdir().unwrap();
        let host = dir.path().join("etc");
        fs::create_dir(&host).unwrap();
        fs::write(host.join("resolv.conf"), "nameserver 1.1.1.1\n").unwrap();
        let folders = SandboxFolders { files: dir.path().join("files"), state: dir.path().join("state") };
        write(&folders, &host, "web-1", None).unwrap();
        assert_eq!(fs::read_to_string(folders.hostname()).unwrap(), "web-1\n");
        assert_eq!(fs::read_to_string(folders.resolv_conf()).unwrap(), "nameserver 1.1.1.1\n");
        assert!(fs::read_to_string(folders.hosts()).unwrap().contains("localhost"));
    }
}
