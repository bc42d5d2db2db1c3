//! The plugin's configuration, and what of the result follows from it alone.

use std::collections::BTreeSet;
use std::net::IpAddr;

use api::cni::{Error, Ip, Route, Success};
use kernel::netlink::{IpNetwork, Mac};
use serde::Deserialize;
use serde_json::Value;

use crate::skel::Call;

#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Raw {
    bridge: String,
    is_gateway: bool,
    is_default_gateway: bool,
    force_address: bool,
    ip_masq: bool,
    ip_masq_backend: String,
    mtu: u32,
    hairpin_mode: bool,
    promisc_mode: bool,
    vlan: i64,
    vlan_trunk: Vec<Trunk>,
    preserve_default_vlan: bool,
    #[serde(rename = "macspoofchk")]
    spoof_check: bool,
    port_isolation: bool,
    #[serde(rename = "enabledad")]
    detect: bool,
    disable_container_interface: bool,
    mac: String,
}

/// Networks of a trunk: one, or from one to another.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Trunk {
    #[serde(default, rename = "minID")]
    first: Option<i64>,
    #[serde(default, rename = "maxID")]
    last: Option<i64>,
    #[serde(default)]
    id: Option<i64>,
}

/// What the network's configuration and the runtime ask for.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    pub bridge: String,
    pub is_gateway: bool,
    pub is_default_gateway: bool,
    pub force_address: bool,
    pub ip_masq: bool,
    pub mtu: Option<u32>,
    pub hairpin: bool,
    pub promiscuous: bool,
    /// The port's own network (802.1Q).
    pub vlan: Option<u16>,
    /// Further networks of the port, tagged. `None` where the configuration has no trunk at all.
    pub trunk: Option<Vec<u16>>,
    pub keep_default_vlan: bool,
    /// Whether frames with another hardware address than the container's are dropped.
    pub spoof_check: bool,
    pub isolated: bool,
    /// Whether the link is asked about IPv6 addresses before they are used.
    pub detect: bool,
    /// Whether the container's interface stays down, without addresses: its owner will start it.
    pub leave_down: bool,
    pub mac: Option<Mac>,
}

impl Config {
    /// # Errors
    /// Names the key that is wrong.
    pub fn of(call: &Call) -> Result<Self, Error> {
        let raw: Raw = call.own()?;
        if raw.hairpin_mode && raw.promisc_mode {
            return Err(Error::config("cannot set hairpin mode and promiscuous mode at the same time"));
        }
        crate::masquerade::known_backend(&raw.ip_masq_backend)?;
        let has_ipam = call.config.rest.get("ipam").and_then(|ipam| ipam.get("type")).and_then(Value::as_str);
        if raw.disable_container_interface && has_ipam.is_some_and(|kind| !kind.is_empty()) {
            return Err(Error::config(
                "disableContainerInterface: an interface that stays down has no use for an ipam",
            ));
        }
        let vlan = match raw.vlan {
            0 => None,
            id => Some(network("vlan", id)?),
        };
        let given = call.config.rest.get("vlanTrunk").is_some_and(|trunk| !trunk.is_null());
        Ok(Self {
            bridge: if raw.bridge.is_empty() { "cni0".into() } else { raw.bridge },
            is_gateway: raw.is_gateway || raw.is_default_gateway,
            is_default_gateway: raw.is_default_gateway,
            force_address: raw.force_address,
            ip_masq: raw.ip_masq,
            mtu: (raw.mtu > 0).then_some(raw.mtu),
            hairpin: raw.hairpin_mode,
            promiscuous: raw.promisc_mode,
            vlan,
            trunk: given.then(|| trunk(&raw.vlan_trunk)).transpose()?,
            keep_default_vlan: raw.preserve_default_vlan,
            spoof_check: raw.spoof_check,
            isolated: raw.port_isolation,
            detect: raw.detect,
            leave_down: raw.disable_container_interface,
            mac: call.mac(&raw.mac)?,
        })
    }

    /// Whether the bridge has to tell networks apart.
    pub fn filters_vlans(&self) -> bool {
        self.vlan.is_some() || self.trunk.is_some()
    }
}

