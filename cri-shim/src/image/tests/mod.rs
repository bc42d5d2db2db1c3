//! Images on a containerd: pulled from registries that behave and that do not, imported, used and removed.

mod bed;
mod pushed;

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use serde_json::json;

use self::bed::{Bed, DOCKER_GZIP, GZIP, Layer, PLAIN, TestImage, ZSTD, cut, from, noise};
use super::digest::Digest;
use super::manifest::{OCI_INDEX, OCI_MANIFEST};
use super::registry::fake::{Ending, Fake, Reply, Seen};
use super::{Auth, ImageError, Images, RootfsOptions, User};

fn small() -> TestImage {
    TestImage::new(&[
        Layer::new(GZIP, "one", b"1"),
        Layer::new(ZSTD, "two", b"22"),
        Layer::new(PLAIN, "three", b"333"),
        Layer::new(DOCKER_GZIP, "four", b"4444"),
    ])
}

fn as_is(_: &Seen, reply: Reply) -> Reply {
    reply
}

fn blobs_asked(fake: &Fake) -> usize {
    fake.lines().iter().filter(|line| line.contains("/blobs/")).count()
}

/// Whether the topmost snapshot of the mounts' image shows the file with this content.
fn shows(mounts: &[containerd_client::types::Mount], name: &str, content: &[u8]) -> bool {
    let lower = mounts[0].options.iter().find_map(|option| option.strip_prefix("lowerdir=")).unwrap();
    lower.split(':').any(|folder| std::fs::read(format!("{folder}/{name}")).is_ok_and(|found| found == content))
}

#[tokio::test]
async fn an_image_is_pulled_found_used_and_removed() {
    let Some(bed) = Bed::start().await else { return };
    let image = small();
    let fake = image.serve(as_is).await;
    let images = bed.images(&[&fake]);
    let pulled = images.pull("a.test/x/y:1", None).await.unwrap();
    let at = format!("a.test/x/y@{}", image.digest());
    assert_eq!(
        (&pulled.id, &pulled.tags, &pulled.digests),
        (&image.id, &vec!["a.test/x/y:1".to_owned()], &vec![at.clone()])
    );
    assert_eq!((&pulled.user, pulled.labels["a"].as_str(), pulled.pinned), (&User::Id(1003), "b", false));
    let bytes: usize = image.blobs.values().map(Bytes::len).sum::<usize>() + image.manifest.len();
    assert_eq!(pulled.size, bytes as u64);
    let mut names = vec!["a.test/x/y:1".to_owned(), at.clone(), image.id.clone()];
    names.sort();
    assert_eq!(bed.names().await, names);
    assert_eq!(bed.leases().await, 0);
    for name in ["a.test/x/y:1", &at, &image.id, &image.id[7..19]] {
        assert_eq!(images.find(name).await.unwrap().as_ref(), Some(&pulled), "{name}");
    }
    bed.collect_garbage().await;
    let root = images.prepare_rootfs(&pulled, "root", RootfsOptions::default()).await.unwrap();
    assert_eq!(images.prepare_rootfs(&pulled, "root", RootfsOptions::default()).await.unwrap(), root);
    for (name, content) in [("one", "1"), ("two", "22"), ("three", "333"), ("four", "4444")] {
        assert!(shows(&root, name, content.as_bytes()), "{name} of {root:?}");
    }
    let view = RootfsOptions { read_only: true, ..RootfsOptions::default() };
    let view = images.prepare_rootfs(&pulled, "view", view).await.unwrap();
    assert!(view[0].options.iter().all(|option| !option.starts_with("upperdir=")), "{view:?}");
    assert_eq!(bed.snapshots().await, 6);
    images.remove_rootfs("root").await.unwrap();
    images.remove_rootfs("root").await.unwrap();
    images.remove_rootfs("view").await.unwrap();
    // From two at once, as the kubelet and somebody else.
    let removed = futures::join!(images.remove("a.test/x/y:1"), images.remove(&image.id[7..19]));
    assert!(removed.0.is_ok() && removed.1.is_ok());
    assert_eq!(images.find("a.test/x/y:1").await.unwrap(), None);
    images.remove("a.test/x/y:1").await.unwrap();
    assert_eq!((bed.names().await.len(), bed.snapshots().await), (0, 0));
    assert!(!bed.has(&image.digest()).await && !bed.has(&image.layers[0]).await);
}

