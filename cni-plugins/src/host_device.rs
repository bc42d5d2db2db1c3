//! `host-device`: one of the node's own interfaces moves into the container, and back at its end.
//!
//! While it is there, its alias is the name that it had on the node.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use api::cni::{Error, Interface, Success};
use kernel::netlink::{Kernel, Link, Mac, Network};
use kernel::netns::Netns;
use serde::Deserialize;

use crate::interface::{Container, find, start};
use crate::ipam::Ipam;
use crate::skel::{Call, Plugin};

pub struct HostDevice;

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Config {
    device: String,
    hwaddr: String,
    kernelpath: String,
    #[serde(rename = "pciBusID")]
    pci: String,
}

/// How the configuration names the interface.
#[derive(Debug, Clone, PartialEq)]
enum Device {
    Named(String),
    Addressed(Mac),
    /// A folder of sysfs that has the interface's name in it.
    Listed(PathBuf),
    /// A PCI function whose driver is in user space: it has no interface.
    Userspace,
}

const PCI: &str = "/sys/bus/pci/devices";
const AUXILIARY: &str = "/sys/bus/auxiliary/devices";
const USERSPACE_DRIVERS: [&str; 3] = ["vfio-pci", "uio_pci_generic", "igb_uio"];

fn device(call: &Call) -> Result<Device, Error> {
    let mut config: Config = call.own()?;
    let asked = &call.config.runtime_config.device_id;
    if !asked.is_empty() {
        plain("deviceID", asked)?;
        if Path::new(PCI).join(asked).exists() {
            config.pci.clone_from(asked);
        } else if Path::new(AUXILIARY).join(asked).exists() {
            config.pci.clear();
        } else {
            return Err(Error::config(format!(
                "runtimeConfig.deviceID: this node has no PCI or auxiliary device {asked}"
            )));
        }
    }
    if !config.pci.is_empty() {
        plain("pciBusID", &config.pci)?;
        let driver = std::fs::canonicalize(Path::new(PCI).join(&config.pci).join("driver"))
            .map_err(|error| Error::config(format!("pciBusID {}: no driver: {error}", config.pci)))?;
        let name = driver.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if USERSPACE_DRIVERS.contains(&name) {
            return Ok(Device::Userspace);
        }
    }
    let auxiliary = if config.pci.is_empty() { asked.as_str() } else { "" };
    named(config, auxiliary)
}

/// The first of the keys that is given counts.
fn named(config: Config, auxiliary: &str) -> Result<Device, Error> {
    if !config.device.is_empty() {
        return Ok(Device::Named(config.device));
    }
    if !config.hwaddr.is_empty() {
        return config.hwaddr.parse().map(Device::Addressed).map_err(|error| Error::config(format!("hwaddr: {error}")));
    }
    if !config.kernelpath.is_empty() {
        let path = Path::new(&config.kernelpath);
        let inside = path.starts_with("/sys/devices") && !path.components().any(|part| part.as_os_str() == "..");
        return match inside {
            true => Ok(Device::Listed(path.join("net"))),
            false => Err(Error::config(format!("kernelpath {:?} is not below /sys/devices/", config.kernelpath))),
        };
    }
    if !config.pci.is_empty() {
        return Ok(Device::Listed(pci_folder(&Path::new(PCI).join(&config.pci))?));
    }
    if !auxiliary.is_empty() {
        return Ok(Device::Listed(Path::new(AUXILIARY).join(auxiliary).join("net")));
    }
    Err(Error::config("one of device, hwaddr, kernelpath and pciBusID has to say which interface is meant"))
}

fn plain(key: &str, text: &str) -> Result<(), Error> {
    match text.contains('/') || text.starts_with('.') {
        true => Err(Error::config(format!("{key} {text:?} is no name of a device"))),
        false => Ok(()),
    }
}

/// A virtio function has its interface one folder deeper.
fn pci_folder(function: &Path) -> Result<PathBuf, Error> {
    let own = function.join("net");
    if own.exists() {
        return Ok(own);
    }
    let entries = std::fs::read_dir(function).into_iter().flatten().flatten();
    let virtio = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("virtio"));
    let found = virtio.map(|entry| entry.path().join("net")).find(|path| path.exists());
    found.ok_or_else(|| Error::config(format!("{} has no network interface", function.display())))
}

fn look_up(node: &mut Kernel, device: &Device) -> Result<Link, Error> {
    match device {
        Device::Named(name) => find(node, name),
        Device::Addressed(mac) => {
            let links = node.links().map_err(Error::internal)?;
            let found = links.into_iter().find(|link| link.mac == Some(*mac));
            found.ok_or_else(|| Error::internal(format!("no interface has the hardware address {mac}")))
        }
        Device::Listed(folder) => {
            let missing = || Error::internal(format!("{} lists no network interface", folder.display()));
            let first = std::fs::read_dir(folder).ok().and_then(|mut entries| entries.next()).ok_or_else(missing)?;
            find(node, &first.map_err(|_| missing())?.file_name().to_string_lossy())
        }
        Device::Userspace => Err(Error::internal("a device with a driver in user space has no interface")),
    }
}

