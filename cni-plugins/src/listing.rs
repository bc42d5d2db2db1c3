//! What nft lists of a plugin's table: elements whose comment is their owner.

use std::net::IpAddr;

/// The address family of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub fn of(ip: IpAddr) -> Self {
        if ip.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    pub fn is(self, ip: IpAddr) -> bool {
        ip.is_ipv4() == (self == Self::V4)
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::V4 => "ip",
            Self::V6 => "ip6",
        }
    }

    /// The type of an address in sets.
    pub fn address(self) -> &'static str {
        match self {
            Self::V4 => "ipv4_addr",
            Self::V6 => "ipv6_addr",
        }
    }

    pub fn everywhere(self) -> &'static str {
        match self {
            Self::V4 => "0.0.0.0/0",
            Self::V6 => "::/0",
        }
    }
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

    pub fn delete(&self, family: Family, table: &str) -> String {
        format!("delete element {} {table} {} {{ {} }}\n", family.name(), self.set, self.key)
    }

    /// Whether it is a port of UDP (17).
    pub fn is_udp(&self) -> bool {
        self.is_port() && matches!(self.key.rsplit(" . ").nth(1), Some("17" | "udp"))
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
        assert_eq!(
            found[2].delete(Family::V4, "bosun-portmap"),
            "delete element ip bosun-portmap masq { 10.0.0.0/24 . 6 . 8080 }\n"
        );
        assert_eq!(found.iter().map(Element::is_udp).collect::<Vec<_>>(), [false, true, false]);
        assert!(!found[2].is_port());
    }
}
