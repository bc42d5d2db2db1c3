//! The OCI runtime spec of a pod's pause task: a process that keeps a shared PID namespace and buries its orphans.
//!
//! Only a pod whose containers share their PIDs has one. It joins the pod's other namespaces and may do nothing.

use std::path::Path;

use cri::v1::{self, NamespaceMode};
use oci_spec::image::ImageConfiguration;
use oci_spec::runtime::{LinuxCpu, LinuxNamespaceType, LinuxResources, Process, Spec, User};

use crate::container::spec::{
    self, Handler, HostFacts, IdMappings, NamespacePaths, SpecError, capability_sets, clamped_oom_score, user_namespace,
};
use crate::seccomp::Profile;

/// A pause task is the last that the kernel kills for memory. Source: kubelet's qos policy for the sandbox.
const OOM_SCORE: i64 = -998;
/// The least that the kernel takes.
const CPU_SHARES: u64 = 2;

/// All that a pause task's spec is decided from.
#[derive(Debug, Clone)]
pub struct PauseInput<'a> {
    /// The sandbox's id.
    pub id: &'a str,
    pub config: &'a v1::PodSandboxConfig,
    /// Those that are pinned; its `pid` is of no matter.
    pub namespaces: &'a NamespacePaths,
    pub image: &'a ImageConfiguration,
    pub image_name: &'a str,
    pub host: &'a HostFacts,
    pub handler: &'a Handler,
    pub resolv_conf: &'a Path,
    pub shm: &'a Path,
    /// The profile that [`sandbox_seccomp_reference`] names.
    pub seccomp: Option<&'a Profile>,
    pub selinux_level: Option<&'a str>,
}

/// Whether the pod needs a pause task.
pub fn needs_pause(config: &v1::PodSandboxConfig) -> bool {
    let options = spec::sandbox_security_of(config).namespace_options.unwrap_or_default();
    options.pid == NamespaceMode::Pod as i32
}

/// The file of the Localhost seccomp profile that the pod asks for.
///
/// # Errors
/// Where the profile is malformed.
pub fn sandbox_seccomp_reference(config: &v1::PodSandboxConfig) -> Result<Option<String>, SpecError> {
    spec::seccomp_reference(&container_like(&spec::sandbox_security_of(config)))
}

/// The user namespace that the pod asks for; none for the machine's. To be asked for every pod, before any is made.
///
/// # Errors
/// Where it is malformed, or the handler cannot run containers in one.
pub fn sandbox_user_namespace(
    config: &v1::PodSandboxConfig,
    handler: &Handler,
) -> Result<Option<IdMappings>, SpecError> {
    let options = spec::sandbox_security_of(config).namespace_options.unwrap_or_default();
    let ids = user_namespace(options.userns_options.as_ref())?;
    if ids.is_some() && !handler.user_namespaces {
        return Err(SpecError::UserNamespaceUnsupported { handler: handler.name.clone() });
    }
    Ok(ids)
}

/// The spec of a pause task.
///
/// # Errors
/// Where the config asks for what is malformed, contradictory, or not to be had on this machine.
pub fn pause_spec(input: &PauseInput<'_>) -> Result<Spec, SpecError> {
    let security = spec::sandbox_security_of(input.config);
    let mut made = spec::empty_spec();
    made.set_root(Some(spec::root(true)));
    let mut annotations = spec::passed_annotations(input.handler, &input.config.annotations);
    annotations.extend(spec::sandbox_annotations(input.id, input.config, input.image_name));
    made.set_annotations(Some(annotations));
    made.set_process(Some(process(input, &security)?));
    made.set_mounts(Some(mounts(input)));
    let mut linux = spec::empty_linux();
    let options = security.namespace_options.clone().unwrap_or_default();
    let ids = sandbox_user_namespace(input.config, input.handler)?;
    let mut namespaces = spec::joined_namespaces(input.namespaces, ids.as_ref(), &mut linux)?;
    namespaces.push(spec::own_namespace(LinuxNamespaceType::Mount));
    if options.pid != NamespaceMode::Node as i32 {
        namespaces.push(spec::own_namespace(LinuxNamespaceType::Pid));
    }
    linux.set_namespaces(Some(namespaces));
    linux.set_cgroups_path(Some(spec::cgroups_path(input.config, input.id, input.host)));
    linux.set_resources(Some(resources()));
    made.set_linux(Some(linux));
    confine(&mut made, input, &security)?;
    Ok(made)
}

