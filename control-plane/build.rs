//! Takes the API's descriptions out of the crate k8s-openapi, which has them as comments: `$OUT_DIR/descriptions.txt`, one
//! line for each definition with its name and a JSON object of its fields' descriptions, its own under `""`.

use std::collections::BTreeMap;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// What makes documents of the schema: clients keep a document until its hash changes.
const RENDERER: &str = "src/request/openapi/mod.rs";

/// The API version whose types the workspace uses.
const VERSION: &str = "v1_37";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=../Cargo.lock");
    println!("cargo::rerun-if-changed={RENDERER}");
    let mut definitions = BTreeMap::new();
    visit(&sources().join(VERSION), &mut definitions);
    let mut text = String::new();
    for (name, fields) in definitions {
        text.push_str(&format!("{name} {}\n", serde_json::to_string(&fields).expect("strings are JSON")));
    }
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    fs::write(out.join("descriptions.txt"), &text).expect("write descriptions.txt");
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    fs::read(RENDERER).unwrap_or_else(|e| panic!("read {RENDERER}: {e}")).hash(&mut hasher);
    println!("cargo::rustc-env=OPENAPI_HASH={:x}", hasher.finish());
}

/// Where cargo keeps the sources of k8s-openapi.
fn sources() -> PathBuf {
    let cargo = std::env::var_os("CARGO").expect("cargo sets CARGO");
    // Only this target's packages, and not --offline: on a fresh machine cargo has yet to fetch those of tests.
    let target = std::env::var("TARGET").expect("cargo sets TARGET");
    let words = ["metadata", "--format-version=1", "--locked", "--filter-platform", &target];
    let said = Command::new(cargo).args(words).output().expect("run cargo");
    assert!(said.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&said.stderr));
    let metadata: Value = serde_json::from_slice(&said.stdout).expect("cargo metadata prints JSON");
    let packages = metadata["packages"].as_array().expect("packages");
    let package = packages.iter().find(|p| p["name"] == "k8s-openapi").expect("the package k8s-openapi");
    let manifest = Path::new(package["manifest_path"].as_str().expect("a path"));
    manifest.parent().expect("a manifest lies in a folder").join("src")
}

fn visit(folder: &Path, definitions: &mut BTreeMap<String, BTreeMap<String, String>>) {
    let entries = fs::read_dir(folder).unwrap_or_else(|e| panic!("read {}: {e}", folder.display()));
    for path in entries.map(|entry| entry.expect("a folder's entry").path()) {
        if path.is_dir() {
            visit(&path, definitions);
            continue;
        }
        let source = fs::read_to_string(&path).unwrap_or_else(|e| panic!("read {}: {e}", path.display()));
        if let Some(name) = source.lines().next().and_then(|l| l.strip_prefix("// Generated from definition ")) {
            definitions.insert(name.to_owned(), descriptions(&source));
        }
    }
}

/// What the comments before a struct and its fields say, by the fields' names in JSON.
fn descriptions(source: &str) -> BTreeMap<String, String> {
    let mut found: BTreeMap<&str, String> = BTreeMap::new();
    let mut names: BTreeMap<&str, &str> = BTreeMap::new();
    let mut comment: Vec<String> = Vec::new();
    for line in source.lines().map(str::trim) {
        if let Some(text) = line.strip_prefix("///") {
            comment.push(plain(text.strip_prefix(' ').unwrap_or(text)));
        } else if line.starts_with("pub struct ") {
            found.entry("").or_insert_with(|| comment.join("\n"));
        } else if let Some((field, _)) = line.strip_prefix("pub ").and_then(|l| l.split_once(": ")) {
            found.insert(field, comment.join("\n"));
        } else if let Some((json, field)) = line.split_once(" => Field::Key_") {
            names.insert(field.trim_end_matches(','), json.trim_matches('"'));
        }
        if !line.starts_with("///") && !line.starts_with('#') {
            comment.clear();
        }
    }
    let named = found.into_iter().map(|(field, text)| (names.get(field).map_or("", |n| *n).to_owned(), text));
    named.filter(|(_, text)| !text.is_empty()).collect()
}

/// Without the escapes that keep rustdoc from taking brackets for links.
fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '\\' || !chars.peek().is_some_and(|next| "[]<>".contains(*next)) {
            out.push(c);
        }
    }
    out
}
