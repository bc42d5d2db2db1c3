//! Links of other kinds than bridge and veth: those above a parent, dummies, and intermediate functional blocks;
//! and what only some callers want to know of a link, or do to it.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, Parseable};
use netlink_packet_route::link::{
    InfoData, InfoIpVlan, InfoKind, InfoMacVlan, InfoVlan, IpVlanMode, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
    MacVlanMode,
};

use super::real::{GETLINK, failed, malformed};
use super::{Error, Kernel, Mac, Result};

const NEWLINK: u16 = 16;

/// Kinds of links that stand on a parent, or alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `queue` is the length of the queue of broadcasts, 0 the kernel's own (1000).
    Macvlan {
        mode: MacvlanMode,
        queue: u32,
    },
    Ipvlan(IpvlanMode),
    /// IEEE 802.1Q, with the network's number.
    Vlan(u16),
    Dummy,
    /// An intermediate functional block: where what a link receives can be queued.
    Ifb,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MacvlanMode {
    Private,
    Vepa,
    Bridge,
    Passthru,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IpvlanMode {
    L2,
    L3,
    L3s,
}

impl Kind {
    /// As the kernel names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Macvlan { .. } => "macvlan",
            Self::Ipvlan(_) => "ipvlan",
            Self::Vlan(_) => "vlan",
            Self::Dummy => "dummy",
            Self::Ifb => "ifb",
        }
    }

    fn info(self) -> Vec<LinkInfo> {
        let (kind, data) = match self {
            Self::Macvlan { mode, queue } => {
                let mode = match mode {
                    MacvlanMode::Private => MacVlanMode::Private,
                    MacvlanMode::Vepa => MacVlanMode::Vepa,
                    MacvlanMode::Bridge => MacVlanMode::Bridge,
                    MacvlanMode::Passthru => MacVlanMode::Passthrough,
                };
                let mut data = vec![InfoMacVlan::Mode(mode)];
                data.extend((queue > 0).then_some(InfoMacVlan::BcQueueLen(queue)));
                (InfoKind::MacVlan, Some(InfoData::MacVlan(data)))
            }
            Self::Ipvlan(mode) => {
                let mode = match mode {
                    IpvlanMode::L2 => IpVlanMode::L2,
                    IpvlanMode::L3 => IpVlanMode::L3,
                    IpvlanMode::L3s => IpVlanMode::L3S,
                };
                (InfoKind::IpVlan, Some(InfoData::IpVlan(vec![InfoIpVlan::Mode(mode)])))
            }
            Self::Vlan(id) => (InfoKind::Vlan, Some(InfoData::Vlan(vec![InfoVlan::Id(id)]))),
            Self::Dummy => (InfoKind::Dummy, None),
            Self::Ifb => (InfoKind::Ifb, None),
        };
        [LinkInfo::Kind(kind)].into_iter().chain(data.map(LinkInfo::Data)).collect()
    }
}

/// A link that is to be made.
#[derive(Debug, Clone, Copy)]
pub struct NewLink<'a> {
    pub name: &'a str,
    pub kind: Kind,
    /// Index of the link below, in the namespace of the socket.
    pub parent: Option<u32>,
    pub mtu: Option<u32>,
    pub mac: Option<Mac>,
    /// The namespace in which it shall be; the socket's own where there is none.
    pub netns: Option<BorrowedFd<'a>>,
    pub up: bool,
}

/// What a link is set to, beyond [`super::Link`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Details {
    pub all_multicast: bool,
    /// `txqueuelen`, in packets.
    pub queue: u32,
    /// Of a macvlan or ipvlan link, the mode's name as configurations have it.
    pub mode: Option<&'static str>,
    /// The number of an 802.1Q link.
    pub vlan: Option<u16>,
    /// Index of the link below, or of a veth's other end.
    pub parent: Option<u32>,
}

impl Error {
    /// Whether this kernel does not have what was asked for: a kind of link or of queueing.
    pub fn is_unsupported(&self) -> bool {
        matches!(self.source.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EPROTONOSUPPORT))
    }
}

impl Kernel {
    /// # Errors
    /// [`Error::is_unsupported`] where this kernel has no such kind, [`Error::is_exists`] where the name is taken in
    /// the socket's namespace or in the one the link shall be in.
    pub fn add_link(&mut self, link: &NewLink<'_>) -> Result<()> {
        let mut message = LinkMessage::default();
        if link.up {
            message.header.flags |= LinkFlags::Up;
            message.header.change_mask |= LinkFlags::Up;
        }
        let attributes = &mut message.attributes;
        attributes.push(LinkAttribute::IfName(link.name.to_owned()));
        attributes.extend(link.parent.map(LinkAttribute::Link));
        attributes.extend(link.mtu.map(LinkAttribute::Mtu));
        attributes.extend(link.mac.map(|mac| LinkAttribute::Address(mac.0.to_vec())));
        attributes.extend(link.netns.map(|fd| LinkAttribute::NetNsFd(fd.as_raw_fd())));
        attributes.push(LinkAttribute::LinkInfo(link.kind.info()));
        self.0
            .act(NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &message)
            .map_err(failed("add", || format!("{} link {}", link.kind.name(), link.name)))
    }

    /// Moves a link into another namespace and gives it a name and an alias there, all in one step that others do not
    /// see half done. It is down afterwards.
    ///
    /// # Errors
    /// Where the link may not move, or the name is taken there.
    pub fn move_link(&mut self, index: u32, netns: BorrowedFd<'_>, name: &str, alias: &str) -> Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes.push(LinkAttribute::NetNsFd(netns.as_raw_fd()));
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        message.attributes.push(LinkAttribute::IfAlias(alias.to_owned()));
        self.0
            .act(NEWLINK, 0, &message)
            .map_err(failed("move", || format!("link {index} to another namespace as {name}")))
    }

