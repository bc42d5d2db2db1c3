//! Removing images that nobody uses when the disk fills.

use super::Images;
use crate::config::Config;
use crate::event::Kind;
use crate::pod::Context;
use cri::v1::{ImageFsInfoRequest, ListContainersRequest, ListImagesRequest, RemoveImageRequest, StatusRequest};
use lifecycle::Stop;
use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};
use tracing::{info, warn};

/// How often the disk is looked at.
const LOOK: Duration = Duration::from_secs(300);
/// How often it is noted which images are in use.
const NOTE: Duration = Duration::from_secs(60);

/// When an image was seen first and used last.
#[derive(Clone, Copy, Debug)]
struct Seen {
    first: Instant,
    used: Instant,
}

/// An image that may be removed.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Idle {
    id: String,
    size: u64,
    unused: Duration,
    age: Duration,
}

/// Which images go, the longest unused first, until `surplus` bytes are freed; and all that are unused for longer than
/// the configuration allows.
fn choose(mut idle: Vec<Idle>, surplus: u64, config: &Config) -> Vec<String> {
    idle.sort_by_key(|image| std::cmp::Reverse((image.unused, image.age)));
    let most = config.image_maximum_gc_age;
    let mut freed = 0;
    let mut chosen = Vec::new();
    for image in idle {
        let expired = !most.is_zero() && image.unused > most;
        if expired || (freed < surplus && image.age >= config.image_minimum_gc_age) {
            freed += image.size;
            chosen.push(image.id);
        }
    }
    chosen
}

/// Bytes to free so that usage comes down to the low threshold; 0 below the high one.
fn surplus(capacity: u64, available: u64, config: &Config) -> u64 {
    let used = capacity.saturating_sub(available);
    if capacity == 0 || used * 100 < capacity * config.image_gc_high_threshold_percent {
        return 0;
    }
    used.saturating_sub(capacity * config.image_gc_low_threshold_percent / 100)
}

/// Watches the disk until `stop`.
pub async fn collect(ctx: &Context, stop: Stop) {
    let mut seen: HashMap<String, Seen> = HashMap::new();
    let mut looked = Instant::now();
    loop {
        tokio::select! { () = stop.stopped() => return, () = tokio::time::sleep(NOTE) => {} }
        let Some(idle) = note(ctx, &mut seen).await else { continue };
        if looked.elapsed() < LOOK {
            continue;
        }
        looked = Instant::now();
        let Ok(info) = ctx.runtime.image_fs_info(ImageFsInfoRequest {}).await else { continue };
        let mount = info.image_filesystems.first().and_then(|fs| fs.fs_id.as_ref()).map(|id| id.mountpoint.clone());
        let Some(space) = mount.and_then(|mount| kernel::mount::space(mount.as_ref()).ok()) else { continue };
        let surplus = surplus(space.capacity, space.available, &ctx.config);
        remove(ctx, &ctx.images, choose(idle, surplus, &ctx.config), surplus).await;
    }
}

async fn note(ctx: &Context, seen: &mut HashMap<String, Seen>) -> Option<Vec<Idle>> {
    let images = ctx.runtime.list_images(ListImagesRequest::default()).await.ok()?.images;
    let containers = ctx.runtime.list_containers(ListContainersRequest::default()).await.ok()?.containers;
    let sandbox = ctx
        .runtime
        .status(StatusRequest { verbose: true })
        .await
        .ok()?
        .info
        .get("config")
        .and_then(|config| sandbox_image(config));
    let used: HashSet<String> = containers
        .into_iter()
        .flat_map(|container| [container.image_ref, container.image.map(|image| image.image).unwrap_or_default()])
        .chain(sandbox)
        .collect();
    let now = Instant::now();
    seen.retain(|id, _| images.iter().any(|image| &image.id == id));
    let mut idle = Vec::new();
    for image in images {
        let entry = seen.entry(image.id.clone()).or_insert(Seen { first: now, used: now });
        let names = image.repo_digests.iter().chain(&image.repo_tags).chain([&image.id]);
        if names.into_iter().any(|name| used.contains(name)) {
            entry.used = now;
        } else if !image.pinned {
            let (unused, age) = (now - entry.used, now - entry.first);
            idle.push(Idle { id: image.id, size: image.size, unused, age });
        }
    }
    Some(idle)
}

/// The image of every sandbox, as containerd tells its configuration. No container names it, and containerd before 1.7
/// does not say that it is pinned: without it no pod would start again.
fn sandbox_image(config: &str) -> Option<String> {
    let config: serde_json::Value = serde_json::from_str(config).ok()?;
    config.get("sandboxImage")?.as_str().map(str::to_owned)
}

async fn remove(ctx: &Context, images: &Images, chosen: Vec<String>, surplus: u64) {
    let mut failed = None;
    for id in &chosen {
        let image = Some(cri::v1::ImageSpec { image: id.clone(), ..Default::default() });
        match ctx.runtime.remove_image(RemoveImageRequest { image }).await {
            Ok(_) => {
                info!(id, "removed an image that nobody used");
                images.records.forget(id);
            }
            Err(error) => failed = Some(error),
        }
    }
    if surplus > 0 && (chosen.is_empty() || failed.is_some()) {
        let why = failed.map_or_else(|| "no image is unused".to_string(), |error| error.to_string());
        let message =
            format!("Failed to garbage collect required amount of images. Attempted to free {surplus} bytes: {why}");
        warn!(message, "image garbage collection");
        if let Some(node) = ctx.node.borrow().clone() {
            ctx.events.node(&node, Kind::Warning, "ImageGCFailed", message);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_unused_goes_first_and_the_young_stay() {
        let minutes = |minutes: u64| Duration::from_secs(minutes * 60);
        let idle = |id: &str, unused, age| Idle { id: id.into(), size: 10, unused: minutes(unused), age: minutes(age) };
        let images = vec![idle("new", 1, 1), idle("old", 30, 60), idle("older", 50, 60)];
        let config = Config::default();
        assert_eq!(choose(images.clone(), 5, &config), ["older"]);
        assert_eq!(choose(images.clone(), 1000, &config), ["older", "old"]);
        assert!(choose(images.clone(), 0, &config).is_empty());
        let aged = Config { image_maximum_gc_age: minutes(40), ..config };
        assert_eq!(choose(images, 0, &aged), ["older"]);
    }

    #[test]
    fn nothing_is_surplus_below_the_high_threshold() {
        assert_eq!(surplus(100, 16, &Config::default()), 0);
        assert_eq!(surplus(100, 10, &Config::default()), 10);
    }

    #[test]
    fn the_sandboxes_image_is_known() {
        let config = r#"{"containerd": {"snapshotter": "overlayfs"}, "sandboxImage": "registry.k8s.io/pause:3.10"}"#;
        assert_eq!(sandbox_image(config).as_deref(), Some("registry.k8s.io/pause:3.10"));
        assert_eq!(sandbox_image(r#"{"cdiSpecDirs": []}"#), None);
    }
}
