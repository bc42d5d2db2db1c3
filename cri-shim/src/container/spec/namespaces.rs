//! Namespaces of a container: the pod's by path, and its own. Sources: namespaces(7), CRI's NamespaceOption, KEP-127.

use std::path::PathBuf;

use cri::v1::{self, IdMapping, NamespaceMode};
use oci_spec::runtime::{Linux, LinuxIdMapping, LinuxIdMappingBuilder, LinuxNamespace, LinuxNamespaceType as Kind};

use super::{ContainerInput, SpecError, sandbox_security_of};

/// Files that keep a pod's namespaces; none where the pod uses the machine's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NamespacePaths {
    pub net: Option<PathBuf>,
    pub ipc: Option<PathBuf>,
    pub uts: Option<PathBuf>,
    pub user: Option<PathBuf>,
    /// The shared PID namespace: of the pause task, or of the container that a TARGET names.
    pub pid: Option<PathBuf>,
}

/// The ids of a user namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdMappings {
    pub uids: Vec<LinuxIdMapping>,
    pub gids: Vec<LinuxIdMapping>,
}

impl IdMappings {
    /// The machine's ids of the namespace's root.
    pub fn root(&self) -> (u32, u32) {
        let of = |all: &[LinuxIdMapping]| all.iter().find(|m| m.container_id() == 0).map_or(0, |m| m.host_id());
        (of(&self.uids), of(&self.gids))
    }
}

/// The user namespace that is asked for; none for the machine's.
///
/// # Errors
/// Where the mode is not one of a user namespace, or the mappings are not one each that maps id 0.
pub fn user_namespace(options: Option<&v1::UserNamespace>) -> Result<Option<IdMappings>, SpecError> {
    let Some(options) = options else { return Ok(None) };
    let fault = |text| Err(SpecError::UserNamespace(text));
    match NamespaceMode::try_from(options.mode) {
        Ok(NamespaceMode::Node) if options.uids.is_empty() && options.gids.is_empty() => return Ok(None),
        Ok(NamespaceMode::Node) => return fault("ids are mapped, though the mode is NODE"),
        Ok(NamespaceMode::Pod) => {}
        _ => return fault("the mode must be POD or NODE"),
    }
    let mapped = |mappings: &[IdMapping]| match mappings {
        [one] if one.container_id != 0 => Err("the mapping must map id 0 of the container"),
        [one] if one.length == 0 => Err("the mapping is empty"),
        [one] if one.host_id.checked_add(one.length).is_none() => Err("the mapping goes beyond the last id"),
        [_] => Ok(of_mappings(mappings)),
        [] => Err("one mapping of user ids and one of group ids is needed"),
        _ => Err("only one mapping of user ids and one of group ids is possible"),
    };
    let (uids, gids) = (mapped(&options.uids), mapped(&options.gids));
    match (uids, gids) {
        (Ok(uids), Ok(gids)) => Ok(Some(IdMappings { uids, gids })),
        (Err(text), _) | (_, Err(text)) => fault(text),
    }
}

pub(crate) fn of_mappings(mappings: &[IdMapping]) -> Vec<LinuxIdMapping> {
    let one = |mapping: &IdMapping| {
        let to = LinuxIdMappingBuilder::default().host_id(mapping.host_id).container_id(mapping.container_id);
        // Every field is set, so that it can be built.
        to.size(mapping.length).build().unwrap_or_default()
    };
    mappings.iter().map(one).collect()
}

