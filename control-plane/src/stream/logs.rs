//! `pods/log`: the kubelet's answer, as it comes.

use api::meta;
use api::status::{FieldError, Status};
use http::{Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use serde_json::Value;

use super::kubelet::{Kubelet, empty, refusal};
use super::options::{Query, encode};
use super::{kubelet_of, locate};
use crate::ports::Body;
use crate::server::Server;

/// The parameters that the kubelet knows, too.
const PASSED: [&str; 8] =
    ["follow", "previous", "timestamps", "sinceSeconds", "sinceTime", "tailLines", "limitBytes", "stream"];

pub async fn serve(kubelet: &Kubelet, server: &Server, pod: &Value, query: &Query) -> Result<Response<Body>, Status> {
    let errors = validate(query);
    if !errors.is_empty() {
        return Err(Status::invalid("PodLogOptions", meta::name(pod), &errors));
    }
    let container = locate::container(pod, query.get("container"))?;
    // A pod without a node has written nothing yet.
    let Some(node) = locate::node(pod) else { return Ok(text(empty())) };
    let target = kubelet_of(server, node).await?;
    let path = path(pod, container, query);
    let mut request = Request::new(empty());
    *request.uri_mut() = path.parse().map_err(Status::internal)?;
    let response = kubelet.send(&target, request).await?;
    match response.status() {
        status if status.is_success() => Ok(text(response.into_body().map_err(Into::into).boxed_unsync())),
        status => Err(failed(status, refusal(response).await)),
    }
}

fn path(pod: &Value, container: &str, query: &Query) -> String {
    let flags = ["follow", "previous", "timestamps"];
    let pairs: Vec<(&str, &str)> = PASSED
        .into_iter()
        .filter_map(|name| match flags.contains(&name) {
            true => query.flag(name).then_some((name, "true")),
            false => Some((name, query.get(name))).filter(|(_, value)| !value.is_empty()),
        })
        .collect();
    format!("/containerLogs/{}/{}/{container}{}", meta::namespace(pod), meta::name(pod), encode(&pairs))
}

fn validate(query: &Query) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let limits = [
        ("tailLines", 0, "must be greater than or equal to 0"),
        ("limitBytes", 1, "must be greater than 0"),
        ("sinceSeconds", 1, "must be greater than 0"),
    ];
    if !query.get("sinceSeconds").is_empty() && !query.get("sinceTime").is_empty() {
        errors.push(FieldError::forbidden("", "at most one of `sinceTime` or `sinceSeconds` may be specified"));
    }
    for (name, least, why) in limits {
        match query.get(name) {
            "" => {}
            value => match value.parse::<i64>() {
                Ok(number) if number >= least => {}
                Ok(number) => errors.push(FieldError::invalid(name, number, why)),
                Err(_) => errors.push(FieldError::invalid(name, value, "must be an integer")),
            },
        }
    }
    errors
}

/// The kubelet's refusal, whose text is for the user.
fn failed(status: StatusCode, text: String) -> Status {
    match status {
        StatusCode::BAD_REQUEST => Status::bad_request(text),
        StatusCode::NOT_FOUND => Status::new(404, "NotFound", text),
        StatusCode::INTERNAL_SERVER_ERROR => Status::internal(text),
        other => {
            let why = format!("the server was unable to respond with a content type or has failed: {text}");
            Status::new(other.as_u16(), "Unknown", why)
        }
    }
}

fn text(body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("text/plain"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_kubelet_is_asked_for_the_same() {
        let pod = json!({"metadata": {"name": "p", "namespace": "ns"}});
        let query =
            Query::parse(Some("container=c&follow=true&previous=false&tailLines=5&sinceTime=2026-01-01T00%3A00%3A00Z"));
        assert_eq!(
            path(&pod, "c", &query),
            "/containerLogs/ns/p/c?follow=true&sinceTime=2026-01-01T00%3A00%3A00Z&tailLines=5"
        );
    }

    #[test]
    fn numbers_have_their_least() {
        let messages =
            |query| -> Vec<String> { validate(&Query::parse(Some(query))).iter().map(ToString::to_string).collect() };
        assert!(messages("tailLines=0&limitBytes=1&sinceSeconds=1").is_empty());
        assert_eq!(messages("tailLines=-1"), ["tailLines: Invalid value: -1: must be greater than or equal to 0"]);
        assert_eq!(messages("limitBytes=0"), ["limitBytes: Invalid value: 0: must be greater than 0"]);
    }
}
