//! `vlan`: a link in one network (IEEE 802.1Q) of one of the node's.

use api::cni::Error;
use kernel::netlink::Kind;
use serde::Deserialize;

use super::{Parent, Wanted};
use crate::skel::Call;

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Config {
    master: String,
    vlan_id: i64,
    mtu: u32,
    link_in_container: bool,
}

pub fn wanted(call: &Call) -> Result<Wanted, Error> {
    let config: Config = call.own()?;
    if config.master.is_empty() {
        return Err(Error::config("master is missing: the link that carries the network"));
    }
    let id = u16::try_from(config.vlan_id).ok().filter(|id| *id <= 4094);
    let id = id.ok_or_else(|| Error::config(format!("vlanId {} is not from 0 to 4094", config.vlan_id)))?;
    Ok(Wanted {
        kind: Kind::Vlan(id),
        parent: Parent::Named(config.master),
        parent_inside: config.link_in_container,
        mtu: config.mtu,
        mac: None,
        notify: false,
    })
}
