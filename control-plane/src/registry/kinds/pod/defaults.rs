//! What an unset field of a pod, or of a pod template, means.

use serde_json::{Value, json};

use super::super::object::{child, fill, fill_absent, list_mut, put, text, unset};

const CONTAINER_LISTS: [&str; 3] = ["initContainers", "containers", "ephemeralContainers"];
/// Files of volumes that the kubelet writes: 0644.
const FILE_MODE: i64 = 0o644;

/// A pod: as a template, and what only a pod gets.
pub(in super::super) fn pod(pod: &mut Value) {
    template(pod);
    let Some(spec) = child(pod, "spec") else { return };
    fill_absent(spec, "enableServiceLinks", true);
    let host_network = spec["hostNetwork"] == true;
    for containers in ["initContainers", "containers"] {
        for container in list_mut(spec, containers) {
            requests_from_limits(container);
            if host_network {
                host_ports(container);
            }
        }
    }
}

/// `spec` of a pod template.
pub(in super::super) fn template(template: &mut Value) {
    let Some(spec) = child(template, "spec") else { return };
    fill(spec, "restartPolicy", "Always");
    fill_absent(spec, "terminationGracePeriodSeconds", 30);
    fill(spec, "dnsPolicy", "ClusterFirst");
    if spec["hostNetwork"] == true {
        for containers in ["initContainers", "containers"] {
            list_mut(spec, containers).iter_mut().for_each(host_ports);
        }
    }
    let _ = child(spec, "securityContext");
    fill(spec, "schedulerName", "default-scheduler");
    for (from, to) in [("serviceAccountName", "serviceAccount"), ("serviceAccount", "serviceAccountName")] {
        let name = text(spec, &format!("/{from}")).to_owned();
        if !name.is_empty() {
            fill(spec, to, name);
        }
    }
    for containers in CONTAINER_LISTS {
        list_mut(spec, containers).iter_mut().for_each(container);
    }
    list_mut(spec, "volumes").iter_mut().for_each(volume);
}

fn container(container: &mut Value) {
    if unset(container, "imagePullPolicy") {
        let policy = pull_policy(text(container, "/image"));
        put(container, "imagePullPolicy", policy);
    }
    fill(container, "terminationMessagePath", "/dev/termination-log");
    fill(container, "terminationMessagePolicy", "File");
    let _ = child(container, "resources");
    for port in list_mut(container, "ports") {
        fill(port, "protocol", "TCP");
    }
    for variable in list_mut(container, "env") {
        if let Some(source) = variable.get_mut("valueFrom") {
            field_source(source);
        }
    }
    for kind in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(probe) = container.get_mut(kind).filter(|probe| probe.is_object()) {
            handler(probe);
            for (field, value) in
                [("timeoutSeconds", 1), ("periodSeconds", 10), ("successThreshold", 1), ("failureThreshold", 3)]
            {
                fill(probe, field, value);
            }
        }
    }
    for hook in ["postStart", "preStop"] {
        if let Some(hook) = container.get_mut("lifecycle").and_then(|l| l.get_mut(hook)) {
            handler(hook);
        }
    }
}

fn handler(handler: &mut Value) {
    if let Some(get) = handler.get_mut("httpGet").filter(|get| get.is_object()) {
        fill(get, "path", "/");
        fill(get, "scheme", "HTTP");
    }
    if let Some(grpc) = handler.get_mut("grpc").filter(|grpc| grpc.is_object()) {
        fill_absent(grpc, "service", "");
    }
}

/// `fieldRef` and `resourceFieldRef` of an environment variable or a downward API file.
fn field_source(source: &mut Value) {
    if let Some(field) = source.get_mut("fieldRef").filter(|f| f.is_object()) {
        fill(field, "apiVersion", "v1");
    }
    if let Some(field) = source.get_mut("resourceFieldRef").filter(|f| f.is_object()) {
        fill(field, "divisor", "0");
    }
}

fn volume(volume: &mut Value) {
    let bare = volume.as_object().is_some_and(|fields| fields.iter().all(|(key, v)| key == "name" || v.is_null()));
    if bare {
        put(volume, "emptyDir", json!({}));
    }
    for kind in ["secret", "configMap", "downwardAPI", "projected"] {
        if let Some(source) = volume.get_mut(kind).filter(|source| source.is_object()) {
            fill_absent(source, "defaultMode", FILE_MODE);
        }
    }
    if let Some(path) = volume.get_mut("hostPath").filter(|path| path.is_object()) {
        fill_absent(path, "type", "");
    }
    if let Some(image) = volume.get_mut("image").filter(|image| image.is_object() && unset(image, "pullPolicy")) {
        let policy = pull_policy(text(image, "/reference"));
        put(image, "pullPolicy", policy);
    }
    if let Some(downward) = volume.get_mut("downwardAPI") {
        list_mut(downward, "items").iter_mut().for_each(field_source);
    }
    for source in volume.get_mut("projected").map_or(&mut [] as &mut [Value], |p| list_mut(p, "sources")) {
        if let Some(token) = source.get_mut("serviceAccountToken").filter(|t| t.is_object()) {
            fill_absent(token, "expirationSeconds", 3600);
        }
        if let Some(downward) = source.get_mut("downwardAPI") {
            list_mut(downward, "items").iter_mut().for_each(field_source);
        }
    }
}

fn host_ports(container: &mut Value) {
    for port in list_mut(container, "ports") {
        let same = port["containerPort"].clone();
        fill(port, "hostPort", same);
    }
}

fn requests_from_limits(container: &mut Value) {
    let Some(limits) = container.pointer("/resources/limits").and_then(Value::as_object).cloned() else { return };
    let Some(requests) = child(container, "resources").and_then(|r| child(r, "requests")) else { return };
    for (name, amount) in limits {
        fill_absent(requests, &name, amount);
    }
}

/// An image whose tag may move is asked for at every start.
fn pull_policy(image: &str) -> &'static str {
    let name = image.rsplit('/').next().unwrap_or(image);
    let latest = match name.split_once(':') {
        _ if image.contains('@') => name.split('@').next().is_some_and(|n| n.ends_with(":latest")),
        None => true,
        Some((_, tag)) => tag == "latest",
    };
    if latest { "Always" } else { "IfNotPresent" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pull_policy_follows_the_tag() {
        for (image, policy) in [
            ("nginx", "Always"),
            ("nginx:latest", "Always"),
            ("nginx:1.29", "IfNotPresent"),
            ("localhost:5000/nginx", "Always"),
            ("localhost:5000/nginx:1", "IfNotPresent"),
            ("nginx@sha256:0000", "IfNotPresent"),
        ] {
            assert_eq!(pull_policy(image), policy, "{image}");
        }
    }
}
