//! The plugin's configuration, and what of the result follows from it alone.

use std::net::IpAddr;

use api::cni::{Error, Ip, Route, Success, code};
use kernel::netlink::{IpNetwork, Mac};
use serde::Deserialize;
use serde_json::Value;

use crate::skel::Call;

/// Keys of the reference's bridge plugin that this one does not do, unless they stand at their neutral value.
const UNSUPPORTED: [&str; 8] = [
    "macspoofchk",
    "vlan",
    "vlanTrunk",
    "preserveDefaultVlan",
    "portIsolation",
    "disableContainerInterface",
    "enabledad",
    "ipMasqBackend",
];

#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Raw {
    bridge: String,
    is_gateway: bool,
    is_default_gateway: bool,
    force_address: bool,
    ip_masq: bool,
    mtu: u32,
    hairpin_mode: bool,
    promisc_mode: bool,
    mac: String,
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
    pub mac: Option<Mac>,
}

impl Config {
    /// # Errors
    /// Names the key that is wrong, or not supported.
    pub fn of(call: &Call) -> Result<Self, Error> {
        let neutral = |key: &str, value: &Value| match value {
            Value::Null | Value::Bool(false) => true,
            Value::Number(number) => number.as_u64() == Some(0),
            Value::String(text) => text.is_empty() || (key == "ipMasqBackend" && text == "nftables"),
            Value::Array(list) => list.is_empty(),
            // The reference's default; it only matters together with vlan.
            Value::Bool(true) => key == "preserveDefaultVlan",
            Value::Object(_) => false,
        };
        let rest = &call.config.rest;
        if let Some(key) = UNSUPPORTED.iter().find(|key| rest.get(**key).is_some_and(|value| !neutral(key, value))) {
            return Err(Error::new(code::UNSUPPORTED_FIELD, format!("bridge does not support {key}")));
        }
        let raw: Raw = call.own()?;
        if raw.hairpin_mode && raw.promisc_mode {
            return Err(Error::config("cannot set hairpin mode and promiscuous mode at the same time"));
        }
        let conventional = call.config.cni_args().and_then(|args| args.get("mac")).and_then(Value::as_str);
        let runtime = Some(call.config.runtime_config.mac.as_str()).filter(|mac| !mac.is_empty());
        let configured = Some(raw.mac.as_str()).filter(|mac| !mac.is_empty());
        let mac = runtime.or(conventional).or_else(|| call.args.get("MAC")).or(configured);
        Ok(Self {
            bridge: if raw.bridge.is_empty() { "cni0".into() } else { raw.bridge },
            is_gateway: raw.is_gateway || raw.is_default_gateway,
            is_default_gateway: raw.is_default_gateway,
            force_address: raw.force_address,
            ip_masq: raw.ip_masq,
            mtu: (raw.mtu > 0).then_some(raw.mtu),
            hairpin: raw.hairpin_mode,
            promiscuous: raw.promisc_mode,
            mac: mac.map(str::parse).transpose().map_err(|error| Error::config(format!("mac: {error}")))?,
        })
    }
}

/// Fills in the gateways and the default routes that the configuration asks for.
///
/// # Errors
/// Where a default route is both configured and asked for.
pub fn complete(config: &Config, result: &mut Success) -> Result<(), Error> {
    for ip in &mut result.ips {
        if ip.gateway.is_none() && config.is_gateway {
            ip.gateway = first_of(ip);
        }
    }
    if config.is_default_gateway {
        for ip in &result.ips {
            let any = default_of(ip.address);
            if result.routes.iter().any(|route| route.dst == any && route.gw.is_some_and(|gw| Some(gw) != ip.gateway)) {
                return Err(Error::config("isDefaultGateway and a default route by another gateway"));
            }
            if !result.routes.iter().any(|route| route.dst == any) {
                result.routes.push(Route::new(any, ip.gateway));
            }
        }
    }
    Ok(())
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
