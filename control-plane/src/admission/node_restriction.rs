//! NodeRestriction: a node writes its own Node, Lease and CSINode, and its own pods, and asks for tokens of these only.

use api::meta;
use api::status::Status;
use serde_json::Value;

use super::{Admitted, forbid};
use crate::authz;
use crate::ports::{Admission, AdmissionRequest, Operation};
use crate::registry::Subresource;
use crate::server::Server;

const MIRROR: &str = "kubernetes.io/config.mirror";

pub struct NodeRestriction;

impl Admission for NodeRestriction {
    fn admit<'a>(&'a self, server: &'a Server, request: &'a mut AdmissionRequest) -> Admitted<'a> {
        Box::pin(async move {
            let Some(node) = authz::node_of(&request.user).map(str::to_owned) else { return Ok(()) };
            let subject = subject(server, request).await?;
            judge(&node, request, &subject).map_err(|why| forbid(request, &why))
        })
    }
}

/// The stored object that the request leads to beside its own: a mirror pod's node, the pod of an eviction or a token.
async fn subject(server: &Server, request: &AdmissionRequest) -> Result<Value, Status> {
    let (plural, namespace, name) = match (request.resource.plural, request.subresource, request.operation) {
        ("pods", None, Operation::Create) => {
            let owner = meta::owners(&request.object).first();
            ("nodes", "", owner.and_then(|owner| owner["name"].as_str()).unwrap_or_default())
        }
        ("pods", Some(Subresource::Eviction), _) => {
            ("pods", request.attributes.namespace.as_str(), request.attributes.name.as_str())
        }
        ("serviceaccounts", Some(Subresource::Token), _) => {
            let pod = request.object.pointer("/spec/boundObjectRef/name").and_then(Value::as_str);
            ("pods", request.attributes.namespace.as_str(), pod.unwrap_or_default())
        }
        _ => return Ok(Value::Null),
    };
    match server.resource("", plural) {
        Some(resource) if !name.is_empty() => Ok(server.get(resource, namespace, name).await?.as_ref().clone()),
        _ => Ok(Value::Null),
    }
}

/// The rules, over values. `subject` is what `subject` found.
fn judge(node: &str, request: &AdmissionRequest, subject: &Value) -> Result<(), String> {
    match (request.resource.group, request.resource.plural) {
        ("", "pods") => pod(node, request, subject),
        ("", "nodes") => own_node(node, request),
        ("", "serviceaccounts") if request.subresource == Some(Subresource::Token) => {
            token(node, &request.object, subject)
        }
        ("coordination.k8s.io", "leases") => lease(node, request),
        ("storage.k8s.io", "csinodes") => match name(request) == node {
            true => Ok(()),
            false => Err("can only access CSINode with the same name as the requesting node".into()),
        },
        ("", "persistentvolumeclaims") if request.subresource != Some(Subresource::Status) => {
            Err("may only update PVC status".into())
        }
        _ => Ok(()),
    }
}

fn pod(node: &str, request: &AdmissionRequest, subject: &Value) -> Result<(), String> {
    let on_node = |pod: &Value| pod["spec"]["nodeName"] == node;
    match (request.subresource, request.operation) {
        (None, Operation::Create) => mirror_pod(node, &request.object, subject),
        (None, Operation::Delete) if on_node(&request.old) => Ok(()),
        (None, Operation::Delete) => {
            Err(format!("node {node:?} can only delete pods with spec.nodeName set to itself"))
        }
        (None, operation) => Err(format!(
            "unexpected operation {:?}, node {node:?} can only create and delete mirror pods",
            format!("{operation:?}").to_uppercase()
        )),
        (Some(Subresource::Status), _) if !on_node(&request.old) => {
            Err(format!("node {node:?} can only update pod status for pods with spec.nodeName set to itself"))
        }
        (Some(Subresource::Status), _) if meta::labels(&request.object) != meta::labels(&request.old) => {
            Err(format!("node {node:?} cannot update labels through pod status"))
        }
        (Some(Subresource::Status), _) => Ok(()),
        (Some(Subresource::Eviction), _) if on_node(subject) => Ok(()),
        (Some(Subresource::Eviction), _) => {
            Err(format!("node {node} can only evict pods with spec.nodeName set to itself"))
        }
        (Some(_), _) => Err("unexpected pod subresource, only 'status' and 'eviction' are allowed".into()),
    }
}

