//! End to end: the command, real nodes, an unmodified kubectl.
//!
//! `cargo test -p tests` runs all; a word after `--` selects cases whose names contain it. BOSUN_BIN names the folder of
//! the programs under test, BOSUN_CLUSTER a running cluster to use for the cases that share one.

// A case fails by panicking: its unwraps are its checks.
#![allow(clippy::unwrap_used)]

mod churn;
mod cluster;
mod controllers;
mod critest;
mod dual_stack;
mod guest;
mod layers;
mod load;
mod nodes;
mod objects;
mod policies;
mod proxy;
mod registry;
mod routes;
mod services;
mod several_nodes;
mod soak;
mod streams;
mod top_of_rack;
mod upstream;
mod workloads;

use std::process::ExitCode;

use tests::bed::{Cluster, Kubectl};
use tests::runner::{Case, is_selected, run, verdict};

type Story = fn(&Kubectl<'_>);

/// Cases on one cluster, each in a namespace of its own, which is called like it.
const SHARED: &[(&str, Story)] = &[
    ("objects-read", objects::read),
    ("objects-write", objects::write),
    ("objects-patch", objects::patch),
    ("objects-watch", objects::watch),
    ("objects-delete", objects::delete),
    ("objects-explain", objects::explain),
    ("objects-tokens", objects::tokens),
    ("objects-network-policy", objects::network_policy),
    ("objects-bad-input", objects::bad_input),
    ("workloads-rollout", workloads::rollout),
    ("workloads-scale", workloads::scale),
    ("workloads-restarts", workloads::restarts),
    ("workloads-back-off", workloads::back_off),
    ("workloads-overwritten", workloads::overwritten),
    ("workloads-missing-image", workloads::missing_image),
    ("controllers-cascade", controllers::cascade),
    ("controllers-deployment", controllers::deployment_modes),
    ("controllers-namespace", controllers::namespace),
    ("controllers-endpoints", controllers::endpoints),
    ("workloads-waiting", workloads::waiting),
    ("workloads-deadline", workloads::deadline),
    ("streams-logs", streams::logs),
    ("streams-exec", streams::exec),
    ("streams-resize", streams::resize),
    ("streams-attach", streams::attach),
    ("streams-copy", streams::copy),
    ("streams-port-forward", streams::port_forward),
    ("streams-over-spdy", streams::over_spdy),
    ("services-reach", services::reach),
    ("services-readiness", services::readiness),
    ("services-affinity", services::affinity_and_refusal),
    ("services-udp", services::udp),
    ("services-proxy-restart", services::proxy_restart),
    ("services-host-port", services::host_port),
    ("policies-trace", policies::trace_says_why),
    ("nodes-schedule", nodes::schedule),
    ("nodes-taint", nodes::taint),
    ("nodes-drain", nodes::drain),
    ("nodes-agent-restart", nodes::agent_restart),
    ("nodes-comes-back", nodes::comes_back),
    ("nodes-net-gone", nodes::net_gone),
    ("registry-pull", registry::pull),
    ("registry-private", registry::private),
    ("registry-load", registry::load),
];

/// The same on a cluster of three nodes, in this order.
const SEVERAL: &[(&str, Story)] = &[
    ("several-ready", several_nodes::ready),
    ("several-reach", several_nodes::reach),
    ("several-streams", several_nodes::streams),
    ("several-policies", policies::trace_says_why),
    ("several-images", several_nodes::images),
    ("several-drain", several_nodes::drain),
    ("several-agent-killed", several_nodes::agent_killed),
    ("routes-modes", routes::modes),
    ("routes-killed", routes::killed),
    ("load-killed", load::killed),
    ("load-proxy-restarted", load::proxy_restarted),
    ("routes-repaired", routes::repaired),
    ("routes-followed", routes::followed),
    ("routes-bad-config", routes::bad_config),
    ("churn-pods", churn::pods),
    ("several-reboot", several_nodes::reboot),
    ("several-power-cut", several_nodes::power_cut),
    ("several-at-rest", several_nodes::at_rest),
];

/// Cases that make clusters of their own, or none.
const ALONE: &[(&str, fn())] = &[
    ("layers", layers::no_edge_points_up),
    ("cluster-bad-input", cluster::bad_input),
    ("cluster-up-down", cluster::up_and_down_leave_nothing),
    ("cluster-two", cluster::two_beside_each_other),
    ("cluster-egress", cluster::egress_comes_and_goes),
    ("cluster-containerd-cri", cluster::containerds_own_cri),
    ("cluster-resume", cluster::power_cut),
    ("registry-config", registry::by_configuration),
    ("cluster-snapshot", objects::snapshot),
    ("cluster-racks", several_nodes::racks),
    ("cluster-dual-stack", dual_stack::cluster),
    ("bgp-racks", top_of_rack::racks),
    ("cluster-killed", cluster::killed_in_the_middle),
    ("soak-killed", soak::killed),
    ("critest-debian", critest::on_debian),
    ("critest-newest", critest::on_newest),
    ("upstream-node", upstream::node),
    ("upstream-cri", upstream::cri),
    ("cri-cgroup2", guest::cri_cgroup2),
    ("cri-systemd", guest::cri_systemd),
    ("cri-selinux", guest::cri_selinux),
    ("proxy-nftables", proxy::nftables),
    ("proxy-iptables-nft", proxy::iptables_nft),
    ("proxy-iptables-legacy", proxy::iptables_legacy),
    ("proxy-pod-detection", proxy::pod_detection),
    ("proxy-ipvs-host", proxy::ipvs_host),
    ("proxy-ipvs", proxy::ipvs),
];

fn main() -> ExitCode {
    if guest::is_here() {
        return guest::inside();
    }
    if proxy::is_guest() {
        return proxy::inside();
    }
    let alone: Vec<Case<'_>> = ALONE.iter().map(|(name, story)| Case::new(name, story)).collect();
    let mut failed = run(&alone);
    failed.extend(on_one_cluster(SHARED, || Cluster::shared("e2e", &[])));
    failed.extend(on_one_cluster(SEVERAL, || Cluster::up("several", several_nodes::FLAGS)));
    verdict(&failed)
}

/// Runs those of the cases that are selected on one cluster; the names of those that failed.
fn on_one_cluster(cases: &[(&str, Story)], make: fn() -> Cluster) -> Vec<String> {
    if !cases.iter().any(|(name, _)| is_selected(name)) {
        return Vec::new();
    }
    let cluster = make();
    let cases: Vec<Case<'_>> = cases
        .iter()
        .map(|(name, story)| {
            let cluster = &cluster;
            Case::new(name, move || story(&cluster.namespace(name)))
        })
        .collect();
    let failed = run(&cases);
    drop(cases);
    if !failed.is_empty() && std::env::var_os("BOSUN_KEEP").is_some() {
        println!("BOSUN_KEEP: cluster {} stays", cluster.name);
        std::mem::forget(cluster);
    }
    failed
}
