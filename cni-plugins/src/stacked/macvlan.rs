//! `macvlan`: a link with a hardware address of its own on one of the node's.

use api::cni::Error;
use kernel::netlink::{Kind, MacvlanMode};
use serde::Deserialize;

use super::{Parent, Wanted};
use crate::skel::Call;

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Config {
    master: String,
    mode: String,
    mtu: u32,
    mac: String,
    link_in_container: bool,
    #[serde(rename = "bcqueuelen")]
    queue: u32,
}

const MODES: [(&str, MacvlanMode); 4] = [
    ("bridge", MacvlanMode::Bridge),
    ("private", MacvlanMode::Private),
    ("vepa", MacvlanMode::Vepa),
    ("passthru", MacvlanMode::Passthru),
];

pub fn name(mode: MacvlanMode) -> &'static str {
    MODES.iter().find(|(_, other)| *other == mode).map_or("", |(name, _)| *name)
}

pub fn wanted(call: &Call) -> Result<Wanted, Error> {
    let config: Config = call.own()?;
    let asked = if config.mode.is_empty() { "bridge" } else { &config.mode };
    let mode = MODES.iter().find(|(name, _)| *name == asked).map(|(_, mode)| *mode);
    let unknown = || Error::config(format!("mode {asked:?} is none of bridge, private, vepa and passthru"));
    Ok(Wanted {
        kind: Kind::Macvlan { mode: mode.ok_or_else(unknown)?, queue: config.queue },
        parent: if config.master.is_empty() { Parent::Default } else { Parent::Named(config.master) },
        parent_inside: config.link_in_container,
        mtu: config.mtu,
        mac: call.mac(&config.mac)?,
        notify: true,
    })
}
