//! Configurations that both sets of plugins get.

use serde_json::{Value, json};

use super::side::{Side, sh};
use super::{ask, serve};

/// A chain of plugins, and around it what a runtime and an administrator may do.
pub struct Case {
    pub name: &'static str,
    pub chain: Vec<Value>,
    pub versions: &'static [&'static str],
    /// `CNI_ARGS`.
    pub args: &'static str,
    /// Lines of a shell, on the node, before ADD.
    pub before: &'static str,
    /// What packets meet, after ADD.
    pub probe: fn(&Side) -> Vec<String>,
    /// Lines of one side alone that contain such a text are right so, for the reason.
    pub unlike: &'static [(&'static str, &'static str)],
}

impl Case {
    /// The chain in one version, with reservations in `folder`.
    pub fn configured(&self, version: &str, folder: &str) -> Vec<Value> {
        let one = |plugin: &Value| {
            let text = plugin.to_string().replace("\"IPAM", &format!("\"{folder}"));
            let mut config: Value = serde_json::from_str(&text).unwrap();
            config["cniVersion"] = json!(version);
            config["name"] = json!("pods");
            config
        };
        self.chain.iter().map(one).collect()
    }
}

fn case(name: &'static str, chain: Value) -> Case {
    let Value::Array(chain) = chain else { panic!("{name} is no chain") };
    Case { name, chain, versions: &["1.0.0"], args: "", before: "", probe: |_| Vec::new(), unlike: &[] }
}

fn four() -> Value {
    json!({"type": "host-local", "dataDir": "IPAM", "ranges": [[{"subnet": "10.88.0.0/24"}]]})
}

fn six() -> Value {
    json!({"type": "host-local", "dataDir": "IPAM", "ranges": [[{"subnet": "fd00:88::/64"}]]})
}

/// Of both families, without routes.
fn dual() -> Value {
    json!({"type": "host-local", "dataDir": "IPAM",
        "ranges": [[{"subnet": "10.88.0.0/24"}], [{"subnet": "fd00:88::/64"}]]})
}

/// Of both families, with default routes.
fn both() -> Value {
    json!({"type": "host-local", "dataDir": "IPAM",
        "ranges": [[{"subnet": "10.88.0.0/24"}], [{"subnet": "fd00:88::/64"}]],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]})
}

fn bridge(extra: Value) -> Value {
    let mut config = json!({"type": "bridge", "bridge": "cni0"});
    config.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    config
}

fn macvlan(extra: Value) -> Value {
    let mut config = json!({"type": "macvlan", "master": "up0"});
    config.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    config
}

/// Whether the pod reaches the far host, and under which address.
fn outward(side: &Side) -> Vec<String> {
    ["192.0.2.9:80", "[2001:db8::9]:80"].map(|to| format!("pod to {to}: {:?}", ask(&side.pod, to).ok())).to_vec()
}

/// Whether the far host and the node reach the pod.
fn inward(side: &Side) -> Vec<String> {
    serve(&side.pod, 8000, "pod");
    let mut seen = Vec::new();
    for to in ["10.88.0.2:8000", "[fd00:88::2]:8000"] {
        seen.push(format!("far to {to}: {:?}", ask(&side.far, to).ok()));
        seen.push(format!("node to {to}: {:?}", ask(&side.bed.node, to).ok()));
    }
    seen
}

fn through_ports(side: &Side) -> Vec<String> {
    serve(&side.pod, 80, "pod");
    let mut seen = Vec::new();
    for (from, netns) in [("far", &side.far), ("node", &side.bed.node)] {
        seen.push(format!("{from} to [2001:db8::1]:8080: {:?}", ask(netns, "[2001:db8::1]:8080").ok()));
    }
    for port in [8080, 9090, 7070] {
        for (from, netns) in [("far", &side.far), ("node", &side.bed.node), ("pod", &side.pod)] {
            for to in ["192.0.2.1", "198.51.100.2", "127.0.0.1"] {
                if from != "node" && to == "127.0.0.1" {
                    continue;
                }
                seen.push(format!("{from} to {to}:{port}: {:?}", ask(netns, &format!("{to}:{port}")).ok()));
            }
        }
    }
    seen
}

fn spoof(side: &Side) -> Vec<String> {
    let before = ask(&side.pod, "192.0.2.9:80").is_ok();
    sh(
        &side.pod,
        "ip link set eth0 address 0a:58:00:00:00:ff; ip route add default via 10.88.0.1 2> /dev/null || true",
    );
    let after = ask(&side.pod, "192.0.2.9:80").is_ok();
    vec![format!("with its own address {before}, with another {after}")]
}

