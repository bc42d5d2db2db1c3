//! The OCI runtime spec of a container, from its CRI config, its image, its sandbox, the runtime handler and this
//! machine.
//!
//! Facts come first: [`HostFacts::detect`] once, and [`Gathered`] for each container. Then [`container_spec`] decides;
//! it reads nothing but its input. Sources: the OCI runtime spec 1.2 (config.md, config-linux.md) and CRI v1.

mod annotations;
pub mod apparmor;
mod capabilities;
pub mod cdi;
mod devices;
mod encode;
mod error;
mod gather;
mod handler;
mod host;
mod mounts;
mod namespaces;
mod process;
mod resources;
mod rootfs;
mod security;
pub(crate) mod selinux;
mod signal;
mod user;
mod volumes;

#[cfg(test)]
pub(crate) mod fixtures;
#[cfg(test)]
mod runc_tests;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::path::Path;

use cri::v1;
use oci_spec::image::{Config as ImageConfig, ImageConfiguration};
use oci_spec::runtime::{Linux, Process, Root, Spec};

pub use annotations::{CONTAINER_TYPE, SANDBOX_ID};
pub(crate) use annotations::{of_sandbox as sandbox_annotations, passed as passed_annotations};
pub(crate) use capabilities::sets as capability_sets;
pub use devices::{DeviceKind, DeviceNode};
pub use encode::{LINUX_RESOURCES, PROCESS, SPEC, decode, encode};
pub use error::SpecError;
pub use gather::{Gathered, Request, Source, gather};
pub use handler::Handler;
pub use host::HostFacts;
pub(crate) use mounts::{bind, default_mounts};
pub use namespaces::{IdMappings, NamespacePaths, user_namespace};
pub(crate) use namespaces::{joined as joined_namespaces, of_mappings, own as own_namespace};
pub use process::exec_process;
pub(crate) use process::oom_score as clamped_oom_score;
pub(crate) use resources::denied_devices;
pub use resources::{Update, update_resources};
pub use rootfs::Rootfs;
pub use security::seccomp_reference;
pub(crate) use security::{apply_seccomp, seccomp_profile};
pub use signal::{StopSignal, stop_signal};
pub use user::Accounts;
pub(crate) use user::group_list;
pub use user::of as user;
pub use volumes::{Volume, declared as declared_volumes, populate as populate_volumes};

/// The runtime spec's version that is written. Older runtimes take it: what they lack is asked of the handler first.
pub const OCI_VERSION: &str = "1.1.0";

/// A container's sandbox, as far as its containers' specs need it.
#[derive(Debug, Clone)]
pub struct SandboxView<'a> {
    pub id: &'a str,
    pub config: &'a v1::PodSandboxConfig,
    pub namespaces: &'a NamespacePaths,
    pub resolv_conf: &'a Path,
    pub hosts: &'a Path,
    /// The file for /etc/hostname.
    pub hostname: &'a Path,
    /// The folder for /dev/shm; the machine's own where the pod uses its IPC.
    pub shm: &'a Path,
    /// The pod's SELinux level where the pod's config names none. See [`selinux::mcs_level`].
    pub selinux_level: Option<&'a str>,
}

/// All that a container's spec is decided from.
#[derive(Debug, Clone)]
pub struct ContainerInput<'a> {
    /// The container's id.
    pub id: &'a str,
    pub sandbox: &'a SandboxView<'a>,
    pub config: &'a v1::ContainerConfig,
    pub image: &'a ImageConfiguration,
    pub host: &'a HostFacts,
    pub handler: &'a Handler,
    /// For the image's own VOLUMEs, from [`declared_volumes`].
    pub volumes: &'a [Volume],
    pub gathered: &'a Gathered,
}

impl ContainerInput<'_> {
    fn security(&self) -> v1::LinuxContainerSecurityContext {
        security_of(self.config)
    }
}

/// The container's security context; what is not given is as in an empty one.
pub(crate) fn security_of(config: &v1::ContainerConfig) -> v1::LinuxContainerSecurityContext {
    config.linux.as_ref().and_then(|linux| linux.security_context.clone()).unwrap_or_default()
}

/// The sandbox's security context; what is not given is as in an empty one.
pub(crate) fn sandbox_security_of(config: &v1::PodSandboxConfig) -> v1::LinuxSandboxSecurityContext {
    config.linux.as_ref().and_then(|linux| linux.security_context.clone()).unwrap_or_default()
}

/// The cgroup of a pod's container, as the OCI runtime is told it.
pub(crate) fn cgroups_path(sandbox: &v1::PodSandboxConfig, id: &str, host: &HostFacts) -> std::path::PathBuf {
    let parent = sandbox.linux.as_ref().map_or("", |linux| linux.cgroup_parent.as_str());
    super::cgroup::of_spec(parent, id, host.systemd_cgroup)
}

/// What an image wants to be run with; nothing, where it says nothing.
pub(crate) fn image_config(image: &ImageConfiguration) -> ImageConfig {
    image.config().clone().unwrap_or_default()
}

/// The spec of a container.
///
/// # Errors
/// Where the config asks for what is malformed, contradictory, or not to be had on this machine.
pub fn container_spec(input: &ContainerInput<'_>) -> Result<Spec, SpecError> {
    let security = input.security();
    if security.privileged && !sandbox_security_of(input.sandbox.config).privileged {
        return Err(SpecError::PrivilegedInUnprivilegedSandbox);
    }
    let mut spec = empty_spec();
    spec.set_root(Some(root(security.readonly_rootfs)));
    spec.set_annotations(Some(annotations::of_container(input)));
    let (mounts, propagation) = mounts::of(input, &security)?;
    spec.set_mounts(Some(mounts));
    spec.set_process(Some(process::of(input, &security)?));
    let mut linux = empty_linux();
    linux.set_rootfs_propagation(propagation);
    linux.set_masked_paths(Some(if security.privileged { Vec::new() } else { security.masked_paths.clone() }));
    linux.set_readonly_paths(Some(if security.privileged { Vec::new() } else { security.readonly_paths.clone() }));
    linux.set_cgroups_path(Some(cgroups_path(input.sandbox.config, input.id, input.host)));
    namespaces::apply(&mut linux, input, &security)?;
    let wanted = input.config.linux.as_ref().and_then(|l| l.resources.as_ref());
    linux.set_resources(Some(resources::of(wanted, input.host)?));
    spec.set_linux(Some(linux));
    devices::apply(&mut spec, input, &security)?;
    security::apply(&mut spec, input, &security)?;
    input.gathered.cdi.apply(&mut spec);
    Ok(spec)
}

/// A spec with nothing of the crate's own example in it.
pub(crate) fn empty_spec() -> Spec {
    let mut spec = Spec::default();
    spec.set_version(OCI_VERSION.into());
    spec.set_hostname(None).set_mounts(None).set_process(None).set_root(None).set_linux(None);
    spec.set_annotations(Some(HashMap::new()));
    spec
}

/// As [`empty_spec`], the Linux section.
pub(crate) fn empty_linux() -> Linux {
    let mut linux = Linux::default();
    linux.set_resources(None).set_namespaces(None).set_masked_paths(None).set_readonly_paths(None);
    linux
}

/// As [`empty_spec`], the process.
pub(crate) fn empty_process() -> Process {
    let mut process = Process::default();
    process.set_args(None).set_env(None).set_capabilities(None).set_rlimits(None);
    process.set_no_new_privileges(Some(false));
    process
}

pub(crate) fn root(read_only: bool) -> Root {
    let mut root = Root::default();
    root.set_path("rootfs".into());
    root.set_readonly(Some(read_only));
    root
}
