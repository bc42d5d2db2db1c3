//! The truth table: sets of policies as a user writes them, and which packets pass by the words of the documentation.

use serde_json::{Value, json};

use crate::bed::{PODS, Probe};

pub struct Case {
    pub name: &'static str,
    pub policies: Vec<Value>,
    pub passes: Box<dyn Fn(&Probe) -> bool>,
}

fn case(name: &'static str, policies: Vec<Value>, passes: impl Fn(&Probe) -> bool + 'static) -> Case {
    Case { name, policies, passes: Box::new(passes) }
}

fn policy(namespace: &str, name: &str, spec: Value) -> Value {
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": namespace, "name": name}, "spec": spec})
}

/// On x/a, for ingress.
fn into_a(rules: Value) -> Vec<Value> {
    vec![policy(
        "x",
        "p",
        json!({"podSelector": {"matchLabels": {"pod": "a"}}, "policyTypes": ["Ingress"], "ingress": rules}),
    )]
}

/// On x/a, for egress.
fn out_of_a(rules: Value) -> Vec<Value> {
    vec![policy(
        "x",
        "p",
        json!({"podSelector": {"matchLabels": {"pod": "a"}}, "policyTypes": ["Egress"], "egress": rules}),
    )]
}

fn deny(namespace: &str, types: &[&str]) -> Value {
    policy(namespace, "deny", json!({"podSelector": {}, "policyTypes": types}))
}

fn ns(name: &str) -> Value {
    json!({"namespaceSelector": {"matchLabels": {"ns": name}}})
}

fn pod(name: &str) -> Value {
    json!({"podSelector": {"matchLabels": {"pod": name}}})
}

fn both(namespace: &str, name: &str) -> Value {
    json!({"namespaceSelector": {"matchLabels": {"ns": namespace}}, "podSelector": {"matchLabels": {"pod": name}}})
}

fn expression(key: &str, operator: &str, values: Value) -> Value {
    match values.is_null() {
        true => json!({"matchExpressions": [{"key": key, "operator": operator}]}),
        false => json!({"matchExpressions": [{"key": key, "operator": operator, "values": values}]}),
    }
}

impl Probe {
    fn to(&self, place: &str) -> bool {
        PODS[self.to].starts_with(place)
    }

    fn from(&self, place: &str) -> bool {
        PODS[self.from].starts_with(place)
    }

    fn from_pod(&self, name: &str) -> bool {
        PODS[self.from].ends_with(name)
    }

    fn to_pod(&self, name: &str) -> bool {
        PODS[self.to].ends_with(name)
    }

    fn tcp(&self, port: u16) -> bool {
        !self.udp && self.port == port
    }
}

/// Ingress of x/a passes only where `allowed` says; everything else passes.
fn a_gets(allowed: impl Fn(&Probe) -> bool) -> impl Fn(&Probe) -> bool {
    move |p| !p.to("x/a") || allowed(p)
}

/// The same for its egress.
fn a_sends(allowed: impl Fn(&Probe) -> bool) -> impl Fn(&Probe) -> bool {
    move |p| !p.from("x/a") || allowed(p)
}

pub fn all() -> Vec<Case> {
    [isolation(), peers(), ports(), named_ports(), blocks(), egress(), together()].into_iter().flatten().collect()
}