/// A pod that a node creates mirrors one of its static pods, is its own, and leads to nobody's data.
fn mirror_pod(node: &str, pod: &Value, owner: &Value) -> Result<(), String> {
    if meta::annotation(pod, MIRROR).is_none() {
        return Err(format!("pod does not have {MIRROR:?} annotation, node {node:?} can only create mirror pods"));
    }
    if pod["spec"]["nodeName"] != node {
        return Err(format!("node {node:?} can only create pods with spec.nodeName set to itself"));
    }
    let [reference] = meta::owners(pod) else {
        return Err(format!("node {node:?} can only create pods with a single owner reference set to itself"));
    };
    if reference["apiVersion"] != "v1" || reference["kind"] != "Node" || reference["name"] != node {
        return Err(format!("node {node:?} can only create pods with an owner reference set to itself"));
    }
    if reference["controller"] != true {
        return Err(format!("node {node:?} can only create pods with a controller owner reference set to itself"));
    }
    if reference["blockOwnerDeletion"] == true {
        return Err(format!("node {node:?} must not set blockOwnerDeletion on an owner reference"));
    }
    let (given, real) = (reference["uid"].as_str().unwrap_or_default(), meta::uid(owner));
    if given != real {
        return Err(format!("node {node} UID mismatch: expected {given} got {real}"));
    }
    match api_references(&pod["spec"]) {
        Some(what) => Err(format!("node {node:?} can not create pods that reference {what}")),
        None => Ok(()),
    }
}

/// The first kind of object that a pod leads to.
fn api_references(spec: &Value) -> Option<&'static str> {
    const VOLUMES: [(&str, &str); 3] =
        [("secret", "secrets"), ("configMap", "configmaps"), ("persistentVolumeClaim", "persistentvolumeclaims")];
    if !spec["serviceAccountName"].as_str().unwrap_or_default().is_empty() {
        return Some("serviceaccounts");
    }
    let volumes = || spec["volumes"].as_array().into_iter().flatten();
    if volumes().any(|volume| !volume["projected"].is_null()) {
        return Some("projected volumes");
    }
    if let Some((_, what)) = VOLUMES.into_iter().find(|(kind, _)| volumes().any(|volume| !volume[*kind].is_null())) {
        return Some(what);
    }
    let containers = ["initContainers", "containers", "ephemeralContainers"];
    let containers = containers.into_iter().filter_map(|kind| spec[kind].as_array()).flatten();
    for container in containers {
        let env = || container["env"].as_array().into_iter().flatten();
        let env_from = || container["envFrom"].as_array().into_iter().flatten();
        if env().any(|e| !e["valueFrom"]["secretKeyRef"].is_null()) || env_from().any(|e| !e["secretRef"].is_null()) {
            return Some("secrets");
        }
        if env().any(|e| !e["valueFrom"]["configMapKeyRef"].is_null())
            || env_from().any(|e| !e["configMapRef"].is_null())
        {
            return Some("configmaps");
        }
    }
    None
}

fn own_node(node: &str, request: &AdmissionRequest) -> Result<(), String> {
    let name = name(request);
    if name != node {
        return Err(format!("node {node:?} is not allowed to modify node {name:?}"));
    }
    let (new, old) = (&request.object, &request.old);
    match request.operation {
        Operation::Create => match forbidden_labels(new, &Value::Null).as_slice() {
            [] => Ok(()),
            labels => Err(format!("node {node:?} is not allowed to set the following labels: {}", labels.join(", "))),
        },
        Operation::Update if list(&new["spec"]["taints"]) != list(&old["spec"]["taints"]) => {
            Err(format!("node {node:?} is not allowed to modify taints"))
        }
        Operation::Update if meta::owners(new) != meta::owners(old) => {
            Err(format!("node {node:?} is not allowed to modify ownerReferences"))
        }
        Operation::Update => match forbidden_labels(new, old).as_slice() {
            [] => Ok(()),
            labels => Err(format!("is not allowed to modify labels: {}", labels.join(", "))),
        },
        _ => Ok(()),
    }
}

/// Labels that differ and that a node may not set: those that steer workloads.
fn forbidden_labels(new: &Value, old: &Value) -> Vec<String> {
    let (new, old) = (meta::labels(new), meta::labels(old));
    let keys =
        |labels: &Value| labels.as_object().map(|map| map.keys().cloned().collect::<Vec<_>>()).unwrap_or_default();
    let mut changed: Vec<String> = [keys(new), keys(old)].concat();
    changed.retain(|key| new.get(key) != old.get(key) && !may_set(key));
    changed.sort();
    changed.dedup();
    changed
}

