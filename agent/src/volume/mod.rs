//! Volumes of pods, in the kubelet's layout:
//!
//! ```text
//! ROOT/pods/<uid>/volumes/kubernetes.io~<plugin>/<volume>      what containers mount
//! ROOT/pods/<uid>/volume-subpaths/<volume>/<container>/<n>     a subPath, mounted by descriptor
//! ```
//!
//! Expected flow: [`Volumes::setup`] before a pod's containers, again whenever the pod changed (it is idempotent);
//! [`Volumes::container_mounts`] before each container; [`Volumes::teardown`] once no container is left.
//! [`Volumes::run`] keeps mounted configMaps, secrets and tokens fresh meanwhile; at start [`Volumes::on_disk`] shows
//! what pods left that no longer exist.
//!
//! The truth is on disk and in mountinfo; in memory is only which pods are set up, which a `setup` after a restart
//! tells again.

mod atomic;
mod downward;
mod empty_dir;
mod error;
mod host_path;
mod mounts;
mod objects;
mod ownership;
mod payload;
mod refresh;
mod sources;
mod subpath;
mod teardown;
mod token;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use k8s_openapi::api::core::v1::{Pod, Volume};

pub use error::{Cause, SubPathError, VolumeError};
pub use mounts::{MountRequest, Support};
pub use objects::{Content, Key, Kind, ObjectError, Objects};
pub use teardown::TeardownError;

use sources::Source;
use token::Tokens;

/// What the node can give, for `resourceFieldRef` without a limit and for memory volumes without a size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NodeCapacity {
    pub milli_cpu: i64,
    pub memory: i64,
    pub ephemeral_storage: i64,
}

/// The volumes of this node's pods. Cloning shares them.
#[derive(Clone)]
pub struct Volumes {
    inner: Arc<Inner>,
}

struct Inner {
    /// The agent's root folder, such as /var/lib/kubelet.
    root: PathBuf,
    node: NodeCapacity,
    objects: Objects,
    tokens: Tokens,
    pods: Mutex<BTreeMap<String, Known>>,
}

/// A pod whose volumes were asked for.
#[derive(Clone)]
struct Known {
    pod: Arc<Pod>,
    /// One set-up, update or teardown of a pod at a time.
    turn: Arc<tokio::sync::Mutex<()>>,
}

