//! The CNI plugins, each behind [`skel::Plugin`]; the program `bosun-cni` is called by their names.

mod bandwidth;
mod bridge;
mod firewall;
mod host_device;
mod host_local;
mod interface;
mod ipam;
mod listing;
mod loopback;
mod masquerade;
mod policy;
mod portmap;
mod ptp;
mod routed;
mod sbr;
pub mod skel;
mod stacked;
mod static_addresses;
mod tuning;
mod veth;

/// Each plugin by the name under which it is installed.
pub const PLUGINS: [(&str, &dyn skel::Plugin); 17] = [
    ("loopback", &loopback::Loopback),
    ("bridge", &bridge::Bridge),
    ("ptp", &ptp::Ptp),
    ("routed", &routed::Routed),
    ("host-device", &host_device::HostDevice),
    ("macvlan", &stacked::MACVLAN),
    ("ipvlan", &stacked::IPVLAN),
    ("vlan", &stacked::VLAN),
    ("dummy", &stacked::DUMMY),
    ("host-local", &host_local::HostLocal),
    ("static", &static_addresses::Static),
    ("policy", &policy::Policy),
    ("portmap", &portmap::Portmap),
    ("bandwidth", &bandwidth::Bandwidth),
    ("firewall", &firewall::Firewall),
    ("tuning", &tuning::Tuning),
    ("sbr", &sbr::Sbr),
];

/// Reads what plugins find on a node: host-local's memory of addresses, and the elements that nft lists.
pub fn read_any(bytes: &[u8]) {
    if let Some(taken) = host_local::Taken::read(bytes) {
        assert_eq!(taken.bytes(), bytes);
    }
    listing::read(&String::from_utf8_lossy(bytes));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    /// Some of the keys that plugins read.
    const KEYS: [&str; 36] = [
        "bridge",
        "vlan",
        "vlanTrunk",
        "mtu",
        "mac",
        "master",
        "mode",
        "vlanId",
        "device",
        "kernelpath",
        "pciBusID",
        "hwaddr",
        "sysctl",
        "table",
        "conditionsV4",
        "markMasqBit",
        "backend",
        "ingressPolicy",
        "egressRate",
        "egressBurst",
        "ipam",
        "ranges",
        "subnet",
        "addresses",
        "address",
        "type",
        "runtimeConfig",
        "portMappings",
        "hostPort",
        "bandwidth",
        "args",
        "cni",
        "ips",
        "minID",
        "id",
        "prevResult",
    ];

    fn any_config() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            "[a-z0-9./:-]{0,12}".prop_map(Value::from),
            prop_oneof![Just("host-local"), Just("static"), Just("10.0.0.0/24"), Just("0a:00:00:00:00:01"), Just("-d")]
                .prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 40, 6, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                proptest::collection::vec((proptest::sample::select(&KEYS[..]), inner), 0..6)
                    .prop_map(|pairs| pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()),
            ]
        })
    }

    proptest! {
        #[test]
        fn any_configuration_is_read_or_refused_in_one_line(mut config in any_config()) {
            let environment = |key: &str| match key {
                "CNI_COMMAND" => Some("STATUS".to_owned()),
                "CNI_PATH" => Some("/nonexistent".to_owned()),
                _ => None,
            };
            if let Value::Object(map) = &mut config {
                map.insert("cniVersion".into(), json!("1.1.0"));
                map.insert("name".into(), json!("net"));
            }
            for (_, plugin) in PLUGINS {
                let mut answer = Vec::new();
                skel::run(plugin, &environment, &mut config.to_string().as_bytes(), &mut answer);
                if !answer.is_empty() {
                    let error: api::cni::Error = serde_json::from_slice(&answer).unwrap();
                    prop_assert!(error.code > 0 && !error.msg.contains('\n'), "{error}");
                }
            }
        }
    }
}
