//! What the CRI tells of a container: plain functions from record and state.

use std::path::Path;

use cri::v1::{
    Container, ContainerFilter, ContainerResources, ContainerState, ContainerStatus, ContainerUser, ImageSpec,
    LinuxContainerUser,
};

use super::State;
use super::record::{ContainerRecord, Exit, Reason};
use crate::sandbox::status::selects;

pub fn state(state: &State) -> ContainerState {
    match state {
        State::Created => ContainerState::ContainerCreated,
        State::Running(_) => ContainerState::ContainerRunning,
        State::Exited(_) => ContainerState::ContainerExited,
    }
}

pub fn summary(record: &ContainerRecord, now: &State) -> Container {
    Container {
        id: record.id.clone(),
        pod_sandbox_id: record.sandbox.clone(),
        metadata: Some(record.metadata()),
        image: Some(image(record)),
        image_ref: record.image.reference.clone(),
        state: state(now).into(),
        created_at: record.created_at,
        labels: record.config.labels.clone(),
        annotations: record.config.annotations.clone(),
        image_id: record.image.id.clone(),
    }
}

pub fn status(record: &ContainerRecord, now: &State) -> ContainerStatus {
    let (started_at, exit) = match now {
        State::Created => (0, None),
        State::Running(running) => (running.started_at, None),
        State::Exited(exit) => (exit.started_at, Some(exit)),
    };
    let log_path = record.log_path.as_deref().map(Path::to_string_lossy).unwrap_or_default().into_owned();
    ContainerStatus {
        id: record.id.clone(),
        metadata: Some(record.metadata()),
        state: state(now).into(),
        created_at: record.created_at,
        started_at,
        finished_at: exit.map_or(0, |exit| exit.finished_at),
        exit_code: exit.map_or(0, |exit| exit.code),
        image: Some(image(record)),
        image_ref: record.image.reference.clone(),
        reason: exit.map_or_else(String::new, |exit| exit.reason.as_str().to_owned()),
        message: exit.map_or_else(String::new, |exit| exit.message.clone()),
        labels: record.config.labels.clone(),
        annotations: record.config.annotations.clone(),
        mounts: record.config.mounts.clone(),
        log_path,
        resources: Some(ContainerResources { linux: Some(record.resources()), windows: None }),
        image_id: record.image.id.clone(),
        user: Some(user(record)),
        stop_signal: record.stop_signal.cri,
    }
}

fn user(record: &ContainerRecord) -> ContainerUser {
    let user = LinuxContainerUser {
        uid: record.user.uid.into(),
        gid: record.user.gid.into(),
        supplemental_groups: record.user.groups.iter().map(|group| i64::from(*group)).collect(),
    };
    ContainerUser { linux: Some(user) }
}

fn image(record: &ContainerRecord) -> ImageSpec {
    let asked = record.config.image.clone().unwrap_or_default();
    ImageSpec { image: record.image.name.clone(), ..asked }
}

pub fn matches(filter: Option<&ContainerFilter>, container: &Container) -> bool {
    let Some(filter) = filter else { return true };
    let state = filter.state.as_ref().is_none_or(|wanted| wanted.state == container.state);
    state
        && container.id.starts_with(&filter.id)
        && container.pod_sandbox_id.starts_with(&filter.pod_sandbox_id)
        && selects(&filter.label_selector, &container.labels)
}

/// Why a process that ran ended. The kernel's word on memory comes before the exit code: a container whose worker was
/// killed may well end with 0.
pub fn reason(code: u32, oom_kills: u64) -> Reason {
    match (oom_kills, code) {
        (1.., _) => Reason::OomKilled,
        (0, 0) => Reason::Completed,
        (0, _) => Reason::Error,
    }
}

/// The end of a container of which only this is known: that it began, and that nothing of it is left.
pub fn lost(started_at: i64, now: i64) -> Exit {
    Exit {
        code: 255,
        started_at,
        finished_at: now,
        reason: Reason::Unknown,
        message: "its task is gone: the machine, containerd or the shim of its pod ended with it".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Running;
    use super::super::record::tests::record;
    use super::*;
    use cri::v1::ContainerStateValue;

    #[test]
    fn each_state_tells_what_it_knows() {
        let record = record();
        let created = status(&record, &State::Created);
        assert_eq!((created.state(), created.started_at), (ContainerState::ContainerCreated, 0));
        assert_eq!(created.log_path, "/var/log/pods/p/app/1.log");
        let running = status(&record, &State::Running(Running { started_at: 9, pid: 4 }));
        assert_eq!(
            (running.state(), running.started_at, running.finished_at),
            (ContainerState::ContainerRunning, 9, 0)
        );
        let exit =
            Exit { code: 137, started_at: 9, finished_at: 12, reason: Reason::OomKilled, message: String::new() };
        let exited = status(&record, &State::Exited(exit));
        assert_eq!(exited.state(), ContainerState::ContainerExited);
        assert_eq!((exited.exit_code, exited.finished_at, exited.reason.as_str()), (137, 12, "OOMKilled"));
        let same = [&created, &running, &exited].map(|s| (s.image_id.as_str(), s.image_ref.as_str(), s.stop_signal()));
        assert_eq!(same, [("sha256:2", "r/i@sha256:1", cri::v1::Signal::Sigterm); 3]);
    }

    #[test]
    fn memory_comes_before_the_exit_code() {
        assert_eq!([reason(0, 0), reason(1, 0)], [Reason::Completed, Reason::Error]);
        assert_eq!([reason(137, 1), reason(0, 2)], [Reason::OomKilled, Reason::OomKilled]);
    }

    #[test]
    fn a_filter_joins_its_conditions() {
        let one = summary(&record(), &State::Created);
        let by = |id: &str, sandbox: &str, state: ContainerState| ContainerFilter {
            id: id.into(),
            pod_sandbox_id: sandbox.into(),
            state: Some(ContainerStateValue { state: state.into() }),
            ..ContainerFilter::default()
        };
        assert!(matches(None, &one));
        assert!(matches(Some(&by("cdcd", "abab", ContainerState::ContainerCreated)), &one));
        assert!(!matches(Some(&by("abab", "", ContainerState::ContainerCreated)), &one));
        assert!(!matches(Some(&by("", "cdcd", ContainerState::ContainerCreated)), &one));
        assert!(!matches(Some(&by("", "", ContainerState::ContainerExited)), &one));
    }
}
