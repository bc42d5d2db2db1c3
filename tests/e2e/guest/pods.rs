//! Stories of pods on a node with cgroup v2 and crun.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use cri::v1::*;
use tests::bed::{output, text};

use super::node::{Configs, IMAGE, Node, own_pids};

pub const FOREVER: &str = "trap exit TERM; while :; do sleep 1; done";
pub const MB: i64 = 1 << 20;
/// Where the ids of a pod with a user namespace begin on the machine.
const FIRST_ID: u32 = 1_000_000;

pub async fn life(node: &Node) {
    let pod = node.run("life", &format!("echo begun; {FOREVER}"), |_| ()).await;
    let status = node.status(&pod).await;
    assert_eq!((status.state(), status.reason.as_str()), (ContainerState::ContainerRunning, ""));
    assert_eq!(node.exec(&pod, "hostname; echo $$").await.lines().next(), Some("life"));
    // Its own group is the root of what it sees.
    assert_eq!(node.exec(&pod, "cat /proc/self/cgroup").await, "0::/");
    let request = PodSandboxStatusRequest { pod_sandbox_id: pod.sandbox.clone(), verbose: false };
    let sandbox = node.runtime.clone().pod_sandbox_status(request).await.unwrap().into_inner().status.unwrap();
    assert_eq!(sandbox.state(), PodSandboxState::SandboxReady);
    let address = sandbox.network.unwrap().ip;
    assert!(address.starts_with("10.244.0."), "address {address}");
    assert!(node.exec(&pod, "ip -4 addr show eth0").await.contains(&address));
    let said = fs::read_to_string(Path::new(&pod.config.log_directory).join("main.log")).unwrap();
    assert!(said.trim_end().ends_with(" stdout F begun"), "log {said:?}");
    let request = StopContainerRequest { container_id: pod.container.clone(), timeout: 20 };
    node.runtime.clone().stop_container(request).await.unwrap();
    let status = node.ended(&pod).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (0, "Completed"));
    node.remove(pod).await;
}

pub async fn limits(node: &Node) {
    let limited = |configs: &mut Configs| {
        let resources = configs.resources();
        resources.memory_limit_in_bytes = 64 * MB;
        (resources.cpu_period, resources.cpu_quota, resources.cpu_shares) = (100_000, 20_000, 1024);
        resources.unified = HashMap::from([("pids.max".to_owned(), "40".to_owned())]);
    };
    let pod = node.run("limits", FOREVER, limited).await;
    assert_eq!(pod.reads("memory.max"), (64 * MB).to_string());
    assert_eq!(pod.reads("cpu.max"), "20000 100000");
    let weight = pod.reads("cpu.weight");
    assert_eq!(pod.reads("pids.max"), "40");
    let changed = LinuxContainerResources {
        memory_limit_in_bytes: 96 * MB,
        cpu_period: 100_000,
        cpu_quota: 50_000,
        cpu_shares: 2048,
        ..LinuxContainerResources::default()
    };
    let request = UpdateContainerResourcesRequest {
        container_id: pod.container.clone(),
        linux: Some(changed),
        ..UpdateContainerResourcesRequest::default()
    };
    node.runtime.clone().update_container_resources(request).await.unwrap();
    assert_eq!(pod.reads("memory.max"), (96 * MB).to_string());
    assert_eq!(pod.reads("cpu.max"), "50000 100000");
    let heavier = pod.reads("cpu.weight");
    assert!(heavier.parse::<u32>().unwrap() > weight.parse().unwrap(), "weight {weight}, then {heavier}");
    assert_eq!(pod.reads("pids.max"), "40", "an update of other limits keeps it");
    let told = node.status(&pod).await.resources.unwrap().linux.unwrap();
    assert_eq!((told.memory_limit_in_bytes, told.cpu_quota, told.cpu_shares), (96 * MB, 50_000, 2048));
    node.remove(pod).await;
}

