//! What the CRI tells of a pod sandbox: plain functions from record and life.

use std::collections::HashMap;
use std::net::IpAddr;

use cri::v1::{
    LinuxPodSandboxStatus, Namespace, PodIp, PodSandbox, PodSandboxFilter, PodSandboxNetworkStatus, PodSandboxState,
    PodSandboxStatus,
};

use super::record::{Life, Phase, SandboxRecord};

pub fn state(phase: Phase) -> PodSandboxState {
    match phase {
        Phase::Ready => PodSandboxState::SandboxReady,
        Phase::Making | Phase::Stopping | Phase::Stopped => PodSandboxState::SandboxNotready,
    }
}

pub fn summary(record: &SandboxRecord, phase: Phase) -> PodSandbox {
    PodSandbox {
        id: record.id.clone(),
        metadata: Some(record.metadata()),
        state: state(phase).into(),
        created_at: record.created_at,
        labels: record.config.labels.clone(),
        annotations: record.config.annotations.clone(),
        runtime_handler: record.handler.clone(),
    }
}

pub fn status(record: &SandboxRecord, life: &Life) -> PodSandboxStatus {
    PodSandboxStatus {
        id: record.id.clone(),
        metadata: Some(record.metadata()),
        state: state(life.phase).into(),
        created_at: record.created_at,
        network: Some(network(record, &life.ips)),
        linux: Some(LinuxPodSandboxStatus { namespaces: Some(Namespace { options: Some(record.namespaces()) }) }),
        labels: record.config.labels.clone(),
        annotations: record.config.annotations.clone(),
        runtime_handler: record.handler.clone(),
    }
}

/// A pod on the host's network has the host's addresses, which the caller knows better than we.
fn network(record: &SandboxRecord, ips: &[IpAddr]) -> PodSandboxNetworkStatus {
    if record.host_network() {
        return PodSandboxNetworkStatus::default();
    }
    let mut ips = ips.iter().map(ToString::to_string);
    PodSandboxNetworkStatus { ip: ips.next().unwrap_or_default(), additional_ips: ips.map(|ip| PodIp { ip }).collect() }
}

pub fn matches(filter: Option<&PodSandboxFilter>, sandbox: &PodSandbox) -> bool {
    let Some(filter) = filter else { return true };
    let state = filter.state.as_ref().is_none_or(|wanted| wanted.state == sandbox.state);
    state && sandbox.id.starts_with(&filter.id) && selects(&filter.label_selector, &sandbox.labels)
}

/// Whether all labels of `selector` are among `labels`.
pub fn selects(selector: &HashMap<String, String>, labels: &HashMap<String, String>) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

#[cfg(test)]
mod tests {
    use super::super::record::tests::record;
    use super::*;
    use cri::v1::{NamespaceMode, NamespaceOption, PodSandboxStateValue};

    #[test]
    fn addresses_are_the_pods_and_none_on_the_hosts_network() {
        let ips: Vec<IpAddr> = vec!["10.0.0.5".parse().unwrap(), "fd00::5".parse().unwrap()];
        let own = network(&record(NamespaceOption::default()), &ips);
        assert_eq!((own.ip.as_str(), own.additional_ips[0].ip.as_str()), ("10.0.0.5", "fd00::5"));
        let host = NamespaceOption { network: NamespaceMode::Node.into(), ..NamespaceOption::default() };
        assert_eq!(network(&record(host), &ips), PodSandboxNetworkStatus::default());
    }

    #[test]
    fn a_filter_joins_its_conditions() {
        let mut record = record(NamespaceOption::default());
        record.config.labels.insert("app".into(), "web".into());
        let ready = summary(&record, Phase::Ready);
        let filter = |id: &str, state: PodSandboxState, app: &str| PodSandboxFilter {
            id: id.into(),
            state: Some(PodSandboxStateValue { state: state.into() }),
            label_selector: [("app".to_owned(), app.to_owned())].into(),
        };
        assert!(matches(None, &ready));
        assert!(matches(Some(&filter("abab", PodSandboxState::SandboxReady, "web")), &ready));
        assert!(!matches(Some(&filter("ff", PodSandboxState::SandboxReady, "web")), &ready));
        assert!(!matches(Some(&filter("", PodSandboxState::SandboxNotready, "web")), &ready));
        assert!(!matches(Some(&filter("", PodSandboxState::SandboxReady, "db")), &ready));
    }
}
