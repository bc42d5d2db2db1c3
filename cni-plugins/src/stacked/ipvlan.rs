//! `ipvlan`: a link that shares the hardware address of one of the node's. In a chain it may stand on the interface
//! of the plugin before, and take over its addresses.

use api::cni::Error;
use kernel::netlink::{IpvlanMode, Kind};
use serde::Deserialize;

use super::{Parent, Wanted};
use crate::skel::Call;

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Config {
    master: String,
    mode: String,
    mtu: u32,
    link_in_container: bool,
}

const MODES: [(&str, IpvlanMode); 3] = [("l2", IpvlanMode::L2), ("l3", IpvlanMode::L3), ("l3s", IpvlanMode::L3s)];

pub fn name(mode: IpvlanMode) -> &'static str {
    MODES.iter().find(|(_, other)| *other == mode).map_or("", |(name, _)| *name)
}

pub fn wanted(call: &Call) -> Result<Wanted, Error> {
    let config: Config = call.own()?;
    let asked = if config.mode.is_empty() { "l2" } else { &config.mode };
    let mode = MODES.iter().find(|(name, _)| *name == asked).map(|(_, mode)| *mode);
    let unknown = || Error::config(format!("mode {asked:?} is none of l2, l3 and l3s"));
    Ok(Wanted {
        kind: Kind::Ipvlan(mode.ok_or_else(unknown)?),
        parent: parent(call, config.master)?,
        parent_inside: config.link_in_container,
        mtu: config.mtu,
        mac: None,
        notify: true,
    })
}

fn parent(call: &Call, master: String) -> Result<Parent, Error> {
    if !master.is_empty() {
        return Ok(Parent::Named(master));
    }
    // CHECK has this plugin's own result there.
    let Some(previous) = call.config.previous()?.filter(|told| !told.interfaces.iter().any(|i| i.name == call.ifname))
    else {
        return Ok(Parent::Default);
    };
    match &previous.interfaces[..] {
        [only] if !only.name.is_empty() => Ok(Parent::Named(only.name.clone())),
        _ => Err(Error::config("the previous result has not exactly one interface that could be the master: name one")),
    }
}
