//! Racks: each is a namespace that switches among its nodes and routes to the other racks and to the host.

use anyhow::Context;
use ipnetwork::Ipv4Network;
use kernel::netlink::{Kernel, LinkChange, Network, VethEnd};
use kernel::netns;

use super::switch::Switch;
use super::{address, forward, mac_of, route, set_up};
use crate::cluster::{Cluster, Paths, Rack};

/// A router's interface towards the host and the other routers.
const UPLINK: &str = "uplink";

/// Makes what is missing of the racks, as ports of `spine`.
///
/// # Errors
/// Where the kernel refuses.
pub fn ensure(cluster: &Cluster, spine: &Switch) -> anyhow::Result<()> {
    let racks = cluster.racks();
    for rack in &racks {
        let switch = Switch::ensure(&path(&cluster.paths(), rack))?;
        let port = format!("rack{}", rack.number);
        let is_plugged = switch.has_port(UPLINK)? && spine.has_port(&port)?;
        if !is_plugged {
            let uplink = VethEnd { name: UPLINK, mac: Some(mac_of(rack.uplink)), ..VethEnd::default() };
            spine.plug(&port, uplink, &switch.netns)?;
        }
        let routes = routes(cluster, &racks, rack);
        let configured = switch.netns.run(|| configure(cluster, rack, switch.own_link(), &routes))?;
        configured.with_context(|| format!("configure the router of rack {}", rack.number))?;
    }
    Ok(())
}

/// Where the namespace of a rack is mounted.
pub fn path(paths: &Paths, rack: &Rack) -> std::path::PathBuf {
    paths.racks().join(rack.number.to_string())
}

/// Destinations and routers, for the router of one rack: the other racks; with egress anything, by the host.
fn routes(cluster: &Cluster, racks: &[Rack], own: &Rack) -> Vec<(Ipv4Network, std::net::Ipv4Addr)> {
    let others = racks.iter().filter(|rack| rack.number != own.number).map(|rack| (rack.subnet, rack.uplink));
    let host = cluster.settings.egress.then(|| (super::anywhere(), cluster.host_address()));
    others.chain(host).collect()
}

fn configure(
    cluster: &Cluster,
    rack: &Rack,
    nodes: &str,
    routes: &[(Ipv4Network, std::net::Ipv4Addr)],
) -> anyhow::Result<()> {
    let mut network = Kernel::open()?;
    set_up(&mut network, "lo")?;
    let uplink = set_up(&mut network, UPLINK)?;
    let inner = set_up(&mut network, nodes)?;
    address(cluster, &mut network, uplink, rack.uplink, cluster.host_network())?;
    address(cluster, &mut network, inner, rack.router, rack.subnet)?;
    // A bridge without one of its own has that of a port, and another when ports come and go.
    network.change_link(inner, LinkChange { mac: Some(mac_of(rack.router)), ..LinkChange::default() })?;
    for (destination, gateway) in routes {
        route(cluster, &mut network, *destination, *gateway, uplink)?;
    }
    forward(cluster)
}

/// Removes the racks of a cluster; each failure is returned and the rest goes on.
pub fn remove(paths: &Paths) -> Vec<anyhow::Error> {
    let entries = std::fs::read_dir(paths.racks()).into_iter().flatten().flatten();
    entries.filter_map(|entry| netns::remove(entry.path()).err()).map(anyhow::Error::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::{Cri, Settings};

    #[test]
    fn a_router_knows_the_others_and_the_host_only_for_egress() {
        let cluster = |egress| {
            let kubeconfig = "/k".into();
            Cluster::new(
                "dev",
                0,
                Settings {
                    kubeconfig,
                    registry_config: None,
                    cri: Cri::Bosun,
                    egress,
                    nodes: 3,
                    racks: 3,
                    dual_stack: false,
                },
            )
        };
        let said = |cluster: &Cluster| -> Vec<String> {
            let racks = cluster.racks();
            routes(cluster, &racks, &racks[1]).into_iter().map(|(to, by)| format!("{to} {by}")).collect()
        };
        let others = ["172.30.0.32/27 172.30.0.2", "172.30.0.96/27 172.30.0.4"];
        assert_eq!(said(&cluster(false)), others);
        assert_eq!(said(&cluster(true)), [others[0], others[1], "0.0.0.0/0 172.30.0.1"]);
    }
}
