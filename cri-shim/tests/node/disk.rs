//! A disk that is full: what needs room fails and says why, what makes room works.

use std::io::Write;
use std::path::PathBuf;
use std::process::Command;

use cri::v1::*;

use super::bed::{Node, Served, on_a_node_with, until};
use super::{archive, registry};

/// Room for the image of the tests and for another of 16 MiB twice, packed and unpacked.
const DISK: Option<&str> = Some("size=48m,nr_inodes=2000");
const MIB: usize = 1 << 20;

/// Bytes and names that take all room of a node's disk, until they are dropped.
struct Filler(PathBuf);

impl Filler {
    /// Leaves `room` bytes, and where that is none, no file can be made either.
    fn new(node: &Node, room: usize) -> Self {
        let folder = node.disk.join("filler");
        std::fs::create_dir(&folder).unwrap();
        let mut file = std::fs::File::create(folder.join("bytes")).unwrap();
        let block = [1; 4096];
        let mut size = 0;
        while let Ok(written) = file.write(&block) {
            size += written;
        }
        file.set_len((size - room) as u64).unwrap();
        if room == 0 {
            let name = |n: &u32| folder.join(n.to_string());
            assert!((0..).take_while(|n| std::fs::write(name(n), "").is_ok()).count() > 0);
        }
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
        let name = registry::serve(&archive::large(2, 8 * MIB)).await;
        let before = (shim.image_names().await, stored());
        // Full while the layers come, while the first and while the second is unpacked, and before anything comes.
        for room in [12 * MIB, 20 * MIB, 28 * MIB, 0] {
            let filler = Filler::new(node, room);
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
