//! On a machine of its own with cgroup v2 and crun, which this one may not have: `bosun cri` over containerd.
//!
//! This program starts itself again in there.

mod node;
mod pods;

use std::process::{Command, ExitCode};

use tests::bed::{bosun, checkout, output, text};
use tests::runner::{Case, run, verdict};

/// Says that this process is the one inside.
const INSIDE: &str = "BOSUN_TEST_GUEST";

pub fn is_here() -> bool {
    std::env::var_os(INSIDE).is_some()
}

pub fn cri_cgroup2() {
    if !kernel::process::has_capability(21).unwrap_or(false) {
        return println!("SKIPPED: cri-cgroup2: needs root");
    }
    let installed = output(checkout().join("hack/packages"), &["node", "test", "uml"]);
    if !installed.status.success() {
        return println!("SKIPPED: cri-cgroup2: no machine with cgroup v2: {}", text(&installed.stderr).trim());
    }
    assert!(bosun().exists());
    let this = std::env::current_exe().unwrap();
    let mut guest = Command::new(checkout().join("hack/uml"));
    guest.args(["--limit", "400"]).arg(this).env(INSIDE, "1");
    let status = guest.status().unwrap();
    assert!(status.success(), "in the guest: {status}");
}

/// The stories that are told in the guest, on one node.
pub fn inside() -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let node = runtime.block_on(node::Node::start());
    let (node, runtime) = (&node, &runtime);
    let cases = [
        Case::new("cri-cgroup2-life", || runtime.block_on(pods::life(node))),
        Case::new("cri-cgroup2-limits", || runtime.block_on(pods::limits(node))),
        Case::new("cri-cgroup2-oom", || runtime.block_on(pods::out_of_memory(node))),
        Case::new("cri-cgroup2-stats", || runtime.block_on(pods::stats(node))),
        Case::new("cri-cgroup2-users", || runtime.block_on(pods::users(node))),
        Case::new("cri-cgroup2-nothing-left", || runtime.block_on(pods::nothing_left(node))),
    ];
    let failed = run(&cases);
    if !failed.is_empty() {
        node.tell();
    }
    verdict(&failed)
}
