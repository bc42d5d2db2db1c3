//! /containerLogs: a container's log, from its file.

use futures::TryStreamExt;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Response, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use k8s_openapi::api::core::v1::{ContainerState, ContainerStatus, Pod};
use k8s_openapi::jiff::{SignedDuration, Timestamp};

use cri::v1::{ContainerState as CriState, ContainerStatusRequest};

use super::respond::{Answer, text};
use super::route::Target;
use super::{Parts, streams};
use crate::log::{LogOptions, Output, stream};
use crate::pod::ContainerPhase;

pub(super) fn answer(parts: &Parts, target: &Target, query: &str) -> Answer {
    let (options, previous) = match options(query, Timestamp::now()) {
        Ok(wanted) => wanted,
        Err(reason) => return text(StatusCode::BAD_REQUEST, reason),
    };
    let Some(pod) = streams::find_pod(parts, target) else {
        return text(StatusCode::NOT_FOUND, format!("pod {:?} does not exist\n", target.pod));
    };
    if !has_container(&pod, &target.container) {
        let message = format!("container {:?} not found in pod {:?}\n", target.container, target.pod);
        return text(StatusCode::NOT_FOUND, message);
    }
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    let found = parts.pods.container(uid, &target.container, previous);
    let Some(container) = found.filter(|c| c.phase != ContainerPhase::Created) else {
        return text(StatusCode::BAD_REQUEST, unavailable(&pod, &target.container, previous));
    };
    let follow = options.follow && container.phase != ContainerPhase::Exited;
    let (runtime, id) = (parts.runtime.clone(), container.id);
    let alive = move || {
        let (runtime, id) = (runtime.clone(), id.clone());
        async move {
            let request = ContainerStatusRequest { container_id: id, verbose: false };
            // A runtime that is away for a moment ends no log.
            match runtime.container_status(request).await {
                Ok(answer) => answer.status.is_some_and(|s| s.state() == CriState::ContainerRunning),
                Err(error) => !error.is_not_found(),
            }
        }
    };
    let chunks = stream(container.log_path, LogOptions { follow, ..options }, alive).map_ok(Frame::data);
    let mut answer = Response::new(StreamBody::new(chunks).boxed_unsync());
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    answer
}

fn has_container(pod: &Pod, name: &str) -> bool {
    let Some(spec) = &pod.spec else { return false };
    let ordinary = spec.containers.iter().chain(spec.init_containers.iter().flatten()).map(|c| &c.name);
    ordinary.chain(spec.ephemeral_containers.iter().flatten().map(|c| &c.name)).any(|n| n == name)
}

/// Reads PodLogOptions from a query; the second value is `previous`.
///
/// # Errors
/// What is wrong with it.
pub(super) fn options(query: &str, now: Timestamp) -> Result<(LogOptions, bool), String> {
    let mut options = LogOptions::default();
    let mut previous = false;
    let (mut since_seconds, mut since_time) = (None, None);
    for (key, value) in streams::query(query) {
        let number = || -> Result<u64, String> {
            value.parse().map_err(|_| format!("{key}: {value:?} must be greater than or equal to 0\n"))
        };
        match key.as_str() {
            "follow" => options.follow = truth(&value),
            "previous" => previous = truth(&value),
            "timestamps" => options.timestamps = truth(&value),
            "tailLines" => options.tail_lines = Some(number()?),
            "limitBytes" => options.limit_bytes = Some(number()?).filter(|limit| *limit > 0),
            "sinceSeconds" => since_seconds = Some(number()?),
            "sinceTime" => {
                let time: Timestamp = value.parse().map_err(|_| format!("sinceTime: {value:?} is no time\n"))?;
                since_time = Some(time);
            }
            "stream" => {
                options.output = match value.as_str() {
                    "Stdout" => Some(Output::Stdout),
                    "Stderr" => Some(Output::Stderr),
                    _ => None,
                }
            }
            _ => {}
        }
    }
    options.since = match (since_seconds, since_time) {
        (Some(_), Some(_)) => return Err("at most one of `sinceTime` or `sinceSeconds` may be specified\n".into()),
        (Some(seconds), None) => {
            let back = SignedDuration::from_secs(i64::try_from(seconds).unwrap_or(i64::MAX));
            now.checked_sub(back).ok()
        }
        (None, time) => time,
    };
    Ok((options, previous))
}

/// As Go reads a boolean; an empty value is true.
fn truth(value: &str) -> bool {
    matches!(value, "" | "1" | "t" | "T" | "true" | "TRUE" | "True")
}

/// Why there is no log yet, or no more.
pub(super) fn unavailable(pod: &Pod, container: &str, previous: bool) -> String {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    if previous {
        return format!("previous terminated container {container:?} in pod {name:?} not found\n");
    }
    let waits = format!("container {container:?} in pod {name:?} is waiting to start");
    match waiting(pod, container).as_deref() {
        Some("ErrImagePull") => format!("{waits}: image can't be pulled\n"),
        Some("ImagePullBackOff") => format!("{waits}: trying and failing to pull image\n"),
        Some(reason) => format!("{waits}: {reason}\n"),
        None => format!("{waits}: ContainerCreating\n"),
    }
}

fn waiting(pod: &Pod, container: &str) -> Option<String> {
    let status = pod.status.as_ref()?;
    let lists = [&status.container_statuses, &status.init_container_statuses, &status.ephemeral_container_statuses];
    let found: &ContainerStatus = lists.into_iter().flatten().flatten().find(|c| c.name == container)?;
    let ContainerState { waiting, .. } = found.state.as_ref()?;
    waiting.as_ref()?.reason.clone().filter(|reason| !reason.is_empty())
}
