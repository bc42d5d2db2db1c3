use std::process::Command;
use std::time::Duration;

use ::kernel::netlink::{Change, Kernel, Network, Watch};
use ::kernel::netns::Netns;
use ::kernel::nftables::{Nft, Nftables};

use super::*;
use crate::config::Mode;
use crate::routes::fabric::Fabric;
use crate::routes::state::State;

fn config(mode: Mode) -> Config {
    Config { mode, ..Config::default() }
}

fn state(bed: &Bed, name: &str) -> State {
    bed.machine(name).netns.run(|| Fabric::open().unwrap().read().unwrap()).unwrap()
}

#[test]
fn pods_reach_pods_in_each_mode_and_a_restart_changes_nothing() {
    for (mode, subnets) in [(Mode::HostGw, [0, 0, 0]), (Mode::Vxlan, [0, 0, 1]), (Mode::VxlanCrossSubnet, [0, 0, 1])] {
        if !root(mode.name()) {
            return;
        }
        let mut bed = Bed::new(subnets);
        bed.settle(&config(mode));
        bed.assert_pods_reach_pods();
        for name in ["a", "b", "c"] {
            assert_eq!(bed.keep(name, &config(mode), usize::MAX), []);
        }
        let tunnels = state(&bed, "a").tunnels.len();
        assert_eq!(tunnels, if mode == Mode::HostGw { 0 } else { 2 });
    }
}

#[test]
fn each_mode_follows_another_and_leaves_nothing_of_it() {
    if !root("changing modes") {
        return;
    }
    let mut bed = Bed::new([0, 0, 0]);
    bed.settle(&config(Mode::HostGw));
    let before = state(&bed, "a");
    for mode in [Mode::Vxlan, Mode::VxlanCrossSubnet, Mode::HostGw] {
        bed.settle(&config(mode));
        bed.assert_pods_reach_pods();
    }
    assert_eq!(state(&bed, "a"), before);
    bed.settle(&Config { vni: 7, port: 4789, ..config(Mode::Vxlan) });
    bed.assert_pods_reach_pods();
    assert_eq!(state(&bed, "a").tunnels.keys().collect::<Vec<_>>(), ["flannel-v6.7", "flannel.7"]);
}

/// A daemon that is killed has done some of its actions; whichever they are, the next one completes them.
#[test]
fn killed_after_any_action_the_next_daemon_completes_them() {
    if !root("killed") {
        return;
    }
    let mut bed = Bed::new([0, 0, 1]);
    bed.settle(&config(Mode::VxlanCrossSubnet));
    let plan = bed.plan("a", &config(Mode::VxlanCrossSubnet));
    let total = diff(&State::default(), &plan.state).len();
    for limit in 0..=total {
        // Nothing of it, as at the first start.
        bed.settle(&config(Mode::HostGw));
        let clear = || {
            Nft.apply("delete table inet bosun-net").unwrap();
            let mut network = Kernel::open().unwrap();
            for route in network.routes_of(crate::routes::state::PROTOCOL).unwrap() {
                network.unset_route(&route).unwrap();
            }
        };
        bed.machine("a").netns.run(clear).unwrap();
        bed.nodes.get_mut("a").unwrap().metadata.annotations = None;
        bed.keep("a", &config(Mode::VxlanCrossSubnet), limit);
        bed.settle(&config(Mode::VxlanCrossSubnet));
        assert_eq!(state(&bed, "a"), plan.state, "after {limit} actions");
    }
    bed.assert_pods_reach_pods();
}

#[test]
fn a_node_that_comes_or_goes_changes_only_its_own() {
    if !root("nodes that come and go") {
        return;
    }
    let mut bed = Bed::new([0, 0, 1]);
    let config = config(Mode::Vxlan);
    bed.settle(&config);
    let c = bed.nodes.remove("c").unwrap();
    let gone = bed.keep("a", &config, usize::MAX);
    assert_eq!(gone.len(), 7, "the rules, and route, neighbour and forwarding of each family: {gone:?}");
    assert!(ask(&bed.machine("a").pod, "10.244.3.2:80").is_err());
    bed.nodes.insert("c".into(), c);
    assert_eq!(bed.keep("a", &config, usize::MAX).len(), 7);
    bed.assert_pods_reach_pods();
}