fn may_set(label: &str) -> bool {
    const ALLOWED: [&str; 11] = [
        "kubernetes.io/hostname",
        "topology.kubernetes.io/zone",
        "topology.kubernetes.io/region",
        "failure-domain.beta.kubernetes.io/zone",
        "failure-domain.beta.kubernetes.io/region",
        "beta.kubernetes.io/instance-type",
        "node.kubernetes.io/instance-type",
        "kubernetes.io/os",
        "kubernetes.io/arch",
        "beta.kubernetes.io/os",
        "beta.kubernetes.io/arch",
    ];
    let namespace = label.split_once('/').map_or("", |(namespace, _)| namespace);
    let within = |suffix: &str| namespace == suffix || namespace.ends_with(&format!(".{suffix}"));
    if within("node-restriction.kubernetes.io") {
        return false;
    }
    !(within("kubernetes.io") || within("k8s.io"))
        || ALLOWED.contains(&label)
        || within("kubelet.kubernetes.io")
        || within("node.kubernetes.io")
}

fn token(node: &str, request: &Value, pod: &Value) -> Result<(), String> {
    let reference = &request["spec"]["boundObjectRef"];
    let text = |field: &str| reference[field].as_str().unwrap_or_default();
    if text("apiVersion") != "v1" || text("kind") != "Pod" || text("name").is_empty() {
        return Err("node requested token not bound to a pod".into());
    }
    if text("uid").is_empty() {
        return Err("node requested token with a pod binding without a uid".into());
    }
    if text("uid") != meta::uid(pod) {
        return Err(format!(
            "the UID in the bound object reference ({}) does not match the UID in record. The object might have been \
             deleted and then recreated",
            text("uid")
        ));
    }
    if pod["spec"]["nodeName"] != node {
        return Err("node requested token bound to a pod scheduled on a different node".into());
    }
    Ok(())
}

fn lease(node: &str, request: &AdmissionRequest) -> Result<(), String> {
    if request.attributes.namespace != "kube-node-lease" {
        return Err(format!("can only access leases in the {:?} system namespace", "kube-node-lease"));
    }
    match name(request) == node {
        true => Ok(()),
        false => Err("can only access node lease with the same name as the requesting node".into()),
    }
}

fn name(request: &AdmissionRequest) -> &str {
    match request.attributes.name.as_str() {
        "" => meta::name(&request.object),
        name => name,
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn mirror() -> Value {
        json!({
            "metadata": {
                "annotations": {MIRROR: "hash"},
                "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": "n1", "uid": "u", "controller": true}],
            },
            "spec": {"nodeName": "n1", "containers": [{"name": "a"}]},
        })
    }

    #[test]
    fn nodes_create_their_own_mirror_pods_only() {
        let node = json!({"metadata": {"name": "n1", "uid": "u"}});
        assert_eq!(mirror_pod("n1", &mirror(), &node), Ok(()));
        let changed = |pointer: &str, value: Value| {
            let mut pod = mirror();
            *pod.pointer_mut(pointer).unwrap() = value;
            mirror_pod("n1", &pod, &node).is_err()
        };
        assert!(changed("/metadata/annotations", json!({})));
        assert!(changed("/spec/nodeName", json!("n2")));
        assert!(changed("/metadata/ownerReferences", json!([])));
        assert!(changed("/metadata/ownerReferences/0/uid", json!("v")));
        assert!(changed("/metadata/ownerReferences/0/controller", json!(false)));
        assert!(changed("/spec/containers", json!([{"envFrom": [{"secretRef": {"name": "s"}}]}])));
    }

    #[test]
    fn labels_that_steer_workloads_are_not_the_nodes() {
        let node = |labels: Value| json!({"metadata": {"labels": labels}});
        let new = node(json!({
            "kubernetes.io/hostname": "n1",
            "example.com/rack": "r1",
            "node-role.kubernetes.io/control-plane": "",
            "x.node-restriction.kubernetes.io/a": "b",
        }));
        let expected = ["node-role.kubernetes.io/control-plane", "x.node-restriction.kubernetes.io/a"];
        assert_eq!(forbidden_labels(&new, &Value::Null), expected);
        assert!(forbidden_labels(&new, &new).is_empty());
        assert_eq!(forbidden_labels(&node(json!({})), &new), expected);
    }

    #[test]
    fn tokens_are_for_pods_on_the_node() {
        let pod = json!({"metadata": {"uid": "u"}, "spec": {"nodeName": "n1"}});
        let request = |uid: &str| json!({"spec": {"boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": uid}}});
        assert_eq!(token("n1", &request("u"), &pod), Ok(()));
        assert!(token("n1", &request("v"), &pod).is_err());
        assert!(token("n1", &request(""), &pod).is_err());
        assert!(token("n2", &request("u"), &pod).is_err());
        assert!(token("n1", &json!({"spec": {}}), &pod).is_err());
    }
}
