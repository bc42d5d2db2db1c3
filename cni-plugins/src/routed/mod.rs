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

use api::cni::{Error, Success};
use kernel::forwarding;
use kernel::netlink::Kernel;
use serde::Deserialize;

use crate::interface::{self, Container};
use crate::ipam::Ipam;
use crate::skel::{Call, Plugin};
use crate::veth;
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
    node: Kernel,
    container: Container,
}

impl Sides {
    fn open(call: &Call) -> Result<Self, Error> {
        Ok(Self { container: Container::open(call)?, node: Kernel::open().map_err(Error::internal)? })
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
            let _ = veth::detach(&mut sides.node, call);
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
        veth::detach(&mut node, call).map_err(Error::internal)?;
        ipam(call)?.del(call)
    }

    fn check(&self, call: &Call) -> Result<(), Error> {
        ipam(call)?.check(call)?;
        let previous = call.previous()?;
        let mut sides = Sides::open(call)?;
        check::check(&mut sides.node, &mut sides.container.network, call, &previous)
    }

    fn gc(&self, call: &Call) -> Result<(), Error> {
        call.config.valid_attachments.as_ref().map_or(Ok(()), |valid| veth::collect(call, valid))
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
    let host = veth::host_name(&mut sides.node, call)?;
    let attachment = Attachment { call, host: &host, ips: &result.ips, routes: &result.routes };
    let (outer, inner) = attachment.make(sides, config)?;
    result.interfaces = vec![interface::report(&outer, ""), sides.container.report(&inner)];
    Ok(())
}
