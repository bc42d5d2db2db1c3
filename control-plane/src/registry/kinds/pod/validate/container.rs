//! Containers of each of the three kinds.

use std::collections::BTreeSet;

use api::names;
use api::quantity::Quantity;
use api::status::{FieldError, FieldErrorKind};
use serde_json::Value;

use super::super::super::check;
use super::super::super::object::{list, number, text};
use super::{environment, handler, required_word};

const PROBES: [&str; 3] = ["livenessProbe", "readinessProbe", "startupProbe"];
const STANDARD_RESOURCES: [&str; 3] = ["cpu", "memory", "ephemeral-storage"];

/// All containers of a pod's spec.
pub(super) fn all(spec: &Value, path: &str) -> Vec<FieldError> {
    let (regular, init) = (list(spec, "/containers"), list(spec, "/initContainers"));
    let mut errors = Vec::new();
    let mut seen = BTreeSet::new();
    if regular.is_empty() {
        errors.push(FieldError::required(format!("{path}.containers"), ""));
    }
    for (i, container) in regular.iter().enumerate() {
        let path = format!("{path}.containers[{i}]");
        errors.extend(common(spec, container, &path));
        errors.extend(duplicate_name(&mut seen, container, &path));
        errors.extend(handler::lifecycle(spec, container, &path));
        PROBES.iter().for_each(|kind| errors.extend(handler::probe(container, kind, &path)));
        errors.extend(restart_policy(container, &path));
    }
    errors.extend(host_port_conflicts(regular, &format!("{path}.containers"), 0));
    for (i, container) in init.iter().enumerate() {
        let at = format!("{path}.initContainers[{i}]");
        errors.extend(common(spec, container, &at));
        errors.extend(restart_policy(container, &at));
        errors.extend(duplicate_name(&mut seen, container, &at));
        errors.extend(host_port_conflicts(std::slice::from_ref(container), &format!("{path}.initContainers"), i));
        errors.extend(init_only(spec, container, &at));
    }
    for (i, container) in list(spec, "/ephemeralContainers").iter().enumerate() {
        let path = format!("{path}.ephemeralContainers[{i}]");
        errors.extend(common(spec, container, &path));
        errors.extend(duplicate_name(&mut seen, container, &path));
        errors.extend(ephemeral_only(spec, container, &path));
    }
    errors
}

/// What every container must be.
fn common(spec: &Value, container: &Value, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    match text(container, "/name") {
        "" => errors.push(FieldError::required(format!("{path}.name"), "")),
        name => errors.extend(check::by_rule(format!("{path}.name"), name, names::dns_label)),
    }
    if text(container, "/image").is_empty() {
        errors.push(FieldError::required(format!("{path}.image"), ""));
    }
    errors.extend(required_word(container, path, "terminationMessagePolicy", &["File", "FallbackToLogsOnError"]));
    errors.extend(ports(container, path));
    errors.extend(environment::variables(container, path));
    errors.extend(environment::sources(container, path));
    errors.extend(mounts(spec, container, path));
    errors.extend(required_word(container, path, "imagePullPolicy", &["Always", "IfNotPresent", "Never"]));
    errors.extend(resources(&container["resources"], &format!("{path}.resources")));
    errors.extend(security(&container["securityContext"], &format!("{path}.securityContext")));
    errors
}

fn duplicate_name(seen: &mut BTreeSet<String>, container: &Value, path: &str) -> Option<FieldError> {
    let name = text(container, "/name");
    (!name.is_empty() && !seen.insert(name.to_owned())).then(|| FieldError::duplicate(format!("{path}.name"), name))
}

fn restart_policy(container: &Value, path: &str) -> Option<FieldError> {
    let policy = container["restartPolicy"].as_str()?;
    check::one_of(format!("{path}.restartPolicy"), policy, &["Always", "Never", "OnFailure"])
}

/// Hooks and probes belong to what goes on running.
fn init_only(spec: &Value, container: &Value, path: &str) -> Vec<FieldError> {
    if container["restartPolicy"] == "Always" {
        let mut errors = handler::lifecycle(spec, container, path);
        PROBES.iter().for_each(|kind| errors.extend(handler::probe(container, kind, path)));
        return errors;
    }
    let why = "may not be set for init containers without restartPolicy=Always";
    let set = ["lifecycle"].into_iter().chain(PROBES).filter(|field| !container[*field].is_null());
    set.map(|field| FieldError::forbidden(format!("{path}.{field}"), why)).collect()
}

