//! Bringing up: a pod's sandbox, and each of its containers.

use super::context::Context;
use super::spec;
use super::view::{POD_UID, View};
use crate::container::config::{self, DEFAULT_MESSAGE_PATH, Parts};
use crate::container::env::{self, Sources};
use crate::event::Kind;
use crate::hook;
use crate::image::Image;
use crate::probe::exec::Target;
use crate::runtime::RuntimeError;
use crate::sandbox::{self, dns, hosts};
use crate::volume::{Key, Kind as ObjectKind, MountRequest, ObjectError, Support};
use cri::v1::{
    CreateContainerRequest, Mount, PodSandboxConfig, RunPodSandboxRequest, StartContainerRequest, StopContainerRequest,
};
use k8s_openapi::api::core::v1::{Container, Pod};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tracing::info;

/// A sandbox that could not be made is tried again after this long, for a try that fails is not free: it made a network
/// namespace and asked for addresses.
const FAILED_SANDBOX: Duration = Duration::from_secs(3);

/// Why something was not started: the waiting reason of the container, its message, and where nothing that wakes the pod's
/// worker may be a reason to try sooner, when to try again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotStarted {
    pub reason: &'static str,
    pub message: String,
    pub retry: Option<Duration>,
}

impl NotStarted {
    fn new(reason: &'static str, message: impl ToString) -> Self {
        Self { reason, message: message.to_string(), retry: None }
    }
}

type Result<T> = std::result::Result<T, NotStarted>;

/// Starts things for one pod.
pub struct Starter<'a> {
    pub ctx: &'a Context,
    pub pod: &'a Arc<Pod>,
    pub cgroup_parent: &'a str,
}

