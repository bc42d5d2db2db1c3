//! Which path of port 10250 means what.

use http::{Method, StatusCode};

use super::respond::Refusal;

/// A container of a pod, or a pod where `container` is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Target {
    pub namespace: String,
    pub pod: String,
    pub uid: Option<String>,
    pub container: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Route {
    Healthz,
    Pods,
    RunningPods,
    Metrics,
    MetricsResource,
    MetricsProbes,
    MetricsCadvisor,
    StatsSummary,
    ContainerLogs(Target),
    Exec(Target),
    Attach(Target),
    PortForward(Target),
    Run(Target),
}

/// Reads method and path.
///
/// # Errors
/// For a path or a method that is not served.
pub(super) fn route(method: &Method, path: &str) -> Result<Route, Refusal> {
    let not_found = || Refusal::new(StatusCode::NOT_FOUND, "404 page not found\n");
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let get = method == Method::GET || method == Method::HEAD;
    let stream = method == Method::GET || method == Method::POST;
    let (allowed, route) = match parts.as_slice() {
        ["healthz"] | ["healthz", _] => (get, Route::Healthz),
        ["pods"] => (get, Route::Pods),
        ["runningpods"] => (get, Route::RunningPods),
        ["metrics"] => (get, Route::Metrics),
        ["metrics", "resource"] => (get, Route::MetricsResource),
        ["metrics", "probes"] => (get, Route::MetricsProbes),
        ["metrics", "cadvisor"] => (get, Route::MetricsCadvisor),
        ["stats", "summary"] => (get || method == Method::POST, Route::StatsSummary),
        ["containerLogs", rest @ ..] => (get, Route::ContainerLogs(container(rest).ok_or_else(not_found)?)),
        ["exec", rest @ ..] => (stream, Route::Exec(container(rest).ok_or_else(not_found)?)),
        ["attach", rest @ ..] => (stream, Route::Attach(container(rest).ok_or_else(not_found)?)),
        ["portForward", rest @ ..] => (stream, Route::PortForward(pod(rest).ok_or_else(not_found)?)),
        ["run", rest @ ..] => (method == Method::POST, Route::Run(container(rest).ok_or_else(not_found)?)),
        ["metrics", "slis"] | ["configz" | "checkpoint" | "logs" | "debug" | "flagz" | "statusz", ..] => {
            return Err(Refusal::new(
                StatusCode::NOT_IMPLEMENTED,
                format!("{path} is not served by this node's agent\n"),
            ));
        }
        _ => return Err(not_found()),
    };
    if allowed { Ok(route) } else { Err(Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "405: Method Not Allowed\n")) }
}

/// `NAMESPACE/POD[/UID]/CONTAINER`
fn container(parts: &[&str]) -> Option<Target> {
    let (container, pod_parts) = parts.split_last()?;
    Some(Target { container: (*container).into(), ..pod(pod_parts)? })
}

/// `NAMESPACE/POD[/UID]`
fn pod(parts: &[&str]) -> Option<Target> {
    let (namespace, pod, uid) = match parts {
        [namespace, pod] => (namespace, pod, None),
        [namespace, pod, uid] => (namespace, pod, Some((*uid).to_owned())),
        _ => return None,
    };
    Some(Target { namespace: (*namespace).into(), pod: (*pod).into(), uid, container: String::new() })
}