fn ephemeral_only(spec: &Value, container: &Value, path: &str) -> Vec<FieldError> {
    let why = "cannot be set for an Ephemeral Container";
    let mut errors = Vec::new();
    let target = text(container, "/targetContainerName");
    let known = |field: &str| list(spec, field).iter().any(|c| c["name"] == target);
    if !target.is_empty() && !known("/containers") && !known("/initContainers") {
        errors.push(not_found(format!("{path}.targetContainerName"), target));
    }
    for field in ["ports", "lifecycle", "resizePolicy", "restartPolicy"].into_iter().chain(PROBES) {
        if !container[field].is_null() {
            errors.push(FieldError::forbidden(format!("{path}.{field}"), why));
        }
    }
    if container["resources"].as_object().is_some_and(|resources| !resources.is_empty()) {
        errors.push(FieldError::forbidden(format!("{path}.resources"), why));
    }
    for (i, mount) in list(container, "/volumeMounts").iter().enumerate() {
        for field in ["subPath", "subPathExpr"].into_iter().filter(|field| mount[*field].is_string()) {
            errors.push(FieldError::forbidden(format!("{path}.volumeMounts[{i}].{field}"), why));
        }
    }
    errors
}

pub(super) fn not_found(field: String, value: &str) -> FieldError {
    FieldError { field, kind: FieldErrorKind::NotFound, value: Some(value.into()), detail: String::new() }
}

fn ports(container: &Value, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut seen = BTreeSet::new();
    for (i, port) in list(container, "/ports").iter().enumerate() {
        let path = format!("{path}.ports[{i}]");
        let name = text(port, "/name");
        if !name.is_empty() {
            let wrong = check::by_rule(format!("{path}.name"), name, names::port_name);
            if wrong.is_empty() && !seen.insert(name) {
                errors.push(FieldError::duplicate(format!("{path}.name"), name));
            }
            errors.extend(wrong);
        }
        match number(port, "/containerPort") {
            0 => errors.push(FieldError::required(format!("{path}.containerPort"), "")),
            port => errors.extend(check::port(format!("{path}.containerPort"), port)),
        }
        match number(port, "/hostPort") {
            0 => {}
            port => errors.extend(check::port(format!("{path}.hostPort"), port)),
        }
        errors.extend(required_word(port, &path, "protocol", &["SCTP", "TCP", "UDP"]));
    }
    errors
}

/// A port of the host is one container's. `first` is the index of the first container in its list.
fn host_port_conflicts(containers: &[Value], path: &str, first: usize) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut seen = BTreeSet::new();
    for (i, container) in containers.iter().enumerate() {
        for (j, port) in list(container, "/ports").iter().enumerate() {
            let host = number(port, "/hostPort");
            if host == 0 {
                continue;
            }
            let name = format!("{}/{}/{host}", text(port, "/protocol"), text(port, "/hostIP"));
            if !seen.insert(name.clone()) {
                errors.push(FieldError::duplicate(format!("{path}[{}].ports[{j}].hostPort", first + i), name));
            }
        }
    }
    errors
}