    /// Sets the reception of all multicast, and the length of the transmit queue in packets.
    ///
    /// # Errors
    /// Where the link is gone or refuses.
    pub fn tune_link(&mut self, index: u32, all_multicast: Option<bool>, queue: Option<u32>) -> Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        if let Some(on) = all_multicast {
            message.header.change_mask |= LinkFlags::Allmulti;
            message.header.flags.set(LinkFlags::Allmulti, on);
        }
        message.attributes.extend(queue.map(LinkAttribute::TxQueueLen));
        self.0.act(NEWLINK, 0, &message).map_err(failed("tune", || format!("link {index}")))
    }

    /// `None` where no link has that name.
    ///
    /// # Errors
    /// Where the kernel's answer cannot be had or read.
    pub fn details(&mut self, name: &str) -> Result<Option<Details>> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        let read = self.0.get(GETLINK, &message).and_then(|part| part.map(|part| read_details(&part)).transpose());
        match read.map_err(failed("get", || format!("link {name}"))) {
            Err(error) if error.is_missing() => Ok(None),
            other => other,
        }
    }
}

pub(super) fn read_details(bytes: &[u8]) -> io::Result<Details> {
    let message = LinkMessage::parse(bytes).map_err(malformed)?;
    let mut details =
        Details { all_multicast: message.header.flags.contains(LinkFlags::Allmulti), ..Details::default() };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::TxQueueLen(packets) => details.queue = *packets,
            LinkAttribute::Link(index) => details.parent = Some(*index),
            LinkAttribute::LinkInfo(infos) => infos.iter().for_each(|info| read_data(&mut details, info)),
            _ => {}
        }
    }
    Ok(details)
}

fn read_data(details: &mut Details, info: &LinkInfo) {
    match info {
        LinkInfo::Data(InfoData::MacVlan(data)) => {
            details.mode = data.iter().find_map(|item| match item {
                InfoMacVlan::Mode(MacVlanMode::Private) => Some("private"),
                InfoMacVlan::Mode(MacVlanMode::Vepa) => Some("vepa"),
                InfoMacVlan::Mode(MacVlanMode::Bridge) => Some("bridge"),
                InfoMacVlan::Mode(MacVlanMode::Passthrough) => Some("passthru"),
                _ => None,
            });
        }
        LinkInfo::Data(InfoData::IpVlan(data)) => {
            details.mode = data.iter().find_map(|item| match item {
                InfoIpVlan::Mode(IpVlanMode::L2) => Some("l2"),
                InfoIpVlan::Mode(IpVlanMode::L3) => Some("l3"),
                InfoIpVlan::Mode(IpVlanMode::L3S) => Some("l3s"),
                _ => None,
            });
        }
        LinkInfo::Data(InfoData::Vlan(data)) => {
            details.vlan = data.iter().find_map(|item| match item {
                InfoVlan::Id(id) => Some(*id),
                _ => None,
            });
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;
    use crate::netlink::{LinkChange, Network, VethEnd};
    use crate::netns::Netns;

    #[test]
    fn a_macvlan_stands_on_its_parent_in_another_namespace() {
        if !crate::test::root("link kinds") {
            return;
        }
        let (node, pod) = (Netns::anonymous().unwrap(), Netns::anonymous().unwrap());
        let mut on_node = node.run(|| Kernel::open().unwrap()).unwrap();
        let mut in_pod = pod.run(|| Kernel::open().unwrap()).unwrap();
        on_node
            .add_veth(
                VethEnd { name: "up0", ..VethEnd::default() },
                VethEnd { name: "up1", ..VethEnd::default() },
                None,
                None,
            )
            .unwrap();
        let parent = on_node.link("up0").unwrap().unwrap().index;
        let mac: Mac = "0a:58:0a:01:02:03".parse().unwrap();
        let kind = Kind::Macvlan { mode: MacvlanMode::Private, queue: 0 };
        let wanted = NewLink {
            name: "tmp0",
            kind,
            parent: Some(parent),
            mtu: Some(1400),
            mac: Some(mac),
            netns: Some(pod.as_fd()),
            up: false,
        };
        on_node.add_link(&wanted).unwrap();
        let made = in_pod.link("tmp0").unwrap().unwrap();
        assert_eq!((made.kind.as_str(), made.mtu, made.mac), ("macvlan", 1400, Some(mac)));
        assert_eq!(in_pod.details("tmp0").unwrap().unwrap().mode, Some("private"));

        in_pod.tune_link(made.index, Some(true), Some(77)).unwrap();
        let tuned = in_pod.details("tmp0").unwrap().unwrap();
        assert_eq!((tuned.all_multicast, tuned.queue), (true, 77));
        assert_eq!(in_pod.details("nosuch").unwrap(), None);

        let index = on_node.link("up1").unwrap().unwrap().index;
        on_node.change_link(index, LinkChange { up: Some(true), ..LinkChange::default() }).unwrap();
        on_node.move_link(index, pod.as_fd(), "eth0", "up1").unwrap();
        let moved = in_pod.link("eth0").unwrap().unwrap();
        assert_eq!((moved.alias.as_str(), moved.up), ("up1", false));
        assert_eq!(on_node.link("up1").unwrap(), None);
    }
}
