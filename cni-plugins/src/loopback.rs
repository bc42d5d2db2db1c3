//! `loopback`: sets the container's `lo` up.

use std::path::Path;

use api::cni::{Error, Interface, Ip, Success};
use kernel::netlink::{Kernel, Link, LinkChange, Network};
use kernel::netns::Netns;

use crate::skel::{Call, Plugin};

pub struct Loopback;

impl Plugin for Loopback {
    fn add(&self, call: &Call) -> Result<Success, Error> {
        let path = namespace(call)?;
        set(path, true)?;
        if let Some(previous) = call.config.previous()? {
            return Ok(previous);
        }
        let sandbox = path.to_string_lossy().into_owned();
        let lo = Interface { name: "lo".into(), mac: "00:00:00:00:00:00".into(), sandbox, ..Interface::default() };
        let own = |text: &str| text.parse().ok().map(|address| Ip { interface: Some(0), address, gateway: None });
        let ips = ["127.0.0.1/8", "::1/128"].into_iter().filter_map(own).collect();
        Ok(Success { interfaces: vec![lo], ips, ..Success::default() })
    }

    fn del(&self, call: &Call) -> Result<(), Error> {
        let Some(path) = &call.netns else { return Ok(()) };
        match Netns::open(path) {
            Err(error) if error.is_gone() => Ok(()),
            _ => set(path, false),
        }
    }

    fn check(&self, call: &Call) -> Result<(), Error> {
        match inside(namespace(call)?, lo)?.up {
            true => Ok(()),
            false => Err(Error::internal("loopback interface is down")),
        }
    }
}

fn namespace(call: &Call) -> Result<&Path, Error> {
    call.netns.as_deref().ok_or_else(|| Error::internal("CNI_NETNS is missing"))
}

fn set(path: &Path, up: bool) -> Result<(), Error> {
    inside(path, |network| {
        let lo = lo(network)?;
        network.change_link(lo.index, LinkChange { up: Some(up), ..LinkChange::default() }).map_err(Error::internal)
    })
}

fn lo(network: &mut Kernel) -> Result<Link, Error> {
    network.link("lo").map_err(Error::internal)?.ok_or_else(|| Error::internal("the namespace has no lo"))
}

fn inside<T>(path: &Path, work: impl FnOnce(&mut Kernel) -> Result<T, Error>) -> Result<T, Error> {
    let netns = Netns::open(path).map_err(Error::internal)?;
    let mut network = crate::bridge::socket_in(&netns)?;
    work(&mut network)
}
