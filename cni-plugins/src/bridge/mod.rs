//! `bridge`: a container on a Linux bridge, by a veth pair.
//!
//! [`config`] reads what is wanted, [`attach`] does it on two [`Network`]s and undoes it where it fails.
//!
//! [`Network`]: kernel::netlink::Network

mod attach;
mod check;
mod config;
mod spoof;

use std::os::fd::AsFd;

use api::cni::{Error, Success};
use kernel::netlink::{Kernel, Link, Network};
use kernel::nftables::Nft;

use crate::interface::{Container, forward, report};
use crate::ipam::Ipam;
use crate::masquerade;
use crate::skel::{Call, Plugin, gone_owners};
use crate::veth;
use attach::Attachment;
use config::Config;

pub struct Bridge;

impl Plugin for Bridge {
    fn add(&self, call: &Call) -> Result<Success, Error> {
        let config = Config::of(call)?;
        let mut container = Container::open(call)?;
        let mut node = Kernel::open().map_err(Error::internal)?;
        let (bridge, made) = attach::ensure_bridge(&mut node, &config)?;
        if made && config.filters_vlans() {
            filter_vlans(&mut node, &bridge)?;
        }
        let ipam = Ipam::of(call)?;
        let mut result = ipam.as_ref().map(|ipam| ipam.add(call)).transpose()?.unwrap_or_default();
        if let Err(error) = connect(call, &config, &mut container, (&mut node, &bridge), &mut result) {
            veth::undo(&mut node, call, if config.ip_masq { &result.ips } else { &[] }, ipam.as_ref());
            if config.spoof_check {
                let _ = end_spoof_check(call);
            }
            return Err(error);
        }
        call.override_dns(&mut result);
        Ok(result)
    }

    fn del(&self, call: &Call) -> Result<(), Error> {
        // A configuration that ADD refused leaves nothing to remove, but then nothing may keep the pod from its end.
        let (masqueraded, checked) =
            Config::of(call).map_or((true, true), |config| (config.ip_masq, config.spoof_check));
        let removed = veth::remove(call, masqueraded);
        let unchecked = if checked { end_spoof_check(call) } else { Ok(()) };
        removed.and(unchecked)
    }

    fn check(&self, call: &Call) -> Result<(), Error> {
        let config = Config::of(call)?;
        let previous = call.previous()?;
        if let Some(ipam) = Ipam::of(call)? {
            ipam.check(call)?;
        }
        let mut node = Kernel::open().map_err(Error::internal)?;
        check::check(&mut node, &mut Container::open(call)?, call, &config, &previous)
    }

    fn gc(&self, call: &Call) -> Result<(), Error> {
        let Some(valid) = &call.config.valid_attachments else { return Ok(()) };
        veth::collect(call, valid)?;
        spoof::collect(&Nft, gone_owners(&call.config.name, valid))
    }

    fn status(&self, call: &Call) -> Result<(), Error> {
        Config::of(call)?;
        Ipam::of(call)?.map_or(Ok(()), |ipam| ipam.status(call))
    }
}

/// Makes a new bridge tell networks apart. One that cannot is removed again, or the next ADD would take it as it is.
fn filter_vlans(node: &mut Kernel, bridge: &Link) -> Result<(), Error> {
    node.filter_vlans(bridge.index).map_err(|error| {
        let _ = node.delete_link(bridge.index);
        match error.is_unsupported() {
            true => Error::internal("this kernel's bridges know no networks: vlan needs CONFIG_BRIDGE_VLAN_FILTERING"),
            false => Error::internal(error),
        }
    })
}

fn end_spoof_check(call: &Call) -> Result<(), Error> {
    let own = call.owner();
    spoof::collect(&Nft, |owner| owner == own)
}

/// Everything after the addresses are known.
fn connect(
    call: &Call,
    config: &Config,
    container: &mut Container,
    (node, bridge): (&mut Kernel, &Link),
    result: &mut Success,
) -> Result<(), Error> {
    config::complete(config, result);
    let host = veth::host_name(node, call)?;
    let attachment = Attachment { call, config, bridge, host: &host };
    let (outer, inner) = attachment.make_veth(node, &mut container.network, container.netns.as_fd())?;
    attach::join_networks(node, outer.index, config)?;
    if config.isolated {
        node.isolate_port(outer.index).map_err(Error::internal)?;
    }
    if let Some(mac) = inner.mac.filter(|_| config.spoof_check) {
        spoof::set(&Nft, &host, mac, &call.owner())?;
    }
    if !config.leave_down {
        prepare(container, call, config, result)?;
        container.configure(&inner, result, config.detect)?;
    }
    for ip in &mut result.ips {
        ip.interface = Some(2);
    }
    let mut gateway = None;
    if config.is_gateway && !result.ips.is_empty() {
        gateway = config.vlan.map(|vlan| attach::network_gateway(node, bridge, config, vlan)).transpose()?;
        attach::gateways(node, gateway.as_ref().unwrap_or(bridge), config, &result.ips)?;
        forward(&result.ips)?;
    }
    if config.ip_masq {
        masquerade::set(&Nft, &result.ips, &call.owner())?;
    }
    // The bridge's address may have changed with its first port.
    let bridge = node.link(&bridge.name).map_err(Error::internal)?.unwrap_or_else(|| bridge.clone());
    result.interfaces = vec![report(&bridge, ""), report(&outer, ""), container.report(&inner)];
    result.interfaces.extend(gateway.map(|link| report(&link, "")));
    Ok(())
}

/// Parameters of the container's interface that must stand before it has addresses and starts.
fn prepare(container: &Container, call: &Call, config: &Config, result: &Success) -> Result<(), Error> {
    if result.ips.is_empty() {
        return Ok(());
    }
    let ifname = &call.ifname;
    let detect = if config.detect { "1" } else { "0" };
    // Neighbours learn at once that an address has moved here.
    let mut wanted = vec![(format!("net/ipv4/conf/{ifname}/arp_notify"), "1")];
    wanted.push((format!("net/ipv6/conf/{ifname}/accept_dad"), detect));
    if config.detect {
        wanted.push((format!("net/ipv6/conf/{ifname}/enhanced_dad"), "1"));
    }
    container.parameters(&wanted)
}
