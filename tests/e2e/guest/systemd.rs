//! Stories of pods whose control groups systemd makes.

use std::path::Path;

use cri::v1::*;
use tests::bed::{output, text};

use super::node::{Configs, Node, configs};
use super::pods::{FOREVER, MB};

/// A container is a scope in its pod's slice, named as containerd's own plugin names it, and what it is limited to outlasts
/// a reload of systemd, which writes the limits that it knows.
pub async fn scopes(node: &Node) {
    let request = RuntimeConfigRequest::default();
    let told = node.runtime.clone().runtime_config(request).await.unwrap().into_inner().linux.unwrap();
    assert_eq!(told.cgroup_driver(), CgroupDriver::Systemd);
    for handler in ["crun", "runc"] {
        let limited = |configs: &mut Configs| {
            configs.handler = handler;
            let resources = configs.resources();
            resources.memory_limit_in_bytes = 64 * MB;
            (resources.cpu_period, resources.cpu_quota) = (100_000, 20_000);
        };
        let pod = node.run(&format!("scope-{handler}"), FOREVER, limited).await;
        let unit = format!("cri-containerd-{}.scope", pod.container);
        let slice = format!("pods-scope_{handler}.slice");
        assert_eq!(shown(&unit, "Slice"), slice);
        assert_eq!(shown(&unit, "ControlGroup"), format!("/pods.slice/{slice}/{unit}"));
        let resources =
            LinuxContainerResources { memory_limit_in_bytes: 96 * MB, cpu_quota: 50_000, ..Default::default() };
        let request = UpdateContainerResourcesRequest {
            container_id: pod.container.clone(),
            linux: Some(resources),
            ..UpdateContainerResourcesRequest::default()
        };
        node.runtime.clone().update_container_resources(request).await.unwrap();
        systemctl(&["daemon-reload"]);
        assert_eq!((pod.reads("memory.max"), pod.reads("cpu.max")), ((96 * MB).to_string(), "50000 100000".to_owned()));
        let request = StopPodSandboxRequest { pod_sandbox_id: pod.sandbox.clone() };
        node.runtime.clone().stop_pod_sandbox(request).await.unwrap();
        assert_eq!(shown(&unit, "LoadState"), "not-found", "{unit} after its pod");
        assert!(!pod.group.exists(), "{} after its pod", pod.group.display());
        node.remove(pod).await;
    }
}

/// A slice may be named without those it lies in, or not at all; what is no slice is refused before anything is made.
pub async fn parents(node: &Node) {
    let with = |name: &str, parent: &str| {
        let mut configs = configs(name, FOREVER, node.driver);
        configs.pod.linux.as_mut().unwrap().cgroup_parent = parent.to_owned();
        configs
    };
    for (name, parent, slice) in
        [("short", "pods-short.slice", "pods.slice/pods-short.slice"), ("none", "", "system.slice")]
    {
        let configs = with(name, parent);
        let sandbox = node.sandbox(&configs).await.unwrap();
        let container_id = node.container(&sandbox, &configs).await.unwrap();
        let request = StartContainerRequest { container_id: container_id.clone() };
        node.runtime.clone().start_container(request).await.unwrap();
        let group = format!("/sys/fs/cgroup/{slice}/cri-containerd-{container_id}.scope");
        assert!(Path::new(&group).exists(), "{group}");
        node.remove_sandbox(sandbox).await;
        assert!(!Path::new(&group).exists(), "{group} after its pod");
    }
    systemctl(&["stop", "pods-short.slice"]);
    let refused = node.sandbox(&with("folder", "/pods/folder")).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::InvalidArgument);
    assert!(refused.message().contains("/pods/folder") && refused.message().contains(".slice"), "{refused}");
}

/// No scope outlives its container, not as a failed one either.
pub async fn no_unit_left(_: &Node) {
    let units = output("systemctl", &["list-units", "--all", "--plain", "--no-legend", "cri-containerd-*", "pods-*"]);
    assert_eq!(text(&units.stdout), "", "units");
}

fn shown(unit: &str, property: &str) -> String {
    text(&output("systemctl", &["show", "--value", "--property", property, unit]).stdout).trim().to_owned()
}

fn systemctl(words: &[&str]) {
    let done = output("systemctl", words);
    assert!(done.status.success(), "systemctl {words:?}: {}", text(&done.stderr));
}
