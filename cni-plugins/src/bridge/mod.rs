//! `bridge`: a container on a Linux bridge, by a veth pair.
//!
//! [`config`] reads what is wanted, [`attach`] does it on two [`Network`]s and undoes it where it fails.
//!
//! [`Network`]: kernel::netlink::Network

mod attach;
mod check;
mod config;

use std::os::fd::AsFd;
use std::path::Path;

use api::cni::{Error, Interface, Ip, Success, code};
use kernel::netlink::{Kernel, Link, Network};
use kernel::netns::Netns;
use kernel::nftables::Nft;
use kernel::sysctl;

use crate::ipam::Ipam;
use crate::skel::{Call, Plugin, gone_owners};
use crate::{host_local, masquerade};
use attach::{Attachment, host_name};
use config::Config;

pub struct Bridge;

/// A socket to the network inside a namespace; the caller stays where it is.
pub fn socket_in(netns: &Netns) -> Result<Kernel, Error> {
    netns.run(Kernel::open).map_err(Error::internal)?.map_err(Error::internal)
}

fn open(path: &Path) -> Result<Netns, Error> {
    Netns::open(path).map_err(|error| match error.is_gone() {
        true => Error::new(code::UNKNOWN_CONTAINER, error.to_string()),
        false => Error::internal(error),
    })
}

impl Plugin for Bridge {
    fn add(&self, call: &Call) -> Result<Success, Error> {
        let config = Config::of(call)?;
        let netns = open(call.netns.as_deref().unwrap_or(Path::new("")))?;
        let mut node = Kernel::open().map_err(Error::internal)?;
        let mut pod = socket_in(&netns)?;
        let bridge = attach::ensure_bridge(&mut node, &config)?;
        let ipam = Ipam::of(call)?;
        let mut result = ipam.as_ref().map(|ipam| ipam.add(call)).transpose()?.unwrap_or_default();
        let done = match &ipam {
            Some(_) if result.ips.is_empty() => Err(Error::internal("IPAM plugin returned missing IP config")),
            _ => connect(call, &config, &netns, (&mut node, &mut pod, &bridge), &mut result),
        };
        if let Err(error) = done {
            undo(&mut node, call, &config, &result.ips, ipam.as_ref());
            return Err(error);
        }
        if call.config.dns != api::cni::Dns::default() {
            result.dns = call.config.dns.clone();
        }
        Ok(result)
    }

    fn del(&self, call: &Call) -> Result<(), Error> {
        let config = Config::of(call)?;
        let ipam = Ipam::of(call)?;
        let mut node = Kernel::open().map_err(Error::internal)?;
        let held = held(call, ipam.as_ref());
        // Each step is tried though one before failed; the first failure is reported, and the runtime calls again.
        // The kernel waits for RCU on both ways, so they are gone at once.
        let (link, rules) = std::thread::scope(|scope| {
            let masqueraded: &[Ip] = if config.ip_masq { &held } else { &[] };
            let rules = scope.spawn(|| masquerade::unset(&Nft, masqueraded));
            let link = attach::detach(&mut node, call).map_err(Error::internal);
            (link, rules.join().unwrap_or_else(|_| Err(Error::internal("the removal of rules panicked"))))
        });
        let gone = match &link {
            Ok(false) => foreign(call),
            _ => Ok(()),
        };
        let released = ipam.as_ref().map_or(Ok(()), |ipam| if rules.is_ok() { ipam.del(call) } else { Ok(()) });
        link.map(drop).and(gone).and(rules).and(released)
    }

    fn check(&self, call: &Call) -> Result<(), Error> {
        let config = Config::of(call)?;
        let previous = call.previous()?;
        if let Some(ipam) = Ipam::of(call)? {
            ipam.check(call)?;
        }
        let netns = open(call.netns.as_deref().unwrap_or(Path::new("")))?;
        let mut node = Kernel::open().map_err(Error::internal)?;
        let mut pod = socket_in(&netns)?;
        check::check(&mut node, &mut pod, &config.bridge, &call.ifname, &previous)
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
        masquerade::collect(&Nft, is_gone)?;
        Ipam::of(call)?.map_or(Ok(()), |ipam| ipam.gc(call))
    }

    fn status(&self, call: &Call) -> Result<(), Error> {
        Config::of(call)?;
        Ipam::of(call)?.map_or(Ok(()), |ipam| ipam.status(call))
    }
}

