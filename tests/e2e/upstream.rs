//! The parts against the originals: upstream's control plane, and on its node some of bosun's parts.

use std::process::Command;

use tests::bed::{Cluster, checkout, output, text};
use tests::runner::{Case, run};

use crate::{Story, services, streams, workloads};

/// What the node has a part in, of the story that bosun's own control plane tells too.
const STORIES: &[(&str, Story)] = &[
    ("rollout", workloads::rollout),
    ("scale", workloads::scale),
    ("restarts", workloads::restarts),
    ("missing-image", workloads::missing_image),
    ("waiting", workloads::waiting),
    ("deadline", workloads::deadline),
    ("host-port", services::host_port),
    ("logs", streams::logs),
    ("exec", streams::exec),
    ("resize", streams::resize),
    ("attach", streams::attach),
    ("copy", streams::copy),
    ("port-forward", streams::port_forward),
    ("over-spdy", streams::over_spdy),
    ("reach", services::reach),
    ("readiness", services::readiness),
];

/// bosun's agent, CNI plugins and proxy, over containerd's own CRI plugin.
pub fn node() {
    tell("node", "bosun");
}

/// Upstream's kubelet and kube-proxy and the Go CNI plugins, over bosun's CRI server.
pub fn cri() {
    tell("cri", "cri");
}

fn tell(part: &str, kind: &'static str) {
    if Command::new("go").arg("version").output().is_err() {
        println!("SKIPPED: upstream-{part}: go is not on PATH, and hack/peers needs it to build the originals");
        return;
    }
    let built = output(checkout().join("hack/peers"), &["kubernetes", "etcd", "cni"]);
    assert!(built.status.success(), "hack/peers: {}", text(&built.stderr));
    let cluster = Cluster::upstream("e2e-upstream", kind);
    let cluster = &cluster;
    let names: Vec<String> = STORIES.iter().map(|(name, _)| format!("upstream-{part}-{name}")).collect();
    let stories = names.iter().zip(STORIES);
    let told = stories.map(|(name, (_, story))| {
        Case::new(name, move || story(&cluster.namespace(name.trim_start_matches("upstream-"))))
    });
    let failed = run(&told.collect::<Vec<_>>());
    assert!(failed.is_empty(), "{} of {} stories failed", failed.len(), STORIES.len());
}
