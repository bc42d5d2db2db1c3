use super::*;
use crate::config::Mode;
use crate::routes::plan::tests::{nodes, planned};

fn between(is: &State, shall: &State) -> Vec<String> {
    let name = |action: &Action| match action {
        Action::Forward { v4, v6 } => format!("forward {v4} {v6}"),
        Action::AddTunnel(name, _) => format!("add {name}"),
        Action::ChangeTunnel(name, tunnel) => format!("change {name} {}", tunnel.mtu),
        Action::DeleteLink(name) => format!("delete {name}"),
        Action::AddAddress(name, net) => format!("address {net} {name}"),
        Action::DeleteAddress(name, net) => format!("no address {net} {name}"),
        Action::SetForwarding(name, mac, remote) => format!("forwarding {mac} {remote} {name}"),
        Action::DeleteForwarding(name, mac, _) => format!("no forwarding {mac} {name}"),
        Action::SetNeighbour(name, address, mac) => format!("neighbour {address} {mac} {name}"),
        Action::DeleteNeighbour(name, address, _) => format!("no neighbour {address} {name}"),
        Action::SetRoute(prefix, route) if route.hops.is_empty() => format!("hole {prefix}"),
        Action::SetRoute(prefix, _) => format!("route {prefix}"),
        Action::DeleteRoute(prefix, _) => format!("no route {prefix}"),
        Action::ChangeRules(script, _) => script.trim_end().replace('\n', "; "),
        Action::WriteRules(_) => "rules".into(),
    };
    diff(is, shall).iter().map(name).collect()
}

/// One family, so that the lists stay short.
fn four(mode: Mode, change: impl FnOnce(&mut std::collections::BTreeMap<String, crate::routes::model::Node>)) -> State {
    let mut nodes = nodes();
    nodes.values_mut().for_each(|node| node.pod_cidrs.truncate(1));
    change(&mut nodes);
    planned(&nodes, mode).state
}

#[test]
fn what_is_right_is_not_touched() {
    for mode in [Mode::HostGw, Mode::Vxlan, Mode::VxlanCrossSubnet, Mode::Bgp] {
        let state = planned(&nodes(), mode).state;
        assert_eq!(diff(&state, &state), []);
    }
}

#[test]
fn from_nothing_the_way_is_complete_before_packets_are_sent_on_it() {
    assert_eq!(
        between(&State::default(), &four(Mode::Vxlan, |_| {})),
        [
            "forward true false",
            "rules",
            "add flannel.1",
            "address 10.244.1.0/32 flannel.1",
            "forwarding 02:00:00:00:00:02 192.0.2.2 flannel.1",
            "forwarding 02:00:00:00:00:03 198.51.100.3 flannel.1",
            "neighbour 10.244.2.0 02:00:00:00:00:02 flannel.1",
            "neighbour 10.244.3.0 02:00:00:00:00:03 flannel.1",
            "hole 10.244.1.0/24",
            "route 10.244.2.0/24",
            "route 10.244.3.0/24",
        ]
    );
}

#[test]
fn a_node_that_comes_moves_or_goes_touches_its_own() {
    let (before, after) = (four(Mode::Vxlan, |nodes| drop(nodes.remove("c"))), four(Mode::Vxlan, |_| {}));
    assert_eq!(
        between(&before, &after),
        [
            "add element inet bosun-net inside4 { 10.244.3.0/24 }; add element inet bosun-net nodes4 { 198.51.100.3/32 }; \
             add element inet bosun-net nodes6 { 2001:db8:1::3/128 }",
            "forwarding 02:00:00:00:00:03 198.51.100.3 flannel.1",
            "neighbour 10.244.3.0 02:00:00:00:00:03 flannel.1",
            "route 10.244.3.0/24",
        ]
    );
    assert_eq!(
        between(&after, &before)[1..],
        ["no route 10.244.3.0/24", "no neighbour 10.244.3.0 flannel.1", "no forwarding 02:00:00:00:00:03 flannel.1",]
    );
    let moved = four(Mode::Vxlan, |nodes| {
        let node = nodes.get_mut("c").unwrap();
        node.addresses[0] = "198.51.100.4".parse().unwrap();
        node.tunnel_v4.as_mut().unwrap().address = node.addresses[0];
    });
    assert_eq!(between(&after, &moved)[1..], ["forwarding 02:00:00:00:00:03 198.51.100.4 flannel.1"]);
}

#[test]
fn another_mode_takes_the_tunnel_away_last() {
    assert_eq!(
        between(&four(Mode::Vxlan, |_| {}), &four(Mode::HostGw, |_| {})),
        ["rules", "route 10.244.2.0/24", "no route 10.244.3.0/24", "delete flannel.1",]
    );
}

#[test]
fn a_link_is_changed_where_the_kernel_can_and_replaced_with_all_on_it_where_not() {
    let shall = four(Mode::Vxlan, |_| {});
    let mut is = shall.clone();
    let tunnel = is.tunnels.get_mut("flannel.1").unwrap();
    (tunnel.mtu, tunnel.up) = (1400, false);
    tunnel.addresses = ["10.244.9.0/32".parse().unwrap()].into();
    assert_eq!(
        between(&is, &shall),
        ["change flannel.1 1450", "no address 10.244.9.0/32 flannel.1", "address 10.244.1.0/32 flannel.1"]
    );
    let mut is = shall.clone();
    is.tunnels.get_mut("flannel.1").unwrap().local = "192.0.2.99".parse().ok();
    assert_eq!(
        between(&is, &shall),
        [
            "delete flannel.1",
            "add flannel.1",
            "address 10.244.1.0/32 flannel.1",
            "forwarding 02:00:00:00:00:02 192.0.2.2 flannel.1",
            "forwarding 02:00:00:00:00:03 198.51.100.3 flannel.1",
            "neighbour 10.244.2.0 02:00:00:00:00:02 flannel.1",
            "neighbour 10.244.3.0 02:00:00:00:00:03 flannel.1",
            "route 10.244.2.0/24",
            "route 10.244.3.0/24",
        ]
    );
    // A link that another program made is left where it is not in the way.
    let mut is = four(Mode::HostGw, |_| {});
    let mut foreign = shall.tunnels["flannel.1"].clone();
    foreign.alias.clear();
    is.tunnels.insert("flannel.1".into(), foreign);
    assert_eq!(between(&is, &four(Mode::HostGw, |_| {})), [""; 0]);
}
