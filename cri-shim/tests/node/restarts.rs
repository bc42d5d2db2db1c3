//! The shim ends, is cut off, or loses its containerd, and comes back: everything is as it was, or as it should be.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use containerd_client::types::v1::Status;
use cri::v1::*;
use cri_shim::containerd::tasks::ProcessId;

use super::bed::{Node, Served, on_a_node, until};
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

/// 200 KiB in lines of 8 bytes, of which a pipe wastes none: more than the container's own pipe holds, and less than the
/// one behind it.
const SAID: std::ops::RangeInclusive<u32> = 1_000_000..=1_025_599;

fn has_all(log: &Path) {
    let text = std::fs::read_to_string(log).unwrap();
    let said: Vec<&str> = text.lines().map(|line| line.split_once(" stdout F ").expect(line).1).collect();
    let wanted: Vec<String> = SAID.map(|number| number.to_string()).collect();
    assert_eq!(said, wanted);
}

#[test]
fn what_a_container_says_while_nobody_is_there_is_in_its_log() {
    on_a_node("restarts::what_a_container_says_while_nobody_is_there_is_in_its_log", async |node| {
        let mut shim = node.serve().await;
        let sandbox = shim.run(&pod("web", &node.folder.join("logs"))).await;
        let start = async |shim: &mut Served, name: &str, code| {
            let script = format!("sleep 2; seq {} {}; exit {code}", SAID.start(), SAID.end());
            let id = shim.create(&sandbox, &container(name, &script)).await;
            shim.start(&id).await;
            id
        };
        let log = |name: &str| node.folder.join(format!("logs/web/{name}.log"));

        let first = start(&mut shim, "first", 9).await;
        shim.kill().await;
        let pipes = node.state().join("containers").join(&first).join("io");
        until("the container has ended", async || has_ended(node, &first).await).await;
        assert_eq!(lines(&log("first")), 0);
        assert!(pipes.join("stdout").exists());
        let mut shim = node.serve().await;
        let status = shim.ended(&first).await;
        assert_eq!((status.exit_code, status.reason.as_str()), (9, "Error"));
        has_all(&log("first"));
        assert!(!pipes.join("stdout").exists(), "a log that has everything needs no pipe");

        // The keeper is killed, and the next one holds what runs; it is the same for all that come.
        let second = start(&mut shim, "second", 0).await;
        let first = only(&keepers());
        kernel::process::kill(first, kernel::process::Signal::SIGKILL).unwrap();
        let stdout = node.state().join("containers").join(&second).join("io/stdout");
        let holds = |keeper: &u32| *keeper != first && open_files(*keeper).contains(&stdout);
        until("another keeper holds it", async || keepers().iter().any(holds)).await;
        shim.kill().await;
        until("the container has ended", async || has_ended(node, &second).await).await;
        let mut shim = node.serve().await;
        assert_eq!(shim.ended(&second).await.exit_code, 0);
        has_all(&log("second"));

        shim.stop_and_remove(&sandbox).await;
        nothing_is_left(node).await;
        let keeper = only(&keepers());
        let holds = |path: &PathBuf| path.starts_with(node.state().join("containers"));
        until("the keeper holds nothing", async || !open_files(keeper).iter().any(holds)).await;
        shim.end().await;
        kernel::process::kill(keeper, kernel::process::Signal::SIGKILL).unwrap();
    });
}

async fn has_ended(node: &Node, id: &str) -> bool {
    let process = node.containerd.process(ProcessId::init(id)).await.unwrap();
    process.is_some_and(|process| process.status() == Status::Stopped)
}

fn only(keepers: &[u32]) -> u32 {
    assert_eq!(keepers.len(), 1, "{keepers:?}");
    keepers[0]
}

/// The keepers of this machine that live.
fn keepers() -> Vec<u32> {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let is_keeper = |pid: &u32| {
        let read = |file: &str| std::fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
        let environment = read("environ");
        // While it still is the shell that becomes it, it has that variable not yet.
        environment.split(|byte| *byte == 0).any(|one| one.starts_with(b"BOSUN_TEST_KEEPER="))
    };
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(is_keeper).collect()
}

fn open_files(pid: u32) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    entries.filter_map(|entry| std::fs::read_link(entry.path()).ok()).collect()
}

/// Makes the record of a sandbox or container such that nobody can read it.
async fn garble(node: &Node, id: &str) {
    let mut stored = node.containerd.container(id).await.unwrap();
    assert_eq!(stored.extensions.len(), 1);
    stored.extensions.values_mut().for_each(|record| record.value.truncate(9));
    node.containerd.update_container(stored, &["extensions"]).await.unwrap();
}

