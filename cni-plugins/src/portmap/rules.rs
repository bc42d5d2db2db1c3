//! The table `bosun-portmap`, one for each family, and its elements.
//!
//! A packet to one of the node's own addresses is looked up with its address in `exact`, then without in `any`. What
//! would otherwise be answered past the node, from the container's own network or from the loopback, is in `masq`
//! and gets mark 0x2000, which the last chain turns into a masquerade. Every element's comment is its owner.

use std::net::IpAddr;

use kernel::netlink::IpNetwork;

/// Bit 13, the reference's default `markMasqBit`.
const MARK: &str = "0x2000";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub fn is(self, ip: IpAddr) -> bool {
        ip.is_ipv4() == (self == Self::V4)
    }

    fn name(self) -> &'static str {
        match self {
            Self::V4 => "ip",
            Self::V6 => "ip6",
        }
    }

    fn address(self) -> &'static str {
        match self {
            Self::V4 => "ipv4_addr",
            Self::V6 => "ipv6_addr",
        }
    }

    fn everywhere(self) -> &'static str {
        match self {
            Self::V4 => "0.0.0.0/0",
            Self::V6 => "::/0",
        }
    }
}

/// One port of the node that leads to one port of the container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapping {
    pub protocol: &'static str,
    /// `None` is every address of the node.
    pub host: Option<IpAddr>,
    pub host_port: u16,
    /// The container's address with its network's prefix.
    pub container: IpNetwork,
    pub container_port: u16,
    /// Whether its own network and the loopback are masqueraded, so that their connections work.
    pub masquerade: bool,
    pub masquerade_all: bool,
}

/// The transaction that adds the mappings, and the table where it is not there.
pub fn add(mappings: &[Mapping], owner: &str) -> String {
    let mut script = String::new();
    for family in [Family::V4, Family::V6] {
        let mut of_family = mappings.iter().filter(|m| family.is(m.container.ip())).peekable();
        if of_family.peek().is_some() {
            script.push_str(&base(family));
            of_family.for_each(|mapping| script.push_str(&elements(family, mapping, owner)));
        }
    }
    script
}

fn base(family: Family) -> String {
    let (f, addr) = (family.name(), family.address());
    let t = format!("{f} bosun-portmap");
    format!(
        "add table {t}
add map {t} exact {{ type {addr} . inet_proto . inet_service : {addr} . inet_service; }}
add map {t} any {{ type inet_proto . inet_service : {addr} . inet_service; }}
add set {t} masq {{ type {addr} . inet_proto . inet_service; flags interval; }}
add chain {t} ports
add chain {t} prerouting {{ type nat hook prerouting priority -100; }}
add chain {t} output {{ type nat hook output priority -100; }}
add chain {t} postrouting {{ type nat hook postrouting priority 100; }}
flush chain {t} ports
flush chain {t} prerouting
flush chain {t} output
flush chain {t} postrouting
add rule {t} ports {f} saddr . meta l4proto . th dport @masq meta mark set meta mark or {MARK}
add rule {t} ports dnat to {f} daddr . meta l4proto . th dport map @exact
add rule {t} ports dnat to meta l4proto . th dport map @any
add rule {t} prerouting fib daddr type local jump ports
add rule {t} output fib daddr type local jump ports
add rule {t} postrouting meta mark and {MARK} == {MARK} meta mark set meta mark xor {MARK} masquerade
"
    )
}

fn elements(family: Family, mapping: &Mapping, owner: &str) -> String {
    let f = family.name();
    let Mapping { protocol, host_port, container_port, container, .. } = mapping;
    let target = format!("{} . {container_port} }}", container.ip());
    let comment = format!("comment \"{owner}\"");
    let mut script = match mapping.host {
        Some(host) => {
            format!(
                "create element {f} bosun-portmap exact {{ {host} . {protocol} . {host_port} {comment} : {target}\n"
            )
        }
        None => format!("create element {f} bosun-portmap any {{ {protocol} . {host_port} {comment} : {target}\n"),
    };
    let near = format!("{}/{}", container.network(), container.prefix());
    let mut sources: Vec<&str> = Vec::new();
    if mapping.masquerade_all {
        sources.push(family.everywhere());
    } else if mapping.masquerade {
        sources.push(&near);
        if family == Family::V4 {
            sources.push("127.0.0.0/8");
        }
    }
    for source in sources {
        script.push_str(&format!(
            "add element {f} bosun-portmap masq {{ {source} . {protocol} . {host_port} {comment} }}\n"
        ));
    }
    script
}

/// The command whose answer [`read`] takes.
pub fn list(family: Family) -> String {
    format!("list table {} bosun-portmap", family.name())
}

/// An element of the table as nft lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Element {
    pub set: String,
    /// As nft writes it and takes it back.
    pub key: String,
    /// Of a map: where it leads.
    pub target: String,
    pub owner: String,
}

impl Element {
    pub fn is_port(&self) -> bool {
        self.set != "masq"
    }

    pub fn delete(&self, family: Family) -> String {
        format!("delete element {} bosun-portmap {} {{ {} }}\n", family.name(), self.set, self.key)
    }

    /// The container's address, of a port.
    pub fn container(&self) -> Option<IpAddr> {
        self.target.split(" . ").next()?.trim().parse().ok()
    }
}

/// Reads the elements of a listing.
pub fn read(listing: &str) -> Vec<Element> {
    let mut found = Vec::new();
    let mut set = String::new();
    let mut inside = false;
    for line in listing.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("map ").or_else(|| line.strip_prefix("set ")) {
            set = name.trim_end_matches(['{', ' ']).to_owned();
        }
        let text = match line.strip_prefix("elements = {") {
            Some(rest) => {
                inside = true;
                rest
            }
            None => line,
        };
        if inside {
            found.extend(text.trim_end_matches('}').split(',').filter_map(|item| element(&set, item)));
            inside = !text.ends_with('}');
        }
    }
    found
}

/// `KEY comment "OWNER" : TARGET`, or without the target.
fn element(set: &str, text: &str) -> Option<Element> {
    let (key, rest) = text.trim().split_once(" comment \"")?;
    let (owner, target) = rest.split_once('"')?;
    let target = target.trim().trim_start_matches(':').trim();
    Some(Element { set: set.into(), key: key.trim().into(), target: target.into(), owner: owner.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_is_read_back() {
        let listing = "table ip bosun-portmap {
	map any {
		type inet_proto . inet_service : ipv4_addr . inet_service
		elements = { 6 . 8080 comment \"a/eth0@n\" : 10.0.0.2 . 80,
			     17 . 53 comment \"b/eth0@n\" : 10.0.0.3 . 53 }
	}
	set masq {
		elements = { 10.0.0.0/24 . 6 . 8080 comment \"a/eth0@n\" }
	}
	chain ports {
		dnat to meta l4proto . th dport map @any
	}
}";
        let found = read(listing);
        assert_eq!(found.len(), 3);
        assert_eq!(found[1].container(), Some("10.0.0.3".parse().unwrap()));
        assert_eq!(found[2].delete(Family::V4), "delete element ip bosun-portmap masq { 10.0.0.0/24 . 6 . 8080 }\n");
        assert!(!found[2].is_port());
    }
}
