//! The CRI's own test suite against `bosun cri`: no spec may fail, and each that is skipped is listed here with its reason.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tests::bed::{checkout, output, programs, text};

/// Fewer than these passed mean that something kept the suite from running.
const LEAST: usize = 100;

/// What a spec says when it skips itself, on any machine.
const MAY_SKIP: &[Excuse] = &[Excuse {
    says: "AppArmor is disabled on this host",
    because: "this kernel has no AppArmor; a machine with it runs them",
}];

/// The same, where the runc is older than 1.2.
const MAY_SKIP_ON_OLD: &[Excuse] = &[Excuse {
    says: "no runtime handler found which supports user namespaces",
    because: "this runc maps no ids; critest-newest runs them",
}];

struct Excuse {
    says: &'static str,
    because: &'static str,
}

/// Debian's containerd and runc, and streams over WebSocket.
pub fn on_debian() {
    let flags = ["-websocket-exec", "-websocket-attach", "-websocket-portforward"];
    run("critest-debian", &[], &flags, &[MAY_SKIP, MAY_SKIP_ON_OLD]);
}

/// The newest containerd and runc, and streams over SPDY.
pub fn on_newest() {
    let programs = [("CONTAINERD", "containerd/containerd"), ("RUNC", "runc/runc")];
    run("critest-newest", &programs, &[], &[MAY_SKIP]);
}

/// `peers` are variables of hack/critest with the peer that each names.
fn run(case: &str, peers: &[(&str, &str)], flags: &[&str], excuses: &[&[Excuse]]) {
    if Command::new("go").arg("version").output().is_err() {
        println!("SKIPPED: {case}: go is not on PATH, and hack/peers needs it to build critest");
        return;
    }
    let built = output(checkout().join("hack/peers"), &["containerd", "runc", "cri"]);
    assert!(built.status.success(), "hack/peers: {}", text(&built.stderr));
    let reports = tempfile::tempdir().unwrap();
    let mut command = Command::new(checkout().join("hack/critest"));
    command.arg("--reports").arg(reports.path()).args(flags).env("BOSUN", programs());
    command.envs(peers.iter().map(|(variable, peer)| (variable, peers_folder().join(peer))));
    let ran = command.output().unwrap();
    assert!(ran.status.success(), "{}{}", text(&ran.stdout), text(&ran.stderr));
    let specs = Spec::all(&reports.path().join("report.json"));
    let passed = specs.iter().filter(|spec| spec.state == "passed").count();
    assert!(passed >= LEAST, "only {passed} specs passed: {}", text(&ran.stdout));
    println!("{case}: {passed} specs passed");
    for excuse in excuses.iter().copied().flatten() {
        let excused = specs.iter().filter(|spec| spec.is_excused_by(excuse)).count();
        if excused > 0 {
            println!("SKIPPED: {case}: {excused} specs: {}", excuse.because);
        }
    }
    if !Path::new("/sys/fs/selinux/enforce").exists() {
        println!("SKIPPED: {case}: this kernel has no SELinux, and critest then no specs for it");
    }
    let excused = |spec: &&Spec| excuses.iter().copied().flatten().any(|excuse| spec.is_excused_by(excuse));
    let others: Vec<String> = specs
        .iter()
        .filter(|spec| spec.state != "passed" && !excused(spec))
        .map(|spec| format!("{}: {}: {}", spec.state, spec.name, spec.message))
        .collect();
    assert!(others.is_empty(), "neither passed nor excused:\n{}", others.join("\n"));
}

fn peers_folder() -> PathBuf {
    std::env::var_os("BOSUN_PEERS").map_or_else(|| "/var/cache/bosun/peers".into(), PathBuf::from)
}

/// One spec of Ginkgo's report.
struct Spec {
    name: String,
    state: String,
    message: String,
}

impl Spec {
    /// Those that were chosen: benchmarks are not, and have no message.
    fn all(report: &Path) -> Vec<Self> {
        let report: Value = serde_json::from_slice(&std::fs::read(report).unwrap()).unwrap();
        let specs = report.as_array().into_iter().flatten().flat_map(|suite| suite["SpecReports"].as_array());
        let specs = specs.flatten().filter(|spec| spec["LeafNodeType"] == "It").map(Self::of);
        specs.filter(|spec| spec.state != "skipped" || !spec.message.is_empty()).collect()
    }

    fn of(spec: &Value) -> Self {
        let string = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let mut words: Vec<String> =
            spec["ContainerHierarchyTexts"].as_array().into_iter().flatten().map(string).collect();
        words.push(string(&spec["LeafNodeText"]));
        Self { name: words.join(" "), state: string(&spec["State"]), message: string(&spec["Failure"]["Message"]) }
    }

    fn is_excused_by(&self, excuse: &Excuse) -> bool {
        self.state == "skipped" && self.message == excuse.says
    }
}