fn isolation() -> Vec<Case> {
    let spec = |text: Value| vec![policy("x", "p", text)];
    vec![
        case("no policy", vec![], |_| true),
        case("deny ingress of a namespace", vec![deny("x", &["Ingress"])], |p| !p.to("x")),
        case("deny egress of a namespace", vec![deny("x", &["Egress"])], |p| !p.from("x")),
        case("deny both of a namespace", vec![deny("x", &["Ingress", "Egress"])], |p| !p.to("x") && !p.from("x")),
        case("no types and no rules deny ingress", spec(json!({"podSelector": {}})), |p| !p.to("x")),
        case("no selector is every pod", spec(json!({"policyTypes": ["Ingress"]})), |p| !p.to("x")),
        case("an empty rule allows everyone", spec(json!({"podSelector": {}, "ingress": [{}]})), |_| true),
        case(
            "egress rules without types isolate in both directions",
            spec(json!({"podSelector": {}, "egress": [{}]})),
            |p| !p.to("x"),
        ),
        case(
            "types for egress alone ignore ingress rules",
            spec(
                json!({"podSelector": {}, "policyTypes": ["Egress"], "ingress": [{"from": [pod("nobody")]}], "egress": []}),
            ),
            |p| !p.from("x"),
        ),
        case(
            "types for ingress alone ignore egress rules",
            spec(
                json!({"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [], "egress": [{"to": [pod("nobody")]}]}),
            ),
            |p| !p.to("x"),
        ),
        case(
            "a selector by expression isolates those it selects",
            spec(json!({"podSelector": expression("pod", "In", json!(["a", "c"])), "ingress": []})),
            |p| !p.to("x/a") && !p.to("x/c"),
        ),
        case(
            "a selector by absence isolates those it selects",
            spec(json!({"podSelector": expression("tier", "DoesNotExist", Value::Null), "ingress": []})),
            |p| !p.to("x/b") && !p.to("x/c"),
        ),
        case(
            "a policy that selects nobody isolates nobody",
            spec(json!({"podSelector": {"matchLabels": {"pod": "q"}}})),
            |_| true,
        ),
        case(
            "a rule for SCTP alone lets neither TCP nor UDP in",
            into_a(json!([{"ports": [{"protocol": "SCTP", "port": 80}]}])),
            |p| !p.to("x/a"),
        ),
    ]
}

fn peers() -> Vec<Case> {
    let from = |peers: Value| into_a(json!([{"from": peers}]));
    vec![
        case("pods of the own namespace", from(json!([pod("b")])), a_gets(|p| p.from("x/b"))),
        case("all pods of the own namespace", from(json!([{"podSelector": {}}])), a_gets(|p| p.from("x"))),
        case("a namespace", from(json!([ns("y")])), a_gets(|p| p.from("y"))),
        case("every namespace", from(json!([{"namespaceSelector": {}}])), |_| true),
        case("a namespace and a pod in one peer", from(json!([both("y", "b")])), a_gets(|p| p.from("y/b"))),
        case(
            "a namespace or a pod in two peers",
            from(json!([ns("y"), pod("b")])),
            a_gets(|p| p.from("y") || p.from("x/b")),
        ),
        case(
            "a pod of every namespace",
            from(json!([{"namespaceSelector": {}, "podSelector": {"matchLabels": {"pod": "c"}}}])),
            a_gets(|p| p.from_pod("c")),
        ),
        case(
            "namespaces by In",
            from(json!([{"namespaceSelector": expression("ns", "In", json!(["y", "z"]))}])),
            a_gets(|p| !p.from("x")),
        ),
        case(
            "namespaces by NotIn",
            from(json!([{"namespaceSelector": expression("ns", "NotIn", json!(["y"]))}])),
            a_gets(|p| !p.from("y")),
        ),
        case(
            "namespaces by Exists",
            from(json!([{"namespaceSelector": expression("team", "Exists", Value::Null)}])),
            a_gets(|p| !p.from("z")),
        ),
        case(
            "namespaces by DoesNotExist",
            from(json!([{"namespaceSelector": expression("team", "DoesNotExist", Value::Null)}])),
            a_gets(|p| p.from("z")),
        ),
        case(
            "pods by In",
            from(json!([{"podSelector": expression("pod", "In", json!(["b", "c"]))}])),
            a_gets(|p| p.from("x/b") || p.from("x/c")),
        ),
        case(
            "pods by NotIn of another namespace",
            from(
                json!([{"namespaceSelector": {"matchLabels": {"ns": "z"}}, "podSelector": expression("pod", "NotIn", json!(["a"]))}]),
            ),
            a_gets(|p| p.from("z/b") || p.from("z/c")),
        ),
        case("a label that nobody has", from(json!([pod("nobody")])), a_gets(|_| false)),
        case(
            "two labels of one selector",
            from(json!([{"namespaceSelector": {}, "podSelector": {"matchLabels": {"pod": "a", "tier": "front"}}}])),
            a_gets(|p| p.from_pod("a")),
        ),
    ]
}

fn ports() -> Vec<Case> {
    let ports = |list: Value| into_a(json!([{"ports": list}]));
    vec![
        case("a port of TCP", ports(json!([{"protocol": "TCP", "port": 80}])), a_gets(|p| p.tcp(80))),
        case("a port without a protocol is TCP's", ports(json!([{"port": 81}])), a_gets(|p| p.tcp(81))),
        case("a port of UDP", ports(json!([{"protocol": "UDP", "port": 80}])), a_gets(|p| p.udp && p.port == 80)),
        case("two ports", ports(json!([{"port": 80}, {"port": 81}])), a_gets(|p| !p.udp)),
        case(
            "a port of each protocol",
            ports(json!([{"port": 80}, {"protocol": "UDP", "port": 81}])),
            a_gets(|p| p.tcp(80) || (p.udp && p.port == 81)),
        ),
        case("a protocol without a port", ports(json!([{"protocol": "UDP"}])), a_gets(|p| p.udp)),
        case(
            "a protocol beside one of its ports",
            ports(json!([{"protocol": "UDP"}, {"protocol": "UDP", "port": 80}])),
            a_gets(|p| p.udp),
        ),
        case("a range", ports(json!([{"port": 80, "endPort": 81}])), a_gets(|p| !p.udp)),
        case("a range that begins later", ports(json!([{"port": 81, "endPort": 65535}])), a_gets(|p| p.tcp(81))),
        case(
            "ranges that overlap",
            ports(json!([{"port": 1, "endPort": 80}, {"port": 70, "endPort": 80}, {"port": 80}])),
            a_gets(|p| p.tcp(80)),
        ),
        case("a port that nobody asks for", ports(json!([{"port": 7}])), a_gets(|_| false)),
        case(
            "each rule has ports and peers of its own",
            into_a(
                json!([{"from": [ns("y")], "ports": [{"port": 80}]}, {"from": [ns("z")], "ports": [{"protocol": "UDP", "port": 81}]}]),
            ),
            a_gets(|p| (p.from("y") && p.tcp(80)) || (p.from("z") && p.udp && p.port == 81)),
        ),
    ]
}

fn named_ports() -> Vec<Case> {
    vec![
        case("a port by name", into_a(json!([{"ports": [{"port": "serve-80-tcp"}]}])), a_gets(|p| p.tcp(80))),
        case(
            "a port of UDP by name",
            into_a(json!([{"ports": [{"protocol": "UDP", "port": "serve-81-udp"}]}])),
            a_gets(|p| p.udp && p.port == 81),
        ),
        case(
            "a name counts for its protocol",
            into_a(json!([{"ports": [{"protocol": "TCP", "port": "serve-81-udp"}]}])),
            a_gets(|_| false),
        ),
        case("a name that the pod has not", into_a(json!([{"ports": [{"port": "other"}]}])), a_gets(|_| false)),
        case(
            "a name with a peer",
            into_a(json!([{"from": [ns("y")], "ports": [{"port": "serve-80-tcp"}]}])),
            a_gets(|p| p.from("y") && p.tcp(80)),
        ),
        case(
            "a name that is another number in each namespace",
            ["x", "y"]
                .map(|n| policy(n, "p", json!({"podSelector": {}, "ingress": [{"ports": [{"port": "odd"}]}]})))
                .into(),
            |p| match PODS[p.to].as_bytes()[0] {
                b'x' => p.tcp(80),
                b'y' => p.tcp(81),
                _ => true,
            },
        ),
        case(
            "egress to a name is where each peer says",
            out_of_a(json!([{"to": [{"namespaceSelector": {}}], "ports": [{"port": "odd"}]}])),
            a_sends(|p| if p.to("x") { p.tcp(80) } else { p.tcp(81) }),
        ),
        case(
            "egress to a name of one peer",
            out_of_a(json!([{"to": [ns("y")], "ports": [{"port": "odd"}]}])),
            a_sends(|p| p.to("y") && p.tcp(81)),
        ),
        case(
            "egress to a name of anyone",
            out_of_a(json!([{"ports": [{"port": "serve-80-tcp"}, {"protocol": "UDP", "port": 80}]}])),
            a_sends(|p| p.port == 80),
        ),
    ]
}

fn blocks() -> Vec<Case> {
    let from = |blocks: &[Value]| {
        let peers: Vec<Value> = blocks.iter().map(|block| json!({"ipBlock": block})).collect();
        into_a(json!([{"from": peers}]))
    };
    vec![
        case("the block of all of IPv4", from(&[json!({"cidr": "0.0.0.0/0"})]), a_gets(|p| !p.six)),
        case("the block of all of IPv6", from(&[json!({"cidr": "::/0"})]), a_gets(|p| p.six)),
        case("one address", from(&[json!({"cidr": "10.244.1.12/32"})]), a_gets(|p| !p.six && p.from("y/a"))),
        case(
            "an address of each family",
            from(&[json!({"cidr": "10.244.1.12/32"}), json!({"cidr": "fd00:244::12/128"})]),
            a_gets(|p| p.from("y/a")),
        ),
        case(
            "a block with an exception",
            from(&[json!({"cidr": "10.244.1.0/24", "except": ["10.244.1.12/31"]})]),
            a_gets(|p| !p.six && !p.from("y/a") && !p.from("y/b")),
        ),
        case(
            "exceptions that overlap",
            from(&[json!({"cidr": "10.0.0.0/8", "except": ["10.244.1.12/30", "10.244.1.12/31", "10.244.1.135/32"]})]),
            a_gets(|p| !p.six && !["y/a", "y/b", "z/a", "x/c"].iter().any(|name| p.from(name))),
        ),
        case(
            "an exception that another block holds",
            from(&[json!({"cidr": "10.244.1.0/24", "except": ["10.244.1.12/32"]}), json!({"cidr": "10.244.1.12/32"})]),
            a_gets(|p| !p.six),
        ),
        case(
            "an exception of everything",
            from(&[json!({"cidr": "10.244.1.0/24", "except": ["10.244.0.0/16"]})]),
            a_gets(|_| false),
        ),
        case(
            "a block beside pods",
            into_a(json!([{"from": [{"ipBlock": {"cidr": "fd00:244::12/128"}}, pod("b")], "ports": [{"port": 80}]}])),
            a_gets(|p| p.tcp(80) && (p.from("x/b") || (p.six && p.from("y/a")))),
        ),
        case(
            "egress to a block",
            out_of_a(json!([{"to": [{"ipBlock": {"cidr": "10.244.1.128/25", "except": ["10.244.1.136/32"]}}]}])),
            a_sends(|p| !p.six && ["x/c", "z/b", "z/c"].iter().any(|name| p.to(name))),
        ),
    ]
}

fn egress() -> Vec<Case> {
    vec![
        case("egress to a namespace", out_of_a(json!([{"to": [ns("y")]}])), a_sends(|p| p.to("y"))),
        case("egress to a pod of a namespace", out_of_a(json!([{"to": [both("z", "c")]}])), a_sends(|p| p.to("z/c"))),
        case(
            "egress to pods of the own namespace",
            out_of_a(json!([{"to": [{"podSelector": {}}]}])),
            a_sends(|p| p.to("x")),
        ),
        case("egress to a port", out_of_a(json!([{"ports": [{"port": 81}]}])), a_sends(|p| p.tcp(81))),
        case(
            "egress to a range of UDP",
            out_of_a(json!([{"ports": [{"protocol": "UDP", "port": 79, "endPort": 80}]}])),
            a_sends(|p| p.udp && p.port == 80),
        ),
        case(
            "egress of a namespace to itself",
            vec![policy(
                "x",
                "p",
                json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [{"to": [{"podSelector": {}}]}]}),
            )],
            |p| !p.from("x") || p.to("x"),
        ),
    ]
}

