//! `ipMasq`: what a container sends beyond its own network leaves with the node's address.
//!
//! One nftables table a family, `bosun-masquerade`; an element with the owner as comment for each address.

use std::net::IpAddr;

use api::cni::{Error, Ip};
use kernel::nftables::Nftables;

/// The script that makes the addresses' traffic masqueraded.
fn add(ips: &[Ip], owner: &str) -> String {
    ips.iter().map(|ip| format!("{}{}", base(ip.address.ip()), elements("add", ip, Some(owner)))).collect()
}

/// The script that undoes [`add`], also where it was never applied: nft 1.0 deletes only what is there, so that
/// what shall go is added first, in the same transaction.
fn remove(ips: &[Ip]) -> String {
    ips.iter()
        .map(|ip| format!("{}{}{}", base(ip.address.ip()), elements("add", ip, None), elements("delete", ip, None)))
        .collect()
}

fn base(ip: IpAddr) -> String {
    let (family, kind, multicast) = match ip {
        IpAddr::V4(_) => ("ip", "ipv4_addr", "224.0.0.0/4"),
        IpAddr::V6(_) => ("ip6", "ipv6_addr", "ff00::/8"),
    };
    format!(
        "add table {family} bosun-masquerade
add set {family} bosun-masquerade sources {{ type {kind}; comment \"containers with ipMasq\"; }}
add set {family} bosun-masquerade near {{ type {kind} . {kind}; flags interval; comment \"to their own network\"; }}
add chain {family} bosun-masquerade postrouting {{ type nat hook postrouting priority 100; }}
flush chain {family} bosun-masquerade postrouting
add rule {family} bosun-masquerade postrouting {family} saddr @sources {family} saddr . {family} daddr != @near {family} daddr != {multicast} masquerade
"
    )
}

fn elements(verb: &str, ip: &Ip, owner: Option<&str>) -> String {
    let (address, net) = (ip.address.ip(), ip.address);
    let family = if address.is_ipv4() { "ip" } else { "ip6" };
    let network = format!("{}/{}", net.network(), net.prefix());
    let comment = owner.map(|owner| format!(" comment \"{owner}\"")).unwrap_or_default();
    format!(
        "{verb} element {family} bosun-masquerade sources {{ {address}{comment} }}
{verb} element {family} bosun-masquerade near {{ {address} . {network}{comment} }}
"
    )
}

/// Masquerades `ips` from now on.
pub fn set(nft: &dyn Nftables, ips: &[Ip], owner: &str) -> Result<(), Error> {
    apply(nft, &add(ips, owner))
}

/// Ends it. Not there is success.
pub fn unset(nft: &dyn Nftables, ips: &[Ip]) -> Result<(), Error> {
    apply(nft, &remove(ips))
}

fn apply(nft: &dyn Nftables, script: &str) -> Result<(), Error> {
    match script {
        "" => Ok(()),
        _ => nft.apply(script).map_err(Error::internal),
    }
}
