//! The plan against the decision, and what a step costs.

use std::collections::BTreeMap;
use std::net::IpAddr;

use api::labels::Selector;
use proptest::prelude::*;

use super::decide::{Packet, Side, Verdict, Way, decide};
use super::listing::{Listing, read_counters};
use super::model::{Allow, At, Attachment, Labels, Model, Name, NamedPort, Peer, Pod, Policy, Port, Protocol};
use super::plan::{Change, Planner};
use super::rules::{Chain, Family, Far, Ports, Rule};
use super::table::Element;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn labels(pairs: &[(&str, &str)]) -> Labels {
    Labels::new(pairs.iter().copied())
}

fn selector(text: &str) -> Selector {
    Selector::parse(text).unwrap()
}

fn pod(node: &str, pairs: &[(&str, &str)], ips: &[&str]) -> Pod {
    Pod { node: node.into(), labels: labels(pairs), ips: ips.iter().map(|text| ip(text)).collect(), ..Pod::default() }
}

fn tcp(port: u16) -> Port {
    Port { protocol: Protocol::Tcp, at: At::Range(port, port) }
}

/// Walks a packet through the planned chains of one node, as the kernel does.
fn passes(planner: &Planner, packet: &Packet) -> bool {
    let digit = Family::of(packet.source).digit();
    let element = |set: &str, element: Element| planner.table.sets[set].elements.get(&element).cloned();
    if packet.source == packet.destination && element(&format!("self{digit}"), Element::Itself(packet.source)).is_some()
    {
        return true;
    }
    let allowed = |way: Way, own: IpAddr| {
        let Some(held) = element(&format!("{}{digit}", way.name()), Element::Address(own)) else { return true };
        let chains = planner.chains_of(held.value().unwrap());
        chains.iter().any(|chain| chain.rules.iter().any(|rule| matches(planner, chain, rule, packet)))
    };
    allowed(Way::Egress, packet.source) && allowed(Way::Ingress, packet.destination)
}

fn matches(planner: &Planner, chain: &Chain, rule: &Rule, packet: &Packet) -> bool {
    let far = if chain.way == Way::Ingress { packet.source } else { packet.destination };
    let has = |set: &str, element: Element| planner.table.sets[set].elements.contains_key(&element);
    let whom = match &rule.far {
        Far::Anyone => true,
        Far::Group(group) => has(&group.set(chain.family), Element::Address(far)),
        Far::Block { net, except } => net.contains(far) && !except.iter().any(|range| range.contains(far)),
    };
    whom && match &rule.ports {
        Ports::Any => true,
        Ports::Protocol(protocol) => Some(*protocol) == packet.protocol,
        Ports::Ranges(protocol, ranges) => {
            Some(*protocol) == packet.protocol
                && ranges.iter().any(|(first, last)| (*first..=*last).contains(&packet.port))
        }
        Ports::Named(group) => packet.protocol.is_some_and(|protocol| {
            has(&group.set(chain.family), Element::Port(packet.destination, protocol, packet.port))
        }),
    }
}

/// Draws choices from a list of numbers, so that a failing case shrinks.
struct Dice<'a>(std::slice::Iter<'a, u8>);

