//! Network configurations: the list that an administrator writes, and what one plugin of it reads on its input.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use super::{Dns, Error, Success, VERSIONS, code, text};

/// A `.conflist`, or a `.conf` with one plugin ([`NetworkConfigList::parse`] takes both).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NetworkConfigList {
    #[serde(default)]
    pub cni_version: String,
    /// Versions that the runtime may choose from (1.1.0); empty means `cni_version`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cni_versions: Vec<String>,
    pub name: String,
    #[serde(default, deserialize_with = "truth", skip_serializing_if = "std::ops::Not::not")]
    pub disable_check: bool,
    #[serde(rename = "disableGC", default, deserialize_with = "truth", skip_serializing_if = "std::ops::Not::not")]
    pub disable_gc: bool,
    #[serde(default, deserialize_with = "truth", skip_serializing_if = "std::ops::Not::not")]
    pub load_only_inlined_plugins: bool,
    /// Each plugin's object as written.
    #[serde(default)]
    pub plugins: Vec<Map<String, Value>>,
}

impl NetworkConfigList {
    /// # Errors
    /// Decoding failure for what is not JSON of that shape, invalid config for a missing name, plugin or type.
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        Self::parse_with(bytes, |_| Ok(Vec::new()))
    }

    /// As [`NetworkConfigList::parse`], with the plugins that `more` finds for the network's name after those of the
    /// list itself, unless the list says `loadOnlyInlinedPlugins` (1.1.0). The result has them inlined and says so.
    ///
    /// # Errors
    /// As `parse`, and what `more` fails with.
    pub fn parse_with(
        bytes: &[u8],
        more: impl FnOnce(&str) -> Result<Vec<Map<String, Value>>, Error>,
    ) -> Result<Self, Error> {
        let mut list = Self::read(bytes)?;
        if list.name.is_empty() {
            return Err(Error::config("the network has no name"));
        }
        if !is_identifier(&list.name) {
            return Err(Error::config(format!("invalid network name {:?}", list.name)));
        }
        if !std::mem::replace(&mut list.load_only_inlined_plugins, true) {
            list.plugins.extend(more(&list.name)?);
        }
        match list.plugins.iter().position(|plugin| plugin.get("type").and_then(Value::as_str).is_none()) {
            Some(at) => Err(Error::config(format!("plugin {at} of network {:?} has no type", list.name))),
            None if list.plugins.is_empty() => Err(Error::config(format!("network {:?} has no plugins", list.name))),
            None => Ok(list),
        }
    }

    fn read(bytes: &[u8]) -> Result<Self, Error> {
        let decoding = |error: serde_json::Error| Error::new(code::DECODING_FAILURE, error.to_string());
        let value: Map<String, Value> = serde_json::from_slice(bytes).map_err(decoding)?;
        // One plugin alone says its type at the top.
        if !value.contains_key("type") {
            return serde_json::from_value(Value::Object(value)).map_err(decoding);
        }
        let word = |key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        Ok(Self {
            cni_version: word("cniVersion"),
            cni_versions: Vec::new(),
            name: word("name"),
            disable_check: false,
            disable_gc: false,
            load_only_inlined_plugins: true,
            plugins: vec![value],
        })
    }

    /// The newest version that both this list and we speak.
    pub fn version(&self) -> Option<&'static str> {
        let offered =
            |version: &str| self.cni_version == version || self.cni_versions.iter().any(|other| other == version);
        VERSIONS.into_iter().rev().find(|version| offered(version))
    }

    /// What plugin `index` gets on its standard input: its own object with the list's name and version, of the
    /// runtime's configuration what its capabilities ask for, and the previous plugin's result.
    ///
    /// # Errors
    /// Where the result cannot be rendered in `version`.
    pub fn stdin(
        &self,
        index: usize,
        version: &str,
        runtime: &Map<String, Value>,
        previous: Option<&Success>,
    ) -> Result<Map<String, Value>, Error> {
        let mut config = self.plugins.get(index).cloned().unwrap_or_default();
        config.insert("cniVersion".into(), version.into());
        config.insert("name".into(), self.name.clone().into());
        let wanted = config.shift_remove("capabilities");
        let wants = |key: &str| wanted.as_ref().and_then(|w| w.get(key)).and_then(Value::as_bool).unwrap_or_default();
        let given: Map<String, Value> =
            runtime.iter().filter(|(key, _)| wants(key)).map(|(key, value)| (key.clone(), value.clone())).collect();
        if !given.is_empty() {
            config.insert("runtimeConfig".into(), Value::Object(given));
        }
        if let Some(result) = previous {
            config.insert("prevResult".into(), result.render(version)?);
        }
        Ok(config)
    }
}

/// What every plugin reads on its standard input. The plugin's own keys are in `rest`.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NetworkConfig {
    #[serde(default)]
    pub cni_version: String,
    #[serde(default)]
    pub name: String,
    #[serde(rename = "type", default)]
    pub kind: String,
    #[serde(default)]
    pub runtime_config: RuntimeConfig,
    #[serde(default)]
    pub prev_result: Option<Value>,
    #[serde(default)]
    pub dns: Dns,
    /// Runtimes say the same under `cni.dev/attachments` too, as an early text of the specification had it.
    #[serde(rename = "cni.dev/valid-attachments", default)]
    pub valid_attachments: Option<Vec<Attachment>>,
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

