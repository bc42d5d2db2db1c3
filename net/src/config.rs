//! The ConfigMap kube-system/bosun-net: how pods of different nodes reach one another. Keys are Calico's where it has
//! one of the meaning (IPPool, FelixConfiguration), else flannel's or ip-masq-agent's.

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::str::FromStr;

use ipnetwork::IpNetwork;

/// Where the ConfigMap is.
pub const NAMESPACE: &str = "kube-system";
pub const NAME: &str = "bosun-net";

/// How packets find the node of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Plain routes to nodes on the same link.
    HostGw,
    /// Wrapped into UDP to every node, as flannel does.
    Vxlan,
    /// Wrapped to nodes of other subnets only.
    VxlanCrossSubnet,
    /// As the BGP speaker learns.
    Bgp,
}

impl Mode {
    pub fn name(self) -> &'static str {
        match self {
            Self::HostGw => "host-gw",
            Self::Vxlan => "vxlan",
            Self::VxlanCrossSubnet => "vxlan-cross-subnet",
            Self::Bgp => "bgp",
        }
    }

    /// Whether the node has a tunnel.
    pub fn tunnels(self) -> bool {
        matches!(self, Self::Vxlan | Self::VxlanCrossSubnet)
    }
}

impl FromStr for Mode {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        [Self::HostGw, Self::Vxlan, Self::VxlanCrossSubnet, Self::Bgp].into_iter().find(|m| m.name() == text).ok_or(())
    }
}

/// What the ConfigMap says; each field's key is its name in camel case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    pub mode: Mode,
    /// Whether what pods send out of the cluster gets the node's address.
    pub nat_outgoing: bool,
    /// Whether nodes count as inside the cluster there (`natOutgoingExclusions: IPPoolsAndHostIPs`).
    pub nat_excludes_hosts: bool,
    /// Destinations to which pods keep their addresses (`nonMasqueradeCIDRs`).
    pub non_masquerade: Vec<IpNetwork>,
    /// The cluster's pod ranges beside those of its nodes.
    pub cidr: Vec<IpNetwork>,
    pub vni: u32,
    pub port: u16,
    /// MTU of the tunnels; by itself that of the link of the node's address less what the tunnel takes.
    pub vxlan_mtu: Option<u32>,
    /// MTU of pods; by itself what fits every way.
    pub mtu: Option<u32>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            mode: Mode::VxlanCrossSubnet,
            nat_outgoing: true,
            nat_excludes_hosts: false,
            non_masquerade: Vec::new(),
            cidr: Vec::new(),
            vni: 1,
            port: 8472,
            vxlan_mtu: None,
            mtu: None,
        }
    }
}

/// Which key has which wrong value, and what it may have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("ConfigMap {NAMESPACE}/{NAME}: {key}: {value:?} {remedy}")]
pub struct Invalid {
    pub key: String,
    pub value: String,
    pub remedy: String,
}

const KEYS: [&str; 9] = [
    "mode",
    "natOutgoing",
    "natOutgoingExclusions",
    "nonMasqueradeCIDRs",
    "cidr",
    "vxlanVNI",
    "vxlanPort",
    "vxlanMTU",
    "mtu",
];

impl Config {
    /// Reads the data of the ConfigMap; what is not there has its default. `others` are keys that another part reads.
    ///
    /// # Errors
    /// The first key that is unknown or has a wrong value.
    pub fn read(data: &BTreeMap<String, String>, others: &[&str]) -> Result<Self, Invalid> {
        if let Some((key, value)) = data.iter().find(|(key, _)| !KEYS.contains(&&***key) && !others.contains(&&***key))
        {
            let remedy = format!("stands under a key that is not known: remove it, or use one of {}", KEYS.join(", "));
            return Err(Invalid { key: key.clone(), value: value.clone(), remedy });
        }
        let text = |key: &'static str| Key { key, value: data.get(key).map(|value| value.trim()) };
        let config = Self {
            mode: text("mode")
                .parse("must be host-gw, vxlan, vxlan-cross-subnet or bgp")?
                .unwrap_or(Mode::VxlanCrossSubnet),
            nat_outgoing: text("natOutgoing").parse("must be true or false")?.unwrap_or(true),
            nat_excludes_hosts: match text("natOutgoingExclusions").value {
                None | Some("IPPoolsOnly") => false,
                Some("IPPoolsAndHostIPs") => true,
                Some(_) => {
                    return Err(text("natOutgoingExclusions").invalid("must be IPPoolsOnly or IPPoolsAndHostIPs"));
                }
            },
            non_masquerade: text("nonMasqueradeCIDRs").networks()?,
            cidr: text("cidr").networks()?,
            vni: text("vxlanVNI").number(1..=(1 << 24) - 1)?.unwrap_or(1),
            port: text("vxlanPort").number(1..=65535)?.map_or(8472, |port| port as u16),
            vxlan_mtu: text("vxlanMTU").number(0..=65535)?.filter(|mtu| *mtu > 0),
            mtu: text("mtu").number(0..=65535)?.filter(|mtu| *mtu > 0),
        };
        for (key, mtu) in [("vxlanMTU", config.vxlan_mtu), ("mtu", config.mtu)] {
            // RFC 8200 section 5: what every link of IPv6 takes.
            if mtu.is_some_and(|mtu| mtu < 1280) {
                return Err(text(key).invalid("must be at least 1280, or 0 to be found by itself"));
            }
        }
        Ok(config)
    }
}