/// Everything after the addresses are known.
fn connect(
    call: &Call,
    config: &Config,
    netns: &Netns,
    (node, pod, bridge): (&mut Kernel, &mut Kernel, &Link),
    result: &mut Success,
) -> Result<(), Error> {
    config::complete(config, result)?;
    let host = host_name(node, call)?;
    let attachment = Attachment { call, config, bridge, host: &host, ips: &result.ips, routes: &result.routes };
    let (outer, inner) = attachment.make_veth(node, pod, netns.as_fd()).map_err(Error::internal)?;
    prepare(netns, &call.ifname, &result.ips)?;
    attachment.configure(pod, inner.index).map_err(Error::internal)?;
    for ip in &mut result.ips {
        ip.interface = Some(2);
    }
    if config.is_gateway {
        attach::gateways(node, bridge, config, &result.ips)?;
        forward(&result.ips)?;
    }
    if config.ip_masq {
        masquerade::set(&Nft, &result.ips, &call.owner())?;
    }
    let bridge = node.link(&bridge.name).map_err(Error::internal)?.unwrap_or_else(|| bridge.clone());
    let sandbox = netns.path().to_string_lossy().into_owned();
    result.interfaces = vec![interface(&bridge, ""), interface(&outer, ""), interface(&inner, &sandbox)];
    Ok(())
}

fn interface(link: &Link, sandbox: &str) -> Interface {
    let mac = link.mac.map(|mac| mac.to_string()).unwrap_or_default();
    Interface { name: link.name.clone(), mac, mtu: Some(link.mtu), sandbox: sandbox.into(), ..Interface::default() }
}

/// Parameters of the container's interface that must stand before it has addresses and starts.
fn prepare(netns: &Netns, ifname: &str, ips: &[Ip]) -> Result<(), Error> {
    let six = ips.iter().any(|ip| ip.address.is_ipv6());
    let set = || -> Result<(), sysctl::Error> {
        // Neighbours learn at once that an address has moved here.
        sysctl::write(&format!("net/ipv4/conf/{ifname}/arp_notify"), "1")?;
        if six {
            sysctl::write(&format!("net/ipv6/conf/{ifname}/disable_ipv6"), "0")?;
        }
        Ok(())
    };
    netns.run(set).map_err(Error::internal)?.map_err(Error::internal)
}

fn forward(ips: &[Ip]) -> Result<(), Error> {
    let families = [
        ("net/ipv4/ip_forward", ips.iter().any(|ip| ip.address.is_ipv4())),
        ("net/ipv6/conf/all/forwarding", ips.iter().any(|ip| ip.address.is_ipv6())),
    ];
    for (name, _) in families.iter().filter(|(_, used)| *used) {
        sysctl::write(name, "1").map_err(Error::internal)?;
    }
    Ok(())
}

/// After a failed ADD: what was made goes again. The failure itself is what the caller reports.
fn undo(node: &mut dyn Network, call: &Call, config: &Config, ips: &[Ip], ipam: Option<&Ipam>) {
    let _ = attach::detach(node, call);
    if config.ip_masq {
        let _ = masquerade::unset(&Nft, ips);
    }
    let _ = ipam.map(|ipam| ipam.del(call));
}

/// The addresses that are the attachment's own. A repeated DEL must not touch what a newer container has got
/// since, so that host-local's record counts, and the previous result only where there is no record to ask.
fn held(call: &Call, ipam: Option<&Ipam>) -> Vec<Ip> {
    let previous = call.config.previous().ok().flatten().unwrap_or_default().ips;
    match ipam {
        Some(Ipam::Own) => {
            let network =
                |ip| host_local::network_of(call, ip).map(|address| Ip { interface: None, address, gateway: None });
            host_local::held(call).unwrap_or_default().into_iter().filter_map(network).collect()
        }
        _ => previous,
    }
}

/// A link of another maker under the interface's name: the reference's, after a change of plugins.
fn foreign(call: &Call) -> Result<(), Error> {
    let Some(path) = &call.netns else { return Ok(()) };
    let netns = match Netns::open(path) {
        Err(error) if error.is_gone() => return Ok(()),
        opened => opened.map_err(Error::internal)?,
    };
    let mut pod = socket_in(&netns)?;
    if let Some(link) = pod.link(&call.ifname).map_err(Error::internal)? {
        pod.delete_link(link.index).map_err(Error::internal)?;
    }
    Ok(())
}
