//! `--egress`: the host forwards for a cluster's nodes and puts its own address in the place of theirs.

use kernel::nftables::{self, Nft, Nftables};

use super::IP_FORWARD;
use crate::cluster::{Cluster, all};

/// The host's nftables table of a cluster. A cluster's name has no underscore.
fn table(cluster: &str) -> String {
    format!("bosun_{}", cluster.replace('-', "_"))
}

/// Lets the cluster's nodes reach what the host reaches: a table of its own, and forwarding.
///
/// # Errors
/// Where nft or the kernel refuses.
pub fn open(cluster: &Cluster) -> anyhow::Result<()> {
    Nft.apply(&rules(cluster))?;
    kernel::sysctl::write(IP_FORWARD, "1")?;
    Ok(())
}

/// What the host's forwarding is now.
///
/// # Errors
/// Where the kernel does not say.
pub fn forwarding() -> anyhow::Result<String> {
    Ok(kernel::sysctl::read(IP_FORWARD)?)
}

fn rules(cluster: &Cluster) -> String {
    let (table, link, network) = (table(&cluster.name), cluster.host_link(), cluster.network());
    format!(
        "add table ip {table}
delete table ip {table}
add table ip {table}
add chain ip {table} forward {{ type filter hook forward priority 0; }}
add rule ip {table} forward iifname \"{link}\" accept
add rule ip {table} forward oifname \"{link}\" ct state established,related accept
add chain ip {table} postrouting {{ type nat hook postrouting priority 100; }}
add rule ip {table} postrouting ip saddr {network} oifname != \"{link}\" masquerade
"
    )
}

/// # Errors
/// Where nft refuses; a table that is not there is success.
pub fn remove_rules(name: &str) -> anyhow::Result<()> {
    match Nft.apply(&format!("delete table ip {}", table(name))) {
        Err(nftables::Error::Missing(_)) => Ok(()),
        done => Ok(done?),
    }
}

/// The last cluster with egress restores what the first one found.
///
/// # Errors
/// Where another cluster's file or the switch cannot be written.
pub fn restore_forwarding(name: &str, cluster: Option<&Cluster>) -> anyhow::Result<()> {
    let Some(before) = cluster.and_then(|cluster| cluster.ip_forward_before.clone()) else { return Ok(()) };
    let mut others = all()?;
    if let Some(heir) = others.iter_mut().find(|other| other.name != name && other.ip_forward_before.is_some()) {
        if before == "0" {
            heir.ip_forward_before = Some(before);
            heir.save()?;
        }
        return Ok(());
    }
    kernel::sysctl::write(IP_FORWARD, &before)?;
    Ok(())
}