impl Dice<'_> {
    fn roll(&mut self, sides: u8) -> u8 {
        self.0.next().copied().unwrap_or_default() % sides
    }

    fn pick<T: Copy>(&mut self, list: &[T]) -> T {
        list[usize::from(self.roll(list.len() as u8))]
    }

    fn labels(&mut self) -> Labels {
        let all = [("app", "web"), ("app", "db"), ("tier", "x"), ("tier", "y")];
        let count = self.roll(3);
        let mut chosen: BTreeMap<&str, &str> = BTreeMap::new();
        (0..count).for_each(|_| chosen.extend([self.pick(&all)]));
        Labels::new(chosen.into_iter())
    }

    fn selector(&mut self) -> Selector {
        selector(self.pick(&["", "app=web", "app=db", "tier", "!tier", "app in (web,db),tier!=x", "app notin (web)"]))
    }

    fn pod(&mut self, number: u8) -> Pod {
        let four = ip(&format!("10.0.0.{number}"));
        let ips = match self.roll(4) {
            0 => vec![],
            1 => vec![four],
            _ => vec![four, ip(&format!("fd00::{number}"))],
        };
        let port = NamedPort { name: "web".into(), protocol: Protocol::Tcp, port: 80 + u16::from(self.roll(2)) };
        let odd = self.roll(8);
        Pod {
            uid: "".into(),
            labels: self.labels(),
            ips: ips.into(),
            node: self.pick(&["n1", "n2"]).into(),
            ports: if self.roll(2) == 0 { [port].into() } else { [].into() },
            host_network: odd == 0,
            finished: odd == 1,
        }
    }

    fn peer(&mut self) -> Peer {
        match self.roll(4) {
            0 => {
                let except = ["10.0.0.2/31", "10.0.0.3/32", "10.0.0.0/30", "0.0.0.0/0"];
                let count = self.roll(3);
                let nets = ["10.0.0.0/29", "0.0.0.0/0", "10.0.0.4/32", "fd00::/125", "::/0"];
                Peer::Block {
                    net: self.pick(&nets).parse().unwrap(),
                    except: (0..count).map(|_| self.pick(&except).parse().unwrap()).collect(),
                }
            }
            1 => Peer::Pods { namespaces: Some(self.selector()), pods: self.selector() },
            _ => Peer::Pods { namespaces: None, pods: self.selector() },
        }
    }

    fn port(&mut self) -> Port {
        let protocol = self.pick(&[Protocol::Tcp, Protocol::Tcp, Protocol::Udp]);
        let at = match self.roll(5) {
            0 => At::Any,
            1 => At::Named("web".into()),
            2 => At::Range(80, 90),
            _ => At::Range(80, 80),
        };
        Port { protocol, at }
    }

    fn allow(&mut self) -> Allow {
        let (peers, ports) = (self.roll(3), self.roll(3));
        Allow {
            peers: (peers > 0).then(|| (0..peers).map(|_| self.peer()).collect()),
            ports: (ports > 0).then(|| (0..ports).map(|_| self.port()).collect()),
        }
    }

    fn rules(&mut self) -> Option<Vec<Allow>> {
        let count = self.roll(4);
        (count > 0).then(|| (1..count).map(|_| self.allow()).collect())
    }

    fn change(&mut self) -> Change {
        let namespace = self.pick(&["a", "b"]);
        match self.roll(8) {
            0 => Change::Namespace(namespace.into(), (self.roll(4) > 0).then(|| self.labels())),
            1..=3 => {
                let name = self.roll(3);
                let policy = Policy { pods: self.selector(), ingress: self.rules(), egress: self.rules() };
                Change::Policy(Name::new(namespace, &format!("p{name}")), (self.roll(5) > 0).then_some(policy))
            }
            4 => {
                let number = self.roll(3);
                let attachment = Attachment {
                    container: "c".into(),
                    link: format!("veth{}", self.roll(2)).into(),
                    namespace: namespace.into(),
                    pod: format!("pod{number}").into(),
                    uid: "".into(),
                    addresses: [ip(&format!("10.0.0.{}", self.roll(7)))].into(),
                };
                match self.roll(3) {
                    0 => Change::Detached(attachment.link),
                    _ => Change::Attached(attachment),
                }
            }
            _ => {
                let number = self.roll(3);
                let pod = self.pod(number + if namespace == "a" { 0 } else { 3 });
                Change::Pod(Name::new(namespace, &format!("pod{number}")), (self.roll(6) > 0).then_some(pod))
            }
        }
    }
}

