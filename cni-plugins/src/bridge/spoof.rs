//! `macspoofchk`: a container sends with the hardware address that it was given, or not at all.
//!
//! One nftables table, `bridge bosun-macspoof`. Both elements of a container have its owner as comment.

use api::cni::Error;
use kernel::netlink::Mac;
use kernel::nftables::{self, Nftables};

use crate::listing;

const TABLE: &str = "bridge bosun-macspoof";

fn base() -> String {
    format!(
        "add table {TABLE}
add set {TABLE} checked {{ type ifname; }}
add set {TABLE} allowed {{ type ifname . ether_addr; }}
add chain {TABLE} prerouting {{ type filter hook prerouting priority -300; }}
flush chain {TABLE} prerouting
add rule {TABLE} prerouting iifname @checked iifname . ether saddr != @allowed drop
"
    )
}

fn elements(port: &str, mac: Mac, owner: &str) -> String {
    format!(
        "add element {TABLE} allowed {{ \"{port}\" . {mac} comment \"{owner}\" }}
add element {TABLE} checked {{ \"{port}\" comment \"{owner}\" }}
"
    )
}

/// From now on the port takes nothing from another address.
pub fn set(nft: &dyn Nftables, port: &str, mac: Mac, owner: &str) -> Result<(), Error> {
    let script = elements(port, mac, owner);
    let applied = match nft.apply(&script) {
        Err(nftables::Error::Missing(_)) => nft.apply(&(base() + &script)),
        applied => applied,
    };
    applied.map_err(Error::internal)
}

/// Ends it for the owners that `is_gone` names. Not there is success.
pub fn collect(nft: &dyn Nftables, is_gone: impl Fn(&str) -> bool) -> Result<(), Error> {
    let text = match nft.list(&format!("list table {TABLE}")) {
        Err(nftables::Error::Missing(_)) => return Ok(()),
        listed => listed.map_err(Error::internal)?,
    };
    let gone = listing::read(&text).into_iter().filter(|element| is_gone(&element.owner));
    let script: String =
        gone.map(|element| format!("delete element {TABLE} {} {{ {} }}\n", element.set, element.key)).collect();
    if script.is_empty() {
        return Ok(());
    }
    match nft.apply(&script) {
        Err(nftables::Error::Missing(_)) => Ok(()),
        applied => applied.map_err(Error::internal),
    }
}
