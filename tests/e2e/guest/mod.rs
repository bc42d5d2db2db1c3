//! On a machine of its own with cgroup v2, crun and, if need be, systemd and a security module, which this one may not
//! have: `bosun cri` over containerd.
//!
//! This program starts itself again in there.

mod apparmor;
mod node;
mod pods;
mod selinux;
mod systemd;

use std::process::{Command, ExitCode};

use node::{Driver, Node};
use tests::bed::{bosun, checkout, output, text};
use tests::runner::{Case, run, verdict};

/// Says that this process is the one inside, and on which machine.
const INSIDE: &str = "BOSUN_TEST_GUEST";

#[derive(Clone, Copy, Debug, PartialEq)]
enum Machine {
    Plain,
    Systemd,
    Selinux,
}

impl Machine {
    const ALL: [Self; 3] = [Self::Plain, Self::Systemd, Self::Selinux];

    fn of(word: &str) -> Self {
        Self::ALL.into_iter().find(|machine| format!("{machine:?}") == word).unwrap()
    }

    fn flags(self) -> &'static [&'static str] {
        match self {
            Self::Plain => &[],
            Self::Systemd => &["--systemd", "--lsm", "apparmor"],
            Self::Selinux => &["--lsm", "selinux"],
        }
    }

    fn driver(self) -> Driver {
        if self == Self::Systemd { Driver::Systemd } else { Driver::Cgroupfs }
    }
}

pub fn is_here() -> bool {
    std::env::var_os(INSIDE).is_some()
}

pub fn cri_cgroup2() {
    in_guest("cri-cgroup2", Machine::Plain);
}

pub fn cri_systemd() {
    in_guest("cri-systemd", Machine::Systemd);
}

pub fn cri_selinux() {
    in_guest("cri-selinux", Machine::Selinux);
}

fn in_guest(case: &str, machine: Machine) {
    if !kernel::process::has_capability(21).unwrap_or(false) {
        return println!("SKIPPED: {case}: needs root");
    }
    let installed = output(checkout().join("hack/packages"), &["node", "test", "uml"]);
    if !installed.status.success() {
        return println!("SKIPPED: {case}: no machine with cgroup v2: {}", text(&installed.stderr).trim());
    }
    assert!(bosun().exists());
    let this = std::env::current_exe().unwrap();
    let mut guest = Command::new(checkout().join("hack/uml"));
    guest.args(["--limit", "400"]).args(machine.flags()).arg(this).env(INSIDE, format!("{machine:?}"));
    let status = guest.status().unwrap();
    assert!(status.success(), "in the guest: {status}");
}

/// The stories that are told in the guest, on one node.
pub fn inside() -> ExitCode {
    let machine = Machine::of(&std::env::var(INSIDE).unwrap());
    if machine == Machine::Selinux {
        selinux::enforce();
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let node = runtime.block_on(Node::start(machine.driver()));
    let failed = run(&stories(machine, &node, &runtime));
    if !failed.is_empty() {
        node.tell();
    }
    verdict(&failed)
}

fn stories<'a>(machine: Machine, node: &'a Node, runtime: &'a tokio::runtime::Runtime) -> Vec<Case<'a>> {
    macro_rules! case {
        ($name:literal, $story:path) => {
            Case::new($name, || runtime.block_on($story(node)))
        };
    }
    match machine {
        Machine::Plain => vec![
            case!("cri-cgroup2-life", pods::life),
            case!("cri-cgroup2-limits", pods::limits),
            case!("cri-cgroup2-oom", pods::out_of_memory),
            case!("cri-cgroup2-stats", pods::stats),
            case!("cri-cgroup2-users", pods::users),
            case!("cri-cgroup2-nothing-left", pods::nothing_left),
        ],
        Machine::Selinux => vec![
            case!("cri-selinux-labels", selinux::labels),
            case!("cri-selinux-levels", selinux::levels),
            case!("cri-selinux-volumes", selinux::volumes),
            case!("cri-selinux-namespaces", selinux::namespaces),
            case!("cri-selinux-users", selinux::users),
            case!("cri-selinux-nothing-left", pods::nothing_left),
        ],
        Machine::Systemd => vec![
            case!("cri-systemd-life", pods::life),
            case!("cri-systemd-limits", pods::limits),
            case!("cri-systemd-oom", pods::out_of_memory),
            case!("cri-systemd-stats", pods::stats),
            case!("cri-systemd-users", pods::users),
            case!("cri-systemd-scopes", systemd::scopes),
            case!("cri-systemd-parents", systemd::parents),
            case!("cri-systemd-apparmor", apparmor::profiles),
            case!("cri-systemd-nothing-left", pods::nothing_left),
            case!("cri-systemd-no-unit-left", systemd::no_unit_left),
        ],
    }
}
