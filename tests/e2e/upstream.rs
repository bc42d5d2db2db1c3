//! The parts against the originals: upstream's control plane, and as its node bosun's agent, CNI plugins and proxy.

use std::process::Command;

use tests::bed::{Cluster, checkout, output, text};
use tests::runner::{Case, run};

use crate::{Story, services, streams, workloads};

/// What the node has a part in, of the story that bosun's own control plane tells too.
const STORIES: &[(&str, Story)] = &[
    ("upstream-node-rollout", workloads::rollout),
    ("upstream-node-scale", workloads::scale),
    ("upstream-node-restarts", workloads::restarts),
    ("upstream-node-missing-image", workloads::missing_image),
    ("upstream-node-waiting", workloads::waiting),
    ("upstream-node-deadline", workloads::deadline),
    ("upstream-node-host-port", services::host_port),
    ("upstream-node-logs", streams::logs),
    ("upstream-node-exec", streams::exec),
    ("upstream-node-resize", streams::resize),
    ("upstream-node-attach", streams::attach),
    ("upstream-node-copy", streams::copy),
    ("upstream-node-port-forward", streams::port_forward),
    ("upstream-node-over-spdy", streams::over_spdy),
    ("upstream-node-reach", services::reach),
    ("upstream-node-readiness", services::readiness),
];

pub fn node() {
    if Command::new("go").arg("version").output().is_err() {
        println!("SKIPPED: upstream-node: go is not on PATH, and hack/peers needs it to build the originals");
        return;
    }
    let built = output(checkout().join("hack/peers"), &["kubernetes", "etcd", "cni"]);
    assert!(built.status.success(), "hack/peers: {}", text(&built.stderr));
    let cluster = Cluster::upstream("e2e-upstream");
    let cluster = &cluster;
    let told = |name: &'static str, story: Story| {
        Case::new(name, move || story(&cluster.namespace(name.trim_start_matches("upstream-"))))
    };
    let failed = run(&STORIES.iter().map(|(name, story)| told(name, *story)).collect::<Vec<_>>());
    assert!(failed.is_empty(), "{} of {} stories failed", failed.len(), STORIES.len());
}
