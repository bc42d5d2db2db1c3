//! The ConfigMap kube-system/bosun-net: how pods of different nodes reach one another. Keys are Calico's where it has
//! one of the meaning (IPPool, FelixConfiguration), else flannel's or ip-masq-agent's.

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::str::FromStr;

use ipnetwork::IpNetwork;
use serde_json::{Map, Value};

use crate::routes::Ranges;
use crate::speaker::mesh::Bgp;

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
    /// Whom to speak BGP with; its keys stand beside the others, those with structure as YAML. Passwords are keys of a
    /// Secret in kube-system; bosun's own API server lets the daemon read the one named `bosun-net`.
    pub bgp: Bgp,
    /// Which addresses of Services to tell BGP peers of.
    pub ranges: Ranges,
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
            bgp: Bgp::default(),
            ranges: Ranges::default(),
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

/// [`Bgp`]'s fields.
const BGP: [&str; 10] = [
    "asNumber",
    "communities",
    "filters",
    "listenPort",
    "nodeMeshBfd",
    "nodeMeshMaxRestartTime",
    "nodeMeshPassword",
    "nodeToNodeMeshEnabled",
    "peers",
    "prefixAdvertisements",
];

const KEYS: [&str; 12] = [
    "mode",
    "natOutgoing",
    "natOutgoingExclusions",
    "nonMasqueradeCIDRs",
    "cidr",
    "vxlanVNI",
    "vxlanPort",
    "vxlanMTU",
    "mtu",
    "serviceClusterIPs",
    "serviceExternalIPs",
    "serviceLoadBalancerIPs",
];

impl Config {
    /// Reads the data of the ConfigMap; what is not there has its default.
    ///
    /// # Errors
    /// The first key that is unknown or has a wrong value.
    pub fn read(data: &BTreeMap<String, String>) -> Result<Self, Invalid> {
        let known = |key: &str| KEYS.iter().chain(&BGP).any(|known| *known == key);
        if let Some((key, value)) = data.iter().find(|(key, _)| !known(key)) {
            let all: Vec<&str> = KEYS.iter().chain(&BGP).copied().collect();
            let remedy = format!("stands under a key that is not known: remove it, or use one of {}", all.join(", "));
            return Err(Invalid { key: key.clone(), value: shown(value), remedy });
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
            bgp: bgp(data)?,
            ranges: Ranges {
                cluster: text("serviceClusterIPs").networks()?,
                external: text("serviceExternalIPs").networks()?,
                load_balancer: text("serviceLoadBalancerIPs").networks()?,
            },
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

/// What of the data is the speaker's.
fn bgp(data: &BTreeMap<String, String>) -> Result<Bgp, Invalid> {
    let mut all = Map::new();
    for key in BGP {
        let Some(text) = data.get(key) else { continue };
        let invalid = |why: String| {
            let why = why.lines().next().unwrap_or_default().to_owned();
            Invalid { key: key.into(), value: shown(text), remedy: format!("cannot be meant: {why}") }
        };
        let value = api::yaml::parse(text.as_bytes()).map_err(|error| invalid(error.to_string()))?.value;
        let alone = Value::Object(Map::from_iter([(key.to_owned(), value.clone())]));
        serde_json::from_value::<Bgp>(alone).map_err(|error| invalid(error.to_string()))?;
        all.insert(key.to_owned(), value);
    }
    // Each key alone was taken.
    Ok(serde_json::from_value(Value::Object(all)).unwrap_or_default())
}

/// A value in one line, however long it is.
fn shown(value: &str) -> String {
    value.chars().take(80).collect()
}

/// One key's value.
struct Key<'a> {
    key: &'static str,
    value: Option<&'a str>,
}

impl Key<'_> {
    fn invalid(&self, remedy: impl Display) -> Invalid {
        Invalid { key: self.key.into(), value: shown(self.value.unwrap_or_default()), remedy: remedy.to_string() }
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
        Config::read(&data).map_err(|invalid| invalid.to_string())
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
        assert_eq!(config.bgp.as_number, Some(64512));
        assert_eq!((config.vni, config.port, config.mtu, config.vxlan_mtu), (4096, 4789, None, Some(8950)));
    }

    #[test]
    fn the_speakers_keys_are_yaml() {
        let config = read(&[
            ("mode", "bgp"),
            ("nodeToNodeMeshEnabled", "false"),
            ("peers", "- name: tor\n  nodeSelector: rack in (a)\n  peerIP: 192.0.2.254\n  asNumber: 65100\n"),
            ("nodeMeshMaxRestartTime", "60s"),
            ("serviceLoadBalancerIPs", "198.51.100.0/24"),
        ])
        .unwrap();
        assert_eq!((config.bgp.node_to_node_mesh_enabled, config.bgp.peers[0].as_number), (Some(false), Some(65100)));
        assert_eq!(config.ranges.load_balancer.len(), 1);
        for (key, value, told) in [
            ("asNumber", "many", "asNumber: \"many\" cannot be meant: invalid type: string"),
            ("peers", "- reachedBy: 192.0.2.1", "peers: \"- reachedBy: 192.0.2.1\" cannot be meant: unknown field"),
            ("peers", "{", "peers: \"{\" cannot be meant: "),
        ] {
            let error = read(&[(key, value)]).unwrap_err();
            assert!(error.starts_with(&format!("ConfigMap kube-system/bosun-net: {told}")), "{error}");
            assert!(!error.contains('\n'));
        }
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
