//! What is wrong with a Service.

use api::names;
use api::status::FieldError;
use serde_json::{Value, json};

use super::super::check;
use super::super::object::{list, number, text, unset};
use super::{allocate, families, has_cluster_ip, is_external, is_headless};

const TYPES: &[&str] = &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
const PROTOCOLS: &[&str] = &["SCTP", "TCP", "UDP"];
const LONGEST_AFFINITY: i64 = 86_400;

pub(super) fn service(service: &Value) -> Vec<FieldError> {
    let refused = families::refused(&allocate::ranges().families(), service);
    if !refused.is_empty() {
        return refused;
    }
    let mut errors = check::name(service, names::dns_label);
    let kind = text(service, "/spec/type");
    errors.extend(by_type(service, kind));
    errors.extend(ports(service));
    errors.extend(check::labels(&service["spec"]["selector"], "spec.selector"));
    errors.extend(affinity(service));
    errors.extend(check::one_of("spec.type", kind, TYPES));
    for (i, address) in list(service, "/spec/externalIPs").iter().enumerate() {
        errors.extend(check::ip(format!("spec.externalIPs[{i}]"), address.as_str().unwrap_or_default()));
    }
    errors.extend(policies(service));
    errors.extend(allocate::out_of_range(allocate::ranges(), service));
    errors
}

fn by_type(service: &Value, kind: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let none = |kind: &str| {
        let why = format!("may not be set to 'None' for {kind} services");
        FieldError::invalid("spec.clusterIPs[0]", "None", why)
    };
    match kind {
        "LoadBalancer" | "NodePort" if is_headless(service) => errors.push(none(kind)),
        "ExternalName" => {
            for field in ["clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
                if !unset(&service["spec"], field) {
                    errors.push(FieldError::forbidden(
                        format!("spec.{field}"),
                        "may not be set for ExternalName services",
                    ));
                }
            }
            let target = text(service, "/spec/externalName").trim_end_matches('.');
            match target {
                "" => errors.push(FieldError::required("spec.externalName", "")),
                target => errors.extend(check::by_rule("spec.externalName", target, names::dns_subdomain)),
            }
        }
        _ => {}
    }
    errors
}

fn ports(service: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let ports = list(service, "/spec/ports");
    if ports.is_empty() && !is_headless(service) && text(service, "/spec/type") != "ExternalName" {
        errors.push(FieldError::required("spec.ports", ""));
    }
    let (mut names_seen, mut seen, mut nodes_seen) = (Vec::new(), Vec::new(), Vec::new());
    for (i, port) in ports.iter().enumerate() {
        let path = format!("spec.ports[{i}]");
        errors.extend(one_port(service, &path, port, ports.len() > 1));
        let (name, protocol) = (text(port, "/name"), text(port, "/protocol"));
        if !name.is_empty() {
            if names_seen.contains(&name) {
                errors.push(FieldError::duplicate(format!("{path}.name"), name));
            }
            names_seen.push(name);
        }
        let node = number(port, "/nodePort");
        if node != 0 {
            if nodes_seen.contains(&(protocol, node)) {
                let value = json!({"protocol": protocol, "port": 0, "targetPort": 0, "nodePort": node});
                errors.push(FieldError::duplicate(format!("{path}.nodePort"), value));
            }
            nodes_seen.push((protocol, node));
        }
        let identity = (protocol, number(port, "/port"));
        if seen.contains(&identity) {
            errors.push(FieldError::duplicate(
                path,
                json!({"protocol": identity.0, "port": identity.1, "targetPort": 0}),
            ));
        }
        seen.push(identity);
    }
    errors
}

fn one_port(service: &Value, path: &str, port: &Value, named: bool) -> Vec<FieldError> {
    let mut errors = Vec::new();
    match text(port, "/name") {
        "" if named => errors.push(FieldError::required(format!("{path}.name"), "")),
        "" => {}
        name => errors.extend(check::by_rule(format!("{path}.name"), name, names::dns_label)),
    }
    errors.extend(check::port(format!("{path}.port"), number(port, "/port")));
    match text(port, "/protocol") {
        "" => errors.push(FieldError::required(format!("{path}.protocol"), "")),
        protocol => errors.extend(check::one_of(format!("{path}.protocol"), protocol, PROTOCOLS)),
    }
    errors.extend(check::port_or_name(&format!("{path}.targetPort"), &port["targetPort"]));
    match text(port, "/appProtocol") {
        "" => {}
        protocol => errors.extend(check::by_rule(format!("{path}.appProtocol"), protocol, names::qualified)),
    }
    if text(service, "/spec/type") == "ClusterIP" && number(port, "/nodePort") != 0 {
        let why = "may not be used when `type` is 'ClusterIP'";
        errors.push(FieldError::forbidden(format!("{path}.nodePort"), why));
    }
    errors
}

fn affinity(service: &Value) -> Vec<FieldError> {
    let kind = text(service, "/spec/sessionAffinity");
    let mut errors = Vec::from_iter(check::one_of("spec.sessionAffinity", kind, &["ClientIP", "None"]));
    let seconds = number(service, "/spec/sessionAffinityConfig/clientIP/timeoutSeconds");
    if kind == "ClientIP" && !(1..=LONGEST_AFFINITY).contains(&seconds) {
        let why = format!("must be greater than 0 and less than {LONGEST_AFFINITY}");
        errors.push(FieldError::invalid("spec.sessionAffinityConfig.clientIP.timeoutSeconds", seconds, why));
    }
    errors
}

fn policies(service: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let policies = ["Cluster", "Local"];
    match text(service, "/spec/externalTrafficPolicy") {
        "" if is_external(service) => errors.push(FieldError::required("spec.externalTrafficPolicy", "")),
        "" => {}
        _ if !is_external(service) => {
            let value = text(service, "/spec/externalTrafficPolicy");
            errors.push(FieldError::invalid(
                "spec.externalTrafficPolicy",
                value,
                "may only be set for externally-accessible services",
            ));
        }
        policy => errors.extend(check::one_of("spec.externalTrafficPolicy", policy, &policies)),
    }
    if has_cluster_ip(service) {
        match text(service, "/spec/internalTrafficPolicy") {
            "" => errors.push(FieldError::required("spec.internalTrafficPolicy", "")),
            policy => errors.extend(check::one_of("spec.internalTrafficPolicy", policy, &policies)),
        }
    }
    errors
}
