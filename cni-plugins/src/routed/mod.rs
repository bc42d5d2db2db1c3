//! `routed`: a container with an address of its own and no network around it. A veth leads to the node, which routes.
//!
//! The container's gateway is 169.254.1.1 (or fe80::1), the same for every container and no address of the node, so
//! that the node may change its own. Each side has a permanent neighbour entry for the other: neither ARP nor neighbour
//! discovery takes place, which matters because a node without a default route would not answer for 169.254.1.1, and
//! because the first packet goes at once. The node also answers by proxy ARP, for whoever flushes its neighbours.
//!
//! [`attach`] makes and removes it, [`check`] looks whether it stands.

mod attach;
mod check;

use std::path::Path;

use api::cni::{Error, Success, code};
use kernel::forwarding;
use kernel::netlink::{Kernel, Network};
use kernel::netns::Netns;
use serde::Deserialize;

use crate::ipam::Ipam;
use crate::skel::{Call, Plugin, gone_owners};
use attach::Attachment;

pub struct Routed;

/// The plugin's own keys; `ipam` is read by the IPAM plugin.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default)]
struct Config {
    /// MTU of both ends, in bytes; 0 is the kernel's default.
    mtu: u32,
}

/// The two sides of a call.
struct Sides {
    netns: Netns,
    node: Kernel,
    pod: Kernel,
}

impl Sides {
    fn open(call: &Call) -> Result<Self, Error> {
        let opened = Netns::open(call.netns.as_deref().unwrap_or(Path::new("")));
        let netns = opened.map_err(|error| match error.is_gone() {
            true => Error::new(code::UNKNOWN_CONTAINER, error.to_string()),
            false => Error::internal(error),
        })?;
        let node = Kernel::open().map_err(Error::internal)?;
        let pod = netns.run(Kernel::open).map_err(Error::internal)?.map_err(Error::internal)?;
        Ok(Self { netns, node, pod })
    }
}

fn ipam(call: &Call) -> Result<Ipam, Error> {
    Ipam::of(call)?.ok_or_else(|| Error::config("routed needs addresses: name an IPAM plugin in ipam.type"))
}

impl Plugin for Routed {
    fn add(&self, call: &Call) -> Result<Success, Error> {
        let config: Config = call.own()?;
        let ipam = ipam(call)?;
        let mut sides = Sides::open(call)?;
        let mut result = ipam.add(call)?;
        let done = match result.ips.is_empty() {
            true => Err(Error::internal("the IPAM plugin gave no address")),
            false => connect(call, &config, &mut sides, &mut result),
        };
        if let Err(error) = done {
            // The failure itself is what the caller reports.
            let _ = attach::detach(&mut sides.node, call);
            let _ = ipam.del(call);
            return Err(error);
        }
        if call.config.dns != api::cni::Dns::default() {
            result.dns = call.config.dns.clone();
        }
        Ok(result)
    }

    fn del(&self, call: &Call) -> Result<(), Error> {
        let mut node = Kernel::open().map_err(Error::internal)?;
        // The routes go with the link, and an address that is still routed must not be given to another.
        attach::detach(&mut node, call).map_err(Error::internal)?;
        ipam(call)?.del(call)
    }

    fn check(&self, call: &Call) -> Result<(), Error> {
        ipam(call)?.check(call)?;
        let previous = call.previous()?;
        let mut sides = Sides::open(call)?;
        check::check(&mut sides.node, &mut sides.pod, call, &previous)
    }

    fn gc(&self, call: &Call) -> Result<(), Error> {
        let Some(valid) = &call.config.valid_attachments else { return Ok(()) };
        let mut node = Kernel::open().map_err(Error::internal)?;
        let is_gone = gone_owners(&call.config.name, valid);
        for link in node.links().map_err(Error::internal)? {
            if link.kind == "veth" && is_gone(&link.alias) {
                node.delete_link(link.index).map_err(Error::internal)?;
            }
        }
        ipam(call)?.gc(call)
    }

    fn status(&self, call: &Call) -> Result<(), Error> {
        call.own::<Config>()?;
        ipam(call)?.status(call)
    }
}

/// Everything after the addresses are known.
fn connect(call: &Call, config: &Config, sides: &mut Sides, result: &mut Success) -> Result<(), Error> {
    let (v4, v6) = attach::families(&result.ips);
    // Before the link is made, which takes over what holds for all.
    forwarding::enable(v4, v6).map_err(Error::internal)?;
    attach::complete(result);
    let host = attach::host_name(&mut sides.node, call)?;
    let attachment = Attachment { call, host: &host, ips: &result.ips, routes: &result.routes };
    let (outer, inner) = attachment.make(sides, config)?;
    let sandbox = sides.netns.path().to_string_lossy().into_owned();
    result.interfaces = vec![attach::interface(&outer, ""), attach::interface(&inner, &sandbox)];
    Ok(())
}
