//! A pod's figures as CRI's messages: those of its own control group, its network, and its containers.

use cri::v1::{
    ContainerStats, LinuxPodSandboxStats, NetworkInterfaceUsage, NetworkUsage, PodSandboxAttributes, PodSandboxStats,
    ProcessUsage,
};
use kernel::netlink::LinkStatistics;

use super::Measure;
use super::container::{cpu, io, memory, value};
use crate::cni::IFNAME;

/// A pod's figures. `links` is empty for a pod on the node's network, whose counters are the node's.
pub fn sandbox_stats(
    attributes: PodSandboxAttributes,
    measure: Option<&Measure>,
    links: &[LinkStatistics],
    containers: Vec<ContainerStats>,
) -> PodSandboxStats {
    let linux = LinuxPodSandboxStats {
        cpu: measure.map(cpu),
        memory: measure.map(memory),
        network: network(measure.map_or_else(super::now, |measure| measure.at), links),
        process: measure.map(|m| ProcessUsage { timestamp: m.at, process_count: value(m.usage.pids) }),
        containers,
        io: measure.and_then(io),
    };
    PodSandboxStats { attributes: Some(attributes), linux: Some(linux), windows: None }
}

fn network(at: i64, links: &[LinkStatistics]) -> Option<NetworkUsage> {
    let (own, others): (Vec<_>, Vec<_>) = links.iter().filter(|link| link.name != "lo").partition(|l| l.name == IFNAME);
    let interface = |link: &LinkStatistics| NetworkInterfaceUsage {
        name: link.name.clone(),
        rx_bytes: value(link.rx_bytes),
        rx_errors: value(link.rx_errors),
        tx_bytes: value(link.tx_bytes),
        tx_errors: value(link.tx_errors),
    };
    let default_interface = own.into_iter().next().map(interface);
    let interfaces: Vec<NetworkInterfaceUsage> = others.into_iter().map(interface).collect();
    let any = default_interface.is_some() || !interfaces.is_empty();
    any.then_some(NetworkUsage { timestamp: at, default_interface, interfaces })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pods_interface_is_the_default_and_the_loopback_is_left_out() {
        let link =
            |name: &str, rx_bytes| LinkStatistics { name: name.into(), rx_bytes, tx_errors: 1, ..Default::default() };
        let told = network(9, &[link("lo", 5), link("eth0", 7), link("eth1", 8)]).unwrap();
        let usage = |name: &str, rx| NetworkInterfaceUsage {
            name: name.into(),
            rx_bytes: value(rx),
            rx_errors: value(0),
            tx_bytes: value(0),
            tx_errors: value(1),
        };
        assert_eq!((told.default_interface, told.interfaces), (Some(usage("eth0", 7)), vec![usage("eth1", 8)]));
        assert_eq!(network(9, &[link("lo", 5)]), None);
    }

    #[test]
    fn a_pod_without_a_group_still_tells_of_its_containers() {
        let stats = sandbox_stats(PodSandboxAttributes::default(), None, &[], vec![ContainerStats::default()]);
        let linux = stats.linux.unwrap();
        assert_eq!((linux.cpu, linux.process, linux.network, linux.containers.len()), (None, None, None, 1));
    }
}
