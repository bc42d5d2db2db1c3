//! The security contexts of pod and container, merged into what the CRI takes.

use crate::pod::spec;
use cri::v1::{
    Capability, Int64Value, LinuxContainerSecurityContext, NamespaceMode, NamespaceOption, SeLinuxOption,
    SecurityProfile, SupplementalGroupsPolicy, security_profile::ProfileType,
};
use k8s_openapi::api::core::v1::{Container, Pod, PodSecurityContext, SELinuxOptions, SeccompProfile, SecurityContext};
use std::path::Path;

/// What OCI runtimes hide below /proc and /sys unless procMount is Unmasked.
const MASKED: &[&str] = &[
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
const READ_ONLY: &[&str] = &["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Whom the image names as its user.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageUser {
    pub uid: Option<i64>,
    pub name: String,
}

/// Why a container may not run; the message becomes CreateContainerConfigError's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SecurityError {
    #[error("container's runAsUser breaks non-root policy (pod: {pod:?}, container: {container})")]
    RunsAsRoot { pod: String, container: String },
    #[error("container has runAsNonRoot and image will run as root (pod: {pod:?}, container: {container})")]
    ImageIsRoot { pod: String, container: String },
    #[error(
        "container has runAsNonRoot and image has non-numeric user ({user}), cannot verify user is non-root (pod: {pod:?}, container: {container})"
    )]
    UnknownUser { user: String, pod: String, container: String },
    #[error("localhostProfile must be set if seccompProfile type is Localhost.")]
    NoLocalhostProfile,
}

/// Refuses root where the pod or container says `runAsNonRoot`.
///
/// # Errors
/// Where the user is root or cannot be known.
pub fn check_non_root(pod: &Pod, container: &Container, user: &ImageUser) -> Result<(), SecurityError> {
    let (of_pod, own) = contexts(pod, container);
    let non_root = own.run_as_non_root.or(of_pod.run_as_non_root).unwrap_or(false);
    if !non_root {
        return Ok(());
    }
    let (name, container) =
        (format!("{}_{}({})", spec::name(pod), spec::namespace(pod), spec::uid(pod)), container.name.clone());
    match (own.run_as_user.or(of_pod.run_as_user), user.uid) {
        (Some(0), _) => Err(SecurityError::RunsAsRoot { pod: name, container }),
        (Some(_), _) => Ok(()),
        (None, Some(0)) => Err(SecurityError::ImageIsRoot { pod: name, container }),
        (None, None) if user.name.is_empty() => Err(SecurityError::ImageIsRoot { pod: name, container }),
        (None, None) => Err(SecurityError::UnknownUser { user: user.name.clone(), pod: name, container }),
        (None, Some(_)) => Ok(()),
    }
}

/// Both contexts laid over one another, with the image's user where neither says one.
///
/// # Errors
/// Where a seccomp profile is incomplete.
pub fn merged(
    pod: &Pod,
    container: &Container,
    user: &ImageUser,
    seccomp: &SeccompDefaults<'_>,
) -> Result<LinuxContainerSecurityContext, SecurityError> {
    let (of_pod, own) = contexts(pod, container);
    let run_as_user = own.run_as_user.or(of_pod.run_as_user);
    let unmasked = own.proc_mount.as_deref() == Some("Unmasked");
    let paths = |paths: &[&str]| if unmasked { Vec::new() } else { paths.iter().map(ToString::to_string).collect() };
    Ok(LinuxContainerSecurityContext {
        capabilities: own.capabilities.map(|capabilities| Capability {
            add_capabilities: capabilities.add.unwrap_or_default(),
            drop_capabilities: capabilities.drop.unwrap_or_default(),
            ..Capability::default()
        }),
        privileged: own.privileged.unwrap_or(false),
        namespace_options: Some(namespaces(pod)),
        selinux_options: own.se_linux_options.as_ref().or(of_pod.se_linux_options.as_ref()).map(selinux),
        run_as_user: run_as_user.or(user.uid).map(|value| Int64Value { value }),
        run_as_group: own.run_as_group.or(of_pod.run_as_group).map(|value| Int64Value { value }),
        run_as_username: if run_as_user.is_none() { user.name.clone() } else { String::new() },
        readonly_rootfs: own.read_only_root_filesystem.unwrap_or(false),
        supplemental_groups: groups(&of_pod),
        supplemental_groups_policy: groups_policy(&of_pod) as i32,
        no_new_privs: own.allow_privilege_escalation == Some(false),
        masked_paths: paths(MASKED),
        readonly_paths: paths(READ_ONLY),
        seccomp: Some(profile(own.seccomp_profile.as_ref().or(of_pod.seccomp_profile.as_ref()), seccomp)?),
        ..LinuxContainerSecurityContext::default()
    })
}

/// What seccomp profiles that are not given come to.
#[derive(Clone, Copy, Debug)]
pub struct SeccompDefaults<'a> {
    /// KubeletConfiguration's seccompDefault.
    pub runtime_default: bool,
    /// The folder of Localhost profiles.
    pub folder: &'a Path,
}

