//! A disk that is full: what needs room fails and says why, what makes room works.

use std::io::Write;
use std::path::PathBuf;
use std::process::Command;

use cri::v1::*;

use super::bed::{IMAGE, Node, Served, cgroup, on_a_node_with, until};
use super::pods::{container, nothing_is_left, pod};
use super::{archive, registry};

/// Room for the image of the tests and for another of 16 MiB twice, packed and unpacked.
const DISK: Option<&str> = Some("size=48m,nr_inodes=2000");
const MIB: usize = 1 << 20;

/// What takes all room of a node's disk, until it is dropped.
struct Filler(PathBuf);

impl Filler {
    /// Leaves so many bytes and names for files.
    fn new(node: &Node, bytes: usize, names: usize) -> Self {
        let folder = node.disk.join("filler");
        std::fs::create_dir(&folder).unwrap();
        let mut file = std::fs::File::create(folder.join("bytes")).unwrap();
        let name = |n: usize| folder.join(n.to_string());
        let taken = (0..).take_while(|n| std::fs::write(name(*n), "").is_ok()).count();
        (taken.saturating_sub(names)..taken).for_each(|n| std::fs::remove_file(name(n)).unwrap());
        let block = [1; 4096];
        let mut size = 0;
        while let Ok(written) = file.write(&block) {
            size += written;
        }
        file.set_len(size.saturating_sub(bytes) as u64).unwrap();
        Self(folder)
    }
}

impl Drop for Filler {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).unwrap();
    }
}

impl Served {
    async fn pull(&mut self, name: &str) -> Result<PullImageResponse, tonic::Status> {
        let image = Some(ImageSpec { image: name.into(), ..ImageSpec::default() });
        let request = PullImageRequest { image, ..PullImageRequest::default() };
        self.images.pull_image(request).await.map(tonic::Response::into_inner)
    }

    async fn image_names(&mut self) -> Vec<String> {
        let images = self.images.list_images(ListImagesRequest::default()).await.unwrap().into_inner().images;
        images.into_iter().flat_map(|image| image.repo_tags).collect()
    }
}

fn says_why(status: &tonic::Status) {
    assert!(status.message().to_lowercase().contains("no space left on device"), "{status}");
}

/// Waits until there is room that is kept back for removals.
async fn kept_back(node: &Node) {
    let reserve = node.root().join("reserve");
    until("room is kept back", async || std::fs::metadata(&reserve).is_ok_and(|meta| meta.len() == MIB as u64)).await;
}

/// Bytes and names that are in use on the node's disk.
fn used(node: &Node) -> (u64, u64) {
    let mut words = Command::new("df");
    let output = words.args(["--block-size=1", "--output=used,iused"]).arg(&node.disk).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let mut numbers = text.split_whitespace().filter_map(|word| word.parse().ok());
    (numbers.next().unwrap(), numbers.next().unwrap())
}

/// What containerd has that a pull makes.
fn stored() -> String {
    let ctr = |args: [&str; 2]| {
        let mut command = Command::new("ctr");
        command.args(["-a", "/run/node/containerd.sock", "-n", "k8s.io"]).args(args);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        // Without how long ago it was.
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().map(|line| line.split_whitespace().next().unwrap_or_default().to_owned() + "\n").collect()
    };
    let of: [String; 4] = [["content", "ls"], ["content", "active"], ["snapshots", "ls"], ["leases", "ls"]].map(ctr);
    of.concat()
}

#[test]
fn a_pull_that_does_not_fit_leaves_nothing() {
    on_a_node_with("disk::a_pull_that_does_not_fit_leaves_nothing", DISK, async |node| {
        let mut shim = node.serve().await;
        kept_back(node).await;
        let name = registry::serve(&archive::large(2, 8 * MIB)).await;
        let before = (shim.image_names().await, stored());
        // Full while the layers come, while the first and while the second is unpacked, and before anything comes.
        for room in [12 * MIB, 20 * MIB, 28 * MIB, 0] {
            let filler = Filler::new(node, room, room);
            let full = used(node);
            says_why(&shim.pull(&name).await.unwrap_err());
            until("what came is gone again", async || stored() == before.1).await;
            assert_eq!(shim.image_names().await, before.0);
            // containerd's database may have grown.
            until("its room is free again", async || used(node).0 < full.0 + MIB as u64 && used(node).1 < full.1 + 8)
                .await;
            drop(filler);
        }
        shim.pull(&name).await.unwrap();
        assert_eq!(shim.image_names().await.len(), before.0.len() + 1);
        shim.end().await;
    });
}

/// A pod with a pause task and one container, up to its start.
async fn begin(shim: &mut Served, config: &PodSandboxConfig) -> Result<(), tonic::Status> {
    let request = RunPodSandboxRequest { config: Some(config.clone()), ..RunPodSandboxRequest::default() };
    let pod_sandbox_id = shim.runtime.run_pod_sandbox(request).await?.into_inner().pod_sandbox_id;
    let request = CreateContainerRequest {
        pod_sandbox_id,
        config: Some(container("app", "while :; do sleep 1; done")),
        ..CreateContainerRequest::default()
    };
    let container_id = shim.runtime.create_container(request).await?.into_inner().container_id;
    shim.runtime.start_container(StartContainerRequest { container_id }).await.map(drop)
}

