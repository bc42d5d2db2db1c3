//! Which capabilities a container's process has. Source: capabilities(7), CRI's Capability.

use cri::v1;
use oci_spec::runtime::{Capabilities, Capability, LinuxCapabilities};

use super::{HostFacts, SpecError};

/// A set of capabilities.
pub type CapabilitySet = std::collections::HashSet<Capability>;

/// All, by their numbers in linux/capability.h.
const NUMBERED: [Capability; 41] = [
    Capability::Chown,
    Capability::DacOverride,
    Capability::DacReadSearch,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::Setgid,
    Capability::Setuid,
    Capability::Setpcap,
    Capability::LinuxImmutable,
    Capability::NetBindService,
    Capability::NetBroadcast,
    Capability::NetAdmin,
    Capability::NetRaw,
    Capability::IpcLock,
    Capability::IpcOwner,
    Capability::SysModule,
    Capability::SysRawio,
    Capability::SysChroot,
    Capability::SysPtrace,
    Capability::SysPacct,
    Capability::SysAdmin,
    Capability::SysBoot,
    Capability::SysNice,
    Capability::SysResource,
    Capability::SysTime,
    Capability::SysTtyConfig,
    Capability::Mknod,
    Capability::Lease,
    Capability::AuditWrite,
    Capability::AuditControl,
    Capability::Setfcap,
    Capability::MacOverride,
    Capability::MacAdmin,
    Capability::Syslog,
    Capability::WakeAlarm,
    Capability::BlockSuspend,
    Capability::AuditRead,
    Capability::Perfmon,
    Capability::Bpf,
    Capability::CheckpointRestore,
];

/// What a container has that asks for nothing: what containerd and Docker give.
const DEFAULT: [Capability; 14] = [
    Capability::Chown,
    Capability::DacOverride,
    Capability::Fsetid,
    Capability::Fowner,
    Capability::Mknod,
    Capability::NetRaw,
    Capability::Setgid,
    Capability::Setuid,
    Capability::Setfcap,
    Capability::Setpcap,
    Capability::NetBindService,
    Capability::SysChroot,
    Capability::Kill,
    Capability::AuditWrite,
];

/// The capabilities whose bits are set.
pub(super) fn of_mask(mask: u64) -> CapabilitySet {
    NUMBERED.iter().enumerate().filter(|(bit, _)| mask >> bit & 1 == 1).map(|(_, c)| *c).collect()
}

/// The sets of a container's process.
pub(super) fn of(
    security: &v1::LinuxContainerSecurityContext,
    host: &HostFacts,
) -> Result<LinuxCapabilities, SpecError> {
    let held = &host.capabilities;
    if security.privileged {
        return Ok(sets(held, &CapabilitySet::new()));
    }
    let asked = security.capabilities.clone().unwrap_or_default();
    let (add, drop) = (Asked::parse(&asked.add_capabilities)?, Asked::parse(&asked.drop_capabilities)?);
    let ambient = Asked::parse(&asked.add_ambient_capabilities)?;
    let mut all: CapabilitySet = DEFAULT.iter().copied().filter(|c| held.contains(c)).collect();
    if add.all {
        all.clone_from(held);
    }
    if drop.all {
        all.clear();
    }
    for capability in add.named.iter().chain(&ambient.named) {
        if !held.contains(capability) {
            return Err(SpecError::CapabilityNotHeld(format!("CAP_{capability}")));
        }
        all.insert(*capability);
    }
    all.retain(|c| !drop.named.contains(c));
    let ambient = if ambient.all { all.clone() } else { &ambient.named & &all };
    Ok(sets(&all, &ambient))
}

/// The five sets. Inheritable holds but what is ambient, which must be in it: more would come to programs with file
/// capabilities run by users who are not root (CVE-2022-24769).
pub(crate) fn sets(all: &CapabilitySet, ambient: &CapabilitySet) -> LinuxCapabilities {
    let some = |set: &CapabilitySet| Some(set.iter().copied().collect::<Capabilities>());
    let few = |set: &CapabilitySet| if set.is_empty() { None } else { some(set) };
    let mut sets = LinuxCapabilities::default();
    sets.set_bounding(some(all)).set_permitted(some(all)).set_effective(some(all));
    sets.set_inheritable(few(ambient)).set_ambient(few(ambient));
    sets
}

