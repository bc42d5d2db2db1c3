//! Pods and containers from run to remove.

use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, Instant};

use cri::v1::*;
use tonic::Code;

use cri_shim::container::exec_sync::RESPONSE;

use super::bed::{IMAGE, Node, Served, cgroup, on_a_node, until};

pub fn pod(name: &str, logs: &Path) -> PodSandboxConfig {
    PodSandboxConfig {
        metadata: Some(PodSandboxMetadata {
            name: name.into(),
            namespace: "default".into(),
            uid: format!("uid-{name}"),
            attempt: 0,
        }),
        hostname: format!("{name}-host"),
        log_directory: logs.join(name).display().to_string(),
        dns_config: Some(DnsConfig { servers: vec!["10.96.0.10".into()], ..DnsConfig::default() }),
        labels: HashMap::from([("app".to_owned(), name.to_owned())]),
        linux: Some(LinuxPodSandboxConfig {
            cgroup_parent: format!("{}/{name}", cgroup(logs)),
            security_context: Some(LinuxSandboxSecurityContext {
                namespace_options: Some(NamespaceOption {
                    pid: NamespaceMode::Container.into(),
                    ..NamespaceOption::default()
                }),
                ..LinuxSandboxSecurityContext::default()
            }),
            ..LinuxPodSandboxConfig::default()
        }),
        ..PodSandboxConfig::default()
    }
}

pub fn container(name: &str, script: &str) -> ContainerConfig {
    ContainerConfig {
        metadata: Some(ContainerMetadata { name: name.into(), attempt: 0 }),
        image: Some(ImageSpec { image: IMAGE.into(), ..ImageSpec::default() }),
        command: vec!["sh".into(), "-c".into(), script.into()],
        log_path: format!("{name}.log"),
        linux: Some(LinuxContainerConfig {
            security_context: Some(LinuxContainerSecurityContext {
                namespace_options: Some(NamespaceOption {
                    pid: NamespaceMode::Container.into(),
                    ..NamespaceOption::default()
                }),
                ..LinuxContainerSecurityContext::default()
            }),
            ..LinuxContainerConfig::default()
        }),
        ..ContainerConfig::default()
    }
}

impl Served {
    pub async fn run(&mut self, config: &PodSandboxConfig) -> String {
        let request = RunPodSandboxRequest { config: Some(config.clone()), ..RunPodSandboxRequest::default() };
        self.runtime.run_pod_sandbox(request).await.unwrap().into_inner().pod_sandbox_id
    }

    pub async fn create(&mut self, sandbox: &str, config: &ContainerConfig) -> String {
        let request = CreateContainerRequest {
            pod_sandbox_id: sandbox.into(),
            config: Some(config.clone()),
            ..CreateContainerRequest::default()
        };
        self.runtime.create_container(request).await.unwrap().into_inner().container_id
    }

    pub async fn start(&mut self, id: &str) {
        self.runtime.start_container(StartContainerRequest { container_id: id.into() }).await.unwrap();
    }

    pub async fn status(&mut self, id: &str) -> ContainerStatus {
        let request = ContainerStatusRequest { container_id: id.into(), verbose: false };
        self.runtime.container_status(request).await.unwrap().into_inner().status.unwrap()
    }

    pub async fn sandbox(&mut self, id: &str) -> PodSandboxStatus {
        let request = PodSandboxStatusRequest { pod_sandbox_id: id.into(), verbose: false };
        self.runtime.pod_sandbox_status(request).await.unwrap().into_inner().status.unwrap()
    }

    pub async fn exec(&mut self, id: &str, script: &str, timeout: i64) -> Result<ExecSyncResponse, tonic::Status> {
        let cmd = vec!["sh".into(), "-c".into(), script.into()];
        let request = ExecSyncRequest { container_id: id.into(), cmd, timeout };
        self.runtime.exec_sync(request).await.map(tonic::Response::into_inner)
    }