impl NetworkConfig {
    /// The previous plugin's result, of whatever version it is.
    ///
    /// # Errors
    /// Where it is of an unknown version or shape.
    pub fn previous(&self) -> Result<Option<Success>, Error> {
        self.prev_result.as_ref().map(Success::parse).transpose()
    }

    /// `args.cni` of the plugin's object, a convention for what the runtime wants of this attachment.
    pub fn cni_args(&self) -> Option<&Map<String, Value>> {
        self.rest.get("args")?.get("cni")?.as_object()
    }
}

/// One attachment that the runtime still knows, for GC.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Attachment {
    #[serde(rename = "containerID")]
    pub container_id: String,
    pub ifname: String,
}

/// What the runtime knows only when it makes the attachment. Keys as in CONVENTIONS.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RuntimeConfig {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub port_mappings: Vec<PortMapping>,
    /// A list of range sets, one address from each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ip_ranges: Vec<Vec<IpRange>>,
    /// Requested addresses, with or without a prefix.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ips: Vec<String>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub mac: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<Bandwidth>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dns: Option<DnsRequest>,
    #[serde(rename = "deviceID", default, skip_serializing_if = "String::is_empty")]
    pub device_id: String,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub aliases: BTreeMap<String, Vec<String>>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub cgroup_path: String,
}

/// The aliases here and below are containerd's: its library writes capabilities under the names of Go's fields, and
/// Go's reader does not tell the case of letters apart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PortMapping {
    #[serde(alias = "HostPort")]
    pub host_port: u16,
    #[serde(alias = "ContainerPort")]
    pub container_port: u16,
    /// `tcp`, `udp` or `sctp`; empty is `tcp`.
    #[serde(default, alias = "Protocol")]
    pub protocol: String,
    /// The node's address to listen on; empty is all.
    #[serde(rename = "hostIP", default, alias = "HostIP")]
    pub host_ip: String,
}

/// Rates in bits per second, bursts in bits.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Bandwidth {
    #[serde(alias = "IngressRate")]
    pub ingress_rate: u64,
    #[serde(alias = "IngressBurst")]
    pub ingress_burst: u64,
    #[serde(alias = "EgressRate")]
    pub egress_rate: u64,
    #[serde(alias = "EgressBurst")]
    pub egress_burst: u64,
}

/// The resolver that the runtime asks plugins to set up. Unlike in results, its keys are the convention's own.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct DnsRequest {
    pub servers: Vec<String>,
    pub searches: Vec<String>,
    pub options: Vec<String>,
}

/// A range of addresses as host-local has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IpRange {
    #[serde(with = "text", alias = "Subnet")]
    pub subnet: IpNetwork,
    #[serde(default, deserialize_with = "given", skip_serializing_if = "Option::is_none", alias = "RangeStart")]
    pub range_start: Option<IpAddr>,
    #[serde(default, deserialize_with = "given", skip_serializing_if = "Option::is_none", alias = "RangeEnd")]
    pub range_end: Option<IpAddr>,
    #[serde(default, deserialize_with = "given", skip_serializing_if = "Option::is_none", alias = "Gateway")]
    pub gateway: Option<IpAddr>,
}

/// A boolean, or the word for one, which the original takes too.
fn truth<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    match Value::deserialize(deserializer)? {
        Value::Bool(value) => Ok(value),
        Value::String(word) => word.parse().map_err(serde::de::Error::custom),
        other => Err(serde::de::Error::custom(format!("{other} is neither true nor false"))),
    }
}

/// Letters, digits, `_`, `.` and `-`, the first a letter or digit: what names of networks and containers may be.
/// They become names of files.
pub fn is_identifier(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c))
}

/// An address, where an empty text says that there is none.
fn given<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<IpAddr>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?.filter(|text| !text.is_empty());
    text.map(|text| text.parse().map_err(serde::de::Error::custom)).transpose()
}

/// `CNI_ARGS`: `KEY=VALUE;KEY=VALUE`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CniArgs(pub BTreeMap<String, String>);

impl CniArgs {
    /// # Errors
    /// Invalid environment for a pair without `=`.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let pairs = text.split(';').filter(|pair| !pair.is_empty()).map(|pair| match pair.split_once('=') {
            Some((key, value)) => Ok((key.to_owned(), value.to_owned())),
            None => Err(Error::new(code::INVALID_ENVIRONMENT, format!("CNI_ARGS has {pair:?} without a value"))),
        });
        pairs.collect::<Result<_, _>>().map(Self)
    }

    /// `None` where it is absent or empty.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str).filter(|value| !value.is_empty())
    }
}