#[tokio::test]
async fn what_is_there_is_not_fetched_again() {
    let Some(bed) = Bed::start().await else { return };
    let image = small();
    let fake = image.serve(as_is).await;
    let images = bed.images(&[&fake]);
    let by_tag = images.pull("a.test/x:1", None).await.unwrap();
    let asked = fake.lines();
    images.pull("a.test/x:1", None).await.unwrap();
    assert_eq!(fake.lines()[asked.len()..], ["HEAD /v2/x/manifests/1"]);
    // The same image from elsewhere is the same image, with one name more.
    let again = images.pull(&format!("a.test/other@{}", image.digest()), None).await.unwrap();
    assert_eq!(again.id, by_tag.id);
    assert_eq!((again.tags.len(), again.digests.len()), (1, 2));
    assert_eq!(blobs_asked(&fake), 5);
    // An image on the same lower layers brings only its own.
    let larger = TestImage::new(&[
        Layer::new(GZIP, "one", b"1"),
        Layer::new(ZSTD, "two", b"22"),
        Layer::new(GZIP, "other", b"o"),
    ]);
    let second = larger.serve(as_is).await;
    bed.images(&[&second]).pull("a.test/z:1", None).await.unwrap();
    assert_eq!(blobs_asked(&second), 2);
    bed.collect_garbage().await;
    assert_eq!(bed.snapshots().await, 5);
    images.remove(&by_tag.id).await.unwrap();
    assert_eq!(bed.snapshots().await, 3);
}

#[tokio::test]
async fn an_index_leads_to_the_image_of_this_machine() {
    let Some(bed) = Bed::start().await else { return };
    let image = small();
    let host = super::platform::Platform::host();
    let entry = |digest: &Digest, architecture: &str| {
        json!({ "mediaType": OCI_MANIFEST, "digest": digest, "size": image.manifest.len(),
            "platform": { "os": "linux", "architecture": architecture, "variant": host.variant } })
    };
    let other = Digest::of(b"other");
    let index = |own: &str| -> Bytes {
        let manifests = json!([entry(&other, "mips"), entry(&image.digest(), own)]);
        json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests }).to_string().into()
    };
    let (good, foreign) = (index(&host.architecture), index("sparc"));
    let (serve, bytes) = (image.clone(), good.clone());
    let fake = Fake::start(move |seen| match seen.path.as_str() {
        "/v2/x/manifests/1" => Reply::new(200, bytes.clone()).with("content-type", OCI_INDEX),
        "/v2/x/manifests/2" => Reply::new(200, foreign.clone()).with("content-type", OCI_INDEX),
        _ => serve.answer(seen),
    })
    .await;
    let images = bed.images(&[&fake]);
    let pulled = images.pull("a.test/x:1", None).await.unwrap();
    assert_eq!(pulled.digests, [format!("a.test/x@{}", Digest::of(&good))]);
    assert_eq!(pulled.id, image.id);
    bed.collect_garbage().await;
    assert!(bed.has(&image.digest()).await, "the index holds the manifest");
    let error = images.pull("a.test/x:2", None).await.unwrap_err();
    assert!(matches!(error, ImageError::Platform { .. }), "{error}");
    assert!(error.to_string().ends_with("it has linux/mips, linux/sparc"), "{error}");
    assert_eq!(bed.leases().await, 0);
}