fn ports(mappings: Value) -> Value {
    json!({"portMappings": mappings})
}

pub fn all() -> Vec<Case> {
    [
        bridges(),
        vec![measured(), case("loopback", json!([{"type": "loopback"}]))],
        points(),
        parents(),
        devices(),
        addresses(),
        tunings(),
        queues(),
        sources(),
        firewalls(),
        mappings(),
        refusals(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn bridges() -> Vec<Case> {
    let mac = "0a:58:0a:58:00:07";
    vec![
        Case {
            versions: &["1.1.0", "1.0.0", "0.4.0", "0.3.1", "0.3.0"],
            probe: |side| [outward(side), inward(side)].concat(),
            ..case(
                "bridge",
                json!([bridge(json!({"isDefaultGateway": true, "hairpinMode": true, "mtu": 1400, "ipam": dual()}))]),
            )
        },
        case("bridge-four", json!([bridge(json!({"isGateway": true, "ipam": four()}))])),
        case("bridge-six", json!([bridge(json!({"isGateway": true, "ipam": six()}))])),
        case("bridge-alone", json!([bridge(json!({"promiscMode": true}))])),
        Case {
            probe: outward,
            ..case(
                "bridge-masquerade",
                json!([bridge(json!({"isDefaultGateway": true, "ipMasq": true, "ipam": dual()}))]),
            )
        },
        case(
            "bridge-masquerade-iptables",
            json!([bridge(
                json!({"isDefaultGateway": true, "ipMasq": true, "ipMasqBackend": "iptables", "ipam": four()})
            )]),
        ),
        case("bridge-vlan", json!([bridge(json!({"vlan": 100}))])),
        case("bridge-vlan-preserved", json!([bridge(json!({"vlan": 100, "preserveDefaultVlan": true}))])),
        case("bridge-vlan-gateway", json!([bridge(json!({"vlan": 100, "isGateway": true, "ipam": both()}))])),
        case(
            "bridge-trunk",
            json!([bridge(json!({"vlan": 5, "vlanTrunk": [{"minID": 100, "maxID": 103}, {"id": 200}]}))]),
        ),
        case("bridge-trunk-alone", json!([bridge(json!({"vlanTrunk": [{"id": 101}]}))])),
        case("bridge-isolated", json!([bridge(json!({"portIsolation": true, "ipam": four()}))])),
        case("bridge-down", json!([bridge(json!({"disableContainerInterface": true}))])),
        Case {
            probe: spoof,
            ..case(
                "bridge-spoof",
                json!([bridge(json!({"macspoofchk": true, "isDefaultGateway": true, "ipam": four()}))]),
            )
        },
        case("bridge-detect", json!([bridge(json!({"enabledad": true, "ipam": six()}))])),
        case(
            "bridge-mac-runtime",
            json!([bridge(
                json!({"capabilities": {"mac": true}, "runtimeConfig": {"mac": mac}, "args": {"cni": {"mac": "0a:58:0a:58:00:08"}}})
            )]),
        ),
        Case { args: "MAC=0a:58:0a:58:00:09", ..case("bridge-mac-args", json!([bridge(json!({}))])) },
        Case {
            before: "ip link add cni0 type bridge; ip address add 10.99.0.1/24 dev cni0",
            ..case("bridge-other-address", json!([bridge(json!({"isGateway": true, "ipam": four()}))]))
        },
        Case {
            before: "ip link add cni0 type bridge; ip address add 10.99.0.1/24 dev cni0",
            ..case(
                "bridge-forced-address",
                json!([bridge(json!({"isGateway": true, "forceAddress": true, "ipam": four()}))]),
            )
        },
        Case {
            unlike: &[("CHECK, theirs only: bridge fails", "it looks for every route in the main table")],
            ..case(
                "bridge-routes",
                json!([bridge(json!({"isGateway": true, "ipam": {"type": "static",
            "addresses": [{"address": "10.88.0.2/24", "gateway": "10.88.0.1"}],
            "routes": [{"dst": "10.1.0.0/16"}, {"dst": "10.2.0.0/16", "gw": "10.88.0.9", "priority": 77},
                {"dst": "10.3.0.0/16", "table": 99}, {"dst": "10.4.0.0/16", "gw": "10.88.0.1", "scope": 0}],
            "dns": {"nameservers": ["10.1.1.1"], "search": ["example.org"]}}}))]),
            )
        },
        case(
            "bridge-dns",
            json!([bridge(json!({"dns": {"nameservers": ["10.1.1.2"]}, "ipam": {"type": "static",
            "addresses": [{"address": "10.88.0.2/24"}], "dns": {"nameservers": ["10.1.1.1"]}}}))]),
        ),
    ]
}

/// A route's metrics, which came with CNI 1.1.0.
fn measured() -> Case {
    let ipam = json!({"type": "static", "addresses": [{"address": "10.88.0.2/24", "gateway": "10.88.0.1"}],
        "routes": [{"dst": "10.5.0.0/16", "mtu": 1300, "advmss": 1200}]});
    Case {
        unlike: &[("pod route -4 dst 10.5.0.0/16", "the reference reads mtu and advmss and does not set them")],
        ..case("bridge-route-metrics", json!([bridge(json!({"isGateway": true, "ipam": ipam}))]))
    }
}

fn points() -> Vec<Case> {
    let ptp = |extra: Value| {
        let mut config = json!({"type": "ptp"});
        config.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        json!([config])
    };
    vec![
        Case {
            versions: &["1.1.0", "0.3.0"],
            probe: |side| [outward(side), inward(side)].concat(),
            ..case("ptp", ptp(json!({"mtu": 1400, "ipam": both()})))
        },
        case("ptp-four", ptp(json!({"ipam": four()}))),
        case("ptp-six", ptp(json!({"ipam": six(), "dns": {"domain": "example.org"}}))),
        Case { probe: outward, ..case("ptp-masquerade", ptp(json!({"ipMasq": true, "ipam": both()}))) },
    ]
}

fn parents() -> Vec<Case> {
    let above = |kind: &str, extra: Value| {
        let mut config = json!({"type": kind, "master": "up0", "ipam": {"type": "static",
            "addresses": [{"address": "198.51.100.7/24", "gateway": "198.51.100.1"}], "routes": [{"dst": "0.0.0.0/0"}]}});
        config.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        json!([config])
    };
    let reach = |side: &Side| vec![format!("pod to the parent's link: {:?}", ask(&side.pod, "198.51.100.1:80").ok())];
    vec![
        Case { versions: &["1.1.0", "0.3.1"], probe: reach, ..case("macvlan", above("macvlan", json!({}))) },
        case(
            "macvlan-six",
            json!([macvlan(json!({"ipam": {"type": "static", "addresses": [{"address": "2001:db8:1::7/64"}]}}))]),
        ),
        case("macvlan-private", json!([macvlan(json!({"mode": "private", "mtu": 1400, "mac": "0a:58:00:00:00:aa"}))])),
        case("macvlan-vepa", json!([macvlan(json!({"mode": "vepa", "bcqueuelen": 2000}))])),
        case("macvlan-passthru", json!([macvlan(json!({"mode": "passthru"}))])),
        case("macvlan-default", json!([{"type": "macvlan"}])),
        case("macvlan-dns", above("macvlan", json!({"dns": {"nameservers": ["10.1.1.1"]}}))),
        Case {
            unlike: &[("result.dns", "the reference drops what the IPAM plugin knows of resolvers")],
            ..case(
                "macvlan-ipam-dns",
                json!([macvlan(json!({"ipam": {"type": "static",
                "addresses": [{"address": "198.51.100.7/24"}], "dns": {"nameservers": ["10.1.1.1"]}}}))]),
            )
        },
        case("macvlan-too-large", json!([macvlan(json!({"mtu": 9000}))])),
        case("macvlan-unknown-mode", json!([macvlan(json!({"mode": "sideways"}))])),
        Case {
            before: "nsenter --net=POD ip link add base0 type veth peer name base1; nsenter --net=POD ip link set base0 up",
            ..case("macvlan-inside", json!([macvlan(json!({"master": "base0", "linkInContainer": true}))]))
        },
        case("ipvlan", above("ipvlan", json!({}))),
        case("ipvlan-l3", above("ipvlan", json!({"mode": "l3", "mtu": 1400}))),
        case("vlan", above("vlan", json!({"vlanId": 7}))),
        case("vlan-unknown", above("vlan", json!({"vlanId": 4095}))),
        case("dummy", json!([{"type": "dummy", "ipam": both()}])),
    ]
}

fn devices() -> Vec<Case> {
    vec![
        case("host-device", json!([{"type": "host-device", "device": "dev0"}])),
        case("host-device-mac", json!([{"type": "host-device", "hwaddr": "0a:58:00:00:00:d0", "ipam": four()}])),
        case("host-device-six", json!([{"type": "host-device", "device": "dev0", "ipam": both()}])),
        case("host-device-none", json!([{"type": "host-device", "device": "nosuch"}])),
        case("host-device-unsaid", json!([{"type": "host-device"}])),
    ]
}

fn addresses() -> Vec<Case> {
    let local = |ipam: Value, extra: Value| {
        let mut config = json!({"type": "host-local", "ipam": ipam});
        config["ipam"]["type"] = json!("host-local");
        config["ipam"]["dataDir"] = json!("IPAM");
        config.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        json!([config])
    };
    let range = json!([[{"subnet": "10.88.0.0/24", "rangeStart": "10.88.0.20", "rangeEnd": "10.88.0.30", "gateway": "10.88.0.254"}]]);
    let fixed = |ipam: Value, extra: Value| {
        let mut config = json!({"type": "static", "ipam": ipam});
        config["ipam"]["type"] = json!("static");
        config.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        json!([config])
    };
    let two = json!({"addresses": [{"address": "10.88.0.2/24", "gateway": "10.88.0.1"}, {"address": "fd00:88::2/64"}],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0", "gw": "fd00:88::1"}], "dns": {"domain": "example.org"}});
    vec![
        Case { versions: &["1.1.0", "0.3.0"], ..case("host-local", local(json!({"ranges": range}), json!({}))) },
        case(
            "host-local-old",
            local(json!({"subnet": "10.88.0.0/24", "rangeStart": "10.88.0.9", "gateway": "10.88.0.7"}), json!({})),
        ),
        case("host-local-old-and-new", local(json!({"subnet": "10.90.0.0/24", "ranges": range}), json!({}))),
        case(
            "host-local-runtime",
            local(json!({"ranges": range}), json!({"runtimeConfig": {"ipRanges": [[{"subnet": "10.91.0.0/24"}]]}})),
        ),
        case("host-local-asked", local(json!({"ranges": range}), json!({"runtimeConfig": {"ips": ["10.88.0.25/24"]}}))),
        case(
            "host-local-asked-args",
            local(json!({"ranges": range}), json!({"args": {"cni": {"ips": ["10.88.0.26"]}}})),
        ),
        Case { args: "IP=10.88.0.27", ..case("host-local-asked-env", local(json!({"ranges": range}), json!({}))) },
        case(
            "host-local-asked-elsewhere",
            local(json!({"ranges": range}), json!({"runtimeConfig": {"ips": ["10.99.0.1"]}})),
        ),
        case("host-local-gateway", local(json!({"ranges": range}), json!({"runtimeConfig": {"ips": ["10.88.0.254"]}}))),
        case("host-local-resolver", local(json!({"ranges": range, "resolvConf": "/etc/resolv.conf"}), json!({}))),
        case(
            "host-local-overlap",
            local(json!({"ranges": [[{"subnet": "10.88.0.0/16"}], [{"subnet": "10.88.1.0/24"}]]}), json!({})),
        ),
        case("host-local-small", local(json!({"ranges": [[{"subnet": "10.88.0.0/31"}]]}), json!({}))),
        case("host-local-host-bits", local(json!({"ranges": [[{"subnet": "10.88.0.1/24"}]]}), json!({}))),
        case("host-local-none", local(json!({}), json!({}))),
        Case { versions: &["1.1.0", "0.3.0"], ..case("static", fixed(two.clone(), json!({}))) },
        Case {
            args: "IP=10.88.0.9/24,10.77.0.1/16;GATEWAY=10.77.0.9",
            ..case("static-env", fixed(two.clone(), json!({})))
        },
        case("static-runtime", fixed(two.clone(), json!({"runtimeConfig": {"ips": ["10.66.0.1/8"]}}))),
        case("static-args", fixed(two, json!({"args": {"cni": {"ips": ["10.66.0.2/8", "fd00::9/64"]}}}))),
        case("static-bare", fixed(json!({"addresses": [{"address": "10.88.0.2"}]}), json!({}))),
    ]
}

fn tunings() -> Vec<Case> {
    let tuned = |extra: Value| {
        let mut config = json!({"type": "tuning", "dataDir": "IPAM/tuning"});
        config.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        json!([bridge(json!({"ipam": four()})), config])
    };
    vec![
        case(
            "tuning-sysctl",
            tuned(json!({"sysctl": {"net.core.somaxconn": "77", "net.ipv4.conf.IFNAME.arp_filter": "1"}})),
        ),
        case(
            "tuning-link",
            tuned(json!({"mac": "0a:58:00:00:00:bb", "mtu": 1300, "promisc": true, "allmulti": true, "txQLen": 77})),
        ),
        case("tuning-off", tuned(json!({"allmulti": false, "txQLen": 0}))),
        case(
            "tuning-args",
            tuned(json!({"mtu": 1300, "sysctl": {"net.core.somaxconn": "77"},
            "args": {"cni": {"mtu": 1250, "mac": "0a:58:00:00:00:bc", "sysctl": {"net.core.somaxconn": "78"}}}})),
        ),
        case(
            "tuning-runtime",
            tuned(json!({"mac": "0a:58:00:00:00:bb", "runtimeConfig": {"mac": "0a:58:00:00:00:bd"}})),
        ),
        Case { args: "IgnoreUnknown=1;MAC=0a:58:00:00:00:be", ..case("tuning-env", tuned(json!({}))) },
        case("tuning-not-net", tuned(json!({"sysctl": {"kernel.panic": "0"}}))),
        case("tuning-bad-mac", tuned(json!({"mac": "nonsense"}))),
        case("tuning-first", json!([{"type": "tuning", "mtu": 1300}])),
    ]
}

fn queues() -> Vec<Case> {
    let limited = |extra: Value| {
        let mut config = json!({"type": "bandwidth"});
        config.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        json!([{"type": "ptp", "ipam": four()}, config])
    };
    vec![
        case(
            "bandwidth",
            limited(
                json!({"ingressRate": 8_000_000, "ingressBurst": 800_000, "egressRate": 16_000_000, "egressBurst": 1_600_000}),
            ),
        ),
        case("bandwidth-ingress", limited(json!({"ingressRate": 123_456, "ingressBurst": 1_234_560}))),
        case("bandwidth-wide", limited(json!({"egressRate": 80_000_000_000_u64, "egressBurst": 2_147_483_647}))),
        case(
            "bandwidth-runtime",
            limited(
                json!({"runtimeConfig": {"bandwidth": {"ingressRate": 8000, "ingressBurst": 8000, "egressRate": 0, "egressBurst": 0}}}),
            ),
        ),
        case(
            "bandwidth-both",
            limited(
                json!({"ingressRate": 16_000, "ingressBurst": 16_000, "runtimeConfig": {"bandwidth": {"egressRate": 8000, "egressBurst": 8000}}}),
            ),
        ),
        case("bandwidth-none", limited(json!({}))),
        case("bandwidth-half", limited(json!({"ingressRate": 8000}))),
        case(
            "bandwidth-macvlan",
            json!([macvlan(json!({})), {"type": "bandwidth", "ingressRate": 8000, "ingressBurst": 8000}]),
        ),
    ]
}

const MOVED: &[(&str, &str)] =
    &[("CHECK, theirs only: bridge fails", "the route that its bridge plugin looks for is where its sbr put it")];

fn sources() -> Vec<Case> {
    let sbr = |ipam: Value, extra: Value| {
        let mut config = json!({"type": "sbr"});
        config.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        json!([bridge(json!({"ipam": ipam})), config])
    };
    let two = json!({"type": "static", "addresses": [{"address": "10.88.0.2/24", "gateway": "10.88.0.1"},
        {"address": "10.89.0.2/24", "gateway": "10.89.0.1"}], "routes": [{"dst": "10.7.0.0/16", "gw": "10.89.0.9"}]});
    vec![
        Case { unlike: MOVED, ..case("sbr", sbr(four(), json!({}))) },
        Case { unlike: MOVED, ..case("sbr-two", sbr(two, json!({}))) },
        Case { unlike: MOVED, ..case("sbr-both", sbr(both(), json!({}))) },
        case("sbr-table", sbr(four(), json!({"table": 5000}))),
        case("sbr-first", json!([{"type": "sbr"}])),
    ]
}

fn firewalls() -> Vec<Case> {
    let guarded = |extra: Value| {
        let mut config = json!({"type": "firewall", "backend": "iptables"});
        config.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        json!([bridge(json!({"isDefaultGateway": true, "ipam": dual()})), config])
    };
    const DROP: &str = "iptables -P FORWARD DROP; ip6tables -P FORWARD DROP";
    let around = |side: &Side| [outward(side), inward(side)].concat();
    vec![
        Case {
            before: DROP,
            probe: around,
            ..case("no-firewall", json!([bridge(json!({"isDefaultGateway": true, "ipam": dual()}))]))
        },
        Case { before: DROP, probe: around, versions: &["1.1.0", "0.4.0"], ..case("firewall", guarded(json!({}))) },
        Case {
            before: "iptables -P FORWARD DROP; ip6tables -P FORWARD DROP; iptables -N MINE; iptables -A MINE -p tcp --dport 80 -j REJECT",
            probe: around,
            ..case("firewall-admin", guarded(json!({"iptablesAdminChainName": "MINE"})))
        },
        Case { probe: around, ..case("firewall-same-bridge", guarded(json!({"ingressPolicy": "same-bridge"}))) },
        Case { probe: around, ..case("firewall-isolated", guarded(json!({"ingressPolicy": "isolated"}))) },
        case("firewall-unknown", guarded(json!({"ingressPolicy": "sometimes"}))),
        case("firewall-first", json!([{"type": "firewall", "backend": "iptables"}])),
    ]
}

fn mappings() -> Vec<Case> {
    let mapped = |extra: Value| {
        let mut config = json!({"type": "portmap", "runtimeConfig": ports(json!([
            {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
            {"hostPort": 9090, "containerPort": 80, "protocol": "tcp", "hostIP": "192.0.2.1"}]))});
        config.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        json!([bridge(json!({"isDefaultGateway": true, "hairpinMode": true, "ipam": dual()})), config])
    };
    let probe = through_ports;
    vec![
        Case { probe, versions: &["1.1.0", "0.3.1"], ..case("portmap", mapped(json!({}))) },
        Case { probe, ..case("portmap-nftables", mapped(json!({"backend": "nftables"}))) },
        Case { probe, ..case("portmap-no-snat", mapped(json!({"snat": false}))) },
        Case { probe, ..case("portmap-masq-all", mapped(json!({"masqAll": true}))) },
        Case { probe, ..case("portmap-mark", mapped(json!({"markMasqBit": 5}))) },
        Case { probe, ..case("portmap-conditions", mapped(json!({"conditionsV4": ["!", "-d", "192.0.2.1"]}))) },
        Case {
            probe,
            ..case(
                "portmap-conditions-nftables",
                mapped(json!({"backend": "nftables", "conditionsV4": ["ip", "daddr", "192.0.2.1"]})),
            )
        },
        case(
            "portmap-conditions-mismatch",
            mapped(json!({"backend": "nftables", "conditionsV4": ["-d", "192.0.2.1"]})),
        ),
        case("portmap-mark-twice", mapped(json!({"markMasqBit": 5, "externalSetMarkChain": "X"}))),
        case("portmap-mark-large", mapped(json!({"markMasqBit": 32}))),
        case("portmap-backend", mapped(json!({"backend": "pf"}))),
        case("portmap-none", mapped(json!({"runtimeConfig": {}}))),
        case(
            "portmap-zero",
            mapped(json!({"runtimeConfig": ports(json!([{"hostPort": 0, "containerPort": 80, "protocol": "tcp"}]))})),
        ),
    ]
}

/// Configurations that have to be refused.
fn refusals() -> Vec<Case> {
    vec![
        case("bad-vlan", json!([bridge(json!({"vlan": 5000}))])),
        case("bad-trunk", json!([bridge(json!({"vlanTrunk": [{"minID": 7}]}))])),
        case("bad-trunk-order", json!([bridge(json!({"vlanTrunk": [{"minID": 7, "maxID": 6}]}))])),
        case("bad-promiscuous-hairpin", json!([bridge(json!({"promiscMode": true, "hairpinMode": true}))])),
        case("bad-down-with-ipam", json!([bridge(json!({"disableContainerInterface": true, "ipam": four()}))])),
        case("bad-masquerade", json!([bridge(json!({"ipMasq": true, "ipMasqBackend": "pf", "ipam": four()}))])),
        case("bad-ipam", json!([bridge(json!({"ipam": {"type": "nosuch"}}))])),
        case("bad-ptp-alone", json!([{"type": "ptp"}])),
        case("bad-vlan-alone", json!([{"type": "vlan", "vlanId": 7}])),
        case("bad-type-of-value", json!([bridge(json!({"mtu": "large"}))])),
        Case {
            before: "ip link add cni0 type veth peer name cni1",
            ..case("bad-bridge-is-none", json!([bridge(json!({}))]))
        },
    ]
}
