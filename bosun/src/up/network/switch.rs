//! A network namespace with a bridge in it: the LAN of the nodes, or that of a rack.

use std::os::fd::AsFd;
use std::path::Path;

use anyhow::Context;
use kernel::netlink::{Kernel, Network, VethEnd};
use kernel::netns::{self, Netns};

use super::set_up;

const BRIDGE: &str = "nodes";

pub struct Switch {
    pub netns: Netns,
}

impl Switch {
    /// Opens the namespace that is mounted at `path`, or makes it; with a bridge.
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub fn ensure(path: &Path) -> anyhow::Result<Self> {
        let netns = match Netns::open(path) {
            Ok(netns) => netns,
            Err(error) if error.is_gone() => {
                netns::remove(path)?;
                netns::create(path)?
            }
            Err(error) => return Err(error.into()),
        };
        netns.run(|| {
            let mut network = Kernel::open()?;
            if network.link(BRIDGE)?.is_none() {
                network.add_bridge(BRIDGE, None)?;
            }
            set_up(&mut network, BRIDGE)
        })??;
        Ok(Self { netns })
    }

    /// # Errors
    /// Where there is none.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        Ok(Self { netns: Netns::open(path)? })
    }

    /// The name of the bridge: the switch's own interface among its ports.
    pub fn own_link(&self) -> &'static str {
        BRIDGE
    }

    /// # Errors
    /// Where the kernel does not say.
    pub fn has_port(&self, name: &str) -> anyhow::Result<bool> {
        self.netns.run(|| anyhow::Ok(Kernel::open()?.link(name)?.is_some()))?
    }

    /// Makes a port, called `name`, whose other end is in `there`. One of that name is replaced.
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub fn plug(&self, name: &str, other: VethEnd<'_>, there: &Netns) -> anyhow::Result<()> {
        self.netns.run(|| {
            let mut network = Kernel::open()?;
            let bridge = network.link(BRIDGE)?.context("the network of the nodes has no bridge")?.index;
            if let Some(stale) = network.link(name)? {
                network.delete_link(stale.index)?;
            }
            let port = VethEnd { name, master: Some(bridge), ..VethEnd::default() };
            network.add_veth(port, other, Some(there.as_fd()), None)?;
            set_up(&mut network, name).map(drop)
        })?
    }
}