/// Names as a request has them.
#[derive(Debug, Default)]
struct Asked {
    all: bool,
    named: CapabilitySet,
}

impl Asked {
    fn parse(names: &[String]) -> Result<Self, SpecError> {
        let mut asked = Self::default();
        for name in names {
            let upper = name.to_ascii_uppercase();
            let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
            if bare == "ALL" {
                asked.all = true;
                continue;
            }
            let known = NUMBERED.iter().find(|c| c.to_string() == bare);
            asked.named.insert(*known.ok_or_else(|| SpecError::UnknownCapability(name.clone()))?);
        }
        Ok(asked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> HostFacts {
        // Root without CAP_SYS_RESOURCE, number 24.
        HostFacts { capabilities: of_mask(0x1ff_feff_ffff), ..HostFacts::default() }
    }

    fn bounding(add: &[&str], drop: &[&str], privileged: bool) -> Result<CapabilitySet, String> {
        let strings = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect();
        let capabilities = v1::Capability {
            add_capabilities: strings(add),
            drop_capabilities: strings(drop),
            ..v1::Capability::default()
        };
        let security = v1::LinuxContainerSecurityContext {
            capabilities: Some(capabilities),
            privileged,
            ..v1::LinuxContainerSecurityContext::default()
        };
        let sets = of(&security, &host()).map_err(|e| e.to_string())?;
        assert_eq!(sets.bounding(), sets.effective());
        assert_eq!(sets.bounding(), sets.permitted());
        assert_eq!((sets.ambient(), sets.inheritable()), (&None, &None));
        Ok(sets.bounding().clone().unwrap())
    }

    #[test]
    fn adding_and_dropping() {
        let default: CapabilitySet = DEFAULT.into_iter().collect();
        assert_eq!(bounding(&[], &[], false), Ok(default.clone()));
        let with_admin = bounding(&["NET_ADMIN"], &[], false).unwrap();
        assert_eq!(&with_admin - &default, CapabilitySet::from([Capability::NetAdmin]));
        assert_eq!(&default - &bounding(&[], &["CAP_CHOWN"], false).unwrap(), CapabilitySet::from([Capability::Chown]));
        assert_eq!(bounding(&["ALL"], &[], false), Ok(host().capabilities));
        assert_eq!(bounding(&[], &["ALL"], false), Ok(CapabilitySet::new()));
        assert_eq!(bounding(&["CHOWN"], &["ALL"], false), Ok(CapabilitySet::from([Capability::Chown])));
        assert!(!bounding(&["ALL"], &["chown"], false).unwrap().contains(&Capability::Chown));
    }

    #[test]
    fn nobody_gets_what_root_does_not_have() {
        assert_eq!(bounding(&[], &[], true), Ok(host().capabilities));
        let refused = bounding(&["SYS_RESOURCE"], &[], false).unwrap_err();
        assert!(refused.starts_with("capability CAP_SYS_RESOURCE cannot be given"), "{refused}");
        assert!(bounding(&["FLY"], &[], false).unwrap_err().starts_with("unknown capability \"FLY\""));
    }

    #[test]
    fn ambient_capabilities_are_inheritable_too() {
        let asked = v1::Capability { add_ambient_capabilities: vec!["NET_ADMIN".into()], ..v1::Capability::default() };
        let security = v1::LinuxContainerSecurityContext {
            capabilities: Some(asked),
            ..v1::LinuxContainerSecurityContext::default()
        };
        let sets = of(&security, &host()).unwrap();
        let only = Some(Capabilities::from([Capability::NetAdmin]));
        assert_eq!((sets.ambient(), sets.inheritable()), (&only, &only));
        assert!(sets.bounding().as_ref().unwrap().contains(&Capability::NetAdmin));
    }
}
