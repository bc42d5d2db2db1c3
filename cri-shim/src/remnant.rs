//! What can be told of a sandbox or a container whose record cannot be read, by what else containerd has of it: enough
//! for whoever removes it.

use std::collections::HashMap;

use containerd_client::services::v1::Container as Stored;
use cri::v1::{ContainerConfig, ContainerMetadata, PodSandboxConfig, PodSandboxMetadata, Signal};
use oci_spec::runtime::Spec;

use crate::container::record::{ContainerRecord, ImageNames, StopSignal, User};
use crate::container::spec::{SANDBOX_ID, decode};
use crate::container::volumes;
use crate::containerd::tasks::nanos;
use crate::sandbox::record::{KIND_LABEL, SandboxRecord};

/// Labels that the kubelet gives, and by which it knows its own.
const POD_NAME: &str = "io.kubernetes.pod.name";
const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
const POD_UID: &str = "io.kubernetes.pod.uid";
const CONTAINER_NAME: &str = "io.kubernetes.container.name";

/// A sandbox that is to be torn down: how it was furnished is not known.
pub fn sandbox(stored: &Stored) -> SandboxRecord {
    let labels = labels(stored);
    let of = |key: &str| labels.get(key).cloned().unwrap_or_default();
    let metadata =
        PodSandboxMetadata { name: of(POD_NAME), namespace: of(POD_NAMESPACE), uid: of(POD_UID), attempt: 0 };
    SandboxRecord {
        id: stored.id.clone(),
        created_at: nanos(stored.created_at.as_ref()),
        handler: String::new(),
        selinux_level: None,
        config: PodSandboxConfig { metadata: Some(metadata), labels, ..PodSandboxConfig::default() },
    }
}

/// A container that writes no log, of the pod that its spec names.
pub fn container(stored: &Stored) -> ContainerRecord {
    let labels = labels(stored);
    let name = labels.get(CONTAINER_NAME).cloned().unwrap_or_default();
    let spec: Spec = stored.spec.as_ref().and_then(|spec| decode(spec).ok()).unwrap_or_default();
    let sandbox = spec.annotations().as_ref().and_then(|all| all.get(SANDBOX_ID).cloned());
    let cgroup = spec.linux().as_ref().and_then(|linux| linux.cgroups_path().clone());
    ContainerRecord {
        id: stored.id.clone(),
        sandbox: sandbox.unwrap_or_default(),
        created_at: nanos(stored.created_at.as_ref()),
        config: ContainerConfig {
            metadata: Some(ContainerMetadata { name, attempt: 0 }),
            labels,
            ..ContainerConfig::default()
        },
        image: ImageNames { name: stored.image.clone(), ..ImageNames::default() },
        stop_signal: StopSignal { number: 15, cri: Signal::Sigterm.into() },
        user: User::default(),
        log_path: None,
        cgroup: cgroup.unwrap_or_default().to_string_lossy().into_owned(),
        // As many as there may be.
        volumes: volumes::keys(&stored.id, usize::MAX),
    }
}

/// Those of its config.
fn labels(stored: &Stored) -> HashMap<String, String> {
    let mut labels = stored.labels.clone();
    labels.remove(KIND_LABEL);
    labels
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost_types::Any;

    fn stored(labels: &[(&str, &str)]) -> Stored {
        let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Stored { id: "c1".to_owned(), labels, image: "busybox:1".to_owned(), ..Stored::default() }
    }

    #[test]
    fn its_labels_tell_whose_it_is() {
        let labels =
            [(KIND_LABEL, "sandbox"), (POD_NAME, "web"), (POD_NAMESPACE, "default"), (POD_UID, "u1"), ("a", "b")];
        let found = sandbox(&stored(&labels));
        assert_eq!(crate::sandbox::record::name(&found.metadata()), "default/web/u1/0");
        assert_eq!((found.id.as_str(), found.config.labels.len()), ("c1", 4));
    }

    #[test]
    fn its_spec_tells_its_pod() {
        let text = format!(r#"{{"annotations":{{"{SANDBOX_ID}":"s1"}},"linux":{{"cgroupsPath":"/pods/c1"}}}}"#);
        let spec = Some(Any { type_url: String::new(), value: text.into_bytes() });
        let found = container(&Stored { spec, ..stored(&[(CONTAINER_NAME, "app")]) });
        assert_eq!((found.sandbox.as_str(), found.cgroup.as_str()), ("s1", "/pods/c1"));
        assert_eq!((found.metadata().name.as_str(), found.image.name.as_str()), ("app", "busybox:1"));
        let garbage = Some(Any { type_url: String::new(), value: b"{".to_vec() });
        assert_eq!(container(&Stored { spec: garbage, ..stored(&[]) }).sandbox, "");
    }
}
