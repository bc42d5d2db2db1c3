//! The shim ends, is cut off, or loses its containerd, and comes back: everything is as it was, or as it should be.

use std::path::Path;

use cri::v1::*;

use super::bed::{Served, on_a_node, until};
use super::pods::{container, nothing_is_left, pod};

fn lines(path: &Path) -> usize {
    std::fs::read_to_string(path).unwrap_or_default().lines().count()
}

#[test]
fn a_restarted_shim_sees_everything_as_it_is() {
    on_a_node("restarts::a_restarted_shim_sees_everything_as_it_is", async |node| {
        let mut shim = node.serve().await;
        let sandbox = shim.run(&pod("web", &node.folder.join("logs"))).await;
        let mut ids = Vec::new();
        for (name, script) in [
            ("runs", "i=0; while :; do i=$((i+1)); echo line $i; sleep 0.02; done"),
            ("created", "sleep 1"),
            ("ended", "exit 3"),
            ("ends-meanwhile", "sleep 1; echo bye; exit 9"),
        ] {
            let id = shim.create(&sandbox, &container(name, script)).await;
            if name != "created" {
                shim.start(&id).await;
            }
            ids.push(id);
        }
        shim.ended(&ids[2]).await;
        let before = [shim.status(&ids[0]).await, shim.status(&ids[1]).await, shim.status(&ids[2]).await];
        let ready = shim.sandbox(&sandbox).await;
        shim.kill().await;
        tokio::time::sleep(std::time::Duration::from_millis(1500)).await;

        let mut shim = node.serve().await;
        for (id, before) in ids.iter().zip(&before) {
            assert_eq!(&shim.status(id).await, before);
        }
        assert_eq!(shim.sandbox(&sandbox).await, ready);
        let status = shim.ended(&ids[3]).await;
        assert_eq!((status.exit_code, status.reason.as_str()), (9, "Error"));
        let log = node.folder.join("logs/web/runs.log");
        let known = lines(&log);
        until("the log goes on", async || lines(&log) > known + 5).await;
        let text = std::fs::read_to_string(&log).unwrap();
        let numbers: Vec<u32> = text.lines().map(|line| line.rsplit(' ').next().unwrap().parse().unwrap()).collect();
        for number in 1..=*numbers.last().unwrap() {
            assert!(numbers.contains(&number), "line {number} is lost");
        }
        let done = shim.exec(&ids[0], "echo still here", 10).await.unwrap();
        assert_eq!(done.stdout, b"still here\n");
        shim.start(&ids[1]).await;
        shim.stop_and_remove(&sandbox).await;
        nothing_is_left(node).await;
        shim.end().await;
    });
}

#[test]
fn containerd_may_be_restarted_under_it() {
    on_a_node("restarts::containerd_may_be_restarted_under_it", async |node| {
        let mut shim = node.serve().await;
        let sandbox = shim.run(&pod("web", &node.folder.join("logs"))).await;
        let id = shim.create(&sandbox, &container("app", "sleep 2; exit 6")).await;
        shim.start(&id).await;
        node.restart_containerd().await;
        let status = shim.ended(&id).await;
        assert_eq!((status.exit_code, status.reason.as_str()), (6, "Error"));
        shim.stop_and_remove(&sandbox).await;
        nothing_is_left(node).await;
        shim.end().await;
    });
}

/// Kills the shim at one system call after another of those by which it changes anything outside itself, for the whole
/// life of a pod; after each kill a restart leaves what is whole, and nothing else once the pod is removed.
///
/// `strace` counts for each thread by itself: with N it is the first thread that makes its Nth call, in whatever order
/// threads come to it, and N goes up until none does.
#[test]
fn killed_at_any_call_it_comes_back() {
    on_a_node("restarts::killed_at_any_call_it_comes_back", async |node| {
        if !super::bed::on_path("strace") {
            return eprintln!("SKIPPED killed_at_any_call_it_comes_back: strace is not installed");
        }
        let config = pod("web", &node.folder.join("logs"));
        for call in CALLS {
            let mut survived = 0;
            for nth in 1.. {
                let inject = format!("inject={call}:signal=SIGKILL:when={nth}");
                let trace = format!("trace={call}");
                let words = [
                    "strace",
                    "-f",
                    "-D",
                    "-qq",
                    "-o",
                    "/dev/null",
                    "-e",
                    trace.as_str(),
                    "-e",
                    inject.as_str(),
                    "-e",
                    "signal=none",
                ];
                let mut shim = node.serve_under(&words).await;
                let lived = life(&mut shim, &config).await;
                let died = !lived && shim.dies().await;
                if !died {
                    shim.end().await;
                }
                // Other threads may still make their calls while one is killed: the rest of the process goes at once.
                let mut shim = node.serve().await;
                let all = ListPodSandboxRequest::default();
                let all = shim.runtime.list_pod_sandbox(all).await.unwrap().into_inner().items;
                for sandbox in &all {
                    shim.stop_and_remove(&sandbox.id).await;
                }
                shim.end().await;
                nothing_is_left(node).await;
                survived = if died { 0 } else { survived + 1 };
                assert_eq!(lived, !died, "{call} {nth}: a life fails only where the shim was killed");
                if survived > 0 {
                    eprintln!("{call}: killed at each of {} calls", nth - 1);
                    break;
                }
            }
        }
    });
}

/// By these the shim makes files, mounts, namespaces, pipes and programs. What it sends to containerd goes by `sendto`
/// and `writev`.
const CALLS: [&str; 9] = [
    "mkdir",
    "mount",
    "umount2",
    "unlink,rmdir,unlinkat",
    "rename",
    "mknodat,mknod",
    "unshare,setns",
    "clone,clone3,vfork",
    "writev,sendto,sendmsg",
];

/// From run to remove; whether all of it went well.
async fn life(shim: &mut Served, config: &PodSandboxConfig) -> bool {
    let lived: Result<(), tonic::Status> = async {
        let request = RunPodSandboxRequest { config: Some(config.clone()), ..RunPodSandboxRequest::default() };
        let pod_sandbox_id = shim.runtime.run_pod_sandbox(request).await?.into_inner().pod_sandbox_id;
        let request = CreateContainerRequest {
            pod_sandbox_id: pod_sandbox_id.clone(),
            config: Some(container("app", "echo up; while :; do sleep 1; done")),
            ..CreateContainerRequest::default()
        };
        let container_id = shim.runtime.create_container(request).await?.into_inner().container_id;
        shim.runtime.start_container(StartContainerRequest { container_id: container_id.clone() }).await?;
        shim.runtime.stop_container(StopContainerRequest { container_id: container_id.clone(), timeout: 0 }).await?;
        shim.runtime.remove_container(RemoveContainerRequest { container_id }).await?;
        shim.runtime.stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id: pod_sandbox_id.clone() }).await?;
        shim.runtime.remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id }).await?;
        Ok(())
    }
    .await;
    lived.is_ok()
}
