//! What the configuration, `CNI_ARGS`, the runtime and `args.cni` ask for together, the later before the earlier.

use std::fmt;
use std::path::PathBuf;

use api::cni::Error;
use kernel::netlink::Mac;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::skel::Call;

const DATA_DIR: &str = "/run/cni/tuning";

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Raw {
    sysctl: Parameters,
    mac: String,
    promisc: bool,
    mtu: u32,
    #[serde(rename = "txQLen")]
    queue: Option<u32>,
    allmulti: Option<bool>,
}

#[derive(Debug, Deserialize)]
struct Parameter {
    #[serde(rename = "sysctl")]
    _sysctl: Parameters,
}

/// `args.cni`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Conventional {
    sysctl: Parameters,
    mac: Option<String>,
    promisc: Option<bool>,
    mtu: Option<u32>,
    #[serde(rename = "txQLen")]
    queue: Option<u32>,
    allmulti: Option<bool>,
}

/// Kernel parameters in the order of the configuration.
#[derive(Debug, Clone, Default, PartialEq)]
struct Parameters(Vec<(String, String)>);

impl<'de> Deserialize<'de> for Parameters {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = Parameters;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of kernel parameters")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Parameters, A::Error> {
                let mut pairs: Vec<(String, String)> = Vec::new();
                while let Some((key, value)) = map.next_entry::<String, String>()? {
                    if pairs.iter().any(|(other, _)| *other == key) {
                        return Err(serde::de::Error::custom(format!("sysctl {key} is there twice")));
                    }
                    pairs.push((key, value));
                }
                Ok(Parameters(pairs))
            }
        }
        deserializer.deserialize_map(Pairs)
    }
}

/// Attributes of an interface: those to set, or those that were there before. Keys and form are the reference's.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Attributes {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub mac: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub promisc: Option<bool>,
    #[serde(skip_serializing_if = "is_zero")]
    pub mtu: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allmulti: Option<bool>,
    #[serde(rename = "txQLen", skip_serializing_if = "Option::is_none")]
    pub queue: Option<u32>,
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

impl Attributes {
    /// The hardware address, where there is one.
    pub fn address(&self) -> Result<Option<Mac>, Error> {
        let given = Some(self.mac.as_str()).filter(|mac| !mac.is_empty());
        given.map(str::parse).transpose().map_err(|error| Error::config(format!("mac: {error}")))
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Names under /proc/sys, and values.
    pub sysctl: Vec<(String, String)>,
    pub attributes: Attributes,
}

/// Where the former attributes are written down.
pub fn folder(call: &Call) -> PathBuf {
    let given = call.config.rest.get("dataDir").and_then(Value::as_str).filter(|folder| !folder.is_empty());
    given.unwrap_or(DATA_DIR).into()
}

impl Config {
    /// # Errors
    /// Names the key that is wrong.
    pub fn of(call: &Call) -> Result<Self, Error> {
        let invalid = |error| Error::config(format!("cannot read the configuration of tuning: {error}"));
        let mut raw: Raw = call.own()?;
        // The decoded form has the last of two equal keys; only the text shows that there were two.
        if !raw.sysctl.0.is_empty() {
            serde_json::from_slice::<Parameter>(&call.stdin).map_err(invalid)?;
        }
        let args = call.config.cni_args().cloned().unwrap_or_default();
        let args: Conventional = serde_json::from_value(Value::Object(args)).map_err(invalid)?;
        for (key, value) in args.sysctl.0 {
            raw.sysctl.0.retain(|(other, _)| *other != key);
            raw.sysctl.0.push((key, value));
        }
        let runtime = Some(call.config.runtime_config.mac.clone()).filter(|mac| !mac.is_empty());
        let mac = args.mac.or(runtime).or_else(|| call.args.get("MAC").map(str::to_owned)).unwrap_or(raw.mac);
        let attributes = Attributes {
            mac,
            promisc: args.promisc.unwrap_or(raw.promisc).then_some(true),
            mtu: args.mtu.unwrap_or(raw.mtu),
            allmulti: args.allmulti.or(raw.allmulti),
            queue: args.queue.or(raw.queue),
        };
        attributes.address()?;
        let sysctl = raw.sysctl.0.into_iter().map(|(key, value)| Ok((name(&key, &call.ifname)?, value)));
        Ok(Self { sysctl: sysctl.collect::<Result<_, Error>>()?, attributes })
    }
}

/// `net.ipv4.conf.IFNAME.arp_filter` as a path under /proc/sys. Dots separate, so that an interface with a dot in its
/// name is only meant by IFNAME. What is not the network's belongs to the node.
fn name(key: &str, ifname: &str) -> Result<String, Error> {
    let path = key.replace('.', "/").replacen("IFNAME", ifname, 1);
    let mut parts = path.split('/').filter(|part| !part.is_empty());
    let is_plain = parts.clone().all(|part| part != ".." && part != ".");
    match is_plain && parts.next() == Some("net") && parts.next().is_some() {
        true => Ok(path.split('/').filter(|part| !part.is_empty()).collect::<Vec<_>>().join("/")),
        false => Err(Error::config(format!("sysctl {key:?} is not one of net."))),
    }
}

/// Refuses parameters that fit none of the administrator's expressions, one a line.
pub fn allowed(sysctl: &[String], allowlist: &str) -> Result<(), Error> {
    let lines: Vec<&str> = allowlist.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let expressions = lines.iter().map(|line| {
        regex_lite::Regex::new(line).map_err(|error| Error::config(format!("allowlist.conf: {line:?}: {error}")))
    });
    let expressions = expressions.collect::<Result<Vec<_>, _>>()?;
    match sysctl.iter().find(|key| !expressions.iter().any(|expression| expression.is_match(key))) {
        None => Ok(()),
        Some(key) => Err(Error::config(format!("sysctl {key} is not allowed by allowlist.conf: {}", lines.join(", ")))),
    }
}

/// The keys of the parameters as the configuration writes them.
pub fn keys(call: &Call) -> Vec<String> {
    let configured = call.config.rest.get("sysctl").and_then(Value::as_object);
    let conventional = call.config.cni_args().and_then(|args| args.get("sysctl")).and_then(Value::as_object);
    configured.into_iter().chain(conventional).flat_map(|map| map.keys().cloned()).collect()
}

#[cfg(test)]
mod tests {
    use api::cni::CniArgs;
    use serde_json::json;

