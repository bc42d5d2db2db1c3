//! Inputs for tests: a plain pod, an image and a machine.

use std::path::{Path, PathBuf};

use cri::v1;
use oci_spec::image::{Config, ImageConfiguration};

use super::selinux::SelinuxContexts;
use super::{
    ContainerInput, Gathered, Handler, HostFacts, NamespacePaths, SandboxView, SpecError, Volume, container_spec,
};

pub(crate) fn sandbox_config(security: v1::LinuxSandboxSecurityContext) -> v1::PodSandboxConfig {
    v1::PodSandboxConfig {
        metadata: Some(v1::PodSandboxMetadata {
            name: "pod".into(),
            uid: "uid".into(),
            namespace: "default".into(),
            attempt: 0,
        }),
        hostname: "podhost".into(),
        linux: Some(v1::LinuxPodSandboxConfig {
            cgroup_parent: "/kubepods/pod1".into(),
            security_context: Some(security),
            ..Default::default()
        }),
        ..Default::default()
    }
}

pub(crate) fn namespaces() -> NamespacePaths {
    let path = |name: &str| Some(PathBuf::from("/ns").join(name));
    NamespacePaths { net: path("net"), ipc: path("ipc"), uts: path("uts"), user: None, pid: None }
}

pub(crate) fn image(change: impl FnOnce(&mut Config)) -> ImageConfiguration {
    let mut config = Config::default();
    change(&mut config);
    let mut image = ImageConfiguration::default();
    image.set_config(Some(config));
    image
}

/// Root without CAP_SYS_RESOURCE (24), on a new kernel with cgroup v1.
pub(crate) fn host() -> HostFacts {
    HostFacts {
        hostname: "machine".into(),
        seccomp: true,
        swap: true,
        hugetlb: true,
        capabilities: super::capabilities::of_mask(0x1ff_feff_ffff),
        oom_score_adj: 0,
        recursive_read_only: true,
        idmapped_mounts: true,
        ..HostFacts::default()
    }
}

/// A container in the making, each part of which a test may change.
#[derive(Debug, Clone)]
pub(crate) struct Case {
    pub(crate) sandbox: v1::PodSandboxConfig,
    pub(crate) namespaces: NamespacePaths,
    pub(crate) config: v1::ContainerConfig,
    pub(crate) image: ImageConfiguration,
    pub(crate) host: HostFacts,
    pub(crate) handler: Handler,
    pub(crate) volumes: Vec<Volume>,
    pub(crate) gathered: Gathered,
}

impl Case {
    pub(crate) fn new(security: v1::LinuxContainerSecurityContext) -> Self {
        let options = v1::NamespaceOption { pid: v1::NamespaceMode::Container as i32, ..Default::default() };
        let security = v1::LinuxContainerSecurityContext {
            namespace_options: security.namespace_options.clone().or(Some(options)),
            ..security
        };
        Self {
            sandbox: sandbox_config(v1::LinuxSandboxSecurityContext {
                privileged: security.privileged,
                namespace_options: security.namespace_options.clone(),
                ..Default::default()
            }),
            namespaces: namespaces(),
            config: v1::ContainerConfig {
                metadata: Some(v1::ContainerMetadata { name: "main".into(), attempt: 0 }),
                image: Some(v1::ImageSpec { image: "sha256:1234".into(), ..Default::default() }),
                command: vec!["/bin/sh".into()],
                linux: Some(v1::LinuxContainerConfig { security_context: Some(security), resources: None }),
                ..Default::default()
            },
            image: image(|_| {}),
            host: host(),
            handler: Handler { recursive_read_only: true, user_namespaces: true, ..Handler::default() },
            volumes: Vec::new(),
            gathered: Gathered::default(),
        }
    }

    pub(crate) fn view(&self) -> SandboxView<'_> {
        SandboxView {
            id: "sandbox1",
            config: &self.sandbox,
            namespaces: &self.namespaces,
            resolv_conf: Path::new("/pod/resolv.conf"),
            hosts: Path::new("/pod/hosts"),
            hostname: Path::new("/pod/hostname"),
            shm: Path::new("/pod/shm"),
            selinux_level: None,
        }
    }

    pub(crate) fn input<'a>(&'a self, sandbox: &'a SandboxView<'a>) -> ContainerInput<'a> {
        ContainerInput {
            id: "container1",
            sandbox,
            config: &self.config,
            image: &self.image,
            host: &self.host,
            handler: &self.handler,
            volumes: &self.volumes,
            gathered: &self.gathered,
        }
    }

    pub(crate) fn spec(&self) -> Result<oci_spec::runtime::Spec, SpecError> {
        container_spec(&self.input(&self.view()))
    }

    /// The spec as JSON, or the error's text.
    pub(crate) fn json(&self) -> Result<serde_json::Value, String> {
        let spec = self.spec().map_err(|e| e.to_string())?;
        serde_json::to_value(spec).map_err(|e| e.to_string())
    }
}

pub(crate) fn selinux() -> SelinuxContexts {
    SelinuxContexts {
        process: "system_u:system_r:container_t:s0".into(),
        file: "system_u:object_r:container_file_t:s0".into(),
    }
}
