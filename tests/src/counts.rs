//! How much of each kind is on a node: what pods leave behind makes a number grow.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::bed::{Cluster, text};

/// A number for each kind.
pub type Counts = BTreeMap<String, usize>;

/// What the kernel and the plugins have on a node. Neighbours on its own link are others' doing.
///
/// # Panics
/// Where the node does not run.
pub fn of_node(cluster: &Cluster, node: &str) -> Counts {
    let lines = |words: &[&str]| -> Vec<String> {
        text(&cluster.inside_of(node, words).stdout).lines().map(str::to_owned).collect()
    };
    let mut counts = ruleset(&cluster.inside_of(node, &["nft", "-j", "list", "ruleset"]).stdout);
    let mut add = |kind: &str, count: usize| counts.insert(kind.to_owned(), count);
    add("links", lines(&["ip", "-o", "link"]).len());
    add("IPv4 routes", lines(&["ip", "-o", "route", "show", "table", "all"]).len());
    add("IPv6 routes", lines(&["ip", "-6", "-o", "route", "show", "table", "all"]).len());
    let neighbours = lines(&["ip", "-o", "neigh", "show", "nud", "all"]);
    add(
        "neighbours",
        neighbours.iter().filter(|line| !line.contains(" dev eth0 ") && !line.contains(" dev lo ")).count(),
    );
    let root = format!("/proc/{}/root", cluster.init_of(node));
    let entries = |path: &str| fs::read_dir(Path::new(&root).join(path)).into_iter().flatten().count();
    add("reservations", entries("var/lib/cni/networks/bosun"));
    add("attachments held", entries("var/lib/cni/networks/bosun/held"));
    add("CNI results", entries("var/lib/cni/results"));
    add("links told to net", entries("run/bosun/net/links"));
    let mounts = fs::read_to_string(format!("/proc/{}/mounts", cluster.init_of(node))).expect("the node runs");
    add("mounts", mounts.lines().count());
    add("pinned namespaces", mounts.lines().filter(|line| line.starts_with("nsfs ")).count());
    counts
}

/// What `nft -j list ruleset` says, counted.
fn ruleset(json: &[u8]) -> Counts {
    let listed: Value = serde_json::from_slice(json).unwrap_or_default();
    let mut counts = Counts::new();
    for object in listed["nftables"].as_array().into_iter().flatten() {
        for (kind, what) in object.as_object().into_iter().flatten().filter(|(kind, _)| *kind != "metainfo") {
            let table = what["table"].as_str().or(what["name"].as_str()).unwrap_or_default();
            let place = format!("{} {table}", what["family"].as_str().unwrap_or_default());
            *counts.entry(format!("nft {kind}s of {place}")).or_default() += 1;
            let elements = what["elem"].as_array().map_or(0, Vec::len);
            if elements > 0 {
                *counts.entry(format!("nft elements of {place}")).or_default() += elements;
            }
        }
    }
    counts
}

/// Flows that the node tracks to or from pod addresses that no pod has, of a protocol as conntrack names it.
pub fn foreign_flows(cluster: &Cluster, node: &str, protocol: &str, addresses: &BTreeSet<String>) -> Vec<String> {
    let listed = text(&cluster.inside_of(node, &["conntrack", "-L", "-p", protocol]).stdout);
    let is_foreign = |line: &&str| {
        let named = line.split_whitespace().filter_map(|word| word.split_once('='));
        let mut pods = named.map(|(_, address)| address).filter(|address| address.starts_with("10.244."));
        // A range's first address is the node's own, where it has a tunnel.
        pods.any(|address| !addresses.contains(address) && !address.ends_with(".0"))
    };
    listed.lines().filter(is_foreign).map(str::to_owned).collect()
}

/// Open files, and memory in kB as the kernel divides it among those who share it. `None` where the process has ended.
pub fn of_process(pid: u32) -> Option<(usize, usize)> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let pss = rollup.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    let files = fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count();
    Some((files, pss.trim().strip_suffix(" kB")?.parse().ok()?))
}