pub async fn out_of_memory(node: &Node) {
    let small = |configs: &mut Configs| configs.resources().memory_limit_in_bytes = 16 * MB;
    let pod = node.run("oom", "exec tail /dev/zero", small).await;
    let status = node.ended(&pod).await;
    assert_eq!((status.reason.as_str(), status.exit_code), ("OOMKilled", 137));
    node.remove(pod).await;
    let pod = node.run("no-oom", "exit 3", small).await;
    let status = node.ended(&pod).await;
    assert_eq!((status.reason.as_str(), status.exit_code), ("Error", 3));
    node.remove(pod).await;
}

pub async fn stats(node: &Node) {
    // A process that computes, and one that has written to the container's files.
    let script = "cat /bin/busybox > /written; sync; sleep 1000 & while :; do :; done";
    let pod = node.run("stats", script, |configs| configs.resources().memory_limit_in_bytes = 64 * MB).await;
    let begun = Instant::now();
    let program = fs::metadata("/usr/bin/busybox").map_or(1, |file| file.len());
    // What is on the disk is counted only now and then.
    let is_told = |stats: &ContainerStats| {
        let cpu = stats.cpu.as_ref().and_then(|cpu| cpu.usage_core_nano_seconds.as_ref());
        let written = stats.writable_layer.as_ref().and_then(|layer| layer.used_bytes.as_ref());
        cpu.is_some_and(|usage| usage.value > 200_000_000) && written.is_some_and(|bytes| bytes.value >= program)
    };
    let stats = loop {
        let request = ContainerStatsRequest { container_id: pod.container.clone() };
        let stats = node.runtime.clone().container_stats(request).await.unwrap().into_inner().stats.unwrap();
        if is_told(&stats) {
            break stats;
        }
        assert!(begun.elapsed() < Duration::from_secs(30), "it computes and has written, and yet: {stats:?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    let memory = stats.memory.unwrap();
    let value = |value: Option<UInt64Value>| value.unwrap().value;
    let (set, limit) = (value(memory.working_set_bytes), 64 << 20);
    assert!(set > 0 && set < limit, "working set {set}");
    assert!(value(memory.available_bytes) <= limit - set);
    assert!(value(memory.usage_bytes) >= set);
    let request = PodSandboxStatsRequest { pod_sandbox_id: pod.sandbox.clone() };
    let of_pod = node.runtime.clone().pod_sandbox_stats(request).await.unwrap().into_inner().stats.unwrap();
    let of_pod = of_pod.linux.unwrap();
    assert_eq!(value(of_pod.process.unwrap().process_count), 2);
    assert_eq!(of_pod.network.unwrap().default_interface.unwrap().name, "eth0");
    assert_eq!(of_pod.containers.len(), 1);
    node.remove(pod).await;
}

/// A pod with a user namespace: files have the owners that the pod expects, whoever owns them on the machine.
pub async fn users(node: &Node) {
    let volume = Path::new("/mnt/volume");
    fs::create_dir_all(volume).unwrap();
    fs::write(volume.join("of-root"), "x").unwrap();
    let (ids, own) = own_users();
    let mount = Mount {
        container_path: "/volume".into(),
        host_path: volume.display().to_string(),
        uid_mappings: ids.clone(),
        gid_mappings: ids.clone(),
        ..Mount::default()
    };
    let image = Mount {
        container_path: "/image".into(),
        image: Some(ImageSpec { image: IMAGE.into(), ..ImageSpec::default() }),
        readonly: true,
        uid_mappings: ids.clone(),
        gid_mappings: ids,
        ..Mount::default()
    };
    let part = Mount { container_path: "/part".into(), image_sub_path: "bin".into(), ..image.clone() };
    let change = |configs: &mut Configs| {
        configs.namespaces(&NamespaceOption { userns_options: Some(own.clone()), ..own_pids() });
        configs.container.mounts.extend([mount.clone(), image.clone(), part.clone()]);
    };
    let pod = node
        .run("users", &format!("touch /made /volume/made; echo > /dev/stderr && touch /told; {FOREVER}"), change)
        .await;
    let expected = format!("0 {FIRST_ID} 65536");
    let map = node.exec(&pod, "cat /proc/self/uid_map").await;
    assert_eq!(map.split_whitespace().collect::<Vec<_>>().join(" "), expected);
    for file in ["/", "/bin/busybox", "/made", "/told", "/volume/of-root", "/volume/made", "/etc/hosts", "/dev/shm"] {
        assert_eq!(node.exec(&pod, &format!("stat -c %u:%g {file}")).await, "0:0", "{file} in the pod");
    }
    for file in ["/image", "/image/bin/busybox", "/part/busybox"] {
        assert_eq!(node.exec(&pod, &format!("stat -c %u:%g {file}")).await, "0:0", "{file} of an image volume");
    }
    assert_eq!(node.exec(&pod, "/part/busybox echo runs; touch /image/made || echo fixed").await, "runs\nfixed");
    let process = fs::metadata(format!("/proc/{}", pod.pid())).unwrap();
    assert_eq!((process.uid(), process.gid()), (FIRST_ID, FIRST_ID));
    let made = fs::metadata(volume.join("made")).unwrap();
    assert_eq!((made.uid(), made.gid()), (0, 0), "in a volume whose mount maps owners");
    // What it writes elsewhere is its own on the machine too.
    let outside = fs::metadata(format!("/proc/{}/root/made", pod.pid())).unwrap();
    assert_eq!((outside.uid(), outside.gid()), (FIRST_ID, FIRST_ID));
    let address = node.exec(&pod, "ip -4 addr show eth0").await;
    assert!(address.contains("10.244.0."), "{address}");
    node.remove(pod).await;
}

/// What a pod with a user namespace asks for.
pub fn own_users() -> (Vec<IdMapping>, UserNamespace) {
    let ids = vec![IdMapping { host_id: FIRST_ID, container_id: 0, length: 65_536 }];
    let own = UserNamespace { mode: NamespaceMode::Pod.into(), uids: ids.clone(), gids: ids.clone() };
    (ids, own)
}

/// After all the pods are gone.
pub async fn nothing_left(node: &Node) {
    let pods = node.runtime.clone().list_pod_sandbox(ListPodSandboxRequest::default()).await.unwrap();
    assert_eq!(pods.into_inner().items, []);
    for (what, words) in [("tasks", ["task", "ls", "-q"]), ("containers", ["container", "ls", "-q"])] {
        let listed = output("ctr", &[&["-n", "k8s.io"], words.as_slice()].concat());
        assert_eq!(text(&listed.stdout), "", "containerd's {what}");
    }
    let snapshots = text(&output("ctr", &["-n", "k8s.io", "snapshot", "ls"]).stdout);
    let active: Vec<&str> = snapshots.lines().filter(|line| !line.contains("Committed")).skip(1).collect();
    assert_eq!(active, [""; 0], "snapshots of containers");
    for folder in ["/run/bosun-cri/sandboxes", "/run/bosun-cri/containers", "/mnt/cri/sandboxes", "/mnt/cri/containers"]
    {
        let left: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert_eq!(left, [""; 0].map(Path::new), "in {folder}");
    }
    let groups = fs::read_dir(node.driver.groups()).unwrap().map(|entry| entry.unwrap().path());
    assert_eq!(groups.filter(|path| path.is_dir()).count(), 0, "control groups");
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let left: Vec<&str> =
        mounts.lines().filter(|line| line.contains("nsfs") || line.contains("/run/bosun-cri/")).collect();
    assert_eq!(left, [""; 0], "mounts");
    let processes = text(&output("ps", &["-e", "-o", "args"]).stdout);
    let shims: Vec<&str> = processes.lines().filter(|line| line.contains("containerd-shim")).collect();
    assert_eq!(shims, [""; 0], "shims");
    let links = text(&output("ip", &["-o", "link", "show", "type", "veth"]).stdout);
    assert_eq!(links, "", "pairs of the pod network");
}
