//! CHECK: whether what ADD answered still stands, on both sides.

use std::net::IpAddr;

use api::cni::{Error, Success};
use kernel::netlink::{Link, Network};

use super::attach;
use crate::skel::Call;

/// Compares the previous result with both sides.
pub fn check(node: &mut dyn Network, pod: &mut dyn Network, call: &Call, previous: &Success) -> Result<(), Error> {
    let outer = attach::find(node, call).map_err(Error::internal)?;
    let outer = outer.ok_or_else(|| Error::internal(format!("the node's end of {} is not there", call.ifname)))?;
    let inner = pod.link(&call.ifname).map_err(Error::internal)?;
    let inner = inner.ok_or_else(|| Error::internal(format!("interface {} is not there", call.ifname)))?;
    for link in [&outer, &inner] {
        if !link.up {
            return Err(Error::internal(format!("interface {} is down", link.name)));
        }
    }
    check_pod(pod, &inner, &outer, previous)?;
    check_node(node, &outer, &inner, previous)
}

fn check_pod(pod: &mut dyn Network, inner: &Link, outer: &Link, previous: &Success) -> Result<(), Error> {
    let name = &inner.name;
    let addresses = pod.addresses().map_err(Error::internal)?;
    let routes = pod.routes().map_err(Error::internal)?;
    for ip in &previous.ips {
        if !addresses.iter().any(|address| address.link == inner.index && address.net == ip.address) {
            return Err(Error::internal(format!("interface {name} lacks address {}", ip.address)));
        }
        is_neighbour(pod, inner, attach::gateway(ip.address.is_ipv4()), outer)?;
    }
    for wanted in &previous.routes {
        let is = |route: &kernel::netlink::Route| route.destination == wanted.dst && route.gateway == wanted.gw;
        if !routes.iter().any(is) {
            return Err(Error::internal(format!("the container lacks the route to {}", wanted.dst)));
        }
    }
    Ok(())
}

fn check_node(node: &mut dyn Network, outer: &Link, inner: &Link, previous: &Success) -> Result<(), Error> {
    let routes = node.routes().map_err(Error::internal)?;
    for ip in &previous.ips {
        let is = |route: &kernel::netlink::Route| route.destination == ip.address && route.link == Some(outer.index);
        if !routes.iter().any(is) {
            return Err(Error::internal(format!("the node lacks the route to {} by {}", ip.address, outer.name)));
        }
        is_neighbour(node, outer, ip.address.ip(), inner)?;
    }
    Ok(())
}

/// Whether `network` has `address` on `link` as the permanent neighbour that `other` is.
fn is_neighbour(network: &mut dyn Network, link: &Link, address: IpAddr, other: &Link) -> Result<(), Error> {
    let known = network.neighbours().map_err(Error::internal)?;
    let is = |n: &kernel::netlink::Neighbour| n.link == link.index && n.address == address && Some(n.mac) == other.mac;
    match known.iter().any(is) {
        true => Ok(()),
        false => Err(Error::internal(format!("interface {} lacks the neighbour {address}", link.name))),
    }
}
