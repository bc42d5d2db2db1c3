use super::*;
use crate::routes::model::TunnelEnd;

/// Three nodes, two of them in one subnet, with addresses and pods of both families.
pub fn nodes() -> BTreeMap<String, Node> {
    let node = |number: usize, four: &str, six: &str| {
        let end = |address: &str| {
            let mac = Mac([2, 0, 0, 0, 0, number as u8]);
            Some(TunnelEnd { address: address.parse().unwrap(), mac, vni: Some(1) })
        };
        Node {
            addresses: vec![four.parse().unwrap(), six.parse().unwrap()],
            pod_cidrs: vec![
                format!("10.244.{number}.0/24").parse().unwrap(),
                format!("fd00:{number}::/64").parse().unwrap(),
            ],
            tunnel_v4: end(four),
            tunnel_v6: end(six),
            ..Node::default()
        }
    };
    BTreeMap::from([
        ("a".to_owned(), node(1, "192.0.2.1", "2001:db8::1")),
        ("b".to_owned(), node(2, "192.0.2.2", "2001:db8::2")),
        ("c".to_owned(), node(3, "198.51.100.3", "2001:db8:1::3")),
    ])
}

pub fn interfaces() -> Vec<Interface> {
    let addresses = ["192.0.2.1/24", "2001:db8::1/64"].iter().map(|net| net.parse().unwrap()).collect();
    vec![Interface { name: "eth0".into(), index: 2, mtu: 1500, up: true, addresses }]
}

/// The plan of node `a` with these nodes in this mode.
pub fn planned(nodes: &BTreeMap<String, Node>, mode: Mode) -> Plan {
    let config = Config { mode, ..Config::default() };
    with(nodes, &config, &interfaces()).unwrap()
}

fn with(nodes: &BTreeMap<String, Node>, config: &Config, interfaces: &[Interface]) -> Result<Plan, Problem> {
    plan(&Model { me: "a", nodes, config, interfaces, learned: &Learned::new() })
}

/// `PREFIX GATEWAY DEVICE`, with a star for what is onlink.
fn ways(plan: &Plan) -> Vec<String> {
    let hop = |hop: &Hop| format!(" {} {}{}", hop.gateway, hop.device, if hop.onlink { "*" } else { "" });
    let line = |((prefix, _), hops): (&(IpNetwork, u32), &Hops)| {
        format!("{prefix}{}", hops.iter().map(hop).collect::<String>())
    };
    plan.state.routes.iter().map(line).collect()
}

fn problems(plan: &Plan) -> Vec<String> {
    plan.problems.iter().map(ToString::to_string).collect()
}

#[test]
fn host_gw_routes_on_the_link_and_names_who_is_not_on_it() {
    let plan = planned(&nodes(), Mode::HostGw);
    assert_eq!(
        ways(&plan),
        ["10.244.1.0/24", "10.244.2.0/24 192.0.2.2 eth0", "fd00:1::/64", "fd00:2::/64 2001:db8::2 eth0"]
    );
    assert_eq!(
        problems(&plan),
        [
            "node c (198.51.100.3) is not on a link of this node: choose mode vxlan-cross-subnet, vxlan or bgp",
            "node c (2001:db8:1::3) is not on a link of this node: choose mode vxlan-cross-subnet, vxlan or bgp",
        ]
    );
    assert!(plan.state.tunnels.is_empty() && plan.annotations.is_empty());
    assert_eq!((plan.mtu, plan.state.forwards), (1500, (true, true)));
    assert_eq!(plan.rows.len(), 4);
}

