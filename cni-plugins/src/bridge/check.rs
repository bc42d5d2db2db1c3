//! CHECK: whether what ADD answered still stands.

use api::cni::{Error, Success};
use kernel::netlink::Network;

use super::config::Config;
use crate::interface::{Container, find, same_address};
use crate::skel::Call;

/// Compares the previous result with both sides.
pub fn check(
    node: &mut dyn Network,
    container: &mut Container,
    call: &Call,
    config: &Config,
    previous: &Success,
) -> Result<(), Error> {
    let bridge = &config.bridge;
    let master = find(node, bridge)?;
    if master.kind != "bridge" {
        return Err(Error::internal(format!("{bridge} is not a bridge")));
    }
    if master.promiscuous != config.promiscuous {
        return Err(Error::internal(format!("bridge {bridge} has promiscMode {}", master.promiscuous)));
    }
    let inner = container.check(call, previous)?;
    let mut is_on_bridge = false;
    for told in previous.interfaces.iter().filter(|told| told.sandbox.is_empty()) {
        let link = find(node, &told.name)?;
        // A gateway's link of a network is there for all containers, and may have been made anew.
        let is_ours = link.name == *bridge || (link.kind == "veth" && link.peer == Some(inner.index));
        if is_ours {
            same_address(&link, &told.mac)?;
        }
        if is_ours && link.kind == "veth" {
            if link.master != Some(master.index) {
                return Err(Error::internal(format!("veth {} is not on bridge {bridge}", link.name)));
            }
            is_on_bridge = true;
        }
    }
    match is_on_bridge {
        true => Ok(()),
        false => Err(Error::internal(format!("the veth of {} is not there", call.ifname))),
    }
}
