//! Seccomp, AppArmor and SELinux of a container. Source: CRI's SecurityProfile.

use cri::v1::{self, SecurityProfile, security_profile::ProfileType};
use oci_spec::runtime::Spec;

use crate::seccomp::{self, Profile};

use super::apparmor::{self, Confinement};
use super::{ContainerInput, HostFacts, SpecError, selinux};

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
    if let Some(labels) = selinux::labels(input.host, security, input.sandbox.config, input.sandbox.selinux_level)? {
        selinux::apply(spec, labels);
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
}