    pub async fn ended(&mut self, id: &str) -> ContainerStatus {
        let begun = Instant::now();
        loop {
            let status = self.status(id).await;
            if status.state() == ContainerState::ContainerExited {
                return status;
            }
            assert!(begun.elapsed() < Duration::from_secs(30), "container {id} does not end");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub async fn stop_and_remove(&mut self, sandbox: &str) {
        for _ in 0..2 {
            let id = sandbox.to_owned();
            self.runtime.stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id: id }).await.unwrap();
        }
        for _ in 0..2 {
            let id = sandbox.to_owned();
            self.runtime.remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id: id }).await.unwrap();
        }
    }
}

/// Nothing of any pod is left: in containerd, the kernel, the file system, the network.
pub async fn nothing_is_left(node: &Node) {
    assert_eq!(node.containerd.list_containers().await.unwrap().len(), 0);
    assert_eq!(node.containerd.tasks().await.unwrap().len(), 0);
    let snapshots = node.containerd.snapshotter("overlayfs").list().await.unwrap();
    let ours: Vec<_> = snapshots.iter().filter(|snapshot| snapshot.labels.contains_key("bosun.local/owner")).collect();
    assert_eq!(ours.len(), 0, "{ours:?}");
    for folder in [node.root(), node.state()] {
        for kind in ["sandboxes", "containers"] {
            let left = cri_shim::folders::names(&folder.join(kind));
            assert_eq!(left, Vec::<String>::new(), "{}/{kind}", folder.display());
        }
    }
    let mounts = kernel::mount::mounts().unwrap();
    let left: Vec<_> = mounts.iter().filter(|mount| mount.mount_point.starts_with(node.state())).collect();
    assert_eq!(left.len(), 0, "{left:?}");
    let calls = node.network_calls();
    let count = |verb: &str| calls.iter().filter(|call| call.starts_with(verb)).count();
    assert!(count("DEL") >= count("ADD"), "{calls:?}");
}

fn log(node: &Node, pod: &str, container: &str) -> Vec<String> {
    let text = std::fs::read_to_string(node.folder.join("logs").join(pod).join(format!("{container}.log")));
    let line = |line: &str| line.splitn(3, ' ').skip(1).collect::<Vec<_>>().join(" ");
    text.unwrap_or_default().lines().map(line).collect()
}

#[test]
fn a_pod_lives_and_leaves_nothing() {
    on_a_node("pods::a_pod_lives_and_leaves_nothing", async |node| {
        let mut shim = node.serve().await;
        let config = pod("web", &node.folder.join("logs"));
        let sandbox = shim.run(&config).await;
        assert_eq!(shim.run(&config).await, sandbox, "a retry finds it");
        let status = shim.sandbox(&sandbox[..12]).await;
        assert_eq!(status.state(), PodSandboxState::SandboxReady);
        assert!(status.network.unwrap().ip.starts_with("10.9."));

        let script =
            "echo out; echo err >&2; hostname; cat /etc/resolv.conf; trap 'exit 7' TERM; while :; do sleep 0.05; done";
        let wanted = container("app", script);
        let id = shim.create(&sandbox, &wanted).await;
        assert_eq!(shim.create(&sandbox, &wanted).await, id, "a retry finds it");
        assert_eq!(shim.status(&id).await.state(), ContainerState::ContainerCreated);
        shim.start(&id).await;
        shim.start(&id).await;
        let status = shim.status(&id).await;
        assert_eq!(status.state(), ContainerState::ContainerRunning);
        assert_eq!(status.image.unwrap().image, IMAGE);
        until("its output is in its log", async || log(node, "web", "app").len() == 4).await;
        let mut lines = log(node, "web", "app");
        lines.sort();
        assert_eq!(lines, ["stderr F err", "stdout F nameserver 10.96.0.10", "stdout F out", "stdout F web-host"]);

        let done = shim.exec(&id, "echo hi; echo no >&2; exit 3", 10).await.unwrap();
        assert_eq!((done.stdout.as_slice(), done.stderr.as_slice(), done.exit_code), (&b"hi\n"[..], &b"no\n"[..], 3));

        let update = LinuxContainerResources { memory_limit_in_bytes: 64 << 20, cpu_shares: 300, ..Default::default() };
        let request = UpdateContainerResourcesRequest {
            container_id: id.clone(),
            linux: Some(update),
            ..UpdateContainerResourcesRequest::default()
        };
        shim.runtime.update_container_resources(request).await.unwrap();
        let resources = shim.status(&id).await.resources.unwrap().linux.unwrap();
        assert_eq!((resources.memory_limit_in_bytes, resources.cpu_shares), (64 << 20, 300));
        let stats = shim.runtime.container_stats(ContainerStatsRequest { container_id: id.clone() }).await.unwrap();
        let stats = stats.into_inner().stats.unwrap();
        assert!(stats.memory.unwrap().usage_bytes.unwrap().value > 0);
        assert!(stats.writable_layer.is_some());

        shim.runtime.stop_container(StopContainerRequest { container_id: id.clone(), timeout: 10 }).await.unwrap();
        let status = shim.status(&id).await;
        assert_eq!(
            (status.state(), status.exit_code, status.reason.as_str()),
            (ContainerState::ContainerExited, 7, "Error")
        );
        assert!(status.started_at > 0 && status.finished_at >= status.started_at);
        for _ in 0..2 {
            shim.runtime.remove_container(RemoveContainerRequest { container_id: id.clone() }).await.unwrap();
        }
        let gone = ContainerStatusRequest { container_id: id, verbose: false };
        assert_eq!(shim.runtime.container_status(gone).await.unwrap_err().code(), Code::NotFound);
        shim.stop_and_remove(&sandbox).await;
        nothing_is_left(node).await;
        shim.end().await;
    });
}

