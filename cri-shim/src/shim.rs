//! What the operations share: the parts they work with, and what is known of sandboxes and containers.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use cri::v1::{ContainerEventResponse, ContainerEventType, PodSandboxStatus};
use kernel::cgroup::Cgroups;

use crate::cni::Network;
use crate::container::spec::HostFacts;
use crate::container::{self, Container};
use crate::containerd::Containerd;
use crate::error::{Error, Result};
use crate::events::Events;
use crate::folders::Folders;
use crate::handler::{Handler, Handlers};
use crate::image::Images;
use crate::index::Index;
use crate::keeper::Keeper;
use crate::record::now;
use crate::sandbox::{self, Sandbox};
use crate::stats::Meter;

/// Before what failed is tried again, at first and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// What stays as it is while the shim runs.
#[derive(Debug, Clone)]
pub struct Settings {
    pub handlers: Handlers,
    pub snapshotter: String,
    /// The folder of the host's own hosts and resolv.conf.
    pub etc: PathBuf,
    /// The archive of the pause image and the name under which it is found.
    pub pause: &'static [u8],
    pub pause_image: String,
}

/// The node as the operations see it. containerd is authoritative for what there is, the indexes are what was read
/// from it or written to it; the kernel and the network plugins for what a sandbox holds.
pub struct Shim {
    pub settings: Settings,
    pub folders: Folders,
    pub containerd: Containerd,
    pub images: Images,
    pub network: Network,
    pub keeper: Keeper,
    pub host: HostFacts,
    /// `None` where no cgroups are mounted: nothing is counted then.
    pub cgroups: Option<Cgroups>,
    pub sandboxes: Index<Sandbox>,
    pub containers: Index<Container>,
    pub events: Events,
    /// `None` as `cgroups`.
    pub meter: Option<Arc<Meter>>,
    /// The pause image is imported by one at a time.
    pub importing: tokio::sync::Mutex<()>,
    pub levels: sandbox::level::Levels,
}

impl Shim {
    /// The handler that a sandbox asked for.
    ///
    /// # Errors
    /// `Invalid` for one that this node does not have.
    pub fn handler(&self, name: &str) -> Result<&Handler> {
        self.settings.handlers.find(name).ok_or_else(|| {
            let known: Vec<&str> = self.settings.handlers.all().iter().map(|handler| handler.name.as_str()).collect();
            let known = known.join(", ");
            Error::Invalid(format!("no runtime handler has the name {name:?}: this node has {known}"))
        })
    }

    /// The containers of a sandbox, by its full id.
    pub fn containers_of(&self, sandbox: &str) -> Vec<Arc<Container>> {
        let all = self.containers.all().into_iter();
        all.filter(|container| container.record().sandbox == sandbox).collect()
    }

    /// Tells listeners that something happened to a sandbox.
    pub fn tell_of_sandbox(&self, sandbox: &Sandbox, what: ContainerEventType) {
        self.events.publish(|| self.event(&sandbox.record.id, what, sandbox));
    }

    /// Tells listeners that something happened to a container.
    pub fn tell_of_container(&self, container: &Container, what: ContainerEventType) {
        let record = container.record();
        if let Some(sandbox) = self.sandboxes.get(&record.sandbox) {
            self.events.publish(|| self.event(&record.id, what, &sandbox));
        }
    }

    fn event(&self, id: &str, what: ContainerEventType, sandbox: &Sandbox) -> ContainerEventResponse {
        let mut status: PodSandboxStatus = sandbox::status::status(&sandbox.record, &sandbox.life());
        if what == ContainerEventType::ContainerDeletedEvent && id == sandbox.record.id {
            status.set_state(cri::v1::PodSandboxState::SandboxNotready);
        }
        let of = |container: &Arc<Container>| container::status::status(&container.record(), &container.state());
        ContainerEventResponse {
            container_id: id.to_owned(),
            container_event_type: what.into(),
            created_at: now(),
            pod_sandbox_status: Some(status),
            containers_statuses: self.containers_of(&sandbox.record.id).iter().map(of).collect(),
        }
    }
}

/// Does in a task of its own what failed and has to come about, such as what containerd was away for: again and again, ever
/// less often.
pub fn persist<F>(what: String, mut attempt: impl FnMut() -> F + Send + 'static)
where
    F: Future<Output = Result<()>> + Send,
{
    tokio::spawn(async move {
        let mut pause = FIRST_PAUSE;
        loop {
            tokio::time::sleep(pause).await;
            match attempt().await {
                Ok(()) => return,
                Err(error) => tracing::debug!("still to do, {what}: {error}"),
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    });
}

/// Runs what blocks on a thread where it may.
///
/// # Errors
/// What `work` fails with; `Part` where it panicked.
pub async fn blocking<T: Send + 'static>(
    attempt: &'static str,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(Error::part(attempt)(error)))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::cni::NetworkSettings;
    use crate::image::ImageSettings;
    use std::path::Path;
    use std::sync::atomic::{AtomicU32, Ordering};

    /// A shim with its files in `folder`, whose containerd and keeper never answer. Its network's only plugin is `/bin/false`.
    pub(crate) fn alone(folder: &Path) -> Arc<Shim> {
        let conf_dir = folder.join("net.d");
        std::fs::create_dir_all(&conf_dir).unwrap();
        let list = r#"{"cniVersion":"1.0.0","name":"pods","plugins":[{"type":"false"}]}"#;
        std::fs::write(conf_dir.join("10.conflist"), list).unwrap();
        let folders = Folders { root: folder.join("root"), state: folder.join("state") };
        folders.make().unwrap();
        let containerd = Containerd::new(&folder.join("containerd.sock"));
        let images = ImageSettings {
            snapshotter: "overlayfs".into(),
            certs_dir: None,
            max_concurrent_downloads: 1,
            stall: Duration::from_secs(1),
            pinned: Vec::new(),
            root: folder.join("containerd"),
        };
        let network = NetworkSettings {
            conf_dir,
            bin_dirs: vec!["/bin".into()],
            cache_dir: folder.join("cni"),
            netns_dir: folders.all_sandbox_states(),
            ..NetworkSettings::default()
        };
        Arc::new(Shim {
            levels: Default::default(),
            settings: Settings {
                handlers: Handlers::parse(&[], &[]).unwrap(),
                snapshotter: "overlayfs".into(),
                etc: "/etc".into(),
                pause: &[],
                pause_image: "pause".into(),
            },
            images: Images::new(containerd.clone(), images),
            network: Network::new(network),
            containerd,
            keeper: Keeper::start(folders.keeper(), vec!["false".into()]),
            host: HostFacts::default(),
            meter: None,
            cgroups: None,
            folders,
            sandboxes: Index::new("pod sandbox"),
            containers: Index::new("container"),
            events: Events::default(),
            importing: tokio::sync::Mutex::default(),
        })
    }

    #[tokio::test]
    async fn what_has_to_come_about_is_tried_until_it_does() {
        let tries = Arc::new(AtomicU32::new(0));
        let counted = tries.clone();
        persist("count".to_owned(), move || {
            let tried = counted.fetch_add(1, Ordering::SeqCst);
            async move { if tried < 2 { Err(Error::State("not yet".to_owned())) } else { Ok(()) } }
        });
        let begun = std::time::Instant::now();
        while Arc::strong_count(&tries) > 1 {
            assert!(begun.elapsed() < Duration::from_secs(20), "it goes on");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(tries.load(Ordering::SeqCst), 3);
    }
}
