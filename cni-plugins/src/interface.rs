//! The container's side of every plugin: its namespace, and an interface in it with addresses and routes.

use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use api::cni::{Error, Interface, Ip, Route, Success, code};
use kernel::netlink::{self, Address, Detection, IpNetwork, Kernel, Link, LinkChange, Network};
use kernel::netns::Netns;
use kernel::sysctl;

use crate::skel::Call;

/// How long the kernel may ask the link whether an address is another's.
const DETECTION: Duration = Duration::from_secs(5);

/// A container's network namespace with a socket to its network; the caller stays where it is.
pub struct Container {
    pub netns: Netns,
    pub network: Kernel,
}

impl Container {
    /// # Errors
    /// Unknown container where the namespace is gone.
    pub fn open(call: &Call) -> Result<Self, Error> {
        let netns =
            Netns::open(call.netns.as_deref().unwrap_or(Path::new(""))).map_err(|error| match error.is_gone() {
                true => Error::new(code::UNKNOWN_CONTAINER, error.to_string()),
                false => Error::internal(error),
            })?;
        Self::of(netns)
    }

    /// For tear-down: `None` where the call names no namespace or one that is gone.
    pub fn existing(call: &Call) -> Result<Option<Self>, Error> {
        let Some(path) = &call.netns else { return Ok(None) };
        match Netns::open(path) {
            Err(error) if error.is_gone() => Ok(None),
            opened => opened.map_err(Error::internal).and_then(Self::of).map(Some),
        }
    }

    fn of(netns: Netns) -> Result<Self, Error> {
        let network = netns.run(Kernel::open).map_err(Error::internal)?.map_err(Error::internal)?;
        Ok(Self { netns, network })
    }

    pub fn sandbox(&self) -> String {
        self.netns.path().to_string_lossy().into_owned()
    }

    pub fn link(&mut self, name: &str) -> Result<Link, Error> {
        find(&mut self.network, name)
    }

    /// The result's entry for one of its interfaces.
    pub fn report(&self, link: &Link) -> Interface {
        report(link, &self.sandbox())
    }

    /// Writes parameters of the namespace. What this kernel does not have (IPv6 switched off) is left out.
    pub fn parameters(&self, wanted: &[(String, &str)]) -> Result<(), Error> {
        let set = || wanted.iter().try_for_each(|(name, value)| write_known(name, value));
        self.netns.run(set).map_err(Error::internal)?.map_err(Error::internal)
    }

    /// Gives the interface the result's addresses, starts it and adds the routes. With `detect` the link is asked
    /// whether an IPv6 address is another station's.
    pub fn configure(&mut self, link: &Link, result: &Success, detect: bool) -> Result<(), Error> {
        self.admit_ipv6(&link.name, &result.ips)?;
        for ip in &result.ips {
            let address = Address { link: link.index, net: ip.address };
            match detect {
                true => self.network.add_detected_address(address),
                false => self.network.add_address(address),
            }
            .map_err(Error::internal)?;
        }
        start(&mut self.network, link.index).map_err(Error::internal)?;
        if detect && result.ips.iter().any(|ip| ip.address.is_ipv6()) {
            self.settle(link)?;
        }
        add_routes(&mut self.network, link.index, &result.ips, &result.routes).map_err(Error::internal)
    }

    /// Parameters that must stand before the interface has an IPv6 address and starts.
    pub fn admit_ipv6(&self, ifname: &str, ips: &[Ip]) -> Result<(), Error> {
        if !ips.iter().any(|ip| ip.address.is_ipv6()) {
            return Ok(());
        }
        self.parameters(&[
            ("net/ipv6/conf/lo/disable_ipv6".into(), "0"),
            (format!("net/ipv6/conf/{ifname}/disable_ipv6"), "0"),
            // Its addresses survive a stop and start of the interface.
            (format!("net/ipv6/conf/{ifname}/keep_addr_on_down"), "1"),
        ])
    }

