//! What ADD answers, in every version.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Error, VERSIONS, code, text};

/// A successful ADD, in the form of 1.1.0.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Success {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub interfaces: Vec<Interface>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ips: Vec<Ip>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<Route>,
    #[serde(default)]
    pub dns: Dns,
}

/// An interface that a plugin made or changed, on the host or in the container.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Interface {
    pub name: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub mac: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// Path of the network namespace; empty on the host.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub sandbox: String,
    #[serde(rename = "socketPath", default, skip_serializing_if = "String::is_empty")]
    pub socket_path: String,
    #[serde(rename = "pciID", default, skip_serializing_if = "String::is_empty")]
    pub pci_id: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ip {
    /// Position in [`Success::interfaces`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<usize>,
    /// The address with its prefix length.
    #[serde(with = "text")]
    pub address: IpNetwork,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    #[serde(with = "text")]
    pub dst: IpNetwork,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gw: Option<IpAddr>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advmss: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<u8>,
}

impl Route {
    pub fn new(dst: IpNetwork, gw: Option<IpAddr>) -> Self {
        Self { dst, gw, mtu: None, advmss: None, priority: None, table: None, scope: None }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Dns {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nameservers: Vec<String>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub domain: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

/// What came with 1.1.0 and is left out for older readers. What came with it for routes is not: a plugin that asked an
/// IPAM plugin in an older version would lose it, and the reference tells it in every version.
const NEW_INTERFACE_KEYS: [&str; 3] = ["mtu", "socketPath", "pciID"];

impl Success {
    /// Reads a result of any known version; what a version lacks is empty.
    ///
    /// # Errors
    /// Incompatible version where `cniVersion` is not among [`VERSIONS`]; decoding failure for another shape.
    pub fn parse(value: &Value) -> Result<Self, Error> {
        let version = value.get("cniVersion").and_then(Value::as_str).unwrap_or_default();
        known(version)?;
        Self::deserialize(value).map_err(|error| {
            Error::new(code::DECODING_FAILURE, format!("cannot decode a result of version {version}: {error}"))
        })
    }

    /// Writes the result as `version` has it.
    ///
    /// # Errors
    /// Incompatible version where `version` is not among [`VERSIONS`].
    pub fn render(&self, version: &str) -> Result<Value, Error> {
        let age = known(version)?;
        let body = serde_json::to_value(self).map_err(Error::internal)?;
        let mut out = Map::from_iter([("cniVersion".to_owned(), Value::from(version))]);
        if let Value::Object(body) = body {
            out.extend(body);
        }
        if age < known("1.1.0")? {
            drop_keys(out.get_mut("interfaces"), &NEW_INTERFACE_KEYS);
        }
        if age < known("1.0.0")? {
            for ip in out.get_mut("ips").and_then(Value::as_array_mut).into_iter().flatten() {
                let six = ip["address"].as_str().is_some_and(|address| address.contains(':'));
                ip["version"] = Value::from(if six { "6" } else { "4" });
            }
        }
        Ok(Value::Object(out))
    }
}

/// The version's place in [`VERSIONS`].
fn known(version: &str) -> Result<usize, Error> {
    let unknown = || Error {
        details: format!("config is {version:?}, plugin supports {VERSIONS:?}"),
        ..Error::new(code::INCOMPATIBLE_VERSION, "incompatible CNI versions")
    };
    VERSIONS.iter().position(|known| *known == version).ok_or_else(unknown)
}

fn drop_keys(list: Option<&mut Value>, keys: &[&str]) {
    for item in list.and_then(Value::as_array_mut).into_iter().flatten().filter_map(Value::as_object_mut) {
        for key in keys {
            item.shift_remove(*key);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn newest() -> Value {
        json!({
            "cniVersion": "1.1.0",
            "interfaces": [{"name": "eth0", "mac": "0a:58:0a:00:00:02", "mtu": 1400, "sandbox": "/run/netns/a"}],
            "ips": [{"interface": 0, "address": "10.0.0.2/24", "gateway": "10.0.0.1"}, {"address": "fd00::2/64"}],
            "routes": [{"dst": "0.0.0.0/0", "gw": "10.0.0.1", "mtu": 1300}],
            "dns": {"nameservers": ["10.0.0.10"]},
        })
    }

    #[test]
    fn each_version_has_its_own_keys() {
        let result = Success::parse(&newest()).unwrap();
        assert_eq!(result.render("1.1.0").unwrap(), newest());
        let one = result.render("1.0.0").unwrap();
        assert_eq!(one["interfaces"][0].get("mtu"), None);
        assert_eq!(one["routes"], newest()["routes"]);
        assert_eq!(one["ips"][0].get("version"), None);
        for old in ["0.4.0", "0.3.1", "0.3.0"] {
            let rendered = result.render(old).unwrap();
            assert_eq!((&rendered["ips"][0]["version"], &rendered["ips"][1]["version"]), (&json!("4"), &json!("6")));
            assert_eq!(Success::parse(&rendered).unwrap().ips, result.ips);
        }
    }

    #[test]
    fn an_unknown_version_is_code_one() {
        let mut value = newest();
        value["cniVersion"] = json!("0.2.0");
        assert_eq!(Success::parse(&value).unwrap_err().code, code::INCOMPATIBLE_VERSION);
        assert_eq!(Success::default().render("2.0.0").unwrap_err().code, code::INCOMPATIBLE_VERSION);
    }
}
