//! `ptp`: a veth pair between container and node without a bridge. The container reaches everything, its own network
//! included, by the gateway, whose address is on the node's end.

use std::net::IpAddr;
use std::os::fd::AsFd;

use api::cni::{Error, Ip, Success};
use kernel::netlink::{Address, IpNetwork, Kernel, Link, Network, Route, VethEnd};
use kernel::nftables::Nft;
use serde::Deserialize;

use crate::interface::{self, Container, find, forward, report};
use crate::ipam::Ipam;
use crate::masquerade;
use crate::skel::{Call, Plugin};
use crate::veth;

pub struct Ptp;

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Config {
    ip_masq: bool,
    ip_masq_backend: String,
    mtu: u32,
}

fn config(call: &Call) -> Result<Config, Error> {
    let config: Config = call.own()?;
    masquerade::known_backend(&config.ip_masq_backend)?;
    Ok(config)
}

impl Plugin for Ptp {
    fn add(&self, call: &Call) -> Result<Success, Error> {
        let config = config(call)?;
        let mut container = Container::open(call)?;
        let mut node = Kernel::open().map_err(Error::internal)?;
        let ipam = Ipam::required(call)?;
        let mut result = ipam.add(call)?;
        if let Err(error) = connect(call, &config, &mut container, &mut node, &mut result) {
            veth::undo(&mut node, call, if config.ip_masq { &result.ips } else { &[] }, Some(&ipam));
            return Err(error);
        }
        call.override_dns(&mut result);
        Ok(result)
    }

    fn del(&self, call: &Call) -> Result<(), Error> {
        veth::remove(call, config(call).map_or(true, |config| config.ip_masq))
    }

    fn check(&self, call: &Call) -> Result<(), Error> {
        let previous = call.previous()?;
        Ipam::required(call)?.check(call)?;
        match Container::open(call)?.check(call, &previous)?.kind.as_str() {
            "veth" => Ok(()),
            _ => Err(Error::internal(format!("{} is no veth", call.ifname))),
        }
    }

    fn gc(&self, call: &Call) -> Result<(), Error> {
        call.config.valid_attachments.as_ref().map_or(Ok(()), |valid| veth::collect(call, valid))
    }

    fn status(&self, call: &Call) -> Result<(), Error> {
        config(call)?;
        Ipam::required(call)?.status(call)
    }
}

fn connect(
    call: &Call,
    config: &Config,
    container: &mut Container,
    node: &mut Kernel,
    result: &mut Success,
) -> Result<(), Error> {
    if let Some(ip) = result.ips.iter().find(|ip| ip.gateway.is_none()) {
        return Err(Error::config(format!("ipam gave no gateway for {}, and ptp needs one", ip.address)));
    }
    forward(&result.ips)?;
    let host = veth::host_name(node, call)?;
    let near = VethEnd { name: &host, ..VethEnd::default() };
    let far = VethEnd { name: &call.ifname, ..VethEnd::default() };
    let mtu = (config.mtu > 0).then_some(config.mtu);
    node.add_veth(near, far, Some(container.netns.as_fd()), mtu).map_err(Error::internal)?;
    let outer = find(node, &host)?;
    veth::own(node, call, outer.index, &host)?;
    let inner = container.link(&call.ifname)?;
    // Nobody else is on this link whom an address could belong to.
    let addresses = Success { ips: result.ips.clone(), ..Success::default() };
    container.configure(&inner, &addresses, false)?;
    for ip in &result.ips {
        by_gateway(&mut container.network, &inner, ip)?;
        reach(node, &outer, ip)?;
    }
    interface::add_routes(&mut container.network, inner.index, &result.ips, &result.routes).map_err(Error::internal)?;
    if config.ip_masq {
        masquerade::set(&Nft, &result.ips, &call.owner())?;
    }
    result.ips.iter_mut().for_each(|ip| ip.interface = Some(1));
    result.interfaces = vec![report(&outer, ""), container.report(&inner)];
    Ok(())
}

/// Replaces the network's connected route: only the gateway is on the link, the rest of the network is behind it.
fn by_gateway(pod: &mut Kernel, link: &Link, ip: &Ip) -> Result<(), Error> {
    const MADE_BY_KERNEL: u8 = 2;
    const ON_LINK: u8 = 253;
    let own = Some(ip.address.ip());
    let network = network_of(ip.address);
    let connected = Route { protocol: MADE_BY_KERNEL, ..Route::new(network, None, link.index) };
    pod.delete_route(&connected).map_err(Error::internal)?;
    let Some(gateway) = ip.gateway else { return Ok(()) };
    let near = Route { source: own, scope: Some(ON_LINK), ..Route::new(IpNetwork::from(gateway), None, link.index) };
    let far = Route { source: own, ..Route::new(network, Some(gateway), link.index) };
    for route in [near, far] {
        match pod.add_route(&route) {
            Err(error) if !error.is_exists() => return Err(Error::internal(error)),
            _ => {}
        }
    }
    Ok(())
}

/// The node's side: the gateway's address on its end, and the way to the container.
fn reach(node: &mut Kernel, link: &Link, ip: &Ip) -> Result<(), Error> {
    const ON_HOST: u8 = 254;
    if let Some(net) = ip.gateway.map(IpNetwork::from) {
        match node.add_address(Address { link: link.index, net }) {
            // Two addresses of one network have one gateway.
            Err(error) if !error.is_exists() => return Err(Error::internal(error)),
            _ => {}
        }
    }
    let route = Route { scope: Some(ON_HOST), ..Route::new(IpNetwork::from(ip.address.ip()), None, link.index) };
    match node.add_route(&route) {
        Err(error) if !error.is_exists() => Err(Error::internal(error)),
        _ => Ok(()),
    }
}

fn network_of(address: IpNetwork) -> IpNetwork {
    let base: IpAddr = address.network();
    IpNetwork::new(base, address.prefix()).unwrap_or(address)
}
