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
        Action::SetRoute(prefix, _, hops) if hops.is_empty() => format!("hole {prefix}"),
        Action::SetRoute(prefix, ..) => format!("route {prefix}"),
        Action::DeleteRoute(prefix, ..) => format!("no route {prefix}"),
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

/// What the kernel makes of an action; deleting a link takes all on it along.
fn act(state: &mut State, action: &Action) {
    match action.clone() {
        Action::Forward { v4, v6 } => {
            state.forwards.0 |= v4;
            state.forwards.1 |= v6;
        }
        Action::AddTunnel(name, tunnel) => {
            assert!(
                !state.tunnels.values().any(|t| (t.vni, t.port, t.local.map(|l| l.is_ipv4()))
                    == (tunnel.vni, tunnel.port, tunnel.local.map(|l| l.is_ipv4()))),
                "two of one VNI and port"
            );
            let bare = Tunnel { addresses: BTreeSet::new(), ..*tunnel };
            assert_eq!(state.tunnels.insert(name, bare), None);
        }
        Action::ChangeTunnel(name, tunnel) => {
            let is = state.tunnels.get_mut(&name).unwrap();
            (is.mtu, is.up, is.alias) = (tunnel.mtu, tunnel.up, tunnel.alias);
        }
        Action::DeleteLink(name) => {
            state.tunnels.remove(&name).unwrap();
            state.neighbours.retain(|(link, _), _| *link != name);
            state.forwarding.retain(|(link, _), _| *link != name);
            state.routes.retain(|_, hops| !hops.iter().any(|hop| *hop.device == *name));
        }
        Action::AddAddress(name, net) => assert!(state.tunnels.get_mut(&name).unwrap().addresses.insert(net)),
        Action::DeleteAddress(name, net) => assert!(state.tunnels.get_mut(&name).unwrap().addresses.remove(&net)),
        Action::SetForwarding(name, mac, remote) => drop(state.forwarding.insert((name, mac), remote)),
        Action::DeleteForwarding(name, mac, _) => drop(state.forwarding.remove(&(name, mac)).unwrap()),
        Action::SetNeighbour(name, address, mac) => drop(state.neighbours.insert((name, address), mac)),
        Action::DeleteNeighbour(name, address, _) => drop(state.neighbours.remove(&(name, address)).unwrap()),
        Action::SetRoute(prefix, metric, hops) => {
            assert!(hops.iter().all(|hop| *hop.device == *"eth0" || state.tunnels.contains_key(&*hop.device)));
            state.routes.insert((prefix, metric), hops);
        }
        Action::DeleteRoute(prefix, metric, _) => drop(state.routes.remove(&(prefix, metric)).unwrap()),
        Action::ChangeRules(_, rules) | Action::WriteRules(rules) => state.rules = Some(*rules),
    }
}

/// From any state to any other, and from whatever a daemon left that was killed on the way.
#[test]
fn every_way_leads_to_what_shall_be() {
    let mut states = vec![State { forwards: (true, true), ..State::default() }];
    for mode in [Mode::HostGw, Mode::Vxlan, Mode::VxlanCrossSubnet, Mode::Bgp] {
        for without in ["", "b", "c"] {
            let mut nodes = nodes();
            nodes.remove(without);
            let mut planned = planned(&nodes, mode).state;
            states.push(planned.clone());
            for tunnel in planned.tunnels.values_mut() {
                (tunnel.mtu, tunnel.port) = (tunnel.mtu - 8, 4789);
            }
            states.push(planned);
        }
    }
    for from in &states {
        for to in &states[1..] {
            let whole = diff(from, to);
            for killed_after in 0..=whole.len() {
                let mut state = from.clone();
                whole[..killed_after].iter().for_each(|action| act(&mut state, action));
                for action in diff(&state, to) {
                    act(&mut state, &action);
                }
                assert_eq!(&state, to);
            }
        }
    }
}