#[test]
fn a_record_that_cannot_be_read_keeps_no_other_pod() {
    on_a_node("restarts::a_record_that_cannot_be_read_keeps_no_other_pod", async |node| {
        let mut shim = node.serve().await;
        let mut pods = Vec::new();
        for name in ["whole", "garbled", "lost"] {
            let sandbox = shim.run(&pod(name, &node.folder.join("logs"))).await;
            let id = shim.create(&sandbox, &container("app", "while :; do sleep 1; done")).await;
            shim.start(&id).await;
            pods.push((sandbox, id));
        }
        shim.end().await;
        for (sandbox, id) in &pods[1..] {
            garble(node, sandbox).await;
            garble(node, id).await;
        }
        std::fs::remove_file(node.state().join("sandboxes").join(&pods[2].0).join("life.json")).unwrap();

        let mut shim = node.serve().await;
        for (n, (sandbox, id)) in pods.iter().enumerate() {
            let status = shim.sandbox(sandbox).await;
            // Its life has its record, too.
            let known = if n < 2 { PodSandboxState::SandboxReady } else { PodSandboxState::SandboxNotready };
            assert_eq!(status.state(), known, "{status:?}");
            assert!(status.labels.contains_key("app"));
            assert_eq!(shim.status(id).await.state(), ContainerState::ContainerRunning);
        }
        let log = std::fs::read_to_string(node.folder.join("shim.log")).unwrap();
        assert!(log.contains(&format!("cannot read the bosun.container.v1 record of {}", pods[1].1)), "{log}");
        let request = RemoveContainerRequest { container_id: pods[1].1.clone() };
        shim.runtime.remove_container(request).await.unwrap();
        for (sandbox, _) in &pods {
            shim.stop_and_remove(sandbox).await;
        }
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

#[test]
fn a_command_that_nobody_waits_for_any_more_is_ended() {
    on_a_node("restarts::a_command_that_nobody_waits_for_any_more_is_ended", async |node| {
        let mut shim = node.serve().await;
        let sandbox = shim.run(&pod("web", &node.folder.join("logs"))).await;
        let id = shim.create(&sandbox, &container("app", "while :; do sleep 1; done")).await;
        shim.start(&id).await;
        let (mut other, of) = (shim.clone_client(), id.clone());
        let asked = tokio::spawn(async move { other.exec(&of, "sleep 4322 & sleep 4322", 600).await });
        // Not while runc starts it: containerd kills that with our request, and then knows nothing of what it began.
        until("the command runs", async || sleepers("4322") == 2 && running(b"\0exec\0") == 0).await;
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        shim.kill().await;
        asked.await.unwrap().unwrap_err();
        assert_eq!(sleepers("4322"), 2);

        let mut shim = node.serve().await;
        until("the command ends", async || sleepers("4322") == 0).await;
        let pipes = node.state().join("containers").join(&id).join("io");
        until("its pipes go", async || cri_shim::folders::names(&pipes).len() == 2).await;
        assert_eq!(shim.exec(&id, "echo here", 10).await.unwrap().stdout, b"here\n");
        shim.stop_and_remove(&sandbox).await;
        nothing_is_left(node).await;
        shim.end().await;
    });
}

/// How many processes of the node sleep for so many seconds.
fn sleepers(seconds: &str) -> usize {
    running(format!("sleep\0{seconds}\0").as_bytes())
}

/// How many processes of the node have these words in their command line.
fn running(words: &[u8]) -> usize {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let has = |line: Vec<u8>| line.windows(words.len()).any(|found| found == words);
    entries.filter(|entry| std::fs::read(entry.path().join("cmdline")).is_ok_and(has)).count()
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
        let before = files_of_crun();
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
                assert!(lived || shim.dies().await, "{call} {nth}: a life fails only where the shim was killed");
                // The call may be one of its last, after a life that went well.
                let died = !lived || !shim.ends().await;
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
                if survived > 0 {
                    eprintln!("{call}: killed at each of {} calls", nth - 1);
                    break;
                }
            }
        }
        for file in files_of_crun().difference(&before) {
            // It may be killed before it mounts its program there, too.
            let _ = kernel::mount::unmount_lazy(file);
            std::fs::remove_file(file).unwrap();
        }
    });
}

/// `strace` follows a crun that is asked for its features, too. That is killed before it unlinks the empty file on which it
/// mounts its own program first.
fn files_of_crun() -> BTreeSet<PathBuf> {
    let entries = std::fs::read_dir("/tmp").unwrap().map(|entry| entry.unwrap().path());
    let is_crun = |path: &PathBuf| path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"crun."));
    entries.filter(is_crun).collect()
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