/// Checks that we speak the version a configuration asks for.
///
/// # Errors
/// Incompatible version, with both sides' versions in the details.
pub fn negotiate(asked: &str) -> Result<(), Error> {
    Success::default().render(asked).map(|_| ())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    proptest! {
        #[test]
        fn any_bytes_are_a_list_or_refused(bytes in any::<Vec<u8>>(), name in "[a-z./-]{0,4}", more in "[{}\\[\\]\":,a-z]*") {
            let _ = NetworkConfigList::parse(&bytes);
            let text = format!(r#"{{"name":"{name}","plugins":[{{"type":"a","x":"{}"}}]}}"#, more.replace(['"', '\\'], ""));
            if let Ok(list) = NetworkConfigList::parse(text.as_bytes()) {
                let written = serde_json::to_vec(&list).unwrap();
                prop_assert_eq!(NetworkConfigList::parse(&written).unwrap(), list);
            }
        }
    }

    #[test]
    fn what_containerd_hands_down_is_read() {
        let port: PortMapping =
            serde_json::from_value(json!({"HostPort": 8080, "ContainerPort": 80, "Protocol": "tcp", "HostIP": ""}))
                .unwrap();
        assert_eq!((port.host_port, port.container_port, port.protocol.as_str()), (8080, 80, "tcp"));
        let range: IpRange = serde_json::from_value(
            json!({"Subnet": "10.0.0.0/24", "RangeStart": "10.0.0.9", "RangeEnd": "", "Gateway": ""}),
        )
        .unwrap();
        assert_eq!((range.range_start, range.range_end), ("10.0.0.9".parse().ok(), None));
    }

    #[test]
    fn a_plugin_gets_only_what_its_capabilities_ask_for() {
        let list = json!({"cniVersion": "0.4.0", "cniVersions": ["1.0.0", "9.0.0"], "name": "pods", "plugins": [
            {"type": "bridge"}, {"type": "portmap", "capabilities": {"portMappings": true, "mac": false}},
        ]});
        let list = NetworkConfigList::parse(list.to_string().as_bytes()).unwrap();
        assert_eq!(list.version(), Some("1.0.0"));
        let runtime = json!({"portMappings": [{"hostPort": 80, "containerPort": 8080}], "mac": "00:11:22:33:44:55"});
        let runtime = runtime.as_object().unwrap();
        let stdin = list.stdin(1, "1.0.0", runtime, Some(&Success::default())).unwrap();
        assert_eq!(
            Value::Object(stdin),
            json!({"type": "portmap", "cniVersion": "1.0.0", "name": "pods",
                "runtimeConfig": {"portMappings": [{"hostPort": 80, "containerPort": 8080}]},
                "prevResult": {"cniVersion": "1.0.0", "dns": {}}})
        );
        let first = list.stdin(0, "1.0.0", runtime, None).unwrap();
        assert_eq!(first.get("runtimeConfig"), None);
    }

    #[test]
    fn a_single_plugin_is_a_list_of_one() {
        let list = NetworkConfigList::parse(br#"{"cniVersion":"1.0.0","name":"a","type":"bridge"}"#).unwrap();
        assert_eq!((list.name.as_str(), list.plugins.len()), ("a", 1));
        assert_eq!(NetworkConfigList::parse(br#"{"name":"a","plugins":[{}]}"#).unwrap_err().code, 7);
        assert_eq!(NetworkConfigList::parse(b"{").unwrap_err().code, 6);
        let named = |name: &str| NetworkConfigList::parse(json!({"name": name, "type": "b"}).to_string().as_bytes());
        assert_eq!(named("../a").unwrap_err().to_string(), "invalid network name \"../a\"");
    }

    #[test]
    fn plugins_from_elsewhere_are_inlined_unless_the_list_forbids_it() {
        let more = |name: &str| Ok(vec![Map::from_iter([("type".to_owned(), Value::from(format!("more-{name}")))])]);
        let kinds = |text: &[u8]| {
            let list = NetworkConfigList::parse_with(text, more).unwrap();
            assert!(list.load_only_inlined_plugins);
            list.plugins.iter().map(|p| p["type"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(kinds(br#"{"name":"a","plugins":[{"type":"b"}]}"#), ["b", "more-a"]);
        assert_eq!(kinds(br#"{"name":"a"}"#), ["more-a"]);
        assert_eq!(kinds(br#"{"name":"a","loadOnlyInlinedPlugins":"true","plugins":[{"type":"b"}]}"#), ["b"]);
        assert_eq!(kinds(br#"{"name":"a","type":"b"}"#), ["b"]);
    }

    #[test]
    fn both_names_of_the_living_may_come_together() {
        let living = json!([{"containerID": "a", "ifname": "eth0"}]);
        let both =
            json!({"name": "n", "type": "t", "cni.dev/valid-attachments": living, "cni.dev/attachments": living});
        let config: NetworkConfig = serde_json::from_value(both).unwrap();
        assert_eq!(config.valid_attachments.unwrap().len(), 1);
    }

    #[test]
    fn arguments_are_pairs() {
        let args = CniArgs::parse("IgnoreUnknown=1;K8S_POD_NAME=web;IP=").unwrap();
        assert_eq!((args.get("K8S_POD_NAME"), args.get("IP")), (Some("web"), None));
        assert_eq!(CniArgs::parse("K8S").unwrap_err().code, code::INVALID_ENVIRONMENT);
    }
}
