//! `tuning`: kernel parameters of the container's network, and attributes of its interface, which DEL sets back.

mod config;

use std::path::{Path, PathBuf};

use api::cni::{Error, Success};
use kernel::netlink::{Kernel, LinkChange, Network};
use kernel::sysctl;

use crate::interface::{Container, find};
use crate::skel::{Call, Plugin};
use config::{Attributes, Config};

pub struct Tuning;

/// Which parameters an administrator allows; where there is no such file, all of the network's.
const ALLOWLIST: &str = "/etc/cni/tuning/allowlist.conf";

impl Plugin for Tuning {
    fn add(&self, call: &Call) -> Result<Success, Error> {
        let config = admitted(call)?;
        let mut previous = call.previous()?;
        let mut container = Container::open(call)?;
        let set = || config.sysctl.iter().try_for_each(|(name, value)| sysctl::write(name, value).map(drop));
        container.netns.run(set).map_err(Error::internal)?.map_err(Error::internal)?;
        if config.attributes == Attributes::default() {
            return Ok(previous);
        }
        let former = former(&mut container.network, &call.ifname, &config.attributes)?;
        let file = file(call, &config::folder(call));
        remember(&file, &former)?;
        if let Err(error) = apply(&mut container.network, &call.ifname, &config.attributes) {
            let _ = restore(call, &file, &mut container);
            return Err(error);
        }
        for interface in previous.interfaces.iter_mut().filter(|interface| interface.name == call.ifname) {
            if !config.attributes.mac.is_empty() {
                interface.mac.clone_from(&config.attributes.mac);
            }
            if config.attributes.mtu > 0 && interface.mtu.is_some() {
                interface.mtu = Some(config.attributes.mtu);
            }
        }
        Ok(previous)
    }

    fn del(&self, call: &Call) -> Result<(), Error> {
        let file = file(call, &config::folder(call));
        match Container::existing(call)? {
            Some(mut container) => restore(call, &file, &mut container),
            None => forget(&file),
        }
    }

    fn check(&self, call: &Call) -> Result<(), Error> {
        let config = Config::of(call)?;
        call.previous()?;
        let mut container = Container::open(call)?;
        let read = || config.sysctl.iter().map(|(name, _)| sysctl::read(name)).collect::<Result<Vec<_>, _>>();
        let values = container.netns.run(read).map_err(Error::internal)?.map_err(Error::internal)?;
        for ((name, wanted), value) in config.sysctl.iter().zip(values) {
            if *wanted != value {
                return Err(Error::internal(format!("sysctl {name} is {value:?}, not {wanted:?}")));
            }
        }
        let wanted = &config.attributes;
        let promisc = Some(wanted.promisc.unwrap_or(false));
        let all = Attributes { promisc, ..wanted.clone() };
        let mut present = former(&mut container.network, &call.ifname, &all)?;
        if present.mac.eq_ignore_ascii_case(&wanted.mac) {
            present.mac.clone_from(&wanted.mac);
        }
        match present == all {
            true => Ok(()),
            false => {
                let text = |attributes: &Attributes| serde_json::to_string(attributes).unwrap_or_default();
                Err(Error::internal(format!("interface {} is {}, not {}", call.ifname, text(&present), text(&all))))
            }
        }
    }

    fn status(&self, call: &Call) -> Result<(), Error> {
        admitted(call).map(drop)
    }
}

fn admitted(call: &Call) -> Result<Config, Error> {
    let config = Config::of(call)?;
    match std::fs::read_to_string(ALLOWLIST) {
        Ok(list) => config::allowed(&config::keys(call), &list)?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(Error::internal(format!("cannot read {ALLOWLIST}: {error}"))),
    }
    Ok(config)
}

/// What the interface has now, of what `wanted` is going to change.
fn former(network: &mut Kernel, ifname: &str, wanted: &Attributes) -> Result<Attributes, Error> {
    let link = find(network, ifname)?;
    let details = network.details(ifname).map_err(Error::internal)?.unwrap_or_default();
    let mac = link.mac.map(|mac| mac.to_string()).unwrap_or_default();
    Ok(Attributes {
        mac: if wanted.mac.is_empty() { String::new() } else { mac },
        promisc: wanted.promisc.map(|_| link.promiscuous),
        mtu: if wanted.mtu > 0 { link.mtu } else { 0 },
        allmulti: wanted.allmulti.map(|_| details.all_multicast),
        queue: wanted.queue.map(|_| details.queue),
    })
}

fn apply(network: &mut Kernel, ifname: &str, attributes: &Attributes) -> Result<(), Error> {
    let link = find(network, ifname)?;
    let change = LinkChange {
        mac: attributes.address()?,
        mtu: (attributes.mtu > 0).then_some(attributes.mtu),
        promiscuous: attributes.promisc,
        ..LinkChange::default()
    };
    network.change_link(link.index, change).map_err(Error::internal)?;
    network.tune_link(link.index, attributes.allmulti, attributes.queue).map_err(Error::internal)
}

fn file(call: &Call, folder: &Path) -> PathBuf {
    folder.join(format!("{}_{}.json", call.container_id, call.ifname))
}

fn remember(file: &Path, former: &Attributes) -> Result<(), Error> {
    let failed = |error: std::io::Error| Error::internal(format!("cannot write {}: {error}", file.display()));
    let text = serde_json::to_vec_pretty(former).map_err(Error::internal)?;
    let made = file.parent().map_or(Ok(()), std::fs::create_dir_all);
    made.and_then(|()| std::fs::write(file, text)).map_err(failed)
}

/// Sets the interface back, where it is still there and its former attributes were written down.
fn restore(call: &Call, file: &Path, container: &mut Container) -> Result<(), Error> {
    let Ok(text) = std::fs::read(file) else { return Ok(()) };
    let former: Option<Attributes> = serde_json::from_slice(&text).ok();
    let link = container.network.link(&call.ifname).map_err(Error::internal)?;
    if let (Some(former), Some(_)) = (former, link) {
        apply(&mut container.network, &call.ifname, &former)?;
    }
    forget(file)
}

fn forget(file: &Path) -> Result<(), Error> {
    match std::fs::remove_file(file) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::internal(format!("cannot remove {}: {error}", file.display())))
        }
        _ => Ok(()),
    }
}