#[test]
fn what_others_remove_is_heard_of_and_what_the_daemon_does_is_not() {
    if !root("watching") {
        return;
    }
    let mut bed = Bed::new([0, 0, 1]);
    let config = config(Mode::VxlanCrossSubnet);
    let mut watch = bed.machine("a").netns.run(|| Watch::open().unwrap()).unwrap();
    bed.settle(&config);
    let known = state(&bed, "a");
    let mut fabric = bed.machine("a").netns.run(|| Fabric::open().unwrap()).unwrap();
    let interfaces = fabric.interfaces().unwrap();
    let mut heard = || {
        std::thread::sleep(Duration::from_millis(20));
        let changes = watch.changes(Duration::from_millis(100)).unwrap();
        changes.into_iter().filter(|change| fabric.matters(change, &known, &interfaces)).collect::<Vec<_>>()
    };
    // Links pass through states of their own on the way.
    let link = |change: &Change| matches!(change, Change::Link { .. });
    assert!(heard().iter().all(link));
    let _pod = pod_beside(&bed.machine("a").netns);
    assert_eq!(heard(), []);
    for command in [
        "ip route del 10.244.2.0/24",
        "ip -6 route del fd00:2::/64",
        "ip route del 10.244.3.0/24",
        "ip neigh del 10.244.3.0 dev flannel.1",
        "ip link set flannel.1 mtu 1400",
        "ip link del flannel.1",
    ] {
        run(&bed.machine("a").netns, command);
        assert_ne!(heard(), [], "{command}");
        assert_ne!(bed.keep("a", &config, usize::MAX), [], "{command}");
        bed.assert_pods_reach_pods();
        heard();
    }
    for command in ["ip addr add 192.0.2.77/24 dev eth0", "ip link set eth0 mtu 1400", "ip link set eth0 down"] {
        run(&bed.machine("a").netns, command);
        assert_ne!(heard(), [], "{command}");
    }
}

/// Another pod beside the first, which concerns no other node.
fn pod_beside(node: &Netns) -> Netns {
    let pod = Netns::anonymous().unwrap();
    let ends = ["beside", "eth0"].map(|name| VethEnd { name, ..VethEnd::default() });
    open(node).add_veth(ends[0], ends[1], Some(pod.as_fd()), None).unwrap();
    start(node, "beside", &["fe80::1/64".into()]);
    route(node, "10.244.1.9/32", None, "beside");
    pod
}

fn run(netns: &Netns, command: &str) {
    let mut words = command.split(' ');
    let done = netns.run(|| Command::new(words.next().unwrap()).args(words).output().unwrap()).unwrap();
    assert!(done.status.success(), "{command}: {}", String::from_utf8_lossy(&done.stderr));
}

/// A node as flannel leaves it, made by iproute2 from flannel's documentation and what `ip -d link` shows of one.
#[test]
fn a_node_of_flannel_is_one_of_the_cluster() {
    if !root("flannel") {
        return;
    }
    let mut bed = Bed::new([0, 0, 1]);
    let flannel = bed.machines.pop().unwrap();
    let mac = "7e:8d:b1:18:36:d3";
    let annotations = json!({
        "flannel.alpha.coreos.com/backend-data": format!("{{\"VNI\":1,\"VtepMAC\":\"{mac}\"}}"),
        "flannel.alpha.coreos.com/backend-type": "vxlan",
        "flannel.alpha.coreos.com/kube-subnet-manager": "true",
        "flannel.alpha.coreos.com/public-ip": flannel.addresses[0].to_string(),
    });
    bed.nodes.get_mut("c").unwrap().metadata.annotations = serde_json::from_value(annotations).unwrap();
    bed.nodes.get_mut("c").unwrap().spec.as_mut().unwrap().pod_cidrs = Some(vec!["10.244.3.0/24".into()]);
    bed.settle(&config(Mode::Vxlan));

    let net = &flannel.netns;
    net.run(|| ::kernel::forwarding::enable(true, true).unwrap()).unwrap();
    let local = flannel.addresses[0];
    run(
        net,
        &format!(
            "ip link add flannel.1 address {mac} mtu 1450 type vxlan id 1 dev eth0 local {local} dstport 8472 nolearning"
        ),
    );
    run(net, "ip addr add 10.244.3.0/32 dev flannel.1");
    run(net, "ip link set flannel.1 up");
    for machine in &bed.machines {
        // As flannel reads it on the other's Node.
        let told = bed.nodes[machine.name].metadata.annotations.as_ref().unwrap();
        let data: serde_json::Value = serde_json::from_str(&told["flannel.alpha.coreos.com/backend-data"]).unwrap();
        let (mac, ip) = (data["VtepMAC"].as_str().unwrap(), &told["flannel.alpha.coreos.com/public-ip"]);
        let number = machine.number;
        run(net, &format!("ip route add 10.244.{number}.0/24 via 10.244.{number}.0 dev flannel.1 onlink"));
        run(net, &format!("ip neigh add 10.244.{number}.0 lladdr {mac} dev flannel.1 nud permanent"));
        run(net, &format!("bridge fdb add {mac} dev flannel.1 dst {ip}"));
    }
    for machine in &bed.machines {
        assert_eq!(ask(&machine.pod, "10.244.3.2:80"), Ok(format!("10.244.{}.2", machine.number)));
        assert_eq!(ask(&flannel.pod, &format!("10.244.{}.2:80", machine.number)), Ok("10.244.3.2".into()));
    }
    // Its link is taken over where bosun follows flannel on that node: only what differs is replaced.
    bed.machines.push(flannel);
    bed.settle(&config(Mode::Vxlan));
    assert_eq!(ask(&bed.machine("a").pod, "10.244.3.2:80"), Ok("10.244.1.2".into()));
}

