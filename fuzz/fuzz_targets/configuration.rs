//! A daemon's configuration file, or the ConfigMap of the pods' network, is read or refused; a kubelet's list of
//! credentials counts as nothing where it is none.
#![no_main]

use std::path::Path;

use agent::image::Keyring;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;

libfuzzer_sys::fuzz_target!(|text: &str| {
    let _ = agent::Config::parse(text, Path::new("kubelet.yaml"));
    let _ = agent::config::parse_duration(text);
    agent::sandbox::dns::parse(text);
    let _ = proxy::Config::read_any(text);
    let _ = control_plane::scheduler::parse_config(text);
    if let Ok(data) = serde_json::from_str(text) {
        let _ = net::Config::read(&data);
    }
    let mut keyring = Keyring::default();
    for key in [".dockerconfigjson", ".dockercfg"] {
        let data = [(key.to_owned(), ByteString(text.into()))].into();
        keyring.add(&Secret { data: Some(data), ..Secret::default() });
    }
    keyring.matching("registry.example:5000/team/app:1");
});