fn mounts(spec: &Value, container: &Value, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut seen = BTreeSet::new();
    let privileged = container["securityContext"]["privileged"] == true;
    for (i, mount) in list(container, "/volumeMounts").iter().enumerate() {
        let at = format!("{path}.volumeMounts[{i}]");
        let (name, target) = (text(mount, "/name"), text(mount, "/mountPath"));
        if name.is_empty() {
            errors.push(FieldError::required(format!("{at}.name"), ""));
        }
        if !list(spec, "/volumes").iter().any(|volume| volume["name"] == name) {
            errors.push(not_found(format!("{at}.name"), name));
        }
        if target.is_empty() {
            errors.push(FieldError::required(format!("{at}.mountPath"), ""));
        }
        if !seen.insert(target) {
            errors.push(FieldError::invalid(format!("{at}.mountPath"), target, "must be unique"));
        }
        // Here the API's paths are those of the list, not of its element.
        let listed = format!("{path}.volumeMounts");
        let (sub, expression) = (text(mount, "/subPath"), text(mount, "/subPathExpr"));
        errors.extend(descending(&format!("{listed}.subPath"), sub));
        if !expression.is_empty() && !sub.is_empty() {
            let why = "subPathExpr and subPath are mutually exclusive";
            errors.push(FieldError::invalid(format!("{at}.subPathExpr"), expression, why));
        }
        errors.extend(descending(&format!("{listed}.subPathExpr"), expression));
        if let Some(mode) = mount["mountPropagation"].as_str() {
            let field = format!("{listed}.mountPropagation");
            errors.extend(check::one_of(field.clone(), mode, &["Bidirectional", "HostToContainer", "None"]));
            if mode == "Bidirectional" && !privileged {
                let why = "Bidirectional mount propagation is available only to privileged containers";
                errors.push(FieldError::forbidden(field, why));
            }
        }
    }
    errors
}

/// A path below a folder: relative, and never upwards.
pub(super) fn descending(field: &str, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if path.starts_with('/') {
        errors.push(FieldError::invalid(field, path, "must be a relative path"));
    }
    if path.split('/').any(|part| part == "..") {
        errors.push(FieldError::invalid(field, path, "must not contain '..'"));
    }
    errors
}

fn resources(resources: &Value, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for kind in ["limits", "requests"] {
        for (name, amount) in resources[kind].as_object().into_iter().flatten() {
            let field = format!("{path}.{kind}[{name}]");
            errors.extend(resource_name(name, &field));
            let amount = amount.as_str().unwrap_or_default();
            if amount.parse::<Quantity>().is_ok_and(Quantity::is_negative) {
                errors.push(FieldError::invalid(field.clone(), amount, check::NOT_NEGATIVE));
            }
            let whole = |q: Quantity| q.milli_value() % 1000 == 0;
            if name.contains('/') && !amount.parse::<Quantity>().is_ok_and(whole) {
                errors.push(FieldError::invalid(field, amount, "must be an integer"));
            }
            if kind == "requests" {
                errors.extend(against_limit(name, amount, &resources["limits"][name], path));
            }
        }
    }
    errors
}

fn resource_name(name: &str, field: &str) -> Vec<FieldError> {
    let mut errors = check::by_rule(field, name, names::qualified);
    if !name.contains('/') && !STANDARD_RESOURCES.contains(&name) && !name.starts_with("hugepages-") {
        errors.push(FieldError::invalid(field, name, "must be a standard resource for containers"));
    }
    errors
}

/// Extended resources and huge pages cannot be shared: request and limit are the same.
fn against_limit(name: &str, amount: &str, limit: &Value, path: &str) -> Option<FieldError> {
    let shared = STANDARD_RESOURCES.contains(&name);
    let field = format!("{path}.requests");
    let Some(limit) = limit.as_str() else {
        let why = "Limit must be set for non overcommitable resources";
        return (!shared).then(|| FieldError::required(format!("{path}.limits"), why));
    };
    let (request, most) = (amount.parse::<Quantity>().ok()?, limit.parse::<Quantity>().ok()?);
    if !shared && request != most {
        return Some(FieldError::invalid(field, amount, format!("must be equal to {name} limit of {limit}")));
    }
    (request > most)
        .then(|| FieldError::invalid(field, amount, format!("must be less than or equal to {name} limit of {limit}")))
}

fn security(context: &Value, path: &str) -> Vec<FieldError> {
    const LARGEST_ID: i64 = i32::MAX as i64;
    let mut errors = Vec::new();
    for field in ["runAsUser", "runAsGroup"] {
        if let Some(id) = context[field].as_i64().filter(|id| !(0..=LARGEST_ID).contains(id)) {
            errors.push(FieldError::invalid(format!("{path}.{field}"), id, names::between(0, LARGEST_ID)));
        }
    }
    if context["allowPrivilegeEscalation"] == false && context["privileged"] == true {
        let why = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true";
        errors.push(FieldError::invalid(path, context.clone(), why));
    }
    errors
}