#[test]
fn wrapped_packets_are_heard_from_nodes_alone() {
    if !root("the guard of tunnels") {
        return;
    }
    let mut bed = Bed::new([0, 0, 1]);
    let config = config(Mode::Vxlan);
    bed.settle(&config);
    // The router becomes a tunnel's end that no node is: it knows all that a node knows.
    let end = Node::read(&bed.nodes["a"]).tunnel_v4.unwrap();
    let router = &bed.router;
    run(
        router,
        "ip link add rogue address 02:00:00:00:00:99 type vxlan id 1 local 192.0.2.254 dstport 8472 nolearning",
    );
    run(router, "ip addr add 10.244.2.77/32 dev rogue");
    run(router, "ip link set rogue up");
    run(router, "ip route add 10.244.1.0/24 via 10.244.1.0 dev rogue onlink");
    run(router, &format!("ip neigh add 10.244.1.0 lladdr {} dev rogue nud permanent", end.mac));
    run(router, &format!("bridge fdb add {} dev rogue dst {}", end.mac, end.address));
    let hear = |name: &str| {
        let socket = bed.machine(name).pod.run(|| std::net::UdpSocket::bind(("0.0.0.0", 5000)).unwrap()).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        socket
    };
    let heard = hear("a");
    let rogue = router.run(|| std::net::UdpSocket::bind("10.244.2.77:0").unwrap()).unwrap();
    rogue.send_to(b"x", "10.244.1.2:5000").unwrap();
    assert!(heard.recv(&mut [0; 8]).is_err(), "a stranger's packet came through");
    run(&bed.machine("a").netns, "nft add element inet bosun-net nodes4 { 192.0.2.254 }");
    rogue.send_to(b"x", "10.244.1.2:5000").unwrap();
    assert!(heard.recv(&mut [0; 8]).is_ok(), "only the guard kept it away");

    // A pod's own wrapped packets do not leave the node, where its address would become the node's.
    let listing =
        |name: &str| bed.machine(name).netns.run(|| Nft.list("list chain inet bosun-net forward").unwrap()).unwrap();
    let from_pod = bed.machine("b").pod.run(|| std::net::UdpSocket::bind(("0.0.0.0", 0)).unwrap()).unwrap();
    from_pod.send_to(b"x", "192.0.2.1:8472").unwrap();
    assert!(listing("b").contains("packets 1 "), "{}", listing("b"));
    drop(heard);
    bed.settle(&config);
}

#[test]
fn what_leaves_the_cluster_has_the_nodes_address_with_exceptions() {
    if !root("source NAT") {
        return;
    }
    let mut bed = Bed::new([0, 0, 1]);
    serve(&bed.router);
    for (to, by, device) in [("10.244.1.0/24", "192.0.2.1", "br0"), ("fd00:1::/64", "2001:db8:0::1", "br0")] {
        route(&bed.router, to, Some(by), device);
    }
    serve(&bed.machine("b").netns);
    let mut settled = |config: &Config| {
        bed.settle(config);
        let pod = &bed.machine("a").pod;
        ["192.0.2.254:80", "[2001:db8:0::254]:80", "192.0.2.2:80"].map(|to| ask(pod, to).unwrap_or_default())
    };
    let plain = config(Mode::HostGw);
    assert_eq!(settled(&plain), ["192.0.2.1", "2001:db8::1", "192.0.2.1"]);
    let mut but = Config { nat_excludes_hosts: true, ..plain.clone() };
    // The answer to the pod's own address comes back by the node's route to it.
    assert_eq!(settled(&but), ["192.0.2.1", "2001:db8::1", "10.244.1.2"]);
    but.non_masquerade = vec!["192.0.2.254/32".parse().unwrap()];
    assert_eq!(settled(&but), ["10.244.1.2", "2001:db8::1", "10.244.1.2"]);
    assert_eq!(settled(&Config { nat_outgoing: false, ..plain }), ["10.244.1.2", "fd00:1::2", "10.244.1.2"]);
}