fn packets() -> impl Iterator<Item = Packet> {
    let ends =
        |four: bool| (0..9u8).map(move |n| if four { ip(&format!("10.0.0.{n}")) } else { ip(&format!("fd00::{n}")) });
    let pairs = [true, false].into_iter().flat_map(move |four| {
        ends(four).flat_map(move |source| ends(four).map(move |destination| (source, destination)))
    });
    pairs.flat_map(|(source, destination)| {
        let ports = [(Protocol::Tcp, 80), (Protocol::Tcp, 81), (Protocol::Udp, 80), (Protocol::Sctp, 5)];
        let portless = Packet { source, destination, protocol: None, port: 0 };
        let with = ports.map(|(protocol, port)| Packet { protocol: Some(protocol), port, ..portless });
        with.into_iter().chain([portless])
    })
}

/// A kernel that holds names and elements.
fn follow(kernel: &mut Listing, planner: &Planner) {
    let script = planner.table.script(&planner.table.edits());
    for line in script.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let ["add" | "delete" | "flush", kind, family, _, name, ..] = words[..] else { panic!("{line}") };
        if family == "bridge" && name != "isolated" {
            continue;
        }
        let add = words[0] == "add";
        let one = |names: &mut std::collections::BTreeSet<String>| {
            let changed = if add { names.insert(name.to_owned()) } else { names.remove(name) };
            assert!(changed, "{line}");
        };
        match (words[0], kind) {
            ("flush", _) | (_, "rule") => assert!(kernel.chains.contains(name), "{line}"),
            (_, "chain") => one(&mut kernel.chains),
            (_, "counter") => one(&mut kernel.counters),
            ("add", "set") => assert!(kernel.sets.insert(name.to_owned(), Default::default()).is_none(), "{line}"),
            (_, "set") => assert!(kernel.sets.remove(name).is_some(), "{line}"),
            _ => {
                let list = line.split_once('{').unwrap().1.trim_end_matches('}');
                let set = kernel.sets.get_mut(name).expect(line);
                for element in list.split(", ").map(str::trim) {
                    let (key, value) = element.split_once(" : ").unwrap_or((element, ""));
                    if let Some(chain) = value.strip_prefix("goto ") {
                        assert!(kernel.chains.contains(chain), "{line}");
                    }
                    let before = if add { set.insert(key.into(), value.into()) } else { set.remove(key) };
                    assert_eq!(before.is_none(), add, "{line}");
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// After any history: what the chains of both nodes let pass is what the API's words say, the steps lead where a
    /// fresh process would, and what the kernel holds then needs no step more.
    #[test]
    fn the_plan_is_the_decision(numbers in proptest::collection::vec(any::<u8>(), 0..900)) {
        let mut dice = Dice(numbers.iter());
        let mut planners = ["n1", "n2"].map(Planner::new);
        let mut kernels = [Listing::bare(), Listing::bare()];
        let mut history = Vec::new();
        while !dice.0.as_slice().is_empty() {
            let change = dice.change();
            // Only the first node has links.
            let links = matches!(change, Change::Attached(_) | Change::Detached(_));
            history.push(change.clone());
            for (planner, kernel) in planners.iter_mut().zip(&mut kernels).take(if links { 1 } else { 2 }) {
                planner.note(change.clone());
                if dice.0.as_slice().len() % 3 == 0 {
                    planner.edits();
                    follow(kernel, planner);
                    planner.table.settled();
                }
            }
        }
        for (planner, kernel) in planners.iter_mut().zip(&mut kernels) {
            planner.edits();
            follow(kernel, planner);
            planner.table.settled();
            let left = planner.table.edits_from(kernel).unwrap();
            prop_assert!(left.is_empty(), "{}", planner.table.script(&left));
        }
        let mut fresh = Planner::new("n1");
        for change in history {
            fresh.note(change);
        }
        fresh.edits();
        let left = fresh.table.edits_from(&kernels[0]).unwrap();
        prop_assert!(left.is_empty(), "{}", fresh.table.script(&left));

        let model = planners[0].model();
        let attached = model.attached.iter().next().is_some();
        for packet in packets() {
            let wanted = decide(model, &packet).passes();
            let first = passes(&planners[0], &packet);
            // What is attached counts on its own node alone until the API shows it.
            if attached {
                let here = enforced(model, "n1", &packet);
                prop_assert_eq!(first, here, "{:?} {:#?}", packet, model);
            } else {
                prop_assert_eq!(first && passes(&planners[1], &packet), wanted, "{:?} {:#?}", packet, model);
            }
        }
    }
}

/// The decision of those sides whose pod is on that node.
fn enforced(model: &Model, node: &str, packet: &Packet) -> bool {
    let here = |ip: IpAddr| {
        model.pods.iter().any(|(name, pod)| *pod.node == *node && model.addresses(name, pod).contains(&ip))
    };
    let Verdict { egress, ingress } = decide(model, packet);
    let stops = |side: &Side, own: IpAddr| matches!(side, Side::Denied { .. }) && here(own);
    !stops(&egress, packet.source) && !stops(&ingress, packet.destination)
}

fn isolating(pods: &str, allow: Allow) -> Policy {
    Policy { pods: selector(pods), ingress: Some(vec![allow]), egress: None }
}

fn from_pods(pods: &str) -> Allow {
    let peers = Some(vec![Peer::Pods { namespaces: None, pods: selector(pods) }]);
    Allow { peers, ports: Some(vec![tcp(80)]) }
}

/// What the present step is in nft's words; the kernel then is there.
fn step(planner: &mut Planner) -> Vec<String> {
    let edits = planner.edits();
    let script = planner.table.script(&edits);
    planner.table.settled();
    script.lines().map(str::to_owned).collect()
}

/// Ten thousand pods in ten namespaces of which this node has ten, and in each namespace ten policies.
fn large() -> Planner {
    let mut planner = Planner::new("n1");
    for namespace in 0..10 {
        let of = format!("ns{namespace}");
        planner.note(Change::Namespace(of.as_str().into(), Some(labels(&[("team", "x")]))));
        for number in 0..1000 {
            let app = format!("app{}", number % 10);
            let node = if number == 0 { "n1" } else { "n2" };
            let address = format!("10.{namespace}.{}.{}", number / 250, number % 250 + 1);
            let own = pod(node, &[("app", &app), ("all", "yes")], &[&address]);
            planner.note(Change::Pod(Name::new(&of, &format!("pod{number}")), Some(own)));
        }
        for number in 0..10 {
            let policy = isolating("all=yes", from_pods(&format!("app=app{number}")));
            planner.note(Change::Policy(Name::new(&of, &format!("p{number}")), Some(policy)));
        }
    }
    planner
}

#[test]
fn one_label_among_ten_thousand_pods_changes_the_sets_that_it_concerns() {
    let mut planner = large();
    let whole = step(&mut planner);
    // A set in each family for each of the policies that select a pod of this node, and their members alone.
    assert_eq!(whole.iter().filter(|line| line.starts_with("add set")).count(), 200);
    let name = Name::new("ns3", "pod501");
    let moved = Some(pod("n2", &[("app", "app7"), ("all", "yes")], &["10.3.2.2"]));
    assert!(planner.note(Change::Pod(name.clone(), moved.clone())));
    let set = |app: &str| {
        let group =
            super::rules::Group { scope: super::rules::Scope::One("ns3".into()), pods: selector(app), port: None };
        group.set(Family::V4)
    };
    assert_eq!(
        step(&mut planner),
        [
            format!("delete element inet bosun-policy {} {{ 10.3.2.2 }}", set("app=app1")),
            format!("add element inet bosun-policy {} {{ 10.3.2.2 }}", set("app=app7")),
        ]
    );
    assert!(!planner.note(Change::Pod(name.clone(), moved.clone())));
    let other = Some(pod("n2", &[("app", "app7"), ("all", "yes"), ("new", "1")], &["10.3.2.2"]));
    assert!(planner.note(Change::Pod(name.clone(), other)));
    assert_eq!(step(&mut planner), [""; 0], "a label that no policy speaks of");

    let finished = moved.map(|pod| Pod { finished: true, ..pod });
    planner.note(Change::Pod(name, finished));
    assert_eq!(
        step(&mut planner),
        [format!("delete element inet bosun-policy {} {{ 10.3.2.2 }}", set("app=app7"))],
        "a finished pod leaves"
    );
}

#[test]
fn an_isolated_pod_has_a_chain_that_names_who_isolates_it() {
    let mut planner = Planner::new("n1");
    planner.note(Change::Namespace("a".into(), Some(Labels::default())));
    planner.note(Change::Pod(Name::new("a", "web"), Some(pod("n1", &[("app", "web")], &["10.0.0.1"]))));
    assert_eq!(step(&mut planner), [""; 0], "nobody isolates it");
    let allow = Allow { peers: None, ports: Some(vec![tcp(80), tcp(81), tcp(443)]) };
    planner.note(Change::Policy(Name::new("a", "deny"), Some(Policy { ingress: Some(vec![]), ..Policy::default() })));
    planner.note(Change::Policy(Name::new("a", "web"), Some(isolating("app=web", allow))));
    let script = step(&mut planner).join("\n");
    for part in [
        "tcp dport { 80-81, 443 } accept",
        "comment \"ingress of a/web\"",
        "drop comment \"ingress not allowed by deny, web\"",
        "self4 { 10.0.0.1 . 10.0.0.1 }",
        "ingress4 { 10.0.0.1 : goto ingress4-",
    ] {
        assert!(script.contains(part), "{part}: {script}");
    }
    assert!(!script.contains("egress4") && !script.contains("ingress6"), "{script}");
    planner.note(Change::Policy(Name::new("a", "web"), None));
    planner.note(Change::Policy(Name::new("a", "deny"), None));
    step(&mut planner);
    let left = planner.table.edits_from(&Listing::bare()).unwrap();
    assert!(left.is_empty(), "{}", planner.table.script(&left));
}

#[test]
fn what_is_attached_counts_before_the_api_shows_it() {
    let mut planner = Planner::new("n1");
    planner.note(Change::Namespace("a".into(), Some(Labels::default())));
    planner.note(Change::Policy(Name::new("a", "deny"), Some(Policy { ingress: Some(vec![]), ..Policy::default() })));
    planner.note(Change::Pod(Name::new("a", "old"), Some(pod("n1", &[], &["10.0.0.1"]))));
    planner.note(Change::Pod(Name::new("a", "new"), Some(pod("n1", &[("app", "new")], &[]))));
    step(&mut planner);
    planner.note(Change::Attached(Attachment {
        container: "c".into(),
        link: "veth1".into(),
        namespace: "a".into(),
        pod: "new".into(),
        uid: "".into(),
        addresses: [ip("10.0.0.1")].into(),
    }));
    let script = step(&mut planner).join("\n");
    for part in [
        "bridge bosun-policy guarded { \"veth1\" }",
        "inet bosun-policy own4 { \"veth1\" . 10.0.0.1 }",
        "bridge bosun-policy isolated { \"veth1\" }",
        "delete element inet bosun-policy ingress4 { 10.0.0.1 }",
    ] {
        assert!(script.contains(part), "{part}: {script}");
    }
    let model = planner.model();
    let old = Name::new("a", "old");
    assert!(model.addresses(&old, &model.pods[&old]).is_empty(), "an address has one pod");
}

#[test]
fn what_nft_lists_is_read() {
    let text = "table inet bosun-policy {
	counter dropped-ingress-1 {
		comment \"ingress of a/web\"
		packets 3 bytes 9
	}
	set pods4-1 {
		type ipv4_addr
		comment \"a: app in (x,y)\"
		elements = { 10.0.0.1, 10.0.0.2,
			     10.0.0.3 }
	}
	set ports4-1 {
		type ipv4_addr . inet_proto . inet_service
		elements = { 10.0.0.1 . 6 . 80 }
	}
	map ingress4 {
		type ipv4_addr : verdict
		elements = { 10.0.0.1 : goto ingress4-1 }
	}
	chain ingress4-1 {
		comment \"a/web\"
		counter name \"dropped-ingress-1\" drop comment \"ingress not allowed by deny\"
	}
}
";
    let listing = Listing::read(text);
    assert_eq!(listing.sets["pods4-1"].len(), 3);
    assert_eq!(listing.sets["ports4-1"].keys().collect::<Vec<_>>(), ["10.0.0.1 . 6 . 80"]);
    assert_eq!(listing.sets["ingress4"]["10.0.0.1"], "goto ingress4-1");
    assert_eq!((listing.chains.len(), listing.counters.len()), (1, 1));
    let counters = read_counters(text);
    assert_eq!(counters["ingress of a/web"], 3);
}

#[test]
fn a_dropped_packet_is_remembered_as_long_as_nft_says_and_numbers_go() {
    let met = |expires: &str| {
        let element = format!("10.0.0.1 . 10.0.0.2 . 6 . 80 timeout 2m expires {expires}");
        super::listing::read_met(&format!("elements = {{ {element} }}"))[0].remembered
    };
    assert_eq!(met("1m59s996ms"), 119_996);
    assert_eq!(met("99999999999999999999h1s1ms"), u64::MAX);
}

#[test]
fn counters_of_one_name_are_summed_as_far_as_numbers_go() {
    let text = "counter a {\npackets 2 bytes 9\n}\ncounter a {\npackets 3 bytes 9\n}\n";
    assert_eq!(read_counters(text)["a"], 5);
    let most = format!("{text}counter a {{\npackets {} bytes 9\n}}\n", u64::MAX);
    assert_eq!(read_counters(&most)["a"], u64::MAX);
}

/// The documentation's words on what is absent.
#[test]
fn absent_fields_mean_what_the_api_says() {
    let read = |spec: serde_json::Value| {
        let object = serde_json::json!({"metadata": {"name": "p", "namespace": "a"}, "spec": spec});
        Policy::read(&serde_json::from_value(object).unwrap())
    };
    let (policy, errors) = read(serde_json::json!({"podSelector": {}}));
    assert_eq!((policy.ingress, policy.egress, errors.len()), (Some(vec![]), None, 0));
    let (policy, _) = read(serde_json::json!({"podSelector": {}, "egress": [{}]}));
    assert_eq!((policy.ingress, policy.egress), (Some(vec![]), Some(vec![Allow::default()])));
    let (policy, _) = read(serde_json::json!({"podSelector": {}, "policyTypes": ["Egress"], "ingress": [{}]}));
    assert_eq!((policy.ingress, policy.egress), (None, Some(vec![])));
    let (policy, errors) = read(serde_json::json!({"podSelector": {}, "ingress": [
        {"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["x"]}}, {"podSelector": {"matchExpressions":
            [{"key": "a", "operator": "Near"}]}}, {}], "ports": [{"port": 70000}]}]}));
    let said: Vec<String> = errors.iter().map(|error| error.field.clone()).collect();
    assert_eq!(
        said,
        [
            "spec.ingress[0].from[0].ipBlock.except[0]",
            "spec.ingress[0].from[1].podSelector",
            "spec.ingress[0].from[2]",
            "spec.ingress[0].ports[0]"
        ]
    );
    assert_eq!(policy.ingress, Some(vec![Allow { peers: Some(vec![]), ports: Some(vec![]) }]), "it allows nothing");
}
