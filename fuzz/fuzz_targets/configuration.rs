//! A daemon's configuration file, or the ConfigMap of the pods' network, is read or refused; a kubelet's list of
//! credentials counts as nothing where it is none.
#![no_main]

use std::path::Path;
use std::sync::LazyLock;

use agent::image::Keyring;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use net::speaker::mesh::{self, Node, Passwords};

/// A node of each family and of both, the last one a route reflector.
static NODES: LazyLock<Vec<Node>> = LazyLock::new(|| {
    let node = |(name, addresses): (&str, &[[u8; 4]])| Node {
        name: name.to_owned(),
        labels: [("rack".to_owned(), name.to_owned())].into(),
        addresses: addresses
            .iter()
            .map(|address| (*address).into())
            .chain(["fd00::1".parse().expect("an address")])
            .collect(),
        as_number: None,
        cluster_id: (name == "c").then_some([1, 0, 0, 9].into()),
    };
    [("a", &[[192, 0, 2, 1]][..]), ("b", &[]), ("c", &[[192, 0, 2, 3]])].map(node).into()
});

libfuzzer_sys::fuzz_target!(|text: &str| {
    let _ = agent::Config::parse(text, Path::new("kubelet.yaml"));
    let _ = agent::config::parse_duration(text);
    agent::sandbox::dns::parse(text);
    let _ = proxy::Config::read_any(text);
    let _ = control_plane::scheduler::parse_config(text);
    if let Ok(Ok(config)) = serde_json::from_str(text).map(|data| net::Config::read(&data)) {
        for node in &*NODES {
            let _ = mesh::config(&node.name, &NODES, &config.bgp, &Passwords::new());
            mesh::gateways(node, &config.bgp);
        }
        let _ = mesh::advertisements(&config.bgp);
    }
    let mut keyring = Keyring::default();
    for key in [".dockerconfigjson", ".dockercfg"] {
        let data = [(key.to_owned(), ByteString(text.into()))].into();
        keyring.add(&Secret { data: Some(data), ..Secret::default() });
    }
    keyring.matching("registry.example:5000/team/app:1");
});
