//! What `macvlan`, `ipvlan`, `vlan` and `dummy` share: a link in the container that stands on one of the node's, or
//! alone, without an end on the node. Each plugin reads its configuration into a [`Wanted`].

mod dummy;
mod ipvlan;
mod macvlan;
mod vlan;

use std::os::fd::AsFd;

use api::cni::{Error, Success};
use kernel::netlink::{self, Kernel, Kind, Link, LinkChange, Mac, Network, NewLink};

use crate::interface::{Container, find, start};
use crate::ipam::Ipam;
use crate::skel::{Call, Plugin};
use crate::veth;

pub const MACVLAN: Stacked = Stacked { read: macvlan::wanted, alone: Alone::IsUp };
pub const IPVLAN: Stacked = Stacked { read: ipvlan::wanted, alone: Alone::TakesPrevious };
pub const VLAN: Stacked = Stacked { read: vlan::wanted, alone: Alone::IsRefused };
pub const DUMMY: Stacked = Stacked { read: dummy::wanted, alone: Alone::IsRefused };

/// One of the plugins.
pub struct Stacked {
    read: fn(&Call) -> Result<Wanted, Error>,
    alone: Alone,
}

/// What a network without an IPAM plugin is to the plugin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Alone {
    /// A link without addresses, which is started.
    IsUp,
    /// A link in a chain, which gets the addresses of the plugin before.
    TakesPrevious,
    IsRefused,
}

/// The link that a configuration asks for.
#[derive(Debug, Clone, PartialEq)]
struct Wanted {
    kind: Kind,
    parent: Parent,
    /// Whether the parent is in the container's namespace.
    parent_inside: bool,
    mtu: u32,
    mac: Option<Mac>,
    /// Whether neighbours are told when the link starts that an address has moved here.
    notify: bool,
}

#[derive(Debug, Clone, PartialEq)]
enum Parent {
    None,
    Named(String),
    /// The link of the default route.
    Default,
}

impl Plugin for Stacked {
    fn add(&self, call: &Call) -> Result<Success, Error> {
        let wanted = (self.read)(call)?;
        let ipam = Ipam::of(call)?;
        let previous = call.config.previous()?.filter(|_| self.alone == Alone::TakesPrevious && ipam.is_none());
        let mut container = Container::open(call)?;
        let mut result = match (&ipam, previous) {
            (Some(ipam), _) => ipam.add(call)?,
            (None, Some(previous)) if !previous.ips.is_empty() => previous,
            (None, _) if self.alone == Alone::IsUp => Success::default(),
            (None, _) => {
                Ipam::required(call)?;
                Success::default()
            }
        };
        if let Err(error) = connect(call, &wanted, &mut container, &mut result) {
            let _ = ipam.map(|ipam| ipam.del(call));
            return Err(error);
        }
        call.override_dns(&mut result);
        Ok(result)
    }

    fn del(&self, call: &Call) -> Result<(), Error> {
        let released = Ipam::of(call)?.map_or(Ok(()), |ipam| ipam.del(call));
        veth::remove_inside(call).and(released)
    }

    fn check(&self, call: &Call) -> Result<(), Error> {
        let wanted = (self.read)(call)?;
        let previous = call.previous()?;
        Ipam::of(call)?.map_or(Ok(()), |ipam| ipam.check(call))?;
        let mut container = Container::open(call)?;
        parent(&wanted, &mut container)?;
        let link = container.check(call, &previous)?;
        if link.kind != wanted.kind.name() {
            return Err(Error::internal(format!("{} is no {} link", link.name, wanted.kind.name())));
        }
        let details = container.network.details(&link.name).map_err(Error::internal)?.unwrap_or_default();
        match wanted.kind {
            Kind::Macvlan { mode, .. } if details.mode != Some(macvlan::name(mode)) => {
                Err(Error::internal(format!("{} is not of mode {}", link.name, macvlan::name(mode))))
            }
            Kind::Ipvlan(mode) if details.mode != Some(ipvlan::name(mode)) => {
                Err(Error::internal(format!("{} is not of mode {}", link.name, ipvlan::name(mode))))
            }
            Kind::Vlan(id) if details.vlan != Some(id) => {
                Err(Error::internal(format!("{} is not of network {id}", link.name)))
            }
            _ => Ok(()),
        }
    }

    fn gc(&self, call: &Call) -> Result<(), Error> {
        // The links went with their containers' namespaces.
        Ipam::of(call)?.map_or(Ok(()), |ipam| ipam.gc(call))
    }

