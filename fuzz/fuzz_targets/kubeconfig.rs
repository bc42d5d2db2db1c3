//! A daemon's kubeconfig names a cluster and an identity, or is refused. A user's takes a cluster's entries beside whatever
//! is in it, and gives them back.
#![no_main]

#[allow(dead_code)] // what of the command asks for more than a file
#[path = "../../bosun/src/kubeconfig.rs"]
mod kubeconfig;

use std::path::PathBuf;
use std::sync::LazyLock;

use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::{Value, json};

static FILE: LazyLock<PathBuf> =
    LazyLock::new(|| std::env::temp_dir().join(format!("bosun-fuzz-kubeconfig-{}", std::process::id())));

libfuzzer_sys::fuzz_target!(|text: &str| {
    if let Ok(daemons) = Kubeconfig::from_yaml(text) {
        let options = KubeConfigOptions::default();
        let _ = futures::executor::block_on(kube::Config::from_custom_kubeconfig(daemons, &options));
    }
    let entry = json!([{"name": "bosun-fuzz"}]);
    let ours = json!({"clusters": entry, "contexts": entry, "users": entry, "current-context": "bosun-fuzz"});
    std::fs::write(&*FILE, text).expect("a file in memory");
    if kubeconfig::merge(&FILE, &ours).is_err() {
        return;
    }
    let merged = std::fs::read(&*FILE).expect("the file is there");
    let merged: Value = api::yaml::parse(&merged).expect("what was written parses").value;
    for list in ["clusters", "contexts", "users"] {
        let entries = merged[list].as_array().expect("a list");
        assert!(entries.contains(&entry[0]), "{merged}");
    }
    kubeconfig::remove(&FILE, "bosun-fuzz").expect("what was written is a kubeconfig");
    assert!(!std::fs::read_to_string(&*FILE).unwrap_or_default().contains("bosun-fuzz") || text.contains("bosun-fuzz"));
});
