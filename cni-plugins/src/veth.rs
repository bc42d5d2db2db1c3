//! The node's end of a veth pair: its name, whose it is, and its removal.

use api::cni::{Attachment, Error, Ip};
use kernel::netlink::{self, Kernel, LinkChange, Network};
use kernel::nftables::Nft;

use crate::interface::{Container, parameters};
use crate::ipam::Ipam;
use crate::skel::{Call, gone_owners};
use crate::{host_local, masquerade};

/// Candidates for the name of an attachment's end on the node: a function of the attachment, so that DEL finds it
/// without any record, and so that a crash between two steps leaves nothing unknown.
pub fn names(call: &Call) -> impl Iterator<Item = String> + '_ {
    (0..4).map(|salt: u32| {
        let text = format!("{}\0{}\0{}\0{salt}", call.config.name, call.container_id, call.ifname);
        format!("veth{}", hash(&text))
    })
}

/// Eight digits that stand for a text in the name of a link.
pub fn hash(text: &str) -> String {
    let digest = digest(text);
    format!("{:08x}", (digest >> 32) as u32 ^ digest as u32)
}

/// FNV-1a, 64 bits.
pub fn digest(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// A name that is free. What an ADD that was killed left under ours is removed.
pub fn host_name(node: &mut dyn Network, call: &Call) -> Result<String, Error> {
    for name in names(call) {
        match node.link(&name).map_err(Error::internal)? {
            None => return Ok(name),
            Some(link) if link.alias == call.owner() || link.alias.is_empty() => {
                node.delete_link(link.index).map_err(Error::internal)?;
                return Ok(name);
            }
            Some(_) => {}
        }
    }
    Err(Error::internal("no free name for the veth"))
}

/// Writes whose the node's end is, and starts it. Router advertisements of a container are nothing to the node.
pub fn own(node: &mut dyn Network, call: &Call, index: u32, name: &str) -> Result<(), Error> {
    parameters(&[(format!("net/ipv6/conf/{name}/accept_ra"), "0")])?;
    let owner = call.owner();
    let change = LinkChange { up: Some(true), alias: Some(&owner), ..LinkChange::default() };
    node.change_link(index, change).map_err(Error::internal)
}

/// Removes the attachment's veth. `false` where there was none.
pub fn detach(node: &mut dyn Network, call: &Call) -> netlink::Result<bool> {
    for name in names(call) {
        let Some(link) = node.link(&name)? else { continue };
        // An ADD that was killed before it wrote the alias leaves it empty.
        if link.alias == call.owner() || link.alias.is_empty() {
            return node.delete_link(link.index);
        }
    }
    Ok(false)
}

/// DEL of a plugin that made a veth, and had the addresses masqueraded where `masqueraded`.
pub fn remove(call: &Call, masqueraded: bool) -> Result<(), Error> {
    let ipam = Ipam::of(call)?;
    let mut node = Kernel::open().map_err(Error::internal)?;
    let held = if masqueraded { held(call, ipam.as_ref()) } else { Vec::new() };
    // Each step is tried though one before failed; the first failure is reported, and the runtime calls again.
    // The kernel waits for RCU on both ways, so they are gone at once.
    let (link, rules) = std::thread::scope(|scope| {
        let rules = scope.spawn(|| masquerade::unset(&Nft, &held));
        let link = detach(&mut node, call).map_err(Error::internal);
        (link, rules.join().unwrap_or_else(|_| Err(Error::internal("the removal of rules panicked"))))
    });
    let gone = match &link {
        Ok(false) => remove_inside(call),
        _ => Ok(()),
    };
    let released = ipam.as_ref().map_or(Ok(()), |ipam| if rules.is_ok() { ipam.del(call) } else { Ok(()) });
    link.map(drop).and(gone).and(rules).and(released)
}

/// After a failed ADD: what was made goes again. The failure itself is what the caller reports.
pub fn undo(node: &mut dyn Network, call: &Call, masqueraded: &[Ip], ipam: Option<&Ipam>) {
    let _ = detach(node, call);
    let _ = masquerade::unset(&Nft, masqueraded);
    let _ = ipam.map(|ipam| ipam.del(call));
}

/// GC of a plugin that made veths: those of attachments that are none of the `valid`.
pub fn collect(call: &Call, valid: &[Attachment]) -> Result<(), Error> {
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

/// The addresses that are the attachment's own. A repeated DEL must not touch what a newer container has got
/// since, so that host-local's record counts, and the previous result only where there is no record to ask.
fn held(call: &Call, ipam: Option<&Ipam>) -> Vec<Ip> {
    let previous = call.config.previous().ok().flatten().unwrap_or_default().ips;
    match ipam {
        Some(Ipam::HostLocal) => {
            let network =
                |ip| host_local::network_of(call, ip).map(|address| Ip { interface: None, address, gateway: None });
            host_local::held(call).unwrap_or_default().into_iter().filter_map(network).collect()
        }
        _ => previous,
    }
}

/// Removes the link under the interface's name: another maker's (the reference's, after a change of plugins), or one
/// that has no end on the node.
pub fn remove_inside(call: &Call) -> Result<(), Error> {
    let Some(mut container) = Container::existing(call)? else { return Ok(()) };
    if let Some(link) = container.network.link(&call.ifname).map_err(Error::internal)? {
        container.network.delete_link(link.index).map_err(Error::internal)?;
    }
    Ok(())
}
