//! What the kernel holds for a container, as lines that two sides can be compared by.
//!
//! What is random or counted is left out: indices, addresses that the kernel made up, names of veths. So is what the
//! two sets of plugins do differently on purpose, each time with the reason.

use std::process::Command;

use serde_json::Value;

use super::side::Side;

/// Parameters of a container's interface, and of the node, that plugins set.
const PARAMETERS: [&str; 9] = [
    "net/ipv4/ip_forward",
    "net/ipv6/conf/all/forwarding",
    "net/ipv6/conf/lo/disable_ipv6",
    "net/ipv4/conf/eth0/arp_notify",
    "net/ipv6/conf/eth0/ndisc_notify",
    "net/ipv6/conf/eth0/disable_ipv6",
    "net/ipv6/conf/eth0/keep_addr_on_down",
    "net/ipv4/conf/eth0/arp_filter",
    "net/core/somaxconn",
];

pub fn of(side: &Side) -> Vec<String> {
    let mut lines = Vec::new();
    for (name, netns) in [("node", &side.bed.node), ("pod", &side.pod)] {
        let inside = netns.run(|| {
            let mut lines = links();
            lines.extend(addresses());
            lines.extend(routes());
            lines.extend(rules());
            lines.extend(neighbours());
            lines.extend(networks());
            lines.extend(queueing());
            lines.extend(PARAMETERS.iter().filter_map(|name| {
                let value = std::fs::read_to_string(format!("/proc/sys/{name}")).ok()?;
                Some(format!("sysctl {name} {}", value.trim()))
            }));
            lines
        });
        lines.extend(inside.unwrap().into_iter().map(|line| format!("{name} {line}")));
    }
    lines.sort();
    lines
}

fn ask(words: &str) -> Vec<Value> {
    let mut words = words.split(' ');
    let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
    match serde_json::from_slice(&output.stdout) {
        Ok(Value::Array(list)) => list,
        _ => Vec::new(),
    }
}

fn links() -> Vec<String> {
    let mut lines = Vec::new();
    for link in ask("ip -j -d link show") {
        let name = text(&link["ifname"]);
        let is_bridge = link["linkinfo"]["info_kind"] == "bridge";
        let mut flags: Vec<String> = link["flags"].as_array().unwrap().iter().map(text).collect();
        // A bridge's carrier follows its ports, some time within a second.
        flags.retain(|flag| !(is_bridge && matches!(flag.as_str(), "NO-CARRIER" | "LOWER_UP")));
        flags.sort();
        lines.push(format!("link {name} flags {}", flags.join(",")));
        for key in ["mtu", "qdisc", "operstate", "txqlen", "address", "master"] {
            // txqlen: the library of the reference makes the node's end of a veth with a queue of nothing, which an
            // administrator's queueing discipline would take literally.
            // address: a bridge without ports has one, or none any more.
            if (matches!(key, "operstate" | "address") && is_bridge) || (key == "txqlen" && name == "veth*") {
                continue;
            }
            lines.push(format!("link {name} {key} {}", text(&link[key])));
        }
        let info = &link["linkinfo"];
        lines.push(format!("link {name} kind {}", text(&info["info_kind"])));
        for key in ["mode", "bcqueuelen", "vlan_filtering", "id"] {
            lines.push(format!("link {name} {key} {}", text(&info["info_data"][key])));
        }
        for key in ["hairpin", "isolated", "learning", "flood", "state"] {
            lines.push(format!("link {name} port {key} {}", text(&info["info_slave_data"][key])));
        }
        // ifalias: ours has its owner's name there, so that GC finds what is nobody's; host-device has the same name.
        if link["ifalias"].as_str().is_some_and(|alias| !alias.contains('@')) {
            lines.push(format!("link {name} alias {}", text(&link["ifalias"])));
        }
    }
    lines
}