fn network(key: &str, id: i64) -> Result<u16, Error> {
    let id = u16::try_from(id).ok().filter(|id| (1..=4094).contains(id));
    id.ok_or_else(|| Error::config(format!("{key} is a number from 1 to 4094")))
}

fn trunk(items: &[Trunk]) -> Result<Vec<u16>, Error> {
    let mut ids = BTreeSet::new();
    for item in items {
        match (item.first, item.last) {
            (Some(first), Some(last)) => {
                let (first, last) = (network("vlanTrunk.minID", first)?, network("vlanTrunk.maxID", last)?);
                if first > last {
                    return Err(Error::config(format!("vlanTrunk.minID {first} is greater than maxID {last}")));
                }
                ids.extend(first..=last);
            }
            (None, None) => {}
            _ => return Err(Error::config("vlanTrunk needs both minID and maxID, or neither")),
        }
        ids.extend(item.id.map(|id| network("vlanTrunk.id", id)).transpose()?);
    }
    Ok(ids.into_iter().collect())
}

/// Fills in the gateways and the default routes that the configuration asks for.
pub fn complete(config: &Config, result: &mut Success) {
    for ip in &mut result.ips {
        if ip.gateway.is_none() && config.is_gateway {
            ip.gateway = first_of(ip);
        }
    }
    if config.is_default_gateway {
        for ip in &result.ips {
            let any = default_of(ip.address);
            // One that the IPAM plugin gave, by whatever gateway, is the one that was wanted.
            if !result.routes.iter().any(|route| route.dst == any && route.gw.is_some()) {
                result.routes.push(Route::new(any, ip.gateway));
            }
        }
    }
}

/// The network's first address, which is the bridge's where nothing else was said.
fn first_of(ip: &Ip) -> Option<IpAddr> {
    match ip.address {
        IpNetwork::V4(net) => u32::from(net.network()).checked_add(1).map(|n| IpAddr::V4(n.into())),
        IpNetwork::V6(net) => u128::from(net.network()).checked_add(1).map(|n| IpAddr::V6(n.into())),
    }
}

fn default_of(address: IpNetwork) -> IpNetwork {
    let any: IpAddr = if address.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
    // A prefix of nothing is valid for every address.
    IpNetwork::new(any, 0).unwrap_or(address)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(extra: Value) -> Result<Config, Error> {
        let mut config = json!({"cniVersion": "1.0.0", "name": "net", "type": "bridge"});
        config.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        Config::of(&Call { config: serde_json::from_value(config).unwrap(), ..Call::default() })
    }

    #[test]
    fn a_trunk_is_the_union_of_its_parts() {
        let config =
            read(json!({"vlan": 7, "vlanTrunk": [{"minID": 10, "maxID": 12}, {"id": 11}, {"id": 9}]})).unwrap();
        assert_eq!((config.vlan, config.trunk.as_deref()), (Some(7), Some(&[9, 10, 11, 12][..])));
        assert!(config.filters_vlans() && !read(json!({})).unwrap().filters_vlans());
    }

    #[test]
    fn what_is_wrong_is_named() {
        let cases = [
            (json!({"vlan": 4095}), "vlan is a number from 1 to 4094"),
            (json!({"vlanTrunk": [{"id": 0}]}), "vlanTrunk.id is a number from 1 to 4094"),
            (json!({"vlanTrunk": [{"minID": 3, "maxID": 2}]}), "vlanTrunk.minID 3 is greater than maxID 2"),
            (json!({"vlanTrunk": [{"minID": 3}]}), "vlanTrunk needs both minID and maxID, or neither"),
            (
                json!({"disableContainerInterface": true, "ipam": {"type": "static"}}),
                "disableContainerInterface: an interface that stays down has no use for an ipam",
            ),
            (json!({"ipMasqBackend": "pf"}), "ipMasqBackend \"pf\" is neither iptables nor nftables"),
            (json!({"mac": "nonsense"}), "mac: \"nonsense\" is not a hardware address of six octets"),
        ];
        for (extra, text) in cases {
            let error = read(extra).unwrap_err();
            assert_eq!((error.code, error.msg.as_str()), (7, text));
        }
    }
}
