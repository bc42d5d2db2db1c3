//! `ipMasq`: what a container sends beyond its own network leaves with the node's address.
//!
//! One nftables table a family, `bosun-masquerade`; an element with the owner as comment for each address. A change
//! of the rules in [`base`] needs another name for a set: where the sets are there, the rules are not written again,
//! because nft waits for an RCU grace period (12 ms) after every transaction that removes something.

use std::net::IpAddr;

use api::cni::{Error, Ip};
use kernel::nftables::{self, Nftables};

use crate::listing::{self, Family};

/// Both backends of the reference make the same of a packet; here nftables does it, whichever is named.
pub fn known_backend(name: &str) -> Result<(), Error> {
    match name {
        "" | "iptables" | "nftables" => Ok(()),
        other => Err(Error::config(format!("ipMasqBackend {other:?} is neither iptables nor nftables"))),
    }
}

/// The script that makes the addresses' traffic masqueraded, where the tables are there.
fn add(ips: &[Ip], owner: &str) -> String {
    ips.iter().map(|ip| elements("add", ip, Some(owner))).collect()
}

/// The script that undoes [`add`], also where it was never applied: nft 1.0 deletes only what is there, so that
/// what shall go is added first, in the same transaction.
fn remove(ips: &[Ip]) -> String {
    ips.iter().map(|ip| elements("add", ip, None) + &elements("delete", ip, None)).collect()
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
    if ips.is_empty() {
        return Ok(());
    }
    let script = add(ips, owner);
    let applied = match nft.apply(&script) {
        Err(nftables::Error::Missing(_)) => {
            let tables: String = ips.iter().map(|ip| base(ip.address.ip())).collect();
            nft.apply(&(tables + &script))
        }
        applied => applied,
    };
    applied.map_err(Error::internal)
}

/// Ends it. Not there is success.
pub fn unset(nft: &dyn Nftables, ips: &[Ip]) -> Result<(), Error> {
    if ips.is_empty() {
        return Ok(());
    }
    gone(nft.apply(&remove(ips)))
}

/// Ends it for the owners that `is_gone` names.
pub fn collect(nft: &dyn Nftables, is_gone: impl Fn(&str) -> bool) -> Result<(), Error> {
    for family in [Family::V4, Family::V6] {
        let text = match nft.list(&format!("list table {} bosun-masquerade", family.name())) {
            Err(nftables::Error::Missing(_)) => continue,
            listed => listed.map_err(Error::internal)?,
        };
        let elements = listing::read(&text);
        let gone_ones = elements.iter().filter(|element| is_gone(&element.owner));
        let script: String = gone_ones.map(|element| element.delete(family, "bosun-masquerade")).collect();
        if !script.is_empty() {
            gone(nft.apply(&script))?;
        }
    }
    Ok(())
}

/// A table or an element that is not there any more is what was wanted.
fn gone(applied: Result<(), nftables::Error>) -> Result<(), Error> {
    match applied {
        Err(nftables::Error::Missing(_)) => Ok(()),
        applied => applied.map_err(Error::internal),
    }
}