fn together() -> Vec<Case> {
    let ways = ["Ingress", "Egress"];
    let denied = || ["x", "y", "z"].map(|n| deny(n, &ways)).to_vec();
    let opening = |namespace: &str, name: &str, way: &str, peer: Value| {
        let (types, side) = if way == "ingress" { ("Ingress", "from") } else { ("Egress", "to") };
        let text = format!("{way}-{name}");
        policy(
            namespace,
            &text,
            json!({"podSelector": {"matchLabels": {"pod": name}}, "policyTypes": [types], way: [{side: [peer]}]}),
        )
    };
    vec![
        case("everything denied", denied(), |_| false),
        case(
            "both sides must open",
            [denied(), vec![opening("x", "a", "ingress", both("y", "b")), opening("y", "b", "egress", both("x", "a"))]].concat(),
            |p| p.to("x/a") && p.from("y/b"),
        ),
        case("one side alone does not open", [denied(), vec![opening("x", "a", "ingress", both("y", "b"))]].concat(), |_| false),
        case(
            "policies add up",
            [into_a(json!([{"from": [ns("y")]}])), vec![policy("x", "q", json!({"podSelector": {}, "ingress": [{"from": [ns("z")]}]}))]].concat(),
            |p| match (p.to("x/a"), p.to("x")) {
                (true, _) => p.from("y") || p.from("z"),
                (_, true) => p.from("z"),
                _ => true,
            },
        ),
        case(
            "policies add up by ports",
            [into_a(json!([{"ports": [{"port": 80}]}])), vec![policy("x", "q", json!({"podSelector": {}, "ingress": [{"from": [pod("b")]}]}))]].concat(),
            |p| match (p.to("x/a"), p.to("x")) {
                (true, _) => p.tcp(80) || p.from("x/b"),
                (_, true) => p.from("x/b"),
                _ => true,
            },
        ),
        case(
            "what allows everything wins over what denies",
            vec![deny("x", &["Ingress"]), policy("x", "all", json!({"podSelector": {}, "ingress": [{}]}))],
            |_| true,
        ),
        case(
            "egress of one and ingress of another meet",
            [out_of_a(json!([{"to": [ns("y")], "ports": [{"port": 80}]}])),
             vec![policy("y", "p", json!({"podSelector": {"matchLabels": {"pod": "b"}}, "ingress": [{"from": [ns("z")]}]}))]].concat(),
            |p| (!p.from("x/a") || (p.to("y") && p.tcp(80))) && (!p.to("y/b") || p.from("z")),
        ),
        case(
            "a namespace open to itself alone",
            ["x", "y", "z"].map(|n| policy(n, "own", json!({"podSelector": {}, "ingress": [{"from": [{"podSelector": {}}]}]}))).into(),
            |p| PODS[p.from].as_bytes()[0] == PODS[p.to].as_bytes()[0],
        ),
        case(
            "ingress and egress of one policy",
            vec![policy("x", "p", json!({"podSelector": {"matchLabels": {"pod": "a"}}, "policyTypes": ways,
                "ingress": [{"from": [pod("b")]}], "egress": [{"to": [ns("z")], "ports": [{"protocol": "UDP", "port": 81}]}]}))],
            |p| (!p.to("x/a") || p.from("x/b")) && (!p.from("x/a") || (p.to("z") && p.udp && p.port == 81)),
        ),
        case(
            "the same name in two namespaces is two policies",
            vec![
                policy("x", "p", json!({"podSelector": {"matchLabels": {"pod": "c"}}, "ingress": [{"from": [ns("y")]}]})),
                policy("z", "p", json!({"podSelector": {"matchLabels": {"pod": "c"}}, "ingress": [{"from": [ns("x")]}]})),
            ],
            |p| (!p.to("x/c") || p.from("y")) && (!p.to("z/c") || p.from("x")),
        ),
        case(
            "routed and bridged pods of one label",
            vec![policy("z", "p", json!({"podSelector": {}, "ingress": [{"from": [{"namespaceSelector": {}, "podSelector": {"matchLabels": {"pod": "b"}}}]}]}))],
            |p| !p.to("z") || p.from_pod("b"),
        ),
        case(
            "everyone may send to one pod alone",
            ["x", "y", "z"].map(|n| policy(n, "p", json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [{"to": [{"namespaceSelector": {}, "podSelector": {"matchLabels": {"pod": "c"}}}]}]}))).into(),
            |p| p.to_pod("c"),
        ),
    ]
}
