//! Checkpoints, where criu works.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

use cri::v1::{CheckpointContainerRequest, ContainerState};
use tonic::Code;

use super::bed::{Node, Served, on_a_node, until};
use super::pods::{container, nothing_is_left, pod};

/// Counts aloud, after it changed a file of its image and made one.
const SCRIPT: &str =
    "echo changed > /etc/group; echo made > /made; n=0; while true; do n=$((n+1)); echo $n; sleep 0.1; done";

/// Why criu cannot work here.
fn why_not() -> Option<String> {
    match Command::new("criu").arg("check").output() {
        Err(_) => Some("criu is not installed".to_owned()),
        Ok(output) if !output.status.success() => {
            let said = String::from_utf8_lossy(&output.stderr);
            Some(format!("criu cannot work on this kernel: {}", said.lines().next().unwrap_or_default()))
        }
        Ok(_) => None,
    }
}

async fn begun(served: &mut Served, node: &Node) -> (String, String, PathBuf) {
    let logs = node.folder.join("logs");
    let sandbox = served.run(&pod("counts", &logs)).await;
    let id = served.create(&sandbox, &container("main", SCRIPT)).await;
    served.start(&id).await;
    let log = logs.join("counts/main.log");
    until("it counts", async || lines(&log) > 3).await;
    (sandbox, id, log)
}

fn lines(log: &Path) -> usize {
    std::fs::read_to_string(log).unwrap_or_default().lines().count()
}

async fn goes_on(served: &mut Served, id: &str, log: &Path) {
    let before = lines(log);
    until("it goes on counting", async || lines(log) > before + 2).await;
    assert_eq!(served.status(id).await.state(), ContainerState::ContainerRunning);
    assert_eq!(served.exec(id, "cat /made", 5).await.unwrap().stdout, b"made\n");
}

async fn checkpoint(served: &mut Served, id: &str, location: &Path) -> Result<(), tonic::Status> {
    let location = location.display().to_string();
    let request = CheckpointContainerRequest { container_id: id.to_owned(), location, timeout: 60 };
    served.runtime.checkpoint_container(request).await.map(drop)
}

/// The files of an archive.
fn entries(archive: impl Read) -> BTreeMap<String, Vec<u8>> {
    let mut archive = tar::Archive::new(archive);
    let entries = archive.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let name = entry.path().unwrap().display().to_string();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        (name, content)
    });
    entries.collect()
}

#[test]
fn a_checkpoint_is_whole_and_the_container_goes_on() {
    if let Some(reason) = why_not() {
        return eprintln!("SKIPPED checkpoint::a_checkpoint_is_whole_and_the_container_goes_on: {reason}");
    }
    on_a_node("checkpoint::a_checkpoint_is_whole_and_the_container_goes_on", async |node| {
        let mut served = node.serve().await;
        let (sandbox, id, log) = begun(&mut served, node).await;
        let location = node.folder.join("checkpoint.tar");
        for _ in 0..2 {
            checkpoint(&mut served, &id, &location).await.unwrap();
            goes_on(&mut served, &id, &log).await;
        }
        let parts = entries(std::fs::File::open(&location).unwrap());
        let document = |name: &str| serde_json::from_slice::<serde_json::Value>(&parts[name]).unwrap();
        assert_eq!(document("config.dump")["id"], id);
        assert_eq!(document("spec.dump")["process"]["args"][2], SCRIPT);
        assert_eq!(document("status.dump")["metadata"]["name"], "main");
        assert!(parts.contains_key("checkpoint/inventory.img") && parts.contains_key("dump.log"));
        assert!(parts["container.log"].starts_with(b"20"));
        let changed = entries(&parts["rootfs-diff.tar"][..]);
        assert_eq!((&changed["made"][..], &changed["etc/group"][..]), (&b"made\n"[..], &b"changed\n"[..]));
        assert!(!changed.contains_key("bin/busybox"));
        served.stop_and_remove(&sandbox).await;
        nothing_is_left(node).await;
        served.end().await;
    });
}

/// Where criu works it fails at the end of the work; where it does not, at its beginning, as on a node without criu.
#[test]
fn a_checkpoint_that_fails_leaves_nothing_and_the_container_goes_on() {
    on_a_node("checkpoint::a_checkpoint_that_fails_leaves_nothing_and_the_container_goes_on", async |node| {
        let mut served = node.serve().await;
        let (sandbox, id, log) = begun(&mut served, node).await;
        let location = node.folder.join("checkpoint.tar");
        let broken = checkpoint(&mut served, &id, Path::new("relative")).await.unwrap_err();
        assert!([Code::InvalidArgument, Code::Unimplemented].contains(&broken.code()), "{broken}");
        // Where nothing can be written, after all the work.
        let nowhere = checkpoint(&mut served, &id, Path::new("/nonexistent/checkpoint.tar")).await.unwrap_err();
        assert!(!nowhere.message().contains('\n'), "{nowhere}");
        if why_not().is_some() {
            let refused = checkpoint(&mut served, &id, &location).await.unwrap_err();
            assert!(!refused.message().contains('\n'), "{refused}");
        }
        goes_on(&mut served, &id, &log).await;
        assert!(!location.exists() && !location.with_extension("part").exists());
        let left = cri_shim::folders::names(&node.root().join("containers").join(&id));
        assert!(!left.contains(&"checkpoint".to_owned()), "{left:?}");
        served.stop_and_remove(&sandbox).await;
        nothing_is_left(node).await;
        served.end().await;
    });
}

/// As by a shim that is killed in the middle of a checkpoint.
#[test]
fn what_was_left_paused_goes_on_when_the_shim_is_back() {
    on_a_node("checkpoint::what_was_left_paused_goes_on_when_the_shim_is_back", async |node| {
        let mut served = node.serve().await;
        let (sandbox, id, log) = begun(&mut served, node).await;
        node.containerd.pause_task(&id).await.unwrap();
        served.kill().await;
        let mut served = node.serve().await;
        goes_on(&mut served, &id, &log).await;
        served.stop_and_remove(&sandbox).await;
        nothing_is_left(node).await;
        served.end().await;
    });
}
