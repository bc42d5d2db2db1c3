//! Seccomp, AppArmor and SELinux of a container. Sources: CRI's SecurityProfile and SELinuxOption.

use std::path::{Path, PathBuf};

use cri::v1::{self, SecurityProfile, security_profile::ProfileType};
use oci_spec::runtime::Spec;
use sha2::{Digest, Sha256};

use crate::seccomp::{self, Profile};

use super::apparmor::{self, Confinement};
use super::{ContainerInput, HostFacts, SelinuxContexts, SpecError, sandbox_security_of};

const LOCALHOST: &str = "localhost/";

pub(super) fn apply(
    spec: &mut Spec,
    input: &ContainerInput<'_>,
    security: &v1::LinuxContainerSecurityContext,
) -> Result<(), SpecError> {
    let profile = seccomp_profile(security)?;
    let localhost = input.gathered.seccomp.as_ref();
    apply_seccomp(spec, profile.as_ref().filter(|_| !security.privileged), localhost, input.host)?;
    let name = apparmor_profile(input, security)?;
    if let Some(process) = spec.process_mut() {
        process.set_apparmor_profile(name);
    }
    if let Some(contexts) = input.host.selinux.as_ref().filter(|_| !security.privileged) {
        let of_pod = sandbox_security_of(input.sandbox.config).selinux_options;
        let options = security.selinux_options.clone().or(of_pod).unwrap_or_default();
        apply_selinux(spec, selinux_labels(contexts, &options, input.sandbox.selinux_level)?);
    }
    Ok(())
}

/// The file of the Localhost seccomp profile that a container needs.
///
/// # Errors
/// Where the profile is malformed.
pub fn seccomp_reference(security: &v1::LinuxContainerSecurityContext) -> Result<Option<String>, SpecError> {
    let profile = if security.privileged { None } else { seccomp_profile(security)? };
    Ok(profile.filter(|p| p.profile_type == ProfileType::Localhost as i32).map(|p| p.localhost_ref))
}

/// The new field, or else the deprecated one. None is unconfined.
pub(crate) fn seccomp_profile(
    security: &v1::LinuxContainerSecurityContext,
) -> Result<Option<SecurityProfile>, SpecError> {
    #[allow(deprecated)]
    let old = &security.seccomp_profile_path;
    profile("seccomp", security.seccomp.as_ref(), old)
}

/// A profile in the form of the new field, without a `localhost/` before its reference.
pub(crate) fn profile(
    kind: &'static str,
    new: Option<&SecurityProfile>,
    old: &str,
) -> Result<Option<SecurityProfile>, SpecError> {
    let of = |profile_type: ProfileType, reference: &str| {
        let localhost_ref = reference.strip_prefix(LOCALHOST).unwrap_or(reference).to_owned();
        Some(SecurityProfile { profile_type: profile_type as i32, localhost_ref })
    };
    let fault = |reason: &str| Err(SpecError::Profile { kind, reason: reason.into() });
    let Some(new) = new else {
        return match old {
            "" => Ok(None),
            "runtime/default" | "docker/default" => Ok(of(ProfileType::RuntimeDefault, "")),
            "unconfined" => Ok(of(ProfileType::Unconfined, "")),
            named if named.starts_with(LOCALHOST) => Ok(of(ProfileType::Localhost, named)),
            other => fault(&format!("{other:?} is neither runtime/default, unconfined nor localhost/NAME")),
        };
    };
    match ProfileType::try_from(new.profile_type) {
        Ok(ProfileType::Localhost) if new.localhost_ref.is_empty() => fault("type Localhost needs localhost_ref"),
        Ok(ProfileType::Localhost) => Ok(of(ProfileType::Localhost, &new.localhost_ref)),
        Ok(_) if !new.localhost_ref.is_empty() => fault("localhost_ref is for type Localhost only"),
        Ok(other) => Ok(of(other, "")),
        Err(_) => Err(SpecError::UnknownValue { field: "profile type", value: new.profile_type }),
    }
}

/// Sets the filter by the capabilities that the process has.
pub(crate) fn apply_seccomp(
    spec: &mut Spec,
    profile: Option<&SecurityProfile>,
    localhost: Option<&Profile>,
    host: &HostFacts,
) -> Result<(), SpecError> {
    let Some(kind) = profile.map(|p| p.profile_type).filter(|t| *t != ProfileType::Unconfined as i32) else {
        return Ok(());
    };
    let fault = |reason: &str| SpecError::Profile { kind: "seccomp", reason: reason.into() };
    if !host.seccomp {
        return Err(fault("this kernel has no seccomp filters: use Unconfined"));
    }
    let process = spec.process().as_ref().and_then(|p| p.capabilities().clone());
    let held = process.and_then(|c| c.bounding().clone()).unwrap_or_default();
    let filter = if kind == ProfileType::Localhost as i32 {
        localhost.ok_or_else(|| fault("the Localhost profile was not read"))?.resolve(&held)
    } else {
        seccomp::runtime_default(&held)
    };
    if let Some(linux) = spec.linux_mut() {
        linux.set_seccomp(Some(filter));
    }
    Ok(())
}