impl Plugin for HostDevice {
    fn add(&self, call: &Call) -> Result<Success, Error> {
        let device = device(call)?;
        let mut container = Container::open(call)?;
        let moved = match &device {
            Device::Userspace => None,
            device => Some(move_in(call, &mut container, device)?),
        };
        let ipam = Ipam::of(call)?;
        let done = address(call, &mut container, moved.as_ref(), ipam.as_ref());
        if done.is_err() {
            let _ = ipam.map(|ipam| ipam.del(call));
            let _ = move_out(call, &mut container);
        }
        done
    }

    fn del(&self, call: &Call) -> Result<(), Error> {
        let released = Ipam::of(call)?.map_or(Ok(()), |ipam| ipam.del(call));
        // The kernel takes what has a driver back itself when a namespace ends.
        let moved = match (device(call), Container::existing(call)?) {
            (Ok(Device::Userspace), _) | (_, None) => Ok(()),
            (_, Some(mut container)) => move_out(call, &mut container),
        };
        moved.and(released)
    }

    fn check(&self, call: &Call) -> Result<(), Error> {
        let device = device(call)?;
        Ipam::of(call)?.map_or(Ok(()), |ipam| ipam.check(call))?;
        let previous = call.previous()?;
        match device {
            Device::Userspace => Ok(()),
            _ => Container::open(call)?.check(call, &previous).map(drop),
        }
    }

    fn gc(&self, call: &Call) -> Result<(), Error> {
        Ipam::of(call)?.map_or(Ok(()), |ipam| ipam.gc(call))
    }

    fn status(&self, call: &Call) -> Result<(), Error> {
        device(call)?;
        Ipam::of(call)?.map_or(Ok(()), |ipam| ipam.status(call))
    }
}

fn address(
    call: &Call,
    container: &mut Container,
    moved: Option<&Link>,
    ipam: Option<&Ipam>,
) -> Result<Success, Error> {
    let mut result = ipam.map(|ipam| ipam.add(call)).transpose()?.unwrap_or_default();
    result.ips.iter_mut().for_each(|ip| ip.interface = Some(0));
    result.interfaces = match moved {
        Some(link) => vec![container.report(link)],
        None => {
            let (name, sandbox) = (call.ifname.clone(), container.sandbox());
            vec![Interface { name, sandbox, ..Interface::default() }]
        }
    };
    if let Some(link) = moved.filter(|_| !result.ips.is_empty()) {
        container.configure(link, &result, true)?;
    }
    call.override_dns(&mut result);
    Ok(result)
}

fn move_in(call: &Call, container: &mut Container, device: &Device) -> Result<Link, Error> {
    let mut node = Kernel::open().map_err(Error::internal)?;
    let link = look_up(&mut node, device)?;
    if container.network.link(&call.ifname).map_err(Error::internal)?.is_some() {
        return Err(Error::internal(format!("the container has an interface {} already", call.ifname)));
    }
    let done = node.move_link(link.index, container.netns.as_fd(), &call.ifname, &link.name).map_err(Error::internal);
    let started = done.and_then(|()| {
        let moved = container.link(&call.ifname)?;
        start(&mut container.network, moved.index).map_err(Error::internal)?;
        container.link(&call.ifname)
    });
    if started.is_err() {
        let _ = move_out(call, container);
        // Where it did not move it is still as it was; where it did, moving set it down.
        if let (true, Ok(Some(link))) = (link.up, node.link(&link.name)) {
            let _ = start(&mut node, link.index);
        }
    }
    started
}

/// Back to the node, under the name it had there. What is gone, or is not a moved interface, stays as it is.
fn move_out(call: &Call, container: &mut Container) -> Result<(), Error> {
    let link = container.network.link(&call.ifname).map_err(Error::internal)?;
    let Some(link) = link.filter(|link| !link.alias.is_empty()) else { return Ok(()) };
    let node = Netns::current().map_err(Error::internal)?;
    container.network.move_link(link.index, node.as_fd(), &link.alias, "").map_err(Error::internal)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn the_first_key_that_is_given_counts() {
        let read = |config: Value| {
            let call = Call { config: serde_json::from_value(config).unwrap(), ..Call::default() };
            device(&call).map_err(|error| error.msg)
        };
        assert_eq!(read(json!({"device": "eth1", "hwaddr": "0a:00:00:00:00:01"})), Ok(Device::Named("eth1".into())));
        let mac = "0a:00:00:00:00:01".parse().unwrap();
        assert_eq!(read(json!({"hwaddr": "0a:00:00:00:00:01"})), Ok(Device::Addressed(mac)));
        let listed = Device::Listed("/sys/devices/pci0/net".into());
        assert_eq!(read(json!({"kernelpath": "/sys/devices/pci0"})), Ok(listed));
        for (config, text) in [
            (json!({}), "one of device, hwaddr, kernelpath and pciBusID has to say which interface is meant"),
            (json!({"kernelpath": "/sys/devices/../x"}), "kernelpath \"/sys/devices/../x\" is not below /sys/devices/"),
            (json!({"pciBusID": "../x"}), "pciBusID \"../x\" is no name of a device"),
        ] {
            assert_eq!(read(config), Err(text.into()));
        }
    }
}