impl Starter<'_> {
    /// Makes the pod's sandbox. What is wrong becomes an Event.
    ///
    /// # Errors
    /// Where it could not be made.
    pub async fn sandbox(&self, attempt: u32) -> Result<()> {
        let Self { ctx, pod, .. } = self;
        let network = ctx.network.borrow().clone();
        if !network.is_empty() && !spec::is_host_network(pod) {
            self.warn("NetworkNotReady", format!("network is not ready: {network}"));
            return Err(NotStarted::new("ContainerCreating", ""));
        }
        let runtime_handler = self.runtime_handler().await?;
        let config = self.sandbox_config(attempt, true);
        if let Err(error) = std::fs::create_dir_all(&config.log_directory) {
            self.warn("FailedCreatePodSandBox", format!("create pod log directory {}: {error}", config.log_directory));
            return Err(NotStarted::new("ContainerCreating", ""));
        }
        let request = RunPodSandboxRequest { config: Some(config), runtime_handler };
        match ctx.runtime.run_pod_sandbox(request).await {
            Ok(made) => {
                info!(pod = spec::full_name(pod), sandbox = made.pod_sandbox_id, "made the sandbox");
                Ok(())
            }
            Err(error) => {
                self.warn("FailedCreatePodSandBox", format!("Failed to create pod sandbox: {error}"));
                Err(NotStarted { retry: Some(FAILED_SANDBOX), ..NotStarted::new("ContainerCreating", "") })
            }
        }
    }

    fn sandbox_config(&self, attempt: u32, tell: bool) -> PodSandboxConfig {
        let (dns, warning) = dns::resolve(self.pod, &self.ctx.config, &self.ctx.host.dns);
        if let Some(warning) = warning.filter(|_| tell) {
            self.warn("MissingClusterDNS", warning);
        }
        sandbox::config(self.pod, &self.ctx.config, attempt, dns, self.cgroup_parent)
    }

    /// The CRI's name of the pod's runtime class.
    async fn runtime_handler(&self) -> Result<String> {
        use k8s_openapi::api::node::v1::RuntimeClass;
        let class = self.pod.spec.as_ref().and_then(|spec| spec.runtime_class_name.clone()).unwrap_or_default();
        if class.is_empty() {
            return Ok(String::new());
        }
        let classes: kube::Api<RuntimeClass> = kube::Api::all(self.ctx.client.clone());
        match classes.get(&class).await {
            Ok(found) => Ok(found.handler),
            Err(error) => {
                let message = format!("Failed to create pod sandbox: RuntimeClass {class:?}: {error}");
                self.warn("FailedCreatePodSandBox", message);
                Err(NotStarted::new("ContainerCreating", ""))
            }
        }
    }

    /// Creates and starts a container, and runs its postStart hook.
    ///
    /// # Errors
    /// The waiting reason; the Event is sent.
    pub async fn container(&self, container: &Container, attempt: u32, view: &View) -> Result<()> {
        let Some(sandbox) = view.ready_sandbox() else { return Ok(()) };
        let sandbox_config = self.sandbox_config(sandbox.attempt, false);
        let image = self.ctx.images.ensure(self.pod, container, &sandbox_config).await.map_err(|error| {
            self.failed(container, error.reason);
            NotStarted { reason: error.reason, message: error.message, retry: Some(error.retry) }
        })?;
        let ips = if spec::is_host_network(self.pod) { &self.ctx.host.ips } else { &sandbox.ips };
        let config = self.config(container, attempt, (&image, ips)).await.inspect_err(|not| {
            self.failed(container, &not.message);
        })?;
        let log_folder = Path::new(&sandbox_config.log_directory).join(&container.name);
        if let Err(error) = std::fs::create_dir_all(&log_folder) {
            let message = format!("create container log directory {}: {error}", log_folder.display());
            self.failed(container, &message);
            return Err(NotStarted::new("CreateContainerError", message));
        }
        let request = CreateContainerRequest {
            pod_sandbox_id: sandbox.id.clone(),
            config: Some(config),
            sandbox_config: Some(sandbox_config),
        };
        let created = self.ctx.runtime.create_container(request).await.map_err(|error| {
            self.failed(container, &error.message());
            NotStarted::new("CreateContainerError", error.message())
        })?;
        let id = created.container_id;
        self.tell(container, "Created", "Container created");
        let started = self.ctx.runtime.start_container(StartContainerRequest { container_id: id.clone() }).await;
        if let Err(error) = started {
            self.failed(container, &error.message());
            return Err(NotStarted::new("RunContainerError", error.message()));
        }
        self.tell(container, "Started", "Container started");
        info!(pod = spec::full_name(self.pod), container = container.name, id, attempt, "started");
        self.post_start(container, &id, ips.first().copied()).await
    }

    async fn post_start(&self, container: &Container, id: &str, address: Option<IpAddr>) -> Result<()> {
        let Some(handler) = container.lifecycle.as_ref().and_then(|lifecycle| lifecycle.post_start.as_ref()) else {
            return Ok(());
        };
        let ports = container.ports.as_deref().unwrap_or_default();
        let target = Target { address, ports, container_id: id };
        let Err(error) = hook::run(&self.ctx.runtime, handler, target).await else { return Ok(()) };
        info!(pod = spec::full_name(self.pod), container = container.name, %error, "postStart hook failed");
        let events = &self.ctx.events;
        events.pod(
            self.pod,
            Some(&container.name),
            Kind::Warning,
            "FailedPostStartHook",
            "PostStartHook failed".into(),
        );
        self.tell(container, "Killing", "FailedPostStartHook");
        let timeout = i64::try_from(spec::grace(self.pod).as_secs()).unwrap_or(30);
        let stopped = self.ctx.runtime.stop_container(StopContainerRequest { container_id: id.into(), timeout }).await;
        if let Err(error) = stopped {
            info!(container = container.name, %error, "not stopped after its postStart hook failed");
        }
        Err(NotStarted::new("PostStartHookError", "PostStartHook failed"))
    }

    async fn config(
        &self,
        container: &Container,
        attempt: u32,
        (image, ips): (&Image, &[IpAddr]),
    ) -> Result<cri::v1::ContainerConfig> {
        let refused = |message: String| NotStarted::new("CreateContainerConfigError", message);
        let sources = self.sources(container, ips).await?;
        let environment =
            env::environment(self.pod, container, &sources).map_err(|error| refused(error.to_string()))?;
        let request = MountRequest {
            pod: self.pod,
            container: &container.name,
            mounts: container.volume_mounts.as_deref().unwrap_or_default(),
            environment: &environment,
            support: Support::default(),
        };
        let mut mounts =
            self.ctx.volumes.container_mounts(request).await.map_err(|error| refused(error.to_string()))?;
        self.own_mounts(container, attempt, ips, &mut mounts).map_err(|error| refused(error.to_string()))?;
        let parts = Parts {
            config: &self.ctx.config,
            root_dir: &self.ctx.root_dir,
            attempt,
            image_ref: &image.id,
            image_user: &image.user,
            env: &environment,
            mounts,
            memory_capacity: self.ctx.host.memory,
        };
        config::build(self.pod, container, parts).map_err(|error| refused(error.to_string()))
    }

    /// The hosts file, which all containers share, and the termination log, which is each container's own.
    fn own_mounts(
        &self,
        container: &Container,
        attempt: u32,
        ips: &[IpAddr],
        mounts: &mut Vec<Mount>,
    ) -> std::io::Result<()> {
        let folder = config::pod_folder(&self.ctx.root_dir, self.pod);
        let plain = |container_path: &str, host: &Path| Mount {
            container_path: container_path.into(),
            host_path: host.display().to_string(),
            selinux_relabel: true,
            ..Mount::default()
        };
        if !mounts.iter().any(|mount| mount.container_path == "/etc/hosts") {
            let file = folder.join("etc-hosts");
            std::fs::create_dir_all(&folder)?;
            let node = std::fs::read_to_string("/etc/hosts").unwrap_or_default();
            // Written in place: running containers have this very file mounted.
            std::fs::write(&file, hosts::content(self.pod, &self.ctx.config, ips, &node))?;
            mounts.push(plain("/etc/hosts", &file));
        }
        let wanted = container.termination_message_path.as_deref().filter(|path| !path.is_empty());
        let path = wanted.unwrap_or(DEFAULT_MESSAGE_PATH);
        let messages = folder.join("containers").join(&container.name);
        std::fs::create_dir_all(&messages)?;
        let file = messages.join(attempt.to_string());
        std::fs::File::create(&file)?;
        // Whoever the container runs as may write its last words.
        std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o666))?;
        mounts.push(plain(path, &file));
        Ok(())
    }

    async fn sources(&self, container: &Container, ips: &[IpAddr]) -> Result<Sources> {
        let (maps, secrets) = env::references(container);
        let mut sources = Sources {
            services: self.services().await,
            pod_ips: ips.to_vec(),
            host_ips: self.ctx.host.ips.clone(),
            allocatable_milli_cpu: self.ctx.host.allocatable_milli_cpu,
            allocatable_memory: self.ctx.host.allocatable_memory,
            ..Sources::default()
        };
        for name in maps {
            let data = self.object(ObjectKind::ConfigMap, &name).await?;
            sources.config_maps.insert(name, data);
        }
        for name in secrets {
            let data = self.object(ObjectKind::Secret, &name).await?;
            sources.secrets.insert(name, data);
        }
        Ok(sources)
    }

    async fn services(&self) -> BTreeMap<String, String> {
        let links = self.pod.spec.as_ref().and_then(|spec| spec.enable_service_links).unwrap_or(true);
        self.ctx.services.variables(spec::namespace(self.pod), links).await
    }

    async fn object(&self, kind: ObjectKind, name: &str) -> Result<Option<BTreeMap<String, String>>> {
        let key = Key::new(kind, spec::namespace(self.pod), name);
        match self.ctx.volumes.objects().get(&key, spec::uid(self.pod)).await {
            Ok(content) => {
                let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                Ok(Some(content.data.iter().map(|(key, value)| (key.clone(), text(value))).collect()))
            }
            Err(ObjectError::NotFound { .. }) => Ok(None),
            Err(error) => Err(NotStarted::new("CreateContainerConfigError", error)),
        }
    }

    fn tell(&self, container: &Container, reason: &'static str, message: &str) {
        self.ctx.events.pod(self.pod, Some(&container.name), Kind::Normal, reason, message.into());
    }

    fn failed(&self, container: &Container, message: &str) {
        self.ctx.events.pod(self.pod, Some(&container.name), Kind::Warning, "Failed", format!("Error: {message}"));
    }

    fn warn(&self, reason: &'static str, message: String) {
        info!(pod = spec::full_name(self.pod), reason, message, "pod");
        self.ctx.events.pod(self.pod, None, Kind::Warning, reason, message);
    }
}

/// All sandboxes and containers that carry this pod's uid are its own.
pub fn of_pod(labels: &std::collections::HashMap<String, String>) -> Option<&str> {
    labels.get(POD_UID).map(String::as_str)
}

/// Whether an error of the runtime means that what was asked to go is gone.
pub fn gone_or<T>(result: std::result::Result<T, RuntimeError>) -> std::result::Result<(), RuntimeError> {
    match result {
        Ok(_) => Ok(()),
        Err(error) if error.is_not_found() => Ok(()),
        Err(error) => Err(error),
    }
}
