//! What the operations share: the parts they work with, and what is known of sandboxes and containers.

use std::path::PathBuf;
use std::sync::Arc;

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