#[test]
fn vxlan_wraps_to_everybody_as_flannel_does() {
    let plan = planned(&nodes(), Mode::Vxlan);
    assert_eq!(
        ways(&plan),
        [
            "10.244.1.0/24",
            "10.244.2.0/24 10.244.2.0 flannel.1*",
            "10.244.3.0/24 10.244.3.0 flannel.1*",
            "fd00:1::/64",
            "fd00:2::/64 fe80::ff:fe00:2 flannel-v6.1",
            "fd00:3::/64 fe80::ff:fe00:3 flannel-v6.1",
        ]
    );
    let four = &plan.state.tunnels["flannel.1"];
    assert_eq!((four.vni, four.port, four.mtu, four.learning), (1, 8472, 1450, false));
    assert_eq!(four.local, "192.0.2.1".parse().ok());
    assert_eq!(four.addresses, BTreeSet::from(["10.244.1.0/32".parse().unwrap()]));
    let six = &plan.state.tunnels["flannel-v6.1"];
    assert_eq!((six.mtu, six.local), (1430, "2001:db8::1".parse().ok()));
    let b = Mac([2, 0, 0, 0, 0, 2]);
    assert_eq!(plan.state.neighbours[&("flannel.1".into(), "10.244.2.0".parse().unwrap())], b);
    assert_eq!(plan.state.forwarding[&("flannel.1".into(), b)], "192.0.2.2".parse::<IpAddr>().unwrap());
    assert_eq!(plan.state.forwarding[&("flannel-v6.1".into(), b)], "2001:db8::2".parse::<IpAddr>().unwrap());
    assert_eq!(plan.mtu, 1430, "what fits through both");

    let told: Vec<(&str, &str)> = plan
        .annotations
        .iter()
        .map(|(key, value)| (key.rsplit('/').next().unwrap(), value.as_deref().unwrap()))
        .collect();
    let data = |mac: Mac| format!("{{\"VNI\":1,\"VtepMAC\":\"{mac}\"}}");
    assert_eq!(
        told,
        [
            ("backend-data", data(four.mac).as_str()),
            ("backend-type", "vxlan"),
            ("backend-v6-data", data(six.mac).as_str()),
            ("kube-subnet-manager", "true"),
            ("public-ip", "192.0.2.1"),
            ("public-ipv6", "2001:db8::1"),
        ]
    );
    assert_eq!(four.mac.0[0] & 3, 2, "locally administered, and of one machine");
    let again = planned(&nodes(), Mode::Vxlan);
    assert_eq!(again, plan, "a restart keeps the hardware address");
}

#[test]
fn annotations_that_are_right_are_not_written_and_go_with_the_tunnel() {
    let mut nodes = nodes();
    let first = planned(&nodes, Mode::Vxlan);
    let me = nodes.get_mut("a").unwrap();
    me.annotations = first.annotations.iter().map(|(key, value)| ((*key).to_owned(), value.clone().unwrap())).collect();
    assert_eq!(planned(&nodes, Mode::Vxlan).annotations, BTreeMap::new());
    let gone = planned(&nodes, Mode::HostGw).annotations;
    assert_eq!(gone.len(), 6);
    assert!(gone.values().all(Option::is_none));
}

#[test]
fn across_subnets_it_wraps_and_inside_one_it_does_not() {
    let plan = planned(&nodes(), Mode::VxlanCrossSubnet);
    assert_eq!(
        ways(&plan),
        [
            "10.244.1.0/24",
            "10.244.2.0/24 192.0.2.2 eth0",
            "10.244.3.0/24 10.244.3.0 flannel.1*",
            "fd00:1::/64",
            "fd00:2::/64 2001:db8::2 eth0",
            "fd00:3::/64 fe80::ff:fe00:3 flannel-v6.1",
        ]
    );
    assert_eq!(plan.state.forwarding.len(), 2);
    assert_eq!(plan.problems, BTreeSet::new());
}

