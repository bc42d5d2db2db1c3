//! What is wrong with the spec of a pod, or of a pod template.

mod container;
mod environment;
mod handler;
mod scheduling;
mod volume;

use api::names;
use api::status::FieldError;
use serde_json::Value;

use super::super::check;
use super::super::object::{list, text};

const LONGEST_DEADLINE: i64 = i32::MAX as i64;

/// `path` is where the spec stands, as `spec.template.spec`.
pub(in super::super) fn spec(spec: &Value, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if spec["terminationGracePeriodSeconds"].is_null() {
        errors.push(FieldError::required(format!("{path}.terminationGracePeriodSeconds"), ""));
    }
    errors.extend(volume::volumes(spec, path));
    errors.extend(container::all(spec, path));
    errors.extend(host_ports(spec, path));
    errors.extend(policies(spec, path));
    errors.extend(check::labels(&spec["nodeSelector"], &format!("{path}.nodeSelector")));
    if spec["shareProcessNamespace"] == true && spec["hostPID"] == true {
        let why = "ShareProcessNamespace and HostPID cannot both be enabled";
        errors.push(FieldError::invalid(format!("{path}.shareProcessNamespace"), true, why));
    }
    errors.extend(scheduling::affinity(&spec["affinity"], &format!("{path}.affinity")));
    errors.extend(dns(spec, path));
    for (i, gate) in list(spec, "/readinessGates").iter().enumerate() {
        let field = format!("{path}.readinessGates[{i}].conditionType");
        errors.extend(check::by_rule(field, text(gate, "/conditionType"), names::qualified));
    }
    errors.extend(scheduling::spread(spec, path));
    errors.extend(names_in(spec, path));
    let deadline = spec["activeDeadlineSeconds"].as_i64();
    if let Some(seconds) = deadline.filter(|seconds| !(1..=LONGEST_DEADLINE).contains(seconds)) {
        let why = names::between(1, LONGEST_DEADLINE);
        errors.push(FieldError::invalid(format!("{path}.activeDeadlineSeconds"), seconds, why));
    }
    errors.extend(scheduling::tolerations(spec, path));
    errors.extend(host_aliases(spec, path));
    errors
}

fn policies(spec: &Value, path: &str) -> Vec<FieldError> {
    let dns = ["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"];
    let mut errors = Vec::new();
    errors.extend(required_word(spec, path, "restartPolicy", &["Always", "OnFailure", "Never"]));
    errors.extend(required_word(spec, path, "dnsPolicy", &dns));
    errors
}

/// A field that must hold one of some words.
fn required_word(object: &Value, path: &str, field: &str, supported: &[&str]) -> Option<FieldError> {
    let at = format!("{path}.{field}");
    match object[field].as_str().unwrap_or_default() {
        "" => Some(FieldError::required(at, "")),
        word => check::one_of(at, word, supported),
    }
}

fn host_ports(spec: &Value, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if spec["hostNetwork"] != true {
        return errors;
    }
    for (i, container) in list(spec, "/containers").iter().enumerate() {
        for (j, port) in list(container, "/ports").iter().enumerate() {
            if port["hostPort"] != port["containerPort"] {
                let field = format!("{path}.containers[{i}].ports[{j}].hostPort");
                let why = "must match `containerPort` when `hostNetwork` is true";
                errors.push(FieldError::invalid(field, port["hostPort"].clone(), why));
            }
        }
    }
    errors
}

fn dns(spec: &Value, path: &str) -> Vec<FieldError> {
    let (config, path) = (&spec["dnsConfig"], format!("{path}.dnsConfig"));
    let servers = list(config, "/nameservers");
    if spec["dnsPolicy"] == "None" {
        if config.is_null() {
            return vec![FieldError::required(path, "must provide `dnsConfig` when `dnsPolicy` is None")];
        }
        if servers.is_empty() {
            let why = "must provide at least one DNS nameserver when `dnsPolicy` is None";
            return vec![FieldError::required(format!("{path}.nameservers"), why)];
        }
    }
    let mut errors = Vec::new();
    for (field, limit, what) in [("nameservers", 3, "nameservers"), ("searches", 32, "search paths")] {
        if list(config, &format!("/{field}")).len() > limit {
            let why = format!("must not have more than {limit} {what}");
            errors.push(FieldError::invalid(format!("{path}.{field}"), config[field].clone(), why));
        }
    }
    for (i, server) in servers.iter().enumerate() {
        errors.extend(check::ip(format!("{path}.nameservers[{i}]"), server.as_str().unwrap_or_default()));
    }
    for (i, option) in list(config, "/options").iter().enumerate() {
        if text(option, "/name").is_empty() {
            errors.push(FieldError::required(format!("{path}.options[{i}]"), "must not be empty"));
        }
    }
    errors
}

fn names_in(spec: &Value, path: &str) -> Vec<FieldError> {
    let rules: [(&str, check::Rule); 6] = [
        ("serviceAccountName", names::dns_subdomain),
        ("nodeName", names::dns_subdomain),
        ("hostname", names::dns_label),
        ("subdomain", names::dns_label),
        ("priorityClassName", names::dns_subdomain),
        ("runtimeClassName", names::dns_subdomain),
    ];
    let mut errors = Vec::new();
    for (field, rule) in rules {
        match spec[field].as_str().unwrap_or_default() {
            "" => {}
            name => errors.extend(check::by_rule(format!("{path}.{field}"), name, rule)),
        }
    }
    errors
}

fn host_aliases(spec: &Value, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (i, alias) in list(spec, "/hostAliases").iter().enumerate() {
        let path = format!("{path}.hostAliases[{i}]");
        errors.extend(check::ip(format!("{path}.ip"), text(alias, "/ip")));
        for (j, name) in list(alias, "/hostnames").iter().enumerate() {
            let name = name.as_str().unwrap_or_default();
            errors.extend(check::by_rule(format!("{path}.hostnames[{j}]"), name, names::dns_subdomain));
        }
    }
    errors
}

#[cfg(test)]
mod tests;