#[test]
fn a_command_that_times_out_leaves_no_process() {
    on_a_node("pods::a_command_that_times_out_leaves_no_process", async |node| {
        let mut shim = node.serve().await;
        let sandbox = shim.run(&pod("web", &node.folder.join("logs"))).await;
        let id = shim.create(&sandbox, &container("app", "while :; do sleep 1; done")).await;
        shim.start(&id).await;
        let begun = Instant::now();
        let error = shim.exec(&id, "sleep 4321 & sleep 4321", 1).await.unwrap_err();
        assert_eq!(error.code(), Code::DeadlineExceeded, "{error}");
        assert!(begun.elapsed() < Duration::from_secs(8));
        let done = shim.exec(&id, "ps", 10).await.unwrap();
        assert!(!String::from_utf8_lossy(&done.stdout).contains("4321"), "{}", String::from_utf8_lossy(&done.stdout));
        let much = shim.exec(&id, "dd if=/dev/zero bs=1048576 count=20 2>/dev/null; exit 5", 20).await.unwrap();
        assert_eq!((much.stdout.len(), much.exit_code), (RESPONSE, 5), "as much as the kubelet takes in one message");
        // A later, less patient call ends it for the earlier too.
        let (mut one, mut other) = (shim.runtime.clone(), shim.runtime.clone());
        let slow = StopContainerRequest { container_id: id.clone(), timeout: 600 };
        let earlier = tokio::spawn(async move { one.stop_container(slow).await });
        tokio::time::sleep(Duration::from_millis(300)).await;
        other.stop_container(StopContainerRequest { container_id: id.clone(), timeout: 1 }).await.unwrap();
        earlier.await.unwrap().unwrap();
        assert_eq!(shim.status(&id).await.exit_code, 137);
        shim.stop_and_remove(&sandbox).await;
        nothing_is_left(node).await;
        shim.end().await;
    });
}