#[test]
fn what_cannot_be_is_named() {
    let mut nodes = nodes();
    nodes.get_mut("b").unwrap().tunnel_v4 = None;
    nodes.get_mut("b").unwrap().tunnel_v6.as_mut().unwrap().vni = Some(7);
    nodes.get_mut("c").unwrap().pod_cidrs = vec!["192.0.0.0/16".parse().unwrap(), "fd00:2::/63".parse().unwrap()];
    let plan = planned(&nodes, Mode::Vxlan);
    assert_eq!(ways(&plan), ["10.244.1.0/24", "fd00:1::/64", "fd00:2::/63 fe80::ff:fe00:3 flannel-v6.1"]);
    assert_eq!(
        problems(&plan),
        [
            "node b has not said where its tunnel ends: does a net daemon run there?",
            "node b wraps with VNI 7, this one with 1: they cannot hear each other",
            "the pod range 192.0.0.0/16 of node c holds addresses of interface eth0: its pods are not reached",
        ]
    );
    nodes.insert("d".into(), nodes["c"].clone());
    let told = problems(&planned(&nodes, Mode::HostGw));
    assert!(
        told.contains(&"the pod range fd00:2::/63 of node c overlaps one of node b: its pods are not reached".into())
    );
    nodes.get_mut("b").unwrap().pod_cidrs = vec!["10.244.1.128/25".parse().unwrap()];
    let told = problems(&planned(&nodes, Mode::HostGw));
    assert!(
        told.contains(
            &"the pod range 10.244.1.128/25 of node b overlaps one of node a: its pods are not reached".into()
        )
    );
}

#[test]
fn without_ranges_of_its_own_a_node_waits_and_without_an_address_it_says_so() {
    let mut nodes = nodes();
    let me = nodes.get_mut("a").unwrap();
    let cidrs = std::mem::take(&mut me.pod_cidrs);
    let waits = with(&nodes, &Config::default(), &interfaces());
    assert_eq!(waits.unwrap_err(), Problem::NoPodCidrs("a".into()));
    let me = nodes.get_mut("a").unwrap();
    me.pod_cidrs = cidrs;
    me.addresses.clear();
    let waits = with(&nodes, &Config::default(), &interfaces()).unwrap_err();
    assert_eq!((waits.is_passing(), &waits), (true, &Problem::NoAddresses("a".into())));
    let me = nodes.get_mut("a").unwrap();
    me.addresses = vec!["203.0.113.9".parse().unwrap()];
    let plan = planned(&nodes, Mode::Vxlan);
    let told = problems(&plan);
    assert_eq!(told[0], "node a has no IPv6 address of type InternalIP, so that its pods of IPv6 are not reached");
    assert_eq!(told[1], "203.0.113.9 of node a is on no interface of this machine: give its agent a --node-ip that is");
    assert!(plan.state.tunnels.is_empty());
}

#[test]
fn mtu_is_found_or_said() {
    let mtu = |config: Config, link: u32| {
        let mut interfaces = interfaces();
        interfaces[0].mtu = link;
        let plan = with(&nodes(), &config, &interfaces).unwrap();
        (plan.mtu, plan.state.tunnels.get("flannel.1").map(|tunnel| tunnel.mtu))
    };
    let vxlan = Config { mode: Mode::Vxlan, ..Config::default() };
    assert_eq!(mtu(vxlan.clone(), 9000), (8930, Some(8950)));
    assert_eq!(mtu(Config { vxlan_mtu: Some(1400), ..vxlan.clone() }, 9000), (1400, Some(1400)));
    assert_eq!(mtu(Config { mtu: Some(1300), ..vxlan }, 9000), (1300, Some(8950)));
    assert_eq!(mtu(Config { mode: Mode::HostGw, ..Config::default() }, 9000), (9000, None));
}