fn profile(profile: Option<&SeccompProfile>, defaults: &SeccompDefaults<'_>) -> Result<SecurityProfile, SecurityError> {
    let plain = |kind: ProfileType| SecurityProfile { profile_type: kind as i32, localhost_ref: String::new() };
    Ok(match profile.map(|profile| (profile.type_.as_str(), profile.localhost_profile.as_deref())) {
        Some(("RuntimeDefault", _)) => plain(ProfileType::RuntimeDefault),
        Some(("Localhost", Some(file))) if !file.is_empty() => SecurityProfile {
            profile_type: ProfileType::Localhost as i32,
            localhost_ref: defaults.folder.join(file).display().to_string(),
        },
        Some(("Localhost", _)) => return Err(SecurityError::NoLocalhostProfile),
        None if defaults.runtime_default => plain(ProfileType::RuntimeDefault),
        _ => plain(ProfileType::Unconfined),
    })
}

/// The namespaces that the pod shares with its node or among its containers.
pub fn namespaces(pod: &Pod) -> NamespaceOption {
    let Some(spec) = &pod.spec else { return NamespaceOption::default() };
    let host = |host: Option<bool>, other: NamespaceMode| if host == Some(true) { NamespaceMode::Node } else { other };
    let shared = spec.share_process_namespace == Some(true);
    let pid = if shared { NamespaceMode::Pod } else { NamespaceMode::Container };
    NamespaceOption {
        network: host(spec.host_network, NamespaceMode::Pod) as i32,
        pid: host(spec.host_pid, pid) as i32,
        ipc: host(spec.host_ipc, NamespaceMode::Pod) as i32,
        ..NamespaceOption::default()
    }
}

/// fsGroup and supplementalGroups.
pub fn groups(of_pod: &PodSecurityContext) -> Vec<i64> {
    of_pod.fs_group.into_iter().chain(of_pod.supplemental_groups.iter().flatten().copied()).collect()
}

pub fn groups_policy(of_pod: &PodSecurityContext) -> SupplementalGroupsPolicy {
    match of_pod.supplemental_groups_policy.as_deref() {
        Some("Strict") => SupplementalGroupsPolicy::Strict,
        _ => SupplementalGroupsPolicy::Merge,
    }
}

pub fn selinux(options: &SELinuxOptions) -> SeLinuxOption {
    SeLinuxOption {
        user: options.user.clone().unwrap_or_default(),
        role: options.role.clone().unwrap_or_default(),
        r#type: options.type_.clone().unwrap_or_default(),
        level: options.level.clone().unwrap_or_default(),
    }
}

fn contexts(pod: &Pod, container: &Container) -> (PodSecurityContext, SecurityContext) {
    let of_pod = pod.spec.as_ref().and_then(|spec| spec.security_context.clone()).unwrap_or_default();
    (of_pod, container.security_context.clone().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::spec::fixture;
    use serde_json::{Value, json};

    fn pod(of_pod: Value, own: Value) -> Pod {
        fixture::pod(json!({"securityContext": of_pod, "containers": [{"name": "a", "securityContext": own}]}))
    }

    fn merge(of_pod: Value, own: Value) -> LinuxContainerSecurityContext {
        let pod = pod(of_pod, own);
        let defaults = SeccompDefaults { runtime_default: false, folder: Path::new("/var/lib/kubelet/seccomp") };
        merged(&pod, &spec::containers(&pod)[0], &ImageUser { uid: Some(7), name: String::new() }, &defaults).unwrap()
    }

    #[test]
    fn the_container_wins_over_the_pod_and_both_over_the_image() {
        let user = |context: LinuxContainerSecurityContext| context.run_as_user.map(|user| user.value);
        assert_eq!(user(merge(json!({"runAsUser": 1}), json!({"runAsUser": 2}))), Some(2));
        assert_eq!(user(merge(json!({"runAsUser": 1}), json!({}))), Some(1));
        assert_eq!(user(merge(json!({}), json!({}))), Some(7));
        assert_eq!(merge(json!({"fsGroup": 3, "supplementalGroups": [4]}), json!({})).supplemental_groups, [3, 4]);
    }

    #[test]
    fn seccomp_and_paths() {
        let local = json!({"seccompProfile": {"type": "Localhost", "localhostProfile": "p.json"}});
        let seccomp = merge(local, json!({})).seccomp.unwrap();
        assert_eq!(seccomp.localhost_ref, "/var/lib/kubelet/seccomp/p.json");
        assert!(merge(json!({}), json!({"procMount": "Unmasked"})).masked_paths.is_empty());
        assert!(merge(json!({}), json!({"allowPrivilegeEscalation": false})).no_new_privs);
    }

    #[test]
    fn non_root_is_checked_against_the_image() {
        let check = |own: Value, uid: Option<i64>, name: &str| {
            let pod = pod(json!({"runAsNonRoot": true}), own);
            check_non_root(&pod, &spec::containers(&pod)[0], &ImageUser { uid, name: name.into() })
        };
        assert_eq!(check(json!({}), Some(1000), ""), Ok(()));
        assert_eq!(check(json!({"runAsUser": 5}), Some(0), ""), Ok(()));
        assert!(matches!(check(json!({}), Some(0), ""), Err(SecurityError::ImageIsRoot { .. })));
        assert!(matches!(check(json!({"runAsUser": 0}), None, ""), Err(SecurityError::RunsAsRoot { .. })));
        assert!(matches!(check(json!({}), None, "www"), Err(SecurityError::UnknownUser { .. })));
        assert_eq!(check(json!({"runAsNonRoot": false}), Some(0), ""), Ok(()));
    }
}