#[test]
fn ends_are_told_as_they_were() {
    on_a_node("pods::ends_are_told_as_they_were", async |node| {
        let mut shim = node.serve().await;
        let sandbox = shim.run(&pod("web", &node.folder.join("logs"))).await;
        let done = shim.create(&sandbox, &container("done", "echo last")).await;
        shim.start(&done).await;
        let status = shim.ended(&done).await;
        assert_eq!((status.exit_code, status.reason.as_str()), (0, "Completed"));
        assert_eq!(log(node, "web", "done"), ["stdout F last"], "its log is whole when its end is told");

        let mut eater = container("eater", "exec dd if=/dev/zero of=/dev/null bs=200M count=1");
        let limit = LinuxContainerResources { memory_limit_in_bytes: 20 << 20, ..Default::default() };
        eater.linux.as_mut().unwrap().resources = Some(limit);
        let eater = shim.create(&sandbox, &eater).await;
        shim.start(&eater).await;
        let status = shim.ended(&eater).await;
        assert_eq!((status.exit_code, status.reason.as_str()), (137, "OOMKilled"));

        let mut broken = container("broken", "");
        broken.command = vec!["/no/such/program".into()];
        let broken = shim.create(&sandbox, &broken).await;
        let error =
            shim.runtime.start_container(StartContainerRequest { container_id: broken.clone() }).await.unwrap_err();
        assert!(error.message().contains("/no/such/program"), "{error}");
        let status = shim.status(&broken).await;
        assert_eq!((status.exit_code, status.reason.as_str(), status.started_at), (128, "StartError", 0));

        let mut missing = container("missing", "true");
        missing.image = Some(ImageSpec { image: "test.local/none:1".into(), ..ImageSpec::default() });
        let request = CreateContainerRequest {
            pod_sandbox_id: sandbox.clone(),
            config: Some(missing),
            ..CreateContainerRequest::default()
        };
        assert_eq!(shim.runtime.create_container(request).await.unwrap_err().code(), Code::NotFound);
        shim.stop_and_remove(&sandbox).await;
        nothing_is_left(node).await;
        shim.end().await;
    });
}

#[test]
fn a_shared_pid_namespace_lives_in_a_pause_task() {
    on_a_node("pods::a_shared_pid_namespace_lives_in_a_pause_task", async |node| {
        let mut shim = node.serve().await;
        let mut config = pod("shared", &node.folder.join("logs"));
        let security = config.linux.as_mut().unwrap().security_context.as_mut().unwrap();
        security.namespace_options.as_mut().unwrap().pid = NamespaceMode::Pod.into();
        let sandbox = shim.run(&config).await;
        let mut wanted = container("app", "while :; do sleep 1; done");
        let security = wanted.linux.as_mut().unwrap().security_context.as_mut().unwrap();
        security.namespace_options.as_mut().unwrap().pid = NamespaceMode::Pod.into();
        let first = shim.create(&sandbox, &wanted).await;
        shim.start(&first).await;
        let done = shim.exec(&first, "cat /proc/1/cmdline", 10).await.unwrap();
        assert!(String::from_utf8_lossy(&done.stdout).starts_with("/busybox"), "{done:?}");
        assert_eq!(node.containerd.tasks().await.unwrap().len(), 2);
        shim.stop_and_remove(&sandbox).await;
        nothing_is_left(node).await;
        shim.end().await;
    });
}

#[test]
fn every_event_is_told_in_order() {
    on_a_node("pods::every_event_is_told_in_order", async |node| {
        let mut shim = node.serve().await;
        let mut events = shim.runtime.get_container_events(GetEventsRequest {}).await.unwrap().into_inner();
        let sandbox = shim.run(&pod("web", &node.folder.join("logs"))).await;
        let id = shim.create(&sandbox, &container("app", "exit 4")).await;
        shim.start(&id).await;
        shim.ended(&id).await;
        shim.stop_and_remove(&sandbox).await;
        use ContainerEventType::*;
        let expected = [
            (&sandbox, ContainerCreatedEvent),
            (&sandbox, ContainerStartedEvent),
            (&id, ContainerCreatedEvent),
            (&id, ContainerStartedEvent),
            (&id, ContainerStoppedEvent),
            (&sandbox, ContainerStoppedEvent),
            (&id, ContainerDeletedEvent),
            (&sandbox, ContainerDeletedEvent),
        ];
        for (of, what) in expected {
            let event = events.message().await.unwrap().unwrap();
            assert_eq!((&event.container_id, event.container_event_type()), (of, what));
            if what == ContainerStoppedEvent && *of == id {
                assert_eq!(event.containers_statuses[0].exit_code, 4);
            }
        }
        shim.end().await;
    });
}

