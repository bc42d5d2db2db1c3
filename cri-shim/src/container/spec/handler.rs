//! A runtime handler: what a RuntimeClass of the cluster names, and what the program behind it can do.

use oci_spec::runtime::{Features, PosixRlimit};

use super::HostFacts;

/// A runtime handler, as far as specs depend on it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Handler {
    /// The name that a RuntimeClass gives; empty for the default handler.
    pub name: String,
    pub recursive_read_only: bool,
    /// Containers may have a user namespace and mounts with mapped ids.
    pub user_namespaces: bool,
    /// A privileged container gets no devices of the machine.
    pub privileged_without_host_devices: bool,
    /// /sys/fs/cgroup is writable for containers.
    pub cgroup_writable: bool,
    /// Patterns of pod annotations that go into the specs.
    pub pod_annotations: Vec<String>,
    /// Patterns of container annotations that go into the specs.
    pub container_annotations: Vec<String>,
    /// Resource limits of each container's processes; those not named are inherited from the shim.
    pub rlimits: Vec<PosixRlimit>,
}

impl Handler {
    /// A handler whose program is asked for its features now. Blocks.
    pub fn probe(name: &str, program: &str, host: &HostFacts) -> Self {
        let told = kernel::process::run(program, &["features"]).ok();
        let features = told.and_then(|text| serde_json::from_str(&text).ok());
        let mut handler = Self::new(name, features.as_ref(), host);
        if features.is_none() {
            let version = kernel::process::run(program, &["--version"]).unwrap_or_default();
            handler.user_namespaces = host.idmapped_mounts && is_silent_mapper(&version);
        }
        handler
    }

    /// A handler whose program told its features (`runc features`); one that tells none is taken to have none.
    pub fn new(name: &str, features: Option<&Features>, host: &HostFacts) -> Self {
        let rro = |f: &Features| f.mount_options().as_ref().is_some_and(|all| all.iter().any(|o| o == "rro"));
        Self {
            name: name.into(),
            recursive_read_only: features.is_some_and(rro) && host.recursive_read_only,
            user_namespaces: features.is_some_and(maps_ids) && host.idmapped_mounts,
            ..Self::default()
        }
    }
}

/// Whether this is a crun that maps ids of mounts, though it has no `features` to tell so yet: 1.8, which Debian 12 has.
fn is_silent_mapper(version: &str) -> bool {
    let number = version.strip_prefix("crun version ").and_then(|rest| rest.split_whitespace().next());
    let mut parts = number.unwrap_or_default().split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0)) >= (1, 8)
}

fn maps_ids(features: &Features) -> bool {
    let extensions = features.linux().as_ref().and_then(|l| l.mount_extensions().as_ref());
    extensions.and_then(|e| e.idmap().as_ref()).and_then(|i| *i.enabled()).unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_need_the_program_and_the_kernel() {
        let runc = r#"{"ociVersionMin":"1.0.0","ociVersionMax":"1.2.0","mountOptions":["ro","rro"],
            "linux":{"mountExtensions":{"idmap":{"enabled":true}}}}"#;
        let features: Features = serde_json::from_str(runc).unwrap();
        let new = HostFacts { recursive_read_only: true, idmapped_mounts: true, ..HostFacts::default() };
        let can = |f: Option<&Features>, host: &HostFacts| {
            let handler = Handler::new("runc", f, host);
            (handler.recursive_read_only, handler.user_namespaces)
        };
        assert_eq!(can(Some(&features), &new), (true, true));
        assert_eq!(can(Some(&features), &HostFacts::default()), (false, false));
        assert_eq!(can(None, &new), (false, false));
    }

    #[test]
    fn a_crun_without_features_is_known_by_its_version() {
        assert!(is_silent_mapper("crun version 1.8.1\ncommit: f8a0\n"));
        assert!(!is_silent_mapper("crun version 1.4.5\n"));
        assert!(!is_silent_mapper("runc version 1.1.5+ds1\n"));
        assert!(!is_silent_mapper(""));
    }

    #[test]
    fn a_real_runc_tells_its_features() {
        if kernel::process::run("runc", &["features"]).is_err() {
            return eprintln!("SKIPPED runc features: no runc of 1.1 or newer");
        }
        let new = HostFacts { recursive_read_only: true, ..HostFacts::default() };
        assert!(Handler::probe("runc", "runc", &new).recursive_read_only);
        assert!(!Handler::probe("none", "no-such-runtime", &new).recursive_read_only);
    }
}