    fn settle(&mut self, link: &Link) -> Result<(), Error> {
        let deadline = Instant::now() + DETECTION;
        loop {
            match self.network.detection(link.index).map_err(Error::internal)? {
                Detection::Done => return Ok(()),
                Detection::Duplicate(ip) => {
                    return Err(Error::internal(format!("another station on the link of {} has {ip}", link.name)));
                }
                // A link without a carrier may get one later.
                Detection::Running if Instant::now() > deadline => return Ok(()),
                Detection::Running => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    /// Whether the interface and what the previous result says of it still stand.
    pub fn check(&mut self, call: &Call, previous: &Success) -> Result<Link, Error> {
        let sandbox = self.sandbox();
        let link = self.link(&call.ifname)?;
        let told = previous.interfaces.iter().find(|told| told.name == call.ifname && told.sandbox == sandbox);
        let told = told.ok_or_else(|| {
            Error::internal(format!("the previous result has no interface {} in {sandbox}", call.ifname))
        })?;
        same_address(&link, &told.mac)?;
        check_addresses(&mut self.network, &link, previous)?;
        check_routes(&mut self.network, previous)?;
        Ok(link)
    }
}

fn write_known(name: &str, value: &str) -> Result<(), sysctl::Error> {
    match sysctl::write(name, value) {
        Err(error) if error.source.kind() == std::io::ErrorKind::NotFound => Ok(()),
        done => done.map(drop),
    }
}

/// Writes parameters of the node's own namespace, as [`Container::parameters`].
pub fn parameters(wanted: &[(String, &str)]) -> Result<(), Error> {
    wanted.iter().try_for_each(|(name, value)| write_known(name, value)).map_err(Error::internal)
}

pub fn report(link: &Link, sandbox: &str) -> Interface {
    let mac = link.mac.map(|mac| mac.to_string()).unwrap_or_default();
    Interface { name: link.name.clone(), mac, mtu: Some(link.mtu), sandbox: sandbox.into(), ..Interface::default() }
}

pub fn find(network: &mut dyn Network, name: &str) -> Result<Link, Error> {
    let link = network.link(name).map_err(Error::internal)?;
    link.ok_or_else(|| Error::internal(format!("interface {name} is not there")))
}

pub fn start(network: &mut dyn Network, link: u32) -> netlink::Result<()> {
    network.change_link(link, LinkChange { up: Some(true), ..LinkChange::default() })
}

/// Lets the node pass on packets of the addresses' families.
pub fn forward(ips: &[Ip]) -> Result<(), Error> {
    let families = [
        ("net/ipv4/ip_forward", ips.iter().any(|ip| ip.address.is_ipv4())),
        ("net/ipv6/conf/all/forwarding", ips.iter().any(|ip| ip.address.is_ipv6())),
    ];
    for (name, _) in families.iter().filter(|(_, used)| *used) {
        sysctl::write(name, "1").map_err(Error::internal)?;
    }
    Ok(())
}

/// Adds the result's routes to a link that is up. One that is there already is what was wanted.
pub fn add_routes(network: &mut dyn Network, link: u32, ips: &[Ip], routes: &[Route]) -> netlink::Result<()> {
    for route in routes {
        let gateway = route.gw.or_else(|| gateway_for(ips, route.dst));
        let mut wanted = netlink::Route::new(route.dst, gateway, link);
        (wanted.metric, wanted.mtu, wanted.advmss) = (route.priority, route.mtu, route.advmss);
        wanted.table = route.table.unwrap_or(wanted.table);
        wanted.scope = route.scope;
        match network.add_route(&wanted) {
            Err(error) if !error.is_exists() => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// A route without a gateway goes by the gateway of the first address of its family that has one.
fn gateway_for(ips: &[Ip], destination: IpNetwork) -> Option<IpAddr> {
    ips.iter().filter_map(|ip| ip.gateway).find(|gateway| gateway.is_ipv4() == destination.is_ipv4())
}

/// Whether a link has the hardware address that the previous result tells of it.
pub fn same_address(link: &Link, told: &str) -> Result<(), Error> {
    let mac = link.mac.map(|mac| mac.to_string()).unwrap_or_default();
    match told.is_empty() || told.eq_ignore_ascii_case(&mac) {
        true => Ok(()),
        false => Err(Error::internal(format!("interface {} has address {mac}, not {told}", link.name))),
    }
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
    let has = |wanted: &Route| {
        let gateway = |route: &netlink::Route| wanted.gw.is_none() || wanted.gw == route.gateway;
        present.iter().any(|route| route.destination == wanted.dst && gateway(route))
    };
    match previous.routes.iter().find(|route| !has(route)) {
        None => Ok(()),
        Some(route) => Err(Error::internal(format!("the container lacks the route to {}", route.dst))),
    }
}