impl Volumes {
    /// Volumes below `root`, the agent's root folder, which is made where it is missing.
    pub fn new(root: &Path, client: kube::Client, node: NodeCapacity) -> Self {
        // Mountinfo names real paths only. A folder that cannot be made fails the first volume, which says so.
        let _ = std::fs::create_dir_all(root);
        let inner = Inner {
            root: root.canonicalize().unwrap_or_else(|_| root.to_owned()),
            node,
            objects: Objects::new(client.clone()),
            tokens: Tokens::new(client),
            pods: Mutex::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// ConfigMaps and secrets, watched while a pod uses them; for environment variables too.
    pub fn objects(&self) -> &Objects {
        &self.inner.objects
    }

    /// `ROOT/pods/<uid>`, which the agent shares: etc-hosts and containers/ in it are its own.
    pub fn pod_dir(&self, uid: &str) -> PathBuf {
        pod_dir(&self.inner.root, uid)
    }

    /// Makes every volume that a container of the pod mounts. Idempotent; contents are brought up to date.
    ///
    /// # Errors
    /// One for each volume that could not be made; the others are made. Each prints as the message of a `FailedMount`
    /// Event. Asking again is the caller's; what changed meanwhile is told by [`Self::run`].
    pub async fn setup(&self, pod: &Arc<Pod>) -> Result<(), Vec<VolumeError>> {
        let known = self.know(pod);
        self.bring_up(known).await
    }

    /// Makes and updates the volumes of a pod, unless it was torn down meanwhile.
    async fn bring_up(&self, known: Known) -> Result<(), Vec<VolumeError>> {
        let Known { pod, turn } = known;
        let _turn = turn.lock().await;
        let uid = uid(&pod);
        let is_here = |here: &Known| Arc::ptr_eq(&here.turn, &turn);
        if !self.pods().get(uid).is_some_and(is_here) {
            return Ok(());
        }
        let mut used_objects = BTreeSet::new();
        let mut work = Vec::new();
        for volume in mounted_volumes(&pod) {
            let source = sources::parse(volume);
            used_objects.extend(source.iter().flat_map(|source| source.objects(&pod)));
            let inner = &self.inner;
            let pod = &pod;
            work.push(async move {
                let result = match source {
                    Ok(source) => inner.set_up_one(pod, volume, source).await,
                    Err(cause) => Err(cause),
                };
                result.map_err(|cause| VolumeError { volume: volume.name.clone(), cause })
            });
        }
        let results = futures::future::join_all(work).await;
        self.inner.objects.keep_mounted(uid, &used_objects);
        let errors: Vec<_> = results.into_iter().filter_map(Result::err).collect();
        if errors.is_empty() { Ok(()) } else { Err(errors) }
    }

    /// True while the pod's volumes are set up or being torn down.
    pub fn knows(&self, uid: &str) -> bool {
        self.pods().contains_key(uid)
    }

    fn pods(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Known>> {
        self.inner.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn know(&self, pod: &Arc<Pod>) -> Known {
        let mut pods = self.pods();
        let known = pods.entry(uid(pod).to_owned()).or_insert_with(|| Known { pod: pod.clone(), turn: Arc::default() });
        known.pod = pod.clone();
        known.clone()
    }
}

impl Inner {
    async fn set_up_one(&self, pod: &Pod, volume: &Volume, source: Source) -> Result<(), Cause> {
        let dir = volume_dir(&self.root, uid(pod), &source, &volume.name);
        match source {
            Source::HostPath { path, kind } => blocking(move || host_path::check(Path::new(&path), &kind)).await,
            Source::EmptyDir(source) => {
                let size = empty_dir::size(&source, pod, &self.node);
                let (medium, owner) = (source.medium.unwrap_or_default(), ownership::Group::of(pod, false));
                blocking(move || empty_dir::set_up(&dir, &medium, size, owner)).await
            }
            Source::Files { sources, memory, .. } => {
                let payload = payload::collect(self, pod, &sources).await?;
                let group = ownership::Group::of(pod, true);
                blocking(move || {
                    // What is secret never touches a disk.
                    empty_dir::set_up(&dir, if memory { "Memory" } else { "" }, None, None)?;
                    atomic::write(&dir, &payload, |dir| group.map_or(Ok(()), |g| ownership::apply(dir, g)))
                })
                .await
            }
        }
    }
}

/// File work off the runtime's threads.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Cause> + Send + 'static) -> Result<T, Cause> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Cause::Task(error.to_string())),
    }
}

fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

fn pod_dir(root: &Path, uid: &str) -> PathBuf {
    root.join("pods").join(uid)
}

/// Where containers find the volume: its own folder, or the host's path.
fn volume_dir(root: &Path, uid: &str, source: &Source, volume: &str) -> PathBuf {
    match source {
        Source::HostPath { path, .. } => PathBuf::from(path),
        other => pod_dir(root, uid).join("volumes").join(format!("kubernetes.io~{}", other.plugin())).join(volume),
    }
}

/// The volumes that some container mounts, in the order of the pod; others are not made.
fn mounted_volumes(pod: &Pod) -> Vec<&Volume> {
    let Some(spec) = &pod.spec else { return Vec::new() };
    let ordinary = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let mut names: BTreeSet<&str> = ordinary.flat_map(|c| c.volume_mounts.iter().flatten()).map(|m| &*m.name).collect();
    let ephemeral = spec.ephemeral_containers.iter().flatten().flat_map(|c| c.volume_mounts.iter().flatten());
    names.extend(ephemeral.map(|m| &*m.name));
    spec.volumes.iter().flatten().filter(|v| names.contains(&*v.name)).collect()
}

#[cfg(test)]
mod tests;