/// Removes what there is of pods, as a kubelet does that wants room.
async fn remove_all(shim: &mut Served) {
    let containers =
        shim.runtime.list_containers(ListContainersRequest::default()).await.unwrap().into_inner().containers;
    for one in containers {
        shim.runtime.remove_container(RemoveContainerRequest { container_id: one.id }).await.unwrap();
    }
    let sandboxes = shim.runtime.list_pod_sandbox(ListPodSandboxRequest::default()).await.unwrap().into_inner().items;
    for one in sandboxes {
        shim.stop_and_remove(&one.id).await;
    }
}

/// The control groups of containers.
fn cgroups(node: &Node) -> String {
    let of_containers = format!("*{}/web/*", cgroup(&node.folder));
    let output = Command::new("find").args(["/sys/fs/cgroup", "-type", "d", "-path", &of_containers]).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// With ever more room, from none until a pod can begin: it fails at one thing after another that needs room. Each time
/// what is there can be removed while the disk is full, and once it is not the same pod begins.
async fn begins_with(node: &Node, step: impl Fn(usize) -> (usize, usize)) {
    let mut config = pod("web", &node.folder.join("logs"));
    let security = config.linux.as_mut().unwrap().security_context.as_mut().unwrap();
    security.namespace_options.as_mut().unwrap().pid = NamespaceMode::Pod.into();
    let mut shim = node.serve().await;
    begin(&mut shim, &config).await.unwrap();
    assert_ne!(cgroups(node), "");
    remove_all(&mut shim).await;
    let mut points = 0;
    for (bytes, names) in (0..200).map(step) {
        // What was kept back for removals was used by the last ones.
        shim.end().await;
        shim = node.serve().await;
        kept_back(node).await;
        let filler = Filler::new(node, bytes, names);
        let outcome = begin(&mut shim, &config).await;
        remove_all(&mut shim).await;
        nothing_is_left(node).await;
        assert_eq!(cgroups(node), "");
        drop(filler);
        let Err(error) = outcome else { break };
        // Without a name for its work folder the kernel mounts an overlay read-only, and runc meets that.
        if !error.message().contains("read-only file system") {
            says_why(&error);
        }
        points += 1;
    }
    assert!(points > 3);
    eprintln!("room ran out at {points} points");
    begin(&mut shim, &config).await.unwrap();
    remove_all(&mut shim).await;
    nothing_is_left(node).await;
    shim.end().await;
}

#[test]
fn a_pod_for_which_there_are_no_bytes_leaves_nothing() {
    on_a_node_with("disk::a_pod_for_which_there_are_no_bytes_leaves_nothing", DISK, async |node| {
        begins_with(node, |n| (n * 4096, 1000)).await;
    });
}

#[test]
fn a_pod_for_which_there_are_no_names_leaves_nothing() {
    on_a_node_with("disk::a_pod_for_which_there_are_no_names_leaves_nothing", DISK, async |node| {
        begins_with(node, |n| (4 * MIB, n)).await;
    });
}

#[test]
fn how_a_container_ended_is_kept_once_there_is_room() {
    on_a_node_with("disk::how_a_container_ended_is_kept_once_there_is_room", DISK, async |node| {
        let mut shim = node.serve().await;
        let sandbox = shim.run(&pod("web", &node.folder.join("logs"))).await;
        let id = shim.create(&sandbox, &container("app", "while :; do sleep 1; done")).await;
        shim.start(&id).await;
        let filler = Filler::new(node, 0, 0);
        let request = StopContainerRequest { container_id: id.clone(), timeout: 0 };
        shim.runtime.stop_container(request).await.unwrap();
        assert_eq!(node.containerd.tasks().await.unwrap().len(), 1, "it alone knows");
        drop(filler);
        until("its task is deleted", async || node.containerd.tasks().await.unwrap().is_empty()).await;
        shim.end().await;
        let mut shim = node.serve().await;
        assert_eq!(shim.status(&id).await.exit_code, 137);
        shim.stop_and_remove(&sandbox).await;
        nothing_is_left(node).await;
        shim.end().await;
    });
}

/// containerd's database is as young as it can be: it has no page that it could write to but those that it asks for.
#[test]
fn all_there_is_can_be_removed_from_a_full_disk() {
    on_a_node_with("disk::all_there_is_can_be_removed_from_a_full_disk", DISK, async |node| {
        let mut shim = node.serve().await;
        let config = pod("web", &node.folder.join("logs"));
        begin(&mut shim, &config).await.unwrap();
        kept_back(node).await;
        let filler = Filler::new(node, 0, 0);
        // How it ends cannot be written down, and is known all the same.
        let listed = shim.runtime.list_containers(ListContainersRequest::default()).await.unwrap().into_inner();
        let container_id = listed.containers[0].id.clone();
        let request = StopContainerRequest { container_id: container_id.clone(), timeout: 0 };
        shim.runtime.stop_container(request).await.unwrap();
        assert_eq!(shim.status(&container_id).await.exit_code, 137);
        shim.end().await;
        let mut shim = node.serve().await;
        assert_eq!(shim.status(&container_id).await.exit_code, 137);

        remove_all(&mut shim).await;
        nothing_is_left(node).await;
        let image = Some(ImageSpec { image: IMAGE.into(), ..ImageSpec::default() });
        let full = used(node).0;
        shim.images.remove_image(RemoveImageRequest { image }).await.unwrap();
        assert!(used(node).0 + (MIB as u64) < full, "the image is gone from the disk");
        drop(filler);
        kept_back(node).await;
        shim.end().await;
    });
}