#[test]
fn the_sets_hold_pods_nodes_and_what_is_inside() {
    let mut config = Config { mode: Mode::Vxlan, ..Config::default() };
    config.non_masquerade = vec!["10.0.0.0/8".parse().unwrap(), "172.16.0.0/12".parse().unwrap()];
    let sets = |config: &Config| {
        let rules = with(&nodes(), config, &interfaces()).unwrap().state.rules.unwrap();
        let text = |(name, set): (&String, &BTreeSet<IpNetwork>)| {
            (name.clone(), set.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "))
        };
        rules.sets.iter().map(text).collect::<BTreeMap<_, _>>()
    };
    let is = sets(&config);
    assert_eq!(is["pods4"], "10.244.1.0/24");
    assert_eq!(is["inside4"], "10.0.0.0/8 172.16.0.0/12", "the nodes' ranges lie in the first");
    assert_eq!(is["inside6"], "fd00:1::/64 fd00:2::/64 fd00:3::/64");
    assert_eq!(is["nodes4"], "192.0.2.1/32 192.0.2.2/32 198.51.100.3/32");
    config.nat_excludes_hosts = true;
    config.mode = Mode::HostGw;
    let is = sets(&config);
    assert_eq!(is["nodes4"], "");
    assert_eq!(is["inside4"], "10.0.0.0/8 172.16.0.0/12 192.0.2.1/32 192.0.2.2/32 198.51.100.3/32");
}

#[test]
fn learnt_paths_are_routes_by_as_many_hops_as_there_are() {
    let path = |prefix: &str, gateways: &[&str]| {
        let gateways = gateways.iter().map(|gateway| gateway.parse().unwrap()).collect();
        (prefix.parse().unwrap(), Arc::new(Path { gateways, metric: 0 }))
    };
    let learned = Learned::from([
        path("10.244.2.0/24", &["192.0.2.2"]),
        path("203.0.113.0/24", &["192.0.2.8", "2001:db8::9"]),
        path("10.244.1.0/24", &["192.0.2.2"]),
        path("10.9.0.0/16", &["10.77.0.1"]),
    ]);
    let (nodes, config) = (nodes(), Config { mode: Mode::Bgp, ..Config::default() });
    let interfaces = interfaces();
    let model = Model { me: "a", nodes: &nodes, config: &config, interfaces: &interfaces, learned: &learned };
    let plan = super::plan(&model).unwrap();
    assert_eq!(
        ways(&plan),
        [
            "10.244.1.0/24",
            "10.244.2.0/24 192.0.2.2 eth0",
            "203.0.113.0/24 192.0.2.8 eth0 2001:db8::9 eth0",
            "fd00:1::/64",
        ]
    );
    assert_eq!(problems(&plan), [""; 0]);
    let other = Config { mode: Mode::HostGw, ..config.clone() };
    let without = super::plan(&Model { config: &other, ..model }).unwrap();
    assert!(!ways(&without).iter().any(|way| way.starts_with("203.0.113.0/24")), "in another mode nobody speaks BGP");
    let rows: Vec<Row> =
        learned.iter().map(|(prefix, path)| learned_row(&model, &Gateways::new(), *prefix, path)).collect();
    let told: Vec<(&str, u32)> = rows.iter().map(|row| (row.source.as_str(), row.mtu)).collect();
    assert_eq!(told, [("10.77.0.1", 0), ("b", 1500), ("b", 1500), ("192.0.2.8", 1500)]);
    let problem = rows[0].way.as_ref().unwrap_err();
    assert_eq!(problem.to_string(), "no link leads to 10.77.0.1, the next hop to 10.9.0.0/16");
    let reachable = |by: &str| -> Vec<String> {
        let peers =
            serde_json::json!({"peers": [{"name": "x", "peerIP": "10.77.0.1", "asNumber": 1, "reachableBy": by}]});
        let config = Config { bgp: serde_json::from_value(peers).unwrap(), ..config.clone() };
        let plan = super::plan(&Model { config: &config, ..model }).unwrap();
        ways(&plan)
            .into_iter()
            .filter(|way| way.starts_with("10.9.") || way.starts_with("10.77."))
            .chain(problems(&plan))
            .collect()
    };
    assert_eq!(reachable("192.0.2.9"), ["10.9.0.0/16 192.0.2.9 eth0", "10.77.0.1/32 192.0.2.9 eth0"]);
    assert_eq!(reachable("203.0.113.9"), ["no link leads to 203.0.113.9, the next hop to 10.77.0.1/32"]);
}
