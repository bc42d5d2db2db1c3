//! What the container runtime holds of one pod.

use super::lookup::ContainerPhase;
use crate::runtime::{Result, Runtime};
use cri::v1::{
    ContainerFilter, ContainerState, ContainerStatus, ContainerStatusRequest, ListContainersRequest,
    ListPodSandboxRequest, PodSandboxFilter, PodSandboxState, PodSandboxStatusRequest,
};
use std::collections::HashMap;
use std::net::IpAddr;
use std::path::PathBuf;

/// The kubelet's labels, by which a fresh process recognises what runs.
pub const POD_NAME: &str = "io.kubernetes.pod.name";
pub const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
pub const POD_UID: &str = "io.kubernetes.pod.uid";
pub const CONTAINER_NAME: &str = "io.kubernetes.container.name";
/// The annotation that tells which image a container was made for.
pub const CONTAINER_HASH: &str = "io.kubernetes.container.hash";
pub const TERMINATION_MESSAGE_PATH: &str = "io.kubernetes.container.terminationMessagePath";
pub const TERMINATION_MESSAGE_POLICY: &str = "io.kubernetes.container.terminationMessagePolicy";

/// One pod in the runtime; the newest comes first in both lists.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct View {
    pub sandboxes: Vec<Sandbox>,
    pub containers: Vec<Container>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sandbox {
    pub id: String,
    pub attempt: u32,
    /// Nanoseconds since the epoch, as all times here.
    pub created_at: i64,
    pub ready: bool,
    pub host_network: bool,
    pub ips: Vec<IpAddr>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Container {
    pub id: String,
    pub name: String,
    pub sandbox: String,
    pub attempt: u32,
    pub phase: ContainerPhase,
    /// The image as the pod spells it.
    pub image: String,
    /// The image by digest, where the runtime knows one.
    pub image_ref: String,
    pub created_at: i64,
    pub started_at: i64,
    pub finished_at: i64,
    pub exit_code: i32,
    pub reason: String,
    pub message: String,
    pub hash: String,
    pub log_path: PathBuf,
}

impl View {
    /// The latest container of that name.
    pub fn latest(&self, name: &str) -> Option<&Container> {
        self.containers.iter().find(|container| container.name == name)
    }

    /// The latest container of that name, if it belongs to the newest sandbox.
    pub fn active(&self, name: &str) -> Option<&Container> {
        let sandbox = &self.sandboxes.first()?.id;
        self.latest(name).filter(|container| &container.sandbox == sandbox)
    }

    /// The container of that name before the latest.
    pub fn previous(&self, name: &str) -> Option<&Container> {
        self.containers.iter().filter(|container| container.name == name).nth(1)
    }

    /// The newest sandbox, if it is ready.
    pub fn ready_sandbox(&self) -> Option<&Sandbox> {
        self.sandboxes.first().filter(|sandbox| sandbox.ready)
    }

    pub fn is_running(&self) -> bool {
        self.containers.iter().any(|container| container.phase == ContainerPhase::Running)
    }

    pub fn is_empty(&self) -> bool {
        self.sandboxes.is_empty() && self.containers.is_empty()
    }
}

/// Reads views, asking again only for what may have changed.
#[derive(Debug, Default)]
pub struct Observer {
    ended: HashMap<String, Container>,
    addresses: HashMap<String, Vec<IpAddr>>,
}

impl Observer {
    /// The pod with this uid as the runtime has it now.
    ///
    /// # Errors
    /// What the runtime said; nothing is known then.
    pub async fn observe(&mut self, runtime: &Runtime, uid: &str) -> Result<View> {
        let selector = HashMap::from([(POD_UID.to_string(), uid.to_string())]);
        let sandboxes = ListPodSandboxRequest {
            filter: Some(PodSandboxFilter { label_selector: selector.clone(), ..Default::default() }),
        };
        let containers =
            ListContainersRequest { filter: Some(ContainerFilter { label_selector: selector, ..Default::default() }) };
        let (sandboxes, containers) =
            tokio::try_join!(runtime.list_pod_sandbox(sandboxes), runtime.list_containers(containers))?;
        let mut view = View::default();
        for item in sandboxes.items {
            let ready = item.state == PodSandboxState::SandboxReady as i32;
            let mut sandbox = Sandbox {
                attempt: item.metadata.map_or(0, |metadata| metadata.attempt),
                created_at: item.created_at,
                ready,
                host_network: false,
                ips: Vec::new(),
                id: item.id,
            };
            if ready {
                sandbox.ips = self.addresses(runtime, &sandbox.id).await?;
            }
            view.sandboxes.push(sandbox);
        }
        for item in containers.containers {
            if let Some(container) = self.container(runtime, &item).await? {
                view.containers.push(container);
            }
        }
        view.sandboxes.sort_by_key(|sandbox| std::cmp::Reverse((sandbox.created_at, sandbox.attempt)));
        view.containers.sort_by_key(|container| std::cmp::Reverse((container.created_at, container.attempt)));
        self.ended.retain(|id, _| view.containers.iter().any(|container| &container.id == id));
        self.addresses.retain(|id, _| view.sandboxes.iter().any(|sandbox| &sandbox.id == id));
        Ok(view)
    }

    async fn addresses(&mut self, runtime: &Runtime, id: &str) -> Result<Vec<IpAddr>> {
        if let Some(known) = self.addresses.get(id) {
            return Ok(known.clone());
        }
        let request = PodSandboxStatusRequest { pod_sandbox_id: id.to_string(), verbose: false };
        let status = match runtime.pod_sandbox_status(request).await {
            Err(error) if error.is_not_found() => return Ok(Vec::new()),
            answer => answer?.status,
        };
        let network = status.and_then(|status| status.network).unwrap_or_default();
        let texts = std::iter::once(network.ip).chain(network.additional_ips.into_iter().map(|ip| ip.ip));
        let ips: Vec<IpAddr> = texts.filter_map(|text| text.parse().ok()).collect();
        self.addresses.insert(id.to_string(), ips.clone());
        Ok(ips)
    }

    async fn container(&mut self, runtime: &Runtime, item: &cri::v1::Container) -> Result<Option<Container>> {
        if item.state == ContainerState::ContainerExited as i32
            && let Some(known) = self.ended.get(&item.id)
        {
            return Ok(Some(known.clone()));
        }
        let request = ContainerStatusRequest { container_id: item.id.clone(), verbose: false };
        let status = match runtime.container_status(request).await {
            Err(error) if error.is_not_found() => return Ok(None),
            answer => answer?.status,
        };
        let Some(status) = status else { return Ok(None) };
        let mut container = from_status(&status, &item.pod_sandbox_id);
        if container.phase == ContainerPhase::Exited {
            container.message = termination_message(&status, &container).unwrap_or(container.message);
            self.ended.insert(container.id.clone(), container.clone());
        }
        Ok(Some(container))
    }
}

fn from_status(status: &ContainerStatus, sandbox: &str) -> Container {
    let metadata = status.metadata.clone().unwrap_or_default();
    let image = status.image.clone().unwrap_or_default();
    let phase = match ContainerState::try_from(status.state) {
        Ok(ContainerState::ContainerCreated) => ContainerPhase::Created,
        Ok(ContainerState::ContainerRunning) => ContainerPhase::Running,
        Ok(ContainerState::ContainerExited) => ContainerPhase::Exited,
        _ => ContainerPhase::Unknown,
    };
    Container {
        id: status.id.clone(),
        name: metadata.name,
        sandbox: sandbox.to_string(),
        attempt: metadata.attempt,
        phase,
        image: if image.user_specified_image.is_empty() { image.image } else { image.user_specified_image },
        image_ref: status.image_ref.clone(),
        created_at: status.created_at,
        started_at: status.started_at,
        finished_at: status.finished_at,
        exit_code: status.exit_code,
        reason: status.reason.clone(),
        message: status.message.clone(),
        hash: status.annotations.get(CONTAINER_HASH).cloned().unwrap_or_default(),
        log_path: status.log_path.clone().into(),
    }
}

/// The most that is kept of a termination message, and of a log that stands in for one (bytes, lines).
const MAX_MESSAGE: usize = 4096;
const MAX_LOG: usize = 2048;
const MAX_LINES: usize = 80;

/// What the container left at its termination message path, or with FallbackToLogsOnError the end of its log.
fn termination_message(status: &ContainerStatus, container: &Container) -> Option<String> {
    let path = status.annotations.get(TERMINATION_MESSAGE_PATH)?;
    let mount = status.mounts.iter().find(|mount| &mount.container_path == path);
    if let Some(mount) = mount
        && let Some(text) = read_tail(mount.host_path.as_ref(), MAX_MESSAGE)
        && !text.is_empty()
    {
        return Some(text);
    }
    let falls_back =
        status.annotations.get(TERMINATION_MESSAGE_POLICY).is_some_and(|policy| policy == "FallbackToLogsOnError");
    if !falls_back || container.exit_code == 0 {
        return None;
    }
    let log = read_tail(&container.log_path, 16 * MAX_LOG)?;
    Some(log_tail(&log)).filter(|text| !text.is_empty())
}

/// The end of a log in the CRI's format as plain text.
fn log_tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().filter_map(|line| line.splitn(4, ' ').nth(3)).collect();
    let text =
        lines[lines.len().saturating_sub(MAX_LINES)..].iter().map(|line| format!("{line}\n")).collect::<String>();
    let mut start = text.len().saturating_sub(MAX_LOG);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    text[start..].to_string()
}

fn read_tail(path: &std::path::Path, most: usize) -> Option<String> {
    use std::io::{Read, Seek, SeekFrom};
    let mut file = std::fs::File::open(path).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(most as u64))).ok()?;
    let mut bytes = Vec::new();
    file.take(most as u64).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_log_loses_its_time_stream_and_flag() {
        let log = "cut\n2026-01-01T00:00:00Z stdout F first line\n2026-01-01T00:00:01Z stderr F last\n";
        assert_eq!(log_tail(log), "first line\nlast\n");
    }
}
