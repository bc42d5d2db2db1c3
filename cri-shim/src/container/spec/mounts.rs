//! What is mounted in a container: the kernel's file systems, the pod's files, the image's volumes, the request's mounts.
//! Sources: CRI's Mount, the OCI runtime spec's config.md, KEP-3857 (recursive read-only), KEP-5855 (mount options).

use std::path::{Component, Path, PathBuf};

use cri::v1::{self, MountPropagation, NamespaceMode};
use oci_spec::runtime::Mount;

use super::gather::Source;
use super::{ContainerInput, SpecError, of_mappings, sandbox_security_of};

/// Mount options that a request may add. Source: KEP-5855.
const OPTIONS: [&str; 3] = ["noexec", "nodev", "nosuid"];

/// The mounts in the order in which they are made, and the root's propagation where a mount needs one.
pub(super) fn of(
    input: &ContainerInput<'_>,
    security: &v1::LinuxContainerSecurityContext,
) -> Result<(Vec<Mount>, Option<String>), SpecError> {
    let mut binds = asked_for(input)?;
    let taken: Vec<PathBuf> = binds.iter().map(|b| b.destination().clone()).collect();
    binds.extend(of_pod(input, security).into_iter().filter(|m| !taken.contains(m.destination())));
    binds.extend(of_image(input, security).into_iter().filter(|m| !taken.contains(m.destination())));
    // Parents first: a mount on a folder hides what was mounted below it before.
    binds.sort_by_key(|m| m.destination().components().count());
    let own_dev = taken.iter().any(|t| t == Path::new("/dev"));
    let mut all = kernels(input, security);
    all.retain(|m| !binds.iter().any(|b| b.destination() == m.destination()));
    all.retain(|m| !(own_dev && m.destination().starts_with("/dev")));
    all.append(&mut binds);
    Ok((all, root_propagation(&input.config.mounts)))
}

