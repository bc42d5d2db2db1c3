//! `static`: the addresses that the configuration or the runtime names, kept nowhere.

use std::net::IpAddr;

use api::cni::{Dns, Error, Ip, Route, Success};
use ipnetwork::IpNetwork;
use serde::Deserialize;
use serde_json::Value;

use crate::skel::{Call, Plugin};

pub struct Static;

/// `ipam` of the network configuration.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Config {
    addresses: Vec<Configured>,
    routes: Vec<Route>,
    dns: Dns,
}

#[derive(Debug, Clone, Deserialize)]
struct Configured {
    address: String,
    #[serde(default)]
    gateway: Option<IpAddr>,
}

/// The result: addresses of the configuration and of `CNI_ARGS`, or, where `args.cni` or the runtime name some, those
/// of the last of them alone.
fn result(call: &Call) -> Result<Success, Error> {
    let ipam = call.config.rest.get("ipam").cloned().ok_or_else(|| Error::config("IPAM config missing 'ipam' key"))?;
    let config: Config = serde_json::from_value(ipam)
        .map_err(|error| Error::config(format!("cannot read the ipam configuration: {error}")))?;
    let mut ips = Vec::new();
    for configured in &config.addresses {
        ips.push(Ip { gateway: configured.gateway, ..address("ipam.addresses", &configured.address)? });
    }
    for text in call.args.get("IP").into_iter().flat_map(|list| list.split(',')) {
        ips.push(address("IP of CNI_ARGS", text.trim())?);
    }
    for text in call.args.get("GATEWAY").into_iter().flat_map(|list| list.split(',')) {
        let gateway: IpAddr =
            text.trim().parse().map_err(|_| Error::config(format!("GATEWAY of CNI_ARGS: invalid address {text:?}")))?;
        ips.iter_mut().filter(|ip| ip.address.contains(gateway)).for_each(|ip| ip.gateway = Some(gateway));
    }
    let conventional = call.config.cni_args().and_then(|args| args.get("ips")).and_then(Value::as_array);
    let conventional: Vec<&str> = conventional.into_iter().flatten().filter_map(Value::as_str).collect();
    let runtime: Vec<&str> = call.config.runtime_config.ips.iter().map(String::as_str).collect();
    for (what, texts) in [("args.cni.ips", conventional), ("runtimeConfig.ips", runtime)] {
        if !texts.is_empty() {
            ips = texts.into_iter().map(|text| address(what, text)).collect::<Result<_, _>>()?;
        }
    }
    Ok(Success { interfaces: Vec::new(), ips, routes: config.routes, dns: config.dns })
}

fn address(what: &str, text: &str) -> Result<Ip, Error> {
    let invalid = || Error::config(format!("{what}: {text:?} is no address with a prefix length, as 10.0.0.2/24"));
    let address: IpNetwork = text.contains('/').then(|| text.parse().ok()).flatten().ok_or_else(invalid)?;
    Ok(Ip { interface: None, address, gateway: None })
}

impl Plugin for Static {
    fn add(&self, call: &Call) -> Result<Success, Error> {
        result(call)
    }

    fn check(&self, call: &Call) -> Result<(), Error> {
        let previous = call.previous()?;
        for wanted in result(call)?.ips {
            let told = previous.ips.iter().find(|ip| ip.address.ip() == wanted.address.ip());
            if told.is_some_and(|told| wanted.gateway.is_some() && wanted.gateway != told.gateway) {
                let text = format!("the previous result has another gateway for {}", wanted.address);
                return Err(Error::internal(text));
            }
        }
        Ok(())
    }

    fn status(&self, call: &Call) -> Result<(), Error> {
        result(call).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use api::cni::CniArgs;
    use serde_json::json;

    use super::*;

    fn call(config: Value, args: &str) -> Call {
        let config = serde_json::from_value(config).unwrap();
        Call { config, args: CniArgs::parse(args).unwrap(), ..Call::default() }
    }

    #[test]
    fn the_last_who_names_addresses_decides() {
        let ipam = json!({"addresses": [{"address": "10.1.0.2/24", "gateway": "10.1.0.1"}, {"address": "fd00::2/64"}],
            "routes": [{"dst": "0.0.0.0/0"}], "dns": {"nameservers": ["10.1.0.53"]}});
        let told = |config: Value, args| {
            let result = Static.add(&call(config, args)).unwrap();
            assert_eq!((result.routes.len(), result.dns.nameservers.len()), (1, 1));
            let ips = result.ips.iter();
            ips.map(|ip| (ip.address.to_string(), ip.gateway.map(|ip| ip.to_string()))).collect::<Vec<_>>()
        };
        let pair = |address: &str, gateway: Option<&str>| (address.to_owned(), gateway.map(str::to_owned));
        let configured = [pair("10.1.0.2/24", Some("10.1.0.1")), pair("fd00::2/64", None)];
        assert_eq!(told(json!({"ipam": ipam}), ""), configured);
        assert_eq!(
            told(json!({"ipam": ipam}), "IP=10.2.0.9/16;GATEWAY=10.2.0.1,fd00::1"),
            [configured[0].clone(), pair("fd00::2/64", Some("fd00::1")), pair("10.2.0.9/16", Some("10.2.0.1"))]
        );
        let runtime =
            json!({"ipam": ipam, "args": {"cni": {"ips": ["10.3.0.1/8"]}}, "runtimeConfig": {"ips": ["10.4.0.1/8"]}});
        assert_eq!(told(runtime, ""), [pair("10.4.0.1/8", None)]);
    }

    #[test]
    fn an_address_needs_its_prefix() {
        let error = Static.add(&call(json!({"ipam": {"addresses": [{"address": "10.0.0.2"}]}}), "")).unwrap_err();
        let text = "ipam.addresses: \"10.0.0.2\" is no address with a prefix length, as 10.0.0.2/24";
        assert_eq!((error.code, error.msg.as_str()), (7, text));
    }
}