/// Gives the container its namespaces.
pub(super) fn apply(
    linux: &mut Linux,
    input: &ContainerInput<'_>,
    security: &v1::LinuxContainerSecurityContext,
) -> Result<(), SpecError> {
    let options = security.namespace_options.clone().unwrap_or_default();
    let ids = user_namespace(options.userns_options.as_ref())?;
    let pod = sandbox_security_of(input.sandbox.config).namespace_options.unwrap_or_default();
    if ids.is_some() && !input.handler.user_namespaces {
        return Err(SpecError::UserNamespaceUnsupported { handler: input.handler.name.clone() });
    }
    if ids != user_namespace(pod.userns_options.as_ref())? {
        return Err(SpecError::UserNamespace("the container asks for another one than its pod sandbox"));
    }
    let mut all = joined(input.sandbox.namespaces, ids.as_ref(), linux)?;
    all.push(own(Kind::Mount));
    match NamespaceMode::try_from(options.pid) {
        Ok(NamespaceMode::Container) => all.push(own(Kind::Pid)),
        Ok(NamespaceMode::Node) => {}
        Ok(NamespaceMode::Pod | NamespaceMode::Target) => {
            let reason = "a shared one is asked for, but neither the pod sandbox nor a target container has one";
            let path = input.sandbox.namespaces.pid.clone();
            all.push(at(Kind::Pid, path.ok_or(SpecError::Namespace { namespace: "PID", reason })?));
        }
        Err(_) => return Err(SpecError::UnknownValue { field: "pid namespace", value: options.pid }),
    }
    // On version 1 programs look for their limits below the path that their group has on the machine.
    if input.host.cgroup_v2 && !security.privileged {
        all.push(own(Kind::Cgroup));
    }
    linux.set_namespaces(Some(all));
    Ok(())
}

/// The pod's namespaces that are there to be joined; a user namespace with the ids that it maps.
pub(crate) fn joined(
    paths: &NamespacePaths,
    ids: Option<&IdMappings>,
    linux: &mut Linux,
) -> Result<Vec<LinuxNamespace>, SpecError> {
    let kinds = [(Kind::Network, &paths.net), (Kind::Ipc, &paths.ipc), (Kind::Uts, &paths.uts)];
    let mut all: Vec<_> = kinds.into_iter().filter_map(|(kind, path)| Some(at(kind, path.clone()?))).collect();
    if let Some(ids) = ids {
        let reason = "the pod sandbox has none, though it asked for one";
        let path = paths.user.clone().ok_or(SpecError::Namespace { namespace: "user", reason })?;
        all.push(at(Kind::User, path));
        linux.set_uid_mappings(Some(ids.uids.clone())).set_gid_mappings(Some(ids.gids.clone()));
    }
    Ok(all)
}

pub(crate) fn own(kind: Kind) -> LinuxNamespace {
    let mut namespace = LinuxNamespace::default();
    namespace.set_typ(kind);
    namespace
}

fn at(kind: Kind, path: PathBuf) -> LinuxNamespace {
    let mut namespace = own(kind);
    namespace.set_path(Some(path));
    namespace
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(container_id: u32, host_id: u32, length: u32) -> IdMapping {
        IdMapping { host_id, container_id, length }
    }

    fn asked(mode: NamespaceMode, uids: &[IdMapping], gids: &[IdMapping]) -> Result<Option<usize>, String> {
        let options = v1::UserNamespace { mode: mode as i32, uids: uids.to_vec(), gids: gids.to_vec() };
        let ids = user_namespace(Some(&options)).map_err(|e| e.to_string())?;
        Ok(ids.map(|ids| ids.uids.len() + ids.gids.len()))
    }

    #[test]
    fn the_root_is_who_has_id_0_inside() {
        let (uids, gids) = (of_mappings(&[mapping(0, 1000, 10)]), of_mappings(&[mapping(5, 70, 2), mapping(0, 7, 2)]));
        assert_eq!(IdMappings { uids, gids }.root(), (1000, 7));
    }

    #[test]
    fn a_user_namespace_maps_id_0_once() {
        let good = [mapping(0, 1000, 100_000)];
        assert_eq!(user_namespace(None).unwrap(), None);
        assert_eq!(asked(NamespaceMode::Pod, &good, &good), Ok(Some(2)));
        assert_eq!(asked(NamespaceMode::Node, &[], &[]), Ok(None));
        let refused = |mode, uids: &[IdMapping]| asked(mode, uids, &good).unwrap_err();
        assert!(refused(NamespaceMode::Container, &good).contains("must be POD or NODE"));
        assert!(refused(NamespaceMode::Target, &good).contains("must be POD or NODE"));
        assert!(refused(NamespaceMode::Node, &good).contains("though the mode is NODE"));
        assert!(refused(NamespaceMode::Pod, &[]).contains("is needed"));
        assert!(refused(NamespaceMode::Pod, &[good[0], good[0]]).contains("only one"));
        assert!(refused(NamespaceMode::Pod, &[mapping(1, 1000, 1)]).contains("must map id 0"));
        assert!(refused(NamespaceMode::Pod, &[mapping(0, u32::MAX, 2)]).contains("beyond the last id"));
    }
}
