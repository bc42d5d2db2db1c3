//! CHECK: whether what ADD answered still stands.

use api::cni::{Error, Success};
use kernel::netlink::{Link, Network};

/// Compares the previous result with both sides.
pub fn check(
    node: &mut dyn Network,
    pod: &mut dyn Network,
    bridge: &str,
    ifname: &str,
    previous: &Success,
) -> Result<(), Error> {
    let master = find(node, bridge)?;
    if master.kind != "bridge" {
        return Err(Error::internal(format!("{bridge} is not a bridge")));
    }
    let inner = find(pod, ifname)?;
    for expected in &previous.interfaces {
        let inside = !expected.sandbox.is_empty();
        if inside && expected.name != ifname {
            continue;
        }
        let link = if inside { inner.clone() } else { find(node, &expected.name)? };
        let mac = link.mac.map(|mac| mac.to_string()).unwrap_or_default();
        if !expected.mac.is_empty() && !expected.mac.eq_ignore_ascii_case(&mac) {
            return Err(Error::internal(format!("interface {} has address {mac}, not {}", link.name, expected.mac)));
        }
        if !inside && link.kind == "veth" && link.master != Some(master.index) {
            return Err(Error::internal(format!("veth {} is not on bridge {bridge}", link.name)));
        }
    }
    check_addresses(pod, &inner, previous)?;
    check_routes(pod, previous)
}

fn find(network: &mut dyn Network, name: &str) -> Result<Link, Error> {
    let link = network.link(name).map_err(Error::internal)?;
    link.ok_or_else(|| Error::internal(format!("interface {name} is not there")))
}

fn check_addresses(pod: &mut dyn Network, inner: &Link, previous: &Success) -> Result<(), Error> {
    let present = pod.addresses().map_err(Error::internal)?;
    let has = |net| present.iter().any(|address| address.link == inner.index && address.net == net);
    match previous.ips.iter().find(|ip| !has(ip.address)) {
        None => Ok(()),
        Some(ip) => Err(Error::internal(format!("interface {} lacks address {}", inner.name, ip.address))),
    }
}

fn check_routes(pod: &mut dyn Network, previous: &Success) -> Result<(), Error> {
    let present = pod.routes().map_err(Error::internal)?;
    let has = |wanted: &api::cni::Route| {
        let gateway = |route: &kernel::netlink::Route| wanted.gw.is_none() || wanted.gw == route.gateway;
        present.iter().any(|route| route.destination == wanted.dst && gateway(route))
    };
    match previous.routes.iter().find(|route| !has(route)) {
        None => Ok(()),
        Some(route) => Err(Error::internal(format!("the container lacks the route to {}", route.dst))),
    }
}
