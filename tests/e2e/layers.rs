//! The layers of ARCHITECTURE.md, as cargo sees them.

use serde_json::Value;
use tests::bed::{checkout, output};

/// Every crate of the workspace and its layer. Parts of one layer do not use one another, but for the contracts
/// below and the top, which uses all.
const LAYERS: &[(&str, u8)] = &[
    ("api", 0),
    ("bgp", 0),
    ("cri", 0),
    ("streams", 0),
    ("kernel", 1),
    ("lifecycle", 1),
    ("agent", 2),
    ("cri-shim", 2),
    ("cni-plugins", 2),
    ("proxy", 2),
    ("net", 2),
    ("control-plane", 2),
    ("images", 2),
    ("bosun", 3),
    ("tests", 3),
    ("fuzz", 3),
];

fn layer(name: &str) -> u8 {
    let found = LAYERS.iter().find(|(known, _)| *known == name);
    found.unwrap_or_else(|| panic!("crate {name} has no layer: give it one here and in ARCHITECTURE.md")).1
}

pub fn no_edge_points_up() {
    let manifest = checkout().join("Cargo.toml").display().to_string();
    let words = ["metadata", "--no-deps", "--offline", "--format-version=1", "--manifest-path", &manifest];
    let metadata: Value = serde_json::from_slice(&output("cargo", &words).stdout).expect("cargo prints JSON");
    let packages = metadata["packages"].as_array().expect("a list of packages");
    let name_of = |value: &Value| value["name"].as_str().expect("a name").to_owned();
    let ours: Vec<String> = packages.iter().map(name_of).collect();
    assert_eq!(ours.len(), LAYERS.len(), "LAYERS names a crate that is gone");
    let mut wrong = Vec::new();
    for package in packages {
        let from = name_of(package);
        for to in package["dependencies"].as_array().expect("a list").iter().map(name_of) {
            if ours.contains(&to) && layer(&to) >= layer(&from) && layer(&from) < 3 {
                wrong.push(format!("{from} -> {to}"));
            }
        }
    }
    assert!(wrong.is_empty(), "these edges point up or sideways: {}", wrong.join(", "));
}