    use super::*;

    fn call(config: &str, args: &str) -> Call {
        let parsed = serde_json::from_str(config).unwrap();
        let args = CniArgs::parse(args).unwrap();
        Call { config: parsed, args, ifname: "eth0.7".into(), stdin: config.into(), ..Call::default() }
    }

    #[test]
    fn the_later_counts_before_the_earlier() {
        let config = json!({"mac": "0a:00:00:00:00:01", "mtu": 1400, "allmulti": false, "promisc": true,
            "sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "1", "net/core/somaxconn": "9"},
            "runtimeConfig": {"mac": "0a:00:00:00:00:03"},
            "args": {"cni": {"mtu": 1300, "promisc": false, "txQLen": 5, "sysctl": {"net/core/somaxconn": "10"}}}});
        let read = Config::of(&call(&config.to_string(), "MAC=0a:00:00:00:00:02")).unwrap();
        let attributes = Attributes {
            mac: "0a:00:00:00:00:03".into(),
            promisc: None,
            mtu: 1300,
            allmulti: Some(false),
            queue: Some(5),
        };
        assert_eq!(read.attributes, attributes);
        let pairs = [("net/ipv4/conf/eth0.7/arp_filter", "1"), ("net/core/somaxconn", "10")];
        assert_eq!(read.sysctl, pairs.map(|(key, value)| (key.to_owned(), value.to_owned())));
    }

    #[test]
    fn only_the_networks_parameters_and_each_once() {
        for key in ["kernel.panic", "net"] {
            let config = json!({"sysctl": {key: "1"}}).to_string();
            let error = Config::of(&call(&config, "")).unwrap_err();
            assert_eq!(error.msg, format!("sysctl {key:?} is not one of net."));
        }
        let twice = r#"{"sysctl": {"net.core.x": "1", "net.core.x": "2"}}"#;
        let error = Config::of(&call(twice, "")).unwrap_err();
        assert!(error.msg.contains("sysctl net.core.x is there twice"), "{error}");
    }

    #[test]
    fn an_allowlist_is_of_expressions() {
        let list = "^net\\.ipv4\\.conf\\.IFNAME\\.[a-z_]*$\n\n net.core ";
        let keys = |list: &[&str]| list.iter().map(|key| (*key).to_owned()).collect::<Vec<_>>();
        allowed(&keys(&["net.ipv4.conf.IFNAME.arp_filter", "net.core.somaxconn"]), list).unwrap();
        assert!(allowed(&keys(&["net.ipv6.conf.all.forwarding"]), list).is_err());
        assert!(allowed(&[], "(").unwrap_err().msg.starts_with("allowlist.conf: \"(\""));
    }
}
