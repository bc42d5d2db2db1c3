//! `loopback`: sets the container's `lo` up.

use std::path::Path;

use api::cni::{Error, Interface, Ip, Success};
use kernel::netlink::{Kernel, Link, LinkChange, Network};

use crate::interface::Container;
use crate::skel::{Call, Plugin};

pub struct Loopback;

impl Plugin for Loopback {
    fn add(&self, call: &Call) -> Result<Success, Error> {
        set(&mut Container::open(call)?.network, true)?;
        if let Some(previous) = call.config.previous()? {
            return Ok(previous);
        }
        let sandbox = call.netns.as_deref().unwrap_or(Path::new("")).to_string_lossy().into_owned();
        let lo = Interface { name: "lo".into(), mac: "00:00:00:00:00:00".into(), sandbox, ..Interface::default() };
        let own = |text: &str| text.parse().ok().map(|address| Ip { interface: Some(0), address, gateway: None });
        let ips = ["127.0.0.1/8", "::1/128"].into_iter().filter_map(own).collect();
        Ok(Success { interfaces: vec![lo], ips, ..Success::default() })
    }

    fn del(&self, call: &Call) -> Result<(), Error> {
        Container::existing(call)?.map_or(Ok(()), |mut container| set(&mut container.network, false))
    }

    fn check(&self, call: &Call) -> Result<(), Error> {
        match lo(&mut Container::open(call)?.network)?.up {
            true => Ok(()),
            false => Err(Error::internal("loopback interface is down")),
        }
    }
}

fn set(network: &mut Kernel, up: bool) -> Result<(), Error> {
    let lo = lo(network)?;
    network.change_link(lo.index, LinkChange { up: Some(up), ..LinkChange::default() }).map_err(Error::internal)
}

fn lo(network: &mut Kernel) -> Result<Link, Error> {
    network.link("lo").map_err(Error::internal)?.ok_or_else(|| Error::internal("the namespace has no lo"))
}