/// The file systems that every container has.
pub(crate) fn default_mounts() -> Vec<Mount> {
    let fs = |path: &str, kind: &str, options: &[&str]| mount(path.into(), kind, Path::new(kind), options);
    vec![
        fs("/proc", "proc", &["nosuid", "noexec", "nodev"]),
        fs("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        fs("/dev/pts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
        fs("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        fs("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
    ]
}

/// A bind mount with all that is mounted below its source.
pub(crate) fn bind(destination: &str, source: &Path, options: &[&str]) -> Mount {
    let all: Vec<&str> = ["rbind"].into_iter().chain(options.iter().copied()).collect();
    mount(destination.into(), "bind", source, &all)
}

fn mount(destination: PathBuf, kind: &str, source: &Path, options: &[&str]) -> Mount {
    let mut mount = Mount::default();
    mount.set_destination(destination).set_typ(Some(kind.into())).set_source(Some(source.into()));
    mount.set_options(Some(options.iter().map(|o| (*o).to_owned()).collect()));
    mount
}

fn kernels(input: &ContainerInput<'_>, security: &v1::LinuxContainerSecurityContext) -> Vec<Mount> {
    let mut all = default_mounts();
    let mode = if security.privileged || input.handler.cgroup_writable { "rw" } else { "ro" };
    all.push(mount(
        "/sys/fs/cgroup".into(),
        "cgroup",
        Path::new("cgroup"),
        &["nosuid", "noexec", "nodev", "relatime", mode],
    ));
    for m in all.iter_mut().filter(|m| m.destination() == Path::new("/sys")) {
        if maps_ids(security) && uses_hosts_network(input) {
            // sysfs shows a network namespace and is mounted by its owner only, which this user namespace is not.
            *m = bind("/sys", Path::new("/sys"), &["nosuid", "noexec", "nodev", "rro"]);
        } else if security.privileged {
            m.set_options(Some(["nosuid", "noexec", "nodev", "rw"].map(String::from).to_vec()));
        }
    }
    all
}

/// The pod's hosts, resolv.conf, hostname and shared memory.
fn of_pod(input: &ContainerInput<'_>, security: &v1::LinuxContainerSecurityContext) -> Vec<Mount> {
    let pod = input.sandbox;
    let mode = if security.readonly_rootfs { "ro" } else { "rw" };
    let files = [("/etc/hostname", pod.hostname), ("/etc/hosts", pod.hosts), ("/etc/resolv.conf", pod.resolv_conf)];
    let mut all: Vec<Mount> = files.map(|(path, source)| bind(path, source, &["rprivate", mode])).to_vec();
    for m in &mut all {
        map_ids(m, security);
    }
    // Empty at first, so it needs no mapped ids, which tmpfs has from kernel 6.3 on only.
    all.push(bind("/dev/shm", pod.shm, &["rprivate", "rw"]));
    all
}

/// The VOLUMEs of the image.
fn of_image(input: &ContainerInput<'_>, security: &v1::LinuxContainerSecurityContext) -> Vec<Mount> {
    let one = |volume: &super::Volume| {
        let mut m = mount(volume.destination.clone(), "bind", &volume.source, &["rbind", "rprivate", "rw"]);
        map_ids(&mut m, security);
        m
    };
    input.volumes.iter().map(one).collect()
}

fn maps_ids(security: &v1::LinuxContainerSecurityContext) -> bool {
    let options = security.namespace_options.as_ref().and_then(|o| o.userns_options.as_ref());
    options.is_some_and(|o| o.mode == NamespaceMode::Pod as i32)
}

fn uses_hosts_network(input: &ContainerInput<'_>) -> bool {
    let options = sandbox_security_of(input.sandbox.config).namespace_options.unwrap_or_default();
    options.network == NamespaceMode::Node as i32
}

fn map_ids(mount: &mut Mount, security: &v1::LinuxContainerSecurityContext) {
    let options = security.namespace_options.as_ref().and_then(|o| o.userns_options.as_ref());
    if let (true, Some(options)) = (maps_ids(security), options) {
        mount.set_uid_mappings(Some(of_mappings(&options.uids)));
        mount.set_gid_mappings(Some(of_mappings(&options.gids)));
    }
}

fn asked_for(input: &ContainerInput<'_>) -> Result<Vec<Mount>, SpecError> {
    let sources = &input.gathered.mounts;
    if sources.len() != input.config.mounts.len() {
        return Err(SpecError::Incomplete("source for each of its mounts"));
    }
    input.config.mounts.iter().zip(sources).map(|(asked, source)| one(asked, source, input)).collect()
}

fn one(asked: &v1::Mount, source: &Source, input: &ContainerInput<'_>) -> Result<Mount, SpecError> {
    let path = &asked.container_path;
    let mut options = vec!["rbind", propagation(asked, source)?];
    options.push(access(asked, input)?);
    for option in &asked.mount_options {
        let known = OPTIONS.iter().find(|known| *known == option);
        let refuse = || SpecError::MountOption { path: path.clone(), option: option.clone() };
        options.push(known.copied().ok_or_else(refuse)?);
    }
    let mut mount = mount(cleaned(path)?, "bind", &source.path, &options);
    if !asked.uid_mappings.is_empty() || !asked.gid_mappings.is_empty() {
        if !input.handler.user_namespaces {
            return Err(SpecError::UserNamespaceUnsupported { handler: input.handler.name.clone() });
        }
        mount.set_uid_mappings(Some(of_mappings(&asked.uid_mappings)));
        mount.set_gid_mappings(Some(of_mappings(&asked.gid_mappings)));
    }
    Ok(mount)
}

/// A path without `.`, `..` and doubled slashes, so that one place has one name.
pub(super) fn cleaned(path: &str) -> Result<PathBuf, SpecError> {
    if !path.starts_with('/') {
        return Err(SpecError::NotAbsolute("mount", path.into()));
    }
    let mut clean = PathBuf::from("/");
    for part in Path::new(path).components() {
        match part {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => {
                clean.pop();
            }
            _ => {}
        }
    }
    Ok(clean)
}

/// `rprivate`, `rslave` or `rshared`; the latter two need a source that has peers.
fn propagation(asked: &v1::Mount, source: &Source) -> Result<&'static str, SpecError> {
    let refuse = |wanted, remedy| SpecError::Propagation {
        path: asked.container_path.clone(),
        from: source.path.clone(),
        mount_point: source.mount_point.clone(),
        wanted,
        remedy,
    };
    match MountPropagation::try_from(asked.propagation) {
        Ok(MountPropagation::PropagationPrivate) => Ok("rprivate"),
        Ok(MountPropagation::PropagationHostToContainer) if source.shared || source.slave => Ok("rslave"),
        Ok(MountPropagation::PropagationHostToContainer) => Err(refuse("a shared or slave mount", "rslave")),
        Ok(MountPropagation::PropagationBidirectional) if source.shared => Ok("rshared"),
        Ok(MountPropagation::PropagationBidirectional) => Err(refuse("a shared mount", "rshared")),
        Err(_) => Err(SpecError::UnknownValue { field: "mount propagation", value: asked.propagation }),
    }
}

/// `rw`, `ro`, or `rro` for all mounts below too.
fn access(asked: &v1::Mount, input: &ContainerInput<'_>) -> Result<&'static str, SpecError> {
    let refuse = |reason| Err(SpecError::Mount { path: asked.container_path.clone(), reason });
    let of_image = asked.image.as_ref().is_some_and(|image| !image.image.is_empty());
    match (asked.readonly, asked.recursive_read_only) {
        (false, _) if of_image => refuse("an image is mounted read-only: set readonly"),
        (false, true) => refuse("recursive read-only needs readonly set"),
        (true, true) if asked.propagation != MountPropagation::PropagationPrivate as i32 => {
            refuse("recursive read-only needs private propagation")
        }
        (true, true) if !input.handler.recursive_read_only => Err(SpecError::RecursiveReadOnlyUnsupported {
            path: asked.container_path.clone(),
            handler: input.handler.name.clone(),
        }),
        (true, true) => Ok("rro"),
        (true, false) => Ok("ro"),
        (false, false) => Ok("rw"),
    }
}

/// A mount takes part in propagation only where the root above it does.
fn root_propagation(mounts: &[v1::Mount]) -> Option<String> {
    let asks = |wanted: MountPropagation| mounts.iter().any(|m| m.propagation == wanted as i32);
    if asks(MountPropagation::PropagationBidirectional) {
        return Some("rshared".into());
    }
    asks(MountPropagation::PropagationHostToContainer).then(|| "rslave".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_place_has_one_name() {
        let clean = |path: &str| cleaned(path).map(|p| p.display().to_string()).map_err(|e| e.to_string());
        assert_eq!(clean("/a//b/./c/"), Ok("/a/b/c".into()));
        assert_eq!(clean("/../a/../b"), Ok("/b".into()));
        assert!(clean("a").unwrap_err().contains("is not absolute"));
    }

    #[test]
    fn the_root_has_the_strongest_propagation_that_a_mount_needs() {
        let mounts = |all: &[MountPropagation]| {
            let one = |p: &MountPropagation| v1::Mount { propagation: *p as i32, ..v1::Mount::default() };
            root_propagation(&all.iter().map(one).collect::<Vec<_>>())
        };
        let (private, slave, shared) = (
            MountPropagation::PropagationPrivate,
            MountPropagation::PropagationHostToContainer,
            MountPropagation::PropagationBidirectional,
        );
        assert_eq!(mounts(&[private]), None);
        assert_eq!(mounts(&[slave, private]), Some("rslave".into()));
        assert_eq!(mounts(&[slave, shared]), Some("rshared".into()));
    }
}