#[test]
fn a_pod_of_the_host_has_its_network_and_name() {
    on_a_node("pods::a_pod_of_the_host_has_its_network_and_name", async |node| {
        let mut shim = node.serve().await;
        let mut config = pod("host", &node.folder.join("logs"));
        config.hostname = String::new();
        config.dns_config = None;
        let own = NamespaceOption {
            network: NamespaceMode::Node.into(),
            ipc: NamespaceMode::Node.into(),
            pid: NamespaceMode::Node.into(),
            ..NamespaceOption::default()
        };
        let security = config.linux.as_mut().unwrap().security_context.as_mut().unwrap();
        security.namespace_options = Some(own.clone());
        let sandbox = shim.run(&config).await;
        assert_eq!(shim.sandbox(&sandbox).await.network.unwrap(), PodSandboxNetworkStatus::default());
        let mut wanted = container("app", "while :; do sleep 1; done");
        wanted.linux.as_mut().unwrap().security_context.as_mut().unwrap().namespace_options = Some(own);
        let id = shim.create(&sandbox, &wanted).await;
        shim.start(&id).await;
        let script =
            "hostname; for n in net ipc uts pid; do ls -l /proc/self/ns/$n | sed 's/.*> //'; done; cat /etc/hostname";
        let done = shim.exec(&id, script, 10).await.unwrap();
        let said = String::from_utf8_lossy(&done.stdout).into_owned();
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
        let mut expected = host.clone();
        for name in ["net", "ipc", "uts", "pid"] {
            let link = std::fs::read_link(format!("/proc/self/ns/{name}")).unwrap();
            expected.push_str(&format!("{}\n", link.display()));
        }
        expected.push_str(&host);
        assert_eq!(said, expected);
        assert_eq!(node.network_calls(), Vec::<String>::new());
        shim.stop_and_remove(&sandbox).await;
        nothing_is_left(node).await;
        shim.end().await;
    });
}

#[test]
fn an_image_can_be_mounted_and_users_are_those_of_the_image() {
    on_a_node("pods::an_image_can_be_mounted_and_users_are_those_of_the_image", async |node| {
        let mut shim = node.serve().await;
        let sandbox = shim.run(&pod("web", &node.folder.join("logs"))).await;
        let mut wanted = container("app", "while :; do sleep 1; done");
        let image = Some(ImageSpec { image: IMAGE.into(), ..ImageSpec::default() });
        wanted.mounts.push(Mount {
            container_path: "/image".into(),
            image,
            image_sub_path: "etc".into(),
            readonly: true,
            ..Mount::default()
        });
        let security = wanted.linux.as_mut().unwrap().security_context.as_mut().unwrap();
        security.run_as_username = "web".into();
        security.supplemental_groups = vec![77];
        let id = shim.create(&sandbox, &wanted).await;
        shim.start(&id).await;
        let done = shim.exec(&id, "id -u; id -g; id -G; ls /image; echo no > /image/x", 10).await.unwrap();
        assert_eq!(String::from_utf8_lossy(&done.stdout), "1000\n1001\n1001 5 77\ngroup\npasswd\n");
        assert_ne!(done.exit_code, 0);
        let user = shim.status(&id).await.user.unwrap().linux.unwrap();
        assert_eq!((user.uid, user.gid, user.supplemental_groups), (1000, 1001, vec![5, 77, 1001]));
        let images = shim.images.list_images(ListImagesRequest::default()).await.unwrap().into_inner().images;
        let status = shim.status(&id).await;
        assert!(images.iter().any(|image| image.id == status.image_id), "{images:?}");
        shim.stop_and_remove(&sandbox).await;
        nothing_is_left(node).await;
        shim.end().await;
    });
}

#[test]
fn a_network_that_fails_leaves_no_pod() {
    on_a_node("pods::a_network_that_fails_leaves_no_pod", async |node| {
        let mut shim = node.serve().await;
        let plugin = node.folder.join("bin/toy");
        let working = std::fs::read_to_string(&plugin).unwrap();
        let broken =
            working.replace("ADD)", "ADD) echo '{\"code\":11,\"msg\":\"no address is free\"}'; exit 1 ;;\nNONE)");
        std::fs::write(&plugin, broken).unwrap();
        let config = pod("web", &node.folder.join("logs"));
        let request = RunPodSandboxRequest { config: Some(config.clone()), ..RunPodSandboxRequest::default() };
        let error = shim.runtime.run_pod_sandbox(request).await.unwrap_err();
        assert!(error.message().contains("no address is free"), "{error}");
        nothing_is_left(node).await;
        std::fs::write(&plugin, working).unwrap();
        let sandbox = shim.run(&config).await;
        shim.stop_and_remove(&sandbox).await;
        nothing_is_left(node).await;
        shim.end().await;
    });
}