#[tokio::test]
async fn a_broken_connection_is_gone_on_with() {
    let Some(bed) = Bed::start().await else { return };
    let image = TestImage::new(&[Layer::new(GZIP, "noise", &noise(3 << 20)), Layer::new(PLAIN, "b", &noise(900_000))]);
    let fake = image.serve(|_, reply| cut(reply, 400_000, Ending::Break)).await;
    bed.images(&[&fake]).pull("a.test/x:1", None).await.unwrap();
    let first = image.layers[0].as_str();
    let starts: Vec<_> = fake.seen().iter().filter(|seen| seen.path.ends_with(first)).map(from).collect();
    assert_eq!(starts[..3], [0, 400_000, 800_000], "no byte comes twice");
}

#[tokio::test]
async fn a_pull_that_nobody_waits_for_stops_and_the_next_goes_on() {
    let Some(bed) = Bed::start().await else { return };
    let image = TestImage::new(&[Layer::new(GZIP, "noise", &noise(2 << 20))]);
    let stalling = image.serve(|_, reply| cut(reply, 1 << 20, Ending::Stall)).await;
    let images = bed.images(&[&stalling]);
    let pull = images.pull("a.test/x:1", None);
    assert!(tokio::time::timeout(Duration::from_secs(1), pull).await.is_err());
    assert_eq!(bed.names().await.len(), 0);
    bed.collect_garbage().await;
    let whole = image.serve(as_is).await;
    bed.images(&[&whole]).pull("a.test/x:1", None).await.unwrap();
    let layer = whole.seen().into_iter().find(|seen| seen.path.ends_with(image.layers[0].as_str())).unwrap();
    assert!(from(&layer) >= 1 << 19, "{layer:?}");
    assert_eq!(bed.leases().await, 0, "the lease of the pull that stopped is gone");
}

#[tokio::test]
async fn a_registry_that_stalls_or_lies_is_told_of_and_a_mirror_helps() {
    let Some(bed) = Bed::start().await else { return };
    let image = small();
    let wrong = |seen: &Seen, reply: Reply| {
        if seen.path.contains("/blobs/") && reply.body.len() > 30 && !reply.body.starts_with(b"{") {
            let body: Vec<u8> = reply.body.iter().map(|byte| byte ^ 1).collect();
            return Reply::new(200, body);
        }
        reply
    };
    let liar = image.serve(wrong).await;
    let error = bed.images(&[&liar]).pull("a.test/x:1", None).await.unwrap_err();
    assert_eq!(error.code(), tonic::Code::DataLoss, "{error}");
    assert!(error.to_string().contains(&liar.address.to_string()), "{error}");
    let stalled = image
        .serve(|seen, reply| if seen.path.contains("/blobs/") { cut(reply, 10, Ending::Stall) } else { reply })
        .await;
    let error = bed.images(&[&stalled]).pull("a.test/x:1", None).await.unwrap_err();
    assert_eq!(error.code(), tonic::Code::DeadlineExceeded, "{error}");
    assert_eq!((bed.names().await.len(), bed.leases().await), (0, 0));
    let honest = image.serve(as_is).await;
    bed.images(&[&liar, &honest]).pull("a.test/x:1", None).await.unwrap();
    let missing = bed.images(&[&honest]).pull(&format!("a.test/x@{}", Digest::of(b"none")), None).await.unwrap_err();
    assert_eq!(missing.code(), tonic::Code::DataLoss, "it gives another manifest: {missing}");
}

#[tokio::test]
async fn the_same_pull_is_done_once_and_the_same_layer_too() {
    let Some(bed) = Bed::start().await else { return };
    let image = small();
    let fake = image.serve(as_is).await;
    let images = bed.images(&[&fake]);
    let user = |name: &str| Some(Auth { username: name.to_owned(), ..Auth::default() });
    let pulls = [None, None, user("one"), user("one"), user("two")].map(|auth| images.pull("a.test/x:1", auth));
    let pulled: Vec<_> = join_all(pulls).await.into_iter().map(|image| image.unwrap().id).collect();
    assert!(pulled.iter().all(|id| *id == image.id));
    let mut asked = BTreeMap::<_, usize>::new();
    for line in fake.lines() {
        *asked.entry(line).or_default() += 1;
    }
    assert_eq!(asked["HEAD /v2/x/manifests/1"], 3, "who has other credentials must show them");
    for layer in &image.layers {
        assert_eq!(asked[&format!("GET /v2/x/blobs/{layer}")], 1);
    }
    assert_eq!(bed.leases().await, 0);
}

