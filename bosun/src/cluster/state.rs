//! What a cluster is, as its state file holds it.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::{fmt, fs, io};

use anyhow::Context;
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::{Paths, ROOT, topology};

/// The version of the state file that this bosun writes and reads.
const VERSION: u32 = 1;

/// A cluster of this machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Cluster {
    pub version: u32,
    pub name: String,
    /// Which of the underlay networks 172.30.N.0/24 it has. Names of links and tables on the host carry it too.
    pub number: u8,
    pub settings: Settings,
    pub nodes: Vec<Node>,
    /// The host's net.ipv4.ip_forward before `--egress` switched it on, for `down` to restore.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip_forward_before: Option<String>,
}

/// Who serves the container runtime interface on the nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Cri {
    /// `bosun cri`, over containerd's native API
    Bosun,
    /// containerd's own CRI plugin
    Containerd,
}

impl fmt::Display for Cri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bosun => "bosun",
            Self::Containerd => "containerd",
        })
    }
}

/// What the user chose. A cluster keeps it for life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Settings {
    pub kubeconfig: PathBuf,
    pub registry_config: Option<PathBuf>,
    pub cri: Cri,
    pub egress: bool,
    // A bosun that knew one node alone wrote neither.
    #[serde(default = "one")]
    pub nodes: u8,
    /// How many racks the nodes are behind; none is one LAN.
    #[serde(default)]
    pub racks: u8,
    /// Whether IPv6 is there beside IPv4.
    #[serde(default)]
    pub dual_stack: bool,
}

fn one() -> u8 {
    1
}

/// A node of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Node {
    pub name: String,
    pub address: Ipv4Addr,
    /// The number of its rack, where the cluster has racks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rack: Option<u8>,
}

impl Cluster {
    pub fn new(name: &str, number: u8, settings: Settings) -> Self {
        let nodes = topology::nodes(number, name, &settings);
        Self { version: VERSION, name: name.to_owned(), number, settings, nodes, ip_forward_before: None }
    }

    pub fn paths(&self) -> Paths {
        Paths::of(&self.name)
    }

    /// The kubeconfig's context, cluster and user.
    pub fn context(&self) -> String {
        format!("bosun-{}", self.name)
    }

    /// The host's end of the one veth pair, and the host's nftables table.
    pub fn host_link(&self) -> String {
        format!("bosun{}", self.number)
    }

    /// Where clients find the API server: on the first node.
    pub fn server(&self) -> String {
        let address = self.nodes.first().map_or(self.host_address(), |node| node.address);
        format!("https://{address}:6443")
    }

    /// The cgroup of the cluster, in every hierarchy.
    pub fn cgroup(&self) -> String {
        format!("/bosun/{}", self.name)
    }

    /// # Errors
    /// Where the file is there and cannot be read, or another bosun wrote it in a way that this one does not know.
    pub fn load(name: &str) -> anyhow::Result<Option<Self>> {
        let path = Paths::of(name).state();
        let text = match fs::read_to_string(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            text => text.with_context(|| format!("read {}", path.display()))?,
        };
        parse(&text).with_context(|| format!("read {}", path.display())).map(Some)
    }

    /// # Errors
    /// Where the file cannot be written.
    pub fn save(&self) -> anyhow::Result<()> {
        let text = serde_json::to_string_pretty(self)? + "\n";
        Ok(lifecycle::file::write_atomic(&self.paths().state(), text.as_bytes(), 0o600)?)
    }
}

fn parse(text: &str) -> anyhow::Result<Cluster> {
    #[derive(Deserialize)]
    struct Versioned {
        version: u32,
    }
    let Versioned { version } = serde_json::from_str(text)?;
    anyhow::ensure!(
        version == VERSION,
        "it has version {version} and this bosun knows {VERSION}: use the bosun that made the cluster"
    );
    Ok(serde_json::from_str(text)?)
}

/// The clusters of this machine, by name. One whose file cannot be read is an error: nothing could be decided.
///
/// # Errors
/// As [`Cluster::load`].
pub fn all() -> anyhow::Result<Vec<Cluster>> {
    let entries = match fs::read_dir(ROOT) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.with_context(|| format!("read {ROOT}"))?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let path = entry?.path();
        names.extend(path.join("cluster.json").exists().then(|| name_of(&path)).flatten());
    }
    names.sort();
    names.iter().filter_map(|name| Cluster::load(name).transpose()).collect()
}

fn name_of(path: &Path) -> Option<String> {
    Some(path.file_name()?.to_str()?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_file_is_refused_and_an_equal_one_read_back() {
        let kubeconfig = "/k".into();
        let settings = Settings {
            kubeconfig,
            registry_config: None,
            cri: Cri::Containerd,
            egress: false,
            nodes: 3,
            racks: 2,
            dual_stack: false,
        };
        let cluster = Cluster::new("dev", 3, settings);
        let text = serde_json::to_string(&cluster).unwrap();
        assert_eq!(parse(&text).unwrap(), cluster);
        assert_eq!(cluster.server(), "https://172.30.3.34:6443");
        let older = text.replacen(",\"nodes\":3,\"racks\":2,\"dualStack\":false}", "}", 1);
        assert_eq!(parse(&older).unwrap().settings.nodes, 1);
        let newer = text.replacen("\"version\":1", "\"version\":2,\"more\":[]", 1);
        assert!(parse(&newer).unwrap_err().to_string().starts_with("it has version 2"));
    }
}