/// One key's value.
struct Key<'a> {
    key: &'static str,
    value: Option<&'a str>,
}

impl Key<'_> {
    fn invalid(&self, remedy: impl Display) -> Invalid {
        let value = self.value.unwrap_or_default();
        // Told in one line, however long the value is.
        Invalid { key: self.key.into(), value: value.chars().take(80).collect(), remedy: remedy.to_string() }
    }

    fn parse<T: FromStr>(&self, remedy: &str) -> Result<Option<T>, Invalid> {
        self.value.map(|value| value.parse().map_err(|_| self.invalid(remedy))).transpose()
    }

    fn number(&self, range: std::ops::RangeInclusive<u32>) -> Result<Option<u32>, Invalid> {
        let remedy = format!("must be a number from {} to {}", range.start(), range.end());
        match self.parse(&remedy)? {
            Some(number) if !range.contains(&number) => Err(self.invalid(remedy)),
            number => Ok(number),
        }
    }

    /// Prefixes, apart by commas or white space.
    fn networks(&self) -> Result<Vec<IpNetwork>, Invalid> {
        networks(self.value.unwrap_or_default())
            .map_err(|word| self.invalid(format_args!("must be prefixes such as 10.0.0.0/8, apart by commas: {word}")))
    }
}

/// Prefixes, apart by commas or white space.
///
/// # Errors
/// What is wrong with which word.
pub fn networks(text: &str) -> Result<Vec<IpNetwork>, impl fmt::Display + use<>> {
    let words = text.split(|c: char| c == ',' || c.is_whitespace()).filter(|word| !word.is_empty());
    let network = |word: &str| match word.parse::<IpNetwork>() {
        Ok(network) if network.ip() == network.network() && word.contains('/') => Ok(network),
        Ok(network) if word.contains('/') => {
            Err(format!("{word} has bits set beyond its length, {} has not", masked(network)))
        }
        _ => Err(format!("{word} is none")),
    };
    words.map(network).collect::<Result<Vec<_>, String>>()
}

fn masked(network: IpNetwork) -> String {
    format!("{}/{}", network.network(), network.prefix())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(data: &[(&str, &str)]) -> Result<Config, String> {
        let data = data.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Config::read(&data, &["asNumber"]).map_err(|invalid| invalid.to_string())
    }

    #[test]
    fn what_is_not_said_has_a_default() {
        assert_eq!(read(&[]), Ok(Config::default()));
        let config = read(&[
            ("mode", "vxlan\n"),
            ("natOutgoing", "false"),
            ("natOutgoingExclusions", "IPPoolsAndHostIPs"),
            ("nonMasqueradeCIDRs", "10.0.0.0/8, 192.168.0.0/16\nfd00::/8"),
            ("vxlanVNI", "4096"),
            ("vxlanPort", "4789"),
            ("mtu", "0"),
            ("vxlanMTU", "8950"),
            ("asNumber", "64512"),
        ])
        .unwrap();
        assert_eq!((config.mode, config.nat_outgoing, config.nat_excludes_hosts), (Mode::Vxlan, false, true));
        assert_eq!(config.non_masquerade.len(), 3);
        assert_eq!((config.vni, config.port, config.mtu, config.vxlan_mtu), (4096, 4789, None, Some(8950)));
    }

    #[test]
    fn a_wrong_value_is_one_line_that_names_key_and_remedy() {
        for (key, value, told) in [
            ("mode", "ipip", "mode: \"ipip\" must be host-gw, vxlan, vxlan-cross-subnet or bgp"),
            ("natOutgoing", "yes", "natOutgoing: \"yes\" must be true or false"),
            ("natOutgoingExclusions", "", "natOutgoingExclusions: \"\" must be IPPoolsOnly or IPPoolsAndHostIPs"),
            ("vxlanVNI", "16777216", "vxlanVNI: \"16777216\" must be a number from 1 to 16777215"),
            ("vxlanPort", "0", "vxlanPort: \"0\" must be a number from 1 to 65535"),
            ("mtu", "900", "mtu: \"900\" must be at least 1280, or 0 to be found by itself"),
            (
                "cidr",
                "10.0.0.1/8",
                "cidr: \"10.0.0.1/8\" must be prefixes such as 10.0.0.0/8, apart by commas: 10.0.0.1/8 has bits set beyond its length, 10.0.0.0/8 has not",
            ),
            (
                "cidr",
                "10.0.0.1",
                "cidr: \"10.0.0.1\" must be prefixes such as 10.0.0.0/8, apart by commas: 10.0.0.1 is none",
            ),
        ] {
            assert_eq!(read(&[(key, value)]), Err(format!("ConfigMap kube-system/bosun-net: {told}")));
        }
        let unknown = read(&[("natOutgoin", "true")]).unwrap_err();
        assert!(
            unknown.starts_with("ConfigMap kube-system/bosun-net: natOutgoin: \"true\" stands under a key"),
            "{unknown}"
        );
        let long = read(&[("mode", &"x".repeat(10_000))]).unwrap_err();
        assert!(long.len() < 300 && !long.contains('\n'));
    }
}