/// Where the time of a pod's start goes, for people: it judges nothing but that thirty at once all start.
/// containerd's shim ends with the last task of its pod, just when the container's next attempt wants it.
#[test]
fn a_container_that_ended_is_started_again_at_once() {
    on_a_node("pods::a_container_that_ended_is_started_again_at_once", async |node| {
        let mut served = node.serve().await;
        let sandbox = served.run(&pod("again", &node.folder)).await;
        let mut made = Vec::new();
        for attempt in 0..40 {
            let mut config = container("again", "exit 3");
            config.metadata = Some(ContainerMetadata { name: "again".into(), attempt });
            config.log_path = format!("again-{attempt}.log");
            made.push(served.create(&sandbox, &config).await);
        }
        for (attempt, id) in made.iter().enumerate() {
            served.start(id).await;
            loop {
                let status = served.status(id).await;
                if status.state() == ContainerState::ContainerExited {
                    assert_eq!(
                        (status.exit_code, status.reason.as_str()),
                        (3, "Error"),
                        "attempt {attempt}: {status:?}"
                    );
                    break;
                }
                // Now and then a little later, so that every moment of the shim's end is met.
                tokio::time::sleep(Duration::from_micros(500 * (attempt as u64 % 4))).await;
            }
        }
        served.stop_and_remove(&sandbox).await;
        nothing_is_left(node).await;
        served.end().await;
    });
}

#[test]
fn thirty_pods_start_at_once() {
    on_a_node("pods::thirty_pods_start_at_once", async |node| {
        let mut shim = node.serve().await;
        for n in 0..5 {
            let mut times = Vec::new();
            let begun = Instant::now();
            let sandbox = shim.run(&pod(&format!("one{n}"), &node.folder.join("logs"))).await;
            times.push(("run", begun.elapsed()));
            let id = shim.create(&sandbox, &container("app", "exec sleep 1000")).await;
            times.push(("create", begun.elapsed()));
            shim.start(&id).await;
            times.push(("start", begun.elapsed()));
            shim.exec(&id, "true", 5).await.unwrap();
            times.push(("exec", begun.elapsed()));
            let stop = StopPodSandboxRequest { pod_sandbox_id: sandbox.clone() };
            shim.runtime.stop_pod_sandbox(stop).await.unwrap();
            times.push(("stop", begun.elapsed()));
            let remove = RemovePodSandboxRequest { pod_sandbox_id: sandbox.clone() };
            shim.runtime.remove_pod_sandbox(remove).await.unwrap();
            times.push(("remove", begun.elapsed()));
            eprintln!("{times:?}");
        }
        let log = std::fs::read_to_string(node.folder.join("shim.log")).unwrap();
        for line in log.lines().filter(|line| line.contains("trace=")).rev().take(4) {
            eprintln!("{line}");
        }
        let begun = Instant::now();
        let one = async |n: u32| {
            let mut shim = shim.clone_client();
            let sandbox = shim.run(&pod(&format!("web{n}"), &node.folder.join("logs"))).await;
            let id = shim.create(&sandbox, &container("app", "exec sleep 1000")).await;
            shim.start(&id).await;
            sandbox
        };
        let sandboxes = futures::future::join_all((0..30).map(one)).await;
        eprintln!("30 pods in {:?}", begun.elapsed());
        let process = shim.memory();
        eprintln!("memory of the shim with 30 pods: {process}");
        let log = std::fs::read_to_string(node.folder.join("shim.log")).unwrap();
        for line in log.lines().filter(|line| line.contains("trace=")).rev().take(4) {
            eprintln!("{line}");
        }
        for sandbox in &sandboxes {
            shim.stop_and_remove(sandbox).await;
        }
        nothing_is_left(node).await;
        shim.end().await;
    });
}