fn addresses() -> Vec<String> {
    let mut lines = Vec::new();
    for link in ask("ip -j address show") {
        for address in link["addr_info"].as_array().into_iter().flatten() {
            let local = text(&address["local"]);
            // nodad: an address that a pod gets is unique by allocation; on a veth nobody else could have it.
            if !local.starts_with("fe80") {
                let (name, prefix) = (text(&link["ifname"]), &address["prefixlen"]);
                let (broadcast, scope) = (text(&address["broadcast"]), text(&address["scope"]));
                lines.push(format!("address {name} {local}/{prefix} broadcast {broadcast} scope {scope}"));
            }
        }
    }
    lines
}

fn routes() -> Vec<String> {
    let mut lines = Vec::new();
    for family in ["-4", "-6"] {
        for route in ask(&format!("ip -j {family} route show table all")) {
            let kind = text(&route["type"]);
            // Those follow from the addresses.
            if matches!(kind.as_str(), "local" | "broadcast" | "anycast" | "multicast")
                || text(&route["table"]) == "local"
            {
                continue;
            }
            let keys = ["dst", "gateway", "dev", "prefsrc", "metric", "table", "scope", "metrics"];
            let mut line = format!("route {family}");
            for key in keys.iter().filter(|key| !route[**key].is_null()) {
                line.push_str(&format!(" {key} {}", text(&route[*key])));
            }
            // protocol: ours is static, the word for what a tool made; the library of the reference leaves boot.
            lines.push(line);
        }
    }
    lines
}

fn rules() -> Vec<String> {
    let mut lines = Vec::new();
    for family in ["-4", "-6"] {
        for rule in ask(&format!("ip -j {family} rule show")) {
            let keys = ["priority", "src", "srclen", "table"].map(|key| text(&rule[key]));
            lines.push(format!("rule {family} {}", keys.join(" ")));
        }
    }
    lines
}

fn neighbours() -> Vec<String> {
    let listed = ask("ip -j neigh show nud permanent");
    listed.iter().map(|entry| format!("neighbour {} {}", text(&entry["dst"]), text(&entry["dev"]))).collect()
}

fn networks() -> Vec<String> {
    let mut lines = Vec::new();
    for port in ask("bridge -j vlan show") {
        for vlan in port["vlans"].as_array().into_iter().flatten() {
            lines.push(format!("vlan {} {} {}", text(&port["ifname"]), vlan["vlan"], vlan["flags"]));
        }
    }
    lines
}

fn queueing() -> Vec<String> {
    let mut lines = Vec::new();
    for qdisc in ask("tc -j qdisc show") {
        let (dev, kind) = (text(&qdisc["dev"]), text(&qdisc["kind"]));
        if kind == "noqueue" {
            continue;
        }
        lines.push(format!("qdisc {dev} {kind} {} {}", text(&qdisc["handle"]), qdisc["options"]));
        if kind == "ingress" {
            let filters = ask(&format!("tc -j filter show dev {} parent ffff:", qdisc["dev"].as_str().unwrap()));
            // actions: the reference adds a second one that no packet reaches.
            let first = filters.iter().find(|filter| !filter["options"]["actions"].is_null());
            let action = first.map(|filter| filter["options"]["actions"][0].clone()).unwrap_or_default();
            lines.push(format!(
                "filter {dev} {} {} to {}",
                text(&action["mirred_action"]),
                text(&action["direction"]),
                text(&action["to_dev"])
            ));
        }
    }
    lines
}

/// A value without its quotation marks, and with a common name where it is random.
pub fn text(value: &Value) -> String {
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    plain(&text)
}

/// Veths and blocks have names made of random bytes or of a hash, and addresses that the kernel made up, unless a
/// configuration names them.
pub fn plain(text: &str) -> String {
    let is_hex = |text: &str| text.chars().all(|c| c.is_ascii_hexdigit());
    for prefix in ["veth", "bwp"] {
        if text.strip_prefix(prefix).is_some_and(|rest| rest.len() >= 8 && is_hex(rest)) {
            return format!("{prefix}*");
        }
    }
    let is_mac = text.len() == 17 && text.split(':').count() == 6 && text.split(':').all(is_hex);
    let is_named = ["0a:58:00:00:00:", "0a:58:0a:58:00:"].iter().any(|prefix| text.starts_with(prefix));
    match is_mac && !is_named && text != "00:00:00:00:00:00" {
        true => "MAC".into(),
        false => text.to_owned(),
    }
}