    fn status(&self, call: &Call) -> Result<(), Error> {
        (self.read)(call)?;
        match self.alone {
            Alone::IsRefused => Ipam::required(call)?.status(call),
            _ => Ipam::of(call)?.map_or(Ok(()), |ipam| ipam.status(call)),
        }
    }
}

/// Makes the link and gives it the result's addresses; on failure it goes again.
fn connect(call: &Call, wanted: &Wanted, container: &mut Container, result: &mut Success) -> Result<(), Error> {
    let link = make(call, wanted, container)?;
    let done = configure(wanted, container, &link, result);
    if done.is_err() {
        let _ = container.network.delete_link(link.index);
    }
    done?;
    result.ips.iter_mut().for_each(|ip| ip.interface = Some(0));
    result.interfaces = vec![container.report(&link)];
    Ok(())
}

fn configure(wanted: &Wanted, container: &mut Container, link: &Link, result: &Success) -> Result<(), Error> {
    if result.ips.is_empty() {
        return start(&mut container.network, link.index).map_err(Error::internal);
    }
    if wanted.notify {
        container.parameters(&[
            (format!("net/ipv4/conf/{}/arp_notify", link.name), "1"),
            (format!("net/ipv6/conf/{}/ndisc_notify", link.name), "1"),
        ])?;
    }
    container.configure(link, result, true)
}

fn make(call: &Call, wanted: &Wanted, container: &mut Container) -> Result<Link, Error> {
    if container.network.link(&call.ifname).map_err(Error::internal)?.is_some() {
        return Err(Error::internal(format!("the container has an interface {} already", call.ifname)));
    }
    let parent = parent(wanted, container)?;
    if let Some(parent) = parent.as_ref().filter(|parent| wanted.mtu > parent.mtu) {
        let text = format!("mtu {} is more than the {} of {}", wanted.mtu, parent.mtu, parent.name);
        return Err(Error::config(text));
    }
    // The kernel looks for the name in the namespace of the one who asks too, which may well have an eth0.
    let temporary = veth::names(call).next().unwrap_or_default();
    if let Some(left) = container.network.link(&temporary).map_err(Error::internal)? {
        container.network.delete_link(left.index).map_err(Error::internal)?;
    }
    let new = NewLink {
        name: &temporary,
        kind: wanted.kind,
        parent: parent.map(|parent| parent.index),
        mtu: (wanted.mtu > 0).then_some(wanted.mtu),
        mac: wanted.mac,
        netns: (!wanted.parent_inside).then(|| container.netns.as_fd()),
        up: false,
    };
    let made = match wanted.parent_inside {
        true => container.network.add_link(&new),
        false => Kernel::open().and_then(|mut node| node.add_link(&new)),
    };
    made.map_err(|error| refusal(error, wanted.kind))?;
    let link = container.link(&temporary)?;
    let named = LinkChange { name: Some(&call.ifname), ..LinkChange::default() };
    if let Err(error) = container.network.change_link(link.index, named) {
        let _ = container.network.delete_link(link.index);
        return Err(Error::internal(error));
    }
    container.link(&call.ifname)
}

fn refusal(error: netlink::Error, kind: Kind) -> Error {
    if !error.is_unsupported() {
        return Error::internal(error);
    }
    let option = match kind {
        Kind::Macvlan { .. } => "CONFIG_MACVLAN",
        Kind::Ipvlan(_) => "CONFIG_IPVLAN",
        Kind::Vlan(_) => "CONFIG_VLAN_8021Q",
        Kind::Dummy => "CONFIG_DUMMY",
        Kind::Ifb => "CONFIG_IFB",
    };
    let name = kind.name();
    Error::internal(format!("this kernel has no links of kind {name}: it needs {option}, built in or as a module"))
}

fn parent(wanted: &Wanted, container: &mut Container) -> Result<Option<Link>, Error> {
    let mut node;
    let network: &mut Kernel = match wanted.parent_inside {
        true => &mut container.network,
        false => {
            node = Kernel::open().map_err(Error::internal)?;
            &mut node
        }
    };
    match &wanted.parent {
        Parent::None => Ok(None),
        Parent::Named(name) => find(network, name).map(Some),
        Parent::Default => {
            let routes = network.routes().map_err(Error::internal)?;
            let index = routes.iter().find(|route| route.destination.prefix() == 0).and_then(|route| route.link);
            let links = network.links().map_err(Error::internal)?;
            let found = links.into_iter().find(|link| Some(link.index) == index);
            let missing = || Error::config("there is no default route whose link could be the master: name one");
            found.map(Some).ok_or_else(missing)
        }
    }
}