#[tokio::test]
async fn the_garbage_collector_takes_nothing_from_a_pull_under_way() {
    let Some(bed) = Bed::start().await else { return };
    let image = TestImage::new(&[Layer::new(GZIP, "one", b"1"), Layer::new(GZIP, "noise", &noise(1 << 20))]);
    let slow = image.serve(|_, reply| cut(reply, 300_000, Ending::Break)).await;
    let images = bed.images(&[&slow]);
    let collect = async {
        loop {
            bed.collect_garbage().await;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let pulled =
        tokio::select! { pulled = images.pull("a.test/x:1", None) => pulled.unwrap(), () = collect => unreachable!() };
    bed.collect_garbage().await;
    let root = images.prepare_rootfs(&pulled, "root", RootfsOptions::default()).await.unwrap();
    assert!(shows(&root, "one", b"1"));
}

#[tokio::test]
async fn a_layer_that_unpacks_to_something_else_is_refused() {
    let Some(bed) = Bed::start().await else { return };
    let layers = [Layer::new(GZIP, "one", b"1"), Layer::new(GZIP, "two", b"2")];
    let ids = [Digest::of(&layers[0].tar), Digest::of(b"lie")];
    let fake = TestImage::with_diff_ids(&layers, &ids).serve(as_is).await;
    let error = bed.images(&[&fake]).pull("a.test/x:1", None).await.unwrap_err();
    assert!(matches!(error, ImageError::Layer { .. }), "{error}");
    let broken =
        TestImage::new(&[Layer { media_type: GZIP, tar: b"x".to_vec(), blob: Bytes::from_static(b"no gzip") }]);
    let fake = broken.serve(as_is).await;
    let error = bed.images(&[&fake]).pull("a.test/x:1", None).await.unwrap_err();
    assert!(matches!(error, ImageError::Containerd(_)), "{error}");
    assert_eq!((bed.names().await.len(), bed.leases().await), (0, 0));
    bed.collect_garbage().await;
    assert_eq!(bed.snapshots().await, 0);
}

fn layout(image: &TestImage, name: &str) -> Bytes {
    let index = json!({ "manifests": [{ "mediaType": OCI_MANIFEST, "digest": image.digest(), "size": image.manifest.len(),
        "annotations": { "io.containerd.image.name": name, "org.opencontainers.image.ref.name": "1" } }] });
    let mut builder = tar::Builder::new(Vec::new());
    let mut add = |path: String, bytes: &[u8]| {
        let mut header = tar::Header::new_ustar();
        header.set_size(bytes.len() as u64);
        builder.append_data(&mut header, path, bytes).unwrap();
    };
    add("index.json".to_owned(), index.to_string().as_bytes());
    for (digest, blob) in image.blobs.iter().map(|(digest, blob)| (digest.as_str(), blob)) {
        add(format!("blobs/{}", digest.replace(':', "/")), blob);
    }
    add(format!("blobs/sha256/{}", image.digest().hex()), &image.manifest);
    builder.into_inner().unwrap().into()
}

#[tokio::test]
async fn an_archive_is_imported_and_stays_pinned() {
    let Some(bed) = Bed::start().await else { return };
    let image = small();
    let images = bed.images(&[]);
    let archive = layout(&image, "a.test/pinned:1");
    let imported = images.import(archive.clone()).await.unwrap();
    assert_eq!((&imported.id, imported.pinned), (&image.id, true));
    assert_eq!(imported.tags, ["a.test/pinned:1"]);
    bed.collect_garbage().await;
    assert_eq!(images.import(archive).await.unwrap(), imported);
    // Pinned is what the store says, whoever asks.
    let other = Images::new(bed.containerd.clone(), super::ImageSettings { pinned: Vec::new(), ..bed.settings(None) });
    assert!(other.find(&image.id).await.unwrap().unwrap().pinned);
    assert!(images.import(Bytes::from_static(b"no archive")).await.is_err());
    assert_eq!(bed.leases().await, 0);
}

#[tokio::test]
async fn an_image_whose_snapshots_went_is_unpacked_again_and_one_without_content_is_not_shown() {
    let Some(bed) = Bed::start().await else { return };
    let image = small();
    let fake = image.serve(as_is).await;
    let images = bed.images(&[&fake]);
    let pulled = images.pull("a.test/x:1", None).await.unwrap();
    let snapshotter = bed.containerd.snapshotter("overlayfs");
    let (_, facts) = images.records().await.unwrap();
    let chain = facts[&image.digest()].chain.clone();
    for id in chain.iter().rev() {
        snapshotter.remove(id).await.unwrap();
    }
    let root = images.prepare_rootfs(&pulled, "root", RootfsOptions::default()).await.unwrap();
    assert!(shows(&root, "four", b"4444"));
    images.remove_rootfs("root").await.unwrap();
    bed.collect_garbage().await;
    assert_eq!(bed.snapshots().await, 4);
    // An image of another client, with a name and without content.
    let foreign = containerd_client::services::v1::Image {
        name: "a.test/foreign:1".to_owned(),
        target: Some(super::manifest::Descriptor::new(OCI_MANIFEST, b"nowhere").to_containerd()),
        ..Default::default()
    };
    bed.containerd.image_put(foreign).await.unwrap();
    assert_eq!(images.list().await.unwrap().len(), 1);
    images.remove(&image.id).await.unwrap();
    let gone = images.prepare_rootfs(&pulled, "root", RootfsOptions::default()).await.unwrap_err();
    assert!(matches!(gone, ImageError::Incomplete { .. }), "{gone}");
}

#[tokio::test]
async fn what_snapshots_take_is_measured() {
    let Some(bed) = Bed::start().await else { return };
    let image = TestImage::new(&[Layer::new(GZIP, "noise", &noise(1 << 20))]);
    let fake = image.serve(as_is).await;
    let images = bed.images(&[&fake]);
    let pulled = images.pull("a.test/x:1", None).await.unwrap();
    let all = images.fs_usage().await.unwrap();
    assert_eq!(all.mount_point, bed.folder.path().join("root/io.containerd.snapshotter.v1.overlayfs"));
    assert!(all.bytes >= 1 << 20 && all.inodes >= 1, "{all:?}");
    let hold = RootfsOptions {
        labels: [("containerd.io/gc.root".to_owned(), "now".to_owned())].into(),
        ..RootfsOptions::default()
    };
    let root = images.prepare_rootfs(&pulled, "root", hold).await.unwrap();
    let upper = root[0].options.iter().find_map(|option| option.strip_prefix("upperdir=")).unwrap();
    std::fs::write(format!("{upper}/written"), noise(1 << 16)).unwrap();
    assert!(images.usage("root").await.unwrap().bytes >= 1 << 16);
    assert!(images.usage("nothing").await.is_err());
    let more = images.fs_usage().await.unwrap();
    assert!(more.bytes >= all.bytes + (1 << 16), "{more:?}");
}

#[tokio::test]
async fn a_run_that_died_leaves_no_lease() {
    let Some(bed) = Bed::start().await else { return };
    let lease = bed.containerd.lease().await.unwrap();
    std::mem::forget(lease);
    bed.images(&[]).restore().await.unwrap();
    assert_eq!(bed.leases().await, 0);
}