/// The name of the loaded profile that confines the container; none is unconfined.
fn apparmor_profile(
    input: &ContainerInput<'_>,
    security: &v1::LinuxContainerSecurityContext,
) -> Result<Option<String>, SpecError> {
    let name = match apparmor::wanted(security, input.host.apparmor)? {
        Confinement::None => return Ok(None),
        Confinement::Default => apparmor::DEFAULT.to_owned(),
        Confinement::Named(name) => name,
    };
    if !input.gathered.apparmor.contains(&name) {
        return Err(SpecError::Profile {
            kind: "AppArmor",
            reason: format!("{name:?} is not loaded on this machine: load it with apparmor_parser"),
        });
    }
    Ok(Some(name))
}

/// A context of a process and one of its files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Labels {
    pub(crate) process: String,
    pub(crate) mount: String,
}

/// The contexts for a container with these options; `level` is the pod's own where the options have none.
pub(crate) fn selinux_labels(
    contexts: &SelinuxContexts,
    options: &v1::SeLinuxOption,
    level: Option<&str>,
) -> Result<Labels, SpecError> {
    let named = [("user", &options.user), ("role", &options.role), ("type", &options.r#type)];
    for (option, value) in named {
        if value.chars().any(|c| !(c.is_ascii_alphanumeric() || c == '_' || c == '.' || c == '-')) {
            return Err(SpecError::SelinuxOption { option, value: value.clone() });
        }
    }
    if !(options.level.is_empty() || is_level(&options.level)) {
        return Err(SpecError::SelinuxOption { option: "level", value: options.level.clone() });
    }
    let level = if options.level.is_empty() { level.unwrap_or_default() } else { &options.level };
    let fill = |context: &str, over: [&str; 4]| {
        let parts: Vec<&str> = context.splitn(4, ':').collect();
        let part = |at: usize| match over[at] {
            "" => parts.get(at).copied().unwrap_or_default(),
            given => given,
        };
        [part(0), part(1), part(2), part(3)].join(":")
    };
    Ok(Labels {
        process: fill(&contexts.process, [&options.user, &options.role, &options.r#type, level]),
        // Files have the object role and a type of their own.
        mount: fill(&contexts.file, [&options.user, "", "", level]),
    })
}

pub(crate) fn apply_selinux(spec: &mut Spec, labels: Labels) {
    if let Some(process) = spec.process_mut() {
        process.set_selinux_label(Some(labels.process));
    }
    if let Some(linux) = spec.linux_mut() {
        linux.set_mount_label(Some(labels.mount));
    }
}

/// What has to be labelled before a container may use it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relabel {
    pub label: String,
    pub paths: Vec<PathBuf>,
}

impl Relabel {
    /// Labels everything. Blocks for as long as the folders are large.
    ///
    /// # Errors
    /// At the first file that the kernel refuses.
    pub fn run(&self) -> Result<(), kernel::selinux::Error> {
        self.paths.iter().try_for_each(|path| kernel::selinux::relabel(path, &self.label))
    }
}

/// Folders of the machine itself: their label is not for a request to change.
const OF_THE_MACHINE: [&str; 14] =
    ["/", "/bin", "/boot", "/dev", "/etc", "/home", "/lib", "/lib64", "/proc", "/root", "/run", "/sys", "/usr", "/var"];

/// What a container with this spec needs labelled: nothing where it has no label.
///
/// # Errors
/// Where a mount asks for a folder of the machine itself to be labelled.
pub fn relabel(input: &ContainerInput<'_>, spec: &Spec) -> Result<Option<Relabel>, SpecError> {
    let label = spec.linux().as_ref().and_then(|linux| linux.mount_label().clone()).unwrap_or_default();
    if label.is_empty() {
        return Ok(None);
    }
    let asked = input.config.mounts.iter().zip(&input.gathered.mounts).filter(|(mount, _)| mount.selinux_relabel);
    let mut paths = Vec::new();
    for (mount, source) in asked {
        if OF_THE_MACHINE.iter().any(|own| source.path == Path::new(own)) {
            let reason = "a folder of the machine itself gets no other SELinux label: unset selinux_relabel";
            return Err(SpecError::Mount { path: mount.container_path.clone(), reason });
        }
        paths.push(source.path.clone());
    }
    let pod = input.sandbox;
    let own_shm = Some(pod.shm).filter(|shm| *shm != Path::new("/dev/shm"));
    let files = [Some(pod.hosts), Some(pod.hostname), Some(pod.resolv_conf), own_shm];
    paths.extend(files.into_iter().flatten().map(PathBuf::from));
    paths.extend(input.volumes.iter().map(|volume| volume.source.clone()));
    Ok(Some(Relabel { label, paths }))
}

/// `s0`, `s0-s15`, either with `:c1,c5.c9`. Source: the SELinux notebook, MLS and MCS ranges.
fn is_level(text: &str) -> bool {
    let number = |text: &str, letter: char, digits: usize| {
        let rest = text.strip_prefix(letter).unwrap_or_default();
        (1..=digits).contains(&rest.len()) && rest.bytes().all(|b| b.is_ascii_digit())
    };
    let categories =
        |text: &str| text.split(',').all(|r| r.split('.').count() <= 2 && r.split('.').all(|c| number(c, 'c', 4)));
    let one = |text: &str| match text.split_once(':') {
        None => number(text, 's', 2),
        Some((sensitivity, of)) => number(sensitivity, 's', 2) && categories(of),
    };
    text.split('-').count() <= 2 && text.split('-').all(one)
}

/// A level for a pod that names none: two categories of 1024 that no level of `taken` has, first those that the pod's
/// id leads to. The same pod has the same level as long as those before it stay.
pub fn mcs_level(sandbox_id: &str, taken: &[&str]) -> String {
    const CATEGORIES: u64 = 1024;
    const PAIRS: u64 = CATEGORIES * (CATEGORIES - 1) / 2;
    let digest = Sha256::digest(sandbox_id.as_bytes());
    let start = digest.iter().take(8).fold(0_u64, |n, byte| n << 8 | u64::from(*byte)) % PAIRS;
    let level = |pair: u64| {
        let (mut low, mut left) = (0, pair);
        while left >= CATEGORIES - 1 - low {
            left -= CATEGORIES - 1 - low;
            low += 1;
        }
        format!("s0:c{low},c{}", low + 1 + left)
    };
    let mut candidates = (0..PAIRS).map(|n| level((start + n) % PAIRS));
    candidates.find(|l| !taken.contains(&l.as_str())).unwrap_or_else(|| level(start))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn profiles_in_the_old_and_the_new_form() {
        let of = |old: &str| profile("seccomp", None, old).map(|p| p.map(|p| (p.profile_type, p.localhost_ref)));
        assert_eq!(of("").unwrap(), None);
        assert_eq!(of("runtime/default").unwrap(), Some((0, String::new())));
        assert_eq!(of("unconfined").unwrap(), Some((1, String::new())));
        assert_eq!(of("localhost//a/b.json").unwrap(), Some((2, "/a/b.json".into())));
        assert!(of("nonsense").is_err());
        let new = |profile_type, reference: &str| {
            let new = SecurityProfile { profile_type, localhost_ref: reference.into() };
            profile("seccomp", Some(&new), "unconfined").map(|p| p.map(|p| p.localhost_ref)).map_err(|e| e.to_string())
        };
        assert_eq!(new(0, ""), Ok(Some(String::new())));
        assert_eq!(new(2, "localhost//a"), Ok(Some("/a".into())));
        assert_eq!(new(2, ""), Err("seccomp profile: type Localhost needs localhost_ref".into()));
        assert_eq!(new(0, "/a"), Err("seccomp profile: localhost_ref is for type Localhost only".into()));
        assert_eq!(new(7, ""), Err("unknown value 7 of profile type".into()));
    }

    #[test]
    fn labels_take_what_is_asked_and_keep_the_rest() {
        let contexts = SelinuxContexts::default();
        let options = |user: &str, role: &str, kind: &str, level: &str| v1::SeLinuxOption {
            user: user.into(),
            role: role.into(),
            r#type: kind.into(),
            level: level.into(),
        };
        let labels =
            |o: &v1::SeLinuxOption| selinux_labels(&contexts, o, Some("s0:c1,c2")).map(|l| (l.process, l.mount));
        assert_eq!(
            labels(&options("", "", "", "")).unwrap(),
            ("system_u:system_r:container_t:s0:c1,c2".into(), "system_u:object_r:container_file_t:s0:c1,c2".into())
        );
        assert_eq!(
            labels(&options("user_u", "r", "t_t", "s0:c4,c5")).unwrap(),
            ("user_u:r:t_t:s0:c4,c5".into(), "user_u:object_r:container_file_t:s0:c4,c5".into())
        );
        assert!(labels(&options("user u", "", "", "")).is_err());
        assert!(labels(&options("", "", "", "wrong")).is_err());
    }

    #[test]
    fn levels() {
        for good in ["s0", "s0:c1", "s0:c1,c1023", "s0:c0.c1023", "s0-s15:c0.c3,c5"] {
            assert!(is_level(good), "{good}");
        }
        for bad in ["", "s", "c1", "s0:", "s0:c", "s0:c12345", "s0-s1-s2", "s0:c1.c2.c3", "s0 "] {
            assert!(!is_level(bad), "{bad}");
        }
        let first = mcs_level("abc", &[]);
        let second = mcs_level("abc", &[&first]);
        assert!(is_level(&first) && is_level(&second) && first != second, "{first} {second}");
    }
}
