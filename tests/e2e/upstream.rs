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

/// What bosun's agent does and upstream's kubelet does not: a pod that waits for its config starts at once when it comes,
/// and a status tells of a back-off from its beginning. (A kubelet writes the status before it decides to hold off, and
/// looks again when the back-off is over.)
const OF_THE_AGENT: &[(&str, Story)] = &[("waiting", workloads::waiting), ("back-off", workloads::back_off)];

/// bosun's agent, CNI plugins and proxy, over containerd's own CRI plugin.
pub fn node() {
    tell("node", "bosun", [STORIES, OF_THE_AGENT].concat());
}

/// Upstream's kubelet and kube-proxy and the Go CNI plugins, over bosun's CRI server.
pub fn cri() {
    tell("cri", "cri", STORIES.to_vec());
}

fn tell(part: &str, kind: &'static str, stories: Vec<(&str, Story)>) {
    if Command::new("go").arg("version").output().is_err() {
        println!("SKIPPED: upstream-{part}: go is not on PATH, and hack/peers needs it to build the originals");
        return;
    }
    let built = output(checkout().join("hack/peers"), &["kubernetes", "etcd", "cni"]);
    assert!(built.status.success(), "hack/peers: {}", text(&built.stderr));
    let cluster = Cluster::upstream("e2e-upstream", kind);
    let cluster = &cluster;
    let names: Vec<String> = stories.iter().map(|(name, _)| format!("upstream-{part}-{name}")).collect();
    let told = names.iter().zip(&stories).map(|(name, (_, story))| {
        Case::new(name, move || story(&cluster.namespace(name.trim_start_matches("upstream-"))))
    });
    let failed = run(&told.collect::<Vec<_>>());
    assert!(failed.is_empty(), "{} of {} stories failed", failed.len(), stories.len());
}