fn process(input: &PauseInput<'_>, security: &v1::LinuxSandboxSecurityContext) -> Result<Process, SpecError> {
    let image = spec::image_config(input.image);
    let words = [image.entrypoint().clone(), image.cmd().clone()];
    let args: Vec<String> = words.into_iter().flatten().flatten().collect();
    if args.is_empty() {
        return Err(SpecError::NoCommand);
    }
    let mut process = spec::empty_process();
    process.set_args(Some(args)).set_env(image.env().clone()).set_cwd("/".into());
    process.set_user(user(security, image.user().as_deref())?);
    let none = Default::default();
    process.set_capabilities(Some(capability_sets(&none, &none)));
    process.set_no_new_privileges(Some(true));
    process.set_oom_score_adj(Some(clamped_oom_score(OOM_SCORE, input.host)));
    Ok(process)
}

/// The pod's user, or the image's if it is a number, as ours is.
fn user(security: &v1::LinuxSandboxSecurityContext, of_image: Option<&str>) -> Result<User, SpecError> {
    let id = |what, value: i64| {
        let id = u32::try_from(value).ok().filter(|id| *id != u32::MAX);
        id.ok_or_else(|| SpecError::IdRange { what, value: value.to_string() })
    };
    let (uid, gid) = match (&security.run_as_user, &security.run_as_group) {
        (None, Some(group)) => return Err(SpecError::GroupWithoutUser(group.value)),
        (Some(user), group) => (id("user", user.value)?, id("group", group.as_ref().map_or(0, |g| g.value))?),
        (None, None) => {
            let mut numbers = of_image.unwrap_or_default().split(':').map(|n| n.parse().unwrap_or(0));
            (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
        }
    };
    let mut user = User::default();
    user.set_uid(uid).set_gid(gid);
    user.set_additional_gids(Some(spec::group_list(gid, &security.supplemental_groups)?));
    Ok(user)
}

/// The flags are those of the mounts themselves: in a user namespace they cannot be taken off.
fn mounts(input: &PauseInput<'_>) -> Vec<oci_spec::runtime::Mount> {
    const OPTIONS: [&str; 4] = ["ro", "nosuid", "nodev", "noexec"];
    let keep = ["/proc", "/dev"].map(Path::new);
    let mut all = spec::default_mounts();
    all.retain(|m| keep.iter().any(|path| m.destination() == path));
    all.push(spec::bind("/dev/shm", input.shm, &OPTIONS));
    // Sandboxed runtimes take the pod's DNS from here.
    all.push(spec::bind("/etc/resolv.conf", input.resolv_conf, &OPTIONS));
    all
}

fn resources() -> LinuxResources {
    let mut cpu = LinuxCpu::default();
    cpu.set_shares(Some(CPU_SHARES));
    let mut resources = LinuxResources::default();
    resources.set_devices(Some(vec![spec::denied_devices()])).set_cpu(Some(cpu));
    resources
}

fn confine(
    made: &mut Spec,
    input: &PauseInput<'_>,
    security: &v1::LinuxSandboxSecurityContext,
) -> Result<(), SpecError> {
    let profile = spec::seccomp_profile(&container_like(security))?;
    spec::apply_seccomp(made, profile.as_ref().filter(|_| !security.privileged), input.seccomp, input.host)?;
    if let Some(labels) =
        spec::selinux::labels(input.host, &container_like(security), input.config, input.selinux_level)?
    {
        spec::selinux::apply(made, labels);
    }
    Ok(())
}

/// The part of a sandbox's security context that a container's has too.
fn container_like(security: &v1::LinuxSandboxSecurityContext) -> v1::LinuxContainerSecurityContext {
    #[allow(deprecated)]
    v1::LinuxContainerSecurityContext {
        privileged: security.privileged,
        seccomp: security.seccomp.clone(),
        seccomp_profile_path: security.seccomp_profile_path.clone(),
        ..v1::LinuxContainerSecurityContext::default()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::container::spec::fixtures;

    fn spec_of(security: v1::LinuxSandboxSecurityContext) -> Result<serde_json::Value, String> {
        let config = fixtures::sandbox_config(security);
        let namespaces = fixtures::namespaces();
        let image = fixtures::image(|c| {
            c.set_entrypoint(Some(vec!["/pause".into()])).set_user(Some("65535:65535".into()));
        });
        let input = PauseInput {
            id: "sandbox1",
            config: &config,
            namespaces: &namespaces,
            image: &image,
            image_name: "bosun/pause",
            host: &fixtures::host(),
            handler: &Handler::default(),
            resolv_conf: Path::new("/pod/resolv.conf"),
            shm: Path::new("/pod/shm"),
            seccomp: None,
            selinux_level: None,
        };
        let made = pause_spec(&input).map_err(|e| e.to_string())?;
        serde_json::to_value(made).map_err(|e| e.to_string())
    }

    #[test]
    fn it_joins_the_pods_namespaces_and_may_do_nothing() {
        let made = spec_of(Default::default()).unwrap();
        assert_eq!(made["process"]["args"], json!(["/pause"]));
        assert_eq!(made["process"]["capabilities"], json!({"bounding": [], "effective": [], "permitted": []}));
        assert_eq!(made["process"]["user"], json!({"uid": 65535, "gid": 65535, "additionalGids": [65535]}));
        assert_eq!(made["process"]["noNewPrivileges"], true);
        assert_eq!(made["root"], json!({"path": "rootfs", "readonly": true}));
        assert_eq!(made["hostname"], serde_json::Value::Null);
        assert_eq!(
            made["linux"]["namespaces"],
            json!([
                {"type": "network", "path": "/ns/net"}, {"type": "ipc", "path": "/ns/ipc"},
                {"type": "uts", "path": "/ns/uts"}, {"type": "mount"}, {"type": "pid"}
            ])
        );
        assert_eq!(made["linux"]["seccomp"], serde_json::Value::Null);
        assert_eq!(made["annotations"]["io.kubernetes.cri.container-type"], "sandbox");
        assert_eq!(made["annotations"]["io.kubernetes.cri.sandbox-id"], "sandbox1");
    }

    #[test]
    fn the_pods_user_and_profile_are_its_own() {
        let security = v1::LinuxSandboxSecurityContext {
            run_as_user: Some(v1::Int64Value { value: 5 }),
            supplemental_groups: vec![7],
            seccomp: Some(v1::SecurityProfile::default()),
            ..Default::default()
        };
        let made = spec_of(security).unwrap();
        assert_eq!(made["process"]["user"], json!({"uid": 5, "gid": 0, "additionalGids": [0, 7]}));
        assert_eq!(made["linux"]["seccomp"]["defaultAction"], "SCMP_ACT_ERRNO");
        let alone =
            v1::LinuxSandboxSecurityContext { run_as_group: Some(v1::Int64Value { value: 5 }), ..Default::default() };
        assert!(spec_of(alone).unwrap_err().starts_with("run_as_group 5 is set without"));
    }

    #[test]
    fn a_user_namespace_needs_the_handler() {
        let mapping = vec![v1::IdMapping { container_id: 0, host_id: 1000, length: 10 }];
        let userns = v1::UserNamespace { mode: NamespaceMode::Pod as i32, uids: mapping.clone(), gids: mapping };
        let options = v1::NamespaceOption { userns_options: Some(userns), ..Default::default() };
        let config = fixtures::sandbox_config(v1::LinuxSandboxSecurityContext {
            namespace_options: Some(options),
            ..Default::default()
        });
        let able = Handler { user_namespaces: true, ..Handler::default() };
        assert_eq!(sandbox_user_namespace(&config, &able).unwrap().unwrap().uids.len(), 1);
        assert_eq!(sandbox_user_namespace(&v1::PodSandboxConfig::default(), &Handler::default()).unwrap(), None);
        let refused = sandbox_user_namespace(&config, &Handler::default());
        assert!(matches!(refused, Err(SpecError::UserNamespaceUnsupported { .. })), "{refused:?}");
    }

    #[test]
    fn only_a_shared_pid_namespace_needs_it() {
        let with = |pid: NamespaceMode| {
            let options = v1::NamespaceOption { pid: pid as i32, ..Default::default() };
            let security = v1::LinuxSandboxSecurityContext { namespace_options: Some(options), ..Default::default() };
            needs_pause(&fixtures::sandbox_config(security))
        };
        assert!(with(NamespaceMode::Pod) && needs_pause(&v1::PodSandboxConfig::default()));
        assert!(!with(NamespaceMode::Container) && !with(NamespaceMode::Node));
    }
}
