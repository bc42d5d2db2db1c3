//! Probes and lifecycle hooks.

use api::status::FieldError;
use serde_json::Value;

use super::super::super::check;
use super::super::super::object::{list, number, text};

/// `kind` is as `livenessProbe`.
pub(super) fn probe(container: &Value, kind: &str, path: &str) -> Vec<FieldError> {
    let (probe, path) = (&container[kind], format!("{path}.{kind}"));
    if probe.is_null() {
        return Vec::new();
    }
    let mut errors = handler(probe, None, &path);
    for field in ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"] {
        errors.extend(check::not_negative(format!("{path}.{field}"), probe[field].as_i64()));
    }
    let grace = probe["terminationGracePeriodSeconds"].as_i64();
    if let Some(seconds) = grace.filter(|seconds| *seconds <= 0) {
        let field = format!("{path}.terminationGracePeriodSeconds");
        errors.push(FieldError::invalid(field, seconds, "must be greater than 0"));
    }
    if kind == "readinessProbe" {
        if let Some(seconds) = grace {
            let field = format!("{path}.terminationGracePeriodSeconds");
            errors.push(FieldError::invalid(field, seconds, "must not be set for readinessProbes"));
        }
    } else if number(probe, "/successThreshold") != 1 {
        let count = number(probe, "/successThreshold");
        errors.push(FieldError::invalid(format!("{path}.successThreshold"), count, "must be 1"));
    }
    errors
}

/// The hooks of a container.
pub(super) fn lifecycle(spec: &Value, container: &Value, path: &str) -> Vec<FieldError> {
    let grace = spec["terminationGracePeriodSeconds"].as_i64();
    let hooks = ["postStart", "preStop"].into_iter().filter(|hook| !container["lifecycle"][*hook].is_null());
    hooks.flat_map(|hook| handler(&container["lifecycle"][hook], grace, &format!("{path}.lifecycle.{hook}"))).collect()
}

fn handler(handler: &Value, grace: Option<i64>, path: &str) -> Vec<FieldError> {
    let set = ["exec", "httpGet", "tcpSocket", "grpc", "sleep"].into_iter().filter(|kind| !handler[*kind].is_null());
    let mut errors = Vec::new();
    let mut count = 0;
    for kind in set {
        count += 1;
        let (action, path) = (&handler[kind], format!("{path}.{kind}"));
        match kind {
            _ if count > 1 => errors.push(FieldError::forbidden(path, "may not specify more than 1 handler type")),
            "exec" if list(action, "/command").is_empty() => {
                errors.push(FieldError::required(format!("{path}.command"), ""));
            }
            "httpGet" => errors.extend(http_get(action, &path)),
            "tcpSocket" => errors.extend(check::port_or_name(&format!("{path}.port"), &action["port"])),
            "grpc" => errors.extend(check::port(format!("{path}.port"), number(action, "/port"))),
            "sleep" => errors.extend(sleep(action, grace, &path)),
            _ => {}
        }
    }
    if count == 0 {
        errors.push(FieldError::required(path, "must specify a handler type"));
    }
    errors
}

fn http_get(action: &Value, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if text(action, "/path").is_empty() {
        errors.push(FieldError::required(format!("{path}.path"), ""));
    }
    errors.extend(check::port_or_name(&format!("{path}.port"), &action["port"]));
    errors.extend(check::one_of(format!("{path}.scheme"), text(action, "/scheme"), &["HTTP", "HTTPS"]));
    for header in list(action, "/httpHeaders") {
        let name = text(header, "/name");
        if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
            let why = "a valid HTTP header must consist of alphanumeric characters or '-' (e.g. 'X-Header-Name', \
                       regex used for validation is '[-A-Za-z0-9]+')";
            errors.push(FieldError::invalid(format!("{path}.httpHeaders"), name, why));
        }
    }
    errors
}

fn sleep(action: &Value, grace: Option<i64>, path: &str) -> Option<FieldError> {
    let (seconds, grace) = (number(action, "/seconds"), grace?);
    let why = format!("must be non-negative and less than terminationGracePeriodSeconds ({grace})");
    (!(0..=grace).contains(&seconds)).then(|| FieldError::invalid(path, seconds, why))
}
